//! Addresses on segments over time: who gets which again, when, and what becomes of them when something dies.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tenon_tests::{
    BedError, Cluster, Outcome, Plan,
    cni::{Attachment, Cni},
    command::until,
    datapath::patience,
    netns::Netns,
    node::Node,
    numbers::Numbers,
    pod::{Pod, container_id},
    probe, run,
    segment::{MASTER, Switch, held_by, mac_of, on_segments, ping6, record},
};

fn asking(node: &Node, name: &str, config: Value) -> Result<Pod, BedError> {
    let mut pod = node.segment_sandbox("lan", "a", name)?;
    pod.cni = pod.cni.with("runtimeConfig", config);
    Ok(pod)
}

fn released(cluster: &Cluster, ip: Ipv4Addr) -> Outcome {
    until(&format!("the release of {ip}"), patience(Duration::from_secs(5)), || {
        let lease = cluster.etcd.leases("lan").map_err(|e| e.to_string())?.remove(&ip.to_string());
        match lease {
            Some(lease) if lease.get("Released").is_none() => Err(lease.to_string()),
            _ => Ok(()),
        }
    })
}

/// A StatefulSet's pod gets its address and MAC address again, on any node and under a new UID and container id.
/// spiderpool#2526, #3778: the address was freed, because the pod's UID had changed, while garbage was collected.
#[test]
fn pod_of_the_same_name_gets_its_address_again() -> Outcome {
    let segment = record("lan", &json!({"StickySeconds": 600, "RangeEnd": "10.100.0.15"}));
    on_segments(2, &[segment], |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let gc = |node: &Node, valid: &[&Pod]| -> Outcome {
            let valid: Vec<Value> = valid
                .iter()
                .map(|p| json!({"containerID": p.attachment.container, "ifname": "eth0"}))
                .collect();
            let cni = node.segment_sandbox("lan", "a", "gc")?.cni.version("1.1.0");
            cni.with("cni.dev/valid-attachments", json!(valid)).call("GC", None)?.accepted().map(|_| ())
        };
        let first = cluster.node(1).segment_pod("lan", "a", "web-0")?;
        let (ip, mac, container) =
            (first.address()?, first.result_mac()?, first.attachment.container.clone());
        first.del()?;
        drop(first);
        gc(cluster.node(1), &[])?;
        // Others take all that is left, and not this one.
        let mut others = Vec::new();
        for (number, tenant) in (0..5).zip(["a", "b"].into_iter().cycle()) {
            let pod = cluster.node(1).segment_pod("lan", tenant, &format!("other{number}"))?;
            assert_ne!(pod.address()?, ip);
            others.push(pod);
        }
        for number in [2, 1, 2] {
            let node = cluster.node(number);
            let again = node.segment_pod("lan", "a", "web-0")?;
            assert_eq!((again.address()?, again.result_mac()?), (ip, mac.clone()), "{}", node.name());
            assert_ne!(again.attachment.container, container);
            // The runtime still knows of the others alone, or of the new one as well.
            let mut valid: Vec<&Pod> = if number == 1 { others.iter().collect() } else { Vec::new() };
            valid.push(&again);
            gc(node, &valid)?;
            assert!(again.check()?.success && probe::ping(&machine.path(), ip)?);
            again.del()?;
            gc(node, &valid[..valid.len() - 1])?;
        }
        // The same name in another namespace is another pod.
        let stranger = cluster.node(1).segment_sandbox("lan", "c", "web-0x")?;
        let mut stranger = stranger;
        stranger.attachment.pod = "web-0".into();
        match stranger.add() {
            Ok(()) => assert_ne!(stranger.address()?, ip),
            Err(refused) => {
                assert!(refused.to_string().contains("10.100.0") || refused.to_string().contains("lan"))
            }
        }
        Ok(())
    })
}

#[test]
fn released_address_waits_in_quarantine() -> Outcome {
    let quarantine = Duration::from_secs(4);
    let segment = record("lan", &json!({"RangeEnd": "10.100.0.12", "QuarantineSeconds": 4}));
    on_segments(2, &[segment], |cluster, _| {
        let node = cluster.node(1);
        let pods = ["p1", "p2", "p3"].map(|name| node.segment_pod("lan", "a", name));
        let pods = pods.into_iter().collect::<Result<Vec<_>, _>>()?;
        let ip = pods[1].address()?;
        let before = Instant::now();
        pods[1].del()?;
        released(cluster, ip)?;
        let mut next = cluster.node(2).segment_sandbox("lan", "a", "next")?;
        let wish = asking(node, "wish", json!({"ips": [ip.to_string()]}))?;
        // Released is in whole seconds.
        while before.elapsed() + Duration::from_secs(1) < quarantine {
            let full = next.cni.call("ADD", Some(&next.attachment))?;
            assert!(!full.success && full.message().contains("quarantine"), "{}", full.text);
            let asked = wish.cni.call("ADD", Some(&wish.attachment))?;
            assert!(!asked.success && asked.message().contains("p2"), "{}", asked.text);
            thread::sleep(Duration::from_millis(300));
        }
        until("an address after quarantine", patience(Duration::from_secs(5)), || {
            next.add().map_err(|e| e.to_string())
        })?;
        assert_eq!(next.address()?, ip);
        cluster.etcd.wait_for_held("lan", &held_by(&[&pods[0], &pods[2], &next])?, Duration::from_secs(5))
    })
}

/// kube-ovn#2031, #2659: addresses that machines outside have; probes fooled by their own packets. RFC 5227.
#[test]
fn conflict_fails_and_names_the_machine() -> Outcome {
    let changes = json!({
        "Subnet": "10.100.0.0/24,fd00:100::/64", "Gateway": "", "ProbeMs": 200, "QuarantineSeconds": 0,
        "RangeStart": "10.100.0.10,fd00:100::10", "RangeEnd": "10.100.0.13,fd00:100::13",
    });
    on_segments(2, &[record("lan", &changes)], |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.11/24"])?;
        let six = switch.machine("six", &["fd00:100::12/64"])?;
        for (netns, ip) in [(&machine, "10.100.0.11"), (&six, "fd00:100::12")] {
            let pod = asking(cluster.node(1), "asks", json!({"ips": [ip]}))?;
            let reply = pod.cni.call("ADD", Some(&pod.attachment))?;
            assert!(!reply.success && reply.code().is_some(), "{}", reply.text);
            let (message, mac) = (reply.message(), mac_of(netns)?);
            assert!(message.contains(&mac) && message.contains(ip), "{message}");
            assert!(!pod.netns().ip(&["-o", "link"])?.contains("eth0"));
            let lease = cluster.etcd.leases("lan")?.remove(ip).unwrap_or_default();
            assert_eq!(lease["Conflict"], json!(mac), "{lease}");
            pod.del()?;
        }
        assert!(cluster.etcd.held("lan")?.is_empty());
        // What is set aside is given to nobody, on no node; our own packets are nobody's.
        let mut all = BTreeSet::new();
        let mut pods = Vec::new();
        for (number, node) in (0..3).zip([1, 2, 1]) {
            let pod = cluster.node(node).segment_pod("lan", "a", &format!("p{number}"))?;
            all.extend(pod.addresses()?);
            pods.push(pod);
        }
        let outside: [IpAddr; 2] = ["10.100.0.11", "fd00:100::12"].map(|ip| ip.parse().expect("an address"));
        assert!(all.len() == 6 && outside.iter().all(|ip| !all.contains(ip)), "{all:?}");
        // An address that a pod has just left, whose interface may not be gone yet, is no conflict either.
        for round in 0..6 {
            let leaver = pods.remove(0);
            let ips: Vec<String> = leaver.addresses()?.iter().map(IpAddr::to_string).collect();
            leaver.del()?;
            let mut heir = asking(cluster.node(1 + round % 2), &format!("heir{round}"), json!({"ips": ips}))?;
            until("the address of a pod that has left", patience(Duration::from_secs(3)), || {
                let reply = heir.cni.call("ADD", Some(&heir.attachment)).map_err(|e| e.to_string())?;
                assert!(!reply.message().contains("02:"), "{}", reply.text);
                if reply.success { Ok(()) } else { Err(reply.text) }
            })?;
            heir.del()?;
            heir.add()?;
            pods.push(heir);
        }
        Ok(())
    })
}

/// spiderpool#4650, plugins#858: peers went on sending to the pod that had the address before.
#[test]
fn peer_reaches_the_next_holder_of_an_address_within_a_second() -> Outcome {
    let changes = json!({
        "Subnet": "10.100.0.0/24,fd00:100::/64", "Gateway": "", "QuarantineSeconds": 0,
        "RangeStart": "10.100.0.10,fd00:100::10", "RangeEnd": "10.100.0.99,fd00:100::99",
    });
    on_segments(2, &[record("lan", &changes)], |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.200/24", "fd00:100::200/64"])?;
        let (ip, six): (Ipv4Addr, std::net::Ipv6Addr) =
            (Ipv4Addr::new(10, 100, 0, 50), "fd00:100::50".parse().expect("an address"));
        for (round, node, mac) in
            [(0, 1, "02:aa:00:00:00:01"), (1, 2, "02:aa:00:00:00:02"), (2, 2, "02:aa:00:00:00:03")]
        {
            let wish = json!({"ips": [ip.to_string(), six.to_string()], "mac": mac});
            let mut pod = asking(cluster.node(node), &format!("holder{round}"), wish)?;
            pod.add()?;
            let begin = Instant::now();
            assert!(probe::reach(&machine.path(), &[ip], Duration::from_secs(1))?[0], "round {round}");
            let taken = begin.elapsed();
            assert!(ping6(&machine, six)?, "round {round}");
            let neighbours = machine.ip(&["neigh", "show", &ip.to_string()])?;
            assert!(neighbours.contains(mac), "round {round}, after {taken:?}: {neighbours}");
            pod.del()?;
            released(cluster, ip)?;
        }
        Ok(())
    })
}

#[test]
fn etcd_away_means_try_again_and_releases_are_made_good() -> Outcome {
    on_segments(1, &[record("lan", &json!({}))], |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let node = cluster.node(1);
        let keeper = node.segment_pod("lan", "a", "keeper")?;
        let leavers = [node.segment_pod("lan", "a", "leaver0")?, node.segment_pod("lan", "a", "leaver1")?];
        let last = node.segment_pod("lan", "a", "last")?;
        let comer = node.segment_sandbox("lan", "a", "comer")?;
        cluster.etcd.kill_member(0)?;
        let refused = comer.cni.call("ADD", Some(&comer.attachment))?;
        assert_eq!(refused.code(), Some(11), "{}", refused.text);
        assert!(!comer.netns().ip(&["-o", "link"])?.contains("eth0"));
        for leaver in &leavers {
            let begin = Instant::now();
            leaver.del()?;
            assert!(begin.elapsed() < patience(Duration::from_secs(10)), "{:?}", begin.elapsed());
            leaver.del()?;
        }
        assert!(probe::ping(&machine.path(), keeper.address()?)?);
        // The agent that promised the releases dies, and another one keeps the promise.
        node.kill_agent();
        node.launch_agent()?;
        until("DEL by an agent that has never seen etcd", patience(Duration::from_secs(10)), || {
            last.del().map_err(|e| e.to_string())
        })?;
        cluster.etcd.start_member(0)?;
        node.wait_ready()?;
        cluster.etcd.wait_for_held("lan", &held_by(&[&keeper])?, Duration::from_secs(20))?;
        let mut comer = comer;
        comer.add()?;
        assert!(probe::ping(&machine.path(), comer.address()?)? && keeper.check()?.success);
        Ok(())
    })
}

/// plugins#252 and many more: an agent that dies at any step of ADD or DEL loses and doubles no address. The leases
/// are compared with the live pods after every death.
#[test]
fn agent_killed_at_any_step_loses_no_address() -> Outcome {
    let segment = record("lan", &json!({"RangeEnd": "10.100.0.17", "QuarantineSeconds": 0}));
    on_segments(1, &[segment], |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let node = cluster.node(1);
        let keepers = [node.segment_pod("lan", "a", "keeper0")?, node.segment_pod("lan", "a", "keeper1")?];
        let kept = held_by(&[&keepers[0], &keepers[1]])?;
        let mut numbers = Numbers::new(23);
        for round in 0..20 {
            let delay = Duration::from_micros(u64::from(numbers.below(20_000)));
            let mut pod = node.segment_sandbox("lan", "a", &format!("k{round}"))?;
            let verb = if round % 2 == 0 { "ADD" } else { "DEL" };
            if verb == "DEL" {
                pod.add()?;
            }
            let tool = pod.cni.tool(verb, Some(&pod.attachment), &pod.cni.config().to_string());
            let mut child = tool.start()?;
            thread::sleep(delay);
            node.kill_agent();
            child.wait().map_err(|e| BedError::system("wait for the plugin", e))?;
            node.start_agent()?;
            pod.del()?;
            cluster.etcd.wait_for_held("lan", &kept, Duration::from_secs(10))?;
            until("no link of the pod", patience(Duration::from_secs(5)), || {
                let links = pod.netns().ip(&["-o", "link"]).map_err(|e| e.to_string())?;
                if links.contains("eth0") { Err(format!("round {round}, {verb}: {links}")) } else { Ok(()) }
            })?;
        }
        for pod in &keepers {
            assert!(pod.check()?.success && probe::ping(&machine.path(), pod.address()?)?);
            assert!(probe::ping(&node.netns().path(), pod.address()?)?, "host access");
        }
        // Twenty rounds in a range of eight: had any address been lost, this would not fit.
        let six = (0..6).map(|n| node.segment_pod("lan", "a", &format!("fill{n}")));
        let six = six.collect::<Result<Vec<_>, _>>()?;
        let all: Vec<&Pod> = keepers.iter().chain(&six).collect();
        assert_eq!(held_by(&all)?.len(), 8);
        let surplus = node.segment_sandbox("lan", "a", "surplus")?;
        let full = surplus.cni.call("ADD", Some(&surplus.attachment))?;
        assert!(!full.success && full.message().contains("no IPv4 address left"), "{}", full.text);
        Ok(())
    })
}

/// A reboot: all pods' namespaces are gone, and nobody sends a DEL for the pods before it.
#[test]
fn leases_of_pods_from_before_a_reboot_are_given_back() -> Outcome {
    on_segments(2, &[record("lan", &json!({}))], |cluster, _| {
        let node = cluster.node(1);
        let elsewhere = cluster.node(2).segment_pod("lan", "a", "elsewhere")?;
        let survivor = node.segment_pod("lan", "a", "survivor")?;
        let old = (0..4).map(|n| node.segment_pod("lan", "a", &format!("old{n}")));
        let old = old.collect::<Result<Vec<_>, _>>()?;
        node.kill_agent();
        drop(old);
        node.start_agent()?;
        let left = held_by(&[&elsewhere, &survivor])?;
        cluster.etcd.wait_for_held("lan", &left, Duration::from_secs(15))?;
        assert!(elsewhere.check()?.success && survivor.check()?.success);
        Ok(())
    })
}

/// Interfaces of one namespace in the storm; each is an attachment of its own.
const INTERFACES: usize = 25;

fn storm(cluster: &Cluster, sandboxes: &[(Cni, Netns)], count: usize, half: impl Fn() + Sync) -> Vec<Landed> {
    let (next, landed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let one = |number: usize| -> Result<Landed, BedError> {
        let (cni, netns) = &sandboxes[number % sandboxes.len()];
        let attachment = Attachment {
            container: container_id(),
            netns: Some(netns.path()),
            interface: format!("net{}", number / sandboxes.len()),
            tenant: Some("a".into()),
            pod: format!("storm{number}"),
        };
        let reply = cni.call("ADD", Some(&attachment))?;
        if !reply.success {
            // As a runtime does after an ADD that failed.
            assert_eq!(reply.code(), Some(11), "{}", reply.text);
            cni.call("DEL", Some(&attachment))?.accepted()?;
        }
        let ip = reply.success.then(|| reply.address()).flatten();
        Ok(Landed { ip, attachment })
    };
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    if number == count / 2 {
                        half();
                    }
                    let done =
                        one(number).inspect_err(|_| cluster.ground.fail()).expect("a call of the plugin");
                    landed.lock().unwrap_or_else(PoisonError::into_inner).push(done);
                }
            });
        }
    });
    landed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

struct Landed {
    ip: Option<Ipv4Addr>,
    attachment: Attachment,
}

/// whereabouts#110, #162: duplicates under load; and a member of etcd dies half way.
#[test]
fn thousand_adds_at_once_give_distinct_addresses() -> Outcome {
    let (count, nodes) = (1000, 4);
    let changes = json!({
        "Subnet": "10.100.0.0/20", "Gateway": "", "RangeStart": "10.100.1.0", "RangeEnd": "10.100.6.255",
        "HostAccess": false, "QuarantineSeconds": 0,
    });
    run(&Plan { nodes, etcd: 3, ..Plan::default() }, |cluster| {
        let _switch = Switch::create(cluster, "lan", MASTER)?;
        cluster.etcd.put_segment(&record("lan", &changes))?;
        let mut sandboxes = Vec::new();
        for number in 0..count / INTERFACES {
            let node = cluster.node(1 + number % usize::from(nodes));
            let cni = node.segment_sandbox("lan", "a", &format!("cni{number}"))?.cni;
            sandboxes.push((cni, Netns::create(&cluster.ground, &format!("storm{number}"))?));
        }
        let landed = storm(cluster, &sandboxes, count, || {
            cluster.etcd.kill_member(1).expect("an etcd member to kill");
        });
        assert_eq!(landed.len(), count);
        let mut expected = std::collections::BTreeMap::new();
        for Landed { ip, attachment } in &landed {
            let Some(ip) = ip else { continue };
            let who = (attachment.container.clone(), attachment.interface.clone());
            if let Some(other) = expected.insert(ip.to_string(), who) {
                return Err(BedError::answer("distinct addresses", format!("{ip} has also {other:?}")));
            }
        }
        // An agent that spoke to the dead member may have turned a few away, not more.
        assert!(expected.len() > count * 9 / 10, "{} of {count} were added", expected.len());
        cluster.etcd.wait_for_held("lan", &expected, Duration::from_secs(20))?;

        // Nothing is lost: once the pods are gone, by their namespaces and GC, every address is free.
        let callers: Vec<Cni> =
            sandboxes.iter().take(usize::from(nodes)).map(|(cni, _)| cni.clone()).collect();
        drop(sandboxes);
        for cni in callers {
            let cni = cni.version("1.1.0").with("cni.dev/valid-attachments", json!([]));
            cni.call("GC", None)?.accepted()?;
        }
        let nothing = std::collections::BTreeMap::new();
        cluster.etcd.wait_for_held("lan", &nothing, Duration::from_secs(60))
    })
}
