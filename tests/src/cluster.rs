//! A whole cluster, and how a test runs on one.

use std::{net::Ipv4Addr, sync::Arc, thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    command::until,
    datapath::{Datapath, patience},
    error::{BedError, Outcome},
    etcd::{Etcd, NETWORK, POD_NETWORK},
    ground::{Ground, require},
    matrix::Place,
    node::Node,
    threads::joined,
    underlay::{Internet, Underlay, node_address},
};

/// What a cluster is to consist of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many nodes, node1 to nodeN.
    pub nodes: u8,
    /// How many etcd members, 1 or 3.
    pub etcd: u8,
    /// The underlay's MTU in bytes.
    pub mtu: u32,
    /// `PluginName` in `/config`.
    pub plugin: &'static str,
    /// The host bits of a node's subnet, `HostSubnetLength`.
    pub host_bits: u8,
    /// Whether there is a router with the world behind it.
    pub internet: bool,
    /// Whether the agents are started; without, only Open vSwitch, etcd and the underlay are.
    pub agents: bool,
    /// Whether nodes have Open vSwitch; without, their uplink is the kernel's and they serve macvlan pods alone.
    pub overlay: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            nodes: 3,
            etcd: 1,
            mtu: 1500,
            plugin: "k8s-ovs-multitenant",
            host_bits: 10,
            internet: false,
            agents: true,
            overlay: true,
        }
    }
}

impl Plan {
    /// A cluster of so many nodes with one etcd member.
    pub fn nodes(nodes: u8) -> Self {
        Self { nodes, ..Self::default() }
    }

    /// The content of `/config`.
    pub fn config(&self) -> Value {
        json!({
            "Name": NETWORK,
            "Network": POD_NETWORK,
            "HostSubnetLength": self.host_bits,
            "ServiceNetwork": "10.96.0.0/12",
            "PluginName": self.plugin,
        })
    }
}

/// A running cluster. Its parts end in the order of the fields.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The world beyond the underlay's router, if planned.
    pub internet: Option<Internet>,
    /// The store.
    pub etcd: Etcd,
    /// The switch.
    pub underlay: Underlay,
    /// The datapath of all nodes.
    pub datapath: Datapath,
    /// Names and directory.
    pub ground: Arc<Ground>,
}

impl Cluster {
    /// Builds a cluster and waits until every agent is ready.
    pub fn start(plan: &Plan) -> Result<Self, BedError> {
        for (program, package) in [
            ("ip", "iproute2"),
            ("ovs-vswitchd", "openvswitch-switch"),
            ("etcd", "etcd-server"),
            ("etcdctl", "etcd-client"),
            ("ethtool", "ethtool"),
            ("ping", "iputils-ping"),
        ] {
            require(program, package)?;
        }
        let datapath = Datapath::from_env()?;
        let ground = Ground::new()?;
        let underlay = Underlay::create(&ground, plan.mtu)?;
        let etcd = Etcd::start(&ground, &underlay, plan.etcd)?;
        etcd.put_config(&plan.config())?;
        let internet = if plan.internet { Some(Internet::create(&ground, &underlay)?) } else { None };
        let mut cluster = Self { nodes: Vec::new(), internet, etcd, underlay, datapath, ground };
        let made: Vec<Result<Node, BedError>> = thread::scope(|scope| {
            let cluster = &cluster;
            let threads: Vec<_> =
                (1..=plan.nodes).map(|index| scope.spawn(move || cluster.make_node(index, plan))).collect();
            threads.into_iter().map(joined).collect()
        });
        for node in made {
            cluster.nodes.push(node.inspect_err(|_| cluster.ground.fail())?);
        }
        if plan.agents {
            for node in &cluster.nodes {
                let mode = if plan.overlay { "overlay" } else { "macvlan" };
                node.wait_ready_for(mode).inspect_err(|_| cluster.ground.fail())?;
            }
        }
        Ok(cluster)
    }

    fn make_node(&self, index: u8, plan: &Plan) -> Result<Node, BedError> {
        let datapath = plan.overlay.then_some(self.datapath);
        let node = self.node_with(datapath, &format!("node{index}"), node_address(index))?;
        if plan.agents {
            node.launch_agent()?;
        }
        Ok(node)
    }

    /// A further node, or a host outside the cluster, without an agent yet.
    pub fn bare_node(&self, name: &str, address: Ipv4Addr) -> Result<Node, BedError> {
        self.node_with(Some(self.datapath), name, address)
    }

    fn node_with(&self, datapath: Option<Datapath>, name: &str, address: Ipv4Addr) -> Result<Node, BedError> {
        Node::create(&self.ground, &self.underlay, datapath, name, address, self.etcd.endpoints())
    }

    /// A node, counted from 1.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// Adds tenants and waits until each has a VNI.
    pub fn add_tenants(&self, tenants: &[&str]) -> Outcome {
        for tenant in tenants {
            self.etcd.add_tenant(tenant)?;
        }
        Ok(())
    }

    /// The first address of a node's subnet, which is the gateway of its pods.
    pub fn gateway(&self, node: &Node) -> Result<Ipv4Addr, BedError> {
        let key = Etcd::subnet_key(node.address());
        until(&format!("a subnet for {}", node.name()), patience(Duration::from_secs(10)), || {
            let record = self.etcd.record(&key).map_err(|e| e.to_string())?.unwrap_or(Value::Null);
            let subnet = record.get("Subnet").and_then(Value::as_str).and_then(|s| s.split('/').next());
            let network: Option<Ipv4Addr> = subnet.and_then(|s| s.parse().ok());
            match network {
                Some(network) => Ok(Ipv4Addr::from(u32::from(network) + 1)),
                None => Err(record.to_string()),
            }
        })
    }

    /// A node as a place that is known by its address on the overlay.
    pub fn gateway_place(&self, node: &Node) -> Result<Place, BedError> {
        Ok(Place {
            name: format!("gw-{}", node.name()),
            netns: node.netns().path(),
            address: self.gateway(node)?,
        })
    }
}

/// Runs a test on a cluster of its own; when it fails, the servers' logs are printed.
pub fn run(plan: &Plan, test: impl FnOnce(&Cluster) -> Outcome) -> Outcome {
    let cluster = Cluster::start(plan)?;
    test(&cluster).inspect_err(|_| cluster.ground.fail())
}
