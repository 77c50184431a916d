use nix::errno::Errno;
use tenon_netdev::{Error, Macvlan, MacvlanMode};

use crate::ground::Ground;
use crate::segment::{Segment, add_addresses, mac_text, pings, seen};

const MODES: [MacvlanMode; 4] =
    [MacvlanMode::Bridge, MacvlanMode::Private, MacvlanMode::Vepa, MacvlanMode::Passthru];

fn macvlan<'a>(segment: &Segment, pod: &'a Ground, name: &'a str) -> Macvlan<'a> {
    let (master, netns) = (segment.masters[0], Some((&pod.netns, &pod.netlink)));
    Macvlan { name, master, netns, mode: MacvlanMode::Bridge, mac: None, mtu: None, up: true }
}

#[test]
fn a_macvlan_is_made_in_the_pods_namespace_as_asked() {
    for mode in MODES {
        let (segment, pod) = (Segment::new(), Ground::new());
        let mac = (mode != MacvlanMode::Passthru).then_some([2, 0, 10, 0, 0, 5]);
        let asked = Macvlan { mode, mac, mtu: Some(1400), ..macvlan(&segment, &pod, "net1") };
        let made = segment.hosts[0].netlink.create_macvlan(&asked).unwrap();
        assert_eq!(segment.hosts[0].link_names(), ["eth0"]);
        let master = segment.hosts[0].netlink.link_by_name("eth0").unwrap().unwrap();

        let witness = seen(&pod, "net1");
        assert_eq!(witness["linkinfo"]["info_kind"], "macvlan");
        assert_eq!(witness["linkinfo"]["info_data"]["mode"], mode.name());
        assert_eq!(witness["link_index"], segment.masters[0]);
        assert_eq!(witness["mtu"], 1400);
        assert_eq!(witness["address"], mac_text(mac.or(master.mac).unwrap()));
        assert!(witness["flags"].as_array().unwrap().contains(&"LOWER_UP".into()), "{witness}");

        let link = pod.netlink.link_by_index(made.index).unwrap().unwrap();
        assert_eq!(link, made);
        assert_eq!(witness["ifindex"], link.index);
        assert_eq!((link.mac, link.mtu, link.up, link.carrier), (mac.or(master.mac), 1400, true, true));
        assert_eq!((link.kind.as_deref(), link.peer_index), (Some("macvlan"), Some(segment.masters[0])));
        assert_eq!((link.macvlan_mode, link.vlan_id), (Some(mode), None));
        assert!(link.peer_netns_id.is_some());
    }
}

#[test]
fn a_macvlan_of_the_host_has_its_master_in_the_same_namespace() {
    let segment = Segment::new();
    let host = &segment.hosts[0];
    let asked = Macvlan { netns: None, ..macvlan(&segment, host, "mv0") };
    let link = host.netlink.create_macvlan(&asked).unwrap();
    assert_eq!((link.peer_index, link.peer_netns_id), (Some(segment.masters[0]), None));
    assert_eq!(link.macvlan_mode, Some(MacvlanMode::Bridge));
    // A mode that is not offered is not taken for another.
    host.tool("ip link add mv1 link eth0 type macvlan mode source");
    let link = host.netlink.link_by_name("mv1").unwrap().unwrap();
    assert_eq!((link.kind.as_deref(), link.macvlan_mode), (Some("macvlan"), None));
    let list = host.netlink.links().unwrap();
    assert_eq!(list.iter().filter(|link| link.macvlan_mode.is_some()).count(), 1);
}

#[test]
fn a_pods_interface_may_be_called_as_the_master_is() {
    let (segment, pod) = (Segment::new(), Ground::new());
    let host = &segment.hosts[0];
    let mac = Some([2, 0, 10, 0, 0, 5]);
    let made = host.netlink.create_macvlan(&Macvlan { mac, ..macvlan(&segment, &pod, "eth0") }).unwrap();
    assert_eq!((made.name.as_str(), made.mac, made.up), ("eth0", mac, true));
    assert_eq!(pod.link_names(), ["eth0"]);
    assert_eq!(seen(host, "eth0")["linkinfo"]["info_kind"], "veth", "the host's own is what it was");
    // What fails leaves nothing, whichever way it was made.
    let other = Ground::new();
    let error =
        host.netlink.create_macvlan(&Macvlan { mac, ..macvlan(&segment, &other, "eth0") }).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EADDRINUSE), "{error}");
    assert!(error.to_string().starts_with("cannot create macvlan eth0 on eth0: "), "{error}");
    assert!(other.link_names().is_empty());
    let error = host.netlink.create_macvlan(&macvlan(&segment, &pod, "eth0")).unwrap_err();
    assert!(error.to_string().ends_with("a link eth0 is there already"), "{error}");
    assert_eq!(pod.link_names(), ["eth0"]);
}

#[test]
fn a_macvlan_that_is_down_is_settled_when_it_is_raised() {
    let (segment, pod) = (Segment::new(), Ground::new());
    let host = &segment.hosts[0];
    let mac = [2, 0, 10, 0, 0, 5];
    let draft = |name| {
        let asked = Macvlan { up: false, ..macvlan(&segment, &pod, name) };
        host.netlink.create_macvlan(&asked).unwrap()
    };
    let first = draft("eth0");
    assert!(!first.up);
    let raised = pod.netlink.raise_macvlan(first.index, Some(mac)).unwrap();
    assert_eq!((raised.index, raised.name.as_str(), raised.mac), (first.index, "eth0", Some(mac)));
    assert!(raised.up);

    let second = draft("eth1");
    let error = pod.netlink.raise_macvlan(second.index, Some(mac)).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EADDRINUSE), "{error}");
    assert!(error.to_string().ends_with("has the address 02:00:0a:00:00:05 already"), "{error}");
    assert!(!pod.netlink.link_by_index(second.index).unwrap().unwrap().up);
    let error = pod.netlink.raise_macvlan(second.index, Some([1, 0, 0x5e, 0, 0, 1])).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    pod.netlink.delete_link(first.index).unwrap();
    let raised = pod.netlink.raise_macvlan(second.index, Some(mac)).unwrap();
    assert!(raised.up && raised.mac == Some(mac), "when what was in the way is gone");
}

#[test]
fn the_mtu_is_the_masters_unless_a_smaller_one_is_asked_for() {
    let (segment, pod) = (Segment::new(), Ground::new());
    let host = &segment.hosts[0];
    host.tool("ip link set eth0 mtu 1442");
    host.netlink.create_macvlan(&macvlan(&segment, &pod, "net1")).unwrap();
    assert_eq!(seen(&pod, "net1")["mtu"], 1442);

    let asked = Macvlan { mtu: Some(1443), ..macvlan(&segment, &pod, "net2") };
    let error = host.netlink.create_macvlan(&asked).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL));
    assert!(error.to_string().ends_with("an MTU of 1443 bytes is more than the 1442 of eth0"), "{error}");
    assert_eq!(pod.link_names(), ["net1"]);
}

#[test]
fn modes_decide_which_pods_reach_one_another() {
    for (mode, siblings, with_hairpin) in [
        (MacvlanMode::Bridge, true, true),
        (MacvlanMode::Private, false, false),
        (MacvlanMode::Vepa, false, true),
    ] {
        let segment = Segment::new();
        let pods = [segment.pod(0, mode), segment.pod(0, mode)];
        add_addresses(&segment.hosts[1], "eth0", &["10.1.0.1/24", "fd01::1/64"]);
        add_addresses(&pods[0].ground, "eth0", &["10.1.0.2/24", "fd01::2/64"]);
        add_addresses(&pods[1].ground, "eth0", &["10.1.0.3/24", "fd01::3/64"]);
        for ip in ["10.1.0.1", "fd01::1"] {
            assert!(pings(&pods[0].ground, ip), "{mode}: the other host, {ip}");
        }
        assert_eq!(pings(&pods[0].ground, "10.1.0.3"), siblings, "{mode}: a pod of the same host");
        segment.switch.tool("bridge link set dev port0 hairpin on");
        pods[0].ground.tool("ip neigh flush dev eth0");
        assert_eq!(pings(&pods[0].ground, "10.1.0.3"), with_hairpin, "{mode}: by a switch that sends back");
    }
}

#[test]
fn a_passthru_pod_is_its_host_to_the_network() {
    let segment = Segment::new();
    let pod = segment.pod(0, MacvlanMode::Passthru);
    let master = segment.hosts[0].netlink.link_by_index(segment.masters[0]).unwrap().unwrap();
    assert_eq!(Some(pod.mac), master.mac);
    add_addresses(&segment.hosts[1], "eth0", &["10.1.0.1/24"]);
    add_addresses(&pod.ground, "eth0", &["10.1.0.2/24"]);
    assert!(pings(&pod.ground, "10.1.0.1"));
}

#[test]
fn a_refusal_names_the_culprit_and_leaves_nothing() {
    let (segment, pod) = (Segment::new(), Ground::new());
    let host = &segment.hosts[0].netlink;
    let create = |asked: Macvlan<'_>| host.create_macvlan(&asked);
    let mac = Some([2, 0, 10, 0, 0, 5]);
    create(Macvlan { mac, ..macvlan(&segment, &pod, "net1") }).unwrap();

    for (asked, errno, start, end) in [
        (
            macvlan(&segment, &pod, "net1"),
            Errno::EEXIST,
            "net1 on eth0: EEXIST",
            "a link net1 is there already",
        ),
        (
            Macvlan { master: 4711, ..macvlan(&segment, &pod, "net2") },
            Errno::ENODEV,
            "net2 on link 4711: ENODEV",
            "there is no link 4711",
        ),
        (
            Macvlan { mac, ..macvlan(&segment, &pod, "net2") },
            Errno::EADDRINUSE,
            "net2 on eth0: EADDRINUSE",
            "eth0 or another macvlan on it has the address 02:00:0a:00:00:05 already",
        ),
        (
            Macvlan { mode: MacvlanMode::Passthru, ..macvlan(&segment, &pod, "net2") },
            Errno::EINVAL,
            "net2 on eth0: EINVAL",
            "passthru needs eth0 for itself, and another macvlan is on it",
        ),
    ] {
        let error = create(asked).unwrap_err();
        assert_eq!(error.errno(), Some(errno), "{error}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot create macvlan {start}")), "{text}");
        assert!(text.ends_with(end), "{text}");
        assert_eq!(pod.link_names(), ["net1"]);
    }
}

#[test]
fn a_master_that_is_taken_is_told_from_one_that_cannot_be() {
    let (segment, pod) = (Segment::new(), Ground::new());
    let passthru = segment.pod(0, MacvlanMode::Passthru);
    for mode in MODES {
        let asked = Macvlan { mode, ..macvlan(&segment, &pod, "net1") };
        let error = segment.hosts[0].netlink.create_macvlan(&asked).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EINVAL), "{error}");
        assert!(error.to_string().contains("eth0") && error.to_string().contains("passthru"), "{error}");
    }
    drop(passthru);

    let port = segment.switch.netlink.link_by_name("port0").unwrap().unwrap();
    let asked = Macvlan { master: port.index, ..macvlan(&segment, &pod, "net1") };
    let error = segment.switch.netlink.create_macvlan(&asked).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EBUSY), "{error}");
    let words = format!("port0 is a port of link {} and can carry no macvlan", port.master.unwrap());
    assert!(error.to_string().ends_with(&words), "{error}");
    assert!(pod.link_names().is_empty());
}

#[test]
fn impossible_names_and_addresses_are_refused_without_asking_the_kernel() {
    let (segment, pod) = (Segment::new(), Ground::new());
    for asked in [
        macvlan(&segment, &pod, "sixteen-byte-nam"),
        Macvlan { mac: Some([0; 6]), ..macvlan(&segment, &pod, "net1") },
        Macvlan { mac: Some([1, 0, 0x5e, 0, 0, 1]), ..macvlan(&segment, &pod, "net1") },
        Macvlan { mac: Some([2; 6]), mode: MacvlanMode::Passthru, ..macvlan(&segment, &pod, "net1") },
    ] {
        let error = segment.hosts[0].netlink.create_macvlan(&asked).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        assert!(error.to_string().contains(asked.name), "{error}");
    }
    assert!(pod.link_names().is_empty());
}
