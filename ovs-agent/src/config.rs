//! `agent.toml`: what the administrator typed ([`File`]) and what the agent runs with ([`Config`]).
//!
//! Every key may be left out; a key that is not known is an error that names it, because a misspelt key that is
//! silently ignored is found at three in the morning.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

/// The file as typed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct File {
    node: NodeSection,
    etcd: EtcdSection,
    ovs: OvsSection,
    kubernetes: KubernetesSection,
    metrics: MetricsSection,
    segments: BTreeMap<String, SegmentSection>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct NodeSection {
    name: Option<String>,
    ip: Option<String>,
    socket: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EtcdSection {
    endpoints: Option<Vec<String>>,
    prefix: Option<String>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    username: Option<String>,
    password_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct OvsSection {
    db: Option<String>,
    rundir: Option<PathBuf>,
    bridge: Option<String>,
    datapath: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct KubernetesSection {
    enabled: Option<toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MetricsSection {
    listen: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SegmentSection {
    master: Option<String>,
}

/// What the agent runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) node: String,
    /// The underlay address; `None` asks for the source address of the default route.
    pub(crate) ip: Option<Ipv4Addr>,
    pub(crate) socket: PathBuf,
    pub(crate) etcd: Etcd,
    pub(crate) ovs: Ovs,
    pub(crate) metrics: SocketAddr,
    /// The interfaces that are segments' masters on this node, where the segments' records name others.
    pub(crate) masters: BTreeMap<String, String>,
}

/// How to reach etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Etcd {
    pub(crate) endpoints: Vec<String>,
    pub(crate) prefix: String,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) cert_file: Option<PathBuf>,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) username: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
}

/// How to reach Open vSwitch, and the bridge that is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ovs {
    pub(crate) db: String,
    pub(crate) rundir: PathBuf,
    pub(crate) bridge: String,
    pub(crate) datapath: Datapath,
}

/// `datapath_type` of the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Datapath {
    /// The kernel's openvswitch module.
    System,
    /// ovs-vswitchd forwards in user space: it reads frames before the kernel has filled in their checksums, so
    /// checksum offload is turned off on what the agent makes.
    Netdev,
}

impl Datapath {
    /// The value of OVSDB's `Bridge.datapath_type`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Netdev => "netdev",
        }
    }
}

/// Why a configuration file cannot be used.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {message}")]
    Syntax { path: PathBuf, message: String },
    #[error("{path}: {key} = {value}: {reason}")]
    Value { path: PathBuf, key: &'static str, value: String, reason: String },
}

impl Config {
    /// Reads and resolves the file at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text)
            .map_err(|e| ConfigError::Syntax { path: path.to_owned(), message: e.to_string() })?;
        let wrong = |key, value: &dyn ToString, reason: &str| ConfigError::Value {
            path: path.to_owned(),
            key,
            value: value.to_string(),
            reason: reason.to_owned(),
        };

        let node = match file.node.name {
            Some(name) if name.is_empty() || name.contains('/') => {
                return Err(wrong("node.name", &name, "must be a host name"));
            }
            Some(name) => name,
            None => host_name(path)?,
        };
        let ip = match file.node.ip {
            None => None,
            Some(text) => match text.parse::<IpAddr>() {
                Ok(IpAddr::V4(ip)) if !ip.is_unspecified() && !ip.is_multicast() => Some(ip),
                Ok(_) => return Err(wrong("node.ip", &text, "must be a unicast IPv4 address of this node")),
                Err(e) => return Err(wrong("node.ip", &text, &e.to_string())),
            },
        };

        let endpoints = file.etcd.endpoints.unwrap_or_else(|| vec!["http://127.0.0.1:2379".into()]);
        if endpoints.is_empty() {
            return Err(wrong("etcd.endpoints", &"[]", "name at least one endpoint"));
        }
        for endpoint in &endpoints {
            if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
                return Err(wrong("etcd.endpoints", endpoint, "must start with http:// or https://"));
            }
        }
        let prefix = file.etcd.prefix.unwrap_or_else(|| "/k8s.ovs.com/ovs/network".into());
        if !prefix.starts_with('/') || prefix.ends_with('/') {
            return Err(wrong("etcd.prefix", &prefix, "must start with / and not end with one"));
        }
        if file.etcd.cert_file.is_some() != file.etcd.key_file.is_some() {
            return Err(wrong("etcd.cert_file", &"", "cert_file and key_file go together"));
        }
        if file.etcd.username.is_some() != file.etcd.password_file.is_some() {
            return Err(wrong("etcd.username", &"", "username and password_file go together"));
        }

        let datapath = match file.ovs.datapath.as_deref() {
            None | Some("system") => Datapath::System,
            Some("netdev") => Datapath::Netdev,
            Some(other) => return Err(wrong("ovs.datapath", &other, "must be system or netdev")),
        };
        let bridge = file.ovs.bridge.unwrap_or_else(|| "br0".into());
        if bridge.is_empty() || bridge.len() > 15 || bridge.contains(['/', ' ']) {
            return Err(wrong("ovs.bridge", &bridge, "must be an interface name of 1 to 15 characters"));
        }

        match file.kubernetes.enabled {
            None | Some(toml::Value::Boolean(false)) => {}
            Some(toml::Value::String(text)) if text == "auto" => {}
            Some(toml::Value::Boolean(true)) => {
                return Err(wrong("kubernetes.enabled", &"true", "this build does not watch Kubernetes"));
            }
            Some(other) => {
                return Err(wrong("kubernetes.enabled", &other, "must be true, false or \"auto\""));
            }
        }
        let listen = file.metrics.listen.unwrap_or_else(|| "127.0.0.1:9460".into());
        let metrics = listen.parse().map_err(|_| wrong("metrics.listen", &listen, "must be ADDRESS:PORT"))?;

        let mut masters = BTreeMap::new();
        for (segment, section) in file.segments {
            let Some(master) = section.master else { continue };
            if master.is_empty() || master.len() > 15 || master.contains(['/', ' ']) {
                let named = format!("{segment}: {master}");
                return Err(wrong(
                    "segments.*.master",
                    &named,
                    "must be an interface name of 1 to 15 characters",
                ));
            }
            masters.insert(segment, master);
        }

        Ok(Self {
            node,
            ip,
            socket: file.node.socket.unwrap_or_else(|| "/run/tenon/agent.sock".into()),
            etcd: Etcd {
                endpoints,
                prefix,
                ca_file: file.etcd.ca_file,
                cert_file: file.etcd.cert_file,
                key_file: file.etcd.key_file,
                username: file.etcd.username,
                password_file: file.etcd.password_file,
            },
            ovs: Ovs {
                db: file.ovs.db.unwrap_or_else(|| "unix:/var/run/openvswitch/db.sock".into()),
                rundir: file.ovs.rundir.unwrap_or_else(|| "/var/run/openvswitch".into()),
                bridge,
                datapath,
            },
            metrics,
            masters,
        })
    }
}

fn host_name(path: &Path) -> Result<String, ConfigError> {
    let unusable = |reason: String| ConfigError::Value {
        path: path.to_owned(),
        key: "node.name",
        value: "(the host name)".into(),
        reason,
    };
    nix::unistd::gethostname()
        .map_err(|e| unusable(e.to_string()))?
        .into_string()
        .map_err(|_| unusable("is not UTF-8; set node.name".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("agent.toml"), text)
    }

    #[test]
    fn every_key_can_be_left_out() {
        let config = parse("").unwrap();
        assert_eq!(config.socket, Path::new("/run/tenon/agent.sock"));
        assert_eq!(config.etcd.prefix, "/k8s.ovs.com/ovs/network");
        assert_eq!(config.ovs.bridge, "br0");
        assert_eq!(config.ovs.datapath, Datapath::System);
        assert_eq!(config.metrics, "127.0.0.1:9460".parse().unwrap());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("[node]\nnmae = \"x\"", "nmae"),
            ("[nodes]", "nodes"),
            ("[node]\nip = \"10.0.0.256\"", "node.ip = 10.0.0.256"),
            ("[node]\nip = \"fd00::1\"", "IPv4"),
            ("[etcd]\nendpoints = []", "etcd.endpoints"),
            ("[etcd]\nendpoints = [\"10.0.0.1:2379\"]", "http://"),
            ("[etcd]\nprefix = \"x\"", "etcd.prefix"),
            ("[etcd]\ncert_file = \"/x\"", "key_file"),
            ("[etcd]\nusername = \"x\"", "password_file"),
            ("[ovs]\ndatapath = \"dpdk\"", "dpdk"),
            ("[ovs]\nbridge = \"a-name-that-is-too-long\"", "15 characters"),
            ("[kubernetes]\nenabled = \"maybe\"", "maybe"),
            ("[metrics]\nlisten = \"9460\"", "metrics.listen"),
            ("[segments.v1]\nmastre = \"eth1\"", "mastre"),
            ("[segments.v1]\nmaster = \"eth 1\"", "v1: eth 1"),
            ("[node", "agent.toml"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text:?} gave {error:?}, which does not name {named:?}");
        }
    }

    #[test]
    fn the_shipped_file_says_the_defaults() {
        let shipped = include_str!("../../conf/agent.toml");
        let mut config = parse(shipped).unwrap();
        let defaults = parse("").unwrap();
        assert_eq!((config.node.as_str(), config.ip), ("node1", Some(Ipv4Addr::new(10, 0, 0, 1))));
        (config.node, config.ip) = (defaults.node.clone(), defaults.ip);
        assert_eq!(config, defaults);
    }
}
