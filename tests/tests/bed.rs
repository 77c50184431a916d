//! The bed itself: what the other tests rest on works before any part of the network under test runs.

use std::{net::Ipv4Addr, time::Duration};

use tenon_tests::{
    Cluster, Outcome, Plan,
    frames::{self, Capture},
    ground,
    matrix::{Matrix, Place},
    node::BRIDGE,
    probe, run,
    stream::Stream,
    underlay::etcd_address,
};

fn plan() -> Plan {
    Plan { agents: false, ..Plan::nodes(2) }
}

/// Two pods by hand on the two nodes' own bridges, joined by VXLAN: the datapath carries traffic.
#[test]
fn open_vswitch_carries_vxlan_between_nodes() -> Outcome {
    run(&plan(), |cluster| {
        let datapath = format!("datapath_type={}", cluster.datapath.name());
        let mut places = Vec::new();
        for (node, other) in [(1, 2), (2, 1)] {
            let node = cluster.node(node);
            let remote = format!("options:remote_ip={}", cluster.node(other).address());
            let ovs = node.ovs();
            ovs.vsctl(&["add-br", BRIDGE, "--", "set", "bridge", BRIDGE, &datapath])?;
            ovs.vsctl(&["add-port", BRIDGE, "vx", "--", "set", "interface", "vx", "type=vxlan", &remote])?;
            let address = Ipv4Addr::new(192, 0, 2, node.address().octets()[3]);
            node.netns().ip(&["addr", "add", &format!("{address}/24"), "dev", BRIDGE])?;
            node.netns().ip(&["link", "set", BRIDGE, "mtu", "1450", "up"])?;
            places.push(Place { name: node.name().into(), netns: node.netns().path(), address });
        }
        Matrix::require(&places, |_, _| true)?;
        assert!(probe::passes_unfragmented(&places[0].netns, places[1].address, 1450)?);
        assert!(!probe::passes_unfragmented(&places[0].netns, places[1].address, 1451)?);

        let stream = Stream::start(&places[0].netns, places[1].address, Duration::from_millis(20))?;
        std::thread::sleep(Duration::from_millis(500));
        let tally = stream.stop();
        assert!(tally.sent > 10 && tally.lost == 0, "{tally:?}");

        // What must be able to fail, fails: a stream over a cut cable loses packets.
        let stream = Stream::start(&places[0].netns, places[1].address, Duration::from_millis(20))?;
        cluster.underlay.set_port("node2", false)?;
        assert!(!Matrix::measure(&places)?.open(0, 1));
        assert!(stream.stop().lost > 0);
        Ok(())
    })
}

/// The underlay with etcd on it, TCP, and frames sent and captured.
#[test]
fn underlay_carries_tcp_and_any_frame() -> Outcome {
    run(&Plan { etcd: 3, internet: true, ..plan() }, |cluster| {
        let (one, two) = (cluster.node(1).place(), cluster.node(2).place());
        let world = cluster.internet.as_ref().map(|i| i.place()).expect("the plan has an internet");
        Matrix::require(&[one.clone(), two.clone(), world.clone()], |_, _| true)?;
        probe::tcp_echo(&one, &two, 1 << 20)?;
        probe::tcp_echo(&one, &world, 1 << 20)?;
        let switch =
            Place { name: "switch".into(), netns: cluster.underlay.netns().path(), address: etcd_address(1) };
        probe::tcp_echo(&two, &switch, 1 << 20)?;

        cluster.etcd.put("/k", "v")?;
        assert_eq!(cluster.etcd.get("/k")?.as_deref(), Some("v"));
        cluster.etcd.kill_member(0)?;
        cluster.etcd.put("/k", "w")?;
        cluster.etcd.start_member(0)?;
        assert_eq!(cluster.etcd.get("/k")?.as_deref(), Some("w"));

        let mark = b"a mark of the bed";
        let capture = Capture::start(&two.netns, "eth0", move |frame| frames::contains(frame, mark))?;
        let datagram = frames::udp(4000, 4001, mark);
        let packet = frames::ipv4(one.address, two.address, 17, &datagram);
        let frame = frames::ethernet(frames::BROADCAST, [2, 0, 0, 0, 0, 9], 0x0800, &packet);
        frames::send(&one.netns, "eth0", &[frame.clone(), frame.clone()])?;
        assert_eq!(capture.stop(Duration::from_millis(200)), [frame.clone(), frame]);
        Ok(())
    })
}

/// A cluster that goes takes its namespaces, processes and files along.
#[test]
fn nothing_is_left_behind() -> Outcome {
    let cluster = Cluster::start(&plan())?;
    let (name, dir) = (cluster.ground.name().to_owned(), cluster.ground.dir().to_owned());
    assert_eq!(namespaces(&name), 3);
    assert!(dir.exists());
    let process = std::fs::read_to_string(cluster.node(1).ovs().dir().join("ovs-vswitchd.pid"));
    let process = process.expect("ovs-vswitchd writes its pid file");
    drop(cluster);
    assert_eq!(namespaces(&name), 0);
    assert!(!dir.exists());
    assert!(!std::path::Path::new("/proc").join(process.trim()).exists());

    let cluster = Cluster::start(&plan())?;
    let name = cluster.ground.name().to_owned();
    let process = std::fs::read_to_string(cluster.node(1).ovs().dir().join("ovs-vswitchd.pid"));
    ground::remove(&name);
    assert_eq!(namespaces(&name), 0);
    let stat = format!("/proc/{}/stat", process.expect("a pid file").trim());
    // Killed, which takes the kernel a moment, and a zombie until this process, its parent, asks after it.
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while !std::fs::read_to_string(&stat).is_ok_and(|state| state.contains(") Z ")) {
        assert!(std::time::Instant::now() < deadline, "ovs-vswitchd was not killed");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn namespaces(cluster: &str) -> usize {
    let listing = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    listing.filter(|n| n.file_name().to_string_lossy().starts_with(&format!("{cluster}-"))).count()
}
