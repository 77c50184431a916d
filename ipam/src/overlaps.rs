//! Segments that would give out each other's addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::addresses::overlap;
use crate::{LeaseBook, Segment};

/// Why a segment cannot be used beside another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentOverlap {
    /// Both would give out the same address.
    #[error(
        "segment {segment:?} ({subnet}) would give out {ip}, which segment {other:?} ({other_subnet}) gives out: set RangeStart, RangeEnd or Exclude so that each has addresses of its own"
    )]
    Pools {
        /// The segment that is refused.
        segment: String,
        /// Its subnet.
        subnet: IpNet,
        /// An address of both.
        ip: IpAddr,
        /// The other segment.
        other: String,
        /// The other segment's subnet.
        other_subnet: IpNet,
    },
    /// One would give out the address of the other's router.
    #[error(
        "segment {giver:?} would give out {ip}, the Gateway of segment {owner:?}: add it to Exclude of {giver:?}"
    )]
    Gateway {
        /// Whose pods could get the address.
        giver: String,
        /// The router's address.
        ip: IpAddr,
        /// Whose router has it.
        owner: String,
    },
}

/// The segments that cannot be used, each with the reason: of two that do not get along, one is refused. A refused
/// segment is in nobody's way.
///
/// Refused is the one that was created later (of two from one transaction: the one whose name comes later), unless pods
/// have addresses through it that the other one would give out too: then it is the older one that was edited so that it
/// reaches into the newer one, and refused.
///
/// It does not matter whether two segments have one master and VLAN: hosts route by address alone, and a master's name
/// may mean different cables on different nodes. Subnets may overlap where what is given out does not, so one VLAN
/// can be shared by segments with ranges of their own.
///
/// Each segment comes, in the book of its leases, with the revision at which its key was created.
pub fn overlaps<'a>(
    segments: impl IntoIterator<Item = (i64, &'a LeaseBook)>,
) -> BTreeMap<String, SegmentOverlap> {
    let segments: Vec<(i64, &LeaseBook)> = segments.into_iter().collect();
    let rivalled = |book: &LeaseBook| {
        let others = segments.iter().filter(|(_, other)| other.segment().name != book.segment().name);
        others.into_iter().any(|(_, other)| has_leases_in(book, other.segment()))
    };
    let mut in_order: Vec<(bool, i64, &Segment)> =
        segments.iter().map(|(created, book)| (!rivalled(book), *created, book.segment())).collect();
    in_order.sort_by_key(|(fresh, created, segment)| (*fresh, *created, segment.name.clone()));
    let mut admitted: Vec<&Segment> = Vec::new();
    let mut refused = BTreeMap::new();
    for (_, _, segment) in in_order {
        match admitted.iter().find_map(|first| between(first, segment)) {
            Some(reason) => _ = refused.insert(segment.name.clone(), reason),
            None => admitted.push(segment),
        }
    }
    refused
}

/// Whether pods have addresses through a segment that another one would give out too.
fn has_leases_in(book: &LeaseBook, other: &Segment) -> bool {
    let own = &book.segment().subnets;
    let common =
        own.iter().any(|own| other.subnets.iter().any(|other| own.pool.common(&other.pool).is_some()));
    let given_out = |ip| other.subnets.iter().any(|subnet| subnet.pool.contains(ip));
    common && book.leases().any(|lease| lease.released.is_none() && given_out(lease.ip))
}

fn between(first: &Segment, later: &Segment) -> Option<SegmentOverlap> {
    for old in &first.subnets {
        for new in later.subnets.iter().filter(|new| overlap(new.subnet, old.subnet)) {
            if let Some(ip) = new.pool.common(&old.pool) {
                return Some(SegmentOverlap::Pools {
                    segment: later.name.clone(),
                    subnet: new.subnet,
                    ip,
                    other: first.name.clone(),
                    other_subnet: old.subnet,
                });
            }
            for (giver, pool, owner, gateway) in
                [(later, &new.pool, first, old.gateway), (first, &old.pool, later, new.gateway)]
            {
                if let Some(ip) = gateway.filter(|gateway| pool.contains(*gateway)) {
                    let (giver, owner) = (giver.name.clone(), owner.name.clone());
                    return Some(SegmentOverlap::Gateway { giver, ip, owner });
                }
            }
        }
    }
    None
}
