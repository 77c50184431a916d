//! The controller's rounds against a real etcd, with a grace time that a test can wait for.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tenon_netdev::Netlink;
use tenon_store::{Compare, Event, Keys, Options, Store};
use tokio::time::{sleep, timeout};

use super::tidy::go_rounds;
use crate::config::Config;
use crate::node::Node;
use crate::{bridge, reaper, reconciler};

const NETWORK: &str = "k8ssdn";
const PREFIX: &str = "/k8s.ovs.com/ovs/network";
const INTERVAL: Duration = Duration::from_millis(100);
const GRACE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);

/// An etcd on the loopback of the calling thread's namespace; it ends with this value.
struct Etcd(Child);

impl Etcd {
    fn start(dir: &Path) -> Self {
        let url = "http://127.0.0.1:2379";
        let peers = "http://127.0.0.1:2380";
        let process = Command::new("etcd")
            .args(["--name=m", "--data-dir", dir.join("etcd").to_str().unwrap()])
            .args(["--listen-client-urls", url, "--advertise-client-urls", url])
            .args(["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers])
            .arg(format!("--initial-cluster=m={peers}"))
            .args(["--logger=zap", "--log-level=error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let etcd = Self(process);
        let start = Instant::now();
        while etcdctl(&["endpoint", "health"]).is_none() {
            assert!(start.elapsed() < PATIENCE, "etcd does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        etcd
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn etcdctl(arguments: &[&str]) -> Option<String> {
    let output = Command::new("etcdctl").env("ETCDCTL_API", "3").args(arguments).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

fn put(key: &str, value: &Value) {
    etcdctl(&["put", &format!("{PREFIX}/{NETWORK}/{key}"), &value.to_string()]).unwrap();
}

fn delete(key: &str) {
    etcdctl(&["del", &format!("{PREFIX}/{NETWORK}/{key}")]).unwrap();
}

fn put_lease(node: &str, ip: &str, container: &str) {
    let lease = json!({
        "IP": ip, "MAC": "02:00:00:00:00:01", "Node": node, "ContainerID": container, "IfName": "eth0",
        "PodNamespace": "a", "PodName": container, "Netns": "/run/netns/none",
    });
    put(&format!("leases/lan/{ip}"), &lease);
}

/// The holders by address, as etcdctl sees them; of an address that was released, with when.
fn leases() -> BTreeMap<String, (String, Option<u64>)> {
    let prefix = format!("{PREFIX}/{NETWORK}/leases/");
    let text = etcdctl(&["get", "--prefix", "--print-value-only", &prefix]).unwrap();
    let lease = |line: &str| {
        let lease: Value = serde_json::from_str(line).unwrap();
        let text = |key| lease[key].as_str().unwrap().to_owned();
        (text("IP"), (text("ContainerID"), lease["Released"].as_u64()))
    };
    text.lines().map(lease).collect()
}

fn is_released(ip: &str) -> bool {
    leases().get(ip).is_some_and(|(_, released)| released.is_some())
}

/// Runs a test in a network namespace of its own with an etcd, on one thread.
fn with_etcd<F: Future<Output = ()>>(test: impl FnOnce(Arc<Node>) -> F + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let netlink = Netlink::open().unwrap();
        netlink.set_up(netlink.link_by_name("lo").unwrap().unwrap().index).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let _etcd = Etcd::start(dir.path());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(PATIENCE * 2, test(node(dir.path()))).await.unwrap() });
    };
    std::thread::spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A node without Open vSwitch and without pods.
fn node(dir: &Path) -> Arc<Node> {
    let file = dir.join("agent.toml");
    let text = format!(
        "[node]\nname = \"node1\"\nip = \"10.0.0.1\"\nsocket = {:?}\n[ovs]\ndb = \"unix:{}\"\nrundir = {dir:?}\n\
         [etcd]\nprefix = {PREFIX:?}\n[kubernetes]\nenabled = false\n",
        dir.join("agent.sock"),
        dir.join("db.sock").display(),
    );
    std::fs::write(&file, text).unwrap();
    let config = Config::read(&file).unwrap();
    let bridge = bridge::Bridge::new(bridge::client(&config.ovs).unwrap(), config.ovs.clone());
    let reconciler = reconciler::Reconciler::start(dir.join("br0.mgmt"));
    let store = Store::connect(Options::default()).unwrap();
    let macvlan = super::Macvlan::start(&config, config.ip.unwrap()).unwrap();
    Node::new(config, bridge, reconciler, reaper::Reaper::start().unwrap(), store, macvlan)
}

/// Keeps the node's view of etcd, as the follower of the cluster does.
async fn follow(node: &Node) {
    let keys = Keys::new(PREFIX);
    let mut watch = node.store.watch(keys.all());
    loop {
        match watch.next().await {
            Event::Snapshot { kvs, revision } => {
                node.macvlan.replace(&keys, NETWORK, keys.network(NETWORK).unwrap(), &kvs, revision);
            }
            Event::Changes { changes, .. } => node.macvlan.take_in(&keys, NETWORK, &changes),
        }
    }
}

async fn until(mut seen: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !seen() {
        sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

fn put_cluster() {
    put("segments/lan", &json!({"Name": "lan", "Master": "eth0", "Subnet": "10.100.0.0/24"}));
    for (number, ip) in [(1, "10.100.0.11"), (2, "10.100.0.12"), (3, "10.100.0.13")] {
        let name = format!("node{number}");
        put(&format!("agents/10.0.0.{number}"), &json!({ "Host": name }));
        put_lease(&name, ip, &format!("c{number}"));
    }
    put("controller", &json!("node1"));
}

fn fence(value: &Value) -> Compare {
    Compare::Value(format!("{PREFIX}/{NETWORK}/controller"), value.to_string().into())
}

#[test]
fn leases_of_a_node_that_is_gone_come_back() {
    with_etcd(|node| async move {
        put_cluster();
        let fence = fence(&json!("node1"));
        let test = async {
            sleep(GRACE * 2).await;
            assert!(!["10.100.0.11", "10.100.0.12", "10.100.0.13"].into_iter().any(is_released));
            delete("agents/10.0.0.2");
            let taken = until(|| is_released("10.100.0.12")).await;
            assert!(taken >= GRACE - INTERVAL, "after {taken:?}");
            // Its own node and living ones keep theirs.
            delete("agents/10.0.0.1");
            sleep(GRACE * 2).await;
            assert!(!["10.100.0.11", "10.100.0.13"].into_iter().any(is_released));
        };
        tokio::select! {
            () = follow(&node) => {}
            () = go_rounds(&node, &fence, INTERVAL, GRACE) => {}
            () = test => {}
        }
    });
}

/// The watch may lag: what was written to a lease meanwhile stands, and so does everything once another controller rules.
#[test]
fn what_others_wrote_meanwhile_stands() {
    with_etcd(|node| async move {
        put_cluster();
        delete("agents/10.0.0.2");
        // The view ends here.
        let seen = async {
            while node.macvlan.obstacle().is_some() {
                sleep(INTERVAL).await
            }
        };
        tokio::select! { () = follow(&node) => {}, () = seen => {} }
        put_lease("node3", "10.100.0.12", "new");
        let before = leases();
        let fence = fence(&json!("node1"));
        let rounds = go_rounds(&node, &fence, INTERVAL, GRACE);
        assert!(timeout(GRACE * 2, rounds).await.is_err());
        assert_eq!(leases(), before);

        put_lease("node2", "10.100.0.12", "of-node2-again");
        put("controller", &json!("node3"));
        let before = leases();
        let both = async {
            tokio::select! {
                () = follow(&node) => {}
                () = go_rounds(&node, &fence, INTERVAL, GRACE) => {}
            }
        };
        assert!(timeout(GRACE * 2, both).await.is_err());
        assert_eq!(leases(), before);
    });
}
