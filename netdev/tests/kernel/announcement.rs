use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tenon_netdev::{Announcer, MacvlanMode};

use crate::capture::Capture;
use crate::segment::{Pod, Segment, add_addresses, mac_text, neighbour, pings};

fn announce(pod: &Pod, addresses: &[&str]) -> Result<(), tenon_netdev::Error> {
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    pod.ground.netns.run(Announcer::open)??.announce(pod.index, pod.mac, &addresses)
}

#[test]
fn peers_reach_the_new_pod_of_an_address_in_under_a_second() {
    let segment = Segment::new();
    let peer = &segment.hosts[1];
    add_addresses(peer, "eth0", &["10.1.0.1/24", "fd01::1/64"]);
    for (address, subnet) in [("10.1.0.5", "10.1.0.5/24"), ("fd01::5", "fd01::5/64")] {
        let old = segment.pod(0, MacvlanMode::Bridge);
        add_addresses(&old.ground, "eth0", &[subnet]);
        assert!(pings(peer, address));
        assert_eq!(neighbour(peer, "eth0", address), Some(mac_text(old.mac)));
        old.ground.netlink.delete_link(old.index).unwrap();

        let new = segment.pod(0, MacvlanMode::Bridge);
        assert_ne!(new.mac, old.mac);
        add_addresses(&new.ground, "eth0", &[subnet]);
        assert_eq!(neighbour(peer, "eth0", address), Some(mac_text(old.mac)), "the peer knows no better");
        let start = Instant::now();
        announce(&new, &[address]).unwrap();
        while neighbour(peer, "eth0", address) != Some(mac_text(new.mac)) {
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", neighbour(peer, "eth0", address));
        }
        assert!(pings(peer, address));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
}

#[test]
fn the_packets_say_where_the_address_is() {
    let segment = Segment::new();
    let pod = segment.pod(0, MacvlanMode::Bridge);
    let mac = mac_text(pod.mac);
    let filter = format!("ether src {mac} and (arp or icmp6[0]=136)");
    let capture = Capture::start(&segment.hosts[1], "eth0", 3, &filter);
    announce(&pod, &["10.1.0.5", "fd01::5"]).unwrap();
    let packets = capture.packets();
    assert!(packets[0].contains(&format!("{mac} > ff:ff:ff:ff:ff:ff")), "{packets:?}");
    assert!(packets[0].contains("Request who-has 10.1.0.5 tell 10.1.0.5"), "{packets:?}");
    assert!(packets[1].contains(&format!("Reply 10.1.0.5 is-at {mac}")), "{packets:?}");
    assert!(packets[2].contains(&format!("{mac} > 33:33:00:00:00:01")), "{packets:?}");
    assert!(packets[2].contains("fd01::5 > ff02::1: [icmp6 sum ok]"), "{packets:?}");
    assert!(packets[2].contains("tgt is fd01::5, Flags [override]"), "{packets:?}");
    assert!(packets[2].contains(&format!("destination link-address option (2), length 8 (1): {mac}")));
}

#[test]
fn what_cannot_be_announced_is_an_error() {
    let segment = Segment::new();
    let mut pod = segment.pod(0, MacvlanMode::Bridge);
    pod.ground.netlink.set_down(pod.index).unwrap();
    let error = announce(&pod, &["10.1.0.5"]).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENETDOWN));
    let words = format!("cannot announce 10.1.0.5 on link {}: ENETDOWN", pod.index);
    assert!(error.to_string().starts_with(&words), "{error}");
    pod.index = 4711;
    assert_eq!(announce(&pod, &["10.1.0.5"]).unwrap_err().errno(), Some(Errno::ENODEV));
}
