//! Node records: one address belongs to one node, and each node keeps its subnet.

use std::{net::Ipv4Addr, thread, time::Duration};

use serde_json::Value;
use tenon_tests::{
    BedError, Cluster, Outcome, Plan,
    command::until,
    datapath::patience,
    etcd::{Etcd, NETWORK, PREFIX},
    matrix::Matrix,
    pod::Pod,
    run,
};

/// All node records.
fn records(cluster: &Cluster) -> Result<Vec<Value>, BedError> {
    let text = cluster.etcd.ctl(&[
        "get",
        "--prefix",
        "--print-value-only",
        &format!("{PREFIX}/{NETWORK}/subnets/"),
    ])?;
    let parse = |line: &str| serde_json::from_str(line).map_err(|_| BedError::answer("a node record", line));
    text.lines().filter(|line| !line.trim().is_empty()).map(parse).collect()
}

/// openshift/origin#19080: a second node comes with a node's address.
#[test]
fn second_node_with_an_address_is_not_ready_and_says_so() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        cluster.add_tenants(&["a"])?;
        let pods = [cluster.node(1).pod("a", "a1")?, cluster.node(2).pod("a", "a2")?];
        let places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
        Matrix::require(&places, |_, _| true)?;
        let before = records(cluster)?;

        // The thief reaches etcd by an address of its own, and claims the first node's in its configuration.
        let thief = cluster.bare_node("thief", Ipv4Addr::new(10, 0, 0, 88))?;
        let claimed = cluster.node(1).address();
        thief.launch_agent_as("thief", claimed)?;
        let cni = thief.cni()?.version("1.1.0");
        let told = until("the second agent's refusal", patience(Duration::from_secs(15)), || {
            let reply = cni.call("STATUS", None).map_err(|e| e.to_string())?;
            let names_it = reply.text.contains(&claimed.to_string()) || reply.text.contains("node1");
            let said = names_it || thief.log().contains(&claimed.to_string());
            if !reply.success && said { Ok(reply) } else { Err(reply.text) }
        })?;
        assert!(matches!(told.code(), Some(50 | 51)) || !thief.agent_alive(), "{}", told.text);
        thread::sleep(Duration::from_secs(1));
        assert_eq!(records(cluster)?, before, "the first node's record is unharmed");
        Matrix::require(&places, |_, _| true)?;
        Ok(())
    })
}

/// Two nodes exchange their addresses; their pods' subnets stay with the nodes, and no two share one.
#[test]
fn nodes_that_swap_addresses_keep_their_subnets() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        cluster.add_tenants(&["a"])?;
        let pods = [cluster.node(1).pod("a", "a1")?, cluster.node(2).pod("a", "a2")?];
        let places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
        Matrix::require(&places, |_, _| true)?;
        let subnet_of = |host: &str| -> Result<Value, BedError> {
            let all = records(cluster)?;
            let record = all.iter().find(|r| r.get("Host").and_then(Value::as_str) == Some(host));
            Ok(record.and_then(|r| r.get("Subnet")).cloned().unwrap_or(Value::Null))
        };
        let before = (subnet_of("node1")?, subnet_of("node2")?);
        for node in &cluster.nodes {
            node.stop_agent();
        }
        let (one, two) = (cluster.node(1), cluster.node(2));
        one.change_address(two.address())?;
        two.change_address(one.address())?;
        one.launch_agent_as("node1", two.address())?;
        two.launch_agent_as("node2", one.address())?;
        for node in &cluster.nodes {
            node.wait_ready()?;
        }
        assert_eq!((subnet_of("node1")?, subnet_of("node2")?), before);
        let record = cluster.etcd.record(&Etcd::subnet_key(two.address()))?.unwrap_or(Value::Null);
        assert_eq!(record["Host"], "node1");
        assert_eq!(records(cluster)?.len(), 2);
        Matrix::require(&places, |_, _| true)?;
        Ok(())
    })
}

/// Every node has a subnet of its own, registered by itself, with `Assign` false again.
#[test]
fn nodes_register_themselves() -> Outcome {
    run(&Plan { host_bits: 8, ..Plan::nodes(3) }, |cluster| {
        let records = records(cluster)?;
        let mut subnets: Vec<&str> = records.iter().filter_map(|r| r.get("Subnet")?.as_str()).collect();
        subnets.sort_unstable();
        subnets.dedup();
        assert_eq!(subnets.len(), 3, "{records:?}");
        for (record, subnet) in records.iter().zip(&subnets) {
            assert!(subnet.starts_with("172.11.") && subnet.ends_with(".0/24"), "{subnet}");
            assert_eq!(record["Assign"], false, "{record}");
        }
        Ok(())
    })
}
