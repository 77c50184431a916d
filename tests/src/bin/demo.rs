//! The demo: a three-node cluster in namespaces, pods of three tenants, pods on physical segments, and what an
//! administrator types.

use std::{env, process::ExitCode};

use serde_json::json;
use tenon_tests::{
    BedError, Cluster, Outcome, Plan,
    command::Tool,
    etcd::{Etcd, NETWORK, PREFIX},
    ground,
    matrix::{Matrix, Place},
    netns::Netns,
    pod::Pod,
    probe,
    segment::{self, Switch},
};

const TENANTS: [&str; 3] = ["shop", "bank", "tools"];
const PODS: [(&str, usize); 6] =
    [("shop-1", 1), ("shop-2", 2), ("bank-1", 2), ("bank-2", 3), ("tools-1", 3), ("tools-2", 1)];
/// The segments: name, the nodes' link on it, and the beginning of its addresses.
const SEGMENTS: [(&str, &str, &str); 2] = [("floor", "eth1", "10.100.0"), ("vault", "eth2", "10.101.0")];
/// A machine that has left the floor and whose service is now a pod: its address and MAC address.
const MOVED: (&str, &str) = ("10.100.0.50", "52:54:00:12:34:56");

fn main() -> ExitCode {
    let argument = env::args().nth(1);
    match argument.as_deref() {
        None => finish(show(false)),
        Some("--keep") => finish(show(true)),
        Some("--sweep") => {
            ground::sweep();
            ExitCode::SUCCESS
        }
        Some("--remove") => {
            for name in ground::remove_kept() {
                println!("removed {name}");
            }
            ExitCode::SUCCESS
        }
        Some(other) => {
            eprintln!("demo: unknown argument {other}; there are --keep, --remove and --sweep");
            ExitCode::from(2)
        }
    }
}

fn finish(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("demo: {e}");
            ExitCode::FAILURE
        }
    }
}

fn show(keep: bool) -> Outcome {
    ground::remove_own_on_signals()?;
    let cluster = Cluster::start(&Plan { internet: true, ..Plan::nodes(3) })?;
    let shown = steps(&cluster);
    if shown.is_err() {
        cluster.ground.fail();
    }
    let mut pods = shown?;
    let physical = on_segments(&cluster, &mut pods);
    if physical.is_err() {
        cluster.ground.fail();
    }
    let _physical = physical?;
    if keep {
        cluster.ground.keep()?;
        explain(&cluster, &pods)?;
    }
    Ok(())
}

fn steps(cluster: &Cluster) -> Result<Vec<Pod>, BedError> {
    println!(
        "Three nodes, each with its own Open vSwitch ({} datapath) and tenon-agent, one etcd.",
        cluster.datapath.name()
    );
    cluster.add_tenants(&TENANTS)?;
    let mut pods = Vec::new();
    for (name, node) in PODS {
        let node = cluster.node(node);
        let pod = node.pod(tenant_of(name), name)?;
        println!(
            "  tenon ADD: pod {name:8} of tenant {:6} on {} has {}",
            tenant_of(name),
            node.name(),
            pod.address()?
        );
        pods.push(pod);
    }
    let places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;

    println!("\nEvery tenant is on its own:");
    table(&places, |from, to| from == to)?;

    admin(cluster, "bank", "join", "shop")?;
    println!("bank has joined shop:");
    table(&places, |from, to| from == to || (from != "tools" && to != "tools"))?;

    admin(cluster, "bank", "isolate", "")?;
    println!("bank is on its own again:");
    table(&places, |from, to| from == to)?;

    admin(cluster, "tools", "global", "")?;
    println!("tools is global: it and all others reach each other:");
    table(&places, |from, to| from == to || from == "tools" || to == "tools")?;
    Ok(pods)
}

/// A pod's name begins with its tenant's.
fn tenant_of(pod: &str) -> &str {
    pod.split('-').next().unwrap_or(pod)
}

/// Prints the measured table, which has to be the one that the rule on tenants makes.
fn table(places: &[Place], rule: impl Fn(&str, &str) -> bool) -> Outcome {
    let seen = Matrix::require(places, |from, to| rule(tenant_of(from), tenant_of(to)))?;
    println!("{seen}");
    Ok(())
}

/// Pods of the mode macvlan on two physical segments, with a machine that is no pod on each.
fn on_segments(cluster: &Cluster, pods: &mut Vec<Pod>) -> Result<(Vec<Switch>, Vec<Netns>), BedError> {
    println!("Two physical segments, each with a switch, a link on every node and a virtual machine:");
    let (mut switches, mut machines, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for (name, master, net) in SEGMENTS {
        let switch = Switch::create(cluster, name, master)?;
        let address = format!("{net}.1");
        let machine = switch.machine(&format!("{name}-vm"), &[&format!("{address}/24")])?;
        places.push(Place {
            name: format!("{name}-vm"),
            netns: machine.path(),
            address: address.parse().map_err(|_| BedError::answer("the machine's address", &address))?,
        });
        let changes = json!({
            "Master": master, "Subnet": format!("{net}.0/24"), "Gateway": address,
            "RangeStart": "", "RangeEnd": "", "ProbeMs": 100,
        });
        etcdctl_put(
            cluster,
            &format!("/{NETWORK}/segments/{name}"),
            &segment::record(name, &changes).to_string(),
        )?;
        switches.push(switch);
        machines.push(machine);
    }
    let (ip, mac) = MOVED;
    for (segment, number, moved) in
        [("floor", 1, false), ("floor", 2, true), ("vault", 1, false), ("vault", 3, false)]
    {
        let node = cluster.node(number);
        let mut pod = node.segment_sandbox(segment, "shop", &format!("{segment}-{number}"))?;
        if moved {
            pod.cni = pod.cni.with("runtimeConfig", json!({"ips": [ip], "mac": mac}));
        }
        pod.add()?;
        let told = if moved { ", those of the machine that it replaces" } else { "" };
        println!(
            "  tenon ADD: pod {} on {} has {} and {}{told}",
            pod.attachment.pod,
            node.name(),
            pod.address()?,
            pod.result_mac()?
        );
        places.push(pod.place()?);
        pods.push(pod);
    }
    println!("\nPods and machines of one segment reach each other, on every node:");
    table(&places, |from, to| from == to)?;
    println!("A node and its own pods on a segment reach each other, both ways:");
    for pod in pods.iter().filter(|pod| pod.attachment.pod.ends_with("-1") && pod.cni.network != "tenon") {
        let (node, address) = (cluster.node(1), pod.address()?);
        let std::net::IpAddr::V4(source) = node.source_towards(address.into())? else { continue };
        let there = probe::ping(&node.netns().path(), address)?;
        let back = probe::ping(&pod.netns().path(), source)?;
        if !(there && back) {
            let seen = format!("there: {there}, back: {back}");
            return Err(BedError::answer(format!("{source} and {address}"), seen));
        }
        println!("  {} ({source}) and {} ({address}): yes", node.name(), pod.attachment.pod);
    }
    println!();
    Ok((switches, machines))
}

/// Prints and runs the very command that an administrator types.
fn admin(cluster: &Cluster, tenant: &str, action: &str, other: &str) -> Outcome {
    let record = cluster.etcd.action_record(tenant, action, other)?;
    etcdctl_put(cluster, &Etcd::tenant_key(tenant), &record)?;
    println!("  etcd now holds {}", cluster.etcd.settled(tenant)?);
    Ok(())
}

fn etcdctl_put(cluster: &Cluster, key: &str, value: &str) -> Outcome {
    let command = format!(
        "ETCDCTL_API=3 etcdctl --endpoints={} put {PREFIX}{key} '{value}'",
        cluster.etcd.endpoints().join(",")
    );
    println!("$ {command}");
    Tool::new("sh").inside(cluster.underlay.netns().path()).args(["-c", &command]).run().map(|_| ())
}

fn explain(cluster: &Cluster, pods: &[Pod]) -> Outcome {
    println!("Left standing. Enter a pod, a node, or the switch that etcd is on:");
    if let (Some(first), Some(second)) = (pods.first(), pods.get(1)) {
        println!("  ip netns exec {} ping {}", first.netns().name(), second.address()?);
    }
    let node = cluster.node(1);
    println!(
        "  ip netns exec {} ovs-ofctl -O OpenFlow14 dump-flows unix:{}/br0.mgmt",
        node.netns().name(),
        node.ovs().dir().display()
    );
    println!(
        "  ip netns exec {} env ETCDCTL_API=3 etcdctl --endpoints={} get --prefix {PREFIX}",
        cluster.underlay.netns().name(),
        cluster.etcd.endpoints().join(",")
    );
    println!("Remove it with\n  make demo-remove");
    Ok(())
}
