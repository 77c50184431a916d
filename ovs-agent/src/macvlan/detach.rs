//! DEL and GC for macvlan: taking an attachment down, whatever there is of it.
//!
//! The interface goes first, so that nobody is given an address that still answers; the leases go last.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tenon_cni::{Error, Request, Verb};
use tenon_ipam::Mac;
use tracing::{info, warn};

use super::NO_VIEW;
use super::delegation::{self, Delegated};
use super::holdings::Holding;
use super::links::{LocalPod, local_pods};
use super::notes::note_error;
use super::pod;
use super::segments::{field, id_of_lease, text};
use crate::attach::blocking;
use crate::attachment::AttachmentId;
use crate::node::Node;

/// How long a DEL waits for etcd before the release is put off.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether the attachment is a macvlan of this node.
pub(crate) fn has(node: &Node, id: &AttachmentId) -> bool {
    !node.macvlan.held_or_lost(id).is_empty() || node.macvlan.delegated.get::<Delegated>(id).is_some()
}

/// Carries out DEL; the caller has claimed the attachment.
pub(crate) async fn del(node: &Arc<Node>, request: &Request, id: &AttachmentId) -> Result<(), Error> {
    let netns = request.arguments.netns.clone();
    if request.conf.ipam.is_some() && node.macvlan.delegated.get::<Delegated>(id).is_none() {
        // The plugin may know what this node does not.
        return undo_delegated(node, request, id, netns.as_deref()).await;
    }
    detach(node, id, netns).await
}

/// Takes an attachment down, whatever there is of it.
///
/// # Errors
/// What it holds can neither be given back now nor noted for later.
pub(super) async fn detach(node: &Arc<Node>, id: &AttachmentId, netns: Option<PathBuf>) -> Result<(), Error> {
    if let Some(note) = node.macvlan.delegated.get::<Delegated>(id) {
        let request = note.request()?;
        let netns = netns.or_else(|| request.arguments.netns.clone());
        return undo_delegated(node, &request, id, netns.as_deref()).await;
    }
    let held = node.macvlan.held_or_lost(id);
    let recorded = held.iter().find_map(|(_, lease)| text(lease, field::NETNS)).map(PathBuf::from);
    let pods = held.iter().flat_map(|(_, lease)| {
        local_pods(text(lease, field::LINK).unwrap_or_default(), &[lease.ip], lease.mac.map(Mac::bytes))
    });
    remove_interface(node, id, netns.or(recorded), pods.collect()).await;
    release(node, id).await?;
    if !held.is_empty() {
        info!(attachment = %id, "detached");
    }
    let left: Vec<_> = held.iter().filter_map(|(_, lease)| text(lease, field::LINK)).collect();
    let in_use = node
        .macvlan
        .segments()
        .held_here()
        .any(|(_, lease)| text(lease, field::LINK).is_some_and(|link| left.contains(&link)));
    if !in_use && !left.is_empty() {
        node.macvlan.keep.notify_one();
    }
    Ok(())
}

/// Silences a pod's interface and has it deleted.
async fn remove_interface(node: &Arc<Node>, id: &AttachmentId, netns: Option<PathBuf>, pods: Vec<LocalPod>) {
    let silenced = blocking(|| {
        if let Err(error) = node.macvlan.links.shut_out(&pods) {
            warn!(%error, "the host keeps routes to a pod that goes");
        }
        let macs: Vec<_> = pods.iter().map(|pod| pod.mac).collect();
        netns.map_or(Ok(None), |netns| pod::silence(&netns, &id.ifname, &id.link_name(), &macs))
    });
    match silenced.await {
        Ok(Some((netns, index))) => node.macvlan.reaper.doom(netns, index),
        Ok(None) => {}
        Err(error) => {
            warn!(attachment = %id, %error, "cannot delete a pod's interface; it goes with the pod's namespace")
        }
    }
}

/// Gives back an attachment's leases, now or, if etcd is away, later.
pub(super) async fn release(node: &Arc<Node>, id: &AttachmentId) -> Result<(), Error> {
    let macvlan = &node.macvlan;
    macvlan.holdings.remove(id).map_err(note_error)?;
    let known = macvlan.segments().network().is_some();
    let failed = if known {
        match tokio::time::timeout(RELEASE_TIMEOUT, macvlan.give_back(node, id)).await {
            Ok(Ok(())) => return macvlan.releases.remove(id).map_err(note_error),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "etcd does not answer".to_owned(),
        }
    } else {
        NO_VIEW.to_owned()
    };
    warn!(attachment = %id, error = failed, "its addresses are given back when etcd can be reached");
    put_off_release(node, id, failed)
}

pub(super) fn put_off_release(node: &Node, id: &AttachmentId, reason: String) -> Result<(), Error> {
    node.macvlan.releases.put(id, reason).map_err(note_error)?;
    node.macvlan.keep.notify_one();
    Ok(())
}

/// Undoes an attachment whose addresses another plugin gave.
pub(super) async fn undo_delegated(
    node: &Arc<Node>,
    request: &Request,
    id: &AttachmentId,
    netns: Option<&Path>,
) -> Result<(), Error> {
    let note = node.macvlan.delegated.get::<Delegated>(id);
    let pods = note.map(|note| note.local_pods()).unwrap_or_default();
    remove_interface(node, id, netns.map(Path::to_owned), pods).await;
    delegation::call_for_effect(request, Verb::Del).await?;
    node.macvlan.delegated.remove(id).map_err(note_error)?;
    node.macvlan.keep.notify_one();
    Ok(())
}

/// Carries out GC: takes down what belongs to the network and is not among its valid attachments.
pub(crate) async fn gc(node: &Arc<Node>, request: &Request) -> Result<(), Error> {
    let network = &request.conf.name;
    let valid = |container_id: &str, ifname: &str| {
        let mut attachments = request.conf.valid_attachments.iter();
        attachments.any(|a| a.container_id == container_id && a.ifname == ifname)
    };
    let mut stale: Vec<AttachmentId> = {
        let segments = node.macvlan.segments();
        let ours = segments.held_here().filter(|(_, lease)| text(lease, field::NETWORK) == Some(network));
        ours.map(|(_, lease)| id_of_lease(network, lease)).collect()
    };
    let delegated = node.macvlan.delegated.all::<Delegated>().into_iter().map(|(id, _)| id);
    let held = node.macvlan.holdings.all::<Holding>().into_iter().map(|(id, _)| id);
    stale.extend(delegated.chain(held).filter(|id| id.network == *network));
    stale.retain(|id| !valid(&id.container_id, &id.ifname));
    stale.sort();
    stale.dedup();
    // One that cannot be collected does not keep the others.
    let mut outcome = Ok(());
    for id in stale {
        let _claim = node.claim_when_free(&id).await?;
        match detach(node, &id, None).await {
            Ok(()) => info!(attachment = %id, "collected"),
            Err(error) => outcome = Err(error),
        }
    }
    if request.conf.mode == tenon_cni::Mode::Macvlan && request.conf.ipam.is_some() {
        // Plugins from before CNI 1.1 know no GC.
        if let Err(error) = delegation::call_for_effect(request, Verb::Gc).await {
            warn!(%error, "the IPAM plugin did not collect");
        }
    }
    outcome
}
