//! Parts of a node die and come back; the pods' traffic does not care, or recovers in seconds.

use std::{thread, time::Duration};

use tenon_tests::{
    BedError, Cluster, Outcome, Plan,
    command::until,
    datapath::patience,
    matrix::{Matrix, Place},
    node::{BRIDGE, Node},
    pod::Pod,
    run,
    stream::{Stream, Tally},
};

/// Fifty packets a second.
const INTERVAL: Duration = Duration::from_millis(20);

struct Scene {
    pods: Vec<Pod>,
    places: Vec<Place>,
}

/// `a1` and `a2` on the first node, `a3` and `b1` on the second, `b2` on the first.
fn scene(cluster: &Cluster) -> Result<Scene, BedError> {
    cluster.add_tenants(&["a", "b"])?;
    let pods = vec![
        cluster.node(1).pod("a", "a1")?,
        cluster.node(1).pod("a", "a2")?,
        cluster.node(2).pod("a", "a3")?,
        cluster.node(2).pod("b", "b1")?,
        cluster.node(1).pod("b", "b2")?,
    ];
    let places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
    Matrix::require(&places, apart)?;
    Ok(Scene { pods, places })
}

fn apart(from: &str, to: &str) -> bool {
    from[..1] == to[..1]
}

/// What `work` costs a stream within the node and one between the nodes.
fn during(scene: &Scene, work: impl FnOnce() -> Outcome) -> Result<[Tally; 2], BedError> {
    let from = scene.pods[0].netns().path();
    let near = Stream::start(&from, scene.pods[1].address()?, INTERVAL)?;
    let far = Stream::start(&from, scene.pods[2].address()?, INTERVAL)?;
    thread::sleep(Duration::from_millis(300));
    let worked = work();
    thread::sleep(Duration::from_millis(500));
    let tallies = [near.stop(), far.stop()];
    worked.map(|()| tallies)
}

#[test]
fn agent_restart_loses_no_packet() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let scene = scene(cluster)?;
        for hard in [true, false] {
            for node in &cluster.nodes {
                let tallies = during(&scene, || {
                    if hard {
                        node.kill_agent();
                    } else {
                        node.stop_agent();
                    }
                    thread::sleep(Duration::from_millis(300));
                    node.start_agent()?;
                    thread::sleep(Duration::from_millis(700));
                    Ok(())
                })?;
                for tally in tallies {
                    assert!(tally.sent > 50 && tally.lost == 0, "hard={hard} {}: {tally:?}", node.name());
                }
            }
        }
        Matrix::require(&scene.places, apart)?;
        Ok(())
    })
}

/// The pods' links with their own and their peers' indexes, by which a pod that was made anew would be known.
fn identities(scene: &Scene) -> Result<Vec<String>, BedError> {
    let identity = |pod: &Pod| {
        let link = pod.netns().ip(&["-o", "link", "show", "dev", "eth0"])?;
        let indexes: Vec<&str> = link.split(' ').take(2).collect();
        Ok(format!("{} {} {:?}", indexes.join(" "), pod.address()?, pod.mac()?))
    };
    scene.pods.iter().map(identity).collect()
}

/// Restarts parts of a node's Open vSwitch and requires that all is as before in seconds.
fn recovers(cluster: &Cluster, scene: &Scene, what: &str, work: impl Fn(&Node) -> Outcome) -> Outcome {
    let node = cluster.node(1);
    let (flows, pods) = (node.flows()?, identities(scene)?);
    work(node)?;
    let before = std::time::Instant::now();
    Matrix::require(&scene.places, apart)
        .map_err(|e| BedError::answer(format!("after the restart of {what}"), e.to_string()))?;
    eprintln!("{what}: the matrix was right {:?} after", before.elapsed());
    assert_eq!(identities(scene)?, pods, "{what}: a pod was made anew");
    until(&format!("the same flows after {what}"), patience(Duration::from_secs(10)), || {
        let now = node.flows().map_err(|e| e.to_string())?;
        if now == flows { Ok(()) } else { Err(now.join("\n")) }
    })?;
    until("flow-restore-wait to be cleared", patience(Duration::from_secs(10)), || {
        let waiting = node
            .ovs()
            .vsctl(&["--if-exists", "get", "open_vswitch", ".", "other_config:flow-restore-wait"])
            .map_err(|e| e.to_string())?;
        if waiting.contains("true") { Err(waiting) } else { Ok(()) }
    })?;
    node.wait_ready()?;
    for pod in &scene.pods {
        let check = pod.check()?;
        assert!(check.success, "{what}: {}", check.text);
    }
    // And the node still takes pods.
    let fresh = node.pod("a", "fresh")?;
    assert!(tenon_tests::probe::ping(&fresh.netns().path(), scene.pods[2].address()?)?);
    fresh.del()
}

/// openshift/origin#21723, antrea#625 and others: a restart of Open vSwitch lost flows or ports.
#[test]
fn open_vswitch_restart_is_repaired() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let scene = scene(cluster)?;
        for hard in [false, true] {
            recovers(cluster, &scene, &format!("ovs-vswitchd, hard={hard}"), |node| {
                let mut ovs = node.ovs();
                ovs.end_vswitchd(hard);
                ovs.start_vswitchd()?;
                drop(ovs);
                node.configure_uplink()
            })?;
            recovers(cluster, &scene, &format!("ovsdb-server, hard={hard}"), |node| {
                let mut ovs = node.ovs();
                ovs.end_ovsdb(hard);
                ovs.start_ovsdb()
            })?;
        }
        recovers(cluster, &scene, "both", |node| {
            let mut ovs = node.ovs();
            ovs.end_vswitchd(true);
            ovs.end_ovsdb(true);
            ovs.start_ovsdb()?;
            ovs.start_vswitchd()?;
            drop(ovs);
            node.configure_uplink()
        })
    })
}

#[test]
fn deleted_bridge_and_flows_are_repaired() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let scene = scene(cluster)?;
        recovers(cluster, &scene, "del-br br0", |node| {
            node.ovs().vsctl(&["--no-wait", "del-br", BRIDGE]).map(|_| ())
        })?;
        recovers(cluster, &scene, "del-flows br0 while the agent is away", |node| {
            node.kill_agent();
            node.ovs().ofctl("del-flows", BRIDGE, &[])?;
            node.start_agent()
        })?;
        recovers(cluster, &scene, "flow-restore-wait left set", |node| {
            let mut ovs = node.ovs();
            ovs.vsctl(&["set", "open_vswitch", ".", "other_config:flow-restore-wait=true"])?;
            ovs.end_vswitchd(false);
            ovs.start_vswitchd()?;
            drop(ovs);
            node.configure_uplink()
        })
    })
}
