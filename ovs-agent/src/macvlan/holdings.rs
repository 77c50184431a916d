//! What running pods hold, as the node itself remembers it, should etcd come to say otherwise.
//!
//! An agent that is away for longer than the controller waits finds the leases of its pods given back, though the pods
//! run on with their addresses; the same goes for a lease that a person has deleted, and for an etcd that was restored
//! from an old backup. Such leases are taken back, unless others hold the addresses by now: that is for people to
//! settle, and the pod fails CHECK until then.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tenon_ipam::{Lease, Mac};
use tracing::{error, info, warn};

use super::segments::{field, text};
use super::{Macvlan, pod};
use crate::attach::blocking;
use crate::attachment::AttachmentId;
use crate::node::Node;

/// The note about an attachment that holds leases.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Holding {
    segment: String,
    /// As they are in etcd.
    leases: Vec<Value>,
    /// Why which of them could not be taken back, as it was last told.
    lost: Vec<String>,
}

impl Holding {
    fn leases(&self) -> Vec<Lease> {
        let parse =
            |value: &Value| Lease::parse(value.get("IP")?.as_str()?, value.to_string().as_bytes()).ok();
        self.leases.iter().filter_map(parse).collect()
    }

    /// The host's link that the pod's interface is on.
    pub(super) fn link(&self) -> Option<String> {
        self.leases().iter().find_map(|lease| text(lease, field::LINK)).map(str::to_owned)
    }
}

impl Macvlan {
    /// Notes what an attachment holds from now on. Nobody has to wait for it: it matters to an agent that comes late.
    pub(super) fn remember(&self, id: &AttachmentId) {
        let held = self.segments().held(id);
        let Some((segment, _)) = held.first() else { return };
        let stored = held.iter().map(|(_, lease)| serde_json::from_slice(&lease.to_json()));
        let noted = stored.collect::<Result<_, _>>().map_err(std::io::Error::from).and_then(|leases| {
            self.holdings.put(id, Holding { segment: segment.clone(), leases, lost: Vec::new() })
        });
        if let Err(error) = noted {
            warn!(attachment = %id, %error, "cannot note what a pod holds");
        }
    }

    /// What an attachment holds or should hold, with the segment's name.
    pub(super) fn held_or_lost(&self, id: &AttachmentId) -> Vec<(String, Lease)> {
        let mut held = self.segments().held(id);
        if let Some(holding) = self.holdings.get::<Holding>(id) {
            let lost = holding.leases().into_iter().map(|lease| (holding.segment.clone(), lease));
            let lost = lost.filter(|(_, lease)| !held.iter().any(|(_, other)| other.ip == lease.ip));
            held.extend(lost.collect::<Vec<_>>());
        }
        held
    }

    /// What an attachment should hold, and others do, for people.
    pub(super) fn lost(&self, id: &AttachmentId) -> Vec<String> {
        let Some(holding) = self.holdings.get::<Holding>(id) else { return Vec::new() };
        let mut segments = self.segments();
        let Some(book) = segments.book_of(&holding.segment) else { return Vec::new() };
        let lost = holding.leases().into_iter().filter_map(|lease| book.retake(&lease).err());
        lost.map(|refusal| refusal.to_string()).collect()
    }

    fn lacks(&self, id: &AttachmentId, holding: &Holding) -> bool {
        let held = self.segments().held(id);
        holding.leases().iter().any(|lease| !held.iter().any(|(_, other)| other.ip == lease.ip))
    }
}

/// Takes back the leases of pods that run without them, and forgets pods that do not run any more.
pub(super) async fn restore(node: &Arc<Node>) {
    let macvlan = &node.macvlan;
    for (id, holding) in macvlan.holdings.all::<Holding>() {
        if !macvlan.lacks(&id, &holding) {
            continue;
        }
        // Whoever works on it is an ADD or a DEL, which may also have ended meanwhile.
        let Some(_claim) = node.claim(&id) else { continue };
        let Some(holding) = macvlan.holdings.get::<Holding>(&id) else { continue };
        let restored = match running_with(&id, &holding).await {
            Ok(leases) if leases.is_empty() => {
                macvlan.holdings.remove(&id).map_err(|error| error.to_string())
            }
            Ok(leases) => retake(node, &id, holding, &leases).await,
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = restored {
            warn!(%error, attachment = %id, "cannot see to the leases of a pod; going on later");
        }
    }
}

async fn retake(
    node: &Arc<Node>,
    id: &AttachmentId,
    holding: Holding,
    leases: &[Lease],
) -> Result<(), String> {
    let refusals = node.macvlan.retake(node, &holding.segment, leases).await.map_err(|e| e.to_string())?;
    let lost: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    if lost.is_empty() {
        let ips: Vec<String> = leases.iter().map(|lease| lease.ip.to_string()).collect();
        info!(attachment = %id, segment = holding.segment, ips = ips.join(","), "took back what its pod runs with");
    }
    if lost == holding.lost {
        return Ok(());
    }
    for reason in &lost {
        error!(attachment = %id, segment = holding.segment, reason, "a pod runs with an address that is another's; delete the pod");
    }
    node.macvlan.holdings.put(id, Holding { lost, ..holding }).map_err(|error| error.to_string())
}

/// The leases of a holding whose addresses the pod's interface has.
async fn running_with(id: &AttachmentId, holding: &Holding) -> Result<Vec<Lease>, tenon_netdev::Error> {
    let mut leases = holding.leases();
    let Some(first) = leases.first() else { return Ok(leases) };
    let netns = PathBuf::from(text(first, field::NETNS).unwrap_or_default());
    let (ifname, mac) = (id.ifname.clone(), first.mac.map(Mac::bytes));
    let addresses: Vec<IpAddr> = blocking(move || pod::addresses(&netns, &ifname, mac)).await?;
    leases.retain(|lease| addresses.contains(&lease.ip));
    Ok(leases)
}
