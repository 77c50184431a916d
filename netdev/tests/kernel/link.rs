use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::errno::Errno;
use tenon_netdev::{Error, Netlink, VethPair};

use crate::ground::{Ground, pair};

#[test]
fn a_veth_pair_is_made_across_namespaces_as_asked() {
    let (host, pod) = (Ground::new(), Ground::new());
    let veth = host
        .netlink
        .create_veth(&VethPair {
            host_mac: Some([2, 0, 0, 0, 0, 1]),
            peer_mac: Some([2, 0, 0, 0, 0, 2]),
            host_alias: Some("tenon: pod a/b"),
            host_up: true,
            host_group: 7700,
            ..pair("veth-h", "eth0", &pod.netns)
        })
        .unwrap();

    let seen = &host.ip("link show veth-h")[0];
    assert_eq!(seen["ifindex"], veth.host_index);
    assert_eq!(seen["link_index"], veth.peer_index);
    assert_eq!(seen["address"], "02:00:00:00:00:01");
    assert_eq!(seen["mtu"], 1450);
    assert_eq!(seen["group"], "7700");
    assert_eq!(seen["ifalias"], "tenon: pod a/b");
    assert_eq!(seen["num_tx_queues"], 1);
    // A kernel for one CPU only does not count them.
    assert!(seen["num_rx_queues"].is_null() || seen["num_rx_queues"] == 1, "{seen}");
    assert!(seen["flags"].as_array().unwrap().contains(&"UP".into()), "{seen}");
    let seen = &pod.ip("link show eth0")[0];
    assert_eq!(seen["ifindex"], veth.peer_index);
    assert_eq!(seen["address"], "02:00:00:00:00:02");
    assert_eq!(seen["mtu"], 1450);
    assert_eq!(seen["group"], "default");
    assert_eq!(seen["operstate"], "DOWN");

    let link = host.netlink.link_by_name("veth-h").unwrap().unwrap();
    assert_eq!(link.index, veth.host_index);
    assert_eq!(link.name, "veth-h");
    assert_eq!(link.mac, Some([2, 0, 0, 0, 0, 1]));
    assert_eq!(link.mtu, 1450);
    assert!(link.up && !link.carrier);
    assert_eq!(link.group, 7700);
    assert_eq!(link.alias.as_deref(), Some("tenon: pod a/b"));
    assert_eq!(link.kind.as_deref(), Some("veth"));
    assert_eq!(link.peer_index, Some(veth.peer_index));
    assert_eq!(link.master, None);

    pod.netlink.set_up(veth.peer_index).unwrap();
    assert!(host.netlink.link_by_index(veth.host_index).unwrap().unwrap().carrier);
    assert!(pod.netlink.link_by_name("eth0").unwrap().unwrap().carrier);
}

#[test]
fn a_taken_name_is_named_and_nothing_is_made() {
    let (host, pod) = (Ground::new(), Ground::new());
    host.connect(&pod, "h0", "p0");
    let error = host.netlink.create_veth(&pair("h0", "p1", &pod.netns)).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EEXIST));
    assert!(error.to_string().starts_with("cannot create veth h0: EEXIST"), "{error}");
    let error = host.netlink.create_veth(&pair("h1", "p0", &pod.netns)).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EEXIST));
    assert!(error.to_string().starts_with("cannot create veth h1: its peer's name p0: EEXIST"), "{error}");
    assert_eq!(host.link_names(), ["h0"]);
    assert_eq!(pod.link_names(), ["p0"]);
}

#[test]
fn the_kernels_own_words_are_in_the_error() {
    let (host, pod) = (Ground::new(), Ground::new());
    let veth = host.connect(&pod, "h0", "p0");
    let error = host.netlink.set_mtu(veth.host_index, 7).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot set the MTU of link {}: EINVAL: Invalid argument: mtu less than device minimum",
            veth.host_index
        )
    );
}

#[test]
fn impossible_names_and_aliases_are_refused_without_asking_the_kernel() {
    let (host, pod) = (Ground::new(), Ground::new());
    for name in ["", ".", "..", "sixteen-byte-nam", "a/b", "a b", "a:b", "veth%d", "a\0b"] {
        for pair in [pair(name, "p0", &pod.netns), pair("h0", name, &pod.netns)] {
            let error = host.netlink.create_veth(&pair).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{name:?}: {error:?}");
            assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
        }
    }
    for alias in ["x".repeat(255), "x".repeat(100_000), "a\0b".to_owned()] {
        let pair = VethPair { host_alias: Some(&alias), ..pair("h0", "p0", &pod.netns) };
        assert!(matches!(host.netlink.create_veth(&pair), Err(Error::Invalid { .. })));
    }
    let alias = "x".repeat(254);
    let pair = VethPair { host_alias: Some(&alias), ..pair("fifteen-byte-na", "p0", &pod.netns) };
    let veth = host.netlink.create_veth(&pair).unwrap();
    assert_eq!(host.netlink.link_by_index(veth.host_index).unwrap().unwrap().alias, Some(alias));
}

#[test]
fn a_link_that_is_not_there_is_none() {
    let ground = Ground::new();
    assert_eq!(ground.netlink.link_by_name("nobody").unwrap(), None);
    assert_eq!(ground.netlink.link_by_index(4711).unwrap(), None);
    let error = ground.netlink.set_up(4711).unwrap_err();
    assert!(error.to_string().starts_with("cannot set up link 4711: ENODEV"), "{error}");
}

#[test]
fn a_link_can_be_changed() {
    let (host, pod) = (Ground::new(), Ground::new());
    let veth = host.connect(&pod, "h0", "p0");
    let (netlink, index) = (&host.netlink, veth.host_index);
    netlink.set_mtu(index, 1400).unwrap();
    netlink.set_mac(index, [2, 0, 0, 0, 0, 9]).unwrap();
    netlink.set_alias(index, "text").unwrap();
    netlink.set_group(index, 5).unwrap();
    netlink.set_down(index).unwrap();
    netlink.set_name(index, "h1").unwrap();
    let seen = &host.ip("link show h1")[0];
    assert_eq!(seen["ifindex"], index);
    assert_eq!(seen["mtu"], 1400);
    assert_eq!(seen["address"], "02:00:00:00:00:09");
    assert_eq!(seen["ifalias"], "text");
    assert_eq!(seen["group"], "5");
    assert!(!seen["flags"].as_array().unwrap().contains(&"UP".into()), "{seen}");
    netlink.set_alias(index, "").unwrap();
    netlink.set_up(index).unwrap();
    let seen = &host.ip("link show h1")[0];
    assert!(seen["ifalias"].is_null());
    assert!(seen["flags"].as_array().unwrap().contains(&"UP".into()), "{seen}");
}

#[test]
fn a_port_of_a_bridge_shows_its_master() {
    let (host, pod) = (Ground::new(), Ground::new());
    host.tool("ip link add br0 type bridge");
    let veth = host.connect(&pod, "h0", "p0");
    host.tool("ip link set h0 master br0");
    let bridge = host.netlink.link_by_name("br0").unwrap().unwrap();
    assert_eq!(bridge.kind.as_deref(), Some("bridge"));
    assert_eq!(host.netlink.link_by_index(veth.host_index).unwrap().unwrap().master, Some(bridge.index));
}

#[test]
fn deleting_a_link_deletes_both_ends_and_can_be_repeated() {
    let (host, pod) = (Ground::new(), Ground::new());
    let veth = host.connect(&pod, "h0", "p0");
    host.netlink.delete_link(veth.host_index).unwrap();
    assert!(host.link_names().is_empty() && pod.link_names().is_empty());
    host.netlink.delete_link(veth.host_index).unwrap();
}

#[test]
fn deleting_a_group_deletes_its_links_and_no_others() {
    let (host, pod) = (Ground::new(), Ground::new());
    for n in 0..10 {
        let (host_name, peer_name) = (format!("h{n}"), format!("p{n}"));
        let veth = host.connect(&pod, &host_name, &peer_name);
        if n < 7 {
            host.netlink.set_group(veth.host_index, 7000).unwrap();
        }
    }
    host.netlink.delete_group(7000).unwrap();
    let left = host.link_names();
    assert_eq!(left.len(), 3);
    assert!(["h7", "h8", "h9"].iter().all(|name| left.contains(&(*name).to_owned())), "{left:?}");
    assert_eq!(pod.link_names().len(), 3);
    host.netlink.delete_group(7000).unwrap();
    let error = host.netlink.delete_group(0).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert_eq!(host.link_names().len(), 3);
}

#[test]
fn sixteen_threads_share_a_handle() {
    let (host, pod) = (Ground::new(), Ground::new());
    thread::scope(|scope| {
        for t in 0..16 {
            let (host, pod) = (&host, &pod);
            scope.spawn(move || {
                for n in 0..4 {
                    let (host_name, peer_name) = (format!("h{t}-{n}"), format!("p{t}-{n}"));
                    let veth = host.connect(pod, &host_name, &peer_name);
                    let link = host.netlink.link_by_name(&host_name).unwrap().unwrap();
                    assert_eq!((link.index, link.peer_index), (veth.host_index, Some(veth.peer_index)));
                    let peer = pod.netlink.link_by_index(veth.peer_index).unwrap().unwrap();
                    assert_eq!(peer.name, peer_name);
                    if n % 2 == 0 {
                        host.netlink.delete_link(veth.host_index).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(host.link_names().len(), 32);
    assert_eq!(pod.link_names().len(), 32);
}

#[test]
fn a_list_is_whole_while_links_come_and_go() {
    let (host, pod) = (Ground::new(), Ground::new());
    for n in 0..60 {
        host.connect(&pod, &format!("stay{n}"), &format!("stay{n}"));
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let churn = Netlink::open_in(&host.netns).unwrap();
            while !done.load(Ordering::Relaxed) {
                let veth = churn.create_veth(&pair("come", "come", &pod.netns)).unwrap();
                churn.delete_link(veth.host_index).unwrap();
            }
        });
        for _ in 0..300 {
            let links = host.netlink.links().unwrap();
            let mut stay: Vec<_> = links.iter().filter(|link| link.name.starts_with("stay")).collect();
            stay.dedup_by_key(|link| link.index);
            assert_eq!(stay.len(), 60);
        }
        done.store(true, Ordering::Relaxed);
    });
}
