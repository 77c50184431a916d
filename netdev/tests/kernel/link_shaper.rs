use std::net::UdpSocket;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;
use tenon_netdev::{Direction, Error, Limit, LinkLimits, LinkShaper, MacvlanMode, Shaping};

use crate::ground::Ground;
use crate::segment::{Pod, Segment, add_addresses, pings};

const MTU: u32 = 1450;

fn limit(bits_per_second: u64) -> Option<Limit> {
    Some(Limit { bits_per_second: NonZeroU64::new(bits_per_second)?, burst_bits: None, mtu: MTU })
}

/// In bits per second; 0 is no limit.
fn limits(egress: u64, ingress: u64) -> LinkLimits {
    LinkLimits { egress: limit(egress), ingress: limit(ingress) }
}

/// Two pods of one host.
struct Scene {
    _segment: Segment,
    pod: Pod,
    peer: Pod,
}

impl Scene {
    fn new() -> Self {
        let segment = Segment::new();
        let (pod, peer) = (segment.pod(0, MacvlanMode::Bridge), segment.pod(0, MacvlanMode::Bridge));
        add_addresses(&pod.ground, "eth0", &["10.1.0.1/24"]);
        add_addresses(&peer.ground, "eth0", &["10.1.0.2/24"]);
        assert!(pings(&pod.ground, "10.1.0.2"));
        Self { _segment: segment, pod, peer }
    }

    /// Works on the pod's shaper, in its namespace.
    fn shaper<T: Send>(&self, work: impl FnOnce(&LinkShaper<'_>) -> Result<T, Error> + Send) -> T {
        let Ground { netns, netlink, .. } = &self.pod.ground;
        let link = netlink.link_by_index(self.pod.index).unwrap().unwrap();
        netns.run(|| work(&LinkShaper::new(netlink, &link))).unwrap().unwrap()
    }

    /// Egress and ingress.
    fn found(&self) -> [Shaping; 2] {
        self.shaper(|shaper| Ok([shaper.found(Direction::Egress)?, shaper.found(Direction::Ingress)?]))
    }

    fn is(&self, wanted: &LinkLimits) -> bool {
        let [egress, ingress] = self.found();
        egress.is(wanted.egress.as_ref()) && ingress.is(wanted.ingress.as_ref())
    }

    fn device(&self, direction: char) -> String {
        format!("tenon-{direction}{:x}", self.pod.index)
    }

    /// What other tools see: links, and tables of nftables.
    fn traces(&self) -> (Vec<String>, Vec<String>) {
        let tables = self.pod.ground.tool("nft list tables");
        (self.pod.ground.link_names(), tables.lines().map(str::to_owned).collect())
    }
}

#[test]
fn limits_are_set_changed_lifted_and_cleaned_up() {
    let scene = Scene::new();
    assert_eq!(scene.found(), [Shaping::Absent, Shaping::Absent]);
    for wanted in [limits(10_000_000, 0), limits(10_000_000, 20_000_000), limits(5_000_000, 40_000_000)] {
        scene.shaper(|shaper| shaper.set(&wanted));
        assert!(scene.is(&wanted), "{:?}", scene.found());
        assert_eq!(scene.shaper(|shaper| shaper.repair(&wanted)), 0);
        assert!(pings(&scene.pod.ground, "10.1.0.2"));
    }
    let (egress, ingress) = (scene.device('e'), scene.device('i'));
    let (links, tables) = scene.traces();
    assert_eq!(links, ["eth0", &egress, &ingress]);
    assert_eq!(tables, [format!("table netdev {egress}"), format!("table netdev {ingress}")]);
    let class = scene.pod.ground.tool(&format!("tc class show dev {egress}"));
    assert!(class.contains("class htb 1:1 root leaf") && class.contains("rate 5118Kbit"), "{class}");
    let rules = scene.pod.ground.tool(&format!("nft list table netdev {ingress}"));
    assert!(rules.contains("hook ingress device \"eth0\"") && rules.contains("fwd to"), "{rules}");
    // Nothing is on the link itself.
    let queues: Value = serde_json::from_str(&scene.pod.ground.tool("tc -j qdisc show dev eth0")).unwrap();
    assert_eq!(queues[0]["kind"], "noqueue");

    let wanted = limits(0, 40_000_000);
    scene.shaper(|shaper| shaper.lift(&wanted));
    assert!(scene.is(&wanted), "{:?}", scene.found());
    // The device goes later.
    assert_eq!(scene.traces().0, ["eth0", &egress, &ingress]);
    assert_eq!(scene.shaper(|shaper| shaper.repair(&wanted)), 0);
    assert_eq!(scene.traces().0, ["eth0", &ingress]);
    // What is lifted twice, or limited again before it was cleaned up, is as it was asked for last.
    scene.shaper(|shaper| shaper.lift(&limits(0, 0)));
    scene.shaper(|shaper| shaper.lift(&limits(0, 0)));
    let again = limits(0, 1_000_000);
    scene.shaper(|shaper| shaper.set(&again));
    assert_eq!(scene.shaper(|shaper| shaper.repair(&again)), 0);
    assert!(scene.is(&again));
    assert_eq!(scene.shaper(|shaper| shaper.repair(&limits(0, 0))), 1);
    assert_eq!(scene.traces(), (vec!["eth0".to_owned()], vec![]));
}

#[test]
fn damage_is_told_and_put_right() {
    let scene = Scene::new();
    let wanted = limits(10_000_000, 20_000_000);
    scene.shaper(|shaper| shaper.set(&wanted));
    let (egress, ingress) = (scene.device('e'), scene.device('i'));
    for (damage, told) in [
        (format!("nft delete table netdev {egress}"), "none"),
        ("nft flush ruleset".to_owned(), "none"),
        (format!("nft flush chain netdev {egress} shaper"), "damaged (its nftables table was changed)"),
        (format!("nft add rule netdev {egress} shaper counter"), "damaged (its nftables table was changed)"),
        (format!("ip link del {egress}"), "damaged (its device is gone)"),
        (format!("ip link set {egress} down"), "damaged (its device is down)"),
        (format!("tc qdisc del dev {egress} root"), "damaged (its device has other queues)"),
        (
            format!("tc qdisc replace dev {egress} root handle 2: htb default 1"),
            "damaged (its device has other queues)",
        ),
        (format!("tc class del dev {egress} classid 1:1"), "damaged (its queue is gone)"),
        (
            format!("tc class change dev {egress} parent 1: classid 1:1 htb rate 1gbit"),
            "125000000 bytes/s with a burst of",
        ),
    ] {
        for (of, at) in [(&egress, 0), (&ingress, 1)] {
            scene.pod.ground.tool(&damage.replace(&egress, of));
            let found = scene.found()[at];
            assert!(found.to_string().starts_with(told), "{damage}: {found}");
            assert!(!found.is(Direction::ALL.map(|d| wanted.of(d))[at]), "{damage}");
            let repaired = scene.shaper(|shaper| shaper.repair(&wanted));
            assert_eq!(repaired, if damage.contains("ruleset") { 2 } else { 1 }, "{damage}");
            assert!(scene.is(&wanted), "{damage}: {:?}", scene.found());
            assert!(pings(&scene.pod.ground, "10.1.0.2"), "{damage}");
        }
    }
    // Somebody else's link in the place of ours.
    scene.pod.ground.tool(&format!("ip link del {egress}"));
    scene.pod.ground.tool(&format!("ip link add {egress} type bridge"));
    assert_eq!(scene.found()[0], Shaping::Damaged("its device is gone"));
    assert_eq!(scene.shaper(|shaper| shaper.repair(&wanted)), 1);
    assert!(scene.is(&wanted));
}

#[test]
fn what_a_link_leaves_goes_after_it_and_nothing_else() {
    let scene = Scene::new();
    let Ground { netns, netlink, .. } = &scene.pod.ground;
    scene.shaper(|shaper| shaper.set(&limits(10_000_000, 20_000_000)));
    for other in ["ip link add tenon-enough type ifb", "ip link add ifb7 type ifb", "nft add table netdev t"]
    {
        scene.pod.ground.tool(other);
    }
    let clean_up = || netns.run(|| LinkShaper::remove_leftovers(netlink)).unwrap().unwrap();
    assert_eq!(clean_up(), 0);
    assert!(scene.is(&limits(10_000_000, 20_000_000)));
    netlink.delete_link(scene.pod.index).unwrap();
    assert_eq!(clean_up(), 2);
    let names = ["tenon-enough", "ifb7"].map(str::to_owned).to_vec();
    assert_eq!(scene.traces(), (names, vec!["table netdev t".to_owned()]));
}

/// A steady stream of numbered datagrams until it is told to stop. Returns how many were sent and how many arrived.
fn stream(from: &Ground, to: &Ground, to_address: &str, meanwhile: impl FnOnce()) -> (u32, u32, f64) {
    const PER_SECOND: f64 = 27_000.0;
    let done = AtomicBool::new(false);
    let receiver = to.netns.run(|| UdpSocket::bind((to_address, 7777)).unwrap()).unwrap();
    setsockopt(&receiver, sockopt::RcvBufForce, &(64 << 20)).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let sender = from.netns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    sender.connect((to_address, 7777)).unwrap();
    thread::scope(|scope| {
        let received = scope.spawn(|| {
            let (mut count, mut buffer) = (0, [0; 8]);
            while receiver.recv(&mut buffer).is_ok() {
                count += 1;
            }
            count
        });
        let sent = scope.spawn(|| {
            let (start, mut count) = (Instant::now(), 0_u32);
            while !done.load(Ordering::Relaxed) {
                while f64::from(count) < start.elapsed().as_secs_f64() * PER_SECOND {
                    // A datagram that the kernel refuses counts as lost.
                    let _ = sender.send(&count.to_be_bytes());
                    count += 1;
                }
                thread::sleep(Duration::from_micros(100));
            }
            (count, f64::from(count) / start.elapsed().as_secs_f64())
        });
        thread::sleep(Duration::from_millis(200));
        meanwhile();
        done.store(true, Ordering::Relaxed);
        let (sent, rate) = sent.join().unwrap();
        (sent, received.join().unwrap(), rate)
    })
}

/// Where a root queueing discipline or a `clsact` put on the link itself loses some packets each time.
#[test]
fn a_first_limit_comes_and_goes_without_losing_a_packet() {
    let scene = Scene::new();
    let on = limits(400_000_000, 400_000_000);
    let none = limits(0, 0);
    for (from, to, address) in [(&scene.pod, &scene.peer, "10.1.0.2"), (&scene.peer, &scene.pod, "10.1.0.1")]
    {
        let (sent, received, rate) = stream(&from.ground, &to.ground, address, || {
            for round in 0..20 {
                scene.shaper(|shaper| shaper.set(&on));
                thread::sleep(Duration::from_millis(25));
                scene.shaper(|shaper| shaper.lift(&none));
                thread::sleep(Duration::from_millis(25));
                // Every other time the devices are there already.
                if round % 2 == 0 {
                    scene.shaper(|shaper| shaper.repair(&none));
                }
            }
        });
        assert!(rate > 20_000.0, "{rate} packets/s");
        assert_eq!(sent, received, "to {address}, {rate} packets/s");
    }
}
