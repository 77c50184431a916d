//! The verbs and versions of CNI, as a runtime sees them.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tenon_tests::{
    BedError, Outcome, Plan,
    cni::{Attachment, Cni, Reply},
    command::until,
    datapath::patience,
    node::BRIDGE,
    probe, run,
};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn results_have_the_form_of_their_version() -> Outcome {
    run(&Plan::nodes(1), |cluster| {
        cluster.add_tenants(&["a"])?;
        let node = cluster.node(1);
        let supported = node.cni()?.call("VERSION", None)?.accepted()?;
        for version in VERSIONS {
            assert!(
                supported.json["supportedVersions"]
                    .as_array()
                    .is_some_and(|all| all.contains(&json!(version))),
                "{}",
                supported.text
            );
            let mut pod = node.sandbox("a", &format!("v{}", version.replace('.', "")))?;
            pod.cni = pod.cni.version(version);
            pod.add()?;
            let result = pod.result()?;
            assert_eq!(result.json["cniVersion"], version, "{}", result.text);
            let ip = &result.json["ips"][0];
            let family = if version.starts_with("0.") { json!("4") } else { Value::Null };
            assert_eq!(ip["version"], family, "{}", result.text);
            assert!(ip["address"].as_str().is_some_and(|a| a.ends_with("/22")), "{}", result.text);
            assert_eq!(pod.gateway()?, cluster.gateway(node)?);
            let index = ip["interface"].as_u64().and_then(|i| usize::try_from(i).ok()).unwrap_or(usize::MAX);
            let inside = &result.json["interfaces"][index];
            assert_eq!(inside["name"], "eth0");
            assert_eq!(inside["sandbox"], json!(pod.netns().path()), "{}", result.text);
            let mac: Vec<String> = pod.mac()?.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(result.mac(), Some(mac.join(":")));
            let host = result.host_interface().unwrap_or_default();
            assert!(node.links()?.contains(&host) && node.ports()?.contains(&host), "{}", result.text);

            // The result is what the pod's kernel says.
            let address = pod.netns().ip(&["-o", "-4", "addr", "show", "dev", "eth0"])?;
            assert!(address.contains(ip["address"].as_str().unwrap_or("none")), "{address}");
            let routes = pod.netns().ip(&["route"])?;
            assert!(routes.contains(&format!("default via {}", pod.gateway()?)), "{routes}");

            let check = pod.check()?;
            if version == "0.3.1" {
                assert_eq!(check.code(), Some(1), "0.3.1 has no CHECK: {}", check.text);
            } else {
                assert!(check.success, "{}", check.text);
            }
            pod.del()?;
        }
        Ok(())
    })
}

fn call(cni: &Cni, verb: &str, attachment: &Attachment, config: &str) -> Result<Reply, BedError> {
    cni.tool(verb, Some(attachment), config).output().map(Reply::from)
}

#[test]
fn bad_input_has_the_spec_s_code_and_leaves_no_trace() -> Outcome {
    run(&Plan::nodes(1), |cluster| {
        cluster.add_tenants(&["a"])?;
        let node = cluster.node(1);
        let before = node.traces()?;
        let pod = node.sandbox("a", "a1")?;
        let (cni, good) = (&pod.cni, &pod.attachment);
        let config = |changes: Value| {
            let mut config = cni.config();
            if let (Some(fields), Some(changes)) = (config.as_object_mut(), changes.as_object()) {
                fields.extend(changes.clone());
            }
            config.to_string()
        };
        let cases: Vec<(&str, &[u64], Attachment, String)> = vec![
            ("not JSON", &[6], good.clone(), "{\"cniVersion\":".into()),
            ("no input", &[6], good.clone(), String::new()),
            ("no object", &[6, 7], good.clone(), "[]".into()),
            ("unsupported version", &[1], good.clone(), config(json!({"cniVersion": "9.9.9"}))),
            ("older version", &[1], good.clone(), config(json!({"cniVersion": "0.2.0"}))),
            ("no network name", &[7], good.clone(), config(json!({"name": ""}))),
            ("unknown mode", &[7], good.clone(), config(json!({"mode": "carrier-pigeon"}))),
            ("mode of another type", &[6, 7], good.clone(), config(json!({"mode": 7}))),
            (
                "no container",
                &[4],
                Attachment { container: String::new(), ..good.clone() },
                config(json!({})),
            ),
            (
                "container that is a path",
                &[4],
                Attachment { container: "../x".into(), ..good.clone() },
                config(json!({})),
            ),
            (
                "no interface",
                &[4],
                Attachment { interface: String::new(), ..good.clone() },
                config(json!({})),
            ),
            (
                "long interface",
                &[4],
                Attachment { interface: "a23456789abcdefgh".into(), ..good.clone() },
                config(json!({})),
            ),
            (
                "interface with a slash",
                &[4],
                Attachment { interface: "a/b".into(), ..good.clone() },
                config(json!({})),
            ),
            ("no netns", &[4], Attachment { netns: None, ..good.clone() }, config(json!({}))),
        ];
        for (what, codes, attachment, text) in cases {
            let reply = call(cni, "ADD", &attachment, &text)?;
            let code = reply.code().unwrap_or_default();
            assert!(codes.contains(&code), "{what}: code {code}: {}", reply.text);
            assert!(reply.message().trim().len() > 5, "{what}: {}", reply.text);
        }
        for netns in ["/run/netns/there-is-none", "/etc/hostname"] {
            let reply = call(
                cni,
                "ADD",
                &Attachment { netns: Some(PathBuf::from(netns)), ..good.clone() },
                &config(json!({})),
            )?;
            assert!(reply.code().is_some() && reply.message().contains(netns), "{}", reply.text);
        }
        let unknown = call(cni, "EXPLODE", good, &config(json!({})))?;
        assert_eq!(unknown.code(), Some(4), "{}", unknown.text);
        node.wait_for_traces(&before)
    })
}

/// CHECK sees what is wrong, unless the agent has put it right already.
#[test]
fn check_finds_damage() -> Outcome {
    run(&Plan::nodes(1), |cluster| {
        cluster.add_tenants(&["a"])?;
        let node = cluster.node(1);
        let damaged = |name: &str, damage: &dyn Fn(&tenon_tests::pod::Pod) -> Outcome| -> Outcome {
            let pod = node.pod("a", name)?;
            let sound = pod.check()?;
            assert!(sound.success, "{name}: {}", sound.text);
            damage(&pod)?;
            let check = pod.check()?;
            assert!(!check.success, "{name}: CHECK saw nothing");
            assert!(check.code().is_some() && check.message().trim().len() > 5, "{name}: {}", check.text);
            pod.del()
        };
        damaged("address", &|pod| pod.netns().ip(&["addr", "flush", "dev", "eth0"]).map(|_| ()))?;
        damaged("down", &|pod| pod.netns().ip(&["link", "set", "eth0", "down"]).map(|_| ()))?;
        damaged("route", &|pod| pod.netns().ip(&["route", "del", "default"]).map(|_| ()))?;
        damaged("link", &|pod| pod.netns().ip(&["link", "del", "eth0"]).map(|_| ()))?;

        let peer = node.pod("a", "peer")?;
        let repaired = |what: &str, damage: &dyn Fn(&tenon_tests::pod::Pod) -> Outcome| -> Outcome {
            let pod = node.pod("a", what)?;
            let whole = node.traces()?;
            damage(&pod)?;
            until(
                &format!("CHECK to tell the missing {what}, or the {what} back"),
                patience(Duration::from_secs(10)),
                || {
                    let check = pod.check().map_err(|e| e.to_string())?;
                    let back = node.traces().map_err(|e| e.to_string())? == whole;
                    match (check.success, back) {
                        (true, true) => Ok(()),
                        (false, false) => Ok(()),
                        _ => Err(format!("back: {back}; {}", check.text)),
                    }
                },
            )?;
            pod.del()
        };
        repaired("port", &|pod| {
            let port = pod.result()?.host_interface().unwrap_or_default();
            node.ovs().vsctl(&["--no-wait", "del-port", BRIDGE, &port]).map(|_| ())
        })?;
        repaired("flow", &|pod| {
            let of_the_pod = format!("ip,nw_dst={}", pod.address()?);
            node.ovs().ofctl("del-flows", BRIDGE, &[&of_the_pod]).map(|_| ())
        })?;
        drop(peer);
        Ok(())
    })
}

/// multus#1273: GC of one network removed another's attachments.
#[test]
fn gc_removes_what_its_own_network_has_lost() -> Outcome {
    run(&Plan::nodes(1), |cluster| {
        cluster.add_tenants(&["a"])?;
        let node = cluster.node(1);
        let other_network = |name: &str| -> Result<tenon_tests::pod::Pod, BedError> {
            let mut pod = node.sandbox("a", name)?;
            pod.cni.network = "another".into();
            pod.add()?;
            Ok(pod)
        };
        let (kept, foreign) = (node.pod("a", "kept")?, other_network("foreign")?);
        let before = node.traces()?;
        let lost = node.pod("a", "lost")?;
        let gc = |valid: Value| {
            let cni = node.cni()?.version("1.1.0").with("cni.dev/valid-attachments", valid);
            cni.call("GC", None)?.accepted()
        };
        let valid =
            |pod: &tenon_tests::pod::Pod| json!({"containerID": pod.attachment.container, "ifname": "eth0"});
        gc(json!([valid(&kept), valid(&lost)]))?;
        assert!(lost.check()?.success);
        gc(json!([valid(&kept)]))?;
        node.wait_for_traces(&before)?;
        assert!(kept.check()?.success && foreign.check()?.success);
        assert!(probe::ping(&kept.netns().path(), foreign.address()?)?);
        gc(json!([]))?;
        assert!(!kept.check()?.success);
        assert!(foreign.check()?.success);
        Ok(())
    })
}

#[test]
fn status_tells_whether_pods_can_be_added() -> Outcome {
    run(&Plan::nodes(1), |cluster| {
        cluster.add_tenants(&["a"])?;
        let node = cluster.node(1);
        let cni = node.cni()?.version("1.1.0");
        let ready = cni.call("STATUS", None)?;
        assert!(ready.success && ready.text.trim().is_empty(), "{}", ready.text);
        let unready = |what: &str| {
            until(&format!("an unready STATUS {what}"), patience(Duration::from_secs(10)), || {
                let reply = cni.call("STATUS", None).map_err(|e| e.to_string())?;
                match reply.code() {
                    Some(50 | 51) => Ok(()),
                    _ => Err(reply.text),
                }
            })
        };
        node.ovs().end_vswitchd(true);
        node.ovs().end_ovsdb(true);
        unready("without Open vSwitch")?;
        node.ovs().start_ovsdb()?;
        node.ovs().start_vswitchd()?;
        node.configure_uplink()?;
        node.wait_ready()?;
        node.kill_agent();
        unready("without an agent")?;
        node.start_agent()
    })
}

/// An address or MAC that the runtime asks for is given, or refused when it is taken or not the network's.
#[test]
fn requested_addresses_are_given_or_refused() -> Outcome {
    run(&Plan::nodes(1), |cluster| {
        cluster.add_tenants(&["a"])?;
        let node = cluster.node(1);
        let gateway = cluster.gateway(node)?;
        let wanted = std::net::Ipv4Addr::from(u32::from(gateway) + 76);
        let peer = node.pod("a", "peer")?;
        let asking = |name: &str, config: Value| -> Result<tenon_tests::pod::Pod, BedError> {
            let mut pod = node.sandbox("a", name)?;
            pod.cni = pod.cni.with("runtimeConfig", config);
            Ok(pod)
        };
        let mut pod = asking("wish", json!({"ips": [format!("{wanted}/22")], "mac": "02:11:22:33:44:55"}))?;
        pod.add()?;
        assert_eq!(pod.address()?, wanted);
        assert_eq!(pod.mac()?, [2, 0x11, 0x22, 0x33, 0x44, 0x55]);
        assert!(probe::ping(&peer.netns().path(), wanted)?);

        let before = node.traces()?;
        for (name, ip) in
            [("taken", wanted.to_string()), ("gateway", gateway.to_string()), ("outside", "192.0.2.1".into())]
        {
            let refused = asking(name, json!({"ips": [ip.clone()]}))?;
            let reply = refused.cni.call("ADD", Some(&refused.attachment))?;
            assert!(!reply.success && reply.message().contains(&ip), "{name}: {}", reply.text);
        }
        for mac in ["02:11:22:33:44:55", "01:00:5e:00:00:01", "not a MAC"] {
            let refused = asking("badmac", json!({"mac": mac}))?;
            let reply = refused.cni.call("ADD", Some(&refused.attachment))?;
            assert!(!reply.success && reply.message().contains(mac), "{mac}: {}", reply.text);
        }
        node.wait_for_traces(&before)?;
        assert!(probe::ping(&peer.netns().path(), wanted)?);
        Ok(())
    })
}
