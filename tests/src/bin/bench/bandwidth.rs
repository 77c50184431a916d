//! Bandwidth limits: how exact they are, what they cost the CPU and what they cost an ADD, beside the CNI project's
//! `bridge` with `bandwidth`.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tenon_tests::{
    BedError, Cluster, Outcome, Plan,
    cni::{Attachment, Cni, Reply},
    command::Tool,
    ground,
    iperf::{Load, Received, measure},
    limits::as_kubelet,
    matrix::Place,
    netns::Netns,
    pod::container_id,
    segment::{self, MASTER, Switch},
};

use crate::figures::{Goal, Samples, judge, topic};

const SEGMENT: &str = "lan";
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
const LIMITS: [(&str, u64); 4] =
    [("1M", 1_000_000), ("10M", 10_000_000), ("100M", 100_000_000), ("1G", 1_000_000_000)];
const SECONDS: u16 = 5;
/// ADDs of every kind, in turns.
const ADDS: usize = 40;
/// What a kernel takes to be done with links that have vanished.
const SETTLING: Duration = Duration::from_millis(30);
/// What Open vSwitch and the kernel take until nothing that one way leaves behind falls into the next one's time.
const REST: Duration = Duration::from_millis(150);
/// The part of a second that a burst takes which an administrator of the reference plugin chose well.
const CHOSEN_BURST: u64 = 100;
/// The least that it is then, in bits: with less than a frame, nothing comes through.
const LEAST_BURST: u64 = 2 * 1514 * 8;
/// The clock ticks of /proc/stat in a second (proc_stat(5)); the same on every architecture of today.
const TICKS: f64 = 100.0;

/// Who limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tenon,
    /// By macvlan, for which the reference has no limits at all.
    Macvlan,
    /// With a burst chosen by hand.
    ChosenBurst,
    /// With the burst that a kubelet sends.
    KubeletBurst,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Tenon => "tenon",
            Self::Macvlan => "tenon, macvlan",
            Self::ChosenBurst => "bridge + bandwidth, 10 ms burst",
            Self::KubeletBurst => "bridge + bandwidth, as by kubelet",
        }
    }
}

/// Limits in bits per second; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    ingress: u64,
    egress: u64,
}

const NO_LIMITS: Limits = Limits { ingress: 0, egress: 0 };
const BOTH: Limits = Limits { ingress: 10_000_000, egress: 10_000_000 };

/// A node with Tenon, and a namespace where the reference plugins attach pods.
struct Scene {
    cluster: Cluster,
    reference: Netns,
}

/// An attached pod.
struct Pod {
    kind: Kind,
    limits: Limits,
    attachment: Attachment,
    result: Value,
    place: Place,
    netns: Netns,
}

/// Measures everything on a cluster of its own.
pub(crate) fn run() -> Outcome {
    ground::require("/usr/lib/cni/bandwidth", "containernetworking-plugins")?;
    ground::require("iperf3", "iperf3")?;
    let cluster = Cluster::start(&Plan::nodes(1))?;
    cluster.add_tenants(&["a"])?;
    let reference = Netns::create(&cluster.ground, "reference")?;
    let _switch = Switch::create(&cluster, SEGMENT, MASTER)?;
    // Addresses enough for all, as what is given back rests for a while.
    let range = json!({ "Subnet": "10.100.0.0/16", "RangeStart": "", "RangeEnd": "" });
    cluster.etcd.put_segment(&segment::record(SEGMENT, &range))?;
    let scene = Scene { cluster, reference };
    scene.accuracy().and_then(|()| scene.cost_of_add()).inspect_err(|_| scene.cluster.ground.fail())
}

impl Scene {
    fn bandwidth(kind: Kind, limits: Limits) -> Value {
        let Limits { ingress, egress } = limits;
        let burst = |rate: u64| if rate > 0 { (rate / CHOSEN_BURST).max(LEAST_BURST) } else { 0 };
        match kind {
            Kind::ChosenBurst => json!({
                "ingressRate": ingress, "ingressBurst": burst(ingress),
                "egressRate": egress, "egressBurst": burst(egress),
            }),
            _ => as_kubelet(ingress, egress),
        }
    }

    fn tenon(&self, kind: Kind) -> Result<Cni, BedError> {
        let mut cni = self.cluster.node(1).cni()?;
        if kind == Kind::Macvlan {
            cni = cni.with("mode", json!("macvlan")).with("segment", json!(SEGMENT));
            cni.network = SEGMENT.to_owned();
        }
        Ok(cni)
    }

    /// One plugin of the reference chain.
    fn reference(&self, plugin: &str, verb: &str, pod: &Attachment, keys: &Value) -> Tool {
        let leases = self.cluster.ground.dir().join("limited-leases");
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "limited", "type": plugin,
            "bridge": "cni0", "isGateway": true, "isDefaultGateway": true,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.89.0.0/16" }]], "dataDir": leases },
        });
        if let (Some(fields), Some(keys)) = (config.as_object_mut(), keys.as_object()) {
            fields.extend(keys.clone());
        }
        Tool::new(format!("{REFERENCE_PLUGINS}/{plugin}"))
            .inside(self.reference.path())
            .clear_env()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_PATH", REFERENCE_PLUGINS)
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.container)
            .env("CNI_NETNS", pod.netns.clone().unwrap_or_default())
            .env("CNI_IFNAME", &pod.interface)
            .input(config.to_string())
    }

    /// Attaches a pod as a runtime does, and tells how long that took.
    fn attach(&self, kind: Kind, netns: Netns, limits: Limits) -> Result<(Pod, Duration), BedError> {
        let attachment = Attachment {
            container: container_id(),
            netns: Some(netns.path()),
            interface: "eth0".into(),
            tenant: Some("a".into()),
            pod: netns.name().to_owned(),
        };
        let runtime = json!({ "bandwidth": Self::bandwidth(kind, limits) });
        let limited = limits != NO_LIMITS;
        let begin = Instant::now();
        let reply = match kind {
            Kind::Tenon | Kind::Macvlan => {
                let mut cni = self.tenon(kind)?;
                if limited {
                    cni = cni.with("runtimeConfig", runtime);
                }
                cni.call("ADD", Some(&attachment))?.accepted()?
            }
            _ => {
                let bridge = self.reference("bridge", "ADD", &attachment, &json!({})).output()?;
                let bridge = Reply::from(bridge).accepted()?;
                if limited {
                    let keys = json!({ "runtimeConfig": runtime, "prevResult": bridge.json });
                    let bandwidth = self.reference("bandwidth", "ADD", &attachment, &keys).output()?;
                    Reply::from(bandwidth).accepted()?
                } else {
                    bridge
                }
            }
        };
        let taken = begin.elapsed();
        let address = reply.address().ok_or_else(|| BedError::answer("an ADD", reply.text.clone()))?;
        let place = Place { name: netns.name().to_owned(), netns: netns.path(), address };
        Ok((Pod { kind, limits, attachment, result: reply.json, place, netns }, taken))
    }

    fn detach(&self, pod: Pod) -> Result<Netns, BedError> {
        match pod.kind {
            Kind::Tenon | Kind::Macvlan => {
                self.tenon(pod.kind)?.call("DEL", Some(&pod.attachment))?.accepted()?;
            }
            _ => {
                if pod.limits != NO_LIMITS {
                    let runtime = json!({ "bandwidth": Self::bandwidth(pod.kind, pod.limits) });
                    let keys = json!({ "runtimeConfig": runtime, "prevResult": pod.result });
                    self.reference("bandwidth", "DEL", &pod.attachment, &keys).run()?;
                }
                self.reference("bridge", "DEL", &pod.attachment, &json!({})).run()?;
            }
        }
        Ok(pod.netns)
    }

    fn accuracy(&self) -> Outcome {
        topic(&format!(
            "What iperf3 receives of a limit on one node, first second / the {} after, in per cent; CPU seconds of the \
             whole machine for each GB",
            SECONDS - 1
        ));
        println!("  {:<34} {:>5} {:>21} {:>21}", "", "", "ingress", "egress");
        let netns = |name: &str| Netns::create(&self.cluster.ground, name);
        let (tenon_peer, _) = self.attach(Kind::Tenon, netns("tenonpeer")?, NO_LIMITS)?;
        let (macvlan_peer, _) = self.attach(Kind::Macvlan, netns("macvlanpeer")?, NO_LIMITS)?;
        let (reference_peer, _) = self.attach(Kind::ChosenBurst, netns("refpeer")?, NO_LIMITS)?;
        let mut sandbox = netns("limited")?;
        // Up to 100M, which every machine carries, and above.
        let (mut worst, mut behind) = ([0.0_f64; 2], [0.0_f64; 2]);
        let mut worst_macvlan = [0.0_f64; 2];
        for (name, limit) in LIMITS {
            for protocol in ["TCP", "UDP"] {
                let mut off_by = Vec::new();
                let above = usize::from(limit > 100_000_000);
                for kind in [Kind::Tenon, Kind::ChosenBurst, Kind::KubeletBurst, Kind::Macvlan] {
                    let peer = match kind {
                        Kind::Tenon => &tenon_peer,
                        Kind::Macvlan => &macvlan_peer,
                        Kind::ChosenBurst | Kind::KubeletBurst => &reference_peer,
                    };
                    print!("  {:<34} {name:>5} {protocol}", kind.name());
                    for (ingress, egress) in [(limit, 0), (0, limit)] {
                        let (pod, _) = self.attach(kind, sandbox, Limits { ingress, egress })?;
                        let ends = if ingress > 0 { [peer, &pod] } else { [&pod, peer] };
                        let load = match protocol {
                            "TCP" => Load::Tcp,
                            _ => Load::Udp { bits_per_second: limit * 13 / 10 },
                        };
                        let busy = busy_seconds();
                        let received = measure(&self.cluster, &ends[0].place, &ends[1].place, load, SECONDS)?;
                        let busy = busy_seconds() - busy;
                        sandbox = self.detach(pod)?;
                        thread::sleep(SETTLING);
                        let off = print_cell(&received, limit, busy);
                        match kind {
                            Kind::Macvlan if limit >= 10_000_000 => {
                                worst_macvlan[above] = worst_macvlan[above].max(off);
                            }
                            Kind::Macvlan => {}
                            _ => off_by.push(off),
                        }
                    }
                    println!();
                }
                let (tenon, reference) = off_by.split_at(2.min(off_by.len()));
                for (ours, theirs) in tenon.iter().zip(reference) {
                    behind[above] = behind[above].max(ours - theirs);
                    if limit >= 10_000_000 {
                        worst[above] = worst[above].max(*ours);
                    }
                }
            }
        }
        self.detach(tenon_peer)?;
        self.detach(reference_peer)?;
        self.detach(macvlan_peer)?;
        judge(
            "worst cell of tenon by macvlan, 10M and 100M, off by",
            worst_macvlan[0],
            "%",
            Goal::AtMost(5.0),
        );
        judge("worst cell of tenon by macvlan, 1G, off by", worst_macvlan[1], "%", Goal::AtMost(5.0));
        judge("worst cell of tenon, 10M and 100M, off by", worst[0], "%", Goal::AtMost(5.0));
        judge("worst cell of tenon, 1G, off by", worst[1], "%", Goal::AtMost(5.0));
        judge("up to 100M further off than the reference, by", behind[0], "%", Goal::AtMost(0.0));
        judge("at 1G further off than the reference, by", behind[1], "%", Goal::AtMost(0.0));
        Ok(())
    }

    fn cost_of_add(&self) -> Outcome {
        topic(&format!(
            "ADD with and without limits, {ADDS} of each in turns, milliseconds from call to answer"
        ));
        let lanes = [
            ("tenon", Kind::Tenon, NO_LIMITS),
            ("tenon, both limits", Kind::Tenon, BOTH),
            ("tenon, macvlan", Kind::Macvlan, NO_LIMITS),
            ("tenon, macvlan, both limits", Kind::Macvlan, BOTH),
            ("bridge", Kind::ChosenBurst, NO_LIMITS),
            ("bridge + bandwidth, both limits", Kind::ChosenBurst, BOTH),
        ];
        let mut samples = [const { Vec::new() }; 6];
        let mut sandbox = Netns::create(&self.cluster.ground, "added")?;
        for round in 0..ADDS {
            for turn in 0..lanes.len() {
                let at = if round % 2 == 0 { turn } else { lanes.len() - 1 - turn };
                let (_, kind, limits) = lanes[at];
                let (pod, taken) = self.attach(kind, sandbox, limits)?;
                samples[at].push(taken);
                sandbox = self.detach(pod)?;
                thread::sleep(REST);
            }
        }
        let medians = samples.map(|taken| {
            let mut samples = Samples::default();
            samples.extend(taken);
            samples.p50()
        });
        for ((name, ..), median) in lanes.into_iter().zip(medians) {
            println!("  {name:<34} {median:>8.2}");
        }
        let [tenon, tenon_limited, macvlan, macvlan_limited, _, reference_limited] = medians;
        judge("ADD p50, tenon with both limits : without", tenon_limited / tenon, "", Goal::AtMost(1.3));
        judge(
            "ADD p50, tenon by macvlan with both limits : without",
            macvlan_limited / macvlan,
            "",
            Goal::AtMost(1.3),
        );
        judge(
            "ADD p50 with both limits, tenon : bridge + bandwidth",
            tenon_limited / reference_limited,
            "",
            Goal::Below(1.0),
        );
        Ok(())
    }
}

/// Prints a cell and returns by how many per cent it is off, in the worse of its two figures.
fn print_cell(received: &Received, limit: u64, busy: f64) -> f64 {
    let percent = |rate: f64| rate / limit as f64 * 100.0;
    let (first, after) = (percent(received.rate(..1)), percent(received.rate(1..)));
    let gigabytes = received.rate(..) * f64::from(SECONDS) / 8e9;
    // Of little traffic, the CPU has done mostly other things.
    let cost = if limit >= 100_000_000 { format!("{:.1}", busy / gigabytes) } else { String::new() };
    print!("   {first:>6.1} /{after:>6.1} {cost:>6}");
    (first - 100.0).abs().max((after - 100.0).abs())
}

/// For how long the machine's CPUs have worked, all together; 0 where the kernel does not say.
fn busy_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = stat.lines().next().unwrap_or_default();
    let ticks = all.split_whitespace().skip(1).map(|ticks| ticks.parse().unwrap_or(0.0));
    // User, nice, system, idle, iowait, irq, softirq.
    let busy = ticks.enumerate().filter(|(at, _)| [0, 1, 2, 5, 6].contains(at));
    busy.map(|(_, ticks): (_, f64)| ticks).sum::<f64>() / TICKS
}
