use std::io::Read;
use std::num::NonZeroU64;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use serde_json::Value;
use tenon_netdev::{Error, Limit, Shaper, ShaperPair, Waiting, class_mac};

use crate::ground::Ground;

const MTU: u32 = 1450;
const PAIR: ShaperPair<'_> =
    ShaperPair { port_name: "port", turn_name: "turn", mtu: MTU, waiting: Waiting::Packet };

fn limit(bits_per_second: u64) -> Limit {
    Limit { bits_per_second: NonZeroU64::new(bits_per_second).unwrap(), burst_bits: None, mtu: MTU }
}

/// What `tc` says of a class, which it cannot say in JSON.
fn class(ground: &Ground, handle: &str) -> Option<String> {
    let text = ground.tool("tc -s class show dev turn");
    text.split("class htb ").find(|class| class.starts_with(&format!("{handle} "))).map(str::to_owned)
}

fn queues(ground: &Ground) -> Vec<String> {
    let queues: Value = serde_json::from_str(&ground.tool("tc -j qdisc show dev turn")).unwrap();
    queues.as_array().unwrap().iter().map(|queue| queue["kind"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_shaper_is_made_as_asked_and_only_once() {
    let host = Ground::new();
    let shaper = host.netlink.ensure_shaper(&host.netns, &PAIR).unwrap();
    host.netlink.set_limit(shaper.turn_index, 7, &limit(10_000_000)).unwrap();
    assert_eq!(host.netlink.ensure_shaper(&host.netns, &PAIR).unwrap(), shaper);

    for (name, index) in [("port", shaper.port_index), ("turn", shaper.turn_index)] {
        let seen = &host.ip(&format!("link show {name}"))[0];
        assert_eq!(seen["ifindex"], index);
        assert_eq!(seen["mtu"], MTU);
        assert_eq!(seen["operstate"], "UP");
    }
    assert_eq!(queues(&host), ["htb", "tbf", "clsact"]);
    assert!(class(&host, "1:7").is_some(), "the classes stay");
    // `tc -j` of iproute2 6.1 prints broken JSON for these.
    let filters = host.tool("tc filter show dev turn ingress");
    assert!(filters.contains("mirred (Egress Redirect to device turn) stolen"), "{filters}");
    assert_eq!(filters.matches("handle").count(), 1, "{filters}");
    let filters = host.tool("tc filter show dev turn parent 1:");
    assert_eq!(filters.matches("handle").count(), 1, "{filters}");
}

#[test]
fn what_differs_is_put_right() {
    let host = Ground::new();
    let first = host.netlink.ensure_shaper(&host.netns, &PAIR).unwrap();
    host.tool("tc qdisc replace dev turn root tbf rate 1mbit burst 10000 limit 10000");
    host.tool("tc filter del dev turn ingress");
    host.tool("ip link set turn down");
    let wider = ShaperPair { mtu: 8950, waiting: Waiting::Copy, ..PAIR };
    assert_eq!(host.netlink.ensure_shaper(&host.netns, &wider).unwrap(), first);
    assert_eq!(queues(&host), ["htb", "clsact"]);
    let filters = host.tool("tc filter show dev turn ingress");
    assert!(filters.contains("mirred (Egress Mirror to device turn) drop"), "{filters}");
    assert_eq!(host.ip("link show turn")[0]["operstate"], "UP");
    assert_eq!(host.ip("link show port")[0]["mtu"], 8950);
    host.tool("tc qdisc del dev turn clsact");
    host.netlink.ensure_shaper(&host.netns, &wider).unwrap();
    assert!(host.tool("tc filter show dev turn ingress").contains("mirred"));

    // An end of this name that belongs to something else gives way.
    host.tool("ip link del port");
    host.connect(&Ground::new(), "port", "other");
    let second = host.netlink.ensure_shaper(&host.netns, &PAIR).unwrap();
    assert_eq!(host.link_names(), ["turn", "port"]);
    assert_ne!(second.port_index, first.port_index);
}

#[test]
fn limits_are_set_read_back_changed_and_removed() {
    let host = Ground::new();
    let Shaper { turn_index, .. } = host.netlink.ensure_shaper(&host.netns, &PAIR).unwrap();
    let netlink = &host.netlink;
    let rates = [1000, 1_000_000, 10_000_000, 1_000_000_000, 100_000_000_000, 1_000_000_000_000_000];
    for (class, rate) in (0xfff0..).zip(rates) {
        assert_eq!(netlink.limit(turn_index, class).unwrap(), None);
        netlink.set_limit(turn_index, class, &limit(rate)).unwrap();
        assert_eq!(netlink.limit(turn_index, class).unwrap(), Some(limit(rate).shape()), "{rate}");
    }
    let listed = netlink.limits(turn_index).unwrap();
    let expected = (0xfff0..).zip(rates).map(|(class, rate)| (class, Some(limit(rate).shape()))).collect();
    assert_eq!(listed, expected);

    let seen = class(&host, "1:fff2").unwrap();
    assert!(seen.contains("rate 10237Kbit ceil 10237Kbit"), "{seen}");
    let queue: Value = serde_json::from_str(&host.tool("tc -j qdisc show dev turn parent 1:fff2")).unwrap();
    assert_eq!(queue[0]["kind"], "tbf");
    let seen = class(&host, "1:fff4").unwrap();
    assert!(seen.contains("rate 102377Mbit"), "{seen}");

    netlink.set_limit(turn_index, 0xfff2, &limit(20_000_000)).unwrap();
    assert_eq!(netlink.limit(turn_index, 0xfff2).unwrap(), Some(limit(20_000_000).shape()));
    host.tool("tc qdisc del dev turn parent 1:fff2");
    assert_eq!(netlink.limit(turn_index, 0xfff2).unwrap(), None);
    assert_eq!(netlink.limits(turn_index).unwrap()[&0xfff2], None);
    netlink.set_limit(turn_index, 0xfff2, &limit(20_000_000)).unwrap();
    assert_eq!(netlink.limit(turn_index, 0xfff2).unwrap(), Some(limit(20_000_000).shape()));

    for class in listed.keys() {
        netlink.remove_class(turn_index, *class).unwrap();
        netlink.remove_class(turn_index, *class).unwrap();
        netlink.open_class(turn_index, *class).unwrap();
    }
    assert_eq!(host.tool("tc class show dev turn"), "");
    assert!(netlink.limits(turn_index).unwrap().is_empty());
}

#[test]
fn what_cannot_be_is_refused_with_its_name() {
    let host = Ground::new();
    let Shaper { port_index, turn_index } = host.netlink.ensure_shaper(&host.netns, &PAIR).unwrap();
    let error = host.netlink.set_limit(turn_index, 0, &limit(1000)).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    let error = host.netlink.set_limit(4711, 1, &limit(1000)).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENODEV));
    assert!(error.to_string().starts_with("cannot set the limit of class 1 of link 4711: ENODEV"), "{error}");
    let error = host.netlink.set_limit(port_index, 1, &limit(1000)).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert_eq!(host.netlink.limit(4711, 1).unwrap(), None);
    host.netlink.remove_class(4711, 1).unwrap();
    let missing = ShaperPair { turn_name: "a name", ..PAIR };
    assert!(matches!(host.netlink.ensure_shaper(&host.netns, &missing), Err(Error::Invalid { .. })));
}

/// Two pods on a switch that hands everything from the first to the second to a shaper: in class 7, because the
/// second one's MAC address is that of the class.
struct Traffic {
    host: Ground,
    sender: Ground,
    receiver: Ground,
    turn_index: u32,
}

const CLASS: u16 = 7;

impl Traffic {
    fn new(waiting: Waiting) -> Self {
        let (host, sender, receiver) = (Ground::new(), Ground::new(), Ground::new());
        host.connect(&sender, "h1", "p1");
        let link = host.connect(&receiver, "h2", "p2");
        receiver.netlink.set_mac(link.peer_index, class_mac(CLASS)).unwrap();
        let Shaper { turn_index, .. } =
            host.netlink.ensure_shaper(&host.netns, &ShaperPair { waiting, ..PAIR }).unwrap();
        for (from, to) in [("h1", "port"), ("port", "h2"), ("h2", "h1")] {
            host.tool(&format!("tc qdisc add dev {from} clsact"));
            let all = "protocol all u32 match u32 0 0";
            host.tool(&format!(
                "tc filter add dev {from} ingress {all} action mirred egress redirect dev {to}"
            ));
        }
        for (pod, link, address) in [(&sender, "p1", "10.1.0.1"), (&receiver, "p2", "10.1.0.2")] {
            pod.tool(&format!("ip address add {address}/24 dev {link}"));
            pod.tool("ip link set lo up");
        }
        // Nobody answers for the other, or the limit would apply to ARP as well.
        let mac = class_mac(CLASS).map(|byte| format!("{byte:02x}")).join(":");
        sender.tool(&format!("ip neighbour replace 10.1.0.2 lladdr {mac} dev p1 nud permanent"));
        Self { host, sender, receiver, turn_index }
    }

    fn set(&self, bits_per_second: u64) {
        self.host.netlink.set_limit(self.turn_index, CLASS, &limit(bits_per_second)).unwrap();
    }

    fn start(&self, arguments: &str) -> Run {
        let spawn = |ground: &Ground, arguments: &str| {
            Command::new("ip")
                .args(format!("netns exec {} iperf3 -J {arguments}", ground.name).split(' '))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let server = spawn(&self.receiver, "-s -1");
        // It has no way to say that it listens.
        while !self.receiver.tool("ss -ltnH").contains(":5201") {
            std::thread::sleep(Duration::from_millis(20));
        }
        Run { client: spawn(&self.sender, &format!("-c 10.1.0.2 {arguments}")), server }
    }

    /// What arrived in the first second and in all of them, in bits per second.
    fn run(&self, arguments: &str) -> Rates {
        let report = self.start(arguments).report();
        let intervals = report["intervals"].as_array().unwrap().iter().map(|interval| &interval["sum"]);
        let number = |sum: &Value, key| sum[key].as_f64().unwrap();
        let rate = |sums: &[&Value]| {
            let total = |key| sums.iter().map(|sum| number(sum, key)).sum::<f64>();
            total("bytes") * 8.0 / total("seconds")
        };
        let intervals: Vec<_> = intervals.collect();
        Rates { first: rate(&intervals[..1]), all: rate(&intervals) }
    }
}

#[derive(Debug)]
struct Rates {
    first: f64,
    all: f64,
}

struct Run {
    client: Child,
    server: Child,
}

impl Run {
    /// The receiver's report.
    fn report(mut self) -> Value {
        assert!(self.client.wait().unwrap().success());
        let mut text = String::new();
        self.server.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        self.server.wait().unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        for child in [&mut self.client, &mut self.server] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// More than the limit never passes; a machine that others keep busy may carry less, so the lower bound is wide.
fn assert_limited(rates: &Rates, limit: f64, what: &str) {
    for share in [rates.first / limit, rates.all / limit] {
        assert!((0.5..1.05).contains(&share), "{what}: {rates:?}");
    }
}

#[test]
fn traffic_keeps_to_its_limit_from_the_first_second_on() {
    for waiting in [Waiting::Packet, Waiting::Copy] {
        let traffic = Traffic::new(waiting);
        for (rate, protocol) in [(10_000_000, ""), (50_000_000, ""), (10_000_000, " -u -b 15M -l 1398")] {
            traffic.set(rate);
            let rates = traffic.run(&format!("-t 3{protocol}"));
            assert_limited(&rates, rate as f64, &format!("{waiting:?} {rate}{protocol}"));
        }
        // The other direction is nobody's class.
        let back = traffic.run("-t 1 -R");
        assert!(back.all > 100e6, "{back:?}");
    }
}

#[test]
fn packets_of_no_class_pass() {
    let traffic = Traffic::new(Waiting::Packet);
    traffic.host.netlink.set_limit(traffic.turn_index, CLASS + 1, &limit(1_000_000)).unwrap();
    let rates = traffic.run("-t 1");
    assert!(rates.all > 100e6, "{rates:?}");
}

#[test]
fn a_limit_changes_and_goes_without_losing_a_packet() {
    for waiting in [Waiting::Packet, Waiting::Copy] {
        let traffic = Traffic::new(waiting);
        traffic.set(40_000_000);
        // 4 Mbit/s: below every limit, so that whatever is lost is lost by a change.
        let run = traffic.start("-t 4 -u -b 4M -l 1398");
        std::thread::sleep(Duration::from_millis(500));
        for rate in [10_000_000, 1_000_000_000, 5_000_000, 8_000_000] {
            traffic.set(rate);
            std::thread::sleep(Duration::from_millis(300));
        }
        traffic.host.netlink.open_class(traffic.turn_index, CLASS).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        traffic.host.netlink.remove_class(traffic.turn_index, CLASS).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        traffic.set(20_000_000);
        let report = run.report();
        let sum = &report["end"]["sum"];
        assert!(sum["packets"].as_u64().unwrap() > 1000, "{sum}");
        assert_eq!((sum["lost_packets"].as_i64(), sum["out_of_order"].as_i64()), (Some(0), None), "{sum}");
    }
}

#[test]
fn what_waits_goes_at_once_when_a_class_is_opened() {
    let traffic = Traffic::new(Waiting::Copy);
    traffic.set(1_000_000);
    let run = traffic.start("-t 3 -u -b 5M -l 1398");
    std::thread::sleep(Duration::from_millis(1500));
    let waiting = || class(&traffic.host, "1:7").unwrap();
    assert!(!waiting().contains("backlog 0b 0p"), "{}", waiting());
    traffic.host.netlink.open_class(traffic.turn_index, CLASS).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(waiting().contains("backlog 0b 0p"), "{}", waiting());
    run.report();
}
