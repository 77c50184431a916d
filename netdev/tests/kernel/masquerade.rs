use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;
use tenon_netdev::{AddressFlags, Error, Masquerade, Route, sysctl};

use crate::ground::Ground;

fn masquerade(network: &str, except: &[&str]) -> Masquerade {
    Masquerade {
        table: "tenon".to_owned(),
        network: network.parse().unwrap(),
        except: except.iter().map(|net| net.parse().unwrap()).collect(),
    }
}

fn rule_set(ground: &Ground) -> Vec<Value> {
    let listed: Value = serde_json::from_str(&ground.tool("nft -j list ruleset")).unwrap();
    listed["nftables"].as_array().unwrap().clone()
}

#[test]
fn nft_sees_what_was_meant() {
    let ground = Ground::new();
    let wanted = masquerade("172.11.0.0/16", &["10.0.0.0/8", "192.0.2.7/32", "10.96.0.0/12"]);
    assert!(ground.netns.run(|| wanted.install()).unwrap().unwrap());
    let text = ground.tool("nft list ruleset");
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(
        lines,
        [
            "table ip tenon {",
            "chain postrouting {",
            "type nat hook postrouting priority srcnat; policy accept;",
            "ip saddr 172.11.0.0/16 ip daddr != 172.11.0.0/16 ip daddr != 10.0.0.0/8 ip daddr != 192.0.2.7 \
             ip daddr != 10.96.0.0/12 counter packets 0 bytes 0 masquerade",
            "}",
            "}"
        ]
    );
}

#[test]
fn installing_again_changes_nothing_and_another_network_replaces_it() {
    let ground = Ground::new();
    let first = masquerade("172.11.0.0/16", &["10.0.0.0/8"]);
    let second = masquerade("172.12.0.0/16", &["10.0.0.0/8"]);
    ground
        .netns
        .run(|| {
            assert!(!first.installed().unwrap());
            assert!(first.install().unwrap());
            assert!(first.installed().unwrap());
            assert!(!second.installed().unwrap());
        })
        .unwrap();
    let handles = rule_set(&ground);
    ground.netns.run(|| assert!(!first.install().unwrap())).unwrap();
    assert_eq!(rule_set(&ground), handles);
    ground
        .netns
        .run(|| {
            assert!(second.install().unwrap());
            assert!(second.installed().unwrap());
            assert!(!first.installed().unwrap());
            assert!(!masquerade("172.12.0.0/16", &[]).installed().unwrap());
        })
        .unwrap();
    let text = ground.tool("nft list ruleset");
    assert!(text.contains("172.12.0.0/16") && !text.contains("172.11.0.0/16"), "{text}");
    ground
        .netns
        .run(|| {
            second.remove().unwrap();
            second.remove().unwrap();
            assert!(!second.installed().unwrap());
        })
        .unwrap();
    assert_eq!(ground.tool("nft list ruleset"), "");
}

#[test]
fn a_rule_set_that_somebody_changed_is_put_right() {
    let ground = Ground::new();
    let wanted = masquerade("172.11.0.0/16", &["10.0.0.0/8"]);
    for change in [
        "nft add rule ip tenon postrouting counter",
        "nft insert rule ip tenon postrouting ip saddr 172.11.0.1 accept",
        "nft flush chain ip tenon postrouting",
        "nft add chain ip tenon other ; add rule ip tenon other accept",
        "nft delete table ip tenon",
        "nft flush chain ip tenon postrouting ; add rule ip tenon postrouting ip saddr 172.11.0.0/16 \
         ip daddr != 172.11.0.0/16 ip daddr != 10.0.0.0/9 counter masquerade",
        "nft flush chain ip tenon postrouting ; add rule ip tenon postrouting ip saddr 172.11.0.0/16 \
         ip daddr != 172.11.0.0/16 ip daddr != 10.0.0.0/8 counter masquerade random",
        "nft flush chain ip tenon postrouting ; add rule ip tenon postrouting ip saddr 172.11.0.0/16 \
         ip daddr != 172.11.0.0/16 ip daddr != 10.0.0.0/8 counter accept",
        "nft delete table ip tenon ; add table ip tenon ; add chain ip tenon postrouting { type nat hook \
         postrouting priority 99 ; } ; add rule ip tenon postrouting ip saddr 172.11.0.0/16 \
         ip daddr != 172.11.0.0/16 ip daddr != 10.0.0.0/8 counter masquerade",
    ] {
        ground.netns.run(|| wanted.install()).unwrap().unwrap();
        ground.tool(change);
        ground
            .netns
            .run(|| {
                assert!(!wanted.installed().unwrap(), "{change}");
                assert!(wanted.install().unwrap(), "{change}");
                assert!(wanted.installed().unwrap(), "{change}");
            })
            .unwrap();
    }
}

#[test]
fn other_tables_are_left_alone() {
    let ground = Ground::new();
    ground.tool("nft add table ip theirs ; add chain ip theirs c ; add rule ip theirs c tcp dport 1 reject");
    let wanted = masquerade("172.11.0.0/16", &["172.11.128.0/17"]);
    ground.netns.run(|| wanted.install()).unwrap().unwrap();
    ground.netns.run(|| wanted.remove()).unwrap().unwrap();
    let text = ground.tool("nft list ruleset");
    assert!(text.contains("table ip theirs") && text.contains("reject") && !text.contains("tenon"), "{text}");
}

#[test]
fn impossible_table_names_are_refused() {
    let ground = Ground::new();
    for table in [String::new(), "x".repeat(256), "x".repeat(100_000), "a\0b".to_owned()] {
        let masquerade = Masquerade { table, ..masquerade("172.11.0.0/16", &[]) };
        let error = ground.netns.run(|| masquerade.install()).unwrap().unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    }
}

#[test]
fn without_privilege_the_error_says_what_is_needed() {
    let ground = Ground::new();
    let error = ground
        .netns
        .run(|| {
            // SAFETY: a system call on the calling thread's own identity; the thread ends with this closure.
            assert_eq!(unsafe { nix::libc::syscall(nix::libc::SYS_setuid, 65534) }, 0);
            masquerade("172.11.0.0/16", &[]).install()
        })
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
}

/// A client and a server with a router between them; the server's route back to the client is up to the test.
struct Path {
    client: Ground,
    router: Ground,
    server: Ground,
    server_link: u32,
    listener: TcpListener,
}

impl Path {
    fn new() -> Self {
        let (client, router, server) = (Ground::new(), Ground::new(), Ground::new());
        let inside = router.connect(&client, "inside", "eth0");
        let outside = router.connect(&server, "outside", "eth0");
        let add = |ground: &Ground, index, address: &str| {
            ground.netlink.add_address(index, address.parse().unwrap(), AddressFlags::default()).unwrap();
        };
        add(&client, inside.peer_index, "172.11.0.2/24");
        add(&router, inside.host_index, "172.11.0.1/24");
        add(&router, outside.host_index, "192.0.2.1/24");
        add(&server, outside.peer_index, "192.0.2.2/24");
        let default =
            Route::via("0.0.0.0/0".parse().unwrap(), "172.11.0.1".parse().unwrap(), inside.peer_index);
        client.netlink.replace_route(&default).unwrap();
        router.netns.run(|| sysctl::write("net.ipv4.ip_forward", "1")).unwrap().unwrap();
        let listener = server.netns.run(|| TcpListener::bind("192.0.2.2:8080")).unwrap().unwrap();
        Self { client, router, server, server_link: outside.peer_index, listener }
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let to = SocketAddr::from(([192, 0, 2, 2], 8080));
        self.client.netns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(2))).unwrap()
    }

    fn install(&self, masquerade: &Masquerade) {
        assert!(self.router.netns.run(|| masquerade.install()).unwrap().unwrap());
    }
}

#[test]
fn traffic_leaves_with_the_routers_address() {
    let path = Path::new();
    // The server has no route to the client, so nothing comes back until it is masqueraded.
    assert!(path.connect().is_err());
    path.install(&masquerade("172.11.0.0/16", &[]));
    let mut client = path.connect().unwrap();
    let (mut server, peer) = path.listener.accept().unwrap();
    assert_eq!(peer.ip(), "192.0.2.1".parse::<IpAddr>().unwrap());

    // A connection lives on when the rule is replaced.
    let mut exchange = |text: &[u8]| {
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = vec![0; text.len()];
        client.write_all(text).unwrap();
        server.read_exact(&mut buffer).unwrap();
        assert_eq!(buffer, text);
        server.write_all(text).unwrap();
        client.read_exact(&mut buffer).unwrap();
        assert_eq!(buffer, text);
    };
    exchange(b"before");
    path.install(&masquerade("172.11.0.0/16", &["198.51.100.0/24"]));
    exchange(b"replaced");
}

#[test]
fn an_excepted_destination_sees_the_real_address() {
    let path = Path::new();
    let back = Route::via("172.11.0.0/24".parse().unwrap(), "192.0.2.1".parse().unwrap(), path.server_link);
    path.server.netlink.replace_route(&back).unwrap();
    path.install(&masquerade("172.11.0.0/16", &["198.51.100.0/24", "192.0.2.0/24"]));
    let client = path.connect().unwrap();
    let (_, peer) = path.listener.accept().unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    assert_eq!(peer.ip(), "172.11.0.2".parse::<IpAddr>().unwrap());
}
