use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tenon_netdev::{AddressFlags, Error, PortGuard, Route, Veth, sysctl};

use crate::ground::Ground;

fn guard(link_prefix: &str) -> PortGuard {
    PortGuard { table: "tenon-ports".to_owned(), link_prefix: link_prefix.to_owned() }
}

fn install(ground: &Ground, guard: &PortGuard) -> bool {
    ground.netns.run(|| guard.install()).unwrap().unwrap()
}

fn installed(ground: &Ground, guard: &PortGuard) -> bool {
    ground.netns.run(|| guard.installed()).unwrap().unwrap()
}

fn remove(ground: &Ground, guard: &PortGuard) {
    ground.netns.run(|| guard.remove()).unwrap().unwrap();
}

fn rule_set(ground: &Ground) -> Vec<Value> {
    let listed: Value = serde_json::from_str(&ground.tool("nft -j list ruleset")).unwrap();
    listed["nftables"].as_array().unwrap().clone()
}

#[test]
fn nft_sees_what_was_meant() {
    let ground = Ground::new();
    // Shorter than a register, longer, and as long as a link's name can be.
    for prefix in ["tn", "tnport", "abcdefghijklmno"] {
        assert!(install(&ground, &guard(prefix)));
        assert!(installed(&ground, &guard(prefix)));
        let text = ground.tool("nft list ruleset");
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let rule = format!("iifname \"{prefix}*\" counter packets 0 bytes 0 drop");
        assert_eq!(
            lines,
            [
                "table inet tenon-ports {",
                "chain prerouting {",
                "type filter hook prerouting priority raw; policy accept;",
                &rule,
                "}",
                "}",
                "table arp tenon-ports {",
                "chain input {",
                "type filter hook input priority filter; policy accept;",
                &rule,
                "}",
                "}"
            ]
        );
    }
}

#[test]
fn installing_again_changes_nothing_and_another_prefix_replaces_it() {
    let ground = Ground::new();
    ground.tool(
        "nft add table inet theirs ; add chain inet theirs c ; add rule inet theirs c tcp dport 1 drop",
    );
    let theirs = ground.tool("nft list ruleset");
    assert!(!installed(&ground, &guard("tn")));
    assert!(install(&ground, &guard("tn")));
    let handles = rule_set(&ground);
    assert!(!install(&ground, &guard("tn")));
    assert_eq!(rule_set(&ground), handles);

    for other in ["tnx", "t", "to"] {
        assert!(!installed(&ground, &guard(other)), "{other}");
    }
    assert!(install(&ground, &guard("tnx")));
    assert!(installed(&ground, &guard("tnx")));
    assert!(!installed(&ground, &guard("tn")));

    remove(&ground, &guard("tnx"));
    remove(&ground, &guard("tnx"));
    assert!(!installed(&ground, &guard("tnx")));
    assert_eq!(ground.tool("nft list ruleset"), theirs);
}

#[test]
fn a_rule_set_that_somebody_changed_is_put_right() {
    let ground = Ground::new();
    let wanted = guard("tn");
    install(&ground, &wanted);
    let right = ground.tool("nft list ruleset");
    for (table, chain, base) in [
        ("inet tenon-ports", "prerouting", "type filter hook prerouting priority raw"),
        ("arp tenon-ports", "input", "type filter hook input priority filter"),
    ] {
        let rule = format!("add rule {table} {chain} iifname tn* counter drop");
        let flush = format!("flush chain {table} {chain}");
        for change in [
            format!("delete table {table}"),
            format!("add table {table} {{ flags dormant ; }}"),
            format!("add chain {table} {chain} {{ policy drop ; }}"),
            format!("add chain {table} other"),
            format!("add chain {table} other {{ {base} ; policy drop ; }}"),
            flush.clone(),
            rule.clone(),
            format!("insert rule {table} {chain} accept"),
            format!("{flush} ; add rule {table} {chain} iifname tn0 counter drop"),
            format!("{flush} ; add rule {table} {chain} iifname t* counter drop"),
            format!("{flush} ; add rule {table} {chain} iifname != tn* counter drop"),
            format!("{flush} ; add rule {table} {chain} oifname tn* counter drop"),
            format!("{flush} ; add rule {table} {chain} iifname tn* counter accept"),
            format!("{flush} ; add rule {table} {chain} iifname tn* drop"),
            format!("delete chain {table} {chain} ; add chain {table} other {{ {base} ; }}"),
            format!("delete table {table} ; add table {table} ; add chain {table} {chain} ; {rule}"),
            format!(
                "delete table {table} ; add table {table} ; add chain {table} {chain} {{ {base} + 1 ; }} ; {rule}"
            ),
        ] {
            ground.tool(&format!("nft {change}"));
            assert!(!installed(&ground, &wanted), "{change}");
            assert!(install(&ground, &wanted), "{change}");
            assert!(installed(&ground, &wanted), "{change}");
            let mut text: Vec<String> = tables(&ground.tool("nft list ruleset"));
            let mut right = tables(&right);
            text.sort();
            right.sort();
            assert_eq!(text, right, "{change}");
        }
    }
}

/// A listing cut into its tables, whose order is that of their making.
fn tables(listing: &str) -> Vec<String> {
    listing.split_inclusive("\n}\n").map(str::to_owned).collect()
}

#[test]
fn the_table_that_is_right_keeps_its_counters() {
    let ground = Ground::new();
    install(&ground, &guard("tn"));
    let inet = ground.tool("nft -a list table inet tenon-ports");
    ground.tool("nft delete table arp tenon-ports");
    assert!(install(&ground, &guard("tn")));
    assert_eq!(ground.tool("nft -a list table inet tenon-ports"), inet);
    // Half of it is gone already.
    ground.tool("nft delete table inet tenon-ports");
    remove(&ground, &guard("tn"));
    assert_eq!(ground.tool("nft list ruleset"), "");
}

#[test]
fn impossible_names_are_refused() {
    let ground = Ground::new();
    let prefixes = ["", "0123456789abcdef", "t n", "t\n", "t/", "t:", "t\0"];
    let guards = prefixes.map(guard).into_iter().chain(
        [String::new(), "x".repeat(256), "a\0b".to_owned()].map(|table| PortGuard { table, ..guard("tn") }),
    );
    for guard in guards {
        let error = ground.netns.run(|| guard.install()).unwrap().unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        assert!(!error.to_string().contains(['\0', '\n']), "{error}");
        assert!(ground.netns.run(|| guard.installed()).unwrap().is_err());
        assert!(ground.netns.run(|| guard.remove()).unwrap().is_err());
    }
    assert_eq!(ground.tool("nft list ruleset"), "");
}

#[test]
fn without_privilege_the_error_says_what_is_needed() {
    let ground = Ground::new();
    let error = ground
        .netns
        .run(|| {
            // SAFETY: a system call on the calling thread's own identity; the thread ends with this closure.
            assert_eq!(unsafe { nix::libc::syscall(nix::libc::SYS_setuid, 65534) }, 0);
            guard("tn").install()
        })
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    assert!(error.to_string().contains("tn*"), "{error}");
}

/// A pod on a veth of a node: the node's end has the subnet's first address, the pod's end the second.
struct Pod {
    ground: Ground,
    veth: Veth,
    gateway_mac: [u8; 6],
    subnet: &'static str,
}

impl Pod {
    fn new(node: &Ground, link: &str, subnet: &'static str) -> Self {
        let ground = Ground::new();
        let veth = node.connect(&ground, link, "eth0");
        let gateway_mac = node.netlink.link_by_name(link).unwrap().unwrap().mac.unwrap();
        let pod = Self { ground, veth, gateway_mac, subnet };
        let nodad = AddressFlags { nodad: true, ..AddressFlags::default() };
        for (ground, index, host) in [(node, pod.veth.host_index, 1), (&pod.ground, pod.veth.peer_index, 2)] {
            for address in [format!("{subnet}.{host}/24"), format!("fe80::{host}/64")] {
                ground.netlink.add_address(index, address.parse().unwrap(), nodad).unwrap();
            }
        }
        let default = Route::via(
            "0.0.0.0/0".parse().unwrap(),
            format!("{subnet}.1").parse().unwrap(),
            pod.veth.peer_index,
        );
        pod.ground.netlink.replace_route(&default).unwrap();
        pod
    }

    /// What of the node this pod gets at, and what behind it.
    fn reaches(&self, node: &UdpSocket, server: &UdpSocket) -> Vec<&'static str> {
        let gateway = format!("{}.1", self.subnet);
        let forget = |ip: &str| {
            self.ground.tool(&format!("ip neigh flush to {ip} nud all"));
        };
        let know = |ip: &str| {
            self.ground
                .netlink
                .replace_neighbour(self.veth.peer_index, ip.parse().unwrap(), self.gateway_mac, true)
                .unwrap();
        };
        let mut reached = Vec::new();
        let mut note = |what, is_reached: bool| reached.extend(is_reached.then_some(what));

        forget(&gateway);
        note("arp", self.answered(&format!("arping -I eth0 -c 1 -w 1 {gateway}")));
        // Another of the node's addresses than that of the link.
        note("arp for the uplink's address", self.answered("arping -I eth0 -c 1 -w 1 192.0.2.1"));
        forget("fe80::1");
        note("neighbour discovery", self.answered("ping -c 1 -W 1 fe80::1%eth0"));
        // Whoever has learnt the link's MAC otherwise needs no answer to send.
        know(&gateway);
        know("fe80::1");
        note("ping", self.answered(&format!("ping -c 1 -W 1 {gateway}")));
        note("ping to the uplink's address", self.answered("ping -c 1 -W 1 192.0.2.1"));
        note("ping6", self.answered("ping -c 1 -W 1 fe80::1%eth0"));
        note("udp", self.delivers("192.0.2.1:7000", node));
        note("forwarding", self.delivers("192.0.2.2:7000", server));
        reached
    }

    /// Whether a tool that asks for an answer got one.
    fn answered(&self, tool: &str) -> bool {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.ground.name]).args(tool.split(' '));
        let output = command.output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 1)), "{tool}: {output:?}");
        // `ip` fails with 1 as well.
        assert!(!String::from_utf8_lossy(&output.stderr).contains("exec of"), "{tool}: {output:?}");
        output.status.success()
    }

    fn delivers(&self, to: &str, receiver: &UdpSocket) -> bool {
        let text = format!("from {}", self.subnet);
        let socket = self.ground.netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.send_to(text.as_bytes(), to).unwrap();
        let mut buffer = [0; 64];
        let received = receiver.recv(&mut buffer).map(|length| &buffer[..length]);
        match &received {
            Ok(received) => assert_eq!(*received, text.as_bytes()),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        received.is_ok()
    }
}

/// How many packets the rule of a table has dropped.
fn dropped(node: &Ground, table: &str) -> u64 {
    let text = node.tool(&format!("nft list table {table} tenon-ports"));
    let after = text.split("counter packets ").nth(1).unwrap();
    after.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_node_takes_nothing_from_guarded_links_and_all_from_others() {
    let (node, server) = (Ground::new(), Ground::new());
    let uplink = node.connect(&server, "uplink", "eth0");
    node.netns.run(|| sysctl::write("net.ipv4.ip_forward", "1")).unwrap().unwrap();
    for (ground, index, address) in
        [(&node, uplink.host_index, "192.0.2.1/24"), (&server, uplink.peer_index, "192.0.2.2/24")]
    {
        ground.netlink.add_address(index, address.parse().unwrap(), AddressFlags::default()).unwrap();
    }
    let guarded = Pod::new(&node, "tnport0", "10.1.0");
    // Its name starts like the prefix, and ends too early.
    let other = Pod::new(&node, "tnpor", "10.2.0");
    let listen = |ground: &Ground| {
        let socket = ground.netns.run(|| UdpSocket::bind("0.0.0.0:7000")).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    };
    let (on_node, on_server) = (listen(&node), listen(&server));

    let everything = [
        "arp",
        "arp for the uplink's address",
        "neighbour discovery",
        "ping",
        "ping to the uplink's address",
        "ping6",
        "udp",
        "forwarding",
    ];
    let reach = |pod: &Pod| pod.reaches(&on_node, &on_server);
    assert_eq!(reach(&guarded), everything);

    let guard = guard("tnport");
    assert!(install(&node, &guard));
    assert_eq!(reach(&guarded), [""; 0]);
    assert!(dropped(&node, "arp") >= 2);
    let packets = dropped(&node, "inet");
    assert!(packets >= 5, "{packets}");
    assert_eq!(reach(&other), everything);

    // Links that come later are guarded, too.
    let later = Pod::new(&node, "tnport1", "10.3.0");
    assert!(!later.answered("arping -I eth0 -c 1 -w 1 10.3.0.1"));

    remove(&node, &guard);
    assert_eq!(reach(&guarded), everything);
}

#[test]
fn packet_sockets_see_what_the_guard_drops() {
    let node = Ground::new();
    let pod = Pod::new(&node, "tnport0", "10.1.0");
    install(&node, &guard("tnport"));
    let capture = Command::new("ip")
        .args(["netns", "exec", &node.name, "timeout", "10", "tcpdump", "-lni", "tnport0", "-c", "1", "arp"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..3 {
        assert!(!pod.answered("arping -I eth0 -c 1 -w 1 10.1.0.1"));
    }
    let output = capture.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Request who-has 10.1.0.1"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}
