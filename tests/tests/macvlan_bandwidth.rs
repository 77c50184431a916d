//! Bandwidth limits of pods on segments. plugins#413, #656: the reference `bandwidth` plugin needs a veth, so pods on a
//! macvlan have no limits with it at all.

use std::{fs, path::PathBuf, thread, time::Duration};

use serde_json::{Value, json};
use tenon_tests::{
    BedError, Cluster, Outcome,
    command::{Tool, until},
    datapath::patience,
    etcd::Etcd,
    iperf::{Load, measure},
    limits::{Case, EGRESS_TURN, as_kubelet, change_unnoticed, measure_at_once, require_limit},
    pod::Pod,
    segment::{GATEWAY, MACHINE, on_segments, place, record, refused},
    threads::joined,
};

const M: u64 = 1_000_000;
const LIMIT: u64 = 10 * M;
/// More than the limit.
const OVERLOAD: Load = Load::Udp { bits_per_second: 13 * M };

/// kube-ovn#927, #4867, cilium#15824: directions swapped, UDP or traffic within the node not limited.
#[test]
fn limits_hold_from_the_first_second_and_leave_the_other_direction_free() -> Outcome {
    on_segments(2, &[record("lan", &json!({}))], |cluster, _| {
        for limit in [LIMIT, 100 * M] {
            // Two pods for every measurement. They all run at once, each within its own limit.
            let (mut pods, mut cases) = (Vec::new(), Vec::new());
            for (place, peers_node) in [("near", 1), ("far", 2)] {
                for (direction, ingress, egress) in [("ingress", limit, 0), ("egress", 0, limit)] {
                    let udp = Load::Udp { bits_per_second: limit * 13 / 10 };
                    for (protocol, load) in [("tcp", Load::Tcp), ("udp", udp)] {
                        if limit > LIMIT && (protocol == "udp") != (place == "near") {
                            // So much at once is enough for a small machine.
                            continue;
                        }
                        let name = format!("{direction}-{protocol}-{place}-{}m", limit / M);
                        let peer =
                            cluster.node(peers_node).segment_pod("lan", "a", &format!("peer-{name}"))?;
                        let pod = cluster.node(1).limited_segment_pod("lan", &name, ingress, egress)?;
                        let check = pod.check()?;
                        assert!(check.success, "{}", check.text);
                        let ingress = ingress > 0;
                        let (here, there) = (pod.place()?, peer.place()?);
                        cases.push(Case { name, pod: here, peer: there, ingress, load, seconds: 3 });
                        pods.extend([pod, peer]);
                    }
                }
            }
            let received = measure_at_once(cluster, &cases);
            for (case, received) in cases.iter().zip(received) {
                require_limit(&case.name, limit, &received?);
            }
            for case in cases.iter().filter(|case| limit == LIMIT && case.load == Load::Tcp) {
                let times = case.measure_reverse(cluster)?.rate(..) / limit as f64;
                assert!(times > 10.0, "reverse of {}: only {times:.2} times the limit", case.name);
            }
        }
        Ok(())
    })
}

/// calico#9145: a limit could not change or be lifted on a running pod.
#[test]
fn limits_change_and_go_while_traffic_runs() -> Outcome {
    on_segments(2, &[record("lan", &json!({}))], |cluster, _| {
        let node = cluster.node(1);
        let (pod, peer) =
            (node.segment_pod("lan", "a", "pod")?, cluster.node(2).segment_pod("lan", "a", "peer")?);
        let (here, there) = (pod.place()?, peer.place()?);
        let change = |bandwidth: Value| -> Outcome {
            let changed = node.change_limits("a", "pod", &bandwidth)?;
            assert_eq!(changed, Ok(()), "{bandwidth}");
            let lease = cluster.etcd.leases("lan")?.remove(&here.address.to_string()).unwrap_or_default();
            let noted = lease.get("Bandwidth").cloned().unwrap_or_else(|| json!({}));
            assert_eq!(noted, bandwidth, "{lease}");
            let check = pod.check()?;
            assert!(check.success, "{}", check.text);
            Ok(())
        };

        // Streams well below every limit lose nothing.
        let changes = [
            json!({"ingressRate": LIMIT, "egressRate": LIMIT}),
            json!({"ingressRate": 3 * LIMIT, "egressRate": LIMIT / 2}),
            json!({"egressRate": LIMIT / 2}),
            json!({"ingressRate": LIMIT, "ingressBurst": LIMIT / 10}),
            json!({}),
        ];
        change_unnoticed(cluster, &here, &there, &changes, change)?;
        pod.wait_for_limits(0)?;

        // A full stream has the new rate within a second, in both directions.
        for (key, from, to) in [("ingressRate", &there, &here), ("egressRate", &here, &there)] {
            change(json!({ key: LIMIT }))?;
            let received = thread::scope(|scope| {
                let received = scope.spawn(|| measure(cluster, from, to, Load::Tcp, 7));
                thread::sleep(Duration::from_millis(2200));
                change(json!({ key: 3 * LIMIT }))?;
                thread::sleep(Duration::from_millis(2000));
                change(json!({}))?;
                joined(received)
            })?;
            for (rate, limit) in [(received.rate(..2), LIMIT), (received.rate(3..4), 3 * LIMIT)] {
                let share = rate / limit as f64;
                assert!((0.5..=1.3).contains(&share), "{key}: {share:.2} of {limit}: {received:?}");
            }
            assert!(received.rate(5..) > 8.0 * LIMIT as f64, "{key}: {received:?}");
        }
        pod.wait_for_limits(0)?;

        // What cannot be done is said, and does nothing.
        assert_eq!(node.change_limits("a", "nobody", &json!({"ingressRate": LIMIT}))?, Err(3));
        assert_eq!(node.change_limits("b", "pod", &json!({"ingressRate": LIMIT}))?, Err(3));
        assert_eq!(node.change_limits("a", "pod", &json!({"ingressRate": 999}))?, Err(7));
        cluster.etcd.kill_member(0)?;
        assert_eq!(node.change_limits("a", "pod", &json!({"ingressRate": LIMIT}))?, Err(11));
        assert_eq!(pod.limit_traces()?, Vec::<String>::new());
        cluster.etcd.start_member(0)?;
        until("a change when etcd is back", patience(Duration::from_secs(15)), || {
            let changed = node.change_limits("a", "pod", &json!({"ingressRate": LIMIT}));
            if changed.map_err(|e| e.to_string())? == Ok(()) { Ok(()) } else { Err("refused".to_owned()) }
        })?;
        pod.wait_for_limits(2)
    })
}

/// A pod that is limited both ways and what it talks to, measured at once.
fn holds(cluster: &Cluster, what: &str, pod: &Pod, peer: &Pod) -> Outcome {
    let (here, there) = (pod.place()?, peer.place()?);
    let [egress, ingress] = thread::scope(|scope| {
        let egress = scope.spawn(|| measure(cluster, &here, &there, OVERLOAD, 2));
        let ingress = measure(cluster, &there, &here, OVERLOAD, 2);
        Ok::<_, BedError>([joined(egress)?, ingress?])
    })?;
    require_limit(&format!("{what}, egress"), LIMIT, &egress);
    require_limit(&format!("{what}, ingress"), LIMIT, &ingress);
    Ok(())
}

/// What the pod itself can reach, it can take away; the agent sees and mends it, also what happened in its absence.
#[test]
fn missing_limits_are_noticed_and_put_back() -> Outcome {
    on_segments(1, &[record("lan", &json!({}))], |cluster, _| {
        let node = cluster.node(1);
        let limited = |name: &str| node.limited_segment_pod("lan", name, LIMIT, LIMIT);
        let peer = node.segment_pod("lan", "a", "peer")?;
        let sound = |pod: &Pod, after: &str| {
            until(&format!("sound limits after {after}"), patience(Duration::from_secs(15)), || {
                let check = pod.check().map_err(|e| e.to_string())?;
                if check.success { Ok(()) } else { Err(check.text) }
            })
        };
        let inside = |pod: &Pod, script: &str| {
            Tool::new("sh").inside(pod.netns().path()).args(["-c", script]).run().map(|_| ())
        };
        let pods = [limited("queues")?, limited("device")?, limited("rules")?];
        let damages = [
            ("tc qdisc del dev $(ip -br link | grep -o '^tenon-e[0-9a-f]*') root", "egress limit is damaged"),
            ("ip link del $(ip -br link | grep -o '^tenon-i[0-9a-f]*')", "ingress limit is damaged"),
            ("nft flush ruleset", "egress limit is none, it should be 1278716 bytes/s"),
        ];
        for (pod, (damage, told)) in pods.iter().zip(damages) {
            // The agent may have put it back before CHECK looks, but not every time.
            let mut noticed = false;
            for _ in 0..3 {
                inside(pod, damage)?;
                let check = pod.check()?;
                noticed = check.message().contains(told);
                assert!(check.success || noticed, "{damage}: {}", check.text);
                if noticed {
                    break;
                }
            }
            assert!(noticed, "CHECK never saw {damage}");
        }
        for (pod, (damage, _)) in pods.iter().zip(damages) {
            sound(pod, damage)?;
            assert_eq!(pod.limit_traces()?.len(), 4);
            holds(cluster, damage, pod, &peer)?;
        }
        assert!(node.log().contains("put the limits of pods right"));

        // While the agent is away limits hold; what goes then is put back when it returns.
        let [_, pod, _] = &pods;
        node.kill_agent();
        holds(cluster, "without the agent", pod, &peer)?;
        inside(pod, "nft flush ruleset")?;
        node.start_agent()?;
        sound(pod, "the agent's return")?;
        holds(cluster, "after the agent's return", pod, &peer)?;

        // What an agent that died had lifted, and not cleaned up.
        let lifted = limited("lifted")?;
        node.kill_agent();
        let key = Etcd::lease_key("lan", lifted.address()?);
        let mut lease = cluster.etcd.record(&key)?.unwrap_or_default();
        lease.as_object_mut().map(|fields| fields.remove("Bandwidth"));
        cluster.etcd.put(&key, &lease.to_string())?;
        node.start_agent()?;
        lifted.wait_for_limits(0)
    })
}

/// Neither a pod's namespace nor its lease keeps a limit that the next ADD does not ask for.
#[test]
fn limits_go_with_their_pod() -> Outcome {
    let segment = record("lan", &json!({"StickySeconds": 600}));
    on_segments(1, &[segment], |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let node = cluster.node(1);
        let mut pod = node.limited_segment_pod("lan", "web-0", LIMIT, LIMIT)?;
        let lease = |pod: &Pod| -> Result<Value, BedError> {
            Ok(cluster.etcd.leases("lan")?.remove(&pod.address()?.to_string()).unwrap_or_default())
        };
        assert_eq!(lease(&pod)?["Bandwidth"], json!({"ingressRate": LIMIT, "egressRate": LIMIT}));
        let address = pod.address()?;
        pod.del()?;
        pod.wait_for_limits(0)?;

        pod.cni = node.segment_sandbox("lan", "a", "other")?.cni;
        pod.add()?;
        assert_eq!(pod.address()?, address, "the lease is the same one");
        assert_eq!((pod.limit_traces()?, lease(&pod)?.get("Bandwidth")), (vec![], None));
        let free = measure(cluster, &pod.place()?, &place("machine", &machine, MACHINE), Load::Tcp, 1)?;
        assert!(free.rate(..) > 10.0 * LIMIT as f64, "{free:?}");

        // By GC, and when the pod has deleted its interface itself.
        let collected = node.limited_segment_pod("lan", "collected", LIMIT, LIMIT)?;
        let valid = json!([{"containerID": pod.attachment.container, "ifname": "eth0"}]);
        let cni = node.segment_sandbox("lan", "a", "gc")?.cni.version("1.1.0");
        cni.with("cni.dev/valid-attachments", valid).call("GC", None)?.accepted()?;
        collected.wait_for_limits(0)?;
        let gone = node.limited_segment_pod("lan", "gone", LIMIT, LIMIT)?;
        gone.netns().ip(&["link", "del", "eth0"])?;
        gone.del()?;
        gone.wait_for_limits(0)?;

        // An ADD that fails leaves nothing.
        let mut failing = node.segment_sandbox("lan", "a", "failing")?;
        failing.cni = failing.cni.with("runtimeConfig", json!({"bandwidth": as_kubelet(LIMIT, LIMIT)}));
        failing.attachment.netns = Some(PathBuf::from("/run/netns/there-is-none"));
        refused(&failing)?;
        assert_eq!(failing.limit_traces()?, Vec::<String>::new());
        assert!(pod.check()?.success);
        Ok(())
    })
}

/// The network's own `bandwidth` and the pod's annotations, with addresses from another plugin.
#[test]
fn limits_of_the_network_and_the_pod_hold_with_delegated_addresses() -> Outcome {
    on_segments(1, &[record("lan", &json!({}))], |cluster, _| {
        let node = cluster.node(1);
        let dir = cluster.ground.dir().join("host-local");
        fs::create_dir_all(&dir).map_err(|e| BedError::system("make a directory", e))?;
        let ipam = json!({
            "type": "host-local", "dataDir": dir,
            "ranges": [[{"subnet": "10.100.0.0/24", "rangeStart": "10.100.0.120", "gateway": GATEWAY}]],
        });
        let annotations = json!({"kubernetes.io/ingress-bandwidth": "20M"});
        let mut pod = node.segment_sandbox("lan", "a", "pod")?;
        pod.cni = pod
            .cni
            .with("ipam", ipam)
            .with("bandwidth", json!({"ingressRate": LIMIT, "egressRate": LIMIT}))
            .with("runtimeConfig", json!({"io.kubernetes.cri.pod-annotations": annotations}));
        pod.add()?;
        assert!(pod.check()?.success);
        let peer = node.segment_pod("lan", "a", "peer")?;
        let (here, there) = (pod.place()?, peer.place()?);
        require_limit("the network's", LIMIT, &measure(cluster, &here, &there, OVERLOAD, 2)?);
        require_limit("the pod's", 2 * LIMIT, &measure(cluster, &there, &here, Load::Tcp, 2)?);

        node.kill_agent();
        node.start_agent()?;
        // The same pod has another interface, on the overlay.
        cluster.add_tenants(&["a"])?;
        let mut overlay = node.sandbox("a", "overlay")?;
        overlay.attachment.pod = "pod".to_owned();
        overlay.add()?;
        assert_eq!(node.change_limits("a", "pod", &json!({"egressRate": 2 * LIMIT}))?, Ok(()));
        assert!(pod.check()?.success && overlay.check()?.success);
        assert_eq!(node.classes(EGRESS_TURN)?.len(), 1);
        require_limit("changed", 2 * LIMIT, &measure(cluster, &here, &there, Load::Tcp, 2)?);
        pod.wait_for_limits(2)?;
        pod.del()?;
        pod.wait_for_limits(0)
    })
}
