//! Routes, and which of them a packet would take.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{DecodeError, NLM_F_CREATE, NLM_F_REPLACE, NlasIterator, parse_ip, parse_u32};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::socket::{Decoded, Netlink};

/// How far away a route's destinations are; IPv6 does not use it.
pub use netlink_packet_route::route::RouteScope as Scope;

/// The table that a packet is looked up in unless a rule says otherwise (`RT_TABLE_MAIN`).
const MAIN_TABLE: u32 = 254;

/// A unicast route (`ip route`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where it leads; `0.0.0.0/0` and `::/0` are the default routes.
    pub destination: IpNet,
    /// The next hop; without one the destinations are on the device's own network.
    pub gateway: Option<IpAddr>,
    /// The index of the link that it leaves by.
    pub device: u32,
    /// The source address for packets of this host that have none yet.
    pub source: Option<IpAddr>,
    /// How far away the destinations are.
    pub scope: Scope,
    /// The largest packet for these destinations, in bytes; without it the device's.
    pub mtu: Option<u32>,
    /// Whether the gateway is on the device's network although no address says so.
    pub onlink: bool,
    /// The routing table.
    pub table: u32,
}

impl Route {
    /// A route in the main table to destinations that are on the device's own network.
    pub fn direct(destination: IpNet, device: u32) -> Self {
        let scope = match destination {
            IpNet::V4(_) => Scope::Link,
            IpNet::V6(_) => Scope::Universe,
        };
        Self {
            destination,
            gateway: None,
            device,
            source: None,
            scope,
            mtu: None,
            onlink: false,
            table: MAIN_TABLE,
        }
    }

    /// A route in the main table by a gateway.
    pub fn via(destination: IpNet, gateway: IpAddr, device: u32) -> Self {
        Self { gateway: Some(gateway), scope: Scope::Universe, ..Self::direct(destination, device) }
    }
}

/// Which routes to list; by default those of all devices and tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteFilter {
    /// Only those that leave by this link.
    pub device: Option<u32>,
    /// Only those of this table; 254 is the main one.
    pub table: Option<u32>,
}

/// The way a packet of this host would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteLookup {
    /// The index of the link it leaves by.
    pub device: u32,
    /// The address it comes from.
    pub source: Option<IpAddr>,
    /// The next hop, if that is not the destination itself.
    pub gateway: Option<IpAddr>,
    /// The largest packet in bytes, if the route or path discovery says so; without it the device's MTU holds.
    pub mtu: Option<u32>,
}

impl Netlink {
    /// Makes a route, in the place of another one to the same destination in the same table.
    pub fn replace_route(&self, route: &Route) -> Result<()> {
        const OPERATION: &str = "set route";
        let object = format_args!("to {} by link {}", route.destination, route.device);
        let is_ipv4 = matches!(route.destination, IpNet::V4(_));
        if [route.gateway, route.source].iter().flatten().any(|ip| ip.is_ipv4() != is_ipv4) {
            return Err(Error::Invalid {
                operation: OPERATION,
                object: object.to_string(),
                reason: "destination, gateway and source must be of one address family",
            });
        }
        let mut message = route_message(route);
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = if is_ipv4 { route.scope } else { Scope::Universe };
        message.header.flags.set(RouteFlags::Onlink, route.onlink);
        message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
        message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(OPERATION, &object, RouteNetlinkMessage::NewRoute(message), flags)
    }

    /// Deletes the route to this destination by this device and gateway in this table; the rest of `route` does not
    /// matter. A route that is gone already is fine.
    pub fn delete_route(&self, route: &Route) -> Result<()> {
        let mut message = route_message(route);
        // In a deletion this stands for any scope.
        message.header.scope = Scope::NoWhere;
        let object = format_args!("to {} by link {}", route.destination, route.device);
        match self.change("delete route", &object, RouteNetlinkMessage::DelRoute(message), 0) {
            Err(Error::Refused { errno: Errno::ESRCH | Errno::ENODEV, .. }) => Ok(()),
            other => other,
        }
    }

    /// The unicast routes, IPv4 first. Of a route with several next hops there is one entry for each.
    ///
    /// # Errors
    /// [`Error::Refused`] with `ENODEV` if there is no such device.
    pub fn routes(&self, filter: RouteFilter) -> Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.kind = RouteType::Unicast;
            message.attributes.extend(filter.table.map(RouteAttribute::Table));
            message.attributes.extend(filter.device.map(RouteAttribute::Oif));
            match self.dump("list", &"routes", RouteNetlinkMessage::GetRoute(message), decode) {
                Ok(found) => routes.extend(found.into_iter().flatten().filter(|route| {
                    filter.device.is_none_or(|device| device == route.device)
                        && filter.table.is_none_or(|table| table == route.table)
                })),
                // There is no such table yet.
                Err(Error::Refused { errno: Errno::ENOENT, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(routes)
    }

    /// The way that a packet to `destination` would take.
    ///
    /// # Errors
    /// [`Error::Refused`], usually with `ENETUNREACH`, if there is none.
    pub fn route_to(&self, destination: IpAddr) -> Result<RouteLookup> {
        const OPERATION: &str = "find a route to";
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        let message = RouteNetlinkMessage::GetRoute(message);
        let found = self.request(OPERATION, &destination, message, 0, |body| {
            let raw = RawRoute::parse(body)?;
            Ok(raw.hops.first().and_then(|hop| {
                let device = hop.device?;
                Some(RouteLookup { device, source: raw.source, gateway: hop.gateway, mtu: raw.mtu })
            }))
        })?;
        found.ok_or_else(|| Error::Refused {
            operation: OPERATION,
            object: destination.to_string(),
            errno: Errno::ENETUNREACH,
            message: String::new(),
        })
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn route_message(route: &Route) -> RouteMessage {
    // The kernel refuses destinations with bits set after the prefix.
    let destination = route.destination.trunc();
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.addr());
    message.header.destination_prefix_length = destination.prefix_len();
    message.attributes =
        vec![RouteAttribute::Destination(destination.addr().into()), RouteAttribute::Table(route.table)];
    message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message.attributes.push(RouteAttribute::Oif(route.device));
    message
}

fn decode(body: &[u8]) -> Decoded<Vec<Route>> {
    let raw = RawRoute::parse(body)?;
    if raw.header.kind != RouteType::Unicast {
        return Ok(None);
    }
    let any: IpAddr = match raw.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return Ok(None),
    };
    let prefix = raw.header.destination_prefix_length;
    let destination = IpNet::new(raw.destination.unwrap_or(any), prefix)
        .map_err(|_| DecodeError::from(format!("a route with a prefix of {prefix} bits")))?;
    let route = |hop: &Hop| {
        Some(Route {
            destination,
            gateway: hop.gateway,
            device: hop.device?,
            source: raw.source,
            scope: raw.header.scope,
            mtu: raw.mtu,
            onlink: hop.onlink,
            table: raw.table.unwrap_or(u32::from(raw.header.table)),
        })
    };
    Ok(Some(raw.hops.iter().filter_map(route).collect()))
}

/// A route as the kernel sends it, reduced to the attributes that are of use here.
struct RawRoute {
    header: RouteHeader,
    destination: Option<IpAddr>,
    source: Option<IpAddr>,
    table: Option<u32>,
    mtu: Option<u32>,
    hops: Vec<Hop>,
}

#[derive(Default)]
struct Hop {
    device: Option<u32>,
    gateway: Option<IpAddr>,
    onlink: bool,
}

impl RawRoute {
    fn parse(body: &[u8]) -> std::result::Result<Self, DecodeError> {
        const RTA_DST: u16 = 1;
        const RTA_OIF: u16 = 4;
        const RTA_GATEWAY: u16 = 5;
        const RTA_PREFSRC: u16 = 7;
        const RTA_METRICS: u16 = 8;
        const RTA_MULTIPATH: u16 = 9;
        const RTA_TABLE: u16 = 15;
        const RTA_VIA: u16 = 18;
        /// `struct rtmsg`.
        const HEADER_BYTES: usize = 12;

        let header = RouteHeader::parse(body)?;
        let onlink = header.flags.contains(RouteFlags::Onlink);
        let mut route =
            Self { header, destination: None, source: None, table: None, mtu: None, hops: Vec::new() };
        let mut hop = Hop { onlink, ..Hop::default() };
        for attribute in NlasIterator::new(body.get(HEADER_BYTES..).unwrap_or_default()) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                RTA_DST => route.destination = Some(parse_ip(value)?),
                RTA_OIF => hop.device = Some(parse_u32(value)?),
                RTA_GATEWAY => hop.gateway = Some(parse_ip(value)?),
                RTA_VIA => hop.gateway = Some(via(value)?),
                RTA_PREFSRC => route.source = Some(parse_ip(value)?),
                RTA_METRICS => route.mtu = mtu(value)?,
                RTA_MULTIPATH => route.hops = next_hops(value)?,
                RTA_TABLE => route.table = Some(parse_u32(value)?),
                _ => {}
            }
        }
        if route.hops.is_empty() {
            route.hops.push(hop);
        }
        Ok(route)
    }
}

/// `struct rtvia`: a gateway of another address family than the route's.
fn via(value: &[u8]) -> std::result::Result<IpAddr, DecodeError> {
    parse_ip(value.get(2..).unwrap_or_default())
}

fn mtu(metrics: &[u8]) -> std::result::Result<Option<u32>, DecodeError> {
    const RTAX_MTU: u16 = 2;
    for metric in NlasIterator::new(metrics) {
        let metric = metric?;
        if metric.kind() == RTAX_MTU {
            return parse_u32(metric.value()).map(Some);
        }
    }
    Ok(None)
}

/// A row of `struct rtnexthop`, each with a length, flags and attributes of its own.
fn next_hops(mut bytes: &[u8]) -> std::result::Result<Vec<Hop>, DecodeError> {
    const RTA_GATEWAY: u16 = 5;
    const RTA_VIA: u16 = 18;
    const RTNH_F_ONLINK: u8 = 4;

    let mut hops = Vec::new();
    while let Some(([l0, l1, flags, _, d0, d1, d2, d3], _)) = bytes.split_first_chunk::<8>() {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let attributes = bytes
            .get(8..length)
            .ok_or_else(|| DecodeError::from(format!("a next hop of {length} bytes in {}", bytes.len())))?;
        let mut hop = Hop {
            device: Some(u32::from_ne_bytes([*d0, *d1, *d2, *d3])),
            gateway: None,
            onlink: flags & RTNH_F_ONLINK != 0,
        };
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            match attribute.kind() {
                RTA_GATEWAY => hop.gateway = Some(parse_ip(attribute.value())?),
                RTA_VIA => hop.gateway = Some(via(attribute.value())?),
                _ => {}
            }
        }
        hops.push(hop);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(hops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(
            header in prop::collection::vec(any::<u8>(), 12),
            attributes in prop::collection::vec((0_u8..28, 0_u8..28, prop::collection::vec(0_u8..28, 0..24)), 0..6),
            length in 0_usize..200,
        ) {
            let mut body = header;
            for (length, kind, value) in attributes {
                body.extend([length, 0, kind, 0]);
                body.extend(value);
            }
            body.truncate(length);
            let _ = decode(&body);
        }
    }
}
