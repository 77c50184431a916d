//! Hosts outside the cluster, such as load balancers: an administrator gives them a subnet, and they reach every pod.

use std::{net::Ipv4Addr, time::Duration};

use serde_json::{Value, json};
use tenon_tests::{
    Outcome, Plan,
    command::until,
    datapath::patience,
    etcd::Etcd,
    matrix::{Matrix, Place},
    pod::Pod,
    probe, run,
};

#[test]
fn external_host_reaches_every_tenant() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        cluster.add_tenants(&["a", "b"])?;
        let pods = [cluster.node(1).pod("a", "a1")?, cluster.node(2).pod("b", "b1")?];
        let pod_places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;

        let address = Ipv4Addr::new(10, 0, 0, 77);
        let key = Etcd::subnet_key(address);
        let request =
            json!({"Host": "balancer", "HostIP": address, "Subnet": "", "Assign": true, "Rack": "r1"});
        cluster.etcd.put(&key, &request.to_string())?;
        let assigned = until("a subnet for the host", patience(Duration::from_secs(10)), || {
            let record = cluster.etcd.record(&key).map_err(|e| e.to_string())?.unwrap_or(Value::Null);
            let given = record.get("Subnet").and_then(Value::as_str).is_some_and(|s| !s.is_empty());
            if given { Ok(record) } else { Err(record.to_string()) }
        })?;
        assert_eq!(assigned["Assign"], json!(false));
        assert_eq!(assigned["Rack"], json!("r1"), "a field that the program does not know is kept");
        for node in &cluster.nodes {
            let other = cluster.etcd.record(&Etcd::subnet_key(node.address()))?.unwrap_or(Value::Null);
            assert_ne!(other["Subnet"], assigned["Subnet"]);
        }

        let host = cluster.bare_node("balancer", address)?;
        host.start_agent()?;
        let record = cluster.etcd.record(&key)?.unwrap_or(Value::Null);
        assert_eq!(record["Subnet"], assigned["Subnet"], "the host keeps the subnet it was given");

        let mut places = pod_places.clone();
        places.push(Place { name: "gw-balancer".into(), ..cluster.gateway_place(&host)? });
        let balancer = |name: &str| name == "gw-balancer";
        Matrix::require(&places, |from, to| balancer(from) || balancer(to))?;
        probe::tcp_echo(&places[2], &places[0], 1 << 18)?;
        probe::tcp_echo(&places[1], &places[2], 1 << 18)?;

        // Its record goes: what it sends by VXLAN is not taken any more, nor is anything sent to it.
        host.stop_agent();
        cluster.etcd.delete(&key)?;
        Matrix::require(&places, |_, _| false)?;
        Ok(())
    })
}
