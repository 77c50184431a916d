//! The controller's part: leases whose time is over, and those of nodes that are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tenon_ipam::LeaseWrite;
use tenon_store::Compare;
use tracing::{info, warn};

use super::leases::now;
use crate::node::Node;

/// For how long a node has to be without a living agent until its leases are given back. An agent that is only being
/// replaced leaves its pods running, so this is as long as Kubernetes waits before it moves the pods of a node that is
/// lost (`tolerationSeconds` of `node.kubernetes.io/unreachable`, 300 s).
pub(crate) const GONE_NODE_GRACE: Duration = Duration::from_secs(300);
const INTERVAL: Duration = Duration::from_secs(10);
/// Deletions of one round; there is no hurry.
const ENDED_AT_ONCE: usize = 200;

/// Works until it is dropped; `fence` is the condition that this agent is the controller.
pub(crate) async fn run(node: &Node, fence: &Compare) {
    let mut gone: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let writes = decide(node, &mut gone);
        for (segment, writes) in writes {
            if let Err(error) = node.macvlan.write_as_controller(node, &segment, &writes, fence).await {
                warn!(%error, segment, "cannot tidy leases up; going on later");
                break;
            }
        }
    }
}

fn decide(node: &Node, gone: &mut BTreeMap<String, Instant>) -> Vec<(String, Vec<LeaseWrite>)> {
    let mut segments = node.macvlan.segments();
    let mut others = segments.other_nodes();
    others.retain(|name| !segments.is_alive(name));
    gone.retain(|name, _| others.contains(name));
    for name in others {
        gone.entry(name).or_insert_with(Instant::now);
    }
    let given_up = gone.iter().filter(|(_, since)| since.elapsed() >= GONE_NODE_GRACE);
    let given_up: Vec<&String> = given_up.map(|(name, _)| name).collect();
    let mut writes = Vec::new();
    for book in segments.books() {
        let segment = book.segment().name.clone();
        let ended = book.ended(now()).into_iter().take(ENDED_AT_ONCE);
        writes.extend(ended.map(|write| (segment.clone(), vec![write])));
        for name in &given_up {
            let stale = book.stale(name, &BTreeSet::new(), &BTreeSet::new(), now());
            if !stale.is_empty() {
                info!(
                    node = name,
                    segment,
                    attachments = stale.len(),
                    "the node is gone; giving its leases back"
                );
            }
            writes.extend(stale.into_iter().map(|writes| (segment.clone(), writes)));
        }
    }
    writes
}
