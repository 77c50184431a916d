//! Nodes that come, go, and change their addresses, with a controller and an admin at work.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking, in its helpers too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;
use tenon_ipam::{
    Claim, ClusterNetwork, Key, NodeRecord, Reason, Registered, SettledSubnet, SubnetPlan, Subnets, Write,
    claim, plan_subnet,
};
use tenon_tenant::Edit;

/// The keys in the store, and the nodes that are alive with the addresses they have now.
struct World {
    store: BTreeMap<Key, Vec<u8>>,
    cursor: Option<Ipv4Net>,
    alive: BTreeMap<String, Ipv4Addr>,
    cluster: ClusterNetwork,
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

impl World {
    fn new() -> World {
        let cluster = ClusterNetwork::parse(
            br#"{"Name":"n","Network":"172.11.0.0/16","HostSubnetLength":12,"PluginName":"k8s-ovs-multitenant"}"#,
        )
        .unwrap();
        World { store: BTreeMap::new(), cursor: None, alive: BTreeMap::new(), cluster }
    }

    fn settled(&self) -> Vec<SettledSubnet> {
        let parse = |(key, text): (&Key, &Vec<u8>)| match key {
            Key::Settled(ip) => Some(SettledSubnet::parse(&ip.to_string(), text).unwrap()),
            Key::Record(_) => None,
        };
        self.store.iter().filter_map(parse).collect()
    }

    fn registered(&self) -> BTreeMap<Ipv4Addr, Registered> {
        let mut all: BTreeMap<Ipv4Addr, Registered> = BTreeMap::new();
        for (key, text) in &self.store {
            match key {
                Key::Record(ip) => {
                    all.entry(*ip).or_default().record = NodeRecord::parse(&ip.to_string(), text).ok();
                }
                Key::Settled(ip) => {
                    all.entry(*ip).or_default().settled = SettledSubnet::parse(&ip.to_string(), text).ok();
                }
            }
        }
        all
    }

    fn write(&mut self, writes: Vec<Write>) {
        for Write { key, value } in writes {
            match value {
                Some(value) => self.store.insert(key, value),
                None => self.store.remove(&key),
            };
        }
    }

    /// A node's agent looks for its place once.
    fn agent(&mut self, host: &str) {
        let Some(ip) = self.alive.get(host) else { return };
        match claim(&self.registered(), host, *ip) {
            Claim::Held(_) | Claim::Waiting => {}
            Claim::Write { reason: Reason::TakeOver { from }, .. } if self.alive.contains_key(&from) => {}
            Claim::Write { writes, .. } | Claim::Refused { writes, .. } => self.write(writes),
        }
    }

    /// The controller answers every record until there is nothing left to do.
    fn controller(&mut self) {
        let mut subnets = Subnets::load(self.cluster.clone(), self.settled(), self.cursor);
        let ips: BTreeSet<Ipv4Addr> = self
            .store
            .keys()
            .map(|key| match key {
                Key::Record(ip) | Key::Settled(ip) => *ip,
            })
            .collect();
        for ip in ips {
            for round in 0.. {
                let text = self.store.get(&Key::Record(ip)).cloned();
                let edit = text.as_deref().map_or(Edit::Deleted, Edit::Put);
                let answer = plan_subnet(&subnets, &ip.to_string(), edit);
                subnets.apply(ip, &answer);
                match answer {
                    SubnetPlan::Nothing => break,
                    SubnetPlan::Settle { record, settled, cursor } => {
                        self.store.extend(record.map(|record| (Key::Record(ip), record)));
                        self.store.insert(Key::Settled(ip), settled.to_json());
                        self.cursor = cursor.or(self.cursor);
                    }
                    SubnetPlan::PutBack { record, .. } => {
                        self.store.insert(Key::Record(ip), record);
                    }
                    SubnetPlan::Forget => {
                        self.store.remove(&Key::Settled(ip));
                    }
                }
                assert!(round == 0, "one answer settles an edit");
            }
        }
    }

    fn subnets_by_host(&self) -> BTreeMap<String, Ipv4Net> {
        self.settled().into_iter().map(|node| (node.host, node.subnet)).collect()
    }

    fn check(&self) {
        let settled = self.settled();
        for (place, node) in settled.iter().enumerate() {
            for other in settled.iter().skip(place + 1) {
                assert_ne!(node.host, other.host, "one place for a name");
                assert_ne!(node.host_ip, other.host_ip);
                assert!(
                    !node.subnet.contains(&other.subnet) && !other.subnet.contains(&node.subnet),
                    "{node:?} and {other:?}"
                );
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// The node starts, stops or changes its address: whoever has the address gets the node's old one.
    Start(u8, u8),
    Stop(u8),
    Readdress(u8, u8),
    Agent(u8),
    Controller,
    AdminDeletes(u8),
    AdminPuts(u8, AdminRecord),
}

#[derive(Debug, Clone)]
enum AdminRecord {
    Garbage,
    Asks(u8),
    Brings(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 1_u8..6;
    let ip = 1_u8..8;
    let text = prop_oneof![
        Just(AdminRecord::Garbage),
        node.clone().prop_map(AdminRecord::Asks),
        (node.clone(), 0_u8..20).prop_map(|(node, place)| AdminRecord::Brings(node, place)),
    ];
    prop_oneof![
        4 => (node.clone(), ip.clone()).prop_map(|(node, ip)| Step::Start(node, ip)),
        1 => node.clone().prop_map(Step::Stop),
        4 => (node.clone(), ip.clone()).prop_map(|(node, ip)| Step::Readdress(node, ip)),
        8 => node.prop_map(Step::Agent),
        6 => Just(Step::Controller),
        1 => ip.clone().prop_map(Step::AdminDeletes),
        2 => (ip, text).prop_map(|(ip, text)| Step::AdminPuts(ip, text)),
    ]
}

fn host(number: u8) -> String {
    format!("node{number}")
}

impl World {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Start(node, ip) => {
                let free = self.alive.values().all(|other| *other != address(*ip));
                if free && !self.alive.contains_key(&host(*node)) {
                    self.alive.insert(host(*node), address(*ip));
                }
            }
            Step::Stop(node) => {
                self.alive.remove(&host(*node));
            }
            Step::Readdress(node, ip) => {
                let Some(old) = self.alive.get(&host(*node)).copied() else { return };
                for other in self.alive.values_mut().filter(|other| **other == address(*ip)) {
                    *other = old;
                }
                self.alive.insert(host(*node), address(*ip));
            }
            Step::Agent(node) => self.agent(&host(*node)),
            Step::Controller => self.controller(),
            Step::AdminDeletes(ip) => {
                self.store.remove(&Key::Record(address(*ip)));
            }
            Step::AdminPuts(ip, record) => {
                let text = match record {
                    AdminRecord::Garbage => "garbage".to_owned(),
                    AdminRecord::Asks(node) => json!({"Host": host(*node), "Assign": true}).to_string(),
                    AdminRecord::Brings(node, place) => {
                        let subnet = format!("172.11.{}.0/20", u32::from(*place) * 16);
                        json!({"Host": host(*node), "Subnet": subnet}).to_string()
                    }
                };
                self.store.insert(Key::Record(address(*ip)), text.into_bytes());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn address_and_subnet_of_every_node_stay_unique(steps in vec(step(), 1..80)) {
        let mut world = World::new();
        for step in &steps {
            let before = world.subnets_by_host();
            world.take(step);
            world.check();
            // An agent never changes anybody's subnet, but for a name that it takes over.
            if let Step::Agent(node) = step {
                let mut after = world.subnets_by_host();
                if !before.contains_key(&host(*node)) {
                    after.remove(&host(*node));
                }
                prop_assert!(after.iter().all(|(host, subnet)| before.get(host) == Some(subnet)));
                let lost = before.keys().filter(|host| !after.contains_key(*host));
                prop_assert!(lost.into_iter().all(|host| !world.alive.contains_key(host)));
            }
        }
        // Left alone, everybody ends up with a place: at its own address, with the subnet that it had.
        // (Who deletes a record gives the subnet up, unless the node puts the record in again in time.)
        let mut had = world.settled();
        had.retain(|node| world.store.contains_key(&Key::Record(node.host_ip)));
        world.controller();
        let granted = world.subnets_by_host();
        prop_assert!(had.iter().all(|node| granted.get(&node.host) == Some(&node.subnet)));
        for _ in 0..12 {
            for node in 1..6 {
                world.agent(&host(node));
            }
            world.controller();
        }
        world.check();
        let registered = world.registered();
        for (host, ip) in &world.alive {
            let held = claim(&registered, host, *ip);
            let Claim::Held(node) = &held else { panic!("{host} at {ip}: {held:?}") };
            prop_assert_eq!(&node.host, host);
            prop_assert!(granted.get(host).is_none_or(|subnet| *subnet == node.subnet));
        }
    }
}

fn with_nodes(nodes: &[(&str, u8)]) -> World {
    let mut world = World::new();
    for (host, number) in nodes {
        world.alive.insert((*host).to_owned(), address(*number));
        world.agent(host);
        world.controller();
    }
    world
}

fn reason(world: &World, host: &str, number: u8) -> Reason {
    match claim(&world.registered(), host, address(number)) {
        Claim::Write { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_node_registers_waits_and_has_its_subnet() {
    let mut world = World::new();
    assert_eq!(reason(&world, "a", 1), Reason::Register);
    world.alive.insert("a".to_owned(), address(1));
    world.agent("a");
    assert_eq!(claim(&world.registered(), "a", address(1)), Claim::Waiting);
    world.controller();
    let held = claim(&world.registered(), "a", address(1));
    assert!(matches!(&held, Claim::Held(node) if node.subnet.to_string() == "172.11.0.0/20"), "{held:?}");
}

/// Two records with one node address, or two nodes with one subnet, were what openshift-origin's issues 19080 and 2834
/// were about.
#[test]
fn two_nodes_that_exchange_their_addresses_keep_their_subnets() {
    let mut world = with_nodes(&[("a", 1), ("b", 2)]);
    let before = world.subnets_by_host();
    world.alive = BTreeMap::from([("a".to_owned(), address(2)), ("b".to_owned(), address(1))]);
    assert_eq!(reason(&world, "a", 2), Reason::Swap { with: "b".to_owned(), from: address(1) });
    world.agent("a");
    world.check();
    assert_eq!(world.subnets_by_host(), before);
    assert!(matches!(claim(&world.registered(), "b", address(1)), Claim::Held(_)));
    world.controller();
    assert_eq!(world.subnets_by_host(), before);
}

#[test]
fn a_subnet_and_its_unknown_fields_follow_the_name_to_a_new_address() {
    let mut world = with_nodes(&[("a", 1)]);
    let edited = json!({"Host": "a", "Subnet": "172.11.0.0/20", "Rack": 7}).to_string();
    world.store.insert(Key::Record(address(1)), edited.into_bytes());
    world.controller();
    world.alive.insert("a".to_owned(), address(9));
    assert_eq!(reason(&world, "a", 9), Reason::Move { from: address(1) });
    world.agent("a");
    assert_eq!(world.store.len(), 2, "nothing is left at the old address");
    let record: serde_json::Value = serde_json::from_slice(&world.store[&Key::Record(address(9))]).unwrap();
    let moved =
        json!({"Host": "a", "HostIP": "10.0.0.9", "Subnet": "172.11.0.0/20", "Assign": false, "Rack": 7});
    assert_eq!(record, moved);
}

#[test]
fn a_granted_place_goes_before_a_refused_one_of_the_same_name() {
    let mut world = with_nodes(&[("a", 5)]);
    for number in [2, 9] {
        world.store.insert(Key::Record(address(number)), br#"{"Host":"a","Assign":true}"#.to_vec());
    }
    world.controller();
    assert_eq!(reason(&world, "a", 1), Reason::Move { from: address(5) });
    assert_eq!(reason(&world, "a", 9), Reason::Move { from: address(5) }, "over the refused record");
}

#[test]
fn a_renamed_node_takes_its_record_over() {
    let mut world = with_nodes(&[("old", 1)]);
    assert_eq!(reason(&world, "new", 1), Reason::TakeOver { from: "old".to_owned() });
    world.alive = BTreeMap::from([("new".to_owned(), address(1))]);
    let subnet = world.subnets_by_host()["old"];
    world.agent("new");
    assert_eq!(world.subnets_by_host(), BTreeMap::from([("new".to_owned(), subnet)]));
}

#[test]
fn a_record_that_was_deleted_under_a_living_node_is_restored() {
    let mut world = with_nodes(&[("a", 1)]);
    let before = world.store.clone();
    world.store.remove(&Key::Record(address(1)));
    assert_eq!(reason(&world, "a", 1), Reason::Restore);
    world.agent("a");
    assert_eq!(world.store, before);
}

#[test]
fn a_refused_node_is_told_why_and_can_ask_again() {
    let mut world = World::new();
    let inert =
        json!({"Host": "a", "Subnet": "", "Assign": false, "Error": "no room", "Rack": 7}).to_string();
    world.store.insert(Key::Record(address(1)), inert.into_bytes());
    let answer = claim(&world.registered(), "a", address(1));
    let Claim::Refused { error, writes } = answer else { panic!("{answer:?}") };
    assert_eq!(error, "no room");
    world.write(writes);
    world.controller();
    let record: serde_json::Value = serde_json::from_slice(&world.store[&Key::Record(address(1))]).unwrap();
    assert_eq!((&record["Subnet"], &record["Rack"]), (&json!("172.11.0.0/20"), &json!(7)));
    assert_eq!(record.get("Error"), None);
}
