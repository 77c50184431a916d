use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tenon_netdev::{AddressProbe, Conflict, Error, MacvlanMode, NetNs};

use crate::capture::Capture;
use crate::ground::Ground;
use crate::segment::{Segment, add_addresses, mac_text, neighbour, pings};

const WAIT: Duration = Duration::from_millis(100);
/// For answers that come at once, also when the machine is busy.
const LONG: Duration = Duration::from_secs(3);

fn ask(netns: &NetNs, link: u32, addresses: &[&str], wait: Duration) -> Result<Vec<Conflict>, Error> {
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    AddressProbe { netns: Some(netns), link, addresses: &addresses, wait }.run()
}

fn conflict(address: &str, mac: [u8; 6]) -> Conflict {
    Conflict { address: address.parse().unwrap(), mac }
}

#[test]
fn a_holder_on_the_network_is_found_and_named_at_once() {
    let segment = Segment::new();
    let pod = segment.pod(0, MacvlanMode::Bridge);
    let holder = &segment.hosts[1];
    let mac = holder.netlink.link_by_name("eth0").unwrap().unwrap().mac.unwrap();
    add_addresses(holder, "eth0", &["10.1.0.5/24", "fd01::5/64"]);
    for address in ["10.1.0.5", "fd01::5"] {
        let start = Instant::now();
        let found = ask(&pod.ground.netns, pod.index, &[address], LONG).unwrap();
        assert_eq!(found, [conflict(address, mac)]);
        assert_eq!(found[0].to_string(), format!("{address} is in use by {}", mac_text(mac)));
        assert!(start.elapsed() < LONG / 3, "{:?}", start.elapsed());
        // Asking teaches nobody a wrong address.
        assert_eq!(neighbour(holder, "eth0", address), None);
    }
}

#[test]
fn a_pod_of_the_same_host_is_found_in_mode_bridge() {
    let segment = Segment::new();
    let (pod, holder) = (segment.pod(0, MacvlanMode::Bridge), segment.pod(0, MacvlanMode::Bridge));
    add_addresses(&holder.ground, "eth0", &["10.1.0.5/24", "fd01::5/64"]);
    let found = ask(&pod.ground.netns, pod.index, &["10.1.0.5", "fd01::5"], LONG).unwrap();
    assert_eq!(found.len(), 2);
    assert!(found.contains(&conflict("10.1.0.5", holder.mac)), "{found:?}");
    assert!(found.contains(&conflict("fd01::5", holder.mac)), "{found:?}");
}

#[test]
fn the_taken_ones_of_many_addresses_are_told_in_one_wait() {
    let segment = Segment::new();
    let host = &segment.hosts[0];
    let holder = segment.hosts[1].netlink.link_by_name("eth0").unwrap().unwrap().mac.unwrap();
    add_addresses(&segment.hosts[1], "eth0", &["10.1.0.5/24", "10.1.0.15/24", "fd01::7/64"]);
    let addresses: Vec<_> = (1..20).flat_map(|n| [format!("10.1.0.{n}"), format!("fd01::{n:x}")]).collect();
    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
    let (start, wait) = (Instant::now(), Duration::from_millis(500));
    let mut found = ask(&host.netns, segment.masters[0], &addresses, wait).unwrap();
    assert!(start.elapsed() >= wait);
    found.sort_by_key(|conflict| conflict.address);
    let taken = ["10.1.0.5", "10.1.0.15", "fd01::7"].map(|address| conflict(address, holder));
    assert_eq!(found, taken);
}

#[test]
fn a_free_address_is_free_after_three_questions_and_the_wait() {
    let segment = Segment::new();
    let pod = segment.pod(0, MacvlanMode::Bridge);
    add_addresses(&segment.hosts[1], "eth0", &["10.1.0.1/24", "fd01::1/64"]);
    let mac = mac_text(pod.mac);
    for (address, filter, question) in [
        ("10.1.0.5", "arp", "Request who-has 10.1.0.5 tell 0.0.0.0, length 28".to_owned()),
        (
            "fd01::5",
            "icmp6[0]=135 and icmp6[8:2]=0xfd01",
            ":: > ff02::1:ff00:5: [icmp6 sum ok] ICMP6, neighbor solicitation, length 24, who has fd01::5"
                .to_owned(),
        ),
    ] {
        let capture = Capture::start(&segment.hosts[1], "eth0", 3, &format!("ether src {mac} and {filter}"));
        let (start, wait) = (Instant::now(), Duration::from_millis(600));
        assert_eq!(ask(&pod.ground.netns, pod.index, &[address], wait).unwrap(), []);
        let taken = start.elapsed();
        assert!(taken >= wait && taken < wait + Duration::from_secs(1), "{taken:?}");
        let packets = capture.packets();
        assert_eq!(packets.len(), 3);
        for packet in packets {
            assert!(packet.contains(&question), "{packet}");
        }
    }
}

#[test]
fn packets_of_our_own_that_come_back_are_no_conflict() {
    let segment = Segment::new();
    segment.switch.tool("bridge link set dev port0 hairpin on");
    for mode in [MacvlanMode::Bridge, MacvlanMode::Vepa, MacvlanMode::Private, MacvlanMode::Passthru] {
        let pod = segment.pod(0, mode);
        // The macvlan itself holds packets of its own back, its master does not: both ways to get them.
        let host = Capture::start(&segment.hosts[0], "eth0", 1, "arp and inbound");
        let found = ask(&pod.ground.netns, pod.index, &["10.1.0.5", "fd01::5"], WAIT).unwrap();
        assert_eq!(found, [], "{mode}");
        assert_eq!(host.packets().len(), 1, "{mode}: nothing came back");
        // A namespace that is deleted keeps its links, and their master, a little longer.
        pod.ground.netlink.delete_link(pod.index).unwrap();
    }
    assert_eq!(ask(&segment.hosts[0].netns, segment.masters[0], &["10.1.0.5", "fd01::5"], WAIT).unwrap(), []);
}

#[test]
fn of_two_that_ask_at_the_same_time_not_both_are_content() {
    let segment = Segment::new();
    let pods = [segment.pod(0, MacvlanMode::Bridge), segment.pod(1, MacvlanMode::Bridge)];
    for address in ["10.1.0.5", "fd01::5"] {
        let found = thread::scope(|scope| {
            let asking = pods.each_ref().map(|pod| {
                scope.spawn(|| ask(&pod.ground.netns, pod.index, &[address], Duration::from_secs(1)).unwrap())
            });
            asking.map(|thread| thread.join().unwrap())
        });
        // Who started first hears the other, gives up, and may have asked nothing that the other was there to hear.
        let others = [pods[1].mac, pods[0].mac].map(|mac| vec![conflict(address, mac)]);
        assert!(found.iter().any(|found| !found.is_empty()), "{address}");
        for (found, other) in found.iter().zip(&others) {
            assert!(found.is_empty() || found == other, "{address}: {found:?}");
        }
    }
}

#[test]
fn those_who_merely_look_for_an_address_do_not_have_it() {
    let segment = Segment::new();
    let pod = segment.pod(0, MacvlanMode::Bridge);
    let peer = &segment.hosts[1];
    add_addresses(peer, "eth0", &["10.1.0.1/24", "fd01::1/64"]);
    for (address, question) in [("10.1.0.5", "arp"), ("fd01::5", "icmp6[0]=135 and not src host ::")] {
        let filter = format!("{question} and not ether src {}", mac_text(pod.mac));
        let capture = Capture::start(&pod.ground, "eth0", 1, &filter);
        let found = thread::scope(|scope| {
            let asking = scope
                .spawn(|| ask(&pod.ground.netns, pod.index, &[address], Duration::from_secs(1)).unwrap());
            thread::sleep(WAIT);
            assert!(!pings(peer, address));
            assert_eq!(capture.packets().len(), 1);
            asking.join().unwrap()
        });
        assert_eq!(found, []);
    }
}

#[test]
fn a_link_without_carrier_is_given_time() {
    let segment = Segment::new();
    let pod = segment.pod(0, MacvlanMode::Bridge);
    add_addresses(&segment.hosts[1], "eth0", &["10.1.0.5/24", "fd01::5/64"]);
    for address in ["10.1.0.5", "fd01::5"] {
        segment.switch.tool("ip link set port0 down");
        let found = thread::scope(|scope| {
            let asking = scope.spawn(|| ask(&pod.ground.netns, pod.index, &[address], LONG));
            thread::sleep(WAIT / 2);
            let port = segment.switch.netlink.link_by_name("port0").unwrap().unwrap();
            segment.switch.netlink.set_up(port.index).unwrap();
            asking.join().unwrap().unwrap()
        });
        assert_eq!(found.len(), 1, "{address}");
    }
}

#[test]
fn nobody_knows_whether_an_address_is_free_on_a_link_that_carries_nothing() {
    let segment = Segment::new();
    let pod = segment.pod(0, MacvlanMode::Bridge);
    let start = Instant::now();
    segment.switch.tool("ip link set port0 down");
    let error = ask(&pod.ground.netns, pod.index, &["10.1.0.5"], WAIT).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENETDOWN));
    let start_of = format!("cannot probe for 10.1.0.5 on link {}: ENETDOWN", pod.index);
    assert!(error.to_string().starts_with(&start_of), "{error}");
    assert!(error.to_string().ends_with("the link has no carrier"), "{error}");
    assert!(start.elapsed() < WAIT + Duration::from_secs(1));

    pod.ground.netlink.set_down(pod.index).unwrap();
    let error = ask(&pod.ground.netns, pod.index, &["10.1.0.5", "fd01::5"], WAIT).unwrap_err();
    assert!(error.to_string().ends_with("the link is down"), "{error}");
    let error = ask(&pod.ground.netns, 4711, &["10.1.0.5"], WAIT).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENODEV));
    assert!(error.to_string().ends_with("there is no such link"), "{error}");
}

#[test]
fn a_link_that_goes_away_meanwhile_is_no_free_address() {
    for address in ["10.1.0.5", "fd01::5"] {
        for command in ["ip link set eth0 down", "ip link delete eth0"] {
            let segment = Segment::new();
            let pod = segment.pod(0, MacvlanMode::Bridge);
            let error = thread::scope(|scope| {
                let asking = scope.spawn(|| ask(&pod.ground.netns, pod.index, &[address], LONG));
                thread::sleep(Duration::from_millis(200));
                pod.ground.tool(command);
                asking.join().unwrap().unwrap_err()
            });
            assert!(matches!(error.errno(), Some(Errno::ENETDOWN | Errno::ENODEV)), "{error}");
        }
    }
}

#[test]
fn nothing_to_ask_takes_no_time_and_nonsense_is_refused() {
    let ground = Ground::new();
    assert_eq!(ask(&ground.netns, 4711, &[], LONG).unwrap(), []);
    assert_eq!(ask(&ground.netns, 4711, &["10.1.0.5"], Duration::ZERO).unwrap(), []);
    for address in ["0.0.0.0", "224.0.0.1", "::", "ff02::1"] {
        let error = ask(&ground.netns, 1, &[address], LONG).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
        assert!(error.to_string().contains(address), "{error}");
    }
}
