//! Telling a network where an address is now, so that nobody goes on sending to the hardware address that had it
//! before: ARP announcements (RFC 5227 section 2.3) and unsolicited neighbour advertisements (RFC 4861 section 7.2.6).

use std::net::IpAddr;

use nix::errno::Errno;

use crate::arp::Arp;
use crate::error::{Error, Result};
use crate::ndp::Packet;
use crate::netns::NetNs;
use crate::packet::{PacketSocket, close_aside};
use crate::socket::Netlink;

const OPERATION: &str = "announce";

/// The statement that addresses are at a link's hardware address.
#[derive(Debug, Clone, Copy)]
pub struct Announcement<'a> {
    /// The namespace of the link; `None`: the calling thread's.
    pub netns: Option<&'a NetNs>,
    /// The index of the Ethernet link that has the addresses.
    pub link: u32,
    /// IPv4 and IPv6 addresses.
    pub addresses: &'a [IpAddr],
}

impl Announcement<'_> {
    /// Sends it once, and waits for nothing: for an IPv4 address a request and a reply, since some heed only the one
    /// and some only the other, and for an IPv6 address an advertisement that overrides. Nobody confirms it; who wants
    /// to be sure that a lost packet does no harm sends it again after a while (RFC 5227 says 2 s).
    ///
    /// # Errors
    /// [`Error::Refused`] with `ENODEV` if there is no such link, `ENETDOWN` if it is down, `ENOBUFS` if a queue is
    /// full. [`Error::Invalid`] for a link that is not Ethernet.
    pub fn send(&self) -> Result<()> {
        match self.netns {
            Some(netns) => netns.run(|| self.send_here())?,
            None => self.send_here(),
        }
    }

    fn send_here(&self) -> Result<()> {
        let Some(link) = Netlink::open()?.link_by_index(self.link)? else {
            return Err(self.refused(Errno::ENODEV, "there is no such link"));
        };
        let Some(mac) = link.mac else {
            let reason = "this is no Ethernet link";
            return Err(Error::Invalid { operation: OPERATION, object: self.object(), reason });
        };
        let failed = |step| {
            move |errno: Errno| Error::Socket {
                operation: OPERATION,
                object: self.object(),
                step,
                source: errno.into(),
            }
        };
        let socket = PacketSocket::open().map_err(failed("create a packet socket"))?;
        socket.bind(self.link, None).map_err(failed("bind the socket to the link"))?;
        let sent = self.send_frames(&socket, mac);
        close_aside(socket);
        sent
    }

    fn send_frames(&self, socket: &PacketSocket, mac: [u8; 6]) -> Result<()> {
        for address in self.addresses {
            let frames = match address {
                IpAddr::V4(address) => Arp::announcements(mac, *address).map(|arp| arp.broadcast()).to_vec(),
                IpAddr::V6(address) => vec![Packet::announcement(mac, *address).multicast()],
            };
            for frame in frames {
                socket.send(&frame).map_err(|errno| self.refused(errno, ""))?;
            }
        }
        Ok(())
    }

    fn object(&self) -> String {
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        format!("{} on link {}", addresses.join(", "), self.link)
    }

    fn refused(&self, errno: Errno, reason: &str) -> Error {
        Error::Refused { operation: OPERATION, object: self.object(), errno, message: reason.to_owned() }
    }
}
