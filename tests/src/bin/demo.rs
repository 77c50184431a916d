//! The demo: a three-node cluster in namespaces, pods of three tenants, and what an administrator types.

use std::{env, process::ExitCode};

use tenon_tests::{
    BedError, Cluster, Outcome, Plan,
    command::Tool,
    etcd::{Etcd, PREFIX},
    ground,
    matrix::{Matrix, Place},
    pod::Pod,
};

const TENANTS: [&str; 3] = ["shop", "bank", "tools"];
const PODS: [(&str, usize); 6] =
    [("shop-1", 1), ("shop-2", 2), ("bank-1", 2), ("bank-2", 3), ("tools-1", 3), ("tools-2", 1)];

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
    let pods = shown?;
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

/// Prints and runs the very command that an administrator types.
fn admin(cluster: &Cluster, tenant: &str, action: &str, other: &str) -> Outcome {
    let record = cluster.etcd.action_record(tenant, action, other)?;
    let command = format!(
        "ETCDCTL_API=3 etcdctl --endpoints={} put {PREFIX}{} '{record}'",
        cluster.etcd.endpoints().join(","),
        Etcd::tenant_key(tenant)
    );
    println!("$ {command}");
    Tool::new("sh").inside(cluster.underlay.netns().path()).args(["-c", &command]).run()?;
    println!("  etcd now holds {}", cluster.etcd.settled(tenant)?);
    Ok(())
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
