//! The controller: the one agent of the cluster that answers the admins' edits.
//!
//! Every agent stands for election. The leader reads everything, plans an answer to every record
//! ([`tenon_tenant::plan`], [`tenon_ipam::plan_subnet`]) and writes it by compare-and-swap, fenced by its election key,
//! so that a leader that was deposed without knowing it writes nothing. Its memory is derived from the store; when a
//! write does not go as planned it is thrown away and read again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tenon_ipam::{ClusterNetwork, SettledSubnet, SubnetPlan, Subnets, plan_subnet};
use tenon_store::{
    Change, Compare, Election, Event, Key, KeyValue, Keys, Leadership, NetworkKeys, Record, Store, Write,
};
use tenon_tenant::{Edit, Plan, Settled, Snapshot, Vni, plan};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::macvlan::tidy;
use crate::node::Node;

/// Writes of one transaction; etcd allows 128 operations and as many conditions (`--max-txn-ops`).
const WRITES_PER_TRANSACTION: usize = 100;
const RETRY: Duration = Duration::from_millis(200);

/// Stands for election and answers edits while elected, until `stop`; then the next one is elected at once.
pub(crate) async fn run(
    node: Arc<Node>,
    keys: Keys,
    network: NetworkKeys,
    name: String,
    mut stop: watch::Receiver<bool>,
) {
    let election = Election::new(&node.store, network.controller(), node.config.node.clone());
    loop {
        let leadership = tokio::select! {
            leadership = election.campaign() => leadership,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        info!("elected controller");
        let lost = leadership.lost();
        let controller = Controller {
            store: &node.store,
            keys: &keys,
            network: &network,
            name: &name,
            leadership: &leadership,
        };
        let stopped = tokio::select! {
            () = lost => false,
            () = controller.rule() => false,
            () = tidy::run(&node, leadership.fence()) => false,
            _ = stop.wait_for(|stop| *stop) => true,
        };
        if !stopped {
            warn!("no longer controller");
            continue;
        }
        if let Err(error) = leadership.resign().await {
            warn!(%error, "cannot resign; another is elected when the lease ends");
        }
        return;
    }
}

struct Controller<'a> {
    store: &'a Store,
    keys: &'a Keys,
    network: &'a NetworkKeys,
    name: &'a str,
    leadership: &'a Leadership,
}

/// What was given out last, so that a freed VNI or subnet is not given out again soon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Cursors {
    #[serde(rename = "NetID", skip_serializing_if = "Option::is_none")]
    net_id: Option<Vni>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet: Option<Ipv4Net>,
}

/// What the leader knows: all of it is in the store too.
struct Memory {
    tenants: Snapshot,
    subnets: Subnets,
    /// The revision at which this leader last wrote a node's settled copy: older news of it is its own echo.
    settled_at: HashMap<String, i64>,
}

/// Why the memory is thrown away and read again.
enum Reread {
    /// Somebody else wrote meanwhile, or a write may or may not have been applied.
    Overtaken,
    Failed(tenon_store::Error),
    /// The cluster's configuration is another now.
    Reconfigured,
}

/// The writes of one transaction and the conditions that they rest on.
#[derive(Default)]
struct Batch {
    compares: Vec<Compare>,
    writes: Vec<Write>,
    cursors: bool,
    settled_subnets: Vec<String>,
}

impl Controller<'_> {
    async fn rule(&self) {
        let mut watch = self.store.watch(self.keys.all());
        let mut memory = None;
        loop {
            let outcome = match watch.next().await {
                Event::Snapshot { kvs, .. } => self.take_over(kvs, &mut memory).await,
                Event::Changes { changes, .. } => match &mut memory {
                    Some(memory) => self.answer(memory, changes).await,
                    // There was no configuration that could be used; perhaps there is now.
                    None => Err(Reread::Reconfigured),
                },
            };
            let Err(reread) = outcome else { continue };
            match reread {
                Reread::Overtaken => debug!("somebody else wrote meanwhile; reading everything again"),
                Reread::Reconfigured => debug!("reading everything with the configuration of now"),
                Reread::Failed(error) => {
                    warn!(%error, "the store did not take an answer; reading everything again");
                    tokio::time::sleep(RETRY).await;
                }
            }
            memory = None;
            watch = self.store.watch(self.keys.all());
        }
    }

    /// Makes the memory and answers every record that has not been answered, also those that went while nobody ruled.
    async fn take_over(&self, kvs: Vec<KeyValue>, slot: &mut Option<Memory>) -> Result<(), Reread> {
        let mut cluster = None;
        let mut cursors = Cursors::default();
        let (mut tenants, mut subnets) = (Vec::new(), Vec::new());
        let mut records: BTreeMap<String, KeyValue> = BTreeMap::new();
        for kv in kvs {
            match self.key(&kv.key) {
                Some(OurKey::Config) => {
                    cluster = ClusterNetwork::parse(&kv.value)
                        .map_err(|error| error!(%error, "the cluster's configuration cannot be used"))
                        .ok()
                }
                Some(OurKey::Of(Record::SettledTenant(tenant))) => match Settled::parse(tenant, &kv.value) {
                    Ok(settled) => tenants.push((tenant.to_owned(), settled)),
                    Err(error) => {
                        error!(%error, "a settled copy cannot be read; the tenant is treated as new")
                    }
                },
                Some(OurKey::Of(Record::SettledSubnet(ip))) => match SettledSubnet::parse(ip, &kv.value) {
                    Ok(settled) => subnets.push(settled),
                    Err(error) => error!(%error, "a settled copy cannot be read; the node is treated as new"),
                },
                Some(OurKey::Of(Record::SettledCursors)) => {
                    cursors = serde_json::from_slice(&kv.value).unwrap_or_else(|error| {
                        error!(%error, key = kv.key, "cannot be read; starting from the first again");
                        Cursors::default()
                    });
                }
                Some(OurKey::Of(Record::Tenant(_) | Record::Subnet(_))) => {
                    drop(records.insert(kv.key.clone(), kv))
                }
                _ => {}
            }
        }
        let Some(cluster) = cluster else { return Ok(()) };
        let gone: BTreeSet<String> = tenants
            .iter()
            .filter_map(|(tenant, _)| self.network.tenant(tenant).ok())
            .chain(subnets.iter().filter_map(|node| self.network.subnet(&node.host_ip.to_string()).ok()))
            .filter(|key| !records.contains_key(key))
            .collect();
        let mut memory = Memory {
            tenants: Snapshot::load(tenants, cursors.net_id),
            subnets: Subnets::load(cluster, subnets, cursors.subnet),
            settled_at: HashMap::new(),
        };
        // A record may ask to join a tenant that was put at the same time, while nobody ruled: those without an action
        // first.
        let (acting, plain): (Vec<_>, Vec<_>) = records.into_values().partition(|kv| self.carries_action(kv));
        let edits = gone.into_iter().map(|key| Change::Deleted { key, revision: 0 });
        let edits = edits.chain(plain.into_iter().chain(acting).map(Change::Put)).collect();
        self.answer(&mut memory, edits).await?;
        *slot = Some(memory);
        Ok(())
    }

    fn carries_action(&self, kv: &KeyValue) -> bool {
        match self.key(&kv.key) {
            Some(OurKey::Of(Record::Tenant(tenant))) => {
                tenon_tenant::Record::parse(tenant, &kv.value).is_ok_and(|record| record.action.is_some())
            }
            _ => false,
        }
    }

    /// Answers `edits` in their order.
    async fn answer(&self, memory: &mut Memory, edits: Vec<Change>) -> Result<(), Reread> {
        // A node that changes its address writes settled copies and records in one transaction: the copies first.
        for edit in &edits {
            self.learn(memory, edit)?;
        }
        let latest: HashMap<String, usize> =
            edits.iter().enumerate().map(|(place, edit)| (edit.key().to_owned(), place)).collect();
        let mut batch = Batch::default();
        for (place, edit) in edits.iter().enumerate() {
            // etcd may deliver several revisions of a key together; the last one is what stands in the store.
            if latest.get(edit.key()) == Some(&place) {
                self.plan(memory, edit, &mut batch);
            }
            if batch.writes.len() >= WRITES_PER_TRANSACTION - 4 {
                self.write(memory, std::mem::take(&mut batch)).await?;
            }
        }
        self.write(memory, batch).await
    }

    /// Takes in what others write besides records.
    fn learn(&self, memory: &mut Memory, edit: &Change) -> Result<(), Reread> {
        match self.key(edit.key()) {
            Some(OurKey::Config) => return Err(Reread::Reconfigured),
            Some(OurKey::Of(Record::SettledSubnet(ip))) => {
                let (revision, value) = match edit {
                    Change::Put(kv) => (kv.mod_revision, Some(&kv.value)),
                    Change::Deleted { revision, .. } => (*revision, None),
                };
                if memory.settled_at.get(ip).is_some_and(|written| revision <= *written) {
                    return Ok(());
                }
                match (value.map(|value| SettledSubnet::parse(ip, value)), ip.parse::<Ipv4Addr>()) {
                    (Some(Ok(settled)), _) => memory.subnets.settle(settled),
                    (Some(Err(error)), _) => error!(%error, "a settled copy cannot be read"),
                    (None, Ok(ip)) => memory.subnets.forget(ip),
                    (None, Err(_)) => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Plans the answer to one edit. The memory takes it as done; if it is not, the memory is thrown away.
    fn plan(&self, memory: &mut Memory, edit: &Change, batch: &mut Batch) {
        let (text, revision) = match edit {
            Change::Put(kv) => (Edit::Put(&kv.value), kv.mod_revision),
            Change::Deleted { .. } => (Edit::Deleted, 0),
        };
        let key = edit.key().to_owned();
        let condition = Compare::ModRevision(key.clone(), revision);
        match self.key(&key) {
            Some(OurKey::Of(Record::Tenant(tenant))) => {
                let Ok(settled_key) = self.network.settled_tenant(tenant) else { return };
                let plan = plan(&memory.tenants, tenant, text);
                match &plan {
                    Plan::Nothing => return,
                    Plan::Settle { record, settled, cursor } => {
                        info!(tenant, vni = settled.net_id().get(), "settled");
                        batch.writes.extend(record.clone().map(|record| Write::put(key.clone(), record)));
                        batch.writes.push(Write::put(settled_key, settled.to_json()));
                        batch.cursors |= cursor.is_some();
                    }
                    Plan::PutBack { record, refusal } => {
                        warn!(tenant, %refusal, "refused an edit");
                        batch.writes.push(Write::put(key.clone(), record.clone()));
                    }
                    Plan::Forget => {
                        info!(tenant, "forgotten");
                        batch.writes.push(Write::delete(settled_key));
                    }
                }
                memory.tenants.apply(tenant, &plan);
                batch.compares.push(condition);
            }
            Some(OurKey::Of(Record::Subnet(host_ip))) => {
                let Ok(settled_key) = self.network.settled_subnet(host_ip) else { return };
                let plan = plan_subnet(&memory.subnets, host_ip, text);
                match &plan {
                    SubnetPlan::Nothing => return,
                    SubnetPlan::Settle { record, settled, cursor } => {
                        info!(node = settled.host, subnet = %settled.subnet, "settled");
                        batch.writes.extend(record.clone().map(|record| Write::put(key.clone(), record)));
                        batch.writes.push(Write::put(settled_key, settled.to_json()));
                        batch.settled_subnets.push(host_ip.to_owned());
                        batch.cursors |= cursor.is_some();
                    }
                    SubnetPlan::PutBack { record, refusal } => {
                        warn!(host_ip, %refusal, "refused an edit");
                        batch.writes.push(Write::put(key.clone(), record.clone()));
                    }
                    SubnetPlan::Forget => {
                        info!(host_ip, "forgotten");
                        batch.writes.push(Write::delete(settled_key));
                        batch.settled_subnets.push(host_ip.to_owned());
                    }
                }
                if let Ok(ip) = host_ip.parse() {
                    memory.subnets.apply(ip, &plan);
                }
                batch.compares.push(condition);
            }
            _ => {}
        }
    }

    async fn write(&self, memory: &mut Memory, mut batch: Batch) -> Result<(), Reread> {
        if batch.writes.is_empty() {
            return Ok(());
        }
        if batch.cursors {
            let cursors = Cursors { net_id: memory.tenants.cursor(), subnet: memory.subnets.cursor() };
            let text = serde_json::to_vec(&cursors).expect("a number and a text always serialise");
            batch.writes.push(Write::put(self.network.settled_cursors(), text));
        }
        batch.compares.push(self.leadership.fence().clone());
        let outcome = self.store.txn(&batch.compares, &batch.writes).await.map_err(Reread::Failed)?;
        if !outcome.applied() {
            return Err(Reread::Overtaken);
        }
        let revision = outcome.revision();
        memory.settled_at.extend(batch.settled_subnets.into_iter().map(|ip| (ip, revision)));
        Ok(())
    }

    /// What `key` is, if it is this network's.
    fn key<'k>(&self, key: &'k str) -> Option<OurKey<'k>> {
        match self.keys.parse(key)? {
            Key::Config => Some(OurKey::Config),
            Key::Of { network, record } if network == self.name => Some(OurKey::Of(record)),
            Key::Of { .. } => None,
        }
    }
}

enum OurKey<'a> {
    Config,
    Of(Record<'a>),
}
