//! Neighbours: which hardware address an IP address on a link has (ARP, IPv6 neighbour discovery).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::socket::Netlink;

impl Netlink {
    /// Sets the hardware address of a neighbour. A permanent entry stays; another one is forgotten or asked for again
    /// when it is not confirmed.
    pub fn replace_neighbour(&self, index: u32, ip: IpAddr, mac: [u8; 6], permanent: bool) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = match ip {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.ifindex = index;
        message.header.state = if permanent { NeighbourState::Permanent } else { NeighbourState::Reachable };
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            NeighbourAttribute::Destination(ip.into()),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        let object = format_args!("{ip} on link {index}");
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change("set neighbour", &object, RouteNetlinkMessage::NewNeighbour(message), flags)
    }

    /// Forgets a neighbour, also a permanent one; one that is not known, or whose link is gone, is fine.
    pub fn delete_neighbour(&self, index: u32, ip: IpAddr) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = match ip {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.ifindex = index;
        message.attributes = vec![NeighbourAttribute::Destination(ip.into())];
        let object = format_args!("{ip} on link {index}");
        match self.change("forget neighbour", &object, RouteNetlinkMessage::DelNeighbour(message), 0) {
            Err(Error::Refused { errno: Errno::ENOENT | Errno::ENODEV | Errno::ENXIO, .. }) => Ok(()),
            other => other,
        }
    }
}
