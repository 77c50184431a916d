//! The agent's side of etcd: it registers the node, and keeps the [model](crate::model) as the settled copies have it.
//!
//! Nodes apply what the controller has settled and never what people edit, so that an edit moves no packet before it
//! has been judged. A node says that it lives by a key that ends with its etcd lease; another node with the same
//! underlay address sees it and stays out.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tenon_ipam::{
    Claim, ClusterNetwork, NodePool, NodeRecord, PluginName, Reason, Registered, SettledSubnet, claim,
};
use tenon_store::{Change, Compare, Event, Key, KeyValue, Keys, NetworkKeys, Record, Session, Write};
use tenon_tenant::{Settled, Vni};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::controller;
use crate::host;
use crate::model::{Changes, NodeNetwork};
use crate::node::{Node, Place};

/// How long a node that died is taken to be alive.
const ALIVE_TTL: Duration = Duration::from_secs(10);
/// After how long a node that was refused a subnet asks again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
/// How long the farewell at the end may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// The value of `/agents/<HostIP>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct AgentRecord {
    pub(crate) host: String,
}

/// What etcd says, as far as this node needs it.
struct View {
    cluster: ClusterNetwork,
    network: NetworkKeys,
    registered: BTreeMap<Ipv4Addr, Registered>,
    agents: BTreeMap<Ipv4Addr, AgentRecord>,
    tenants: HashMap<String, Vni>,
    /// The revisions of the keys that the node itself writes by compare-and-swap.
    revisions: HashMap<String, i64>,
}

/// Follows etcd until `stop`, then says good-bye, so that others need not wait for the lease to end.
pub(crate) async fn follow(node: Arc<Node>, keys: Keys, underlay: Ipv4Addr, mut stop: watch::Receiver<bool>) {
    let mut follower = Follower {
        session: Session::open(&node.store, ALIVE_TTL),
        node,
        keys,
        underlay,
        lease: None,
        announced: None,
        controller: None,
        stop: stop.clone(),
        ask_again: None,
    };
    tokio::select! {
        // An error means that who could stop us is gone.
        _ = stop.wait_for(|stop| *stop) => {}
        () = follower.run() => {}
    }
    let farewell = async {
        if let Some((_, controller)) = follower.controller.take() {
            let _ = controller.await;
        }
        if let Err(error) = follower.session.close().await {
            warn!(%error, "cannot end the lease; it ends by itself");
        }
    };
    let _ = tokio::time::timeout(FAREWELL_TIMEOUT, farewell).await;
}

struct Follower {
    node: Arc<Node>,
    keys: Keys,
    underlay: Ipv4Addr,
    session: Session,
    lease: Option<i64>,
    /// The lease with which the node has said that it lives.
    announced: Option<i64>,
    /// The task that stands for election in the network of that name.
    controller: Option<(String, JoinHandle<()>)>,
    stop: watch::Receiver<bool>,
    /// When a refused registration is tried again.
    ask_again: Option<Instant>,
}

impl Follower {
    async fn run(&mut self) {
        loop {
            let mut watch = self.node.store.watch(self.keys.all());
            let mut view: Option<View> = None;
            let mut placed = false;
            loop {
                let event = tokio::select! {
                    event = watch.next() => Some(event),
                    lease = self.session.granted() => {
                        self.lease = Some(lease);
                        None
                    }
                    () = self.node.recovered(), if view.is_some() && !placed && !self.node.is_recovered() => None,
                    () = tokio::time::sleep(RETRY), if view.is_some() && !placed => None,
                };
                match event {
                    Some(Event::Snapshot { kvs, revision }) => {
                        view = self.look(kvs, revision);
                        placed = false;
                    }
                    Some(Event::Changes { changes, .. }) => {
                        let config = self.keys.config();
                        if view.is_none() || changes.iter().any(|change| change.key() == config) {
                            break;
                        }
                        if let Some(view) = &mut view {
                            self.apply(view, changes);
                        }
                    }
                    None => {}
                }
                if let Some(view) = &mut view
                    && (!placed || self.announced != self.lease)
                {
                    placed = self.place(view).await;
                }
            }
        }
    }

    /// Makes the view from everything there is.
    fn look(&mut self, kvs: Vec<KeyValue>, revision: i64) -> Option<View> {
        let config_key = self.keys.config();
        let Some(config) = kvs.iter().find(|kv| kv.key == config_key) else {
            self.not_ready(format!("{config_key} is not in etcd: the network has not been set up yet"));
            return None;
        };
        let cluster = match ClusterNetwork::parse(&config.value) {
            Ok(cluster) => cluster,
            Err(error) => {
                self.not_ready(format!("{config_key}: {error}"));
                return None;
            }
        };
        let network = match self.keys.network(&cluster.name) {
            Ok(network) => network,
            Err(error) => {
                self.not_ready(format!("{config_key}: {error}"));
                return None;
            }
        };
        self.node.macvlan.replace(&self.keys, &cluster.name, network.clone(), &kvs, revision);
        self.stand_for_election(&cluster.name, &network);
        let mut view = View {
            cluster,
            network,
            registered: BTreeMap::new(),
            agents: BTreeMap::new(),
            tenants: HashMap::new(),
            revisions: HashMap::new(),
        };
        for kv in kvs {
            view.take(&self.keys, &Change::Put(kv));
        }
        Some(view)
    }

    fn stand_for_election(&mut self, name: &str, network: &NetworkKeys) {
        if self.controller.as_ref().is_some_and(|(of, task)| of == name && !task.is_finished()) {
            return;
        }
        if let Some((_, other)) = self.controller.take() {
            other.abort();
        }
        let task = controller::run(
            self.node.clone(),
            self.keys.clone(),
            network.clone(),
            name.to_owned(),
            self.stop.clone(),
        );
        self.controller = Some((name.to_owned(), tokio::spawn(task)));
    }

    /// Takes in what has changed; all of it reaches the switch in one bundle.
    fn apply(&self, view: &mut View, changes: Vec<Change>) {
        self.node.macvlan.take_in(&self.keys, &view.cluster.name, &changes);
        let mut tenants = false;
        let effects: Vec<Effect> =
            changes.iter().filter_map(|change| view.take(&self.keys, change)).collect();
        self.node.change(|state| {
            let mut all = Changes::new();
            for effect in effects {
                all.extend(match effect {
                    Effect::Tenant(tenant, vni) => {
                        tenants = true;
                        state.model.set_tenant(&tenant, vni)
                    }
                    Effect::Node(ip, _) if ip == self.underlay => Changes::new(),
                    Effect::Node(ip, subnet) => {
                        // A node that is changing its address may see its own subnet under the other one.
                        let own = state.place.as_ref().map(|place| place.network.subnet);
                        state.model.set_vtep(ip, subnet.filter(|subnet| Some(*subnet) != own))
                    }
                });
            }
            all
        });
        if tenants {
            self.node.tenants_changed.send_replace(());
        }
        let own = view.registered.get(&self.underlay).and_then(|own| own.settled.as_ref());
        if own.is_none() && self.node.state().place.is_some() {
            let key = view.network.subnet(&self.underlay.to_string()).unwrap_or_default();
            self.not_ready(format!("{key} was deleted, so other nodes drop this one's packets; restart the agent to register again"));
        }
    }

    /// Says that the node lives, registers it, and takes its place in the network. False: not yet.
    async fn place(&mut self, view: &mut View) -> bool {
        let host = self.node.config.node.clone();
        if let Some(other) = view.agents.get(&self.underlay).filter(|other| other.host != host) {
            self.not_ready(format!(
                "the underlay address {} is in use by node {:?}, which is alive: give this node another (node.ip) or stop the other",
                self.underlay, other.host
            ));
            return false;
        }
        if !self.announce(view, &host).await {
            return false;
        }
        match claim(&view.registered, &host, self.underlay) {
            Claim::Held(settled) => self.settle(view, settled).await,
            Claim::Waiting => {
                self.not_ready("waiting for the controller to give this node a subnet".to_owned());
                false
            }
            Claim::Refused { error, writes } => {
                self.not_ready(format!("the controller gives this node no subnet: {error}"));
                // Asking at once would go round in circles with the controller.
                match self.ask_again {
                    Some(when) if when <= Instant::now() => {
                        self.ask_again = None;
                        self.register(view, writes).await;
                    }
                    Some(_) => {}
                    None => self.ask_again = Some(Instant::now() + ASK_AGAIN),
                }
                false
            }
            Claim::Write { reason, writes } => {
                if self.node.state().place.is_some() && matches!(reason, Reason::Register) {
                    // An admin has removed the node while it runs; that is respected until it is started again.
                    return true;
                }
                info!(?reason, "registering");
                self.register(view, writes).await;
                false
            }
        }
    }

    /// Puts the key that says that this node lives.
    async fn announce(&mut self, view: &mut View, host: &str) -> bool {
        let Some(lease) = self.lease else {
            self.not_ready("etcd cannot be reached".to_owned());
            return false;
        };
        if self.announced == Some(lease) {
            return true;
        }
        let Ok(key) = view.network.agent(&self.underlay.to_string()) else { return false };
        let record = serde_json::to_vec(&AgentRecord { host: host.to_owned() })
            .expect("a struct with one text always serialises");
        let known = view.revisions.get(&key).copied().unwrap_or(0);
        let compare = Compare::ModRevision(key.clone(), known);
        match self.node.store.txn(&[compare], &[Write::put_leased(key, record, lease)]).await {
            Ok(outcome) if outcome.applied() => {
                self.announced = Some(lease);
                true
            }
            // Somebody else wrote it; the watch tells who, and the next try knows.
            Ok(_) => false,
            Err(error) => {
                self.not_ready(format!("cannot say that this node lives: {error}"));
                false
            }
        }
    }

    async fn register(&self, view: &View, writes: Vec<tenon_ipam::Write>) {
        let (mut compares, mut puts) = (Vec::new(), Vec::new());
        for write in writes {
            let key = match write.key {
                tenon_ipam::Key::Record(ip) => view.network.subnet(&ip.to_string()),
                tenon_ipam::Key::Settled(ip) => view.network.settled_subnet(&ip.to_string()),
            };
            let Ok(key) = key else { continue };
            let known = view.revisions.get(&key).copied().unwrap_or(0);
            compares.push(Compare::ModRevision(key.clone(), known));
            match write.value {
                Some(value) => puts.push(Write::put(key, value)),
                None if known != 0 => puts.push(Write::delete(key)),
                None => {}
            }
        }
        // A conflict shows in the watch, and the next try knows.
        if let Err(error) = self.node.store.txn(&compares, &puts).await {
            self.not_ready(format!("cannot register this node: {error}"));
        }
    }

    /// The node has its subnet: from here on it forwards.
    async fn settle(&self, view: &View, own: SettledSubnet) -> bool {
        if !self.node.is_recovered() {
            // The flows are made for the pods there are; without knowing them it would cut them off.
            self.not_ready(self.node.without_database());
            return false;
        }
        let underlay = self.underlay;
        let mtu = match tokio::task::spawn_blocking(move || host::pod_mtu(underlay)).await {
            Ok(Ok(mtu)) => mtu,
            Ok(Err(error)) => {
                self.not_ready(error.to_string());
                return false;
            }
            Err(error) => {
                self.not_ready(error.to_string());
                return false;
            }
        };
        let last = self.node.bridge.last_address();
        let mut state = self.node.state();
        let pool = match state.place.take() {
            Some(place) if place.pool.subnet() == own.subnet => place.pool,
            _ => match NodePool::new(own.subnet) {
                Ok(mut pool) => {
                    pool.set_last(last);
                    pool
                }
                Err(error) => {
                    drop(state);
                    self.not_ready(error.to_string());
                    return false;
                }
            },
        };
        let network = NodeNetwork {
            network: view.cluster.network,
            subnet: own.subnet,
            gateway: pool.gateway(),
            vxlan_port: view.cluster.vxlan_port,
            single_tenant: view.cluster.plugin_name == PluginName::Subnet,
        };
        state.place = Some(Place { network: network.clone(), keys: view.network.clone(), pool, mtu });
        let found: Vec<_> = state.model.attachments().cloned().collect();
        for attachment in &found {
            state.reserve_found(attachment);
        }
        let everything =
            state.model.replace(network, view.tenants.clone(), view.vteps(self.underlay, own.subnet));
        self.node.reconciler.replace(everything);
        drop(state);
        info!(subnet = %own.subnet, mtu, pods = found.len(), "this node's place in the network");
        self.node.set_cluster_obstacle(None);
        self.node.tenants_changed.send_replace(());
        self.node.keep.notify_one();
        true
    }

    fn not_ready(&self, reason: String) {
        self.node.set_cluster_obstacle(Some(reason));
    }
}

/// What a change of a key means for the model.
enum Effect {
    Tenant(String, Option<Vni>),
    Node(Ipv4Addr, Option<Ipv4Net>),
}

impl View {
    /// Takes one change in.
    fn take(&mut self, keys: &Keys, change: &Change) -> Option<Effect> {
        let key = change.key();
        let Some(Key::Of { network, record }) = keys.parse(key) else { return None };
        if network != self.cluster.name {
            return None;
        }
        let value = match change {
            Change::Put(kv) => Some(kv),
            Change::Deleted { .. } => None,
        };
        match record {
            Record::SettledTenant(tenant) => {
                let vni = match value.map(|kv| Settled::parse(tenant, &kv.value)) {
                    Some(Ok(settled)) => Some(settled.net_id()),
                    Some(Err(error)) => {
                        error!(%error, "a settled copy cannot be read; the tenant's pods are cut off");
                        None
                    }
                    None => None,
                };
                match vni {
                    Some(vni) => self.tenants.insert(tenant.to_owned(), vni),
                    None => self.tenants.remove(tenant),
                };
                Some(Effect::Tenant(tenant.to_owned(), vni))
            }
            Record::SettledSubnet(text) => {
                self.note_revision(key, value);
                let ip = text.parse().ok()?;
                let settled = match value.map(|kv| SettledSubnet::parse(text, &kv.value)) {
                    Some(Ok(settled)) => Some(settled),
                    Some(Err(error)) => {
                        error!(%error, "a settled copy cannot be read; the node is cut off");
                        None
                    }
                    None => None,
                };
                let subnet = settled.as_ref().map(|settled| settled.subnet);
                self.registered.entry(ip).or_default().settled = settled;
                Some(Effect::Node(ip, subnet))
            }
            Record::Subnet(text) => {
                self.note_revision(key, value);
                let ip = text.parse().ok()?;
                self.registered.entry(ip).or_default().record =
                    value.and_then(|kv| NodeRecord::parse(text, &kv.value).ok());
                None
            }
            Record::Agent(text) => {
                self.note_revision(key, value);
                let ip = text.parse().ok()?;
                match value.and_then(|kv| serde_json::from_slice(&kv.value).ok()) {
                    Some(agent) => self.agents.insert(ip, agent),
                    None => self.agents.remove(&ip),
                };
                None
            }
            _ => None,
        }
    }

    fn note_revision(&mut self, key: &str, value: Option<&KeyValue>) {
        match value {
            Some(kv) => self.revisions.insert(key.to_owned(), kv.mod_revision),
            None => self.revisions.remove(key),
        };
    }

    /// The other nodes. A node that is just changing its address may be there under both.
    fn vteps(&self, own_ip: Ipv4Addr, own_subnet: Ipv4Net) -> BTreeMap<Ipv4Addr, Ipv4Net> {
        let others =
            self.registered.iter().filter_map(|(ip, node)| Some((*ip, node.settled.as_ref()?.subnet)));
        others.filter(|(ip, subnet)| *ip != own_ip && *subnet != own_subnet).collect()
    }
}
