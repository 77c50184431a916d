//! The verbs of CNI for pods on segments, and other plugins beside.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tenon_tests::{
    BedError, Outcome,
    cni::Attachment,
    command::until,
    datapath::patience,
    etcd::Etcd,
    pod::{Pod, container_id},
    probe,
    segment::{GATEWAY, held_by, on_segments, record, refused},
};

/// Another plugin from CNI_PATH gives the addresses, as for the reference macvlan plugin; no lease is taken.
#[test]
fn addressing_can_be_delegated() -> Outcome {
    on_segments(1, &[record("lan", &json!({}))], |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let node = cluster.node(1);
        let dir = cluster.ground.dir().join("host-local");
        let ipam = json!({
            "type": "host-local", "dataDir": dir,
            "ranges": [[{"subnet": "10.100.0.0/24", "rangeStart": "10.100.0.120", "rangeEnd": "10.100.0.120",
                         "gateway": GATEWAY}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        });
        let reserved = || dir.join("lan/10.100.0.120").exists();
        let delegating = |name: &str| -> Result<Pod, BedError> {
            let mut pod = node.segment_sandbox("lan", "a", name)?;
            pod.cni = pod.cni.with("ipam", ipam.clone());
            Ok(pod)
        };
        for round in ["first", "second"] {
            let mut pod = delegating(round)?;
            pod.add()?;
            assert_eq!(pod.address()?, Ipv4Addr::new(10, 100, 0, 120));
            assert!(reserved() && probe::ping(&machine.path(), pod.address()?)?);
            let check = pod.check()?;
            assert!(check.success, "{}", check.text);
            assert!(cluster.etcd.leases("lan")?.is_empty());
            // The other plugin's refusal is ours, and leaves nothing.
            let second = delegating("surplus")?;
            assert!(refused(&second)?.message().contains("10.100.0.120"));
            assert!(!second.netns().ip(&["-o", "link"])?.contains("eth0"));
            pod.del()?;
            assert!(!reserved(), "DEL is delegated as well");
            pod.del()?;
        }
        // When the interface cannot be made, the address goes back.
        let taken = delegating("taken")?;
        taken.netns().ip(&["link", "add", "eth0", "type", "bridge"])?;
        refused(&taken)?;
        assert!(!reserved());
        Ok(())
    })
}

/// CHECK sees what is wrong, unless the agent has put it right already.
#[test]
fn check_finds_damage() -> Outcome {
    on_segments(1, &[record("lan", &json!({}))], |cluster, switch| {
        switch.machine("gateway", &["10.100.0.1/24"])?;
        let node = cluster.node(1);
        let damaged = |name: &str, damage: &dyn Fn(&Pod) -> Outcome| -> Outcome {
            let pod = node.segment_pod("lan", "a", name)?;
            let sound = pod.check()?;
            assert!(sound.success, "{name}: {}", sound.text);
            damage(&pod)?;
            until(
                &format!("CHECK to see the damage to the {name}"),
                patience(Duration::from_secs(5)),
                || {
                    let check = pod.check().map_err(|e| e.to_string())?;
                    let told = check.code().is_some() && check.message().trim().len() > 5;
                    if told { Ok(()) } else { Err(check.text) }
                },
            )?;
            pod.del()
        };
        let ip = |args: &'static [&'static str]| move |pod: &Pod| pod.netns().ip(args).map(|_| ());
        damaged("address", &ip(&["addr", "flush", "dev", "eth0"]))?;
        damaged("state", &ip(&["link", "set", "eth0", "down"]))?;
        damaged("route", &ip(&["route", "del", "default"]))?;
        damaged("link", &ip(&["link", "del", "eth0"]))?;
        damaged("mode", &ip(&["link", "set", "eth0", "type", "macvlan", "mode", "private"]))?;
        damaged("mac", &ip(&["link", "set", "eth0", "address", "02:00:00:00:00:01"]))?;
        damaged("lease", &|pod| {
            let key = Etcd::lease_key("lan", pod.address()?);
            let mut lease = cluster.etcd.record(&key)?.unwrap_or_default();
            lease["ContainerID"] = json!("somebody");
            lease["PodName"] = json!("else");
            cluster.etcd.put(&key, &lease.to_string())
        })
    })
}

/// multus#1273: GC of one network removed another's attachments.
#[test]
fn gc_touches_its_own_network_alone() -> Outcome {
    on_segments(1, &[record("lan", &json!({}))], |cluster, _| {
        cluster.add_tenants(&["a"])?;
        let node = cluster.node(1);
        let overlay = node.pod("a", "overlay")?;
        let mut foreign = node.segment_sandbox("lan", "a", "foreign")?;
        foreign.cni.network = "another".into();
        foreign.add()?;
        let (kept, lost) = (node.segment_pod("lan", "a", "kept")?, node.segment_pod("lan", "a", "lost")?);
        let gc = |valid: Value| {
            let cni = kept.cni.version("1.1.0").with("cni.dev/valid-attachments", valid);
            cni.call("GC", None)?.accepted()
        };
        let valid = |pod: &Pod| json!({"containerID": pod.attachment.container, "ifname": "eth0"});
        gc(json!([valid(&kept), valid(&lost)]))?;
        assert!(lost.check()?.success);
        gc(json!([valid(&kept)]))?;
        let left = held_by(&[&kept, &foreign])?;
        cluster.etcd.wait_for_held("lan", &left, Duration::from_secs(5))?;
        assert!(!lost.check()?.success);
        for pod in [&kept, &foreign, &overlay] {
            let check = pod.check()?;
            assert!(check.success, "{}: {}", pod.attachment.pod, check.text);
        }
        gc(json!([]))?;
        let left = held_by(&[&foreign])?;
        cluster.etcd.wait_for_held("lan", &left, Duration::from_secs(5))?;
        assert!(foreign.check()?.success && overlay.check()?.success);
        Ok(())
    })
}

/// antrea#276, antrea#827: DEL never fails for what is gone, and a late one takes nothing from the pod's successor.
#[test]
fn late_and_repeated_del_is_harmless() -> Outcome {
    on_segments(1, &[record("lan", &json!({}))], |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let node = cluster.node(1);
        let never = node.segment_sandbox("lan", "a", "never")?;
        never.del()?;
        let old = node.segment_pod("lan", "a", "web-0")?;
        let (cni, late) = (old.cni.clone(), old.attachment.clone());
        drop(old);
        let new = node.segment_pod("lan", "a", "web-0")?;
        for netns in [late.netns.clone(), None, Some(PathBuf::from("/run/netns/there-is-none"))] {
            cni.call("DEL", Some(&Attachment { netns: netns.clone(), ..late.clone() }))?.accepted()?;
            let check = new.check()?;
            assert!(check.success, "after DEL with {netns:?}: {}", check.text);
            assert!(probe::ping(&machine.path(), new.address()?)?);
        }
        let held = held_by(&[&new])?;
        cluster.etcd.wait_for_held("lan", &held, Duration::from_secs(5))?;
        refused(&new)?;
        // Nor does another container take the interface over, and its DEL is no harm.
        let thief = Attachment { container: container_id(), ..new.attachment.clone() };
        let taken = new.cni.call("ADD", Some(&thief))?;
        assert!(!taken.success && taken.code().is_some(), "{}", taken.text);
        cni.call("DEL", Some(&thief))?.accepted()?;
        assert!(probe::ping(&machine.path(), new.address()?)? && new.check()?.success);
        cluster.etcd.wait_for_held("lan", &held, Duration::from_secs(5))
    })
}
