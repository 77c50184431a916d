//! Telling a network where an address is now, so that nobody goes on sending to the hardware address that had it
//! before: ARP announcements (RFC 5227 section 2.3) and unsolicited neighbour advertisements (RFC 4861 section 7.2.6).

use std::net::IpAddr;

use nix::errno::Errno;

use crate::arp::Arp;
use crate::error::{Error, Result};
use crate::ndp::Packet;
use crate::packet::PacketSocket;

const OPERATION: &str = "announce";

/// A socket by which addresses are announced in the network namespace where it was opened.
///
/// Closing it takes the kernel some 10 ms: whoever is in a hurry lets another thread drop it.
#[derive(Debug)]
pub struct Announcer {
    socket: PacketSocket,
}

impl Announcer {
    /// Opens the socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let failed = |errno: Errno| Error::Socket {
            operation: OPERATION,
            object: "addresses".to_owned(),
            step: "create a packet socket",
            source: errno.into(),
        };
        Ok(Self { socket: PacketSocket::open().map_err(failed)? })
    }

    /// Says that `addresses`, IPv4 and IPv6, are at the hardware address `mac` of the Ethernet link of index `link`.
    ///
    /// It is said once, and nothing is waited for: for an IPv4 address a request and a reply, since some heed only the
    /// one and some only the other, and for an IPv6 address an advertisement that overrides. Nobody confirms it; who
    /// wants to be sure that a lost packet does no harm says it again after a while (RFC 5227 says 2 s).
    ///
    /// # Errors
    /// [`Error::Refused`] with `ENODEV` if there is no such link, `ENETDOWN` if it is down, `ENOBUFS` if a queue is
    /// full.
    pub fn announce(&self, link: u32, mac: [u8; 6], addresses: &[IpAddr]) -> Result<()> {
        let refused = |errno| {
            let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            let object = format!("{} on link {link}", texts.join(", "));
            Error::Refused { operation: OPERATION, object, errno, message: String::new() }
        };
        self.socket.bind(link, None).map_err(refused)?;
        for address in addresses {
            let frames = match address {
                IpAddr::V4(address) => Arp::announcements(mac, *address).map(|arp| arp.broadcast()).to_vec(),
                IpAddr::V6(address) => vec![Packet::announcement(mac, *address).multicast()],
            };
            for frame in frames {
                self.socket.send(&frame).map_err(refused)?;
            }
        }
        Ok(())
    }
}
