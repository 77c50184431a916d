//! Physical networks that pods join by macvlan: a switch beside the underlay with a port for every node, machines on
//! it that are no pods, and the segments and leases of it in the store.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    Cluster, Plan,
    cni::Reply,
    command::{Tool, until},
    datapath::patience,
    error::{BedError, Outcome},
    etcd::{Etcd, NETWORK, PREFIX},
    ground::Ground,
    matrix::Place,
    netns::Netns,
    node::Node,
    pod::Pod,
    run,
};

/// The nodes' link on the physical network: the `Master` of a segment's record.
pub const MASTER: &str = "eth1";
/// What the machine that is a segment's router has; see [`record`].
pub const GATEWAY: &str = "10.100.0.1";
/// An address that the segment of [`record`] does not give out.
pub const MACHINE: &str = "10.100.0.200";

/// A segment's record: untagged, the addresses 10.100.0.10 to .99 of 10.100.0.0/24, not asking whether an address is
/// in use. `changes` replace or add fields.
pub fn record(name: &str, changes: &Value) -> Value {
    let mut record = json!({
        "Name": name, "Master": MASTER, "Vlan": 0, "Mode": "bridge",
        "Subnet": "10.100.0.0/24", "Gateway": GATEWAY,
        "RangeStart": "10.100.0.10", "RangeEnd": "10.100.0.99",
        "Exclude": [], "Routes": [], "Mtu": 0, "HostAccess": true, "ProbeMs": 0,
    });
    if let (Some(fields), Some(changes)) = (record.as_object_mut(), changes.as_object()) {
        fields.extend(changes.clone());
    }
    record
}

/// Runs a test on so many nodes that are plugged into one physical switch, with these segments in the store.
pub fn on_segments(
    nodes: u8,
    segments: &[Value],
    test: impl FnOnce(&Cluster, &Switch) -> Outcome,
) -> Outcome {
    run(&Plan::nodes(nodes), |cluster| {
        let switch = Switch::create(cluster, "lan", MASTER)?;
        for segment in segments {
            cluster.etcd.put_segment(segment)?;
        }
        test(cluster, &switch)
    })
}

/// A machine as a place that probes go from and to.
pub fn place(name: &str, netns: &Netns, address: &str) -> Place {
    let address = address.parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
    Place { name: name.to_owned(), netns: netns.path(), address }
}

/// Runs an ADD that has to fail with an error of the spec's form.
pub fn refused(pod: &Pod) -> Result<Reply, BedError> {
    let reply = pod.cni.call("ADD", Some(&pod.attachment))?;
    if reply.success || reply.code().is_none() {
        return Err(BedError::answer(format!("an ADD of {} to be refused", pod.attachment.pod), reply.text));
    }
    Ok(reply)
}

/// A Linux bridge in a namespace of its own: the physical switch.
#[derive(Debug)]
pub struct Switch {
    netns: Netns,
    ground: Arc<Ground>,
}

impl Switch {
    /// Makes a switch called `name` and plugs every node of the cluster in by a link called `link`.
    pub fn create(cluster: &Cluster, name: &str, link: &str) -> Result<Self, BedError> {
        let netns = Netns::create(&cluster.ground, name)?;
        netns.ip(&["link", "add", "sw0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0"])?;
        netns.ip(&["link", "set", "sw0", "up"])?;
        let switch = Self { netns, ground: Arc::clone(&cluster.ground) };
        for node in &cluster.nodes {
            switch.plug(node.netns(), link, node.name())?;
        }
        Ok(switch)
    }

    /// Plugs a namespace in: it gets a link, up, without an address; the switch's port is called `port`.
    pub fn plug(&self, netns: &Netns, link: &str, port: &str) -> Outcome {
        self.netns.ip(&["link", "add", port, "type", "veth", "peer", "name", link, "netns", netns.name()])?;
        self.netns.ip(&["link", "set", port, "master", "sw0", "up"])?;
        netns.ip(&["link", "set", link, "up"]).map(|_| ())
    }

    /// A machine that is no pod, on a port of its own name, with a link `eth0` that has these addresses (with prefix
    /// lengths).
    pub fn machine(&self, name: &str, addresses: &[&str]) -> Result<Netns, BedError> {
        let netns = Netns::create(&self.ground, name)?;
        self.plug(&netns, "eth0", name)?;
        for address in addresses {
            // It is not asked whether somebody else has an IPv6 address: that takes seconds.
            let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            netns.ip(&[&["addr", "add", address, "dev", "eth0"], nodad].concat())?;
        }
        Ok(netns)
    }

    /// From now on the switch knows VLANs, and the ports of `trunks` carry those of `vlans` tagged (IEEE 802.1Q), as
    /// well as untagged frames.
    pub fn trunk(&self, trunks: &[&str], vlans: &[u16]) -> Outcome {
        self.netns.ip(&["link", "set", "sw0", "type", "bridge", "vlan_filtering", "1"])?;
        for port in trunks {
            for vlan in vlans {
                self.vlan(&["add", "dev", port, "vid", &vlan.to_string()])?;
            }
        }
        Ok(())
    }

    /// Makes a port one of a single VLAN, without tags on the wire.
    pub fn access(&self, port: &str, vlan: u16) -> Outcome {
        self.vlan(&["del", "dev", port, "vid", "1"])?;
        self.vlan(&["add", "dev", port, "vid", &vlan.to_string(), "pvid", "untagged"])
    }

    /// Whether the switch sends frames back to the port that they came from (reflective relay, IEEE 802.1Qbg).
    pub fn set_hairpin(&self, port: &str, on: bool) -> Outcome {
        let state = if on { "on" } else { "off" };
        let args = ["-n", self.netns.name(), "link", "set", "dev", port, "hairpin", state];
        Tool::new("bridge").args(args).run().map(|_| ())
    }

    fn vlan(&self, args: &[&str]) -> Outcome {
        Tool::new("bridge").args(["-n", self.netns.name(), "vlan"]).args(args).run().map(|_| ())
    }
}

impl Node {
    /// A pod's namespace, to be attached to a segment. The network is called as the segment is.
    pub fn segment_sandbox(&self, segment: &str, tenant: &str, name: &str) -> Result<Pod, BedError> {
        let mut pod = self.sandbox(tenant, name)?;
        pod.cni = pod.cni.with("mode", json!("macvlan")).with("segment", json!(segment));
        pod.cni.network = segment.to_owned();
        Ok(pod)
    }

    /// Makes a pod and attaches it to a segment.
    pub fn segment_pod(&self, segment: &str, tenant: &str, name: &str) -> Result<Pod, BedError> {
        let mut pod = self.segment_sandbox(segment, tenant, name)?;
        pod.add()?;
        Ok(pod)
    }

    /// The address that this node has where it sends something to `to`.
    pub fn source_towards(&self, to: IpAddr) -> Result<IpAddr, BedError> {
        let text = self.netns().ip(&["route", "get", &to.to_string()])?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "src").skip(1);
        let source = words.next().and_then(|word| word.parse().ok());
        source.ok_or_else(|| BedError::answer(format!("a source address towards {to}"), text))
    }
}

impl Pod {
    /// The addresses of the result, in its order.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, BedError> {
        let result = self.result()?;
        let ips = result.json.get("ips").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        ips.iter()
            .map(|ip| {
                let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
                text.split('/').next().unwrap_or_default().parse()
            })
            .collect::<Result<_, _>>()
            .map_err(|_| BedError::answer("the addresses in a result", result.text.clone()))
    }

    /// The MAC address that the result names.
    pub fn result_mac(&self) -> Result<String, BedError> {
        let result = self.result()?;
        result.mac().ok_or_else(|| BedError::answer("the MAC address in a result", result.text.clone()))
    }
}

/// The MAC address of a namespace's `eth0`, as people write it.
pub fn mac_of(netns: &Netns) -> Result<String, BedError> {
    let text = netns.ip(&["-o", "link", "show", "eth0"])?;
    let mac = text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    mac.map(str::to_owned).ok_or_else(|| BedError::answer("the MAC address of eth0", text))
}

/// Whether `ping -6` gets an answer within a second.
pub fn ping6(from: &Netns, to: Ipv6Addr) -> Result<bool, BedError> {
    let wait = patience(Duration::from_secs(1)).as_secs().to_string();
    let args = ["-6", "-n", "-q", "-c", "10", "-i", "0.1", "-w", &wait, &to.to_string()];
    let output = Tool::new("ping").inside(from.path()).args(args).output()?;
    Ok(!output.stdout.contains(" 0 received"))
}

impl Etcd {
    /// Puts a segment's record as an administrator does.
    pub fn put_segment(&self, record: &Value) -> Outcome {
        let name = record.get("Name").and_then(Value::as_str).unwrap_or_default();
        self.put(&format!("/{NETWORK}/segments/{name}"), &record.to_string())
    }

    /// The key of a lease.
    pub fn lease_key(segment: &str, ip: impl std::fmt::Display) -> String {
        format!("/{NETWORK}/leases/{segment}/{ip}")
    }

    /// All records under a segment's leases, by address as it is written there.
    pub fn leases(&self, segment: &str) -> Result<BTreeMap<String, Value>, BedError> {
        let prefix = format!("{PREFIX}/{NETWORK}/leases/{segment}/");
        let text = self.ctl(&["get", "--prefix", "--print-value-only", &prefix])?;
        let read = |line: &str| {
            let lease: Value = serde_json::from_str(line).ok()?;
            Some((lease.get("IP")?.as_str()?.to_owned(), lease))
        };
        text.lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| read(line).ok_or_else(|| BedError::answer("read a lease", line)))
            .collect()
    }

    /// The leases of a segment that somebody holds: the address, and the container and interface that hold it.
    pub fn held(&self, segment: &str) -> Result<BTreeMap<String, (String, String)>, BedError> {
        let text = |lease: &Value, key| lease.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let leases = self.leases(segment)?.into_iter();
        let held = leases.filter(|(_, lease)| lease.get("Released").is_none());
        Ok(held.map(|(ip, lease)| (ip, (text(&lease, "ContainerID"), text(&lease, "IfName")))).collect())
    }

    /// Waits until exactly these addresses of a segment are held, by the containers and interfaces named.
    pub fn wait_for_held(
        &self,
        segment: &str,
        expected: &BTreeMap<String, (String, String)>,
        limit: Duration,
    ) -> Outcome {
        until(&format!("the leases of the live pods alone on {segment}"), patience(limit), || {
            let held = self.held(segment).map_err(|e| e.to_string())?;
            if held == *expected {
                return Ok(());
            }
            let surplus: Vec<_> = held.iter().filter(|(ip, who)| expected.get(*ip) != Some(*who)).collect();
            let missing: Vec<_> = expected.iter().filter(|(ip, who)| held.get(*ip) != Some(*who)).collect();
            Err(format!("held without a pod: {surplus:?}; pods without a lease: {missing:?}"))
        })
    }
}

/// What the leases of these pods have to be.
pub fn held_by(pods: &[&Pod]) -> Result<BTreeMap<String, (String, String)>, BedError> {
    let mut held = BTreeMap::new();
    for pod in pods {
        let who = (pod.attachment.container.clone(), pod.attachment.interface.clone());
        for ip in pod.addresses()? {
            if let Some(other) = held.insert(ip.to_string(), who.clone()) {
                return Err(BedError::answer("distinct addresses", format!("{ip}: {other:?} and {who:?}")));
            }
        }
    }
    Ok(held)
}
