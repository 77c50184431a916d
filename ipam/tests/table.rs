//! Every state of a node's record, met by every kind of edit.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking, in its helpers too.

use serde_json::{Value, json};
use tenon_ipam::{ClusterNetwork, SettledSubnet, SubnetPlan, Subnets, plan_subnet};
use tenon_tenant::Edit;

/// An enum with a list of all its variants: the table below then has to say something about a new one.
macro_rules! listed {
    (enum $name:ident { $($variant:ident),* $(,)? }) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum $name { $($variant),* }

        impl $name {
            const ALL: &[$name] = &[$($name::$variant),*];
        }
    };
}

listed! {
    enum State { Absent, Inert, Settled }
}

listed! {
    enum Kind {
        AsStored, Asks, AsksWithNull, AsksWithError, AsksWithSubnet, NothingAsked, FreeSubnet, OwnSubnet, PeersSubnet, SmallSubnet,
        LargeSubnet, ForeignSubnet, HostBits, TextSubnet, NumberSubnet, TextAssign, NotJson, NotObject, OtherHostIp,
        WithoutHostIp, NoHost, NumberHost, NumberError, PeersHost, NewHost, KeptError, UnknownFields, Deleted,
    }
}

enum Outcome {
    Nothing,
    /// The node has this subnet afterwards.
    Settles(&'static str),
    /// The Error says this, among other things.
    Refuses(&'static str),
    Forgets,
}

const KEY: &str = "10.0.0.1";
const OWN: &str = "172.11.8.0/22";
const PEERS: &str = "172.11.16.0/22";
const CURSOR: &str = "172.11.12.0/22";
/// The cursor's successor is the peer's.
const NEXT: &str = "172.11.20.0/22";
const FREE: &str = "172.11.40.0/22";

fn expected(state: State, kind: Kind) -> Outcome {
    use Outcome::{Forgets, Nothing, Refuses, Settles};
    let new = state != State::Settled;
    let brings = |reason| if new { Refuses(reason) } else { Refuses("changed by hand from 172.11.8.0/22") };
    match kind {
        Kind::AsStored => match state {
            State::Absent => Settles(NEXT),
            State::Inert | State::Settled => Nothing,
        },
        Kind::Asks | Kind::AsksWithNull | Kind::AsksWithError | Kind::UnknownFields => {
            Settles(if new { NEXT } else { OWN })
        }
        Kind::NothingAsked if new => Refuses("Subnet is empty and Assign is false"),
        Kind::NothingAsked => Settles(OWN),
        Kind::KeptError if new => Nothing,
        Kind::KeptError => Settles(OWN),
        Kind::FreeSubnet | Kind::AsksWithSubnet if new => Settles(FREE),
        Kind::FreeSubnet | Kind::AsksWithSubnet => Refuses("from 172.11.8.0/22 to 172.11.40.0/22"),
        Kind::OwnSubnet | Kind::WithoutHostIp => Settles(OWN),
        Kind::NewHost if new => Settles(OWN),
        Kind::NewHost => Refuses("Host was changed by hand from \"node1\" to \"renamed\""),
        Kind::PeersSubnet => brings("172.11.16.0/22 overlaps 172.11.16.0/22 of node \"peer\" (10.0.0.2)"),
        Kind::SmallSubnet => brings("172.11.40.0/24 is not a /22 inside Network 172.11.0.0/16"),
        Kind::LargeSubnet => brings("172.11.0.0/16 is not a /22"),
        Kind::ForeignSubnet => brings("192.168.0.0/22 is not a /22 inside"),
        Kind::HostBits => {
            Refuses("Subnet is 172.11.8.1/22, which has host bits set: did you mean 172.11.8.0/22")
        }
        Kind::TextSubnet => Refuses("Subnet is \"many\""),
        Kind::NumberSubnet => Refuses("Subnet is 22, not a string"),
        Kind::TextAssign => Refuses("Assign is \"true\", not true or false"),
        Kind::NotJson => Refuses("not JSON"),
        Kind::NotObject => Refuses("not a JSON object"),
        Kind::OtherHostIp => Refuses("HostIP is \"10.0.0.9\", but the record's key says 10.0.0.1"),
        Kind::NoHost => Refuses("Host is empty"),
        Kind::NumberHost => Refuses("Host is 1, not a string"),
        Kind::NumberError => Refuses("Error is 1, not a string"),
        Kind::PeersHost if !new => Refuses("Host was changed by hand from \"node1\" to \"peer\""),
        Kind::PeersHost => Refuses("Host \"peer\" is already registered with the address 10.0.0.2"),
        Kind::Deleted if new => Nothing,
        Kind::Deleted => Forgets,
    }
}

fn record(subnet: &str, assign: bool) -> Value {
    json!({"Host": "node1", "HostIP": KEY, "Subnet": subnet, "Assign": assign})
}

/// The text of the edit; `None`: the record is deleted.
fn text(kind: Kind, stored: &Option<Vec<u8>>) -> Option<Vec<u8>> {
    let asks = record("", true);
    let and = |field: &str, value: Value| {
        let mut record = asks.clone();
        record[field] = value;
        record
    };
    let value = match kind {
        Kind::AsStored => return Some(stored.clone().unwrap_or_else(|| asks.to_string().into_bytes())),
        Kind::Deleted => return None,
        Kind::NotJson => return Some(b"node1".to_vec()),
        Kind::NotObject => json!([asks]),
        Kind::Asks => asks,
        Kind::AsksWithNull => and("Subnet", Value::Null),
        Kind::AsksWithError => and("Error", json!("old")),
        Kind::AsksWithSubnet => record(FREE, true),
        Kind::NothingAsked => record("", false),
        Kind::FreeSubnet => record(FREE, false),
        Kind::OwnSubnet => record(OWN, false),
        Kind::PeersSubnet => record(PEERS, false),
        Kind::SmallSubnet => record("172.11.40.0/24", false),
        Kind::LargeSubnet => record("172.11.0.0/16", false),
        Kind::ForeignSubnet => record("192.168.0.0/22", false),
        Kind::HostBits => record("172.11.8.1/22", false),
        Kind::TextSubnet => record("many", true),
        Kind::NumberSubnet => and("Subnet", json!(22)),
        Kind::TextAssign => and("Assign", json!("true")),
        Kind::OtherHostIp => and("HostIP", json!("10.0.0.9")),
        Kind::WithoutHostIp => json!({"Host": "node1", "Subnet": OWN}),
        Kind::NoHost => and("Host", json!("")),
        Kind::NumberHost => and("Host", json!(1)),
        Kind::NumberError => and("Error", json!(1)),
        Kind::PeersHost => and("Host", json!("peer")),
        Kind::NewHost => json!({"Host": "renamed", "HostIP": KEY, "Subnet": OWN, "Assign": false}),
        Kind::KeptError => json!({"Host": "node1", "HostIP": KEY, "Error": "kept"}),
        Kind::UnknownFields => and("Rack", json!({"row": [1.1, "x", null]})),
    };
    Some(value.to_string().into_bytes())
}

fn cluster() -> ClusterNetwork {
    ClusterNetwork::parse(
        br#"{"Name":"n","Network":"172.11.0.0/16","HostSubnetLength":10,"PluginName":"k8s-ovs-multitenant"}"#,
    )
    .unwrap()
}

fn settled(host: &str, host_ip: &str, subnet: &str) -> SettledSubnet {
    let text = json!({"Host": host, "HostIP": host_ip, "Subnet": subnet, "Site": "east"}).to_string();
    SettledSubnet::parse(host_ip, text.as_bytes()).unwrap()
}

/// The controller's memory, and the text of the record of the node 10.0.0.1.
fn start(state: State) -> (Subnets, Option<Vec<u8>>) {
    let peer = settled("peer", "10.0.0.2", PEERS);
    let own = settled("node1", KEY, OWN);
    let (nodes, stored) = match state {
        State::Absent => (vec![peer], None),
        State::Inert => (
            vec![peer],
            Some(json!({"Host": "node1", "HostIP": KEY, "Error": "why"}).to_string().into_bytes()),
        ),
        State::Settled => (vec![peer, own.clone()], Some(own.record(None).to_json())),
    };
    (Subnets::load(cluster(), nodes, Some(CURSOR.parse().unwrap())), stored)
}

fn edit(text: &Option<Vec<u8>>) -> Edit<'_> {
    text.as_deref().map_or(Edit::Deleted, Edit::Put)
}

#[test]
fn every_state_meets_every_edit() {
    for &state in State::ALL {
        for &kind in Kind::ALL {
            check(state, kind);
        }
    }
}

fn check(state: State, kind: Kind) {
    let (mut subnets, stored) = start(state);
    let before: Vec<_> = subnets.iter().cloned().collect();
    let mut text = text(kind, &stored);
    let answer = plan_subnet(&subnets, KEY, edit(&text));
    let key = KEY.parse().unwrap();
    subnets.apply(key, &answer);
    let case = format!("{state:?} meets {kind:?}: {answer:?}");
    let settled = state == State::Settled;

    match (expected(state, kind), &answer) {
        (Outcome::Nothing, SubnetPlan::Nothing) => assert!(subnets.iter().eq(&before), "{case}"),
        (Outcome::Forgets, SubnetPlan::Forget) => assert!(subnets.settled(key).is_none(), "{case}"),
        (Outcome::Settles(subnet), SubnetPlan::Settle { record, settled: copy, cursor }) => {
            assert_eq!(copy.subnet.to_string(), subnet, "{case}");
            assert_eq!(*cursor, (subnet == NEXT).then(|| NEXT.parse().unwrap()), "{case}");
            text = record.clone().or(text);
            let stored: Value = serde_json::from_slice(text.as_deref().unwrap()).unwrap();
            assert_eq!(stored["HostIP"], KEY, "{case}");
            assert_eq!(stored["Subnet"], subnet, "{case}");
            assert_eq!(stored["Assign"], false, "{case}");
            let error = if kind == Kind::KeptError { json!("kept") } else { Value::Null };
            assert_eq!(stored["Error"], error, "{case}");
            if kind == Kind::UnknownFields {
                assert_eq!(stored["Rack"], json!({"row": [1.1, "x", null]}), "{case}");
            }
        }
        (Outcome::Refuses(reason), SubnetPlan::PutBack { record, refusal }) => {
            assert!(refusal.to_string().contains(reason), "{case}");
            assert!(subnets.iter().eq(&before), "{case}");
            let stored: Value = serde_json::from_slice(record).unwrap();
            assert!(stored["Error"].as_str().unwrap().contains(reason), "{case}");
            assert_eq!(stored["HostIP"], KEY, "{case}");
            assert_eq!(stored["Subnet"], if settled { OWN } else { "" }, "{case}");
            assert_eq!(stored["Assign"], false, "{case}");
            assert_eq!(stored["Site"], if settled { "east".into() } else { Value::Null }, "{case}");
            text = Some(record.clone());
        }
        (Outcome::Nothing | Outcome::Settles(_) | Outcome::Refuses(_) | Outcome::Forgets, _) => {
            panic!("{case}")
        }
    }
    // What the controller wrote is at rest, also for the next controller.
    let copies =
        subnets.iter().map(|copy| SettledSubnet::parse(&copy.host_ip.to_string(), &copy.to_json()).unwrap());
    let again = Subnets::load(cluster(), copies, subnets.cursor());
    assert_eq!(plan_subnet(&again, KEY, edit(&text)), SubnetPlan::Nothing, "{case}");
}

#[test]
fn a_key_that_is_no_address_is_told_once() {
    let (subnets, _) = start(State::Absent);
    for key in ["node1", "", "fd00::1", "10.0.0.01"] {
        let answer = plan_subnet(&subnets, key, Edit::Put(record("", true).to_string().as_bytes()));
        let SubnetPlan::PutBack { record, refusal } = answer else { panic!("{answer:?}") };
        assert!(refusal.to_string().contains("not an IPv4 address"), "{refusal}");
        assert_eq!(plan_subnet(&subnets, key, Edit::Put(&record)), SubnetPlan::Nothing);
        assert_eq!(plan_subnet(&subnets, key, Edit::Deleted), SubnetPlan::Nothing);
    }
}

#[test]
fn a_node_inside_the_pods_network_is_refused() {
    let (subnets, _) = start(State::Absent);
    let answer = plan_subnet(&subnets, "172.11.3.4", Edit::Put(br#"{"Host":"n","Assign":true}"#));
    let SubnetPlan::PutBack { refusal, .. } = answer else { panic!("{answer:?}") };
    assert!(
        refusal.to_string().contains("172.11.3.4 lies inside the pods' Network 172.11.0.0/16"),
        "{refusal}"
    );
}

#[test]
fn every_subnet_is_given_out_once_and_a_freed_one_last() {
    let mut subnets = Subnets::load(cluster(), [], None);
    let add = |subnets: &mut Subnets, number: u8| {
        let key = format!("10.0.0.{number}");
        let text = json!({"Host": format!("node{number}"), "Assign": true}).to_string();
        let answer = plan_subnet(subnets, &key, Edit::Put(text.as_bytes()));
        subnets.apply(key.parse().unwrap(), &answer);
        answer
    };
    for number in 0..64 {
        let answer = add(&mut subnets, number);
        let SubnetPlan::Settle { settled, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(settled.subnet.to_string(), format!("172.11.{}.0/22", u32::from(number) * 4));
        if number == 5 {
            let key = "10.0.0.3".parse().unwrap();
            subnets.apply(key, &plan_subnet(&subnets, "10.0.0.3", Edit::Deleted));
        }
    }
    let answer = add(&mut subnets, 64);
    assert!(
        matches!(&answer, SubnetPlan::Settle { settled, .. } if settled.subnet.to_string() == "172.11.12.0/22")
    );
    let answer = add(&mut subnets, 65);
    let SubnetPlan::PutBack { refusal, .. } = answer else { panic!("{answer:?}") };
    assert!(refusal.to_string().contains("all 64 subnets of Network 172.11.0.0/16 are in use"), "{refusal}");
}

#[test]
fn what_was_granted_under_an_older_configuration_is_not_given_out_again() {
    let old = [
        settled("wide", "10.0.0.2", "172.11.0.0/18"),
        settled("narrow", "10.0.0.3", "172.11.65.0/24"),
        settled("outside", "10.0.0.4", "172.12.0.0/22"),
    ];
    let subnets = Subnets::load(cluster(), old.clone(), None);
    assert_eq!(subnets.next_free().unwrap().to_string(), "172.11.68.0/22");
    let subnets = Subnets::load(cluster(), old, Some("172.12.0.0/22".parse().unwrap()));
    assert_eq!(subnets.next_free().unwrap().to_string(), "172.11.68.0/22");
    let all = Subnets::load(cluster(), [settled("all", "10.0.0.2", "172.0.0.0/8")], None);
    assert_eq!(all.next_free(), None);
}
