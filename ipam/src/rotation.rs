//! Where the next free address is looked for.

use std::net::IpAddr;

use rangemap::RangeInclusiveSet;

use crate::addresses::{Family, Pool, bits_of};
use crate::spread::spread;

/// How often to look for a place in the open before the first free address after the last such place has to do.
const LANDINGS: u32 = 8;

/// The free addresses of one pool, and the place in it where one node is.
///
/// A node takes one address after the other (next-fit), so that a released one stays unused for as long as possible.
/// Every node starts at a place of its own, so that nodes do not contend for the same address. Where a node runs into
/// what another one has taken, that one is likely to be just about to take the next address too: this one goes on
/// somewhere else.
#[derive(Debug, Clone)]
pub(crate) struct Rotation {
    pool: Pool,
    /// As runs of consecutive addresses, so that the next one is found without a walk.
    free: RangeInclusiveSet<u128>,
    cursor: u128,
    seed: u64,
    jumps: u64,
}

impl Rotation {
    pub(crate) fn new(pool: Pool, seed: u64) -> Rotation {
        let mut rotation = Rotation { free: pool.ranges().clone(), pool, cursor: 0, seed, jumps: 0 };
        rotation.jump();
        rotation
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn family(&self) -> Family {
        self.pool.family()
    }

    pub(crate) fn take(&mut self, ip: IpAddr) {
        let bits = bits_of(ip);
        if self.pool.contains(ip) {
            self.free.remove(bits..=bits);
        }
    }

    pub(crate) fn give(&mut self, ip: IpAddr) {
        let bits = bits_of(ip);
        if self.pool.contains(ip) {
            self.free.insert(bits..=bits);
        }
    }

    /// Goes on at another place.
    pub(crate) fn jump(&mut self) {
        let part = |which: u8| spread(&[&self.seed.to_be_bytes(), &self.jumps.to_be_bytes(), &[which]]);
        let hash = u128::from(part(0)) << 64 | u128::from(part(1));
        let place = hash.checked_rem(self.pool.count()).and_then(|place| self.pool.at(place));
        self.cursor = place.unwrap_or(self.cursor);
        self.jumps = self.jumps.wrapping_add(1);
    }

    /// Goes on after this address.
    pub(crate) fn go_on_after(&mut self, ip: IpAddr) {
        self.cursor = bits_of(ip).saturating_add(1);
    }

    /// The free address to take next; [`Rotation::go_on_after`] it gives another one. `is_others` says whether another
    /// node has an address.
    pub(crate) fn next(&mut self, is_others: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let family = self.family();
        let mut next = self.first_free()?;
        let before = next.checked_sub(1).map(|bits| family.address(bits));
        if next != self.cursor && before.is_some_and(is_others) {
            for _ in 0..LANDINGS {
                self.jump();
                next = self.first_free()?;
                if next == self.cursor {
                    break;
                }
            }
        }
        Some(family.address(next))
    }

    /// The first free address at or after the cursor, from the start again after the end.
    fn first_free(&self) -> Option<u128> {
        let ahead = self.free.overlapping(self.cursor..=u128::MAX).next();
        let run = ahead.or_else(|| self.free.first())?;
        Some(if run.contains(&self.cursor) { self.cursor } else { *run.start() })
    }
}
