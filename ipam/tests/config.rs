//! The cluster's configuration, well and badly written.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking, in its helpers too.

use serde_json::{Value, json};
use tenon_ipam::{ClusterNetwork, PluginName};

fn good() -> Value {
    json!({
        "Name": "k8ssdn", "Network": "172.11.0.0/16", "HostSubnetLength": 10,
        "ServiceNetwork": "10.96.0.0/12", "PluginName": "k8s-ovs-multitenant"
    })
}

fn with(field: &str, value: Value) -> Result<ClusterNetwork, String> {
    let mut config = good();
    config[field] = value;
    ClusterNetwork::parse(config.to_string().as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn the_documented_example_reads_as_it_says() {
    let config = ClusterNetwork::parse(good().to_string().as_bytes()).unwrap();
    assert_eq!(config.name, "k8ssdn");
    assert_eq!(config.network.to_string(), "172.11.0.0/16");
    assert_eq!(config.subnet_prefix_length(), 22);
    assert_eq!(config.subnet_count(), 64);
    assert_eq!(config.service_network.unwrap().to_string(), "10.96.0.0/12");
    assert_eq!(config.plugin_name, PluginName::Multitenant);
    assert_eq!(config.vxlan_port, 4789);
}

#[test]
fn what_is_optional_can_be_left_out() {
    for empty in [json!(""), Value::Null] {
        assert_eq!(with("ServiceNetwork", empty).unwrap().service_network, None);
    }
    for default in [json!(0), Value::Null] {
        assert_eq!(with("VxlanPort", default).unwrap().vxlan_port, 4789);
    }
    assert_eq!(with("VxlanPort", json!(8472)).unwrap().vxlan_port, 8472);
    assert_eq!(with("PluginName", json!("k8s-ovs-subnet")).unwrap().plugin_name, PluginName::Subnet);
    assert!(with("Comment", json!({"by": "admin"})).is_ok());
}

#[test]
fn every_mistake_is_named_with_its_value() {
    let cases = [
        ("Name", json!(""), "Name is missing"),
        ("Name", Value::Null, "Name is missing"),
        ("Name", json!("a/b"), "Name is \"a/b\""),
        ("Name", json!(1), "Name is 1, not a string"),
        ("Network", Value::Null, "Network is missing"),
        ("Network", json!("172.11.0.0"), "Network is \"172.11.0.0\", not an IPv4 network"),
        ("Network", json!("fd00::/64"), "Network is \"fd00::/64\""),
        (
            "Network",
            json!("172.11.3.0/16"),
            "Network is 172.11.3.0/16, which has host bits set: did you mean 172.11.0.0/16",
        ),
        ("HostSubnetLength", Value::Null, "HostSubnetLength is missing"),
        ("HostSubnetLength", json!(1), "HostSubnetLength is 1, not an integer from 2 to 32"),
        ("HostSubnetLength", json!("10"), "HostSubnetLength is \"10\""),
        ("HostSubnetLength", json!(-1), "HostSubnetLength is -1"),
        (
            "HostSubnetLength",
            json!(17),
            "HostSubnetLength is 17, but Network 172.11.0.0/16 has only 16 host bits",
        ),
        ("ServiceNetwork", json!("10.96.0.1/12"), "ServiceNetwork is 10.96.0.1/12, which has host bits set"),
        (
            "ServiceNetwork",
            json!("172.11.128.0/20"),
            "ServiceNetwork 172.11.128.0/20 overlaps Network 172.11.0.0/16",
        ),
        ("ServiceNetwork", json!("172.0.0.0/8"), "ServiceNetwork 172.0.0.0/8 overlaps"),
        ("PluginName", Value::Null, "PluginName is missing"),
        (
            "PluginName",
            json!("flannel"),
            "PluginName is \"flannel\"; it must be \"k8s-ovs-multitenant\" or \"k8s-ovs-subnet\"",
        ),
        ("VxlanPort", json!(65536), "VxlanPort is 65536, not an integer from 0 to 65535"),
    ];
    for (field, value, reason) in cases {
        let error = with(field, value.clone()).unwrap_err();
        assert!(error.contains(reason), "{field} = {value}: {error}");
    }
    assert!(ClusterNetwork::parse(b"[]").unwrap_err().to_string().contains("not a JSON object"));
    assert!(ClusterNetwork::parse(b"{").unwrap_err().to_string().contains("not JSON"));
}

#[test]
fn the_extremes_hold() {
    let whole = with("HostSubnetLength", json!(16)).unwrap();
    assert_eq!((whole.subnet_count(), whole.subnet_prefix_length()), (1, 16));
    let mut config = good();
    config["ServiceNetwork"] = json!("");
    config["Network"] = json!("0.0.0.0/0");
    for (length, count) in [(2, 1 << 30), (32, 1)] {
        config["HostSubnetLength"] = json!(length);
        let parsed = ClusterNetwork::parse(config.to_string().as_bytes()).unwrap();
        assert_eq!(parsed.subnet_count(), count);
    }
}
