//! What this node knows of the cluster's segments and their leases: read from etcd, kept by the watch, and changed at
//! once by the node's own writes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use tenon_ipam::{
    Attachment, DEFAULT_PROBE_MS, DEFAULT_QUARANTINE_SECONDS, Lease, LeaseBook, LeaseError, Mode, Segment,
    SegmentError, SegmentOverlap, overlaps,
};
use tenon_store::{Change, Key, KeyValue, Keys, NetworkKeys, Record};
use tracing::{error, info, warn};

use crate::attachment::AttachmentId;
use crate::cluster::AgentRecord;

/// The lease's fields that are this agent's own, beside those of the contract: the CNI network of the attachment, so
/// that GC leaves other networks alone; the pod's network namespace, by which the node sees that a pod is gone; the
/// host's link that the pod's interface is on, so that nobody deletes it; the mode, which an edit of the segment
/// does not change for pods that run; and the pod's limits, as `runtimeConfig.bandwidth` writes them, if it has any.
pub(crate) mod field {
    pub(crate) const NETWORK: &str = "Network";
    pub(crate) const NETNS: &str = "Netns";
    pub(crate) const LINK: &str = "Link";
    pub(crate) const MODE: &str = "Mode";
    pub(crate) const BANDWIDTH: &str = "Bandwidth";
}

/// Why no pod can join a segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SegmentFault {
    #[error("segment {0:?} is not in etcd")]
    Missing(String),
    #[error("the record of segment {name:?} cannot be used: {error}")]
    Unusable { name: String, error: SegmentError },
    #[error(transparent)]
    Overlap(#[from] SegmentOverlap),
}

/// A segment by name; it is there as long as it has a record or leases.
struct Known {
    /// Of a record that is missing or cannot be read, the leases count all the same: with the last good record, or with
    /// one that gives out nothing.
    book: LeaseBook,
    record: Found,
}

enum Found {
    Good {
        /// The revision at which the key came into being.
        created: i64,
    },
    Bad(SegmentError),
    None,
}

/// The last part of a lease's key, its text and the revision of the last write.
type LeaseRecord<'a> = (&'a str, &'a [u8], i64);

/// The node's view.
pub(crate) struct Segments {
    node: String,
    /// `None`: etcd has not told anything yet.
    network: Option<NetworkKeys>,
    known: BTreeMap<String, Known>,
    refused: BTreeMap<String, SegmentOverlap>,
    /// Whether something came that [`Self::refused`] may depend on.
    reviewed: bool,
    /// The names of the nodes whose agents live, by the address in the key.
    agents: HashMap<String, String>,
    /// The revision that the view has reached.
    revision: i64,
}

impl Segments {
    pub(crate) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            network: None,
            known: BTreeMap::new(),
            refused: BTreeMap::new(),
            reviewed: true,
            agents: HashMap::new(),
            revision: 0,
        }
    }

    /// The keys of the network, once etcd has told everything.
    pub(crate) fn network(&self) -> Option<&NetworkKeys> {
        self.network.as_ref()
    }

    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// Whether an agent of a node with this name lives.
    pub(crate) fn is_alive(&self, node: &str) -> bool {
        self.agents.values().any(|name| name == node)
    }

    /// Takes over everything that is in etcd at `revision`. What this node wrote after that stays.
    pub(crate) fn replace(
        &mut self,
        keys: &Keys,
        name: &str,
        network: NetworkKeys,
        kvs: &[KeyValue],
        revision: i64,
    ) {
        if self.network.as_ref().is_some_and(|known| *known != network) || revision < self.revision {
            // Another network, or an older state of etcd, restored: nothing that is known here counts.
            self.known.clear();
        }
        self.network = Some(network);
        self.agents.clear();
        let mut leases: BTreeMap<&str, Vec<LeaseRecord<'_>>> = BTreeMap::new();
        let mut records = BTreeSet::new();
        for kv in kvs {
            match record_of(keys, name, &kv.key) {
                Some(Record::Lease { segment, ip }) => {
                    leases.entry(segment).or_default().push((ip, &kv.value, kv.mod_revision));
                }
                Some(Record::Segment(segment)) => {
                    records.insert(segment);
                    self.put_segment(segment, kv);
                }
                Some(Record::Agent(ip)) => self.put_agent(ip, Some(&kv.value)),
                _ => {}
            }
        }
        let names: Vec<String> = self.known.keys().cloned().collect();
        for segment in names.iter().filter(|segment| !records.contains(segment.as_str())) {
            self.remove_segment(segment);
        }
        let others = names.iter().map(String::as_str).filter(|name| !leases.contains_key(name));
        let emptied: Vec<&str> = others.collect();
        for (segment, records) in leases.into_iter().chain(emptied.into_iter().map(|name| (name, Vec::new())))
        {
            for (key, error) in self.book(segment).replace(records, revision) {
                tell_unreadable(segment, &key, &error);
            }
        }
        self.revision = revision;
        self.reviewed = false;
        self.review();
    }

    /// Takes one change in.
    pub(crate) fn take(&mut self, keys: &Keys, name: &str, change: &Change) {
        let (key, revision, value) = match change {
            Change::Put(kv) => (&kv.key, kv.mod_revision, Some(kv)),
            Change::Deleted { key, revision } => (key, *revision, None),
        };
        self.revision = self.revision.max(revision);
        match (record_of(keys, name, key), value) {
            (Some(Record::Lease { segment, ip }), Some(kv)) => {
                if let Err(error) = self.book(segment).put(ip, &kv.value, revision) {
                    tell_unreadable(segment, ip, &error);
                }
            }
            (Some(Record::Lease { segment, ip }), None) => {
                self.book(segment).remove(ip, revision);
                self.drop_if_empty(segment);
            }
            (Some(Record::Segment(segment)), Some(kv)) => self.put_segment(segment, kv),
            (Some(Record::Segment(segment)), None) => self.remove_segment(segment),
            (Some(Record::Agent(ip)), value) => self.put_agent(ip, value.map(|kv| kv.value.as_slice())),
            _ => {}
        }
    }

    /// Takes over leases that were read apart from the watch; what is known already, or newer, stays.
    pub(crate) fn catch_up(&mut self, network: &NetworkKeys, leases: &[KeyValue]) {
        let prefix = network.leases();
        for kv in leases {
            let Some((segment, ip)) = kv.key.strip_prefix(&prefix).and_then(|rest| rest.split_once('/'))
            else {
                continue;
            };
            // What cannot be read, the watch tells.
            let _ = self.book(segment).put(ip, &kv.value, kv.mod_revision);
        }
    }

    /// Looks anew, after segments have changed, which of them get along.
    pub(crate) fn review(&mut self) {
        if std::mem::replace(&mut self.reviewed, true) {
            return;
        }
        let good = self.known.values().filter_map(|known| match known.record {
            Found::Good { created } => Some((created, &known.book)),
            Found::Bad(_) | Found::None => None,
        });
        let refused = overlaps(good);
        for (segment, reason) in
            refused.iter().filter(|(name, reason)| self.refused.get(*name) != Some(reason))
        {
            warn!(segment, %reason, "a segment is refused; pods that have addresses of it keep them");
        }
        self.refused = refused;
    }

    /// The book of a segment that pods can join.
    pub(crate) fn usable(&mut self, name: &str) -> Result<&mut LeaseBook, SegmentFault> {
        if let Some(reason) = self.refused.get(name) {
            return Err(reason.clone().into());
        }
        let missing = || SegmentFault::Missing(name.to_owned());
        let known = self.known.get_mut(name).ok_or_else(missing)?;
        match &known.record {
            Found::Good { .. } => Ok(&mut known.book),
            Found::Bad(error) => Err(SegmentFault::Unusable { name: name.to_owned(), error: error.clone() }),
            Found::None => Err(missing()),
        }
    }

    /// The book of any segment that has a record or leases.
    pub(crate) fn book_of(&mut self, name: &str) -> Option<&mut LeaseBook> {
        self.known.get_mut(name).map(|known| &mut known.book)
    }

    /// All books.
    pub(crate) fn books(&mut self) -> impl Iterator<Item = &mut LeaseBook> {
        self.known.values_mut().map(|known| &mut known.book)
    }

    /// What an attachment of this node holds, with the segment's name.
    pub(crate) fn held(&self, id: &AttachmentId) -> Vec<(String, Lease)> {
        let attachment = Attachment { container_id: id.container_id.clone(), if_name: id.ifname.clone() };
        let of_network = |lease: &&Lease| {
            lease.node == self.node && text(lease, field::NETWORK).is_none_or(|network| network == id.network)
        };
        let in_book = |(name, known): (&String, &Known)| {
            let leases: Vec<_> = known.book.held_by(&attachment).filter(of_network).cloned().collect();
            leases.into_iter().map(|lease| (name.clone(), lease)).collect::<Vec<_>>()
        };
        self.known.iter().flat_map(in_book).collect()
    }

    /// All that attachments of this node hold, with the segment.
    pub(crate) fn held_here(&self) -> impl Iterator<Item = (&Segment, &Lease)> {
        let here = |lease: &&Lease| {
            lease.node == self.node && lease.released.is_none() && !lease.attachment.container_id.is_empty()
        };
        self.known.values().flat_map(move |known| {
            known.book.leases().filter(here).map(|lease| (known.book.segment(), lease))
        })
    }

    /// The names of the other nodes that attachments' leases name.
    pub(crate) fn other_nodes(&self) -> BTreeSet<String> {
        let leases = self.known.values().flat_map(|known| known.book.leases());
        let held =
            leases.filter(|lease| lease.released.is_none() && !lease.attachment.container_id.is_empty());
        held.map(|lease| &lease.node).filter(|node| **node != self.node).cloned().collect()
    }

    /// The book of any segment, begun if there is none yet.
    pub(crate) fn book(&mut self, name: &str) -> &mut LeaseBook {
        let node = &self.node;
        let known = self.known.entry(name.to_owned()).or_insert_with(|| Known {
            book: LeaseBook::new(without_record(name), node),
            record: Found::None,
        });
        &mut known.book
    }

    fn put_segment(&mut self, name: &str, kv: &KeyValue) {
        self.reviewed = false;
        match Segment::parse(name, &kv.value) {
            Ok(segment) => {
                let book = self.book(name);
                if *book.segment() != segment {
                    info!(segment = name, "segment");
                    book.set_segment(segment);
                }
                self.set_record(name, Found::Good { created: kv.create_revision });
            }
            Err(error) => {
                warn!(segment = name, %error, "a segment's record cannot be used; pods that have addresses of it keep them");
                self.book(name);
                self.set_record(name, Found::Bad(error));
            }
        }
    }

    fn remove_segment(&mut self, name: &str) {
        self.reviewed = false;
        self.set_record(name, Found::None);
        self.drop_if_empty(name);
    }

    fn set_record(&mut self, name: &str, record: Found) {
        if let Some(known) = self.known.get_mut(name) {
            known.record = record;
        }
    }

    fn drop_if_empty(&mut self, name: &str) {
        let unused =
            |known: &Known| matches!(known.record, Found::None) && known.book.leases().next().is_none();
        if self.known.get(name).is_some_and(unused) {
            self.known.remove(name);
        }
    }

    fn put_agent(&mut self, ip: &str, value: Option<&[u8]>) {
        match value.and_then(|value| serde_json::from_slice::<AgentRecord>(value).ok()) {
            Some(agent) => self.agents.insert(ip.to_owned(), agent.host),
            None => self.agents.remove(ip),
        };
    }
}

/// A field of a lease that is this agent's own.
pub(crate) fn text<'a>(lease: &'a Lease, field: &str) -> Option<&'a str> {
    lease.extra().get(field).and_then(serde_json::Value::as_str)
}

/// The attachment that a lease was given to.
pub(super) fn id_of_lease(network: &str, lease: &Lease) -> AttachmentId {
    AttachmentId {
        network: network.to_owned(),
        container_id: lease.attachment.container_id.clone(),
        ifname: lease.attachment.if_name.clone(),
    }
}

/// A stand-in for a record that was never read: it gives out nothing, and what is given back waits as usual.
fn without_record(name: &str) -> Segment {
    Segment {
        name: name.to_owned(),
        master: String::new(),
        vlan: None,
        mode: Mode::Bridge,
        subnets: Vec::new(),
        extra_routes: Vec::new(),
        mtu: None,
        host_access: false,
        sticky_seconds: 0,
        quarantine_seconds: DEFAULT_QUARANTINE_SECONDS,
        probe_ms: DEFAULT_PROBE_MS,
    }
}

fn record_of<'k>(keys: &Keys, name: &str, key: &'k str) -> Option<Record<'k>> {
    match keys.parse(key)? {
        Key::Of { network, record } if network == name => Some(record),
        _ => None,
    }
}

fn tell_unreadable(segment: &str, key: &str, error: &LeaseError) {
    match key.parse::<IpAddr>() {
        Ok(_) => {
            error!(segment, lease = key, %error, "a lease cannot be read; its address is given to nobody")
        }
        Err(_) => warn!(segment, lease = key, %error, "a lease that is none"),
    }
}
