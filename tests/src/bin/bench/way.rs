//! Ways of attaching pods: Tenon's, the reference plugins', and that of Tenon's ancestor.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use tenon_tests::{
    BedError, Cluster,
    cni::{Attachment, Cni},
    command::Tool,
    netns::Netns,
    node::{BRIDGE, Node},
};

const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
const ANCESTOR: &str = include_str!("ancestor.sh");
/// Any address of the underlay that no other machine of the cluster has.
const ANCESTOR_ADDRESS: [u8; 4] = [10, 0, 0, 99];

/// ADD or DEL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
}

/// A way of attaching pods, on a node of its own.
#[derive(Debug)]
pub(crate) enum Way {
    Tenon(Cni),
    Reference(Reference),
    Ancestor(Box<Ancestor>),
}

impl Way {
    /// The program that attaches or detaches `pod`, ready to run.
    pub(crate) fn tool(&self, verb: Verb, pod: &Attachment) -> Tool {
        match self {
            Self::Tenon(cni) => cni.tool(verb.name(), Some(pod), &cni.config().to_string()),
            Self::Reference(reference) => reference.tool(verb, pod),
            Self::Ancestor(ancestor) => ancestor.tool(verb, pod),
        }
    }
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
        }
    }
}

/// A plugin of the CNI project with its `host-local`, in a namespace of its own.
#[derive(Debug)]
pub(crate) struct Reference {
    plugin: &'static str,
    config: String,
    netns: Netns,
}

impl Reference {
    /// `bridge`.
    pub(crate) fn bridge(cluster: &Cluster) -> Result<Self, BedError> {
        let keys = json!({"bridge": "cni0", "isGateway": true, "isDefaultGateway": true});
        let netns = Netns::create(&cluster.ground, "bridge")?;
        Ok(Self::new("bridge", cluster, netns, keys))
    }

    /// `macvlan` on a link of the namespace.
    pub(crate) fn macvlan(cluster: &Cluster, netns: Netns, master: &str) -> Self {
        Self::new("macvlan", cluster, netns, json!({"master": master, "mode": "bridge"}))
    }

    fn new(plugin: &'static str, cluster: &Cluster, netns: Netns, keys: Value) -> Self {
        let leases = cluster.ground.dir().join("host-local");
        let mut config = json!({
            "cniVersion": "1.0.0",
            "name": "bench",
            "type": plugin,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.88.0.0/16" }]], "dataDir": leases },
        });
        if let (Some(fields), Value::Object(keys)) = (config.as_object_mut(), keys) {
            fields.extend(keys);
        }
        Self { plugin, config: config.to_string(), netns }
    }

    fn tool(&self, verb: Verb, pod: &Attachment) -> Tool {
        Tool::new(format!("{REFERENCE_PLUGINS}/{}", self.plugin))
            .inside(self.netns.path())
            .clear_env()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_PATH", REFERENCE_PLUGINS)
            .env("CNI_COMMAND", verb.name())
            .env("CNI_CONTAINERID", &pod.container)
            .env("CNI_NETNS", pod.netns.clone().unwrap_or_default())
            .env("CNI_IFNAME", &pod.interface)
            .input(&self.config)
    }
}

/// A shell script that runs `ip`, `ovs-vsctl` and `ovs-ofctl`, on a node with its own Open vSwitch.
#[derive(Debug)]
pub(crate) struct Ancestor {
    script: PathBuf,
    node: Node,
}

impl Ancestor {
    pub(crate) fn new(cluster: &Cluster) -> Result<Self, BedError> {
        let node = cluster.bare_node("ancestor", ANCESTOR_ADDRESS.into())?;
        let datapath = format!("datapath_type={}", cluster.datapath.name());
        node.ovs().vsctl(&[
            "add-br",
            BRIDGE,
            "--",
            "set",
            "bridge",
            BRIDGE,
            "fail_mode=secure",
            &datapath,
        ])?;
        let script = cluster.ground.dir().join("ancestor.sh");
        fs::write(&script, ANCESTOR)
            .map_err(|e| BedError::system(format!("write {}", script.display()), e))?;
        Ok(Self { script, node })
    }

    fn tool(&self, verb: Verb, pod: &Attachment) -> Tool {
        let verb = match verb {
            Verb::Add => "attach",
            Verb::Del => "detach",
        };
        // A container id of the bed begins with eight hexadecimal digits that count.
        let number = pod.container.get(..8).unwrap_or_default();
        let [_, _, high, low] = u32::from_str_radix(number, 16).unwrap_or_default().to_be_bytes();
        let netns = pod.netns.as_deref().and_then(|path| path.file_name()).unwrap_or_default();
        Tool::new("/bin/sh").inside(self.node.netns().path()).args([
            &self.script.display().to_string(),
            verb,
            &self.node.ovs().dir().display().to_string(),
            &netns.to_string_lossy(),
            &format!("v{number}"),
            &format!("10.77.{high}.{low}"),
            &format!("0a:58:0a:4d:{high:02x}:{low:02x}"),
            "0x64",
        ])
    }
}
