//! Throughput, measured at the receiving end: by iperf3, and by the kernel's count of what its interface received.
//!
//! iperf3 says what a program gets. But it begins to count when it has time to, and where it comes late, what has
//! waited for it counts as the first second's. Whether something was too fast is therefore told by the kernel's count.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    cluster::Cluster,
    command::{Tool, until},
    datapath::{Datapath, patience},
    error::BedError,
    limits::INGRESS_DEVICE,
    matrix::Place,
    netns,
    threads::joined,
};

/// Every measurement listens on a port of its own, so that many can go to one place at a time.
static PORT: AtomicU16 = AtomicU16::new(5201);
/// The state of a listening socket in /proc/net/tcp (proc_pid_net(5)).
const LISTENING: &str = "0A";
/// iperf3 counts what it receives over TCP in blocks: small ones, so that a block takes little of a second.
const BLOCK_BYTES: &str = "4K";
/// Microseconds between two groups of datagrams, iperf3's own choice.
const PACING_US: &str = "1000";
/// With that, User-Mode Linux does little else.
const SLOW_PACING_US: &str = "2000";
/// A shorter interval is the end of a measurement.
const SHORTEST_SECOND: f64 = 0.9;

/// The links of the calling thread's namespace and their counts (proc_pid_net(5)).
const DEVICES: &str = "/proc/thread-self/net/dev";
/// Between two looks at the interface's count.
const LOOK: Duration = Duration::from_millis(5);
/// What iperf3 says before it begins, at most.
const PRELUDE_BYTES: u64 = 16_384;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// One TCP connection, as fast as it gets.
    Tcp,
    /// Datagrams at a steady rate.
    Udp {
        /// How many bits of payload are sent per second.
        bits_per_second: u64,
    },
}

/// What arrived, second by second.
#[derive(Debug, Clone)]
pub struct Received {
    /// For each second: its length in seconds, and the payload in bits.
    seconds: Vec<(f64, f64)>,
    /// The most that the interface received from the beginning to any moment after the first second, in bits per
    /// second of Ethernet frames; also what others send there. However busy the machine is, a limit's rate and burst
    /// bound it.
    pub peak_on_wire: f64,
    /// Datagrams that did not arrive, per cent; 0 for TCP.
    pub lost_percent: f64,
    /// Datagrams that arrived after a later one; 0 for TCP.
    pub out_of_order: u64,
}

impl Received {
    /// The mean rate of some seconds, counted from 0, in bits per second; not a number if there is none of them.
    pub fn rate(&self, seconds: impl std::ops::RangeBounds<usize>) -> f64 {
        let chosen = self.seconds.iter().enumerate().filter(|(at, _)| seconds.contains(at));
        let (time, bits) = chosen.fold((0.0, 0.0), |sum, (_, one)| (sum.0 + one.0, sum.1 + one.1));
        bits / time
    }
}

/// Sends from one place to another for some seconds.
pub fn measure(
    cluster: &Cluster,
    from: &Place,
    to: &Place,
    load: Load,
    seconds: u16,
) -> Result<Received, BedError> {
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    let port_text = port.to_string();
    let log = cluster.ground.dir().join(format!("iperf3-{port}.log"));
    let _server = Tool::new("iperf3")
        .inside(&to.netns)
        .args(["--server", "--one-off", "--json", "--port", &port_text])
        .serve(&cluster.ground, &log)?;
    until(&format!("iperf3 on {}", to.name), patience(Duration::from_secs(5)), || listens(to, port))?;
    let mut client = Tool::new("iperf3").inside(&from.netns).args([
        "--client",
        &to.address.to_string(),
        "--port",
        &port_text,
        "--time",
        &seconds.to_string(),
        "--json",
        "--get-server-output",
    ]);
    client = match load {
        Load::Tcp => client.args(["--length", BLOCK_BYTES]),
        Load::Udp { bits_per_second } => {
            let pacing_us = if cluster.datapath == Datapath::Kernel { SLOW_PACING_US } else { PACING_US };
            let rate = bits_per_second.to_string();
            client.args(["--udp", "--bitrate", &rate, "--pacing-timer", pacing_us])
        }
    };
    let done = AtomicBool::new(false);
    let (output, looks) = thread::scope(|scope| {
        let looks = scope.spawn(|| netns::inside(&to.netns, || watch(&done)));
        let output = client.output();
        done.store(true, Ordering::Relaxed);
        (output, joined(looks))
    });
    let (output, looks) = (output?, looks?);
    let received = parse(&output.stdout).zip(peak(&looks));
    let (mut received, peak_on_wire) = received.ok_or_else(|| {
        let what = format!("iperf3 from {} to {}, {load:?}", from.name, to.name);
        BedError::answer(what, format!("{} looks; {}{}", looks.len(), output.stdout, output.stderr))
    })?;
    received.peak_on_wire = peak_on_wire;
    Ok(received)
}

/// An interface's count at some time between two moments.
struct Look {
    from: Instant,
    bytes: u64,
    to: Instant,
}

/// Looks at the count of this thread's `eth0` again and again. Where what that receives has a limit behind it, in a
/// device of a macvlan pod, it is the count of that device.
fn watch(done: &AtomicBool) -> Vec<Look> {
    let table = fs::read_to_string(DEVICES).unwrap_or_default();
    let mut names = table.lines().filter_map(|line| line.split(':').next()).map(str::trim);
    let link = names.find(|name| name.starts_with(INGRESS_DEVICE)).unwrap_or("eth0");
    let mut looks = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let from = Instant::now();
        let bytes = received_bytes(Path::new(DEVICES), link);
        looks.extend(bytes.map(|bytes| Look { from, bytes, to: Instant::now() }));
        thread::sleep(LOOK);
    }
    looks
}

/// What a link has received, by a table in the form of /proc/net/dev (proc_pid_net(5)).
fn received_bytes(table: &Path, link: &str) -> Option<u64> {
    let table = fs::read_to_string(table).ok()?;
    let row = table.lines().find_map(|line| line.trim().strip_prefix(link)?.strip_prefix(':'))?;
    row.split_whitespace().next()?.parse().ok()
}

/// The largest mean rate from the beginning on, over a second or more. Moments are taken so that it is never too much.
fn peak(looks: &[Look]) -> Option<f64> {
    let before = looks.first()?.bytes;
    let start = looks.iter().take_while(|look| look.bytes <= before + PRELUDE_BYTES).last()?;
    looks
        .iter()
        .map(|look| {
            (
                look.bytes.saturating_sub(start.bytes) as f64 * 8.0,
                look.to.duration_since(start.from).as_secs_f64(),
            )
        })
        .filter(|(_, seconds)| *seconds >= 1.0)
        .map(|(bits, seconds)| bits / seconds)
        .reduce(f64::max)
        .or(Some(0.0))
}

/// Whether something listens on a TCP port, without connecting to it.
fn listens(place: &Place, port: u16) -> Result<(), String> {
    let tables = netns::inside(&place.netns, || {
        ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")))
    });
    let tables = tables.map_err(|e| e.to_string())?;
    let wanted = format!(":{port:04X}");
    let found = tables.into_iter().flatten().any(|table| {
        table.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|local| local.ends_with(&wanted)) && fields.nth(1) == Some(LISTENING)
        })
    });
    if found { Ok(()) } else { Err(format!("nothing listens on {port}")) }
}

/// Reads the receiver's half of a client's report. Its last interval is a rest of a second, and left out.
fn parse(text: &str) -> Option<Received> {
    let report: Value = serde_json::from_str(text).ok()?;
    let server = report.get("server_output_json")?;
    let number = |of: &Value, key: &str| of.get(key)?.as_f64();
    let seconds: Vec<(f64, f64)> = server
        .get("intervals")?
        .as_array()?
        .iter()
        .filter_map(|interval| {
            let sum = interval.get("sum")?;
            Some((number(sum, "seconds")?, number(sum, "bytes")? * 8.0))
        })
        .filter(|(length, _)| *length > SHORTEST_SECOND)
        .collect();
    let end = server.get("end")?;
    let datagrams = end.pointer("/streams/0/udp");
    let lost_percent = match datagrams {
        Some(_) => number(end.get("sum")?, "lost_percent")?,
        None => 0.0,
    };
    let out_of_order = datagrams.and_then(|of| of.get("out_of_order")?.as_u64()).unwrap_or(0);
    (!seconds.is_empty()).then_some(Received { seconds, peak_on_wire: 0.0, lost_percent, out_of_order })
}
