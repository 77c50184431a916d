//! From an administrator's put to the last flow on the last node.
//!
//! Which VNI a node gives a pod is asked of its ovs-vswitchd, over and over, by `ofproto/trace` (ovs-vswitchd(8)) on
//! a control connection that stays open. The put goes over a connection to etcd that is open already.

use std::{
    io::{BufReader, Write},
    os::unix::net::UnixStream,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use serde_json::{StreamDeserializer, Value, de::IoRead, json};
use tenon_tests::{
    BedError, Cluster, Outcome,
    etcd::{Etcd, PREFIX},
    node::{BRIDGE, Node},
    pod::Pod,
    threads::joined,
};

use crate::{
    figures::{Goal, Samples, judge, topic},
    gateway::Gateway,
};

/// Joins and isolates, half of each.
const MOVES: usize = 40;
/// How long a flow may take until the measurement fails.
const LATEST: Duration = Duration::from_secs(10);
/// Between two looks at a switch.
const LOOK: Duration = Duration::from_micros(500);
/// Before a move, for what the last one has left to do.
const PAUSE: Duration = Duration::from_millis(50);
/// The registers that hold the VNI of who sends and of who is sent to.
const REGISTERS: [&str; 2] = ["NXM_NX_REG0", "NXM_NX_REG1"];

/// A connection to ovs-vswitchd's control socket, which speaks JSON-RPC (ovs-appctl(8)).
struct Control {
    requests: UnixStream,
    answers: StreamDeserializer<'static, IoRead<BufReader<UnixStream>>, Value>,
}

impl Control {
    fn connect(node: &Node) -> Result<Self, BedError> {
        let socket = node.ovs().dir().join("vs.ctl");
        let failed = |e| BedError::system(format!("connect to {}", socket.display()), e);
        let requests = UnixStream::connect(&socket).map_err(failed)?;
        requests.set_read_timeout(Some(LATEST)).map_err(failed)?;
        let answers = requests.try_clone().map_err(failed)?;
        let answers = serde_json::Deserializer::from_reader(BufReader::new(answers)).into_iter();
        Ok(Self { requests, answers })
    }

    /// Follows a packet that a pod sends to itself through the bridge's flows, and tells which VNI it is given as
    /// its source's and its destination's.
    fn vnis(&mut self, pod: &Mover) -> Result<[Option<u64>; 2], BedError> {
        let request =
            json!({ "id": 0, "method": "ofproto/trace", "params": [BRIDGE, pod.packet] }).to_string();
        self.requests.write_all(request.as_bytes()).map_err(|e| BedError::system("ask ovs-vswitchd", e))?;
        let answer = self.answers.next().and_then(Result::ok).unwrap_or_default();
        let trace = answer.get("result").and_then(Value::as_str);
        let trace = trace.ok_or_else(|| BedError::answer("ofproto/trace", answer.to_string()))?;
        Ok(REGISTERS.map(|register| {
            let (before, _) = trace.split_once(&format!("->{register}["))?;
            u64::from_str_radix(before.rsplit_once("load:0x")?.1, 16).ok()
        }))
    }
}

/// A pod of the moving tenant.
#[derive(Debug)]
struct Mover {
    /// A packet from it to itself, as `ofproto/trace` takes it.
    packet: String,
}

impl Mover {
    fn new(pod: &Pod) -> Result<Self, BedError> {
        let result = pod.result()?;
        let answer = || BedError::answer("the interfaces in a result", result.text.clone());
        let (port, mac) = (result.host_interface().ok_or_else(answer)?, result.mac().ok_or_else(answer)?);
        let address = pod.address()?;
        Ok(Self { packet: format!("in_port={port},ip,dl_src={mac},nw_src={address},nw_dst={address}") })
    }
}

/// Waits until none of a node's pods has the VNI `old` any more, in either direction, and tells when that was.
///
/// As long as the pods follow one another, the moment at which each was seen to have moved counts. Those that are
/// found to have moved at the first look after that moved together with it.
fn moved(control: &mut Control, pods: &[Mover], old: u64) -> Result<Instant, BedError> {
    let end = Instant::now() + LATEST;
    let mut last = Instant::now();
    for (number, pod) in pods.iter().enumerate() {
        let mut looked_before = number == 0;
        loop {
            let vnis = control.vnis(pod)?;
            if vnis.iter().all(|vni| vni.is_some_and(|vni| vni != old)) {
                if looked_before {
                    last = Instant::now();
                }
                break;
            }
            if Instant::now() > end {
                return Err(BedError::Late {
                    what: format!("another VNI than {old} for {}", pod.packet),
                    within: LATEST,
                    last: format!("{vnis:?}"),
                });
            }
            looked_before = true;
            thread::sleep(LOOK);
        }
    }
    Ok(last)
}

/// What is measured of moves between two tenants.
#[derive(Debug)]
pub(crate) struct Moves<'c> {
    cluster: &'c Cluster,
    tenant: &'c str,
    /// The tenant that it joins.
    other: &'c str,
    /// The tenant's pods on each node.
    pods: Vec<Vec<Mover>>,
}

impl<'c> Moves<'c> {
    /// `pods` are those of all tenants.
    pub(crate) fn new<'p>(
        cluster: &'c Cluster,
        tenant: &'c str,
        other: &'c str,
        pods: impl IntoIterator<Item = &'p [Pod]>,
    ) -> Result<Self, BedError> {
        let of_tenant = |pod: &&Pod| pod.attachment.tenant.as_deref() == Some(tenant);
        let on_node = |pods: &[Pod]| pods.iter().filter(of_tenant).map(Mover::new).collect();
        let pods: Result<_, _> = pods.into_iter().map(on_node).collect();
        Ok(Self { cluster, tenant, other, pods: pods? })
    }

    /// Has the tenant join the other one and leave it again, and measures each.
    pub(crate) fn measure(&self, gateway: &mut Gateway, tenants: usize) -> Outcome {
        let mut controls = Vec::new();
        for node in &self.cluster.nodes {
            controls.push(Control::connect(node)?);
        }
        let (mut round_trip, mut total, mut beyond) =
            (Samples::default(), Samples::default(), Samples::default());
        for number in 0..MOVES {
            let (answered, done) = self.one(gateway, &mut controls, number % 2 == 0)?;
            round_trip.extend([answered]);
            total.extend([done]);
            beyond.extend([done.saturating_sub(answered)]);
        }
        topic(&format!(
            "{MOVES} joins and isolates of a tenant with {} pods on {} nodes, {tenants} tenants in etcd, in milliseconds",
            self.pods.iter().map(Vec::len).sum::<usize>(),
            self.pods.len(),
        ));
        println!("  {:<44} {:>8} {:>8}", "", "p50", "p99");
        for (what, samples) in [
            ("the put's own round trip", &round_trip),
            ("from the put to the last flow", &total),
            ("from the put's answer to the last flow", &beyond),
        ] {
            println!("  {what:<44} {:>8.2} {:>8.2}", samples.p50(), samples.p99());
        }
        judge("last flow after the put's answer, p50", beyond.p50(), "ms", Goal::Below(50.0));
        Ok(())
    }

    /// One move: how long the put took, and how long the last flow.
    fn one(
        &self,
        gateway: &mut Gateway,
        controls: &mut [Control],
        join: bool,
    ) -> Result<(Duration, Duration), BedError> {
        let etcd = &self.cluster.etcd;
        let old = etcd.vni(self.tenant)?;
        let (action, other) = if join { ("join", self.other) } else { ("isolate", "") };
        let record = etcd.action_record(self.tenant, action, other)?;
        let key = format!("{PREFIX}{}", Etcd::tenant_key(self.tenant));
        thread::sleep(PAUSE);
        let start = Barrier::new(controls.len() + 1);
        let (begin, answered, moments) = thread::scope(|scope| {
            let watchers: Vec<_> = controls
                .iter_mut()
                .zip(&self.pods)
                .map(|(control, pods)| {
                    let start = &start;
                    scope.spawn(move || {
                        start.wait();
                        moved(control, pods, old)
                    })
                })
                .collect();
            start.wait();
            let begin = Instant::now();
            let put = gateway.put(&key, &record);
            let answered = begin.elapsed();
            let moments: Result<Vec<Instant>, BedError> = watchers.into_iter().map(joined).collect();
            put.and(moments).map(|moments| (begin, answered, moments))
        })?;
        etcd.settled(self.tenant)?;
        let last = moments.into_iter().max().unwrap_or(begin);
        Ok((answered, last - begin))
    }
}

/// Puts records of so many tenants as an import does, each with its VNI, and waits until the controller has seen
/// them all.
pub(crate) fn import_tenants(cluster: &Cluster, gateway: &mut Gateway, count: usize) -> Outcome {
    let records: Vec<_> = (0..count)
        .map(|number| {
            let name = format!("imported-{number}");
            let record =
                json!({ "NetName": name, "NetID": 1_000_000 + number, "Action": "", "Namespace": "" });
            (format!("{PREFIX}{}", Etcd::tenant_key(&name)), record.to_string())
        })
        .collect();
    gateway.put_all(&records)?;
    // It works in the order of the store's revisions.
    cluster.etcd.add_tenant("after-the-import").map(drop)
}
