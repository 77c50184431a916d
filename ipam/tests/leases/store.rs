//! A store as the deciding nodes see it: compare-and-swap on the revisions of keys, and a log that watches follow.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tenon_ipam::{Lease, LeaseBook, LeaseChange, LeaseWrite};

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) leases: BTreeMap<IpAddr, (Lease, i64)>,
    pub(crate) log: Vec<(i64, IpAddr, Option<Lease>)>,
    pub(crate) revision: i64,
    pub(crate) conflicts: usize,
}

impl Store {
    /// Whether every condition holds.
    pub(crate) fn holds(&self, writes: &[LeaseWrite]) -> bool {
        writes.iter().all(|write| self.leases.get(&write.ip).map(|(_, revision)| *revision) == write.expected)
    }

    /// Carries out a transaction; all of its writes are of one revision.
    pub(crate) fn transact(&mut self, writes: &[LeaseWrite]) -> bool {
        if !self.holds(writes) {
            self.conflicts += 1;
            return false;
        }
        self.revision += 1;
        for write in writes {
            let lease = match &write.change {
                LeaseChange::Keep => continue,
                LeaseChange::Put(lease) => Some(lease.clone()),
                LeaseChange::Delete => None,
            };
            self.log.push((self.revision, write.ip, lease.clone()));
            match lease {
                Some(lease) => _ = self.leases.insert(write.ip, (lease, self.revision)),
                None => _ = self.leases.remove(&write.ip),
            }
        }
        true
    }

    /// Tells a book what became of its writes.
    pub(crate) fn answer(&self, book: &mut LeaseBook, writes: &[LeaseWrite], applied: bool) {
        if applied {
            book.applied(writes, self.revision);
            return;
        }
        let current: Vec<(String, Vec<u8>, i64)> = writes
            .iter()
            .filter_map(|write| self.leases.get(&write.ip))
            .map(|(lease, revision)| (lease.ip.to_string(), lease.to_json(), *revision))
            .collect();
        let current = current.iter().map(|(key, text, revision)| (key.as_str(), text.as_slice(), *revision));
        book.refused(writes, current, self.revision);
    }

    /// Shows a book what was written between two places in the log, and to the end of the last revision, which a watch
    /// never divides. Returns the place after it.
    pub(crate) fn show(&self, book: &mut LeaseBook, from: usize, to: usize) -> usize {
        let revision = |place: usize| self.log.get(place).map(|(revision, ..)| *revision);
        let mut to = to.min(self.log.len());
        while to > from && revision(to).is_some() && revision(to) == revision(to - 1) {
            to += 1;
        }
        for (revision, ip, lease) in self.log.iter().take(to).skip(from) {
            let key = ip.to_string();
            match lease {
                Some(lease) => book.put(&key, &lease.to_json(), *revision).unwrap(),
                None => book.remove(&key, *revision),
            }
        }
        to
    }
}
