//! Network namespaces of a test's own, and the tools that tell what is in them.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tenon_netdev::{NetNs, Netlink, Veth, VethPair};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace that is deleted with all that is in it when the test ends, however it ends.
pub(crate) struct Ground {
    pub(crate) name: String,
    pub(crate) netns: NetNs,
    pub(crate) netlink: Netlink,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let name = format!("tndev-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &name]);
        let netns = NetNs::open(format!("/run/netns/{name}")).unwrap();
        let netlink = Netlink::open_in(&netns).unwrap();
        Self { name, netns, netlink }
    }

    /// A veth pair from here to another namespace, both ends up.
    pub(crate) fn connect(&self, to: &Ground, host_name: &str, peer_name: &str) -> Veth {
        let veth = self.netlink.create_veth(&pair(host_name, peer_name, &to.netns)).unwrap();
        to.netlink.set_up(veth.peer_index).unwrap();
        veth
    }

    /// What `ip -j` says here.
    pub(crate) fn ip(&self, arguments: &str) -> Value {
        let command = format!("ip -d -n {} -j {arguments}", self.name);
        serde_json::from_str(&run(&command.split(' ').collect::<Vec<_>>())).unwrap()
    }

    /// What another tool says here.
    pub(crate) fn tool(&self, command: &str) -> String {
        let command = format!("ip netns exec {} {command}", self.name);
        run(&command.split(' ').collect::<Vec<_>>())
    }

    /// The names of all links but the loopback.
    pub(crate) fn link_names(&self) -> Vec<String> {
        let links = self.ip("link");
        let names = links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned());
        names.filter(|name| name != "lo").collect()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "del", &self.name]).status();
        if !std::thread::panicking() {
            assert!(deleted.unwrap().success());
        }
    }
}

pub(crate) fn pair<'a>(host_name: &'a str, peer_name: &'a str, peer_netns: &'a NetNs) -> VethPair<'a> {
    VethPair {
        host_name,
        peer_name,
        peer_netns,
        mtu: 1450,
        host_mac: None,
        peer_mac: None,
        host_alias: None,
        host_up: true,
        host_group: 0,
        queues: 1,
    }
}

fn run(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
