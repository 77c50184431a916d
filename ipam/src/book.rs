//! The leases of one segment, arranged for the next decision.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::lease::leased_address;
use crate::rotation::Rotation;
use crate::spread::spread;
use crate::{Attachment, Lease, LeaseError, Mac, PodName, Segment, SegmentSubnet};

/// For how long an address stays set aside at least after a machine outside has answered for it, in seconds. Long enough
/// for pods not to run into it again and again, short enough to come back once the machine is gone.
pub const SET_ASIDE_SECONDS: u64 = 600;

/// One node's view of one segment's leases. It is derived from the store and may lag behind it: what is decided on it
/// are [`LeaseWrite`]s, each with the condition under which it is right, to be carried out by the store in one
/// transaction. Whoever decides on an old view fails there.
///
/// The view is kept by [`LeaseBook::put`] and [`LeaseBook::remove`] for what is read and watched, and by
/// [`LeaseBook::applied`] and [`LeaseBook::refused`] for the outcome of its own writes; all of them leave alone what is
/// older than what is known.
///
/// A decision takes logarithmic time, except for the counts in [`Refusal::Exhausted`](crate::Refusal::Exhausted).
#[derive(Debug, Clone)]
pub struct LeaseBook {
    pub(crate) segment: Segment,
    pub(crate) node: String,
    pub(crate) entries: BTreeMap<IpAddr, Entry>,
    /// One for each subnet of the segment, in its order.
    pub(crate) rotations: Vec<Rotation>,
    pub(crate) by_attachment: BTreeMap<Attachment, BTreeSet<IpAddr>>,
    pub(crate) by_pod: BTreeMap<(PodName, String), BTreeSet<IpAddr>>,
    pub(crate) by_mac: BTreeMap<Mac, BTreeSet<IpAddr>>,
    /// Released leases by the time at which they become free.
    ending: BTreeSet<(u64, IpAddr)>,
    /// Released leases that are free by now, though their keys are still there.
    pub(crate) ended: BTreeSet<IpAddr>,
    /// Released leases that are kept for their pods, by the time of their release.
    pub(crate) kept: BTreeSet<(u64, IpAddr)>,
}

/// What the store has under one key.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// `None`: a record that does not parse. Nobody can say whose the address is, so it is taken.
    pub(crate) lease: Option<Lease>,
    pub(crate) revision: i64,
    pub(crate) ended: bool,
}

/// A change of one lease, right only under its condition.
#[derive(Debug, Clone, PartialEq)]
pub struct LeaseWrite {
    /// The address, whose text is the last part of the key.
    pub ip: IpAddr,
    /// The revision of the key's last write, as it must be; `None`: the key must not exist.
    pub expected: Option<i64>,
    /// What to do.
    pub change: LeaseChange,
}

/// What to do with a key.
#[derive(Debug, Clone, PartialEq)]
pub enum LeaseChange {
    /// Nothing: the decision only rests on it.
    Keep,
    /// Store this, by [`Lease::to_json`].
    Put(Lease),
    /// Delete it.
    Delete,
}

impl LeaseBook {
    /// The view of the node with this name, before any lease is known.
    pub fn new(segment: Segment, node: &str) -> LeaseBook {
        let mut book = LeaseBook {
            rotations: Vec::new(),
            node: node.to_owned(),
            entries: BTreeMap::new(),
            by_attachment: BTreeMap::new(),
            by_pod: BTreeMap::new(),
            by_mac: BTreeMap::new(),
            ending: BTreeSet::new(),
            ended: BTreeSet::new(),
            kept: BTreeSet::new(),
            segment: segment.clone(),
        };
        book.set_segment(segment);
        book
    }

    /// The segment.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Takes over a changed record of the segment. Leases outside its new range stay with their pods until they are
    /// released.
    pub fn set_segment(&mut self, segment: Segment) {
        let seed = spread(&[segment.name.as_bytes(), self.node.as_bytes()]);
        let rotation = |subnet: &SegmentSubnet| Rotation::new(subnet.pool.clone(), seed);
        self.rotations = segment.subnets.iter().map(rotation).collect();
        self.segment = segment;
        let entries = self.clear();
        for (ip, entry) in entries {
            self.enter(ip, entry.lease, entry.revision);
        }
    }

    /// Forgets all leases, to be told them anew by [`LeaseBook::put`]: the watch was lost and everything is read again.
    pub fn reset(&mut self) {
        for ip in self.clear().into_keys() {
            self.rotations.iter_mut().for_each(|rotation| rotation.give(ip));
        }
    }

    /// Takes over everything that the store has at `revision`, each record as key, text and the revision of its last
    /// write: what is not among it is gone, unless it was written later. Returns what does not parse, by key.
    pub fn replace<'a>(
        &mut self,
        records: impl IntoIterator<Item = (&'a str, &'a [u8], i64)>,
        revision: i64,
    ) -> Vec<(String, LeaseError)> {
        let mut gone: BTreeSet<IpAddr> = self.entries.keys().copied().collect();
        let mut unreadable = Vec::new();
        for (key, text, written) in records {
            if let Ok(ip) = leased_address(key) {
                gone.remove(&ip);
            }
            if let Err(error) = self.put(key, text, written) {
                unreadable.push((key.to_owned(), error));
            }
        }
        gone.into_iter().for_each(|ip| self.remove_address(ip, revision));
        unreadable
    }

    /// Takes over what the store has under the key that ends in `key`, written at `revision`.
    ///
    /// # Errors
    /// The record does not parse. If its key does, the address counts as taken.
    pub fn put(&mut self, key: &str, text: &[u8], revision: i64) -> Result<(), LeaseError> {
        let ip = leased_address(key)?;
        let (lease, answer) = match Lease::parse(key, text) {
            Ok(lease) => (Some(lease), Ok(())),
            Err(error) => (None, Err(error)),
        };
        if self.revision(ip).is_none_or(|known| known < revision) {
            self.forget(ip);
            self.enter(ip, lease, revision);
        }
        answer
    }

    /// Takes over that the key that ends in `key` is gone since `revision`.
    pub fn remove(&mut self, key: &str, revision: i64) {
        if let Ok(ip) = leased_address(key) {
            self.remove_address(ip, revision);
        }
    }

    /// Takes over that a transaction was applied at `revision`.
    pub fn applied(&mut self, writes: &[LeaseWrite], revision: i64) {
        for write in writes {
            match &write.change {
                LeaseChange::Keep => {}
                LeaseChange::Delete => self.remove_address(write.ip, revision),
                LeaseChange::Put(lease) if self.revision(write.ip).is_none_or(|known| known < revision) => {
                    self.forget(write.ip);
                    self.enter(write.ip, Some(lease.clone()), revision);
                }
                LeaseChange::Put(_) => {}
            }
        }
    }

    /// Takes over that a transaction was not applied because some condition did not hold: what the store had under its
    /// keys at `revision`, as key, text and the revision of the last write; a key that did not exist is missing. A
    /// decision may then be made again at once, and will look for addresses somewhere else, since another node is
    /// giving out addresses here.
    pub fn refused<'a>(
        &mut self,
        writes: &[LeaseWrite],
        current: impl IntoIterator<Item = (&'a str, &'a [u8], i64)>,
        revision: i64,
    ) {
        let mut there = BTreeSet::new();
        for (key, text, written) in current {
            there.extend(leased_address(key));
            // That it does not parse is told when the watch brings it, too; here it matters that it is taken.
            let _ = self.put(key, text, written);
        }
        for ip in writes.iter().map(|write| write.ip).filter(|ip| !there.contains(ip)) {
            self.remove_address(ip, revision);
        }
        self.rotations.iter_mut().for_each(Rotation::jump);
    }

    /// All leases that parse, by address.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.entries.values().filter_map(|entry| entry.lease.as_ref())
    }

    /// The lease of an address.
    pub fn lease(&self, ip: IpAddr) -> Option<&Lease> {
        self.entries.get(&ip).and_then(|entry| entry.lease.as_ref())
    }

    /// What an attachment holds, by address.
    pub fn held_by(&self, attachment: &Attachment) -> impl Iterator<Item = &Lease> {
        let addresses = self.by_attachment.get(attachment).into_iter().flatten();
        addresses.filter_map(|ip| self.lease(*ip)).filter(|lease| lease.released.is_none())
    }

    /// Edits everything that an attachment holds, to be written in one transaction: for what is to become of fields
    /// that this crate does not know. What the edit leaves as it is, is not written. Nothing: it holds nothing.
    pub fn edit(&self, attachment: &Attachment, edit: impl Fn(&mut Lease)) -> Vec<LeaseWrite> {
        let write = |lease: &Lease| {
            let mut edited = lease.clone();
            edit(&mut edited);
            let change = if edited == *lease { LeaseChange::Keep } else { LeaseChange::Put(edited) };
            LeaseWrite { ip: lease.ip, expected: self.revision(lease.ip), change }
        };
        self.held_by(attachment).map(write).collect()
    }

    /// A lease of another attachment with the MAC address of this lease, which was written earlier.
    ///
    /// Leases have keys by address, so two nodes can give one requested MAC address to two pods at the same time. Whoever
    /// wrote a lease whose MAC address is not the one that comes with its address (by
    /// [`mac_of_lease`](crate::mac_of_lease)) looks here afterwards, with a view that is as new as the write; if there
    /// is a rival, he releases his own lease and fails.
    pub fn mac_rival(&self, ip: IpAddr) -> Option<&Lease> {
        let mine = self.entries.get(&ip)?;
        let lease = mine.lease.as_ref()?;
        let rivals = self.by_mac.get(&lease.mac?)?.iter().filter_map(|ip| self.entries.get(ip));
        let mut older = rivals.filter(|rival| rival.revision < mine.revision);
        older.find_map(|rival| {
            rival
                .lease
                .as_ref()
                .filter(|other| other.released.is_none() && other.attachment != lease.attachment)
        })
    }

    /// Until when a released lease is out of others' reach, in Unix seconds.
    pub(crate) fn end(&self, lease: &Lease) -> Option<u64> {
        let released = lease.released?;
        let quarantine = u64::from(self.segment.quarantine_seconds);
        let seconds = match lease.conflict {
            Some(_) => quarantine.max(SET_ASIDE_SECONDS),
            None if self.is_sticky(lease) => quarantine.max(self.segment.sticky_seconds.into()),
            None => quarantine,
        };
        Some(released.saturating_add(seconds))
    }

    /// Whether a lease is kept for its pod after its release.
    pub(crate) fn is_sticky(&self, lease: &Lease) -> bool {
        self.segment.sticky_seconds > 0 && lease.pod.is_some() && lease.conflict.is_none()
    }

    /// Makes free what has become free by `now`.
    pub(crate) fn settle(&mut self, now: u64) {
        while let Some((end, ip)) = self.ending.first().copied().filter(|(end, _)| *end <= now) {
            self.ending.remove(&(end, ip));
            self.ended.insert(ip);
            if let Some(entry) = self.entries.get_mut(&ip) {
                entry.ended = true;
                if let Some(released) = entry.lease.as_ref().and_then(|lease| lease.released) {
                    self.kept.remove(&(released, ip));
                }
            }
            self.rotations.iter_mut().for_each(|rotation| rotation.give(ip));
        }
    }

    fn revision(&self, ip: IpAddr) -> Option<i64> {
        self.entries.get(&ip).map(|entry| entry.revision)
    }

    fn remove_address(&mut self, ip: IpAddr, revision: i64) {
        if self.revision(ip).is_some_and(|known| known <= revision) {
            self.forget(ip);
        }
    }

    /// Empties every index; the rotations still count the addresses of these entries as taken.
    fn clear(&mut self) -> BTreeMap<IpAddr, Entry> {
        self.by_attachment.clear();
        self.by_pod.clear();
        self.by_mac.clear();
        self.ending.clear();
        self.ended.clear();
        self.kept.clear();
        std::mem::take(&mut self.entries)
    }

    /// Enters a record under an address that has none.
    fn enter(&mut self, ip: IpAddr, lease: Option<Lease>, revision: i64) {
        if let Some(lease) = &lease {
            if lease.is_attached() {
                self.by_attachment.entry(lease.attachment.clone()).or_default().insert(ip);
            }
            if let Some(key) = pod_key(lease) {
                self.by_pod.entry(key).or_default().insert(ip);
            }
            if let Some(mac) = lease.mac {
                self.by_mac.entry(mac).or_default().insert(ip);
            }
            if let Some((end, released)) = self.end(lease).zip(lease.released) {
                self.ending.insert((end, ip));
                if self.is_sticky(lease) {
                    self.kept.insert((released, ip));
                }
            }
        }
        self.rotations.iter_mut().for_each(|rotation| rotation.take(ip));
        self.entries.insert(ip, Entry { lease, revision, ended: false });
    }

    /// Removes a record; the address is free.
    fn forget(&mut self, ip: IpAddr) {
        let Some(entry) = self.entries.remove(&ip) else { return };
        if let Some(lease) = &entry.lease {
            drop_from(&mut self.by_attachment, &lease.attachment, ip);
            if let Some(key) = pod_key(lease) {
                drop_from(&mut self.by_pod, &key, ip);
            }
            if let Some(mac) = lease.mac {
                drop_from(&mut self.by_mac, &mac, ip);
            }
            if let Some((end, released)) = self.end(lease).zip(lease.released) {
                self.ending.remove(&(end, ip));
                self.kept.remove(&(released, ip));
            }
        }
        self.ended.remove(&ip);
        self.rotations.iter_mut().for_each(|rotation| rotation.give(ip));
    }
}

fn pod_key(lease: &Lease) -> Option<(PodName, String)> {
    lease.pod.clone().map(|pod| (pod, lease.attachment.if_name.clone()))
}

fn drop_from<K: Ord>(index: &mut BTreeMap<K, BTreeSet<IpAddr>>, key: &K, ip: IpAddr) {
    if let Some(addresses) = index.get_mut(key) {
        addresses.remove(&ip);
        if addresses.is_empty() {
            index.remove(key);
        }
    }
}
