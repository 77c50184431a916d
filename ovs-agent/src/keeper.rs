//! Keeps the node as it should be: the bridge and its ports, the gateway, and no more attachments than there are pods.
//!
//! One pass does everything, each step only where something differs, so that the start, a restart of ovs-vswitchd or
//! ovsdb-server, a deleted bridge, and what a dead agent left behind are all the same case.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use openvswitch::ovsdb::{Event, Row};
use tenon_netdev::Netlink;
use tracing::{info, warn};

use crate::attach;
use crate::attachment::{Attachment, LINK_PREFIX};
use crate::bandwidth::Shapers;
use crate::bridge::BridgeError;
use crate::config::Datapath;
use crate::host;
use crate::node::{Node, State};

/// A pass is made at least this often, for what nothing tells of.
const INTERVAL: Duration = Duration::from_secs(10);
/// After a pass that failed.
const RETRY: Duration = Duration::from_millis(200);
/// How often it is told that OVSDB is waited for.
const RECOVERY_NOTICE: Duration = Duration::from_secs(10);
/// Changes of OVSDB come in swarms; a pass waits for the swarm to end.
const SETTLE: Duration = Duration::from_millis(20);

/// Takes the attachments over that the last agent recorded, once OVSDB is there. Before this nothing is done to the
/// overlay's pods or flows.
async fn recover(node: &Node) {
    while let Err(error) = node.bridge.client().wait_connected(RECOVERY_NOTICE).await {
        warn!(%error, "waiting for OVSDB, where this node's pods on the overlay are recorded");
        node.set_node_obstacle(Some(node.without_database()));
    }
    let recorded = node.bridge.recorded().unwrap_or_default();
    let mut state = node.state();
    for attachment in recorded.attachments {
        state.reserve_found(&attachment);
        state.model.attach(attachment);
    }
    drop(state);
    node.set_recovered();
}

/// Recovers, and then makes passes, for ever.
pub(crate) async fn run(node: Arc<Node>) {
    recover(&node).await;
    let mut database = node.bridge.client().changes();
    let mut switch = node.reconciler.synced();
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = node.keep.notified() => {}
            Some(event) = database.next() => {
                if !concerns(&node, &event) {
                    continue;
                }
                tokio::time::sleep(SETTLE).await;
            }
            Ok(()) = switch.changed() => {}
        }
        pause = match pass(&node).await {
            Ok(()) => INTERVAL,
            Err(reason) => {
                node.set_node_obstacle(Some(reason));
                RETRY
            }
        };
    }
}

/// Whether a pass may find something to do after this; what every ADD and DEL does is not of that kind.
fn concerns(node: &Node, event: &Event) -> bool {
    let Event::Updated(rows) = event else { return true };
    rows.iter().any(|change| match (&*change.table, &change.old, &change.new) {
        ("Bridge", None, Some(_)) | ("Bridge", Some(_), None) => true,
        // ovs-vswitchd took a port out of the datapath, or put it in again.
        ("Interface", Some(old), Some(new)) => {
            let ofport = |row: &Row| row.optional_integer("ofport").ok().flatten();
            ofport(old).is_some() && ofport(old) != ofport(new)
        }
        ("Interface", Some(old), None) => node.wants_interface(old),
        _ => false,
    })
}

async fn pass(node: &Arc<Node>) -> Result<(), String> {
    let say = |error: &dyn std::fmt::Display| error.to_string();
    if !node.bridge.client().connected() {
        return Err(node.without_database());
    }
    let (network, mtu) = match &node.state().place {
        Some(place) => (place.network.clone(), place.mtu),
        // Why is for the cluster's follower to say.
        None => return Ok(()),
    };
    let datapath = node.config.ovs.datapath;
    let shapers = keep_shapers(node, mtu, datapath).await?;
    let Some(ports) = node.state().place.as_ref().map(|place| place.ports(shapers.is_some())) else {
        return Ok(());
    };
    node.bridge.ensure(&ports).await.map_err(|e| say(&e))?;
    keep_ports(node).await.map_err(|e| say(&e))?;
    tokio::task::spawn_blocking(move || host::ensure(&network, ports.gateway_mac, ports.mtu, datapath))
        .await
        .map_err(|e| say(&e))?
        .map_err(|e| say(&e))?;
    if let Some(shapers) = shapers {
        keep_limits(node, shapers, mtu).await?;
    }
    reclaim(node).await?;
    if node.reconciler.synced().borrow().is_none() {
        return Err("the flows are not in the switch yet: is ovs-vswitchd running?".to_owned());
    }
    node.bridge.end_flow_restore().await.map_err(|e| say(&e))?;
    node.set_node_obstacle(None);
    Ok(())
}

/// Makes the shapers, or puts them right. A kernel that has none can still attach pods without limits.
async fn keep_shapers(node: &Node, mtu: u32, datapath: Datapath) -> Result<Option<Shapers>, String> {
    let made = tokio::task::spawn_blocking(move || Shapers::ensure(mtu, datapath))
        .await
        .map_err(|e| e.to_string())?;
    let (made, renewed) = match made {
        Ok((shapers, renewed)) => (Ok(shapers), renewed),
        Err(error) => (Err(error.to_string()), Vec::new()),
    };
    {
        let mut state = node.state();
        if let Err(error) = &made
            && state.shapers.as_ref() != Some(&made)
        {
            warn!(error, "pods' bandwidth cannot be limited");
        }
        state.shapers = Some(made.clone());
    }
    if !renewed.is_empty() {
        // They are added again with the bridge's other ports, but only when ovs-vswitchd has let go of the old links: of
        // a port that goes and comes at once it sees no change.
        node.bridge.remove(&renewed).await.map_err(|e| e.to_string())?;
        wait_until_gone(node, &renewed).await;
    }
    Ok(made.ok())
}

/// Waits, not for ever, until the switch has none of these ports.
async fn wait_until_gone(node: &Node, names: &[String]) {
    const TRIES: u32 = 50;
    let Some(connection) = node.reconciler.synced().borrow().clone() else { return };
    for _ in 0..TRIES {
        match connection.port_desc().await {
            Ok(ports) if ports.iter().any(|port| names.contains(&port.name)) => {
                tokio::time::sleep(SETTLE).await
            }
            _ => return,
        }
    }
}

/// Puts back limits that have gone missing, and removes those of pods that are gone.
async fn keep_limits(node: &Node, shapers: Shapers, mtu: u32) -> Result<(), String> {
    let (limits, busy) = node.state().limits();
    let wrong = tokio::task::spawn_blocking(move || shapers.reconcile(&limits, &busy, mtu)).await;
    let wrong = wrong.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    if wrong > 0 {
        info!(limits = wrong, "put bandwidth limits right");
    }
    Ok(())
}

/// Makes the ports in OVSDB and the attachments one and the same.
async fn keep_ports(node: &Node) -> Result<(), BridgeError> {
    let Some(recorded) = node.bridge.recorded() else { return Ok(()) };
    let have: HashSet<_> = recorded.attachments.iter().map(|a| a.id.clone()).collect();
    let mut unwanted = recorded.unreadable;
    let (mut moved, mut left) = (Vec::new(), Vec::new());
    let lost: Vec<Attachment> = {
        let state = node.state();
        for found in recorded.attachments {
            match state.model.attachment(&found.id) {
                _ if state.is_busy(&found.id) => {}
                Some(known) if known.ofport != found.ofport => moved.push(found),
                Some(_) => {}
                None => unwanted.push(found.id.link_name()),
            }
        }
        left.extend(state.leaving.keys().filter(|id| !state.is_busy(id)).cloned());
        state
            .model
            .attachments()
            .filter(|a| !have.contains(&a.id) && !state.is_busy(&a.id))
            .cloned()
            .collect()
    };
    for attachment in moved {
        info!(attachment = %attachment.id, ofport = attachment.ofport, "Open vSwitch gave it another port");
        node.change(|state| {
            state.reserve_found(&attachment);
            state.model.attach(attachment)
        });
    }
    if !lost.is_empty() {
        info!(ports = lost.len(), "OVSDB has lost pods' ports; putting them back");
        node.bridge.restore(&lost).await?;
    }
    if !unwanted.is_empty() {
        info!(ports = ?unwanted, "removing ports that no pod has");
        node.bridge.remove(&unwanted).await?;
    }
    let mut state = node.state();
    left.iter().for_each(|id| attach::left(&mut state, id));
    Ok(())
}

/// Detaches attachments whose pod's namespace is gone, which took the link with it, and deletes links that belong to
/// no attachment.
async fn reclaim(node: &Arc<Node>) -> Result<(), String> {
    let before = node.state().link_names();
    let links = tokio::task::spawn_blocking(|| Netlink::open()?.links()).await.map_err(|e| e.to_string())?;
    let links: HashSet<String> =
        links.map_err(|e| e.to_string())?.into_iter().map(|link| link.name).collect();
    let is_gone = |state: &State, attachment: &Attachment| {
        !state.is_busy(&attachment.id)
            && before.contains(&attachment.id.link_name())
            && !links.contains(&attachment.id.link_name())
    };
    let gone: Vec<Attachment> = {
        let state = node.state();
        state.model.attachments().filter(|a| is_gone(&state, a)).cloned().collect()
    };
    for attachment in gone {
        let Some(_claim) = node.claim(&attachment.id) else { continue };
        let still = node.state().model.attachment(&attachment.id).is_some();
        if still {
            info!(attachment = %attachment.id, "its link is gone, and so is its pod; reclaiming");
            attach::detach(node, attachment).await;
        }
    }
    if !node.reaper.is_busy() {
        let after = node.state().link_names();
        for link in links.into_iter().filter(|l| is_pod_link(l) && !before.contains(l) && !after.contains(l))
        {
            warn!(link, "belongs to no pod; deleting");
            node.reaper.doom(link);
        }
    }
    Ok(())
}

fn is_pod_link(name: &str) -> bool {
    name.strip_prefix(LINK_PREFIX)
        .is_some_and(|rest| rest.len() == 10 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}
