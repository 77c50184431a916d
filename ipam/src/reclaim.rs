//! How addresses come back.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Map;

use crate::book::{LeaseBook, LeaseChange, LeaseWrite};
use crate::{Attachment, Lease, Mac, Refusal, Segment};

/// Gives back a lease at `now` (Unix seconds): it goes into quarantine or is kept for its pod, as the segment says; with
/// neither its key is deleted.
pub fn release(segment: &Segment, lease: &Lease, now: u64) -> LeaseChange {
    let kept = segment.sticky_seconds > 0 && lease.pod.is_some();
    if segment.quarantine_seconds > 0 || kept {
        LeaseChange::Put(Lease { released: Some(now), ..lease.clone() })
    } else {
        LeaseChange::Delete
    }
}

impl LeaseBook {
    /// Gives back everything that an attachment holds, to be written in one transaction. Nothing to write: it holds
    /// nothing. A container that was deleted long ago thus takes nothing from the one that has its address now.
    pub fn release(&self, attachment: &Attachment, now: u64) -> Vec<LeaseWrite> {
        self.held_by(attachment).filter_map(|lease| self.release_lease(lease, now)).collect()
    }

    /// Gives back the leases of a node whose attachments are neither live nor pending; those of each attachment are to be
    /// written in a transaction of their own.
    ///
    /// An attachment is pending from before its addresses are chosen until it is live or has failed. Call this with
    /// sets that were taken after the book's last change, `pending` before `live`, or all of it under one lock: an
    /// attachment that came into being meanwhile is then in one of them. For a node that is gone both are empty.
    ///
    /// Only attachments count, never pods' UIDs: an address that a StatefulSet's new pod has taken over is that of a
    /// live attachment. Leases without a container are left to those who wrote them.
    pub fn stale(
        &self,
        node: &str,
        live: &BTreeSet<Attachment>,
        pending: &BTreeSet<Attachment>,
        now: u64,
    ) -> Vec<Vec<LeaseWrite>> {
        let of_node = |attachment: &&Attachment| self.held_by(attachment).any(|lease| lease.node == node);
        self.by_attachment
            .keys()
            .filter(|attachment| !live.contains(attachment) && !pending.contains(attachment))
            .filter(of_node)
            .map(|attachment| self.release(attachment, now))
            .collect()
    }

    /// Takes back a lease that others have given back, set aside or deleted, though its attachment still runs with the
    /// address. `None`: the attachment holds it.
    ///
    /// Only the node that sees the attachment running may do this. An address in quarantine, or kept for another pod, can
    /// be taken back: nobody uses it. One that was set aside can be if it was this attachment that answered for it.
    ///
    /// # Errors
    /// [`Refusal::Taken`]: the address is somebody else's by now.
    pub fn retake(&self, lease: &Lease) -> Result<Option<LeaseWrite>, Refusal> {
        let ip = lease.ip;
        let taken = |holder| Err(Refusal::Taken { ip, holder });
        let expected = match self.entries.get(&ip) {
            None => None,
            Some(entry) => {
                let Some(found) = &entry.lease else {
                    return taken("a record that does not parse".to_owned());
                };
                let is_own = found.attachment == lease.attachment && found.is_attached();
                match (found.released, found.conflict) {
                    (None, _) if is_own && found.node == lease.node => return Ok(None),
                    (None, _) if !is_own => return taken(found.holder()),
                    (Some(_), Some(mac)) if lease.mac != Some(mac) => return taken(found.holder()),
                    _ => Some(entry.revision),
                }
            }
        };
        let change = LeaseChange::Put(Lease { released: None, conflict: None, ..lease.clone() });
        Ok(Some(LeaseWrite { ip, expected, change }))
    }

    /// Sets an address aside because a machine outside the cluster answered for it with `mac`: nobody gets it for
    /// [`SET_ASIDE_SECONDS`](crate::SET_ASIDE_SECONDS), or the segment's QuarantineSeconds if those are more.
    ///
    /// The address may be free, or be held by `attachment`, which is about to fail: what else it holds is given back in
    /// the same transaction. Nothing to write: it is somebody else's.
    pub fn set_aside(
        &mut self,
        attachment: Option<&Attachment>,
        ip: IpAddr,
        mac: Mac,
        now: u64,
    ) -> Vec<LeaseWrite> {
        self.settle(now);
        let entry = self.entries.get(&ip);
        let held = attachment.map(|attachment| self.release(attachment, now)).unwrap_or_default();
        let is_own = held.iter().any(|write| write.ip == ip);
        let is_free = entry.is_none_or(|entry| {
            entry.ended || entry.lease.as_ref().is_some_and(|lease| lease.conflict.is_some())
        });
        if !is_own && !is_free {
            return Vec::new();
        }
        let lease = Lease {
            ip,
            mac: None,
            node: self.node.clone(),
            attachment: Attachment { container_id: String::new(), if_name: String::new() },
            pod: None,
            released: Some(now),
            conflict: Some(mac),
            extra: Map::new(),
        };
        let expected = entry.map(|entry| entry.revision);
        let mut writes = vec![LeaseWrite { ip, expected, change: LeaseChange::Put(lease) }];
        writes.extend(held.into_iter().filter(|write| write.ip != ip));
        writes
    }

    /// Deletes the keys of leases whose time is over at `now`, each to be written by itself. There is no hurry: their
    /// addresses are given out all the same.
    pub fn ended(&mut self, now: u64) -> Vec<LeaseWrite> {
        self.settle(now);
        let write = |ip: &IpAddr| {
            let expected = self.entries.get(ip)?.revision;
            Some(LeaseWrite { ip: *ip, expected: Some(expected), change: LeaseChange::Delete })
        };
        self.ended.iter().filter_map(write).collect()
    }

    fn release_lease(&self, lease: &Lease, now: u64) -> Option<LeaseWrite> {
        let expected = self.entries.get(&lease.ip)?.revision;
        let change = release(&self.segment, lease, now);
        Some(LeaseWrite { ip: lease.ip, expected: Some(expected), change })
    }
}
