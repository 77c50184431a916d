//! Limits of macvlan pods' bandwidth: on the pod's interface, in its namespace (see `docs/bandwidth.md`).
//!
//! What the limits are is written in the pod's leases, or, if another plugin gave the addresses, in its note. What the
//! kernel has follows from that: at ADD, when they are changed, and in every pass of the upkeep.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};
use tenon_cni::{Bandwidth, Error, LimitChange};
use tenon_ipam::Lease;
use tenon_netdev::{Direction, Link, LinkLimits, LinkShaper, NetNs, Netlink};
use tracing::{info, warn};

use super::delegation::Delegated;
use super::notes::note_error;
use super::pod::is_macvlan;
use super::segments::{field, id_of_lease, text};
use crate::attach::{blocking, netdev_error};
use crate::attachment::AttachmentId;
use crate::bandwidth::{LimitFault, limit_of};
use crate::node::Node;

/// Limits as leases and notes have them: null where there are none.
pub(super) fn record(bandwidth: Bandwidth) -> Value {
    let of = [("ingress", bandwidth.ingress), ("egress", bandwidth.egress)];
    let fields: Map<String, Value> = of
        .into_iter()
        .filter_map(|(direction, limit)| Some((direction, limit?)))
        .flat_map(|(direction, limit)| {
            let burst = limit.burst_bits.map(|bits| (format!("{direction}Burst"), bits.into()));
            [(format!("{direction}Rate"), limit.rate_bps.into())].into_iter().chain(burst)
        })
        .collect();
    if fields.is_empty() { Value::Null } else { fields.into() }
}

/// Reads back what [`record`] made, or a person wrote.
pub(super) fn of_record(record: &Value) -> Result<Bandwidth, Error> {
    Bandwidth::parse(record, field::BANDWIDTH)
}

/// The limits that a lease has.
pub(super) fn of_lease(lease: &Lease) -> Result<Bandwidth, Error> {
    lease.extra().get(field::BANDWIDTH).map_or(Ok(Bandwidth::default()), of_record)
}

/// Writes limits into a lease.
pub(super) fn note(lease: &mut Lease, bandwidth: Bandwidth) {
    match record(bandwidth) {
        Value::Null => lease.remove_extra(field::BANDWIDTH),
        record => lease.set_extra(field::BANDWIDTH, record),
    }
}

/// The limits for the kernel.
pub(super) fn on_link(bandwidth: Bandwidth, link: &Link) -> LinkLimits {
    let limit = |of: Option<tenon_cni::Limit>| of.and_then(|of| limit_of(of, link.mtu));
    LinkLimits { egress: limit(bandwidth.egress), ingress: limit(bandwidth.ingress) }
}

/// What is wrong with the limits of a pod's interface. The calling thread is in the pod's namespace.
pub(super) fn fault(
    pod: &Netlink,
    link: &Link,
    bandwidth: Bandwidth,
) -> Result<Option<LimitFault>, tenon_netdev::Error> {
    let (shaper, limits) = (LinkShaper::new(pod, link), on_link(bandwidth, link));
    for direction in Direction::ALL {
        let (wanted, found) = (limits.of(direction), shaper.found(direction)?);
        if !found.is(wanted) {
            return Ok(Some(LimitFault {
                direction: direction.name(),
                wanted: wanted.map_or_else(|| "none".to_owned(), |limit| limit.shape().to_string()),
                found: found.to_string(),
            }));
        }
    }
    Ok(None)
}

/// Attachments for the next pass to look at although they have no limits: something of old ones may be left.
pub(super) struct Suspects(Mutex<Suspicion>);

#[derive(Default)]
struct Suspicion {
    everybody: bool,
    ids: BTreeSet<AttachmentId>,
}

impl Suspects {
    /// As an agent begins, that does not know what the last one left undone.
    pub(super) fn everybody() -> Self {
        Self(Mutex::new(Suspicion { everybody: true, ids: BTreeSet::new() }))
    }

    fn add(&self, id: &AttachmentId) {
        self.lock().ids.insert(id.clone());
    }

    fn take(&self) -> Suspicion {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Suspicion> {
        // What a panic left is still the best there is.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A macvlan pod of this node.
struct LimitedPod {
    id: AttachmentId,
    netns: PathBuf,
    /// Its namespace and name in Kubernetes.
    pod: Option<(String, String)>,
    record: Value,
}

impl LimitedPod {
    fn of_lease(lease: &Lease) -> Option<Self> {
        Some(Self {
            id: id_of_lease(text(lease, field::NETWORK)?, lease),
            netns: PathBuf::from(text(lease, field::NETNS)?),
            pod: lease.pod.as_ref().map(|pod| (pod.namespace.clone(), pod.name.clone())),
            record: lease.extra().get(field::BANDWIDTH).cloned().unwrap_or_default(),
        })
    }

    fn of_note(id: AttachmentId, note: Delegated) -> Self {
        let arguments = note.request().map(|request| request.arguments);
        Self {
            id,
            netns: PathBuf::from(&note.environment.netns),
            pod: arguments.ok().and_then(|of| Some((of.tenant().to_owned(), of.pod.name.clone()?))),
            record: note.bandwidth,
        }
    }

    /// As it is now, if it is still there.
    fn find(node: &Node, id: &AttachmentId) -> Option<Self> {
        match node.macvlan.delegated.get::<Delegated>(id) {
            Some(note) => Some(Self::of_note(id.clone(), note)),
            None => node.macvlan.segments().held(id).first().and_then(|(_, lease)| Self::of_lease(lease)),
        }
    }

    /// All of this node. Those with several leases come several times.
    fn all(node: &Node) -> Vec<Self> {
        let delegated = node.macvlan.delegated.all::<Delegated>().into_iter();
        let delegated = delegated.map(|(id, note)| Self::of_note(id, note));
        let segments = node.macvlan.segments();
        segments.held_here().filter_map(|(_, lease)| Self::of_lease(lease)).chain(delegated).collect()
    }
}

/// Changes the limits of a running pod, on every interface that it has on segments, without losing a packet: leases
/// first, then the kernel. Returns how many interfaces there are.
///
/// # Errors
/// Code 11 if etcd cannot be reached; then nothing has changed.
pub(crate) async fn change(node: &Arc<Node>, change: &LimitChange) -> Result<usize, Error> {
    let asked = |of: &LimitedPod| {
        of.pod.as_ref().is_some_and(|(ns, name)| *ns == change.namespace && *name == change.pod)
    };
    let ids: BTreeSet<AttachmentId> =
        LimitedPod::all(node).into_iter().filter(asked).map(|pod| pod.id).collect();
    for id in &ids {
        let _claim = node.claim_when_free(id).await?;
        // Whatever comes in between, the upkeep makes the kernel follow the leases, and cleans up.
        node.macvlan.suspects.add(id);
        let held = match node.macvlan.delegated.get::<Delegated>(id) {
            Some(note) => {
                let changed = Delegated { bandwidth: record(change.bandwidth), ..note };
                node.macvlan.delegated.put(id, changed).map_err(note_error)?;
                true
            }
            None => node.macvlan.write_limits(node, id, change.bandwidth).await?,
        };
        let Some(pod) = LimitedPod::find(node, id).filter(|_| held) else { continue };
        let (ifname, bandwidth) = (id.ifname.clone(), change.bandwidth);
        let set = move || {
            on_interface(&pod.netns, &ifname, |pod, link| {
                let (shaper, limits) = (LinkShaper::new(pod, link), on_link(bandwidth, link));
                shaper.set(&limits)?;
                shaper.lift(&limits)
            })
        };
        blocking(set).await.map_err(netdev_error)?;
        node.macvlan.remember(id);
        info!(attachment = %id, ?bandwidth, "changed limits");
        node.macvlan.keep.notify_one();
    }
    Ok(ids.len())
}

/// Works on a pod's macvlan, in its namespace; `None` if that or the macvlan is gone.
fn on_interface<T: Send>(
    netns: &Path,
    ifname: &str,
    work: impl FnOnce(&Netlink, &Link) -> Result<T, tenon_netdev::Error> + Send,
) -> Result<Option<T>, tenon_netdev::Error> {
    let Some(netns) = NetNs::open_if_there(netns)? else { return Ok(None) };
    netns.run(|| {
        let pod = Netlink::open()?;
        let link = pod.link_by_name(ifname)?.filter(is_macvlan);
        link.map(|link| work(&pod, &link)).transpose()
    })?
}

/// Puts back what is missing of the limits of this node's pods, and removes what lifted ones have left.
pub(super) async fn keep(node: &Arc<Node>) {
    let suspects = node.macvlan.suspects.take();
    let suspected = |id: &AttachmentId| suspects.everybody || suspects.ids.contains(id);
    let concerned = |pod: &LimitedPod| !pod.record.is_null() || suspected(&pod.id);
    let ids: BTreeSet<AttachmentId> =
        LimitedPod::all(node).into_iter().filter(concerned).map(|pod| pod.id).collect();
    let mut put_back = 0;
    for id in ids {
        let Some(_claim) = node.claim(&id) else {
            if suspected(&id) {
                node.macvlan.suspects.add(&id);
            }
            continue;
        };
        // What it was before the claim may have changed.
        let Some(pod) = LimitedPod::find(node, &id) else { continue };
        match repair(pod).await {
            Ok(wrong) => put_back += wrong,
            Err(error) => {
                warn!(attachment = %id, %error, "cannot put a pod's limits right");
                node.macvlan.suspects.add(&id);
            }
        }
    }
    if put_back > 0 {
        warn!(directions = put_back, "put the limits of pods right");
    }
}

async fn repair(pod: LimitedPod) -> Result<usize, Error> {
    let bandwidth = of_record(&pod.record)?;
    let LimitedPod { id, netns, .. } = pod;
    let repair = move || {
        on_interface(&netns, &id.ifname, |pod, link| {
            LinkShaper::new(pod, link).repair(&on_link(bandwidth, link))
        })
    };
    Ok(blocking(repair).await.map_err(netdev_error)?.unwrap_or(0))
}
