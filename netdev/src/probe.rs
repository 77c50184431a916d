//! Whether an address is in use on a link, found out by asking before it is used: ARP probes (RFC 5227 section 2.1)
//! and IPv6 duplicate address detection (RFC 4862 section 5.4).

use std::fmt;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::arp::Arp;
use crate::error::{Error, Result};
use crate::frame::{EtherType, MacText};
use crate::ndp::{self, ALL_NODES, Packet};
use crate::netns::NetNs;
use crate::packet::{Groups, PacketSocket, close_aside};
use crate::socket::Netlink;

const OPERATION: &str = "probe for";

/// PROBE_NUM of RFC 5227: one packet may be lost, and a switch may learn of the link only now.
const PROBES: u32 = 3;

/// More than a socket's queue holds, and few enough to look at the clock now and then.
const FRAMES_AT_ONCE: u32 = 1024;

/// How often a link without carrier is looked at.
const CARRIER_INTERVAL: Duration = Duration::from_millis(1);

/// Asks a link's network whether addresses are in use. The link need have no address itself.
///
/// The packets come from the link's own hardware address and from no IP address, so that asking changes nothing in
/// anybody's neighbour table. Packets with that hardware address are not taken for another's, whichever way they come
/// back. Several addresses take no longer than one.
#[derive(Debug, Clone, Copy)]
pub struct AddressProbe<'a> {
    /// The namespace of the link; `None`: the calling thread's.
    pub netns: Option<&'a NetNs>,
    /// The index of an Ethernet link: a pod's own, or one of the host on the same network.
    pub link: u32,
    /// What to ask for, IPv4 and IPv6.
    pub addresses: &'a [IpAddr],
    /// How long to wait for an answer; three questions are spread over this time. With none nothing is asked.
    pub wait: Duration,
}

/// Somebody else uses an address, or is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// The address.
    pub address: IpAddr,
    /// The hardware address that the other one gave for it.
    pub mac: [u8; 6],
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is in use by {}", self.address, MacText(self.mac))
    }
}

impl AddressProbe<'_> {
    /// The addresses that are in use: as soon as all of them are found to be, and otherwise after the wait. A link that
    /// was set up just now is first given the same time to get its carrier. Blocks the calling thread meanwhile.
    ///
    /// # Errors
    /// [`Error::Refused`] with `ENODEV` if there is no such link or it goes away, `ENETDOWN` if it gets no carrier or
    /// is set down: then nobody knows whether the addresses are free. [`Error::Invalid`] for an address that no host
    /// can have, and for a link that is not Ethernet.
    pub fn run(&self) -> Result<Vec<Conflict>> {
        if self.addresses.is_empty() || self.wait.is_zero() {
            return Ok(Vec::new());
        }
        if self.addresses.iter().any(|address| address.is_unspecified() || address.is_multicast()) {
            return Err(self.invalid("no host can have such an address"));
        }
        let Sockets { netlink, channels, groups } = match self.netns {
            Some(netns) => netns.run(|| self.open())??,
            None => self.open()?,
        };
        let own_mac = self.await_carrier(&netlink)?;
        self.listen(&channels, groups.as_ref())?;
        let conflicts = self.ask(&channels, own_mac);
        close_aside(channels);
        conflicts
    }

    /// Opens what has to be opened in the link's namespace.
    fn open(&self) -> Result<Sockets> {
        let failed = |step| move |errno| self.socket_error(step, errno);
        let mut channels = Vec::new();
        for protocol in [EtherType::Arp, EtherType::Ipv6] {
            if self.addresses.iter().any(|address| protocol_of(*address) == protocol) {
                let socket = PacketSocket::open().map_err(failed("create a packet socket"))?;
                channels.push(Channel { protocol, socket });
            }
        }
        let groups = if self.addresses.iter().any(IpAddr::is_ipv6) {
            Some(Groups::open().map_err(failed("create an IPv6 socket"))?)
        } else {
            None
        };
        Ok(Sockets { netlink: Netlink::open()?, channels, groups })
    }

    /// Waits until the link can carry packets: before that they are lost without an error. Returns its address.
    fn await_carrier(&self, netlink: &Netlink) -> Result<[u8; 6]> {
        let start = Instant::now();
        loop {
            let Some(link) = netlink.link_by_index(self.link)? else {
                return Err(self.refused(Errno::ENODEV, "there is no such link"));
            };
            let Some(mac) = link.mac else {
                return Err(self.invalid("this is no Ethernet link"));
            };
            if link.up && link.carrier {
                return Ok(mac);
            }
            if start.elapsed() >= self.wait {
                let reason = if link.up { "the link has no carrier" } else { "the link is down" };
                return Err(self.refused(Errno::ENETDOWN, reason));
            }
            thread::sleep(CARRIER_INTERVAL);
        }
    }

    fn listen(&self, channels: &[Channel], groups: Option<&Groups>) -> Result<()> {
        for Channel { protocol, socket } in channels {
            if *protocol == EtherType::Ipv6 {
                socket
                    .only_neighbour_discovery()
                    .map_err(|errno| self.socket_error("attach a filter to the socket", errno))?;
            }
            socket
                .bind(self.link, Some(*protocol))
                .map_err(|errno| self.socket_error("bind the socket to the link", errno))?;
        }
        // Answers go to all nodes, and the questions of others to the addresses' own groups (RFC 4862 section 5.4.2).
        let solicited = self.addresses.iter().filter_map(|address| match address {
            IpAddr::V6(address) => Some(ndp::solicited_node(*address)),
            IpAddr::V4(_) => None,
        });
        for group in solicited.chain([ALL_NODES]) {
            if let Some(groups) = groups {
                groups.join(self.link, group).map_err(|source| Error::Socket {
                    operation: OPERATION,
                    object: self.object(),
                    step: "join an IPv6 multicast group",
                    source,
                })?;
            }
        }
        Ok(())
    }

    fn ask(&self, channels: &[Channel], own_mac: [u8; 6]) -> Result<Vec<Conflict>> {
        let interval = self.wait / PROBES;
        let (start, mut asked, mut sent) = (Instant::now(), 0, 0);
        let mut open = self.addresses.to_vec();
        let mut conflicts = Vec::new();
        loop {
            let elapsed = start.elapsed();
            if elapsed >= self.wait || open.is_empty() {
                break;
            }
            if asked < PROBES && elapsed >= interval * asked {
                sent += self.send_probes(channels, own_mac, &open)?;
                asked += 1;
            }
            let next = if asked < PROBES { interval * asked } else { self.wait };
            await_frame(channels, next.saturating_sub(start.elapsed()))
                .map_err(|errno| self.socket_error("wait for frames", errno))?;
            for Channel { protocol, socket } in channels {
                // All that is there: if this thread was kept waiting, the answer may be behind much else.
                for _ in 0..FRAMES_AT_ONCE {
                    let Some(frame) = socket.receive().map_err(|errno| self.lost(errno))? else { break };
                    open.retain(|address| match rival(*protocol, &frame, own_mac, *address) {
                        Some(mac) => {
                            conflicts.push(Conflict { address: *address, mac });
                            false
                        }
                        None => true,
                    });
                }
            }
        }
        if sent == 0 {
            return Err(self.refused(Errno::ENOBUFS, "the link took none of the packets"));
        }
        Ok(conflicts)
    }

    /// Returns how many were sent: what finds a queue full is left to the next try.
    fn send_probes(&self, channels: &[Channel], own_mac: [u8; 6], addresses: &[IpAddr]) -> Result<u32> {
        let mut sent = 0;
        for Channel { protocol, socket } in channels {
            for address in addresses.iter().filter(|address| protocol_of(**address) == *protocol) {
                let frame = match address {
                    IpAddr::V4(address) => Arp::probe(own_mac, *address).broadcast(),
                    IpAddr::V6(address) => Packet::probe(own_mac, *address).multicast(),
                };
                match socket.send(&frame) {
                    Ok(()) => sent += 1,
                    Err(Errno::ENOBUFS | Errno::EAGAIN) => {}
                    Err(errno) => return Err(self.lost(errno)),
                }
            }
        }
        Ok(sent)
    }

    /// The link was there, and sending or receiving fails.
    fn lost(&self, errno: Errno) -> Error {
        match errno {
            Errno::ENETDOWN => self.refused(errno, "the link was set down or deleted"),
            Errno::ENXIO | Errno::ENODEV => self.refused(Errno::ENODEV, "the link was deleted"),
            _ => self.socket_error("send or receive", errno),
        }
    }

    fn object(&self) -> String {
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        format!("{} on link {}", addresses.join(", "), self.link)
    }

    fn socket_error(&self, step: &'static str, errno: Errno) -> Error {
        Error::Socket { operation: OPERATION, object: self.object(), step, source: errno.into() }
    }

    fn refused(&self, errno: Errno, reason: &str) -> Error {
        Error::Refused { operation: OPERATION, object: self.object(), errno, message: reason.to_owned() }
    }

    fn invalid(&self, reason: &'static str) -> Error {
        Error::Invalid { operation: OPERATION, object: self.object(), reason }
    }
}

struct Sockets {
    netlink: Netlink,
    channels: Vec<Channel>,
    groups: Option<Groups>,
}

struct Channel {
    protocol: EtherType,
    socket: PacketSocket,
}

fn protocol_of(address: IpAddr) -> EtherType {
    match address {
        IpAddr::V4(_) => EtherType::Arp,
        IpAddr::V6(_) => EtherType::Ipv6,
    }
}

fn rival(protocol: EtherType, frame: &[u8], own_mac: [u8; 6], address: IpAddr) -> Option<[u8; 6]> {
    match (protocol, address) {
        (EtherType::Arp, IpAddr::V4(address)) => Arp::parse(frame)?.rival(own_mac, address),
        (EtherType::Ipv6, IpAddr::V6(address)) => Packet::parse(frame)?.rival(own_mac, address),
        _ => None,
    }
}

/// Until there is a frame on any channel, at most for this long.
fn await_frame(channels: &[Channel], longest: Duration) -> nix::Result<()> {
    let mut sockets: Vec<_> =
        channels.iter().map(|channel| PollFd::new(channel.socket.as_fd(), PollFlags::POLLIN)).collect();
    // Whole milliseconds, and the one that has begun.
    let timeout = PollTimeout::try_from(longest.as_millis() + 1).unwrap_or(PollTimeout::MAX);
    match poll(&mut sockets, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
