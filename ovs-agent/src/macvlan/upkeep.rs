//! What the node does for its macvlan pods between calls, in passes: releases that were put off, pods that are gone
//! without a DEL, limits that are missing, links that nobody needs, the host's routes to its pods.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::delegation::Delegated;
use super::detach;
use super::holdings::{self, Holding};
use super::limits;
use super::links::{LocalPod, has_host_access};
use super::pod;
use super::segments::{Segments, field, id_of_lease, text};
use crate::attach::blocking;
use crate::attachment::AttachmentId;
use crate::node::Node;

/// A pass is made at least this often, for what nothing tells of.
const INTERVAL: Duration = Duration::from_secs(10);
/// While releases wait for etcd.
const RETRY: Duration = Duration::from_secs(1);
/// What asks for passes comes in swarms.
const SETTLE: Duration = Duration::from_millis(100);

/// Makes passes, for ever.
pub(crate) async fn run(node: Arc<Node>) {
    let mut pause = INTERVAL;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = node.macvlan.keep.notified() => tokio::time::sleep(SETTLE).await,
        }
        if node.macvlan.obstacle().is_some() {
            continue;
        }
        pause = match replay(&node).await {
            Ok(()) => INTERVAL,
            Err(error) => {
                warn!(%error, "releases wait for etcd");
                RETRY
            }
        };
        holdings::restore(&node).await;
        reclaim(&node).await;
        limits::keep(&node).await;
        if let Err(error) = keep_links(&node).await {
            warn!(%error, "cannot keep the links of segments as they should be");
        }
    }
}

/// Carries out the releases that DELs have put off.
async fn replay(node: &Arc<Node>) -> Result<(), tenon_store::Error> {
    let macvlan = &node.macvlan;
    let waiting = macvlan.releases.all::<String>();
    let network = macvlan.segments().network().cloned();
    let Some(network) = network.filter(|_| !waiting.is_empty()) else { return Ok(()) };
    // The watch may lag behind what the last agent, or an unanswered transaction, has written.
    let (leases, _) = node.store.list(&network.leases()).await?;
    macvlan.segments().catch_up(&network, &leases);
    for (id, _) in waiting {
        let Some(_claim) = node.claim(&id) else { continue };
        // An ADD that came meanwhile has taken the note back.
        if macvlan.releases.get::<String>(&id).is_none() {
            continue;
        }
        macvlan.give_back(node, &id).await?;
        match macvlan.releases.remove(&id) {
            Ok(()) => info!(attachment = %id, "gave back what it held"),
            Err(error) => warn!(%error, attachment = %id, "cannot remove the note of a release"),
        }
    }
    Ok(())
}

/// Takes down the attachments whose pod's namespace is gone.
async fn reclaim(node: &Arc<Node>) {
    let mut pods: BTreeSet<(AttachmentId, PathBuf)> = {
        let segments = node.macvlan.segments();
        let pods = segments.held_here().filter_map(|(_, lease)| {
            let id = id_of_lease(text(lease, field::NETWORK)?, lease);
            Some((id, PathBuf::from(text(lease, field::NETNS)?)))
        });
        pods.collect()
    };
    let delegated = node.macvlan.delegated.all::<Delegated>().into_iter();
    pods.extend(delegated.map(|(id, note)| (id, PathBuf::from(note.environment.netns))));
    for (id, netns) in pods {
        if !is_gone(&netns).await {
            continue;
        }
        // Whoever works on it is an ADD or a DEL: then there is nothing to reclaim.
        let Some(_claim) = node.claim(&id) else { continue };
        let still = {
            let segments = node.macvlan.segments();
            let held = segments.held(&id);
            held.iter().any(|(_, lease)| text(lease, field::NETNS).is_some_and(|at| Path::new(at) == netns))
        };
        let noted = node.macvlan.delegated.get::<Delegated>(&id);
        if !still && noted.is_none_or(|note| Path::new(&note.environment.netns) != netns) {
            continue;
        }
        info!(attachment = %id, netns = %netns.display(), "its pod is gone; reclaiming");
        if let Err(error) = detach::detach(node, &id, None).await {
            warn!(%error, attachment = %id, "cannot reclaim");
        }
    }
}

async fn is_gone(netns: &Path) -> bool {
    match blocking(|| pod::is_there(netns)).await {
        Ok(there) => !there,
        Err(error) => {
            warn!(%error, "cannot tell whether a pod is gone");
            false
        }
    }
}

/// Removes links that no pod needs any more, and puts the host's routes to its pods right.
async fn keep_links(node: &Arc<Node>) -> Result<(), tenon_netdev::Error> {
    blocking(|| {
        let macvlan = &node.macvlan;
        macvlan.links.reconcile_host(|| {
            let delegated = macvlan.delegated.all::<Delegated>().into_iter();
            let delegated = delegated.filter(|(_, note)| note.host_access);
            let delegated = delegated.flat_map(|(_, note)| note.local_pods());
            local_pods(&macvlan.segments()).into_iter().chain(delegated).collect()
        })?;
        macvlan.links.remove_unused(|| {
            let delegated = macvlan.delegated.all::<Delegated>().into_iter().map(|(_, note)| note.link);
            let held =
                macvlan.holdings.all::<Holding>().into_iter().filter_map(|(_, holding)| holding.link());
            let segments = macvlan.segments();
            let leased = segments.held_here().filter_map(|(_, lease)| text(lease, field::LINK));
            leased.map(str::to_owned).chain(delegated).chain(held).collect()
        })
    })
    .await
}

/// The pods of this node that the host shall reach.
fn local_pods(segments: &Segments) -> Vec<LocalPod> {
    let open = segments.held_here().filter(|(segment, _)| has_host_access(segment));
    let pod = |lease: &tenon_ipam::Lease| {
        let link = text(lease, field::LINK)?.to_owned();
        Some(LocalPod { link, ip: lease.ip, mac: lease.mac?.bytes() })
    };
    open.filter_map(|(_, lease)| pod(lease)).collect()
}
