//! Pods on segments of the physical network: whom they reach, what they get, and what is refused.

use std::{net::Ipv4Addr, time::Duration};

use serde_json::{Value, json};
use tenon_tests::{
    BedError, Outcome,
    cni::Reply,
    command::until,
    datapath::patience,
    matrix::Matrix,
    node::Node,
    pod::Pod,
    probe,
    segment::{GATEWAY, MACHINE, MASTER, mac_of, on_segments, ping6, place, record, refused},
    stream::Stream,
};

#[test]
fn pods_reach_machines_and_each_other() -> Outcome {
    on_segments(2, &[record("lan", &json!({}))], |cluster, switch| {
        let gateway = switch.machine("gateway", &["10.100.0.1/24"])?;
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let pods = [
            cluster.node(1).segment_pod("lan", "a", "m1")?,
            cluster.node(1).segment_pod("lan", "b", "m2")?,
            cluster.node(2).segment_pod("lan", "a", "m3")?,
        ];
        let mut places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
        places.push(place("gateway", &gateway, GATEWAY));
        places.push(place("machine", &machine, MACHINE));
        Matrix::require(&places, |_, _| true)?;
        probe::tcp_echo(&places[0], &places[4], 1 << 20)?;
        probe::tcp_echo(&places[4], &places[2], 1 << 20)?;
        // Far away is behind the gateway.
        gateway.ip(&["addr", "add", "198.51.100.7/32", "dev", "lo"])?;
        assert!(probe::ping(&pods[2].netns().path(), Ipv4Addr::new(198, 51, 100, 7))?);
        for pod in &pods {
            pod.del()?;
            pod.del()?;
        }
        until("no links of pods", patience(Duration::from_secs(5)), || {
            let links = pods[0].netns().ip(&["-o", "link"]).map_err(|e| e.to_string())?;
            if links.contains("eth0") { Err(links) } else { Ok(()) }
        })
    })
}

#[test]
fn result_is_what_the_kernel_and_the_store_say() -> Outcome {
    let routes = json!([{"dst": "192.0.2.0/24", "gw": "10.100.0.200"}, {"dst": "203.0.113.0/24"}]);
    on_segments(1, &[record("lan", &json!({"Routes": routes}))], |cluster, _| {
        let node = cluster.node(1);
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let mut pod = node.segment_sandbox("lan", "a", &format!("v{}", version.replace('.', "")))?;
            pod.cni = pod.cni.version(version);
            pod.add()?;
            let result = pod.result()?;
            let ip = &result.json["ips"][0];
            let address = ip["address"].as_str().unwrap_or_default();
            assert!(address.starts_with("10.100.0.") && address.ends_with("/24"), "{}", result.text);
            assert_eq!(ip["gateway"], GATEWAY, "{}", result.text);
            let index = ip["interface"].as_u64().and_then(|i| usize::try_from(i).ok()).unwrap_or(usize::MAX);
            let inside = &result.json["interfaces"][index];
            assert_eq!((&inside["name"], &inside["sandbox"]), (&json!("eth0"), &json!(pod.netns().path())));
            assert_eq!(result.mac(), Some(mac_of(pod.netns())?), "{}", result.text);
            assert!(pod.result_mac()?.starts_with("02:"), "{}", result.text);

            let link = pod.netns().ip(&["-d", "link", "show", "eth0"])?;
            assert!(link.contains("macvlan mode bridge") && link.contains("UP"), "{link}");
            let addresses = pod.netns().ip(&["-o", "-4", "addr", "show", "dev", "eth0"])?;
            assert!(addresses.contains(address), "{addresses}");
            let kernel = pod.netns().ip(&["route"])?;
            for (dst, gw) in
                [("default", GATEWAY), ("192.0.2.0/24", "10.100.0.200"), ("203.0.113.0/24", GATEWAY)]
            {
                assert!(kernel.contains(&format!("{dst} via {gw}")), "{kernel}");
                let dst = if dst == "default" { "0.0.0.0/0" } else { dst };
                let named = result.json["routes"].as_array().is_some_and(|all| {
                    all.iter().any(|r| r["dst"] == dst && (r["gw"] == gw || r["gw"].is_null()))
                });
                assert!(named, "{dst}: {}", result.text);
            }

            let lease = &cluster.etcd.leases("lan")?[&pod.address()?.to_string()];
            for (field, value) in [
                ("MAC", pod.result_mac()?),
                ("Node", node.name().into()),
                ("ContainerID", pod.attachment.container.clone()),
                ("IfName", "eth0".into()),
                ("PodNamespace", "a".into()),
                ("PodName", pod.attachment.pod.clone()),
            ] {
                assert_eq!(lease[field], value, "{field}: {lease}");
            }
            assert!(lease.get("Released").is_none(), "{lease}");
            if version != "0.3.1" {
                let check = pod.check()?;
                assert!(check.success, "{}", check.text);
            }
            pod.del()?;
        }
        until("released leases", patience(Duration::from_secs(5)), || {
            let held = cluster.etcd.held("lan").map_err(|e| e.to_string())?;
            if held.is_empty() { Ok(()) } else { Err(format!("{held:?}")) }
        })
    })
}

/// kubernetes#53089, multus#463: a host cannot reach its own macvlan pods, nor they the host.
#[test]
fn host_and_its_own_pods_reach_each_other() -> Outcome {
    let segments = [
        record("lan", &json!({"RangeEnd": "10.100.0.49"})),
        record("apart", &json!({"RangeStart": "10.100.0.50", "HostAccess": false})),
    ];
    on_segments(2, &segments, |cluster, switch| {
        switch.machine("gateway", &["10.100.0.1/24"])?;
        let node = cluster.node(1);
        let (first, second) = (node.segment_pod("lan", "a", "m1")?, node.segment_pod("lan", "a", "m2")?);
        let apart = node.segment_pod("apart", "a", "m3")?;
        let reached = |pod: &Pod| -> Result<(bool, bool), BedError> {
            let there = probe::ping(&node.netns().path(), pod.address()?)?;
            let source = node.source_towards(pod.address()?.into())?;
            let std::net::IpAddr::V4(source) = source else { return Ok((there, false)) };
            Ok((there, probe::ping(&pod.netns().path(), source)?))
        };
        for pod in [&first, &second] {
            assert_eq!(reached(pod)?, (true, true), "{}", node.netns().ip(&["route"])?);
        }
        assert!(!probe::ping(&node.netns().path(), apart.address()?)?, "HostAccess is off");

        let stream = Stream::start(&node.netns().path(), first.address()?, Duration::from_millis(10))?;
        node.kill_agent();
        node.start_agent()?;
        let tally = stream.stop();
        assert_eq!(tally.lost, 0, "{tally:?} while the agent was away");
        assert_eq!(reached(&second)?, (true, true));

        let to_second =
            |route: &str| route.contains(&second.address().map_or(String::new(), |a| a.to_string()));
        assert!(to_second(&node.netns().ip(&["route"])?));
        second.del()?;
        until("no route to a pod that is gone", patience(Duration::from_secs(5)), || {
            let routes = node.netns().ip(&["route"]).map_err(|e| e.to_string())?;
            if to_second(&routes) { Err(routes) } else { Ok(()) }
        })?;
        assert_eq!(reached(&first)?, (true, true));

        // After the last pod nothing of it is left on the node.
        first.del()?;
        apart.del()?;
        until("no macvlan on the node", patience(Duration::from_secs(10)), || {
            let links =
                node.netns().ip(&["-o", "link", "show", "type", "macvlan"]).map_err(|e| e.to_string())?;
            if links.trim().is_empty() { Ok(()) } else { Err(links) }
        })
    })
}

#[test]
fn mtu_is_the_master_s_or_the_segment_s_if_smaller() -> Outcome {
    let segments = [
        record("master", &json!({"RangeEnd": "10.100.0.19"})),
        record("smaller", &json!({"RangeStart": "10.100.0.20", "RangeEnd": "10.100.0.29", "Mtu": 1300})),
        record("larger", &json!({"RangeStart": "10.100.0.30", "Mtu": 9000})),
    ];
    on_segments(1, &segments, |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let node = cluster.node(1);
        node.netns().ip(&["link", "set", MASTER, "mtu", "1400"])?;
        for (segment, mtu) in [("master", 1400), ("smaller", 1300), ("larger", 1400)] {
            let pod = node.segment_pod(segment, "a", segment)?;
            let link = pod.netns().ip(&["link", "show", "eth0"])?;
            assert!(link.contains(&format!("mtu {mtu} ")), "{segment}: {link}");
            let to = place("machine", &machine, MACHINE).address;
            assert!(probe::passes_unfragmented(&pod.netns().path(), to, mtu)?, "{segment}");
            assert!(!probe::passes_unfragmented(&pod.netns().path(), to, mtu + 1)?, "{segment}");
        }
        Ok(())
    })
}

/// One bad record says so at ADD, and harms no other segment; put right, it works.
#[test]
fn bad_segments_are_refused_and_harm_no_other() -> Outcome {
    let lan = record("lan", &json!({}));
    on_segments(1, std::slice::from_ref(&lan), |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let node = cluster.node(1);
        let kept = node.segment_pod("lan", "a", "kept")?;
        let elsewhere = json!({
            "Subnet": "10.101.0.0/24", "Gateway": "10.101.0.1", "RangeStart": "", "RangeEnd": "",
        });
        let bad = |changes: Value| {
            let mut all = elsewhere.clone();
            if let (Some(all), Some(changes)) = (all.as_object_mut(), changes.as_object()) {
                all.extend(changes.clone());
            }
            all
        };
        let cases = [
            ("overlap", json!({}), "lan"),
            ("gateway", bad(json!({"Gateway": "10.102.0.1"})), "10.102.0.1"),
            ("vlan", bad(json!({"Vlan": 4095})), "Vlan"),
            ("mode", bad(json!({"Mode": "turbo"})), "turbo"),
            ("subnet", bad(json!({"Subnet": "10.101.0.7/24"})), "10.101.0.0/24"),
            ("range", bad(json!({"RangeStart": "10.101.0.9", "RangeEnd": "10.101.0.8"})), "10.101.0.9"),
            ("master", bad(json!({"Master": "eth9"})), "eth9"),
        ];
        for (name, changes, named) in &cases {
            cluster.etcd.put_segment(&record(name, changes))?;
            let reply = refused(&node.segment_sandbox(name, "a", name)?)?;
            let message = reply.message();
            assert!(message.contains(name) && message.contains(named), "{name}: {message}");
        }
        cluster.etcd.put("/k8ssdn/segments/text", "{\"Name\":")?;
        for name in ["text", "nowhere"] {
            let reply = refused(&node.segment_sandbox(name, "a", name)?)?;
            assert!(reply.message().contains(name), "{name}: {}", reply.text);
        }
        let mut unnamed = node.sandbox("a", "unnamed")?;
        unnamed.cni = unnamed.cni.with("mode", json!("macvlan"));
        assert!(refused(&unnamed)?.message().contains("segment"));

        let good = node.segment_pod("lan", "a", "good")?;
        let mut places = vec![kept.place()?, good.place()?];
        places.push(place("machine", &machine, MACHINE));
        Matrix::require(&places, |_, _| true)?;
        assert_eq!(cluster.etcd.held("lan")?.len(), 2);

        cluster.etcd.put_segment(&record("mode", &elsewhere))?;
        let mut mended = node.segment_sandbox("mode", "a", "mended")?;
        until("a segment that was put right", patience(Duration::from_secs(5)), || {
            mended.add().map_err(|e| e.to_string())
        })?;
        assert_eq!(mended.address()?.octets()[..3], [10, 101, 0]);
        Ok(())
    })
}

#[test]
fn modes_part_or_join_the_pods_of_a_node() -> Outcome {
    let of = |mode: &str, start: u8| {
        let (start, end) = (format!("10.100.0.{start}"), format!("10.100.0.{}", start + 9));
        let changes = json!({"Mode": mode, "RangeStart": start, "RangeEnd": end, "HostAccess": false});
        record(mode, &changes)
    };
    let segments = [of("private", 10), of("vepa", 20), of("passthru", 30), of("bridge", 40)];
    on_segments(1, &segments, |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let node = cluster.node(1);
        for (mode, joined) in [("bridge", true), ("private", false), ("vepa", false)] {
            let pods = [
                node.segment_pod(mode, "a", &format!("{mode}1"))?,
                node.segment_pod(mode, "a", &format!("{mode}2"))?,
            ];
            let link = pods[0].netns().ip(&["-d", "link", "show", "eth0"])?;
            assert!(link.contains(&format!("macvlan mode {mode}")), "{link}");
            let places = [pods[0].place()?, pods[1].place()?, place("machine", &machine, MACHINE)];
            Matrix::require(&places, |from, to| joined || from == "machine" || to == "machine")?;
            for pod in &pods {
                pod.del()?;
            }
            until("no macvlan of the pods", patience(Duration::from_secs(5)), || {
                let links = pods[1].netns().ip(&["-o", "link"]).map_err(|e| e.to_string())?;
                if links.contains("eth0") { Err(links) } else { Ok(()) }
            })?;
        }
        let alone = node.segment_pod("passthru", "a", "alone")?;
        let places = [alone.place()?, place("machine", &machine, MACHINE)];
        Matrix::require(&places, |_, _| true)?;
        let second = refused(&node.segment_sandbox("passthru", "a", "second")?)?;
        assert!(second.message().contains(MASTER), "{}", second.text);
        Matrix::require(&places, |_, _| true)?;
        assert_eq!(cluster.etcd.held("passthru")?.len(), 1);
        Ok(())
    })
}

#[test]
fn requested_addresses_are_given_or_refused_with_the_holder() -> Outcome {
    on_segments(2, &[record("lan", &json!({"Exclude": ["10.100.0.60/30"]}))], |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let asking = |node: &Node, name: &str, config: Value| -> Result<Pod, BedError> {
            let mut pod = node.segment_sandbox("lan", "a", name)?;
            pod.cni = pod.cni.with("runtimeConfig", config);
            Ok(pod)
        };
        let wished = Ipv4Addr::new(10, 100, 0, 77);
        let mac = "02:11:22:33:44:55";
        let mut wish = asking(cluster.node(1), "wish", json!({"ips": ["10.100.0.77/24"], "mac": mac}))?;
        wish.add()?;
        assert_eq!((wish.address()?, wish.result_mac()?.as_str()), (wished, mac));
        assert_eq!(mac_of(wish.netns())?, mac);
        assert!(probe::ping(&machine.path(), wished)?);

        for node in &cluster.nodes {
            for (config, named) in [
                (json!({"ips": ["10.100.0.77"]}), "wish"),
                (json!({"mac": mac}), "wish"),
                (json!({"ips": ["10.100.0.1"]}), "10.100.0.1"),
                (json!({"ips": ["10.100.0.61"]}), "10.100.0.61"),
                (json!({"ips": ["10.100.0.150"]}), "10.100.0.150"),
                (json!({"ips": ["192.0.2.1"]}), "192.0.2.1"),
                (json!({"mac": "01:00:5e:00:00:01"}), "01:00:5e:00:00:01"),
                (json!({"mac": "not a MAC"}), "not a MAC"),
            ] {
                let pod = asking(node, "refused", config)?;
                let reply = refused(&pod)?;
                assert!(reply.message().contains(named), "{named}: {}", reply.text);
            }
        }
        let held = cluster.etcd.held("lan")?;
        assert_eq!(held.len(), 1, "{held:?}");

        // The same by CNI_ARGS.
        let pod = cluster.node(2).segment_sandbox("lan", "a", "args")?;
        let args =
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=args;IP=10.100.0.78;MAC=02:11:22:33:44:66";
        let tool = pod.cni.tool("ADD", Some(&pod.attachment), &pod.cni.config().to_string());
        let reply = Reply::from(tool.env("CNI_ARGS", args).output()?).accepted()?;
        assert_eq!(reply.address(), Some(Ipv4Addr::new(10, 100, 0, 78)), "{}", reply.text);
        assert_eq!(reply.mac().as_deref(), Some("02:11:22:33:44:66"), "{}", reply.text);
        assert!(probe::ping(&machine.path(), Ipv4Addr::new(10, 100, 0, 78))?);
        Ok(())
    })
}

/// The network's segment is a default: a pod may ask for another, in CNI_ARGS or by its annotation.
#[test]
fn pod_may_ask_for_another_segment() -> Outcome {
    let other = json!({"Subnet": "10.101.0.0/24", "Gateway": "", "RangeStart": "", "RangeEnd": ""});
    on_segments(1, &[record("lan", &json!({})), record("other", &other)], |cluster, _| {
        let node = cluster.node(1);
        let pod = node.segment_sandbox("lan", "a", "args")?;
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=args;TENON_SEGMENT=other";
        let tool = pod.cni.tool("ADD", Some(&pod.attachment), &pod.cni.config().to_string());
        let reply = Reply::from(tool.env("CNI_ARGS", args).output()?).accepted()?;
        assert_eq!(reply.address().map(|a| a.octets()[1]), Some(101), "{}", reply.text);
        // DEL may come without it.
        pod.del()?;

        let mut annotated = node.segment_sandbox("lan", "a", "annotated")?;
        let annotations = json!({"io.kubernetes.cri.pod-annotations": {"tenon.io/segment": "other"}});
        annotated.cni = annotated.cni.with("runtimeConfig", annotations);
        annotated.add()?;
        assert_eq!(annotated.address()?.octets()[1], 101);
        assert_eq!(cluster.etcd.held("other")?.len(), 1);
        assert!(cluster.etcd.leases("lan")?.is_empty());
        Ok(())
    })
}

#[test]
fn ipv6_alone_and_beside_ipv4() -> Outcome {
    let v6 = json!({
        "Subnet": "fd00:100::/64", "Gateway": "fd00:100::1", "RangeStart": "fd00:100::10",
        "RangeEnd": "fd00:100::1f", "ProbeMs": 50,
    });
    let dual = json!({
        "Subnet": "10.100.0.0/24,fd00:100::/64", "Gateway": "10.100.0.1,fd00:100::1",
        "RangeStart": "10.100.0.10,fd00:100::20", "RangeEnd": "10.100.0.99,fd00:100::ffff", "ProbeMs": 50,
    });
    on_segments(2, &[record("six", &v6), record("dual", &dual)], |cluster, switch| {
        let addresses = ["10.100.0.1/24", "fd00:100::1/64"];
        let machine = switch.machine("machine", &addresses)?;
        let six = cluster.node(1).segment_pod("six", "a", "six")?;
        let both = [
            cluster.node(1).segment_pod("dual", "a", "dual1")?,
            cluster.node(2).segment_pod("dual", "a", "dual2")?,
        ];
        let v6_of = |pod: &Pod| -> Result<std::net::Ipv6Addr, BedError> {
            let mut addresses = pod.addresses()?.into_iter();
            let found =
                addresses.find_map(|ip| if let std::net::IpAddr::V6(ip) = ip { Some(ip) } else { None });
            found.ok_or_else(|| BedError::answer("an IPv6 address", format!("{:?}", pod.result())))
        };
        assert_eq!(six.addresses()?.len(), 1);
        for pod in &both {
            let addresses = pod.addresses()?;
            assert!(addresses.len() == 2 && addresses[0].is_ipv4(), "{addresses:?}: the order of Subnet");
            let check = pod.check()?;
            assert!(check.success, "{}", check.text);
        }
        assert!(six.check()?.success);
        let routes = six.netns().ip(&["-6", "route"])?;
        assert!(routes.contains("default via fd00:100::1"), "{routes}");
        for pod in [&six, &both[0], &both[1]] {
            let shown = pod.netns().ip(&["-6", "-o", "addr", "show", "dev", "eth0", "scope", "global"])?;
            assert!(
                shown.contains(&format!("{}/64", v6_of(pod)?)) && !shown.contains("tentative"),
                "{shown}"
            );
            assert!(ping6(&machine, v6_of(pod)?)?, "{}", pod.attachment.pod);
            assert!(ping6(pod.netns(), "fd00:100::1".parse().expect("an address"))?);
            assert!(ping6(
                cluster.node(if pod.attachment.pod == "dual2" { 2 } else { 1 }).netns(),
                v6_of(pod)?
            )?);
        }
        assert!(ping6(six.netns(), v6_of(&both[1])?)? && ping6(both[1].netns(), v6_of(&both[0])?)?);
        Matrix::require(
            &[both[0].place()?, both[1].place()?, place("machine", &machine, GATEWAY)],
            |_, _| true,
        )?;
        assert_eq!((cluster.etcd.held("six")?.len(), cluster.etcd.held("dual")?.len()), (1, 4));
        both[0].del()?;
        until("both addresses of a pod released", patience(Duration::from_secs(5)), || {
            let held = cluster.etcd.held("dual").map_err(|e| e.to_string())?;
            if held.len() == 2 { Ok(()) } else { Err(format!("{held:?}")) }
        })
    })
}

/// What the physical network is called on a node is for agent.toml to say; a node without it harms no other.
#[test]
fn master_may_be_another_link_on_a_node() -> Outcome {
    on_segments(3, &[record("lan", &json!({}))], |cluster, switch| {
        let machine = switch.machine("machine", &["10.100.0.200/24"])?;
        let (other, without) = (cluster.node(2), cluster.node(3));
        switch.plug(other.netns(), "uplink7", "node2b")?;
        for node in [other, without] {
            node.netns().ip(&["link", "del", MASTER])?;
        }
        other.stop_agent();
        other.launch_agent_with("[segments.lan]\nmaster = \"uplink7\"\n")?;
        other.wait_ready()?;
        let reply = refused(&without.segment_sandbox("lan", "a", "nowhere")?)?;
        assert!(reply.message().contains(MASTER), "{}", reply.text);
        let pods = [cluster.node(1).segment_pod("lan", "a", "m1")?, other.segment_pod("lan", "a", "m2")?];
        let places = [pods[0].place()?, pods[1].place()?, place("machine", &machine, MACHINE)];
        Matrix::require(&places, |_, _| true)?;
        assert_eq!(cluster.etcd.held("lan")?.len(), 2);
        Ok(())
    })
}
