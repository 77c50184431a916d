//! Addresses of both families as numbers, and sets of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rangemap::RangeInclusiveSet;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(ip: IpAddr) -> Family {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The address with this number.
    pub(crate) fn address(self, bits: u128) -> IpAddr {
        match self {
            // The numbers of IPv4 addresses come from IPv4 addresses: none is longer than 32 bits.
            Family::V4 => Ipv4Addr::from_bits(bits as u32).into(),
            Family::V6 => Ipv6Addr::from_bits(bits).into(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// The number of an address.
pub(crate) fn bits_of(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Why an interface cannot have an address that lies in a network, if so.
///
/// IPv4 networks have a network and a broadcast address (RFC 1122 section 3.2.1.3), but not a /31 (RFC 3021); IPv6
/// networks have the subnet-router anycast address (RFC 4291 section 2.6.1), but not a /127 (RFC 6164).
pub(crate) fn role_in(subnet: IpNet, ip: IpAddr) -> Option<&'static str> {
    if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
        None
    } else if ip == subnet.network() {
        Some(if ip.is_ipv4() { "network address" } else { "subnet-router anycast address" })
    } else if ip.is_ipv4() && ip == subnet.broadcast() {
        Some("broadcast address")
    } else {
        None
    }
}

/// Whether two networks share addresses.
pub(crate) fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// The addresses that a segment gives out in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    family: Family,
    ranges: RangeInclusiveSet<u128>,
    count: u128,
}

impl Pool {
    /// The addresses from `first` to `last` without those in `without`, all of them of one family.
    pub(crate) fn new(first: IpAddr, last: IpAddr, without: impl IntoIterator<Item = IpNet>) -> Pool {
        let family = Family::of(first);
        let (first, last) = (bits_of(first), bits_of(last));
        let mut ranges = RangeInclusiveSet::new();
        if first <= last {
            ranges.insert(first..=last);
        }
        for network in without.into_iter().filter(|network| Family::of(network.addr()) == family) {
            let start = bits_of(network.network()).max(first);
            let end = bits_of(network.broadcast()).min(last);
            if start <= end {
                ranges.remove(start..=end);
            }
        }
        // No sum of parts of the address space without its multicast addresses overflows.
        let count = ranges.iter().map(|range| range.end() - range.start() + 1).sum();
        Pool { family, ranges, count }
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        self.family
    }

    /// How many addresses it has.
    pub fn count(&self) -> u128 {
        self.count
    }

    /// Whether an address is one of them.
    pub fn contains(&self, ip: IpAddr) -> bool {
        Family::of(ip) == self.family && self.ranges.contains(&bits_of(ip))
    }

    /// An address that both pools have.
    pub(crate) fn common(&self, other: &Pool) -> Option<IpAddr> {
        let same_family = self.family == other.family;
        let common = same_family.then(|| self.ranges.intersection(&other.ranges).next()).flatten();
        common.map(|range| self.family.address(*range.start()))
    }

    /// Its addresses as runs of numbers.
    pub(crate) fn ranges(&self) -> &RangeInclusiveSet<u128> {
        &self.ranges
    }

    /// The number of the address at a place, from 0; `None` after the last.
    pub(crate) fn at(&self, mut place: u128) -> Option<u128> {
        for range in self.ranges.iter() {
            let length = range.end() - range.start() + 1;
            if place < length {
                return Some(range.start() + place);
            }
            place -= length;
        }
        None
    }
}
