//! Two hosts, each with a trunk to a switch that keeps VLANs apart, and an untagged network on the same trunks.

use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use tenon_netdev::{AddressProbe, Announcer, Conflict, Error, MacvlanMode, NetNs, VlanLink};

use crate::segment::{Pod, Segment, add_addresses, mac_text, neighbour, pings, seen};

const WAIT: Duration = Duration::from_secs(1);

/// Hosts with trunks: VLAN 1 untagged, 100 and 200 tagged.
fn trunks() -> Segment {
    let segment = Segment::new();
    segment.switch.tool("ip link set sw type bridge vlan_filtering 1");
    for port in ["port0", "port1"] {
        for vlan in [100, 200] {
            segment.switch.tool(&format!("bridge vlan add dev {port} vid {vlan}"));
        }
    }
    segment
}

fn vlan(segment: &Segment, host: usize, vlan_id: u16) -> VlanLink {
    let name = format!("eth0.{vlan_id}");
    segment.hosts[host].netlink.ensure_vlan(&name, segment.masters[host], vlan_id).unwrap()
}

fn ask(netns: &NetNs, link: u32, address: &str) -> Vec<Conflict> {
    let addresses = [address.parse().unwrap()];
    AddressProbe { netns: Some(netns), link, addresses: &addresses, wait: WAIT }.run().unwrap()
}

#[test]
fn a_vlan_link_is_made_once_and_found_again() {
    let segment = trunks();
    let host = &segment.hosts[0];
    host.tool("ip link set eth0 mtu 1442");
    let made = vlan(&segment, 0, 100);
    assert!(made.made);
    assert_eq!(made.name, "eth0.100");

    let witness = seen(host, "eth0.100");
    assert_eq!(witness["ifindex"], made.index);
    assert_eq!(witness["link"], "eth0");
    assert_eq!(witness["mtu"], 1442);
    assert!(witness["flags"].as_array().unwrap().contains(&"LOWER_UP".into()), "{witness}");
    assert_eq!(witness["linkinfo"]["info_kind"], "vlan");
    assert_eq!(witness["linkinfo"]["info_data"]["protocol"], "802.1Q");
    assert_eq!(witness["linkinfo"]["info_data"]["id"], 100);
    let link = host.netlink.link_by_index(made.index).unwrap().unwrap();
    assert_eq!((link.vlan_id, link.peer_index), (Some(100), Some(segment.masters[0])));
    assert_eq!((link.peer_netns_id, link.macvlan_mode, link.mtu), (None, None, 1442));

    host.netlink.set_down(made.index).unwrap();
    assert_eq!(vlan(&segment, 0, 100), VlanLink { made: false, ..made });
    assert!(host.netlink.link_by_name("eth0.100").unwrap().unwrap().up);
    // Who made it by hand may have called it something else.
    host.tool("ip link add link eth0 name storage type vlan id 200");
    let found = vlan(&segment, 0, 200);
    assert_eq!((found.name.as_str(), found.made), ("storage", false));
    assert!(host.netlink.link_by_name("storage").unwrap().unwrap().up);
    assert_eq!(host.link_names(), ["eth0", "eth0.100", "storage"]);
}

#[test]
fn a_refusal_names_the_culprit_and_leaves_nothing() {
    let segment = trunks();
    let (host, master) = (&segment.hosts[0], segment.masters[0]);
    let made = vlan(&segment, 0, 100);
    let refused = |name, master, vlan_id| host.netlink.ensure_vlan(name, master, vlan_id).unwrap_err();

    let error = refused("eth0.100", master, 200);
    assert_eq!(error.errno(), Some(Errno::EEXIST));
    let words = format!("the name belongs to VLAN 100 of link {master}");
    assert!(
        error.to_string().starts_with("cannot create VLAN link eth0.100 for VLAN 200 of eth0: "),
        "{error}"
    );
    assert!(error.to_string().ends_with(&words), "{error}");
    // The same VLAN of another link is another VLAN.
    let error = refused("eth0.100", made.index, 100);
    assert!(error.to_string().ends_with(&words), "{error}");

    let error = refused("v", 4711, 100);
    assert_eq!(error.errno(), Some(Errno::ENODEV));
    assert!(error.to_string().ends_with("there is no link 4711"), "{error}");
    for vlan_id in [0, 4095, 5000] {
        let error = refused("v", master, vlan_id);
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        assert!(error.to_string().contains(&vlan_id.to_string()), "{error}");
    }
    let error = host.netlink.create_vlan("v", master, 100).unwrap_err();
    assert!(error.to_string().ends_with("eth0 has a link for VLAN 100 under another name"), "{error}");
    host.netlink.set_down(master).unwrap();
    let error = refused("v", master, 200);
    assert_eq!(error.errno(), Some(Errno::ENETDOWN));
    assert!(error.to_string().ends_with("eth0 is down: set it up first"), "{error}");
    assert_eq!(host.link_names(), ["eth0", "eth0.100"]);
}

#[test]
fn a_vlan_of_a_provider_is_not_taken_for_one_of_ours() {
    let segment = trunks();
    let host = &segment.hosts[0];
    host.tool("ip link add link eth0 name outer type vlan protocol 802.1ad id 100");
    assert_eq!(host.netlink.link_by_name("outer").unwrap().unwrap().vlan_id, None);
    assert_eq!(vlan(&segment, 0, 100).name, "eth0.100");
}

#[test]
fn pods_reach_their_own_vlan_and_no_other() {
    let segment = trunks();
    // The same subnets everywhere: only the VLANs keep them apart.
    let [on_100, on_200] = [100, 200].map(|id| {
        let master = vlan(&segment, 0, id).index;
        Pod::new(&segment.hosts[0], master, MacvlanMode::Bridge)
    });
    let untagged = Pod::new(&segment.hosts[0], segment.masters[0], MacvlanMode::Bridge);
    for pod in [&on_100, &on_200, &untagged] {
        add_addresses(&pod.ground, "eth0", &["10.1.0.2/24", "fd01::2/64"]);
    }
    let peer = vlan(&segment, 1, 100);
    add_addresses(&segment.hosts[1], &peer.name, &["10.1.0.1/24", "fd01::1/64"]);
    for ip in ["10.1.0.1", "fd01::1"] {
        assert!(pings(&on_100.ground, ip), "{ip}");
        assert!(!pings(&on_200.ground, ip), "{ip}");
        assert!(!pings(&untagged.ground, ip), "{ip}");
    }
}

#[test]
fn an_address_is_in_use_only_in_its_own_vlan() {
    let segment = trunks();
    let pod = Pod::new(&segment.hosts[0], vlan(&segment, 0, 100).index, MacvlanMode::Bridge);
    let other = Pod::new(&segment.hosts[0], vlan(&segment, 0, 200).index, MacvlanMode::Bridge);
    let peer = vlan(&segment, 1, 100);
    let holder = segment.hosts[1].netlink.link_by_index(peer.index).unwrap().unwrap().mac.unwrap();
    for (address, subnet) in [("10.1.0.5", "10.1.0.5/24"), ("fd01::5", "fd01::5/64")] {
        add_addresses(&segment.hosts[1], &peer.name, &[subnet]);
        let conflict = Conflict { address: address.parse().unwrap(), mac: holder };
        assert_eq!(ask(&pod.ground.netns, pod.index, address), [conflict]);
        assert_eq!(ask(&other.ground.netns, other.index, address), []);
    }
}

#[test]
fn tagged_frames_do_not_pass_for_untagged_ones() {
    let segment = trunks();
    let host = &segment.hosts[0];
    // No link takes VLAN 100's frames off this trunk, so they come up with the tag set aside.
    let pod = Pod::new(host, segment.masters[0], MacvlanMode::Bridge);
    let chatter = vlan(&segment, 1, 100);
    for address in ["10.1.0.5", "fd01::5"] {
        // It only says that it has the address: if it had, it would answer for it on all its links.
        let addresses = [address.parse::<IpAddr>().unwrap()];
        let announcer = segment.hosts[1].netns.run(Announcer::open).unwrap().unwrap();
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                [ask(&pod.ground.netns, pod.index, address), ask(&host.netns, segment.masters[0], address)]
            });
            while !asking.is_finished() {
                announcer.announce(chatter.index, [2, 0, 10, 0, 0, 9], &addresses).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(asking.join().unwrap(), [[], []], "{address}");
        });
    }
}

#[test]
fn a_reused_address_is_reached_in_under_a_second() {
    let segment = trunks();
    let master = vlan(&segment, 0, 100).index;
    let (peer, link) = (&segment.hosts[1], vlan(&segment, 1, 100).name);
    add_addresses(peer, &link, &["10.1.0.1/24"]);
    let old = Pod::new(&segment.hosts[0], master, MacvlanMode::Bridge);
    add_addresses(&old.ground, "eth0", &["10.1.0.5/24"]);
    assert!(pings(peer, "10.1.0.5"));
    old.ground.netlink.delete_link(old.index).unwrap();
    let new = Pod::new(&segment.hosts[0], master, MacvlanMode::Bridge);
    add_addresses(&new.ground, "eth0", &["10.1.0.5/24"]);
    let addresses = ["10.1.0.5".parse().unwrap()];
    let announcer = new.ground.netns.run(Announcer::open).unwrap().unwrap();
    announcer.announce(new.index, new.mac, &addresses).unwrap();
    assert!(pings(peer, "10.1.0.5"));
    assert_eq!(neighbour(peer, &link, "10.1.0.5"), Some(mac_text(new.mac)));
}
