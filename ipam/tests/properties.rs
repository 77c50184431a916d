//! What holds for any text under a node's key, and for any set of granted subnets.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking, in its helpers too.

use ipnet::Ipv4Net;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tenon_ipam::{ClusterNetwork, SettledSubnet, SubnetPlan, Subnets, plan_subnet};
use tenon_tenant::Edit;

fn cluster() -> ClusterNetwork {
    ClusterNetwork::parse(
        br#"{"Name":"n","Network":"172.16.0.0/20","HostSubnetLength":8,"PluginName":"k8s-ovs-subnet"}"#,
    )
    .unwrap()
}

fn settled(number: usize, subnet: Ipv4Net) -> SettledSubnet {
    let key = format!("10.0.0.{number}");
    let text = json!({"Host": format!("node{number}"), "Subnet": subnet}).to_string();
    SettledSubnet::parse(&key, text.as_bytes()).unwrap()
}

fn odd() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        vec(any::<f64>(), 0..3).prop_map(Value::from),
    ]
}

/// A network in or near the cluster's, of any size.
fn network() -> impl Strategy<Value = Ipv4Net> {
    (0_u32..0x2000, 16_u8..=32)
        .prop_map(|(offset, length)| Ipv4Net::new((0xac10_0000 + offset).into(), length).unwrap().trunc())
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    let subnet = prop_oneof![
        4 => network().prop_map(|network| network.to_string().into()),
        4 => (0_u8..16).prop_map(|place| format!("172.16.{place}.0/24").into()),
        2 => Just(json!("")),
        1 => odd(),
    ];
    let host = prop_oneof![4 => (0_u8..6).prop_map(|number| format!("node{number}").into()), 1 => odd()];
    let fields = (
        prop::option::weighted(0.9, host),
        prop::option::of(subnet),
        prop::option::of(prop_oneof![4 => any::<bool>().prop_map(Value::from), 1 => odd()]),
        prop::option::weighted(0.1, odd()),
        prop::option::weighted(0.2, odd()),
        prop::option::weighted(0.5, odd()),
    );
    let object = fields.prop_map(|(host, subnet, assign, host_ip, error, rack)| {
        let known = [
            ("Host", host),
            ("Subnet", subnet),
            ("Assign", assign),
            ("HostIP", host_ip),
            ("Error", error),
            ("Rack", rack),
        ];
        let fields: Map<String, Value> =
            known.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))).collect();
        serde_json::to_vec(&fields).unwrap()
    });
    prop_oneof![10 => object, 1 => vec(any::<u8>(), 0..60)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_texts_leave_the_nodes_in_order(edits in vec((0_u8..6, text()), 1..20)) {
        let mut subnets = Subnets::load(cluster(), [], None);
        for (number, text) in edits {
            let key = format!("10.0.0.{number}");
            let host_ip = key.parse().unwrap();
            let before = subnets.clone();
            let answer = plan_subnet(&subnets, &key, Edit::Put(&text));
            subnets.apply(host_ip, &answer);
            let stored = match &answer {
                SubnetPlan::Nothing => text,
                SubnetPlan::PutBack { record, .. } => record.clone(),
                SubnetPlan::Forget => panic!("nothing was deleted"),
                SubnetPlan::Settle { record, settled, .. } => {
                    // A grant lasts, and unknown fields survive it.
                    prop_assert!(before.settled(host_ip).is_none_or(|had| had.subnet == settled.subnet));
                    let stored = record.clone().unwrap_or_else(|| text.clone());
                    let rack = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap()["Rack"].clone();
                    prop_assert_eq!(rack(&text), rack(&stored));
                    stored
                }
            };
            if !matches!(answer, SubnetPlan::Settle { .. }) {
                prop_assert!(before.iter().eq(subnets.iter()));
            }
            prop_assert_eq!(plan_subnet(&subnets, &key, Edit::Put(&stored)), SubnetPlan::Nothing);
            let all: Vec<&SettledSubnet> = subnets.iter().collect();
            for (place, node) in all.iter().enumerate() {
                prop_assert!(cluster().network.contains(&node.subnet) && node.subnet.prefix_len() == 24);
                for other in all.iter().skip(place + 1) {
                    prop_assert!(node.subnet != other.subnet && node.host != other.host);
                }
            }
        }
    }

    #[test]
    fn the_next_free_subnet_is_the_first_after_the_cursor(
        granted in vec(network(), 0..12),
        cursor in prop::option::of(network()),
    ) {
        let nodes = granted.iter().enumerate().map(|(number, subnet)| settled(number, *subnet));
        let subnets = Subnets::load(cluster(), nodes, cursor);
        let places: Vec<Ipv4Net> = cluster().network.subnets(24).unwrap().collect();
        let start = cursor
            .and_then(|cursor| places.iter().position(|place| place.contains(&cursor.broadcast())))
            .map_or(0, |place| place + 1);
        let free = |place: &&Ipv4Net| {
            granted.iter().all(|granted| !granted.contains(*place) && !place.contains(granted))
        };
        let expected = places.iter().skip(start).chain(places.iter().take(start)).find(free);
        prop_assert_eq!(subnets.next_free(), expected.copied());
    }

    #[test]
    fn any_bytes_are_answered(bytes in vec(any::<u8>(), 0..100), key in ".{0,20}") {
        let subnets = Subnets::load(cluster(), [], None);
        if let SubnetPlan::PutBack { record, .. } = plan_subnet(&subnets, &key, Edit::Put(&bytes)) {
            prop_assert_eq!(plan_subnet(&subnets, &key, Edit::Put(&record)), SubnetPlan::Nothing);
        }
        prop_assert!(ClusterNetwork::parse(&bytes).is_err());
    }
}
