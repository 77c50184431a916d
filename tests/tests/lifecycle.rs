//! Pods come and go, in the order that runtimes do it and in the orders that they should not.

use std::time::Duration;

use tenon_tests::{
    BedError, Cluster, Outcome, Plan,
    command::{Tool, until},
    datapath::patience,
    matrix::Matrix,
    node::Node,
    numbers::Numbers,
    pod::Pod,
    probe, run,
};

fn reaches(from: &Pod, to: &Pod) -> Result<bool, BedError> {
    probe::ping(&from.netns().path(), to.address()?)
}

/// antrea#827: an old sandbox's DEL comes after the new one of the same pod, in the same namespace, has been added.
#[test]
fn late_del_is_harmless() -> Outcome {
    run(&Plan::nodes(1), |cluster| {
        cluster.add_tenants(&["a"])?;
        let node = cluster.node(1);
        let peer = node.pod("a", "peer")?;
        let old = node.pod("a", "web-0")?;
        let (cni, late) = (old.cni.clone(), old.attachment.clone());
        assert!(reaches(&old, &peer)?);
        drop(old);
        let new = node.pod("a", "web-0")?;
        assert_ne!(new.attachment.container, late.container);
        assert_eq!(new.attachment.netns, late.netns);
        for netns in [late.netns.clone(), None] {
            let late = tenon_tests::cni::Attachment { netns, ..late.clone() };
            cni.call("DEL", Some(&late))?.accepted()?;
            assert!(reaches(&new, &peer)? && reaches(&peer, &new)?);
        }
        assert!(new.check()?.success);
        Ok(())
    })
}

/// antrea#276, ovs-cni#276: DEL never fails for what is already gone.
#[test]
fn del_succeeds_whatever_is_gone() -> Outcome {
    run(&Plan::nodes(1), |cluster| {
        cluster.add_tenants(&["a"])?;
        let node = cluster.node(1);
        let before = node.traces()?;

        let pod = node.pod("a", "twice")?;
        pod.del()?;
        pod.del()?;
        node.wait_for_traces(&before)?;
        assert!(!pod.netns().ip(&["-o", "link"])?.contains("eth0"));

        let pod = node.pod("a", "unnamed")?;
        let unnamed = tenon_tests::cni::Attachment { netns: None, ..pod.attachment.clone() };
        pod.cni.call("DEL", Some(&unnamed))?.accepted()?;
        node.wait_for_traces(&before)?;

        let pod = node.pod("a", "gone")?;
        let (cni, attachment) = (pod.cni.clone(), pod.attachment.clone());
        drop(pod);
        cni.call("DEL", Some(&attachment))?.accepted()?;
        node.wait_for_traces(&before)?;

        let never = node.sandbox("a", "never")?;
        never.del()?;

        // After an ADD that failed half way: the interface's name is taken in the pod.
        let mut failed = node.sandbox("a", "failed")?;
        failed.netns().ip(&["link", "add", "eth0", "type", "bridge"])?;
        assert!(failed.add().is_err());
        node.wait_for_traces(&before)?;
        failed.del()?;
        node.wait_for_traces(&before)?;
        assert!(failed.netns().ip(&["-o", "link"])?.contains("eth0"), "what the plugin had not made stays");
        Ok(())
    })
}

/// DEL while Open vSwitch is down is answered at once; the port goes when it is back.
#[test]
fn del_without_open_vswitch_is_made_good() -> Outcome {
    run(&Plan::nodes(1), |cluster| {
        cluster.add_tenants(&["a"])?;
        let node = cluster.node(1);
        let keeper = node.pod("a", "keeper")?;
        let before = node.traces()?;
        let pod = node.pod("a", "leaver")?;
        node.ovs().end_vswitchd(true);
        node.ovs().end_ovsdb(true);
        pod.del()?;
        node.ovs().start_ovsdb()?;
        node.ovs().start_vswitchd()?;
        node.configure_uplink()?;
        node.wait_for_traces(&before)?;
        node.wait_ready()?;
        let again = node.pod("a", "comer")?;
        Matrix::require(&[keeper.place()?, again.place()?], |_, _| true)?;
        Ok(())
    })
}

#[test]
fn second_add_is_refused_and_the_first_unharmed() -> Outcome {
    run(&Plan::nodes(1), |cluster| {
        cluster.add_tenants(&["a"])?;
        let (pod, peer) = (cluster.node(1).pod("a", "a1")?, cluster.node(1).pod("a", "a2")?);
        let again = pod.cni.call("ADD", Some(&pod.attachment))?;
        assert!(!again.success, "{}", again.text);
        assert!(again.code().is_some(), "{}", again.text);
        assert!(reaches(&peer, &pod)? && pod.check()?.success);

        // Nor does another container take the interface over.
        let mut thief = pod.attachment.clone();
        thief.container = tenon_tests::pod::container_id();
        let taken = pod.cni.call("ADD", Some(&thief))?;
        assert!(!taken.success, "{}", taken.text);
        pod.cni.call("DEL", Some(&thief))?.accepted()?;
        assert!(reaches(&peer, &pod)? && pod.check()?.success);
        Ok(())
    })
}

/// antrea#430: port numbers are used again, and a late DEL removed the new pod's flows. ADD, DEL and late DEL are
/// interleaved, and the network is compared with a model: the pods that should be there.
#[test]
fn interleaved_adds_and_dels_match_a_model() -> Outcome {
    run(&Plan { host_bits: 4, ..Plan::nodes(1) }, |cluster| {
        cluster.add_tenants(&["a", "b"])?;
        let node = cluster.node(1);
        let empty = node.traces()?;
        let mut numbers = Numbers::new(7);
        let mut pods: [Option<Pod>; 5] = [const { None }; 5];
        let mut late = Vec::new();
        for round in 1..=40 {
            let slot = numbers.below(5) as usize;
            match pods[slot].take() {
                Some(pod) => {
                    pod.del()?;
                    late.push((pod.cni.clone(), pod.attachment.clone()));
                }
                None => {
                    let tenant = if slot.is_multiple_of(2) { "a" } else { "b" };
                    pods[slot] = Some(node.pod(tenant, &format!("{tenant}{slot}"))?);
                }
            }
            if !late.is_empty() && numbers.below(2) == 0 {
                let (cni, attachment) = &late[numbers.below(late.len() as u32) as usize];
                cni.call("DEL", Some(attachment))?.accepted()?;
            }
            if round % 10 == 0 {
                let places = pods.iter().flatten().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
                Matrix::require(&places, |from, to| from[..1] == to[..1])?;
            }
        }
        for pod in pods.iter().flatten() {
            pod.del()?;
        }
        node.wait_for_traces(&empty)
    })
}

/// Fills the node's subnet to the last address, which shows that none is lost; returns how many there were.
fn fill(node: &Node) -> Result<usize, BedError> {
    let mut pods = Vec::new();
    let mut addresses = std::collections::BTreeSet::new();
    let capacity = 13;
    for number in 0..capacity {
        let pod = node.pod("a", &format!("fill{number}"))?;
        assert!(addresses.insert(pod.address()?), "{} was given twice", pod.address()?);
        pods.push(pod);
    }
    let mut surplus = node.sandbox("a", "surplus")?;
    assert!(surplus.add().is_err(), "a /28 has 13 addresses for pods");
    surplus.del()?;
    for pod in &pods {
        pod.del()?;
    }
    Ok(pods.len())
}

/// Kills the agent `delay` into a verb, starts it again, and has the runtime delete the pod.
fn kill_during(node: &Node, verb: &str, pod: &Pod, delay: Duration) -> Outcome {
    let config = pod.cni.config().to_string();
    let mut child = pod.cni.tool(verb, Some(&pod.attachment), &config).start()?;
    std::thread::sleep(delay);
    node.kill_agent();
    child.wait().map_err(|e| BedError::system("wait for the plugin", e))?;
    node.start_agent()?;
    pod.del()
}

/// plugins#252 and many more: an agent that dies at any step of ADD or DEL leaks nothing, by its own reconciling
/// and the runtime's DEL.
#[test]
fn agent_killed_at_any_step_leaks_nothing() -> Outcome {
    run(&Plan { host_bits: 4, ..Plan::nodes(1) }, |cluster| {
        cluster.add_tenants(&["a"])?;
        let node = cluster.node(1);
        let before = node.traces()?;
        let mut numbers = Numbers::new(11);
        for round in 0..30 {
            let delay = Duration::from_micros(u64::from(numbers.below(15_000)));
            let mut pod = node.sandbox("a", &format!("k{round}"))?;
            if round % 2 == 0 {
                kill_during(node, "ADD", &pod, delay)?;
            } else {
                pod.add()?;
                kill_during(node, "DEL", &pod, delay)?;
            }
            node.wait_for_traces(&before)?;
            assert!(!pod.netns().ip(&["-o", "link"])?.contains("eth0"), "round {round}");
        }
        // Thirty rounds in a subnet of thirteen: had any address been lost, this would not fit.
        assert_eq!(fill(node)?, 13);
        node.wait_for_traces(&before)
    })
}

/// A reboot: all pods' namespaces are gone, and nobody sends a DEL for the pods before it.
#[test]
fn reboot_leaves_nothing_of_the_old_pods() -> Outcome {
    run(&Plan { host_bits: 4, ..Plan::nodes(1) }, |cluster| {
        cluster.add_tenants(&["a"])?;
        let node = cluster.node(1);
        let before = node.traces()?;
        let pods = (0..8).map(|n| node.pod("a", &format!("old{n}"))).collect::<Result<Vec<_>, _>>()?;
        node.kill_agent();
        drop(pods);
        node.start_agent()?;
        node.wait_for_traces(&before)?;
        assert_eq!(fill(node)?, 13);
        Ok(())
    })
}

/// A pod keeps its interface, address and place in the network while its agent is away, and DEL by a new agent works.
#[test]
fn pods_outlive_their_agent() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        cluster.add_tenants(&["a", "b"])?;
        let pods = [
            cluster.node(1).pod("a", "a1")?,
            cluster.node(2).pod("a", "a2")?,
            cluster.node(2).pod("b", "b1")?,
        ];
        let places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
        let rule = |from: &str, to: &str| from[..1] == to[..1];
        for node in &cluster.nodes {
            node.stop_agent();
        }
        Matrix::require(&places, rule)?;
        let refused = pods[0].cni.call("ADD", Some(&pods[0].attachment))?;
        assert_eq!(refused.code(), Some(11), "{}", refused.text);
        for node in &cluster.nodes {
            node.start_agent()?;
        }
        Matrix::require(&places, rule)?;
        for pod in &pods {
            assert!(pod.check()?.success);
            pod.del()?;
        }
        until("no links of pods", patience(Duration::from_secs(5)), || {
            let left = Tool::new("ip").args(["-n", pods[0].netns().name(), "-o", "link"]).run();
            match left {
                Ok(text) if !text.contains("eth0") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
    })
}

/// Sixteen at a time: every pod has its own address and reaches the others.
#[test]
fn simultaneous_adds_give_distinct_addresses() -> Outcome {
    run(&Plan::nodes(1), |cluster: &Cluster| {
        cluster.add_tenants(&["a"])?;
        let node = cluster.node(1);
        let pods: Vec<Result<Pod, BedError>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..16).map(|n| scope.spawn(move || node.pod("a", &format!("p{n}")))).collect();
            threads.into_iter().map(|t| t.join().expect("a thread that attaches a pod")).collect()
        });
        let pods = pods.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut addresses = pods.iter().map(Pod::address).collect::<Result<Vec<_>, _>>()?;
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 16);
        let places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
        Matrix::require(&places, |_, _| true)?;
        Ok(())
    })
}
