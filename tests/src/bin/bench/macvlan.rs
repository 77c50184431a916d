//! Pods on a physical segment beside the reference macvlan plugin, and addresses that many agents take from one
//! segment at a time.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tenon_tests::{
    BedError, Cluster, Outcome, Plan,
    cni::Cni,
    netns,
    netns::Netns,
    node::Node,
    segment,
    segment::{MASTER, Switch},
    threads::joined,
    underlay::etcd_address,
};

use crate::{
    figures::{Goal, Samples, judge, median, topic},
    latency::{AT_A_TIME, BATCH, BATCH_ROUNDS, BLOCK, SETTLING, Sandboxes, calls},
    way::{Reference, Verb, Way},
};

/// Every round takes all ways through a block of ADDs, then through one of DELs.
const ROUNDS: usize = 15;
/// How many agents take addresses of one segment at a time.
const CONTENDING: [usize; 3] = [1, 4, 16];
/// Batches of ADDs for each number of agents.
const CONTENTION_ROUNDS: usize = 3;

/// Measures, on clusters of its own.
pub(crate) fn measure() -> Outcome {
    beside_the_reference()?;
    contention()
}

/// Nodes without Open vSwitch: macvlan needs none, and a switch in user space would be on the way to etcd.
fn plan(nodes: u8) -> Plan {
    Plan { overlay: false, ..Plan::nodes(nodes) }
}

fn segments(cluster: &Cluster) -> Outcome {
    let with = |name: &str, net: u8, host_access: bool| {
        let net = |rest: &str| format!("10.{net}.{rest}");
        let changes = json!({
            "Subnet": net("0.0/16"), "Gateway": net("0.1"), "RangeStart": "", "RangeEnd": "",
            "HostAccess": host_access,
            // What is given back stays so: the controller's deletions would count among the requests.
            "QuarantineSeconds": 3600,
        });
        cluster.etcd.put_segment(&segment::record(name, &changes))
    };
    with("lan", 100, true)?;
    with("plain", 101, false)
}

fn caller(node: &Node, segment: &str) -> Result<Cni, BedError> {
    let mut cni = node.cni()?.with("mode", json!("macvlan")).with("segment", json!(segment));
    cni.network = segment.to_owned();
    Ok(cni)
}

struct Lane {
    name: &'static str,
    way: Way,
    add: Samples,
    del: Samples,
    /// Pods per second, one at a time and many.
    rates: [Vec<f64>; 2],
}

fn beside_the_reference() -> Outcome {
    let cluster = Cluster::start(&plan(1))?;
    let switch = Switch::create(&cluster, "lan", MASTER)?;
    segments(&cluster)?;
    let apart = Netns::create(&cluster.ground, "reference")?;
    switch.plug(&apart, MASTER, "reference")?;
    let sandboxes = Sandboxes::create(&cluster)?;
    let node = cluster.node(1);
    let lane = |name, way| Lane {
        name,
        way,
        add: Samples::default(),
        del: Samples::default(),
        rates: [Vec::new(), Vec::new()],
    };
    let mut lanes = [
        lane("tenon macvlan", Way::Tenon(caller(node, "lan")?)),
        lane("the same, no host access", Way::Tenon(caller(node, "plain")?)),
        lane("macvlan + host-local", Way::Reference(Reference::macvlan(&cluster, apart, MASTER))),
    ];
    let done = compare(&mut lanes, &sandboxes).and_then(|()| requests_alone(&cluster, &lanes[0], &sandboxes));
    done.inspect_err(|_| cluster.ground.fail())
}

fn compare(lanes: &mut [Lane; 3], sandboxes: &Sandboxes) -> Outcome {
    for round in 0..ROUNDS {
        for turn in 0..lanes.len() {
            let lane = &mut lanes[(round + turn) % 3];
            let pods = sandboxes.pods("lan", BLOCK);
            lane.add.extend(calls(&lane.way, Verb::Add, &pods, 1)?.0);
            thread::sleep(SETTLING);
            lane.del.extend(calls(&lane.way, Verb::Del, &pods, 1)?.0);
            sandboxes.settle(BLOCK)?;
        }
    }
    for _ in 0..BATCH_ROUNDS {
        for lane in &mut *lanes {
            for (at_a_time, rates) in [1, AT_A_TIME].into_iter().zip(&mut lane.rates) {
                let pods = sandboxes.pods("lan", BATCH);
                let (_, whole) = calls(&lane.way, Verb::Add, &pods, at_a_time)?;
                rates.push(pods.len() as f64 / whole.as_secs_f64());
                thread::sleep(SETTLING);
                calls(&lane.way, Verb::Del, &pods, AT_A_TIME)?;
                sandboxes.settle(BATCH)?;
            }
        }
    }
    print(lanes);
    Ok(())
}

fn print(lanes: &[Lane; 3]) {
    topic(&format!(
        "macvlan: ADD and DEL one at a time, {} of each, in milliseconds; ADDs per second (of {BATCH} pods)",
        lanes[0].add.count()
    ));
    println!(
        "  {:<26} {:>8} {:>8}   {:>8} {:>8}   {:>8} {:>8}",
        "", "ADD p50", "p99", "DEL p50", "p99", "one", "16"
    );
    for Lane { name, add, del, rates: [one, many], .. } in lanes {
        println!(
            "  {name:<26} {:>8.2} {:>8.2}   {:>8.2} {:>8.2}   {:>8.0} {:>8.0}",
            add.p50(),
            add.p99(),
            del.p50(),
            del.p99(),
            median(one),
            median(many)
        );
    }
    let [tenon, _, reference] = lanes;
    let ratio = |a: &Samples, b: &Samples| a.p50() / b.p50();
    judge("ADD p50, tenon : macvlan + host-local", ratio(&tenon.add, &reference.add), "", Goal::AtMost(0.4));
    judge("DEL p50, tenon : macvlan + host-local", ratio(&tenon.del, &reference.del), "", Goal::AtMost(0.15));
}

/// The sum of an etcd member's counters whose names and labels `wanted` holds for.
fn counted(cluster: &Cluster, wanted: impl Fn(&str) -> bool) -> Result<f64, BedError> {
    let address = etcd_address(1);
    let text = netns::inside(&cluster.underlay.netns().path(), || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((address, 2379))?;
        stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?
    .map_err(|e| BedError::system("read etcd's /metrics", e))?;
    let counter = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        if wanted(name) { value.parse::<f64>().ok() } else { None }
    };
    let counters: Vec<f64> = text.lines().filter_map(counter).collect();
    if counters.is_empty() {
        return Err(BedError::answer("find a counter in etcd's /metrics", text));
    }
    Ok(counters.iter().sum())
}

/// How many requests to its key-value store the member has begun to answer (the counters of go-grpc-prometheus).
fn requests(cluster: &Cluster) -> Result<f64, BedError> {
    let of_store = "\"etcdserverpb.KV\"";
    counted(cluster, |name| name.starts_with("grpc_server_started_total{") && name.contains(of_store))
}

/// How long the member's disk has taken for a write until now, on average, in milliseconds.
fn fsync(cluster: &Cluster) -> Result<f64, BedError> {
    let of = |part| move |name: &str| name == format!("etcd_disk_wal_fsync_duration_seconds_{part}");
    Ok(counted(cluster, of("sum"))? / counted(cluster, of("count"))? * 1e3)
}

/// The requests of a stretch of work, without those that come in as long a time without work.
fn requests_during<T>(
    cluster: &Cluster,
    work: impl FnOnce() -> Result<T, BedError>,
) -> Result<(T, f64), BedError> {
    let before = requests(cluster)?;
    let begin = Instant::now();
    let done = work()?;
    let busy = requests(cluster)? - before;
    thread::sleep(begin.elapsed());
    let idle = requests(cluster)? - before - busy;
    Ok((done, busy - idle))
}

fn requests_alone(cluster: &Cluster, lane: &Lane, sandboxes: &Sandboxes) -> Outcome {
    println!("  of tenon's time, etcd's write to the disk takes {:.2} ms on average", fsync(cluster)?);
    topic("macvlan: requests to etcd, one pod at a time");
    let pods = sandboxes.pods("lan", BATCH);
    // What came before is to be over.
    thread::sleep(Duration::from_secs(1));
    for (verb, what) in [(Verb::Add, "requests per ADD"), (Verb::Del, "requests per DEL")] {
        let (_, requests) = requests_during(cluster, || calls(&lane.way, verb, &pods, 1))?;
        judge(what, requests / pods.len() as f64, "", Goal::AtMost(1.0));
    }
    sandboxes.settle(BATCH)
}

fn contention() -> Outcome {
    let nodes = CONTENDING.into_iter().max().and_then(|n| u8::try_from(n).ok()).unwrap_or(1);
    let cluster = Cluster::start(&plan(nodes))?;
    let _switch = Switch::create(&cluster, "lan", MASTER)?;
    segments(&cluster)?;
    let sandboxes = Sandboxes::create(&cluster)?;
    contend(&cluster, &sandboxes).inspect_err(|_| cluster.ground.fail())
}

/// ADDs of many pods on one segment by some of the agents, as many at a time whatever their number; all agents see
/// all leases.
fn contend(cluster: &Cluster, sandboxes: &Sandboxes) -> Outcome {
    topic(&format!(
        "macvlan: addresses of one segment, {AT_A_TIME} ADDs at a time in all, {} agents watch",
        16
    ));
    println!("  {:<26} {:>14} {:>18}", "agents that allocate", "per second", "etcd requests each");
    for agents in CONTENDING {
        let ways = cluster.nodes.iter().take(agents).map(|node| caller(node, "plain").map(Way::Tenon));
        let ways = ways.collect::<Result<Vec<_>, _>>()?;
        let (mut rates, mut each) = (Vec::new(), Vec::new());
        for _ in 0..CONTENTION_ROUNDS {
            let pods = sandboxes.pods("lan", BATCH);
            let shares: Vec<_> = pods.chunks(BATCH / agents).zip(&ways).collect();
            let all = |verb| -> Result<Duration, BedError> {
                let begin = Instant::now();
                let outcomes: Vec<Result<_, BedError>> = thread::scope(|scope| {
                    let threads: Vec<_> = shares
                        .iter()
                        .map(|(share, way)| scope.spawn(move || calls(way, verb, share, AT_A_TIME / agents)))
                        .collect();
                    threads.into_iter().map(joined).collect()
                });
                outcomes.into_iter().collect::<Result<Vec<_>, _>>()?;
                Ok(begin.elapsed())
            };
            let (taken, requests) = requests_during(cluster, || all(Verb::Add))?;
            rates.push(BATCH as f64 / taken.as_secs_f64());
            each.push(requests / BATCH as f64);
            all(Verb::Del)?;
            sandboxes.settle(BATCH)?;
        }
        println!("  {agents:<26} {:>14.0} {:>18.2}", median(&rates), median(&each));
    }
    Ok(())
}
