//! Segments on VLANs of a trunk port. Runs inside User-Mode Linux, and fails on a kernel without VLANs.

use std::{net::Ipv4Addr, time::Duration};

use serde_json::{Value, json};
use tenon_tests::{
    Outcome, Plan,
    command::until,
    datapath::patience,
    matrix::{Matrix, Place},
    netns::Netns,
    node::Node,
    pod::Pod,
    probe, run,
    segment::{MASTER, Switch, record},
};

fn segment(vlan: u16) -> Value {
    let subnet = |rest: &str| format!("10.{vlan}.0.{rest}");
    let changes = json!({
        "Vlan": vlan, "Subnet": subnet("0/24"), "Gateway": subnet("1"),
        "RangeStart": subnet("10"), "RangeEnd": subnet("99"),
    });
    record(&format!("vlan{vlan}"), &changes)
}

fn machine(name: &str, netns: &Netns, vlan: u8) -> Place {
    Place { name: name.into(), netns: netns.path(), address: Ipv4Addr::new(10, vlan, 0, 1) }
}

fn has_link(node: &Node, vlan: u16) -> Result<bool, tenon_tests::BedError> {
    let link = format!("{MASTER}.{vlan}");
    Ok(node.links()?.contains(&link))
}

/// Two VLANs and the untagged frames of one trunk: pods reach those of their own VLAN, on both nodes and outside, and
/// no other. The VLAN's link is there from the first pod to the last.
#[test]
fn vlans_of_a_trunk_are_apart() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let switch = Switch::create(cluster, "lan", MASTER)?;
        switch.trunk(&["node1", "node2"], &[100, 200])?;
        let machines =
            [switch.machine("x100", &["10.100.0.1/24"])?, switch.machine("x200", &["10.200.0.1/24"])?];
        let untagged = switch.machine("x0", &["10.50.0.1/24"])?;
        switch.access("x100", 100)?;
        switch.access("x200", 200)?;
        for vlan in [100, 200] {
            cluster.etcd.put_segment(&segment(vlan))?;
        }
        let plain =
            json!({"Subnet": "10.50.0.0/24", "Gateway": "10.50.0.1", "RangeStart": "", "RangeEnd": ""});
        cluster.etcd.put_segment(&record("plain", &plain))?;
        let (one, two) = (cluster.node(1), cluster.node(2));
        assert!(!has_link(one, 100)?);
        let pods = [
            one.segment_pod("vlan100", "a", "p100-1")?,
            two.segment_pod("vlan100", "a", "p100-2")?,
            one.segment_pod("vlan200", "a", "p200-1")?,
            two.segment_pod("vlan200", "a", "p200-2")?,
            one.segment_pod("plain", "a", "p000-1")?,
        ];
        assert!(has_link(one, 100)? && has_link(one, 200)? && has_link(two, 100)?);
        let mut places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
        places.push(machine("x100", &machines[0], 100));
        places.push(machine("x200", &machines[1], 200));
        places.push(machine("x000", &untagged, 50));
        Matrix::require(&places, |from, to| from[1..4] == to[1..4])?;
        for pod in [&pods[0], &pods[2], &pods[4]] {
            assert!(
                probe::ping(&one.netns().path(), pod.address()?)?,
                "host access to {}",
                pod.attachment.pod
            );
            let check = pod.check()?;
            assert!(check.success, "{}", check.text);
        }

        // The link goes after the last pod alone, also with an agent that did not make it.
        let second = one.segment_pod("vlan100", "a", "p100-3")?;
        pods[0].del()?;
        one.kill_agent();
        one.start_agent()?;
        assert!(has_link(one, 100)? && probe::ping(&machines[0].path(), second.address()?)?);
        second.del()?;
        until("the end of an unused VLAN link", patience(Duration::from_secs(10)), || {
            match has_link(one, 100) {
                Ok(false) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
        assert!(has_link(one, 200)?);
        Matrix::require(&places[1..], |from, to| from[1..4] == to[1..4])?;
        Ok(())
    })
}

/// A VLAN link that an administrator made is used, and stays.
#[test]
fn vlan_link_of_the_administrator_stays() -> Outcome {
    run(&Plan::nodes(1), |cluster| {
        let switch = Switch::create(cluster, "lan", MASTER)?;
        switch.trunk(&["node1"], &[100])?;
        let outside = switch.machine("x100", &["10.100.0.1/24"])?;
        switch.access("x100", 100)?;
        cluster.etcd.put_segment(&segment(100))?;
        let node = cluster.node(1);
        let link = format!("{MASTER}.100");
        node.netns().ip(&["link", "add", "link", MASTER, "name", &link, "type", "vlan", "id", "100"])?;
        node.netns().ip(&["link", "set", &link, "up"])?;
        let pod = node.segment_pod("vlan100", "a", "p")?;
        assert!(probe::ping(&outside.path(), pod.address()?)?);
        pod.del()?;
        until("the release", patience(Duration::from_secs(10)), || {
            let held = cluster.etcd.held("vlan100").map_err(|e| e.to_string())?;
            if held.is_empty() { Ok(()) } else { Err(format!("{held:?}")) }
        })?;
        std::thread::sleep(patience(Duration::from_secs(1)));
        assert!(has_link(node, 100)?);
        Ok(())
    })
}
