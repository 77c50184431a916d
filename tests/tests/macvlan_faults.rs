//! Macvlan pods when something goes wrong around them: rivals, machines that have their addresses, an etcd that leaves
//! open what it has done, an agent that was away for too long, a node without Open vSwitch.

use std::{
    collections::BTreeMap,
    sync::Barrier,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tenon_tests::{
    BedError, Cluster, Outcome,
    cni::Reply,
    command::until,
    datapath::patience,
    etcd::Etcd,
    netns::Netns,
    node::Node,
    pod::Pod,
    probe,
    segment::{held_by, mac_of, on_segments, record, refused},
    threads::joined,
    underlay::{PREFIX_LENGTH, ROUTER},
};

fn asking(node: &Node, segment: &str, name: &str, config: Value) -> Result<Pod, BedError> {
    let mut pod = node.segment_sandbox(segment, "a", name)?;
    pod.cni = pod.cni.with("runtimeConfig", config);
    Ok(pod)
}

/// Runs the ADDs of all pods at the same moment; the replies are in the pods' order.
fn add_at_once(pods: &[Pod]) -> Result<Vec<Reply>, BedError> {
    let barrier = Barrier::new(pods.len());
    let add = |pod: &Pod| {
        let tool = pod.cni.tool("ADD", Some(&pod.attachment), &pod.cni.config().to_string());
        barrier.wait();
        tool.output().map(Reply::from)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(|| add(pod))).collect();
        let joined = threads.into_iter().map(joined);
        joined.collect()
    })
}

fn without_link(pod: &Pod) -> Outcome {
    let links = pod.netns().ip(&["-o", "link"])?;
    if links.contains("eth0") { Err(BedError::answer("no eth0 after a refused ADD", links)) } else { Ok(()) }
}

/// Leases have keys by address, so two nodes can write leases with one requested MAC address: the later one steps back.
#[test]
fn one_of_two_pods_gets_the_requested_mac_address() -> Outcome {
    const ROUNDS: usize = 20;
    on_segments(2, &[record("lan", &json!({"QuarantineSeconds": 0}))], |cluster, _| {
        let stepped_back = |node: &Node| node.log().matches("gave back what it held").count();
        for round in 0..ROUNDS {
            let mac = format!("02:ee:00:00:00:{round:02x}");
            let pods = [1, 2].map(|number| {
                let name = format!("rival{round}of{number}");
                asking(cluster.node(number), "lan", &name, json!({"mac": mac}))
            });
            let mut pods = pods.into_iter().collect::<Result<Vec<_>, _>>()?;
            let replies = add_at_once(&pods)?;
            let winner = match (replies[0].success, replies[1].success) {
                (true, false) => 0,
                (false, true) => 1,
                _ => {
                    let replies = format!("{} {}", replies[0].text, replies[1].text);
                    return Err(BedError::answer(format!("one winner in round {round}"), replies));
                }
            };
            let (won, lost) = (&pods[winner], &pods[1 - winner]);
            let refusal = &replies[1 - winner];
            assert_eq!(refusal.code(), Some(7), "{}", refusal.text);
            let message = refusal.message();
            assert!(message.contains(&mac) && message.contains(&won.attachment.pod), "{message}");
            assert_eq!(mac_of(won.netns())?, mac);
            without_link(lost)?;
            let ip = replies[winner].address().map(|ip| ip.to_string()).unwrap_or_default();
            let holder = (won.attachment.container.clone(), won.attachment.interface.clone());
            cluster.etcd.wait_for_held("lan", &BTreeMap::from([(ip, holder)]), Duration::from_secs(5))?;
            // Once the winner goes, the other one may have it.
            won.del()?;
            let lost = &mut pods[1 - winner];
            until("the MAC address that its holder has given up", patience(Duration::from_secs(5)), || {
                lost.add().map_err(|e| e.to_string())
            })?;
            assert_eq!(lost.result_mac()?, mac);
            lost.del()?;
        }
        let met: usize = cluster.nodes.iter().map(stepped_back).sum();
        eprintln!("{met} of {ROUNDS} rounds had both leases in etcd");
        assert!(met > 0, "no two leases were ever written at the same time: this test has shown nothing");
        Ok(())
    })
}

/// RFC 5227 where the kernel passes nothing between the pods of a node: the machines outside are heard all the same, and
/// frames that a switch sends back to the port they came from (as 802.1Qbg has it, for mode vepa) are nobody's.
#[test]
fn conflict_is_noticed_in_modes_private_and_vepa() -> Outcome {
    let of = |mode: &str, start: u8| {
        let (start, end) = (format!("10.100.0.{start}"), format!("10.100.0.{}", start + 9));
        record(mode, &json!({"Mode": mode, "RangeStart": start, "RangeEnd": end, "ProbeMs": 200}))
    };
    on_segments(1, &[of("private", 10), of("vepa", 20)], |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.11/24", "10.100.0.21/24"])?;
        let node = cluster.node(1);
        for (mode, ip) in [("private", "10.100.0.11"), ("vepa", "10.100.0.21")] {
            for hairpin in [false, true] {
                switch.set_hairpin(node.name(), hairpin)?;
                let name = format!("{mode}{}", u8::from(hairpin));
                let pod = asking(node, mode, &format!("{name}-asks"), json!({"ips": [ip]}))?;
                let reply = refused(&pod)?;
                let (message, mac) = (reply.message(), mac_of(&machine)?);
                assert!(message.contains(&mac) && message.contains(ip), "{mode}: {message}");
                without_link(&pod)?;
                let lease = cluster.etcd.leases(mode)?.remove(ip).unwrap_or_default();
                assert_eq!(lease["Conflict"], json!(mac), "{mode}: {lease}");
                pod.del()?;
                let free = node.segment_pod(mode, "a", &format!("{name}-free"))?;
                let link = free.netns().ip(&["-d", "link", "show", "eth0"])?;
                assert!(link.contains(&format!("macvlan mode {mode}")), "{link}");
                assert!(probe::ping(&machine.path(), free.address()?)?, "{name}");
                free.del()?;
            }
        }
        Ok(())
    })
}

fn only_these_hold(cluster: &Cluster, pods: &[&Pod]) -> Outcome {
    cluster.etcd.wait_for_held("lan", &held_by(pods)?, Duration::from_secs(20))
}

/// ADDs that etcd has not answered: whether it carries them out when it is back nobody knows. No DEL comes after them.
#[test]
fn add_with_unknown_outcome_leaves_no_lease() -> Outcome {
    let segment = record("lan", &json!({"RangeEnd": "10.100.0.15", "QuarantineSeconds": 0}));
    on_segments(2, &[segment], |cluster, _| {
        let keeper = cluster.node(1).segment_pod("lan", "a", "keeper")?;
        for round in 0..2 {
            let pods = [1, 2, 1, 2].into_iter().enumerate().map(|(place, number)| {
                cluster.node(number).segment_sandbox("lan", "a", &format!("paused{round}-{place}"))
            });
            let pods = pods.collect::<Result<Vec<_>, _>>()?;
            cluster.etcd.signal_member(0, Signal::SIGSTOP)?;
            let replies = add_at_once(&pods)?;
            cluster.etcd.signal_member(0, Signal::SIGCONT)?;
            for (pod, reply) in pods.iter().zip(&replies) {
                assert_eq!(reply.code(), Some(11), "{}", reply.text);
                without_link(pod)?;
            }
            only_these_hold(cluster, &[&keeper])?;
        }
        full_range_is_given_out_once(cluster, &keeper)
    })
}

/// etcd dies with ADDs on their way; what had been answered holds, and nothing else.
#[test]
fn add_while_etcd_is_killed_leaves_no_lease() -> Outcome {
    let segment = record("lan", &json!({"RangeEnd": "10.100.0.15", "QuarantineSeconds": 0}));
    on_segments(2, &[segment], |cluster, _| {
        let keeper = cluster.node(1).segment_pod("lan", "a", "keeper")?;
        for round in 0..3 {
            let pods =
                [1, 2].map(|n| cluster.node(n).segment_sandbox("lan", "a", &format!("cut{round}-{n}")));
            let pods = pods.into_iter().collect::<Result<Vec<_>, _>>()?;
            let delay = Duration::from_millis(3 + 3 * round);
            let replies = thread::scope(|scope| {
                let adds = scope.spawn(|| add_at_once(&pods));
                thread::sleep(delay);
                let killed = cluster.etcd.kill_member(0);
                let replies = joined(adds);
                killed.and(replies)
            })?;
            cluster.etcd.start_member(0)?;
            let mut held = held_by(&[&keeper])?;
            for (pod, reply) in pods.iter().zip(&replies) {
                match reply.address() {
                    Some(ip) if reply.success => {
                        let holder = (pod.attachment.container.clone(), pod.attachment.interface.clone());
                        assert_eq!(held.insert(ip.to_string(), holder), None, "{ip} twice");
                    }
                    _ => {
                        assert_eq!(reply.code(), Some(11), "{}", reply.text);
                        without_link(pod)?;
                    }
                }
            }
            cluster.etcd.wait_for_held("lan", &held, Duration::from_secs(20))?;
            pods.iter().try_for_each(Pod::del)?;
            only_these_hold(cluster, &[&keeper])?;
        }
        full_range_is_given_out_once(cluster, &keeper)
    })
}

/// The range of six has room for five more: had an address been lost, they would not fit.
fn full_range_is_given_out_once(cluster: &Cluster, keeper: &Pod) -> Outcome {
    cluster.nodes.iter().try_for_each(Node::wait_ready)?;
    let mut all = Vec::new();
    for number in 0..5 {
        all.push(cluster.node(1 + number % 2).segment_pod("lan", "a", &format!("fill{number}"))?);
    }
    let mut all: Vec<&Pod> = all.iter().collect();
    all.push(keeper);
    assert_eq!(held_by(&all)?.len(), 6);
    assert!(keeper.check()?.success);
    Ok(())
}

/// What an agent leaves that dies while etcd has not yet written the lease: an interface that is down and says in its alias
/// that it is none yet. The next ADD and the next DEL know it.
#[test]
fn draft_of_a_dead_agent_gives_way() -> Outcome {
    on_segments(1, &[record("lan", &json!({"QuarantineSeconds": 0}))], |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let node = cluster.node(1);
        let draft = |pod: &Pod| -> Result<bool, BedError> {
            let links = pod.netns().ip(&["-o", "link"])?;
            Ok(links.lines().any(|l| l.contains(" eth0@") && l.contains("alias") && l.contains("state DOWN")))
        };
        for next in ["ADD", "DEL"] {
            let mut pod = node.segment_sandbox("lan", "a", &format!("before-{next}"))?;
            cluster.etcd.signal_member(0, Signal::SIGSTOP)?;
            let reply = thread::scope(|scope| {
                let adding = scope.spawn(|| pod.cni.call("ADD", Some(&pod.attachment)));
                let made = until("a draft of the interface", patience(Duration::from_secs(3)), || {
                    let there = draft(&pod).map_err(|e| e.to_string())?;
                    if there { Ok(()) } else { Err("none".to_owned()) }
                });
                node.kill_agent();
                made.and_then(|()| joined(adding))
            })?;
            assert_eq!(reply.code(), Some(11), "{}", reply.text);
            cluster.etcd.signal_member(0, Signal::SIGCONT)?;
            node.start_agent()?;
            assert!(draft(&pod)?, "nobody knows yet whether the pod wants it");
            if next == "ADD" {
                pod.add()?;
                assert!(pod.check()?.success && probe::ping(&machine.path(), pod.address()?)?);
            }
            pod.del()?;
            until("no link of the pod", patience(Duration::from_secs(5)), || {
                without_link(&pod).map_err(|e| e.to_string())
            })?;
            only_these_hold(cluster, &[])?;
        }
        Ok(())
    })
}

/// What the controller does with the lease of a node that is gone.
fn give_back(cluster: &Cluster, segment: &str, pod: &Pod) -> Outcome {
    let key = Etcd::lease_key(segment, pod.address()?);
    let mut lease = cluster.etcd.record(&key)?.unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    lease["Released"] = json!(now);
    cluster.etcd.put(&key, &lease.to_string())
}

fn forget(cluster: &Cluster, segment: &str, pod: &Pod) -> Outcome {
    cluster.etcd.delete(&Etcd::lease_key(segment, pod.address()?))
}

/// An agent that was away for longer than the controller waits: its pods run on without leases. What nobody has taken
/// is theirs again; what somebody has is not.
#[test]
fn agent_that_was_away_takes_back_what_its_pods_run_with() -> Outcome {
    let asked =
        record("asked", &json!({"ProbeMs": 200, "RangeStart": "10.100.0.110", "RangeEnd": "10.100.0.119"}));
    on_segments(2, &[record("lan", &json!({})), asked], |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let (node, other) = (cluster.node(1), cluster.node(2));
        let here = |name: &str| node.segment_pod("lan", "a", name);
        let (released, deleted, gone) = (here("released")?, here("deleted")?, here("gone")?);
        let (robbed, loser) = (here("robbed")?, here("loser")?);
        let answering = node.segment_pod("asked", "a", "answering")?;
        let elsewhere = other.segment_pod("lan", "a", "elsewhere")?;

        node.kill_agent();
        give_back(cluster, "lan", &released)?;
        give_back(cluster, "lan", &gone)?;
        for pod in [&deleted, &robbed, &loser, &elsewhere] {
            forget(cluster, "lan", pod)?;
        }
        forget(cluster, "asked", &answering)?;
        let gone_address = gone.address()?;
        drop(gone);
        let take = |name: &str, from: &Pod| -> Result<Pod, BedError> {
            let mut pod = asking(other, "lan", name, json!({"ips": [from.address()?.to_string()]}))?;
            pod.add()?;
            Ok(pod)
        };
        let (heir, second_heir) = (take("heir", &robbed)?, take("second-heir", &loser)?);
        // With the MAC address that comes with the address, no switch could tell the two pods apart.
        let wish = json!({"ips": [answering.address()?.to_string()], "mac": "02:aa:00:00:00:01"});
        let reply = refused(&asking(other, "asked", "asks", wish)?)?;
        assert!(reply.message().contains(&answering.result_mac()?), "{}", reply.text);

        node.start_agent()?;
        // An agent that was there all the time does not leave its pods without leases either.
        let holders = [&released, &deleted, &heir, &second_heir, &elsewhere];
        only_these_hold(cluster, &holders)?;
        cluster.etcd.wait_for_held("asked", &held_by(&[&answering])?, Duration::from_secs(5))?;
        for pod in [&released, &deleted, &answering, &elsewhere] {
            let check = pod.check()?;
            assert!(check.success, "{}: {}", pod.attachment.pod, check.text);
            assert!(probe::ping(&machine.path(), pod.address()?)?);
        }
        assert!(probe::ping(&node.netns().path(), released.address()?)?, "host access");
        for (pod, heir) in [(&robbed, "a/heir"), (&loser, "a/second-heir")] {
            let check = pod.check()?;
            assert!(!check.success && check.message().contains(heir), "{}", check.text);
            let told = |line: &str| line.contains("ERROR") && line.contains(heir);
            assert_eq!(node.log().lines().filter(|line| told(line)).count(), 1, "{}", node.log());
        }

        // The pod that has lost goes, and takes nothing from the other.
        loser.del()?;
        until("no link of the loser", patience(Duration::from_secs(5)), || {
            without_link(&loser).map_err(|e| e.to_string())
        })?;
        only_these_hold(cluster, &holders)?;
        // The one that has taken goes, and the other has its address again.
        heir.del()?;
        only_these_hold(cluster, &[&released, &deleted, &robbed, &second_heir, &elsewhere])?;
        assert!(robbed.check()?.success);

        // What was deleted is not remembered.
        for pod in [&released, &deleted, &robbed] {
            pod.del()?;
        }
        node.kill_agent();
        node.start_agent()?;
        thread::sleep(Duration::from_secs(1));
        only_these_hold(cluster, &[&second_heir, &elsewhere])?;
        assert!(!held_by(&[&second_heir, &elsewhere])?.contains_key(&gone_address.to_string()));
        Ok(())
    })
}

/// What an agent does that was started without OVSDB: macvlan pods come and go, and for the overlay it asks for patience.
fn serves_macvlan_alone(node: &Node, overlay: &Pod, known: &Pod, machine: &Netns, round: &str) -> Outcome {
    let status = |pod: &Pod| pod.cni.version("1.1.0").call("STATUS", None);
    until("an agent that serves macvlan", patience(Duration::from_secs(10)), || {
        let reply = status(known).map_err(|e| e.to_string())?;
        if reply.success { Ok(()) } else { Err(reply.text) }
    })?;
    assert!(known.check()?.success && probe::ping(&machine.path(), known.address()?)?);
    let (first, second) = (format!("first-{round}"), format!("second-{round}"));
    let (first, second) = (node.segment_pod("lan", "a", &first)?, node.segment_pod("lan", "a", &second)?);
    assert!(probe::ping(&machine.path(), first.address()?)? && first.check()?.success);
    first.del()?;
    assert!(!probe::ping(&machine.path(), first.address()?)?);
    second.del()?;

    let not_ready = status(overlay)?;
    assert!(!not_ready.success && not_ready.message().contains("OVSDB"), "{}", not_ready.text);
    let comer = node.sandbox("a", &format!("comer-{round}"))?;
    let begin = Instant::now();
    let replies = thread::scope(|scope| {
        let calls = [("ADD", &comer), ("DEL", overlay), ("CHECK", overlay)].map(|(verb, pod)| {
            scope.spawn(move || match verb {
                "CHECK" => pod.check(),
                _ => pod.cni.call(verb, Some(&pod.attachment)),
            })
        });
        calls.map(joined)
    });
    for reply in replies {
        let reply = reply?;
        assert!(reply.code() == Some(11) && reply.message().contains("OVSDB"), "{}", reply.text);
    }
    assert!(begin.elapsed() < patience(Duration::from_secs(8)), "{:?}", begin.elapsed());
    Ok(())
}

/// A macvlan pod needs no Open vSwitch. The overlay's pods do, and are taken over when it is there.
#[test]
fn node_without_open_vswitch_serves_macvlan() -> Outcome {
    on_segments(2, &[record("lan", &json!({}))], |cluster, switch| {
        cluster.add_tenants(&["a"])?;
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let (node, other) = (cluster.node(1), cluster.node(2));
        let (overlay, peer) = (node.pod("a", "overlay")?, other.pod("a", "peer")?);
        let known = node.segment_pod("lan", "a", "known")?;
        let talks = || {
            until("the overlay's pods to talk", patience(Duration::from_secs(10)), || {
                let heard = probe::ping(&overlay.netns().path(), peer.address().map_err(|e| e.to_string())?);
                if heard.map_err(|e| e.to_string())? { Ok(()) } else { Err("no answer".to_owned()) }
            })
        };
        let is_as_before = |round: &str| -> Outcome {
            node.wait_ready()?;
            talks()?;
            for pod in [&overlay, &known] {
                let check = pod.check()?;
                assert!(check.success, "{round}: {}", check.text);
            }
            let late = node.pod("a", &format!("late-{round}"))?;
            assert_ne!(late.address()?, overlay.address()?);
            late.del()
        };
        talks()?;
        let flows = node.flows()?;

        let bridged = node.uplink() != "eth0";
        let address = format!("{}/{PREFIX_LENGTH}", node.address());
        for (round, whole) in [("ovsdb", false), ("both", true)] {
            node.kill_agent();
            if whole {
                node.ovs().end_vswitchd(true);
            }
            node.ovs().end_ovsdb(true);
            if bridged {
                // The userspace datapath, which stands still also without its database, has the node's address.
                node.netns().ip(&["addr", "flush", "dev", node.uplink()])?;
                node.netns().ip(&["addr", "replace", &address, "dev", "eth0"])?;
                node.netns().ip(&["route", "replace", "default", "via", &ROUTER.to_string()])?;
            }
            node.launch_agent()?;
            serves_macvlan_alone(node, &overlay, &known, &machine, round)?;
            if bridged {
                node.netns().ip(&["addr", "flush", "dev", "eth0"])?;
            }
            node.ovs().start_ovsdb()?;
            if whole {
                node.ovs().start_vswitchd()?;
            }
            node.configure_uplink()?;
            is_as_before(round)?;
            until("the flows of before", patience(Duration::from_secs(5)), || {
                let now = node.flows().map_err(|e| e.to_string())?;
                if now == flows { Ok(()) } else { Err(now.join("\n")) }
            })?;
        }
        only_these_hold(cluster, &[&known])
    })
}
