//! The node as the agent's parts share it: the model with its attachments, the pools that addresses and OpenFlow ports
//! come from, and whether the node is ready.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use openvswitch::openflow::Mac;
use openvswitch::ovsdb::Row;
use tenon_cni::{Bandwidth, Error};
use tenon_ipam::NodePool;
use tenon_store::{NetworkKeys, Store};
use tenon_tenant::Vni;
use tokio::sync::{Notify, watch};

use crate::attachment::{Attachment, AttachmentId};
use crate::bandwidth::Shapers;
use crate::bridge::{Bridge, NODE_PORTS, NodePorts};
use crate::config::{Config, Datapath};
use crate::macvlan::Macvlan;
use crate::model::{Changes, Model, NodeNetwork};
use crate::pipeline::{self, POD_PORTS};
use crate::reaper::Reaper;
use crate::reconciler::{Committed, Reconciler};

/// How long a DEL waits for an ADD of the same attachment, which has time limits of its own, to end.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// What the agent's parts share.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) bridge: Bridge,
    pub(crate) reconciler: Reconciler,
    pub(crate) reaper: Reaper,
    pub(crate) store: Store,
    pub(crate) macvlan: Macvlan,
    state: Mutex<State>,
    /// Raised when a tenant appears or moves.
    pub(crate) tenants_changed: watch::Sender<()>,
    /// Raised when what the keeper keeps may have changed.
    pub(crate) keep: Notify,
    freed: Notify,
    obstacles: watch::Sender<Obstacles>,
    /// Whether the model has the attachments that the last agent recorded.
    recovered: watch::Sender<bool>,
}

/// What keeps pods from being attached, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Obstacles {
    cluster: Option<String>,
    node: Option<String>,
}

impl Obstacles {
    fn is_ready(&self) -> bool {
        self.cluster.is_none() && self.node.is_none()
    }
}

/// What changes together, under one lock that is never held across an await.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) model: Model,
    /// The node's place in the network, once known.
    pub(crate) place: Option<Place>,
    ofports: BTreeSet<u16>,
    last_ofport: u16,
    /// Attachments that an ADD or DEL works on: nobody else may touch them.
    busy: HashSet<AttachmentId>,
    /// Detached, but still recorded in OVSDB: their addresses and ports are not free yet.
    pub(crate) leaving: HashMap<AttachmentId, Attachment>,
    /// Once made, or why they cannot be.
    pub(crate) shapers: Option<Result<Shapers, String>>,
}

/// The node's place in the cluster network and what follows from it.
pub(crate) struct Place {
    pub(crate) network: NodeNetwork,
    pub(crate) keys: NetworkKeys,
    pub(crate) pool: NodePool,
    pub(crate) mtu: u32,
}

impl Place {
    /// What the node's own ports look like.
    pub(crate) fn ports(&self, shapers: bool) -> NodePorts {
        NodePorts {
            shapers,
            gateway_mac: pipeline::gateway_mac(&self.network),
            mtu: self.mtu,
            vxlan_port: self.network.vxlan_port,
        }
    }
}

/// What a pod asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    pub(crate) ip: Option<std::net::IpAddr>,
    pub(crate) mac: Option<Mac>,
}

impl Node {
    pub(crate) fn new(
        config: Config,
        bridge: Bridge,
        reconciler: Reconciler,
        reaper: Reaper,
        store: Store,
        macvlan: Macvlan,
    ) -> Arc<Self> {
        Arc::new(Self {
            config,
            bridge,
            reconciler,
            reaper,
            store,
            macvlan,
            state: Mutex::default(),
            tenants_changed: watch::Sender::new(()),
            keep: Notify::new(),
            freed: Notify::new(),
            recovered: watch::Sender::new(false),
            obstacles: watch::Sender::new(Obstacles {
                cluster: Some("etcd has not answered yet".to_owned()),
                node: Some("the bridge has not been looked at yet".to_owned()),
            }),
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held would be a defect; what the state holds is still the best there is.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Changes the model and has the flows follow, in the same order: the lock is held across both.
    pub(crate) fn change(&self, change: impl FnOnce(&mut State) -> Changes) {
        let mut state = self.state();
        let changes = change(&mut state);
        self.reconciler.change(changes);
    }

    /// As [`Self::change`]; what is returned tells when the flows are in the switch.
    pub(crate) fn commit(&self, change: impl FnOnce(&mut State) -> Changes) -> Committed {
        let mut state = self.state();
        let changes = change(&mut state);
        self.reconciler.commit(changes)
    }

    pub(crate) fn needs_checksums(&self) -> bool {
        self.config.ovs.datapath == Datapath::Netdev
    }

    /// Why pods cannot be attached now, for people; `None`: they can.
    pub(crate) fn obstacle(&self) -> Option<String> {
        let obstacles = self.obstacles.borrow();
        obstacles.cluster.clone().or_else(|| obstacles.node.clone())
    }

    /// Says what stands in the way in the cluster: etcd, the configuration, the registration.
    pub(crate) fn set_cluster_obstacle(&self, obstacle: Option<String>) {
        self.set_obstacle(obstacle, |obstacles| &mut obstacles.cluster);
    }

    /// Says what stands in the way on the node: Open vSwitch, the kernel.
    pub(crate) fn set_node_obstacle(&self, obstacle: Option<String>) {
        self.set_obstacle(obstacle, |obstacles| &mut obstacles.node);
    }

    fn set_obstacle(
        &self,
        obstacle: Option<String>,
        part: impl FnOnce(&mut Obstacles) -> &mut Option<String>,
    ) {
        self.obstacles.send_if_modified(|obstacles| {
            let was_ready = obstacles.is_ready();
            let part = part(obstacles);
            if *part == obstacle {
                return false;
            }
            if let Some(obstacle) = &obstacle {
                tracing::warn!(obstacle, "not ready");
            }
            *part = obstacle;
            if obstacles.is_ready() && !was_ready {
                tracing::info!("ready");
            }
            true
        });
    }

    /// Says that the model has the attachments that the last agent recorded.
    pub(crate) fn set_recovered(&self) {
        self.recovered.send_replace(true);
    }

    pub(crate) fn is_recovered(&self) -> bool {
        *self.recovered.borrow()
    }

    /// Why nothing can be done without OVSDB, for people.
    pub(crate) fn without_database(&self) -> String {
        let db = &self.config.ovs.db;
        format!(
            "OVSDB at {db} cannot be reached, where this node's pods on the overlay are recorded: is ovsdb-server running?"
        )
    }

    /// Waits until the model has the attachments that the last agent recorded.
    pub(crate) async fn recovered(&self) {
        // The sender is a field of self.
        let _ = self.recovered.subscribe().wait_for(|recovered| *recovered).await;
    }

    /// Claims an attachment for an ADD or DEL; the claim ends when what is returned is dropped.
    pub(crate) fn claim(self: &Arc<Self>, id: &AttachmentId) -> Option<Claim> {
        self.state().busy.insert(id.clone()).then(|| Claim { node: self.clone(), id: id.clone() })
    }

    /// As [`Self::claim`], waiting for who has it now.
    pub(crate) async fn claim_when_free(self: &Arc<Self>, id: &AttachmentId) -> Result<Claim, Error> {
        let wait = async {
            loop {
                let freed = self.freed.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                if let Some(claim) = self.claim(id) {
                    return claim;
                }
                freed.await;
            }
        };
        tokio::time::timeout(BUSY_TIMEOUT, wait)
            .await
            .map_err(|_| Error::try_again(format!("{id}: another call for it has not ended yet")))
    }

    /// Whether an Interface row is one that there shall be: of the node itself, or of a pod that is attached.
    pub(crate) fn wants_interface(&self, row: &Row) -> bool {
        let Ok(name) = row.string("name") else { return false };
        let external_ids = row.map("external_ids").unwrap_or_default();
        match Attachment::from_external_ids(name, &external_ids, 0) {
            Ok(attachment) => self.state().model.attachment(&attachment.id).is_some(),
            Err(_) => NODE_PORTS.contains(&name),
        }
    }

    /// The VNI of `tenant`, if it has one now.
    pub(crate) fn vni(&self, tenant: &str) -> Option<Vni> {
        self.state().model.vni(tenant)
    }
}

/// An attachment that nobody else touches meanwhile.
pub(crate) struct Claim {
    node: Arc<Node>,
    id: AttachmentId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.node.state().busy.remove(&self.id);
        self.node.freed.notify_waiters();
    }
}

impl State {
    /// Whether an ADD or DEL works on the attachment.
    pub(crate) fn is_busy(&self, id: &AttachmentId) -> bool {
        self.busy.contains(id)
    }

    /// Whether a link or port of this name belongs to an attachment that is there or being worked on.
    pub(crate) fn link_names(&self) -> HashSet<String> {
        let ids = self.model.attachments().map(|a| &a.id).chain(&self.busy).chain(self.leaving.keys());
        ids.map(AttachmentId::link_name).collect()
    }

    /// Takes an address, a MAC and an OpenFlow port for a new attachment.
    pub(crate) fn reserve(&mut self, wish: &Wish) -> Result<(Ipv4Addr, Mac, u16), Error> {
        let Some(place) = &mut self.place else {
            return Err(Error::try_again("the node has no subnet yet"));
        };
        if let Some(mac) = wish.mac
            && let Some(holder) = self.model.attachments().find(|a| a.mac == mac)
        {
            return Err(Error::try_again(format!("MAC {mac} is held by {}", describe(holder))));
        }
        let ip = match wish.ip {
            None => place.pool.allocate().map_err(|error| Error::try_again(error.to_string()))?,
            Some(ip) => place.pool.allocate_specific(ip).map_err(|error| {
                let holder = self.model.attachments().find(|a| ip == a.ip).map(describe);
                let holder = holder.map(|holder| format!(" ({holder})")).unwrap_or_default();
                Error::invalid_config(format!("the requested address {ip} is not to be had: {error}{holder}"))
            })?,
        };
        let Some(ofport) = next_free(&self.ofports, self.last_ofport) else {
            place.pool.release(ip);
            return Err(Error::try_again("every OpenFlow port is in use"));
        };
        self.ofports.insert(ofport);
        self.last_ofport = ofport;
        Ok((ip, wish.mac.unwrap_or(Mac(tenon_ipam::mac_of(ip))), ofport))
    }

    /// Takes the address and port of an attachment that was found recorded.
    pub(crate) fn reserve_found(&mut self, attachment: &Attachment) {
        self.ofports.insert(attachment.ofport);
        self.last_ofport = self.last_ofport.max(attachment.ofport);
        if let Some(place) = &mut self.place
            && let Err(error) = place.pool.reserve(attachment.ip.into())
        {
            tracing::error!(%error, attachment = %attachment.id, "a recorded pod has an address that is not this node's; delete the pod");
        }
    }

    /// The shapers, for a pod that has a limit.
    pub(crate) fn shapers(&self) -> Result<Shapers, Error> {
        match &self.shapers {
            Some(Ok(shapers)) => Ok(*shapers),
            Some(Err(reason)) => {
                Err(Error::agent_internal(format!("this node cannot limit bandwidth: {reason}")))
            }
            None => Err(Error::try_again("the node's shapers have not been made yet")),
        }
    }

    /// The limits of the attachments that nobody works on, by OpenFlow port, and the ports of all others.
    pub(crate) fn limits(&self) -> (BTreeMap<u16, Bandwidth>, BTreeSet<u16>) {
        let settled = self.model.attachments().filter(|a| !self.is_busy(&a.id));
        let limits: BTreeMap<_, _> = settled.map(|a| (a.ofport, a.bandwidth)).collect();
        let busy = self.ofports.iter().filter(|ofport| !limits.contains_key(ofport)).copied().collect();
        (limits, busy)
    }

    /// Gives back what an attachment has.
    pub(crate) fn release(&mut self, attachment: &Attachment) {
        self.ofports.remove(&attachment.ofport);
        if let Some(place) = &mut self.place {
            place.pool.release(attachment.ip);
        }
    }
}

/// A pod, for people.
fn describe(attachment: &Attachment) -> String {
    format!("pod {}/{}, {}", attachment.tenant, attachment.pod, attachment.id)
}

/// The first free port after the last that was given, so that a port is not reused at once.
fn next_free(used: &BTreeSet<u16>, last: u16) -> Option<u16> {
    let free = |port: &u16| !used.contains(port);
    let mut after_last = POD_PORTS.filter(|port| *port > last);
    after_last.find(free).or_else(|| POD_PORTS.into_iter().find(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_given_in_turn_and_never_twice() {
        let mut used = BTreeSet::new();
        assert_eq!(next_free(&used, 0), Some(3));
        used.extend([3, 4]);
        assert_eq!(next_free(&used, 4), Some(5));
        used.remove(&3);
        assert_eq!(next_free(&used, 4), Some(5), "3 was just released");
        assert_eq!(next_free(&used, 0x7fff), Some(3), "round again");
        used.extend(POD_PORTS);
        assert_eq!(next_free(&used, 7), None);
    }
}
