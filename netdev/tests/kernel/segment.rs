//! Two hosts on one physical network: namespaces with a bridge between them as its switch.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tenon_netdev::{Macvlan, MacvlanMode, Veth};

use crate::ground::Ground;

pub(crate) struct Segment {
    pub(crate) switch: Ground,
    pub(crate) hosts: [Ground; 2],
    /// Each host's link, `eth0`, seen from the host.
    pub(crate) masters: [u32; 2],
}

impl Segment {
    /// `port0` and `port1` are the switch's ports.
    pub(crate) fn new() -> Self {
        let (switch, hosts) = (Ground::new(), [Ground::new(), Ground::new()]);
        switch.tool("ip link add sw type bridge");
        switch.tool("ip link set sw up");
        let mut masters = [0; 2];
        for (n, host) in hosts.iter().enumerate() {
            let port = format!("port{n}");
            let Veth { peer_index, .. } = switch.connect(host, &port, "eth0");
            switch.tool(&format!("ip link set {port} master sw"));
            masters[n] = peer_index;
        }
        let segment = Self { switch, hosts, masters };
        segment.wait_until_it_forwards();
        segment
    }

    /// A bridge opens a port when the kernel's link watch has told of its carrier, which takes up to a second.
    fn wait_until_it_forwards(&self) {
        let start = Instant::now();
        let closed = || {
            let listed: Value = serde_json::from_str(&self.switch.tool("bridge -j link")).unwrap();
            let ports = listed.as_array().unwrap().clone();
            ports.iter().any(|port| port["state"] != "forwarding")
        };
        while closed() {
            assert!(start.elapsed() < Duration::from_secs(5), "the bridge does not open its ports");
            sleep(Duration::from_millis(10));
        }
    }

    /// A pod of this host on the untagged network.
    pub(crate) fn pod(&self, host: usize, mode: MacvlanMode) -> Pod {
        Pod::new(&self.hosts[host], self.masters[host], mode)
    }
}

/// A namespace with its interface `eth0` on the network.
pub(crate) struct Pod {
    pub(crate) ground: Ground,
    pub(crate) index: u32,
    pub(crate) mac: [u8; 6],
}

impl Pod {
    pub(crate) fn new(host: &Ground, master: u32, mode: MacvlanMode) -> Self {
        let ground = Ground::new();
        let netns = Some((&ground.netns, &ground.netlink));
        let macvlan = Macvlan { name: "eth0", master, netns, mode, mac: None, mtu: None, up: true };
        let link = host.netlink.create_macvlan(&macvlan).unwrap();
        Self { ground, index: link.index, mac: link.mac.unwrap() }
    }
}

/// Gives a link addresses that are in use at once.
pub(crate) fn add_addresses(ground: &Ground, link: &str, addresses: &[&str]) {
    for address in addresses {
        let at_once = if address.contains(':') { " nodad" } else { "" };
        ground.tool(&format!("ip address add {address} dev {link}{at_once}"));
    }
}

/// Whether an echo request is answered.
pub(crate) fn pings(from: &Ground, to: &str) -> bool {
    let arguments = ["netns", "exec", &from.name, "ping", "-c1", "-W1", "-q", to];
    Command::new("ip").args(arguments).output().unwrap().status.success()
}

/// Who a host thinks has this address.
pub(crate) fn neighbour(ground: &Ground, link: &str, ip: &str) -> Option<String> {
    let all = ground.ip(&format!("neigh show dev {link}"));
    let entry = all.as_array().unwrap().iter().find(|neighbour| neighbour["dst"] == ip).cloned()?;
    entry["lladdr"].as_str().map(str::to_owned)
}

pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What `ip -d link` says about one link.
pub(crate) fn seen(ground: &Ground, link: &str) -> Value {
    ground.ip(&format!("link show {link}"))[0].clone()
}
