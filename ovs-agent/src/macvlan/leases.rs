//! Leases in etcd: taking them, giving them back and setting addresses aside, each by one transaction that holds only if
//! nobody else was there first.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tenon_cni::{Bandwidth, Error};
use tenon_ipam::{
    Attachment, Lease, LeaseBook, LeaseChange, LeaseWrite, Mac, Refusal, Request, Segment, mac_of_lease,
};
use tenon_store::{Compare, KeyValue, TxnOutcome, Write};

use super::segments::{Segments, field};
use super::{Macvlan, NO_VIEW, limits};
use crate::attachment::AttachmentId;
use crate::node::Node;

/// How often an allocation is decided anew when others were faster; each time it looks somewhere else.
const TRIES: u32 = 32;
/// How long the watch may lag behind an own write until a requested MAC address is given up.
const RIVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The time of the leases, in Unix seconds.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Who asks for what on which segment.
pub(super) struct Wanted<'a> {
    pub(super) segment: &'a str,
    pub(super) id: &'a AttachmentId,
    pub(super) request: Request,
    /// In mode passthru the pod has its master's MAC address, whatever the lease would come with.
    pub(super) mac_of_master: Option<Mac>,
    pub(super) netns: &'a str,
    /// The host's link that the pod's interface will be on.
    pub(super) link: &'a str,
    pub(super) bandwidth: Bandwidth,
}

/// Why there is no lease.
pub(super) enum NoLease {
    /// Nothing was written.
    Refused(Error),
    /// Something may have been written and must be given back.
    Unsure(Error),
}

/// What became of a write.
enum Written {
    Applied {
        revision: i64,
    },
    /// Another write was first; the book knows it now.
    Overtaken,
}

impl Macvlan {
    /// Takes the leases of an attachment: one transaction, unless others are taking addresses at the same time.
    pub(super) async fn take(&self, node: &Node, wanted: &Wanted<'_>) -> Result<Vec<Lease>, NoLease> {
        for _ in 0..TRIES {
            let (leases, writes) = decide(&mut self.segments(), wanted).map_err(NoLease::Refused)?;
            let unsure = |error: tenon_store::Error| NoLease::Unsure(Error::try_again(error.to_string()));
            match self.write(node, wanted.segment, &writes, &[]).await.map_err(unsure)? {
                Written::Overtaken => continue,
                Written::Applied { revision } => {
                    self.check_rivals(wanted, &leases, &writes, revision).await.map_err(NoLease::Unsure)?;
                    return Ok(leases);
                }
            }
        }
        Err(NoLease::Refused(Error::try_again(format!(
            "segment {:?}: other nodes were faster {TRIES} times in a row",
            wanted.segment
        ))))
    }

    /// Two nodes can give a requested MAC address to two pods at the same time, as leases have keys by address alone.
    /// The later one steps back.
    async fn check_rivals(
        &self,
        wanted: &Wanted<'_>,
        leases: &[Lease],
        writes: &[LeaseWrite],
        revision: i64,
    ) -> Result<(), Error> {
        let derived = |lease: &Lease| {
            let comes_with = |other: &Lease| Some(mac_of_lease(wanted.segment, other.ip)) == lease.mac;
            leases.iter().any(comes_with)
        };
        let unwritten = writes.iter().all(|write| write.change == LeaseChange::Keep);
        if unwritten || wanted.mac_of_master.is_some() || leases.iter().all(derived) {
            return Ok(());
        }
        let mut seen = self.seen.subscribe();
        let caught_up = seen.wait_for(|seen| *seen >= revision);
        if tokio::time::timeout(RIVAL_TIMEOUT, caught_up).await.is_err() {
            return Err(Error::try_again(
                "etcd's watch lags: nobody can say whether the MAC address is free",
            ));
        }
        let mut segments = self.segments();
        let Some(book) = segments.book_of(wanted.segment) else { return Ok(()) };
        match leases.iter().find_map(|lease| book.mac_rival(lease.ip)) {
            None => Ok(()),
            Some(rival) => {
                let mac = rival.mac.map(|mac| mac.to_string()).unwrap_or_default();
                let refusal = format!("{mac} is the MAC address of {}, held by {}", rival.ip, rival.holder());
                Err(Error::invalid_config(refusal))
            }
        }
    }

    /// Writes other limits into what an attachment holds. Returns whether it holds anything.
    ///
    /// # Errors
    /// etcd does not answer, or somebody edits these very leases all the time.
    pub(super) async fn write_limits(
        &self,
        node: &Node,
        id: &AttachmentId,
        bandwidth: Bandwidth,
    ) -> Result<bool, Error> {
        let attachment = Attachment { container_id: id.container_id.clone(), if_name: id.ifname.clone() };
        for _ in 0..TRIES {
            let (held, next) = {
                let mut segments = self.segments();
                let held = segments.held(id);
                let names: BTreeSet<String> = held.iter().map(|(name, _)| name.clone()).collect();
                let next = names.into_iter().find_map(|name| {
                    let book = segments.book_of(&name)?;
                    let mut writes = book.edit(&attachment, |lease| limits::note(lease, bandwidth));
                    // Another network's interface may have the same name and container.
                    writes.retain(|write| held.iter().any(|(of, lease)| *of == name && lease.ip == write.ip));
                    let changes = writes.iter().any(|write| write.change != LeaseChange::Keep);
                    changes.then_some((name, writes))
                });
                (!held.is_empty(), next)
            };
            let Some((name, writes)) = next else { return Ok(held) };
            // Applied or overtaken, the book knows how they are now.
            self.write(node, &name, &writes, &[]).await.map_err(|e| Error::try_again(e.to_string()))?;
        }
        Err(Error::try_again(format!("{id}: somebody else changed its leases {TRIES} times in a row")))
    }

    /// Gives back what an attachment holds on any segment.
    ///
    /// # Errors
    /// etcd does not answer; what was not given back yet still is to be.
    pub(super) async fn give_back(&self, node: &Node, id: &AttachmentId) -> Result<(), tenon_store::Error> {
        let attachment = Attachment { container_id: id.container_id.clone(), if_name: id.ifname.clone() };
        for _ in 0..TRIES {
            let next = {
                let mut segments = self.segments();
                let held = segments.held(id);
                held.first().map(|(name, _)| name.clone()).map(|name| {
                    let ours: BTreeSet<IpAddr> =
                        held.iter().filter(|(of, _)| *of == name).map(|(_, lease)| lease.ip).collect();
                    let writes = segments.book_of(&name).map(|book| book.release(&attachment, now()));
                    let writes = writes.unwrap_or_default().into_iter();
                    (name, writes.filter(|write| ours.contains(&write.ip)).collect::<Vec<_>>())
                })
            };
            match next {
                None => return Ok(()),
                // Overtaken: somebody edits these very leases; the book knows how they are now.
                Some((name, writes)) => {
                    self.write(node, &name, &writes, &[]).await?;
                }
            }
        }
        Ok(())
    }

    /// Takes leases back that others have given back or deleted. Returns why which of them cannot be had.
    pub(super) async fn retake(
        &self,
        node: &Node,
        segment: &str,
        leases: &[Lease],
    ) -> Result<Vec<Refusal>, tenon_store::Error> {
        for _ in 0..TRIES {
            let (mut writes, mut refusals) = (Vec::new(), Vec::new());
            {
                let mut segments = self.segments();
                let book = segments.book(segment);
                for lease in leases {
                    match book.retake(lease) {
                        Ok(write) => writes.extend(write),
                        Err(refusal) => refusals.push(refusal),
                    }
                }
            }
            if writes.is_empty() {
                return Ok(refusals);
            }
            if let Written::Applied { .. } = self.write(node, segment, &writes, &[]).await? {
                return Ok(refusals);
            }
        }
        Ok(Vec::new())
    }

    /// Sets an address aside that a machine outside has answered for, and gives back what else the attachment holds
    /// there.
    pub(super) async fn set_aside(
        &self,
        node: &Node,
        segment: &str,
        id: &AttachmentId,
        ip: IpAddr,
        mac: Mac,
    ) -> Result<(), tenon_store::Error> {
        let attachment = Attachment { container_id: id.container_id.clone(), if_name: id.ifname.clone() };
        for _ in 0..TRIES {
            let writes = self
                .segments()
                .book_of(segment)
                .map(|book| book.set_aside(Some(&attachment), ip, mac, now()))
                .unwrap_or_default();
            if writes.is_empty() {
                return Ok(());
            }
            if let Written::Applied { .. } = self.write(node, segment, &writes, &[]).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Deletes or gives back leases as the controller, fenced by its leadership.
    pub(super) async fn write_as_controller(
        &self,
        node: &Node,
        segment: &str,
        writes: &[LeaseWrite],
        fence: &Compare,
    ) -> Result<(), tenon_store::Error> {
        self.write(node, segment, writes, std::slice::from_ref(fence)).await.map(drop)
    }

    /// Writes what a book has decided and tells the book what came of it.
    async fn write(
        &self,
        node: &Node,
        segment: &str,
        writes: &[LeaseWrite],
        fences: &[Compare],
    ) -> Result<Written, tenon_store::Error> {
        let network = self.segments().network().cloned();
        let Some(network) = network else { return Ok(Written::Overtaken) };
        let key = |ip: IpAddr| network.lease(segment, &ip.to_string()).unwrap_or_default();
        let mut compares = fences.to_vec();
        let mut changes = Vec::new();
        for write in writes {
            compares.push(Compare::ModRevision(key(write.ip), write.expected.unwrap_or(0)));
            match &write.change {
                LeaseChange::Keep => {}
                LeaseChange::Put(lease) => changes.push(Write::put(key(write.ip), lease.to_json())),
                LeaseChange::Delete => changes.push(Write::delete(key(write.ip))),
            }
        }
        let outcome = node.store.txn(&compares, &changes).await?;
        let mut segments = self.segments();
        let Some(book) = segments.book_of(segment) else { return Ok(Written::Overtaken) };
        match outcome {
            TxnOutcome::Applied { revision } => {
                book.applied(writes, revision);
                Ok(Written::Applied { revision })
            }
            TxnOutcome::Conflict { revision, current, unsure } => {
                let prefix = network.leases_of(segment).unwrap_or_default();
                if let Some(revision) = unsure.then(|| written_before(&changes, &current)).flatten() {
                    // The conflict is with our own first try.
                    book.applied(writes, revision);
                    return Ok(Written::Applied { revision });
                }
                let leases = current.iter().filter_map(|kv| {
                    Some((kv.key.strip_prefix(&prefix)?, kv.value.as_slice(), kv.mod_revision))
                });
                book.refused(writes, leases, revision);
                Ok(Written::Overtaken)
            }
        }
    }
}

/// At which revision all of the changes were made, if the store holds them.
fn written_before(changes: &[Write], current: &[KeyValue]) -> Option<i64> {
    let mut at = None;
    for change in changes {
        match change {
            Write::Put { key, value, .. } => {
                let kv = current.iter().find(|kv| kv.key == *key && kv.value == *value)?;
                if at.replace(kv.mod_revision).is_some_and(|other| other != kv.mod_revision) {
                    return None;
                }
            }
            Write::Delete { key } if current.iter().any(|kv| kv.key == *key) => return None,
            Write::Delete { .. } => {}
        }
    }
    at
}

fn decide(segments: &mut Segments, wanted: &Wanted<'_>) -> Result<(Vec<Lease>, Vec<LeaseWrite>), Error> {
    if segments.network().is_none() {
        return Err(Error::try_again(NO_VIEW));
    }
    let book = segments.usable(wanted.segment).map_err(|fault| Error::invalid_config(fault.to_string()))?;
    let choice = book.choose(&wanted.request, now()).map_err(|refusal| refused(&refusal))?;
    let mode = book.segment().mode.to_string();
    let mut writes = Vec::new();
    let mut leases = Vec::new();
    for (mut lease, write) in choice.leases.into_iter().zip(choice.writes) {
        lease.set_extra(field::NETWORK, wanted.id.network.as_str());
        lease.set_extra(field::NETNS, wanted.netns);
        lease.set_extra(field::LINK, wanted.link);
        lease.set_extra(field::MODE, mode.as_str());
        limits::note(&mut lease, wanted.bandwidth);
        lease.mac = wanted.mac_of_master.or(lease.mac);
        writes.push(with_own_fields(book, write, &lease));
        leases.push(lease);
    }
    Ok((leases, writes))
}

/// What is held already is written again only if it is held in another way.
fn with_own_fields(book: &LeaseBook, write: LeaseWrite, lease: &Lease) -> LeaseWrite {
    let change = match write.change {
        LeaseChange::Keep if book.lease(lease.ip) == Some(lease) => LeaseChange::Keep,
        _ => LeaseChange::Put(lease.clone()),
    };
    LeaseWrite { change, ..write }
}

/// What a pod asked for by name and cannot have is a fault of its configuration; that nothing is left may pass.
fn refused(refusal: &Refusal) -> Error {
    match refusal {
        Refusal::Exhausted { .. } => Error::try_again(refusal.to_string()),
        _ => Error::invalid_config(refusal.to_string()),
    }
}

/// The addresses of leases with the prefix lengths of their subnets.
pub(super) fn networks(segment: &Segment, leases: &[Lease]) -> Vec<ipnet::IpNet> {
    let prefixed = |lease: &Lease| {
        let host = ipnet::IpNet::from(lease.ip);
        let prefix = segment.subnet_of(lease.ip).map_or(host.prefix_len(), |s| s.subnet.prefix_len());
        ipnet::IpNet::new(lease.ip, prefix).unwrap_or(host)
    };
    leases.iter().map(prefixed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &str, value: &str, mod_revision: i64) -> KeyValue {
        KeyValue { key: key.into(), value: value.into(), create_revision: 1, mod_revision, lease: 0 }
    }

    #[test]
    fn a_conflict_is_our_own_only_if_all_that_was_to_be_written_is_there() {
        let two = [Write::put("a", "1"), Write::put("b", "2")];
        for (changes, current, found) in [
            (&two[..], vec![kv("a", "1", 7), kv("b", "2", 7)], Some(7)),
            (&two, vec![kv("a", "1", 7), kv("b", "2", 8)], None),
            (&two, vec![kv("a", "1", 7)], None),
            (&two, vec![kv("a", "1", 7), kv("b", "3", 7)], None),
            (&[Write::put("a", "1"), Write::delete("b")], vec![kv("a", "1", 7)], Some(7)),
            (&[Write::put("a", "1"), Write::delete("b")], vec![kv("a", "1", 7), kv("b", "", 6)], None),
            // Whose deletion it was nobody can say; it does not matter, for the next decision finds nothing to do.
            (&[Write::delete("b")], vec![], None),
        ] {
            assert_eq!(written_before(changes, &current), found, "{changes:?} {current:?}");
        }
    }
}
