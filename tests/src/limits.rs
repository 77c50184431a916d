//! Bandwidth limits from outside: as a kubelet asks for them, as the agent's socket changes them, and what `tc` says
//! there is.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    command::{Tool, until},
    datapath::patience,
    error::{BedError, Outcome},
    iperf::{Load, Received, measure},
    matrix::Place,
    node::{Node, Traces},
    pod::Pod,
    probe,
    stream::Stream,
    threads::joined,
};

/// The link whose queues hold what pods send.
pub const EGRESS_TURN: &str = "tenon-eg1";
/// The link whose queues hold what pods receive.
pub const INGRESS_TURN: &str = "tenon-in1";

/// What the names of the devices begin with that hold what a macvlan pod sends and receives, in its namespace.
pub const EGRESS_DEVICE: &str = "tenon-e";
/// See [`EGRESS_DEVICE`].
pub const INGRESS_DEVICE: &str = "tenon-i";

/// `runtimeConfig.bandwidth` as a kubelet 1.36 with containerd sends it, in bits per second; 0 is no limit. The burst
/// stands for "none given".
pub fn as_kubelet(ingress: u64, egress: u64) -> Value {
    let burst = |rate| if rate > 0 { u64::from(u32::MAX) } else { 0 };
    json!({
        "IngressRate": ingress, "IngressBurst": burst(ingress),
        "EgressRate": egress, "EgressBurst": burst(egress),
    })
}

/// How much of a limit was used, at the most and by a program.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// At any time from the beginning on, over a second or more, in the limit's own measure: what is above IP.
    pub peak: f64,
    /// What iperf3 received in its first second.
    pub first_second: f64,
    /// What iperf3 received in all.
    pub all: f64,
}

/// Fails if more came than a limit in bits per second lets through, whatever else the machine does, or clearly less.
pub fn require_limit(what: &str, limit: u64, received: &Received) -> Share {
    // A limit counts what is above IP in the largest frames that the overlay's MTU allows, 1450 bytes; with 1500 bytes
    // it is the same to a thousandth.
    const FRAME_PER_PAYLOAD: f64 = 1464.0 / 1430.0;
    let limit = limit as f64;
    let share = Share {
        peak: received.peak_on_wire / FRAME_PER_PAYLOAD / limit,
        first_second: received.rate(..1) / limit,
        all: received.rate(..) / limit,
    };
    eprintln!("{what}: {share:.3?}; {:.1} % lost", received.lost_percent);
    assert!(share.peak <= 1.05, "{what}: {share:.3?} of the limit");
    assert!(share.all >= least(), "{what}: {share:.3?} of the limit");
    share
}

/// What a busy machine leaves of a limit: what the kernel comes too late for is gone. One that calls for patience comes
/// late often.
fn least() -> f64 {
    if patience(Duration::from_secs(1)) > Duration::from_secs(1) { 0.25 } else { 0.8 }
}

/// A pod that is limited in one direction, and another to talk to.
#[derive(Debug)]
pub struct Case {
    /// For messages.
    pub name: String,
    /// The limited pod.
    pub pod: Place,
    /// The other.
    pub peer: Place,
    /// Whether what it receives is limited, and not what it sends.
    pub ingress: bool,
    /// What is sent in the limited direction.
    pub load: Load,
    /// For how long.
    pub seconds: u16,
}

impl Case {
    /// Sends in the limited direction.
    pub fn measure(&self, cluster: &Cluster) -> Result<Received, BedError> {
        let (from, to) = if self.ingress { (&self.peer, &self.pod) } else { (&self.pod, &self.peer) };
        measure(cluster, from, to, self.load, self.seconds)
    }

    /// Sends in the other direction, by TCP.
    pub fn measure_reverse(&self, cluster: &Cluster) -> Result<Received, BedError> {
        let (from, to) = if self.ingress { (&self.pod, &self.peer) } else { (&self.peer, &self.pod) };
        measure(cluster, from, to, Load::Tcp, 2)
    }
}

/// Sends in the limited directions of all cases at once.
pub fn measure_at_once(cluster: &Cluster, cases: &[Case]) -> Vec<Result<Received, BedError>> {
    thread::scope(|scope| {
        let threads: Vec<_> = cases.iter().map(|case| scope.spawn(|| case.measure(cluster))).collect();
        threads.into_iter().map(joined).collect()
    })
}

/// Changes the limits of `pod`, one after the other and all once more, while streams far below every one of them run both
/// ways. Fails if a packet is lost, or comes after a later one.
pub fn change_unnoticed(
    cluster: &Cluster,
    pod: &Place,
    peer: &Place,
    changes: &[Value],
    change: impl Fn(Value) -> Outcome,
) -> Outcome {
    // The first packet between two nodes may wait for their addresses on the underlay in vain.
    assert!(probe::ping(&pod.netns, peer.address)?);
    let steady = Load::Udp { bits_per_second: 2_000_000 };
    let echo = Stream::start(&pod.netns, peer.address, Duration::from_millis(5))?;
    let (sent, received) = thread::scope(|scope| {
        let sent = scope.spawn(|| measure(cluster, pod, peer, steady, 6));
        let received = scope.spawn(|| measure(cluster, peer, pod, steady, 6));
        thread::sleep(Duration::from_millis(800));
        for change_to in [changes, changes].concat() {
            change(change_to)?;
            thread::sleep(Duration::from_millis(300));
        }
        Ok::<_, BedError>((joined(sent)?, joined(received)?))
    })?;
    let tally = echo.stop();
    assert!(tally.sent > 600 && tally.lost == 0, "{tally:?}");
    for (direction, of) in [("sent", sent), ("received", received)] {
        assert!(of.lost_percent == 0.0 && of.out_of_order == 0, "{direction}: {of:?}");
    }
    Ok(())
}

impl Node {
    /// Makes a pod that the kubelet asks to limit, and attaches it.
    pub fn limited_pod(&self, tenant: &str, name: &str, ingress: u64, egress: u64) -> Result<Pod, BedError> {
        let mut pod = self.sandbox(tenant, name)?;
        pod.cni = pod.cni.with("runtimeConfig", json!({"bandwidth": as_kubelet(ingress, egress)}));
        pod.add()?;
        Ok(pod)
    }

    /// Makes a pod that the kubelet asks to limit, and attaches it to a segment.
    pub fn limited_segment_pod(
        &self,
        segment: &str,
        name: &str,
        ingress: u64,
        egress: u64,
    ) -> Result<Pod, BedError> {
        let mut pod = self.segment_sandbox(segment, "a", name)?;
        pod.cni = pod.cni.with("runtimeConfig", json!({"bandwidth": as_kubelet(ingress, egress)}));
        pod.add()?;
        Ok(pod)
    }

    /// Changes a running pod's limits by the agent's socket and returns its error code, if it has one. `bandwidth` is
    /// as in the network configuration.
    pub fn change_limits(
        &self,
        tenant: &str,
        pod: &str,
        bandwidth: &Value,
    ) -> Result<Result<(), u64>, BedError> {
        let call = json!({
            "protocol": 1,
            "limit": { "namespace": tenant, "pod": pod, "bandwidth": bandwidth },
        });
        let system = |e| BedError::system(format!("change limits on {}", self.name()), e);
        let answer = self.exchange(call.to_string().as_bytes()).map_err(system)?;
        let answer: Value = serde_json::from_slice(&answer)
            .map_err(|_| BedError::answer("change limits", String::from_utf8_lossy(&answer).into_owned()))?;
        match answer.get("error") {
            None => Ok(Ok(())),
            Some(error) => match error.get("code").and_then(Value::as_u64) {
                Some(code) => Ok(Err(code)),
                None => Err(BedError::answer("change limits", answer.to_string())),
            },
        }
    }

    /// Sends the agent a frame (the length in four bytes, big-endian, and that many of JSON) and reads its answer.
    fn exchange(&self, body: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(patience(Duration::from_secs(10))))?;
        let length = u32::try_from(body.len()).map_err(std::io::Error::other)?;
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(body)?;
        let mut header = [0; 4];
        stream.read_exact(&mut header)?;
        let mut answer = Vec::new();
        stream.take(u32::from_be_bytes(header).into()).read_to_end(&mut answer)?;
        Ok(answer)
    }

    /// `tc ARGS` in the node's namespace.
    pub fn tc(&self, args: &[&str]) -> Result<String, BedError> {
        Tool::new("tc").inside(self.netns().path()).args(args).run()
    }

    /// The classes of a shaper that pods have, in the handle's hexadecimal digits.
    pub fn classes(&self, turn: &str) -> Result<Vec<String>, BedError> {
        let text = self.tc(&["class", "show", "dev", turn])?;
        let class = |line: &str| Some(line.strip_prefix("class htb ")?.split(' ').next()?.to_owned());
        let mut classes: Vec<String> = text.lines().filter_map(class).collect();
        classes.sort_unstable();
        Ok(classes)
    }

    /// All queues, classes and filters on the node without counters, and what else pods leave.
    pub fn limit_traces(&self) -> Result<(Traces, Vec<String>), BedError> {
        let mut queues = Vec::new();
        let mut add = |text: String| queues.extend(text.lines().filter_map(lasting));
        add(self.tc(&["qdisc", "show"])?);
        for turn in [EGRESS_TURN, INGRESS_TURN] {
            add(self.tc(&["class", "show", "dev", turn])?);
            add(self.tc(&["filter", "show", "dev", turn])?);
            add(self.tc(&["filter", "show", "dev", turn, "ingress"])?);
        }
        queues.sort_unstable();
        Ok((self.traces()?, queues))
    }

    /// Waits until the node is as it was, its queues included.
    pub fn wait_for_limit_traces(&self, (before, queues): &(Traces, Vec<String>)) -> Outcome {
        self.wait_for_traces(before)?;
        until(&format!("no trace of a limit on {}", self.name()), patience(Duration::from_secs(10)), || {
            let (_, now) = self.limit_traces().map_err(|e| e.to_string())?;
            if now == *queues { Ok(()) } else { Err(now.join("\n")) }
        })
    }

    /// The OpenFlow port of a pod of this node.
    pub fn ofport(&self, pod: &Pod) -> Result<u16, BedError> {
        let port = pod.result()?.host_interface().unwrap_or_default();
        let text = self.ovs().vsctl(&["get", "interface", &port, "ofport"])?;
        text.trim().parse().map_err(|_| BedError::answer(format!("the OpenFlow port of {port}"), text))
    }
}

impl Pod {
    /// What there is of limits in a macvlan pod's namespace: devices, and tables of nftables.
    pub fn limit_traces(&self) -> Result<Vec<String>, BedError> {
        let links = self.netns().ip(&["-br", "link"])?;
        let ours = |name: &str| [EGRESS_DEVICE, INGRESS_DEVICE].iter().any(|prefix| name.starts_with(prefix));
        let links = links.lines().filter_map(|line| line.split(' ').next()).filter(|name| ours(name));
        let tables = Tool::new("nft").inside(self.netns().path()).args(["list", "tables"]).run()?;
        Ok(links.chain(tables.lines()).map(str::to_owned).collect())
    }

    /// Waits until there are so many traces of limits in a macvlan pod's namespace: two for each direction.
    pub fn wait_for_limits(&self, traces: usize) -> Outcome {
        let what = format!("{traces} traces of limits in {}", self.attachment.pod);
        until(&what, patience(Duration::from_secs(15)), || {
            let found = self.limit_traces().map_err(|e| e.to_string())?;
            if found.len() == traces { Ok(()) } else { Err(found.join("; ")) }
        })
    }
}

/// A line of `tc` without what is another time different: counters, and the numbers that the kernel gives.
fn lasting(line: &str) -> Option<String> {
    let line = line.trim();
    let counted = line.starts_with("index ") || line.starts_with("class tbf ") || line.is_empty();
    let mut words = line.split(' ');
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "direct_packets_stat" | "leaf" | "refcnt" => drop(words.next()),
            // A queue below a class has a handle of the kernel's.
            "tbf" => kept.extend([Some(word), words.next().map(|_| "")].into_iter().flatten()),
            _ => kept.push(word),
        }
    }
    (!counted).then(|| kept.join(" "))
}
