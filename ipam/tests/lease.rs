//! Leases as they are read, written and told to people.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking, in its helpers too.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use tenon_ipam::Lease;

const EXAMPLE: &str = r#"{"IP":"10.100.0.10","MAC":"02:15:0a:64:00:0a","Node":"node1","ContainerID":"0123","IfName":"eth0","PodNamespace":"a","PodName":"m1"}"#;

fn read(key: &str, record: Value) -> Result<Lease, String> {
    Lease::parse(key, record.to_string().as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn the_documented_example_is_read_and_written_as_it_is() {
    let lease = Lease::parse("10.100.0.10", EXAMPLE.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(lease.to_json()).unwrap(), EXAMPLE);
    assert_eq!((lease.released, lease.conflict), (None, None));
    assert_eq!(lease.holder(), "pod a/m1 (eth0 of container 0123 on node node1)");
}

#[test]
fn unknown_fields_and_the_release_are_carried() {
    let mut record: Value = serde_json::from_str(EXAMPLE).unwrap();
    record["Released"] = json!(1_700_000_000);
    record["Note"] = json!({"by": ["admin"]});
    let lease = read("10.100.0.10", record.clone()).unwrap();
    assert_eq!(lease.released, Some(1_700_000_000));
    assert_eq!(lease.extra()["Note"], record["Note"]);
    assert_eq!(serde_json::from_slice::<Value>(&lease.to_json()).unwrap(), record);
}

#[test]
fn a_person_may_write_as_little_as_an_address() {
    for (key, record, holder) in [
        ("10.0.0.1", json!({}), "a lease that names no container"),
        ("10.0.0.1", json!({"IP": "10.0.0.1", "PodName": "m", "PodNamespace": "a"}), "pod a/m"),
        ("fd00::1", json!({"IP": "fd00:0::1", "Node": "n"}), "node n"),
        ("fd00::1", json!({"ContainerID": "c", "IfName": "net1"}), "net1 of container c"),
        (
            "10.0.0.1",
            json!({"Released": 5, "Conflict": "52:54:00:00:00:01"}),
            "52:54:00:00:00:01 outside the cluster, which answered for it",
        ),
    ] {
        let lease = read(key, record.clone()).unwrap();
        assert_eq!(lease.holder(), holder, "{record}");
        assert_eq!(Lease::parse(key, &lease.to_json()).unwrap(), lease);
    }
}

#[test]
fn every_mistake_is_named_with_its_value() {
    let cases = [
        ("x", json!({}), "the record's key ends in \"x\", which is not an address"),
        ("10.0.0.1/24", json!({}), "the record's key ends in \"10.0.0.1/24\""),
        ("FD00::1", json!({}), "the record's key ends in \"FD00::1\", which must be written fd00::1"),
        ("fd00:0:0::1", json!({}), "which must be written fd00::1"),
        ("10.0.0.1", json!({"IP": "10.0.0.2"}), "IP is \"10.0.0.2\", but the record's key says 10.0.0.1"),
        ("10.0.0.1", json!({"IP": 5}), "IP is 5, not a string"),
        ("10.0.0.1", json!({"MAC": "02:00"}), "MAC is \"02:00\", not a MAC address"),
        ("10.0.0.1", json!({"MAC": "01:00:5e:00:00:01"}), "MAC is \"01:00:5e:00:00:01\", a multicast"),
        ("10.0.0.1", json!({"Conflict": "?"}), "Conflict is \"?\", not a MAC address"),
        ("10.0.0.1", json!({"ContainerID": 7}), "ContainerID is 7, not a string"),
        ("10.0.0.1", json!({"Released": "now"}), "Released is \"now\", not an integer"),
        ("10.0.0.1", json!({"Released": -1}), "Released is -1, not an integer"),
        ("10.0.0.1", json!([]), "not a JSON object"),
    ];
    for (key, record, reason) in cases {
        let error = read(key, record.clone()).unwrap_err();
        assert!(error.contains(reason), "{key} {record}: {error}");
    }
}

proptest! {
    #[test]
    fn any_text_is_answered_and_a_lease_survives_being_written(
        bytes in vec(any::<u8>(), 0..100),
        key in prop_oneof![any::<std::net::IpAddr>().prop_map(|ip| ip.to_string()), ".{0,20}"],
        names in vec(any::<String>(), 5),
        released in prop::option::of(any::<u32>()),
    ) {
        prop_assert!(Lease::parse(&key, &bytes).is_err());
        let record = json!({"Node": names[0], "ContainerID": names[1], "IfName": names[2],
            "PodNamespace": names[3], "PodName": names[4], "Released": released});
        if let Ok(lease) = read(&key, record) {
            prop_assert!(!lease.holder().is_empty());
            prop_assert_eq!(Lease::parse(&key, &lease.to_json()).unwrap(), lease);
        }
    }
}
