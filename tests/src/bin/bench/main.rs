//! The benchmark: how long a pod's attachment takes beside other ways to the same end, how soon a tenant's move
//! has reached every node, and what the programs weigh.
//!
//! All figures come from one run on one machine and are to be read beside each other; alone they say more about the
//! machine. A goal that is missed is printed and fails nothing. With the argument `macvlan` only that mode is measured,
//! with `bandwidth` the limits, which nothing else measures.

mod bandwidth;
mod figures;
mod footprint;
mod gateway;
mod join;
mod latency;
mod macvlan;
mod way;

use std::{env, fs, process::ExitCode, time::Instant};

use tenon_tests::{BedError, Cluster, Outcome, Plan, datapath::Datapath, ground, pod::Pod};

use gateway::Gateway;
use join::Moves;
use latency::{Lane, Lanes, Rest, Sandboxes};
use way::{Ancestor, Reference, Way};

/// Pods on the node that is called full.
const PODS: usize = 250;
/// Pods of the moving tenant on each of the other nodes.
const PODS_ELSEWHERE: usize = 5;
const TENANTS: [&str; 10] =
    ["alder", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine"];
const MANY_TENANTS: usize = 5_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    ground::remove_own_on_signals()?;
    ground::require("/usr/lib/cni/bridge", "containernetworking-plugins")?;
    let begin = Instant::now();
    let load = || fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load_before = load();
    if env::args().nth(1).as_deref() == Some("bandwidth") {
        bandwidth::run()?;
        println!("\nload average before {}, after {}", load_before.trim(), load().trim());
        return Ok(());
    }
    let only_macvlan = env::args().nth(1).as_deref() == Some("macvlan");
    if !only_macvlan {
        let cluster = Cluster::start(&Plan::nodes(3))?;
        measure(&cluster).inspect_err(|_| cluster.ground.fail())?;
    }
    macvlan::measure()?;
    println!(
        "\n{} s on the {} datapath; load average before {}, after {}",
        begin.elapsed().as_secs(),
        Datapath::from_env()?.name(),
        load_before.trim(),
        load().trim()
    );
    Ok(())
}

fn measure(cluster: &Cluster) -> Outcome {
    let [tenant, other, ..] = TENANTS;
    cluster.add_tenants(&TENANTS)?;
    let (empty, full, third) = (cluster.node(1), cluster.node(2), cluster.node(3));
    let mut on_full: Vec<Pod> = Vec::new();
    for (number, tenant) in (0..PODS).zip(TENANTS.into_iter().cycle()) {
        on_full.push(full.pod(tenant, &format!("full{number}"))?);
    }

    footprint::start_time()?;
    let sandboxes = Sandboxes::create(cluster)?;
    let mut lanes = Lanes {
        tenon: Lane::new("tenon", Way::Tenon(empty.cni()?)),
        tenon_full: Lane::new("tenon, 250 pods there", Way::Tenon(full.cni()?)),
        bridge: Lane::new("bridge + host-local", Way::Reference(Reference::bridge(cluster)?)),
        ancestor: Lane::new("the ancestor's script", Way::Ancestor(Box::new(Ancestor::new(cluster)?))),
    };
    let switches = Rest::of(&[empty, full])?;
    lanes.one_at_a_time(&sandboxes, tenant, &switches)?;
    lanes.many_at_a_time(&sandboxes, tenant, &switches)?;
    drop(lanes);

    let mut gateway = Gateway::connect(cluster)?;
    let mut elsewhere = Vec::new();
    for node in [empty, third] {
        let pods: Result<Vec<Pod>, BedError> =
            (0..PODS_ELSEWHERE).map(|n| node.pod(tenant, &format!("{}-{n}", node.name()))).collect();
        elsewhere.push(pods?);
    }
    let on_empty = elsewhere.first().map_or(&[][..], Vec::as_slice);
    let on_third = elsewhere.last().map_or(&[][..], Vec::as_slice);
    let moves = Moves::new(cluster, tenant, other, [on_empty, &on_full, on_third])?;
    moves.measure(&mut gateway, TENANTS.len())?;
    join::import_tenants(cluster, &mut gateway, MANY_TENANTS)?;
    moves.measure(&mut gateway, MANY_TENANTS)?;
    footprint::weight(cluster, MANY_TENANTS)
}
