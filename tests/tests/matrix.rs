//! Who reaches whom: every pod, node, gateway and the world beyond, at rest.

use std::time::Duration;

use tenon_tests::{
    Outcome, Plan,
    command::Tool,
    datapath::Datapath,
    frames::{self, Capture},
    matrix::{Matrix, Place},
    pod::Pod,
    probe, run,
};

/// Pods of two tenants, of one that is global, and of the default tenant, on three nodes.
#[test]
fn tenants_are_apart_and_nodes_reach_all() -> Outcome {
    run(&Plan { internet: true, ..Plan::nodes(3) }, |cluster| {
        cluster.add_tenants(&["a", "b", "c", "default"])?;
        cluster.etcd.act("c", "global", "")?;
        let pods = [
            cluster.node(1).pod("a", "a1")?,
            cluster.node(1).pod("a", "a2")?,
            cluster.node(2).pod("a", "a3")?,
            cluster.node(1).pod("b", "b1")?,
            cluster.node(3).pod("b", "b2")?,
            cluster.node(2).pod("c", "c1")?,
            cluster.node(3).pod("default", "d1")?,
            cluster.node(1).pod(None::<&str>, "d2")?,
        ];
        let vni_of = |tenant| cluster.etcd.vni(tenant);
        let vnis = [("a", vni_of("a")?), ("b", vni_of("b")?), ("c", vni_of("c")?), ("d", vni_of("default")?)];
        let vni = |name: &str| vnis.iter().find(|(tenant, _)| name.starts_with(tenant)).map(|(_, vni)| *vni);

        let mut places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
        for node in &cluster.nodes {
            places.push(Place { name: format!("node-{}", node.name()), ..node.place() });
            places.push(cluster.gateway_place(node)?);
        }
        let world = cluster.internet.as_ref().map(|i| i.place()).expect("the plan has an internet");
        places.push(Place { name: "world".into(), ..world });
        Matrix::require(&places, |from, to| match (vni(from), vni(to)) {
            (Some(from), Some(to)) => from == to || from == 0 || to == 0,
            // The world knows the underlay alone.
            _ if from == "world" => to.starts_with("node-"),
            // Pods reach every node and the world; a node reaches all.
            _ => true,
        })?;

        let place = |pod: &Pod| pod.place();
        probe::tcp_echo(&place(&pods[0])?, &place(&pods[1])?, 1 << 20)?;
        probe::tcp_echo(&place(&pods[0])?, &place(&pods[2])?, 1 << 20)?;
        probe::tcp_echo(&cluster.node(3).place(), &place(&pods[0])?, 1 << 18)?;
        probe::tcp_echo(&place(&pods[0])?, &cluster.node(1).place(), 1 << 18)?;
        Ok(())
    })
}

/// A pod's packets leave the cluster network under its node's address, and TCP gets through.
#[test]
fn world_sees_the_node_and_not_the_pod() -> Outcome {
    run(&Plan { internet: true, ..Plan::nodes(2) }, |cluster| {
        cluster.add_tenants(&["a"])?;
        let pod = cluster.node(1).pod("a", "a1")?;
        let world = cluster.internet.as_ref().map(|i| i.place()).expect("the plan has an internet");
        let is_ipv4 = |frame: &[u8]| frame.get(12..14) == Some(&[8, 0][..]);
        let capture = Capture::start(&world.netns, "eth0", move |frame| is_ipv4(frame))?;
        probe::tcp_echo(&pod.place()?, &world, 1 << 18)?;
        let seen = capture.stop(Duration::from_millis(100));
        let address = cluster.node(1).address();
        let from_node = seen.iter().filter(|frame| frame.get(26..30) == Some(&address.octets()[..])).count();
        assert!(from_node > 3, "only {from_node} packets came from {address}");
        let pod_address = pod.address()?.octets();
        assert!(!seen.iter().any(|frame| frames::contains(frame, &pod_address)));

        // The userspace datapath hands packets on with unfilled checksums, unless the sender fills them.
        if cluster.datapath == Datapath::Userspace {
            let offload = Tool::new("ethtool").inside(pod.netns().path()).args(["-k", "eth0"]).run()?;
            assert!(offload.contains("tx-checksumming: off"), "{offload}");
        }
        Ok(())
    })
}

/// Single-tenant mode: one flat network, whatever the tenants' records say.
#[test]
fn single_tenant_mode_is_flat() -> Outcome {
    run(&Plan { plugin: "k8s-ovs-subnet", ..Plan::nodes(2) }, |cluster| {
        let pods = [
            cluster.node(1).pod("a", "a1")?,
            cluster.node(2).pod("a", "a2")?,
            cluster.node(1).pod("b", "b1")?,
            cluster.node(2).pod(None::<&str>, "d1")?,
        ];
        let mut places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
        places.extend(cluster.nodes.iter().map(|node| node.place()));
        Matrix::require(&places, |_, _| true)?;
        Ok(())
    })
}
