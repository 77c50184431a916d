//! Limits of what a single link sends and receives, in the link's own network namespace.
//!
//! ```text
//!  sent:     socket -> egress hook of the link  -> ifb: HTB, class 1 -> link
//!  received: link   -> ingress hook of the link -> ifb: HTB, class 1 -> IP
//! ```
//!
//! A limited direction has an ifb (ip-link(8)), which gives packets back to where they were taken from, and a table of
//! nftables' family `netdev` with one rule at the link's hook, `fwd to` that ifb (nft(8)). Both have the same name.
//!
//! Nothing is put on the link itself, because the kernel takes a link's queue away for some 250 us whenever it gets
//! another root queueing discipline, and also when it gets a `clsact`: what is sent then is lost. A hook of nftables
//! comes and goes between two packets.

use std::fmt;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    DataAttribute, DevHookNumber, Expressions, Immediate, InetHookNumber, Register,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};

use crate::error::{Error, Result};
use crate::limit::{Limit, Shape};
use crate::link::{Link, up_message};
use crate::nftables::{RuleSet, Table};
use crate::socket::Netlink;
use crate::traffic_control;

/// The class that everything is in.
const CLASS: u16 = 1;
/// The kind of the devices.
const IFB: &str = "ifb";
/// After all other chains of the hook: what comes back from an ifb passes none of them again.
const LAST: i32 = i32::MAX;

/// A direction, as seen from the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// What the link sends.
    Egress,
    /// What the link receives.
    Ingress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    /// What the names of devices and tables begin with; the link's index in hexadecimal follows, which fits into the
    /// 15 bytes of a name.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Egress => "tenon-e",
            Self::Ingress => "tenon-i",
        }
    }

    /// `egress` or `ingress`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }

    const fn hook(self) -> DevHookNumber {
        match self {
            Self::Egress => DevHookNumber::Egress,
            Self::Ingress => DevHookNumber::Ingress,
        }
    }

    /// Of its device and its table.
    fn object_name(self, link_index: u32) -> String {
        format!("{}{link_index:x}", self.prefix())
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a link may send and receive; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct LinkLimits {
    /// What it sends.
    pub egress: Option<Limit>,
    /// What it receives.
    pub ingress: Option<Limit>,
}

impl LinkLimits {
    /// The limit of a direction.
    pub fn of(&self, direction: Direction) -> Option<&Limit> {
        match direction {
            Direction::Egress => self.egress.as_ref(),
            Direction::Ingress => self.ingress.as_ref(),
        }
    }
}

/// What there is of a limit in one direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shaping {
    /// Packets pass as if there had never been one.
    Absent,
    /// Something of it is missing or was changed: what, in words for people.
    Damaged(&'static str),
    /// It is in force.
    Limit(Shape),
}

impl Shaping {
    /// Whether this is what `limit` would make of the direction.
    pub fn is(&self, limit: Option<&Limit>) -> bool {
        match (self, limit) {
            (Self::Absent, None) => true,
            (Self::Limit(shape), Some(limit)) => *shape == limit.shape(),
            _ => false,
        }
    }
}

impl fmt::Display for Shaping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("none"),
            Self::Damaged(what) => write!(f, "damaged ({what})"),
            Self::Limit(shape) => shape.fmt(f),
        }
    }
}

/// The limits of one link. The calling thread and the handle have to be in the link's network namespace.
///
/// # Errors
/// All of it fails with [`Error::Refused`] and `EOPNOTSUPP` or `ENOENT` if the kernel has no `ifb`, `sch_htb` or
/// `sch_tbf`, or no nftables with family `netdev`, its egress hook (Linux 5.16) and `nft_fwd_netdev`.
#[derive(Debug, Clone, Copy)]
pub struct LinkShaper<'a> {
    netlink: &'a Netlink,
    link: &'a Link,
}

impl<'a> LinkShaper<'a> {
    /// Names the link; nothing is done to it.
    pub fn new(netlink: &'a Netlink, link: &'a Link) -> Self {
        Self { netlink, link }
    }

    /// Sets the limits that `limits` has, on a running link without losing a packet; a direction without one keeps
    /// what it has. What waits goes on waiting.
    pub fn set(&self, limits: &LinkLimits) -> Result<()> {
        let mut tables = Vec::new();
        for direction in Direction::ALL {
            if let Some(limit) = limits.of(direction) {
                let device = self.ensure_device(direction)?;
                self.netlink.set_limit(device, CLASS, limit)?;
                tables.push(self.table(direction, device));
            }
        }
        // Packets come when everything is there.
        if !tables.is_empty() {
            self.rule_set(tables).install()?;
        }
        Ok(())
    }

    /// What there is of the limit of a direction.
    pub fn found(&self, direction: Direction) -> Result<Shaping> {
        let device = self.netlink.link_by_name(&direction.object_name(self.link.index))?;
        let rules =
            self.rule_set(vec![self.table(direction, device.as_ref().map_or(0, |device| device.index))]);
        if !rules.any()? {
            return Ok(Shaping::Absent);
        }
        let Some(device) = device.filter(is_ifb) else {
            return Ok(Shaping::Damaged("its device is gone"));
        };
        if !device.up {
            return Ok(Shaping::Damaged("its device is down"));
        }
        if !self.netlink.has_root(device.index, CLASS)? {
            return Ok(Shaping::Damaged("its device has other queues"));
        }
        let Some(shape) = self.netlink.limit(device.index, CLASS)? else {
            return Ok(Shaping::Damaged("its queue is gone"));
        };
        if !rules.installed()? {
            return Ok(Shaping::Damaged("its nftables table was changed"));
        }
        Ok(Shaping::Limit(shape))
    }

    /// Lifts the limits of the directions for which `limits` has none, without losing a packet: lets go what waits,
    /// and then lets packets pass by. What is left, [`Self::repair`] removes: deleting a device takes 20 ms, and the
    /// last packets may still be in it.
    pub fn lift(&self, limits: &LinkLimits) -> Result<()> {
        for direction in Direction::ALL.into_iter().filter(|direction| limits.of(*direction).is_none()) {
            if let Some(device) = self.device(direction)? {
                self.netlink.open_class(device.index, CLASS)?;
            }
            self.rule_set(vec![self.table(direction, 0)]).remove()?;
        }
        Ok(())
    }

    /// Makes the limits what `limits` says, whatever is there, and removes what [`Self::lift`] has left some time ago.
    /// Returns how many directions were not as they should be.
    pub fn repair(&self, limits: &LinkLimits) -> Result<usize> {
        let mut wrong = 0;
        for direction in Direction::ALL {
            let limit = limits.of(direction);
            if !self.found(direction)?.is(limit) {
                wrong += 1;
                match direction {
                    _ if limit.is_none() => self.lift(limits)?,
                    Direction::Egress => self.set(&LinkLimits { egress: limit.copied(), ingress: None })?,
                    Direction::Ingress => self.set(&LinkLimits { egress: None, ingress: limit.copied() })?,
                }
            }
            if limit.is_none()
                && let Some(device) = self.device(direction)?
            {
                self.netlink.delete_link(device.index)?;
            }
        }
        Ok(wrong)
    }

    /// Removes what the shapers of links that are gone have left in the namespace. Returns of how many directions.
    pub fn remove_leftovers(netlink: &Netlink) -> Result<usize> {
        let links = netlink.links()?;
        let mut removed = 0;
        for device in links.iter().filter(|link| is_ifb(link)) {
            let owner = Direction::ALL.into_iter().find_map(|direction| {
                let digits = device.name.strip_prefix(direction.prefix())?;
                Some((direction, u32::from_str_radix(digits, 16).ok()?))
            });
            let Some((direction, index)) =
                owner.filter(|(_, index)| !links.iter().any(|l| l.index == *index))
            else {
                continue;
            };
            RuleSet { purpose: purpose(index), tables: vec![table(direction, index, String::new(), 0)] }
                .remove()?;
            netlink.delete_link(device.index)?;
            removed += 1;
        }
        Ok(removed)
    }

    fn device(&self, direction: Direction) -> Result<Option<Link>> {
        Ok(self.netlink.link_by_name(&direction.object_name(self.link.index))?.filter(is_ifb))
    }

    /// The direction's ifb, up, with an HTB whose default is the class of the limit. Returns its index.
    fn ensure_device(&self, direction: Direction) -> Result<u32> {
        let name = direction.object_name(self.link.index);
        let object = format_args!("{direction} limit of {}", self.link.name);
        match self.netlink.link_by_name(&name)? {
            Some(device) if is_ifb(&device) => {
                if !device.up {
                    self.netlink.set_up(device.index)?;
                }
                self.netlink.ensure_root(&object, device.index, CLASS)?;
                return Ok(device.index);
            }
            Some(other) => self.netlink.delete_link(other.index)?,
            None => {}
        }
        let index = self.create_device(&name)?;
        let htb = traffic_control::htb_root(index, CLASS);
        self.netlink.change("add the queues of the", &object, htb, NLM_F_CREATE | NLM_F_EXCL)?;
        Ok(index)
    }

    fn create_device(&self, name: &str) -> Result<u32> {
        const OPERATION: &str = "create ifb";
        let mut message = up_message();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::NumRxQueues(1),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
        ];
        let create = RouteNetlinkMessage::NewLink(message);
        self.netlink.change(OPERATION, &name, create, NLM_F_CREATE | NLM_F_EXCL)?;
        let made = self.netlink.link_by_name(name)?.ok_or_else(|| Error::vanished(OPERATION, name))?;
        Ok(made.index)
    }

    fn rule_set(&self, tables: Vec<Table>) -> RuleSet {
        RuleSet { purpose: purpose(self.link.index), tables }
    }

    fn table(&self, direction: Direction, device: u32) -> Table {
        table(direction, self.link.index, self.link.name.clone(), device)
    }
}

fn purpose(link_index: u32) -> String {
    format!("limits of link {link_index} (nftables family netdev, fwd)")
}

/// Hands everything that comes by a link's hook to a device.
fn table(direction: Direction, link_index: u32, link_name: String, device: u32) -> Table {
    /// `enum nft_fwd_attributes`: the register that holds the device's index.
    const NFTA_FWD_SREG_DEV: u16 = 1;
    let register = Register::Reg1;
    Table {
        family: NetfilterProtoFamily::NetDev,
        name: direction.object_name(link_index),
        chain: "shaper",
        chain_type: "filter",
        hook: InetHookNumber::from(u32::from(direction.hook())),
        device: Some(link_name),
        priority: LAST,
        rule: vec![
            Expressions::Immediate(vec![
                Immediate::DestinationRegister(register),
                Immediate::Data(DataAttribute::Value(device.to_ne_bytes().to_vec())),
            ]),
            Expressions::Other {
                expression_type: "fwd".to_owned(),
                attributes: vec![DefaultNla::new(
                    NFTA_FWD_SREG_DEV,
                    u32::from(register).to_be_bytes().to_vec(),
                )],
            },
        ],
    }
}

fn is_ifb(link: &Link) -> bool {
    link.kind.as_deref() == Some(IFB)
}
