//! Shapers: devices that give a switch its packets back, each class of them no faster than its limit.
//!
//! ```text
//!  switch ==> port end --veth--> turn end: filter on ingress sends it out again
//!  switch <== port end <--veth-- turn end: HTB, the class by the destination's MAC address
//! ```
//!
//! Queues are on the turn end, which is no port of the switch: Open vSwitch deletes the queueing disciplines of its
//! own ports when it starts, and their `ingress` filters whenever such a link goes down. Nor is there anything in
//! the pods' namespaces, or on their links, that a pod could change.

use std::collections::BTreeMap;
use std::fmt::Display;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::TcHandle;
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::limit::{Limit, Shape};
use crate::link::{Link, VethPair};
use crate::netns::NetNs;
use crate::socket::Netlink;
use crate::traffic_control::{self, Description, INGRESS, Instruction, Mirred, ROOT, class_handle};

/// A shaper to be made.
#[derive(Debug, Clone, Copy)]
pub struct ShaperPair<'a> {
    /// The name of the end that is to be a port of the switch.
    pub port_name: &'a str,
    /// The name of the end that has the queues.
    pub turn_name: &'a str,
    /// The largest packet, in bytes: at least the MTU of every pod.
    pub mtu: u32,
    /// What waits in the queues.
    pub waiting: Waiting,
}

/// What waits in a shaper's queues, and so who pays for its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The packets themselves, each on the account of the socket that sent it. A pod's program is so held back
    /// instead of losing packets: what a kernel datapath wants.
    Packet,
    /// Copies, on nobody's account. A switch in user space sends all its packets by one socket, and when what waits
    /// has used up that one's buffer, it loses packets to all ports.
    Copy,
}

/// A shaper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shaper {
    /// The index of the end that is to be a port of the switch.
    pub port_index: u32,
    /// The index of the end that has the queues.
    pub turn_index: u32,
}

/// The destination MAC address by which a packet gets into a class of a shaper. The switch writes it before it hands
/// a packet to the shaper and writes the right one when it comes back.
pub const fn class_mac(class: u16) -> [u8; 6] {
    let [high, low] = class.to_be_bytes();
    [0x0e, 0x73, 0x68, 0x70, high, low]
}

/// The class of a packet: the last two bytes of its destination MAC address, in the HTB's handle.
const CLASSIFY: [Instruction; 3] =
    [Instruction::LoadHalf(4), Instruction::Or((ROOT.major as u32) << 16), Instruction::ReturnLoaded];
/// Every packet.
const EVERYTHING: [Instruction; 1] = [Instruction::Return(u32::MAX)];

impl Netlink {
    /// Makes a shaper without classes in the handle's namespace `here`, or puts right what differs; classes stay.
    /// Both ends are up then. Packets of no class pass unhindered.
    ///
    /// # Errors
    /// [`Error::Refused`] with `EOPNOTSUPP` or `ENOENT` if the kernel has no veth, `sch_htb`, `sch_ingress`,
    /// `cls_bpf` or `act_mirred`; limits need `sch_tbf` as well.
    pub fn ensure_shaper(&self, here: &NetNs, pair: &ShaperPair<'_>) -> Result<Shaper> {
        let shaper = self.ensure_pair(here, pair)?;
        let object = format_args!("shaper {}", pair.turn_name);
        let index = shaper.turn_index;
        self.ensure_root(&object, index, 0)?;
        let classify = traffic_control::filter(index, ROOT, &CLASSIFY, None);
        self.change("set the classifier of", &object, classify, NLM_F_CREATE)?;
        let hooks = traffic_control::clsact(index);
        match self.change("add the filter hook of", &object, hooks, NLM_F_CREATE | NLM_F_EXCL) {
            Err(Error::Refused { errno: Errno::EEXIST, .. }) => {}
            other => other?,
        }
        let turn = Mirred { itself: pair.waiting == Waiting::Packet, device: index };
        let turn = traffic_control::filter(index, INGRESS, &EVERYTHING, Some(turn));
        self.change("set the filter of", &object, turn, NLM_F_CREATE)?;
        Ok(shaper)
    }

    /// The veth pair of a shaper, both ends up and with the MTU asked for.
    fn ensure_pair(&self, here: &NetNs, pair: &ShaperPair<'_>) -> Result<Shaper> {
        let ends = (self.link_by_name(pair.port_name)?, self.link_by_name(pair.turn_name)?);
        let (Some(port), Some(turn)) = ends else {
            return self.create_pair(here, pair, ends);
        };
        if port.peer_index != Some(turn.index) || turn.peer_index != Some(port.index) {
            return self.create_pair(here, pair, (Some(port), Some(turn)));
        }
        for end in [&port, &turn] {
            if end.mtu != pair.mtu {
                self.set_mtu(end.index, pair.mtu)?;
            }
            if !end.up {
                self.set_up(end.index)?;
            }
        }
        Ok(Shaper { port_index: port.index, turn_index: turn.index })
    }

    fn create_pair(
        &self,
        here: &NetNs,
        pair: &ShaperPair<'_>,
        (port, turn): (Option<Link>, Option<Link>),
    ) -> Result<Shaper> {
        for half in [port, turn].into_iter().flatten() {
            self.delete_link(half.index)?;
        }
        let veth = self.create_veth(&VethPair {
            host_name: pair.port_name,
            peer_name: pair.turn_name,
            peer_netns: here,
            mtu: pair.mtu,
            host_mac: None,
            peer_mac: None,
            host_alias: None,
            host_up: true,
            host_group: 0,
            queues: 1,
        })?;
        self.set_up(veth.peer_index)?;
        Ok(Shaper { port_index: veth.host_index, turn_index: veth.peer_index })
    }

    /// Makes a link's root an HTB whose default class has this number (0: none), unless it is one; its classes stay.
    pub(crate) fn ensure_root(&self, object: &dyn Display, index: u32, default_class: u16) -> Result<()> {
        match self.root(index)? {
            Some(root) if is_root(&root, default_class) => return Ok(()),
            // The kernel's own discipline has no handle and gives way.
            Some(root) if root.handle != TcHandle::UNSPEC => {
                let root = traffic_control::message(index, TcHandle::UNSPEC, TcHandle::ROOT);
                self.change("clear", object, RouteNetlinkMessage::DelQueueDiscipline(root), 0)?;
            }
            _ => {}
        }
        let htb = traffic_control::htb_root(index, default_class);
        self.change("add the queues of", object, htb, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Whether a link's root is as [`Self::ensure_root`] makes it.
    pub(crate) fn has_root(&self, index: u32, default_class: u16) -> Result<bool> {
        Ok(self.root(index)?.is_some_and(|root| is_root(&root, default_class)))
    }

    fn root(&self, index: u32) -> Result<Option<Description>> {
        self.discipline(index, TcHandle::ROOT)
    }

    /// The queueing discipline below `parent`.
    fn discipline(&self, index: u32, parent: TcHandle) -> Result<Option<Description>> {
        let message = traffic_control::message(index, TcHandle::UNSPEC, parent);
        let object = format_args!("below {:x}:{:x} of link {index}", parent.major, parent.minor);
        let get = RouteNetlinkMessage::GetQueueDiscipline(message);
        // Without NLM_F_ECHO the answer is for those who listen to all changes.
        absent_is_none(self.request("find the queue", &object, get, NLM_F_ECHO, traffic_control::decode))
    }

    /// Gives a class of a shaper (1 to 65535) its limit, or another one; what waits goes on waiting.
    ///
    /// `turn_index` is [`Shaper::turn_index`].
    ///
    /// # Errors
    /// [`Error::Refused`] with `ENODEV` if there is no such link, with `EINVAL` if it is no shaper.
    pub fn set_limit(&self, turn_index: u32, class: u16, limit: &Limit) -> Result<()> {
        self.set_shape(turn_index, class, &limit.shape(), limit.packet_bytes())
    }

    /// Lets go at once what waits in a class, and through what still comes: before the switch is told to hand the
    /// class no more packets, so that the first that goes past it overtakes none. A class that is not there is fine.
    pub fn open_class(&self, turn_index: u32, class: u16) -> Result<()> {
        match self.limit(turn_index, class)? {
            Some(_) => self.set_shape(turn_index, class, &Shape::OPEN, u32::MAX),
            None => Ok(()),
        }
    }

    fn set_shape(&self, index: u32, class: u16, shape: &Shape, packet_bytes: u32) -> Result<()> {
        const OPERATION: &str = "set the limit of";
        let object = format_args!("class {class} of link {index}");
        check_class(OPERATION, class)?;
        let rate = traffic_control::htb_class(index, class, shape);
        self.change(OPERATION, &object, rate, NLM_F_CREATE)?;
        let queue = traffic_control::class_queue(index, class, shape.queue_bytes, packet_bytes);
        self.change(OPERATION, &object, queue, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a class of a shaper with what waits in it; one that is gone already is fine.
    pub fn remove_class(&self, turn_index: u32, class: u16) -> Result<()> {
        const OPERATION: &str = "remove";
        let object = format_args!("class {class} of link {turn_index}");
        check_class(OPERATION, class)?;
        let message = traffic_control::message(turn_index, class_handle(class), TcHandle::UNSPEC);
        match self.change(OPERATION, &object, RouteNetlinkMessage::DelTrafficClass(message), 0) {
            Err(Error::Refused { errno: Errno::ENOENT | Errno::ENODEV, .. }) => Ok(()),
            other => other,
        }
    }

    /// The limit of a class, to be compared with [`Limit::shape`]; `None` if it has none, or only half of one.
    pub fn limit(&self, turn_index: u32, class: u16) -> Result<Option<Shape>> {
        const OPERATION: &str = "find the limit of";
        check_class(OPERATION, class)?;
        let object = format_args!("class {class} of link {turn_index}");
        let message = traffic_control::message(turn_index, class_handle(class), TcHandle::UNSPEC);
        let get = RouteNetlinkMessage::GetTrafficClass(message);
        let Some(rate) =
            absent_is_none(self.request(OPERATION, &object, get, NLM_F_ECHO, traffic_control::decode))?
        else {
            return Ok(None);
        };
        let queue = self.discipline(turn_index, class_handle(class))?;
        Ok(queue.and_then(|queue| queue.queue_bytes).map(|queue_bytes| shape(&rate, queue_bytes)))
    }

    /// All classes of a shaper, with their limits; `None` is a class that has only half of one.
    pub fn limits(&self, turn_index: u32) -> Result<BTreeMap<u16, Option<Shape>>> {
        const OPERATION: &str = "list the limits of";
        let object = format_args!("link {turn_index}");
        let nothing = || traffic_control::message(turn_index, TcHandle::UNSPEC, TcHandle::UNSPEC);
        let ours = |body: &[u8]| {
            let found = traffic_control::decode(body)?;
            Ok(found.filter(|found| found.index == turn_index))
        };
        let get = RouteNetlinkMessage::GetTrafficClass(nothing());
        let classes = self.dump(OPERATION, &object, get, ours)?;
        let get = RouteNetlinkMessage::GetQueueDiscipline(nothing());
        let queues: BTreeMap<u16, u32> = self
            .dump(OPERATION, &object, get, ours)?
            .into_iter()
            .filter(|queue| queue.parent.major == ROOT.major)
            .filter_map(|queue| Some((queue.parent.minor, queue.queue_bytes?)))
            .collect();
        let limits = classes.into_iter().filter(|class| class.handle.major == ROOT.major).map(|class| {
            let queue_bytes = queues.get(&class.handle.minor);
            (class.handle.minor, queue_bytes.map(|queue_bytes| shape(&class, *queue_bytes)))
        });
        Ok(limits.collect())
    }
}

fn is_root(root: &Description, default_class: u16) -> bool {
    root.kind == "htb" && root.handle == ROOT && root.default_class == u32::from(default_class)
}

fn shape(rate: &Description, queue_bytes: u32) -> Shape {
    Shape { bytes_per_second: rate.bytes_per_second, burst_ticks: rate.burst_ticks, queue_bytes }
}

fn check_class(operation: &'static str, class: u16) -> Result<()> {
    if class == 0 {
        let reason = "it is the handle of the shaper's root; classes begin with 1";
        return Err(Error::Invalid { operation, object: "class 0".to_owned(), reason });
    }
    Ok(())
}

fn absent_is_none<T>(result: Result<Option<T>>) -> Result<Option<T>> {
    match result {
        Err(Error::Refused { errno: Errno::ENOENT | Errno::ENODEV, .. }) => Ok(None),
        other => other,
    }
}
