//! Bandwidth limits last: through everything that restarts, moves or breaks on a node, and not a moment longer than
//! their pod.

use std::{path::PathBuf, thread, time::Duration};

use serde_json::json;
use tenon_tests::{
    BedError, Cluster, Outcome, Plan,
    command::until,
    datapath::patience,
    iperf::{Load, Received, measure},
    limits::{EGRESS_TURN, INGRESS_TURN, require_limit},
    matrix::{Matrix, Place},
    node::BRIDGE,
    pod::Pod,
    probe, run,
    threads::joined,
};

const LIMIT: u64 = 10_000_000;
/// More than the limit, and without acknowledgements that would wait behind the packets of the other direction.
const OVERLOAD: Load = Load::Udp { bits_per_second: 13_000_000 };

/// A pod that is limited both ways, and one to talk to in each direction.
struct Scene {
    limited: Pod,
    near: Pod,
    far: Pod,
}

impl Scene {
    fn new(cluster: &Cluster) -> Result<Self, BedError> {
        cluster.add_tenants(&["a", "b"])?;
        let limited = cluster.node(1).limited_pod("a", "limited", LIMIT, LIMIT)?;
        Ok(Self { limited, near: cluster.node(1).pod("a", "near")?, far: cluster.node(2).pod("a", "far")? })
    }

    fn places(&self) -> Result<Vec<Place>, BedError> {
        [&self.limited, &self.near, &self.far].into_iter().map(Pod::place).collect()
    }

    /// Measures both directions at once.
    fn rates(&self, cluster: &Cluster) -> Result<[Received; 2], BedError> {
        let (limited, near, far) = (self.limited.place()?, self.near.place()?, self.far.place()?);
        thread::scope(|scope| {
            let egress = scope.spawn(|| measure(cluster, &limited, &far, OVERLOAD, 2));
            let ingress = measure(cluster, &near, &limited, OVERLOAD, 2)?;
            let egress = joined(egress)?;
            Ok([egress, ingress])
        })
    }

    /// Both limits hold, once the pod can be reached.
    fn holds(&self, cluster: &Cluster, what: &str) -> Outcome {
        Matrix::require(&self.places()?, |_, _| true)
            .map_err(|e| BedError::answer(format!("after {what}"), e.to_string()))?;
        for (direction, received) in ["egress", "ingress"].into_iter().zip(self.rates(cluster)?) {
            require_limit(&format!("{what}, {direction}"), LIMIT, &received);
        }
        Ok(())
    }
}

/// origin#18852: what belongs to a pod's namespace stays when namespaces share a VNI.
#[test]
fn limits_survive_their_tenant_s_moves() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let scene = Scene::new(cluster)?;
        for (action, other) in [("join", "b"), ("isolate", ""), ("global", ""), ("isolate", "")] {
            cluster.etcd.act("a", action, other)?;
            scene.holds(cluster, action)?;
        }
        Ok(())
    })
}

#[test]
fn limits_survive_the_agent() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let scene = Scene::new(cluster)?;
        let node = cluster.node(1);
        node.kill_agent();
        scene.holds(cluster, "the agent's death")?;
        node.start_agent()?;
        scene.holds(cluster, "the agent's return")?;
        // A limit that went while nobody looked comes back with the agent.
        node.kill_agent();
        node.tc(&["qdisc", "del", "dev", EGRESS_TURN, "root"])?;
        node.tc(&["qdisc", "del", "dev", INGRESS_TURN, "root"])?;
        node.start_agent()?;
        until("the limits", patience(Duration::from_secs(10)), || {
            let check = scene.limited.check().map_err(|e| e.to_string())?;
            if check.success { Ok(()) } else { Err(check.text) }
        })?;
        scene.holds(cluster, "a loss in the agent's absence")
    })
}

/// origin#21723, #18924: a restart of Open vSwitch lost what had been set up.
#[test]
fn limits_survive_open_vswitch() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let scene = Scene::new(cluster)?;
        let node = cluster.node(1);
        for hard in [false, true] {
            let mut ovs = node.ovs();
            ovs.end_vswitchd(hard);
            ovs.start_vswitchd()?;
            drop(ovs);
            node.configure_uplink()?;
            scene.holds(cluster, &format!("ovs-vswitchd's restart, hard={hard}"))?;
        }
        let mut ovs = node.ovs();
        ovs.end_vswitchd(true);
        ovs.end_ovsdb(true);
        ovs.start_ovsdb()?;
        ovs.start_vswitchd()?;
        drop(ovs);
        node.configure_uplink()?;
        scene.holds(cluster, "the restart of both")?;
        node.ovs().vsctl(&["--no-wait", "del-br", BRIDGE])?;
        scene.holds(cluster, "del-br")?;
        let check = scene.limited.check()?;
        assert!(check.success, "{}", check.text);
        Ok(())
    })
}

#[test]
fn missing_limits_are_noticed_and_put_back() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let scene = Scene::new(cluster)?;
        let node = cluster.node(1);
        let whole = node.limit_traces()?;
        let class = format!("1:{:x}", node.ofport(&scene.limited)?);
        for (turn, direction) in [(EGRESS_TURN, "egress"), (INGRESS_TURN, "ingress")] {
            assert_eq!(node.classes(turn)?.join(" "), class);
            // The agent may have put it back before CHECK looks, but not every time.
            let mut noticed = false;
            for _ in 0..3 {
                node.tc(&["class", "del", "dev", turn, "classid", &class])?;
                let check = scene.limited.check()?;
                node.wait_for_limit_traces(&whole)?;
                noticed = check.message().contains(&format!("{direction} limit is none"));
                assert!(check.success || noticed, "{}", check.text);
                if noticed {
                    break;
                }
            }
            assert!(noticed, "CHECK never saw that the {direction} limit was gone");
        }
        // Another rate than the pod's, and the shapers' own queues and filters.
        let rate = ["class", "change", "dev", EGRESS_TURN, "parent", "1:", "classid", &class];
        node.tc(&[&rate[..], &["htb", "rate", "1gbit"]].concat())?;
        node.tc(&["qdisc", "del", "dev", INGRESS_TURN, "root"])?;
        node.tc(&["qdisc", "del", "dev", INGRESS_TURN, "clsact"])?;
        node.wait_for_limit_traces(&whole)?;
        scene.holds(cluster, "a loss of queues and filters")?;
        node.netns().ip(&["link", "del", EGRESS_TURN])?;
        node.netns().ip(&["link", "set", INGRESS_TURN, "down"])?;
        node.wait_for_limit_traces(&whole)?;
        scene.holds(cluster, "a loss of a shaper")
    })
}

/// A pod that is gone leaves no queue, and its OpenFlow port's next holder has none of its limits.
#[test]
fn limits_go_with_their_pod() -> Outcome {
    run(&Plan::nodes(1), |cluster| {
        cluster.add_tenants(&["a"])?;
        let node = cluster.node(1);
        let peer = node.pod("a", "peer")?;
        let before = node.limit_traces()?;
        let pod = |name: &str| node.limited_pod("a", name, LIMIT, LIMIT);

        let deleted = pod("deleted")?;
        assert_ne!(node.limit_traces()?, before);
        deleted.del()?;
        node.wait_for_limit_traces(&before)?;
        deleted.del()?;

        let collected = pod("collected")?;
        let valid = json!([{"containerID": peer.attachment.container, "ifname": "eth0"}]);
        node.cni()?.version("1.1.0").with("cni.dev/valid-attachments", valid).call("GC", None)?.accepted()?;
        node.wait_for_limit_traces(&before)?;
        drop(collected);

        let mut failing = node.sandbox("a", "failing")?;
        failing.cni = failing
            .cni
            .with("runtimeConfig", json!({"bandwidth": tenon_tests::limits::as_kubelet(LIMIT, LIMIT)}));
        failing.attachment.netns = Some(PathBuf::from("/run/netns/there-is-none"));
        let reply = failing.cni.call("ADD", Some(&failing.attachment))?;
        assert!(!reply.success, "{}", reply.text);
        node.wait_for_limit_traces(&before)?;

        // A pod that dies with its node's agent, and a class that nobody knows of.
        let dead = pod("dead")?;
        let port = node.ofport(&dead)?;
        node.kill_agent();
        drop(dead);
        let stray = format!("1:{:x}", port + 1);
        for turn in [EGRESS_TURN, INGRESS_TURN] {
            node.tc(&[
                "class", "add", "dev", turn, "parent", "1:", "classid", &stray, "htb", "rate", "8kbit",
            ])?;
        }
        node.start_agent()?;
        node.wait_for_limit_traces(&before)?;

        // Ports are given anew in turn, and after a restart of the agent from the highest in use on.
        let restart = || {
            node.kill_agent();
            node.start_agent()
        };
        restart()?;
        let limited = pod("limited")?;
        let port = node.ofport(&limited)?;
        limited.del()?;
        restart()?;
        let heir = node.pod("a", "heir")?;
        assert_eq!(node.ofport(&heir)?, port, "the port was not reused");
        let check = heir.check()?;
        assert!(check.success, "{}", check.text);
        assert!(probe::ping(&heir.netns().path(), peer.address()?)?);
        for (from, to) in [(&heir, &peer), (&peer, &heir)] {
            let times = measure(cluster, &from.place()?, &to.place()?, Load::Tcp, 2)?.rate(..) / LIMIT as f64;
            assert!(times > 4.0, "{times:.2} times the limit of the port's last holder");
        }
        heir.del()?;
        node.wait_for_limit_traces(&before)
    })
}
