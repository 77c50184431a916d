//! The network configuration: as it was typed, and what it means.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::address::{Mac, RequestedIp};
use crate::arguments::{Verb, ifname_fault, is_name};
use crate::bandwidth::Bandwidth;
use crate::error::Error;
use crate::result::{Dns, Success};
use crate::version::Version;

/// Where the agent listens unless the configuration says otherwise.
pub const DEFAULT_AGENT_SOCKET: &str = "/run/tenon/agent.sock";

/// The pod annotation that asks for a macvlan segment.
pub const SEGMENT_ANNOTATION: &str = "tenon.io/segment";

/// The capability under which a runtime hands over the pod's annotations.
const ANNOTATIONS_CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";

/// Where GC finds the attachments that stay: the specification's key, and the one that runtimes sent before it.
const ATTACHMENT_KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// A network configuration as typed: any JSON object. Keys that Tenon does not know are kept, for they may be meant for
/// a delegated plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct RawConf(Map<String, Value>);

impl RawConf {
    /// Reads a configuration from what a runtime writes to a plugin's standard input.
    ///
    /// # Errors
    /// Code 6 if it is not JSON, or not an object.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let value = serde_json::from_slice(bytes).map_err(|e| {
            Error::decoding_failure("the network configuration is not JSON").with_details(e.to_string())
        })?;
        Self::from_value(value)
    }

    pub(crate) fn from_value(value: Value) -> Result<Self, Error> {
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            _ => Err(Error::decoding_failure("the network configuration is not a JSON object")),
        }
    }

    /// The fields as typed.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The version of the configuration.
    ///
    /// # Errors
    /// Code 1 if Tenon does not speak it, 6 if it is not text.
    pub fn version(&self) -> Result<Version, Error> {
        match self.0.get("cniVersion") {
            None | Some(Value::Null) => Version::parse(""),
            Some(Value::String(text)) => Version::parse(text),
            Some(other) => Err(Error::decoding_failure(format!("cniVersion: {other} is not text"))),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(Error::invalid_config(format!("{key}: {other} is not text"))),
        }
    }

    fn object(&self, key: &str) -> Result<Option<&Map<String, Value>>, Error> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(fields)),
            Some(other) => Err(Error::invalid_config(format!("{key}: {other} is not an object"))),
        }
    }
}

/// How pods of the network are attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// A port of the node's Open vSwitch bridge, and VXLAN between nodes.
    #[default]
    Overlay,
    /// A macvlan interface on a segment of the physical network.
    Macvlan,
}

/// Addressing that is left to another plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipam {
    /// The name of the plugin's executable, to be found in `CNI_PATH`.
    pub plugin: String,
}

/// One interface of one container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attachment {
    /// The container.
    pub container_id: String,
    /// The interface inside the container.
    pub ifname: String,
}

/// What a network configuration means. See [`resolve`](Self::resolve).
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// The version in which to answer.
    pub version: Version,
    /// The network; part of the key under which attachments are kept.
    pub name: String,
    /// `type`: the name of the executable that the runtime calls.
    pub plugin: String,
    /// How pods are attached.
    pub mode: Mode,
    /// Where the agent listens.
    pub agent_socket: PathBuf,
    /// The macvlan segment of the network. What the pod itself asks for comes first: see
    /// [`Request::segment`](crate::Request::segment).
    pub segment: Option<String>,
    /// The pod's limits, and where it has none, those of the network.
    pub bandwidth: Bandwidth,
    /// Addressing by another plugin.
    pub ipam: Option<Ipam>,
    /// DNS settings of the network, which a main plugin passes on in its result.
    pub dns: Dns,
    /// `runtimeConfig.ips`: addresses that the pod asks for.
    pub ips: Vec<RequestedIp>,
    /// `runtimeConfig.mac`: the MAC address that the pod asks for.
    pub mac: Option<Mac>,
    /// The pod's annotations, where the runtime hands them over.
    pub annotations: BTreeMap<String, String>,
    /// What the network's configuration file says about capabilities; runtimes replace it by `runtimeConfig`.
    pub capabilities: BTreeMap<String, bool>,
    /// CHECK and DEL: the result of the ADD before.
    pub prev_result: Option<Success>,
    /// GC: the attachments of this network that stay. Empty for other verbs.
    pub valid_attachments: Vec<Attachment>,
    /// The configuration as typed, which a delegated plugin gets.
    pub raw: RawConf,
}

impl NetConf {
    /// Reads what a verb needs from a configuration. DEL and GC pass over settings that are not valid: they must succeed
    /// also for a pod whose ADD was refused because of these.
    ///
    /// # Errors
    /// Code 1 for a version that Tenon does not speak or that lacks the verb, 7 for what is not valid; the message
    /// names key and value.
    pub fn resolve(raw: RawConf, verb: Verb) -> Result<Self, Error> {
        let name = name(&raw)?;
        let version = raw.version()?;
        require_version(verb, version)?;
        let strict = !verb.releases();
        let keep = Keep { strict };
        let runtime = keep.valid(raw.object("runtimeConfig"))?.flatten();
        let prev_result = keep.valid(prev_result(&raw))?.flatten();
        if verb == Verb::Check && prev_result.is_none() {
            return Err(Error::invalid_config("prevResult: missing, and CHECK needs it"));
        }
        Ok(Self {
            version,
            name,
            plugin: keep.valid(plugin(&raw))?.unwrap_or_default(),
            mode: keep.valid(mode(&raw))?.unwrap_or_default(),
            agent_socket: keep.valid(agent_socket(&raw))?.unwrap_or_else(|| DEFAULT_AGENT_SOCKET.into()),
            segment: keep.valid(segment(&raw))?.flatten(),
            bandwidth: keep.valid(bandwidth(&raw, runtime))?.unwrap_or_default(),
            ipam: keep.valid(ipam(&raw))?.flatten(),
            dns: keep.valid(dns(&raw))?.unwrap_or_default(),
            ips: keep.valid(ips(runtime))?.unwrap_or_default(),
            mac: keep.valid(mac(runtime))?.flatten(),
            annotations: keep.valid(annotations(runtime))?.unwrap_or_default(),
            capabilities: keep.valid(capabilities(&raw))?.unwrap_or_default(),
            prev_result,
            valid_attachments: if verb == Verb::Gc { valid_attachments(&raw)? } else { Vec::new() },
            raw,
        })
    }
}

/// Whether a fault in a setting ends the call or only drops the setting.
#[derive(Clone, Copy)]
struct Keep {
    strict: bool,
}

impl Keep {
    fn valid<T>(self, setting: Result<T, Error>) -> Result<Option<T>, Error> {
        match setting {
            Ok(value) => Ok(Some(value)),
            Err(error) if self.strict => Err(error),
            Err(_) => Ok(None),
        }
    }
}

fn require_version(verb: Verb, given: Version) -> Result<(), Error> {
    let needed = match verb {
        Verb::Add | Verb::Del | Verb::Version => return Ok(()),
        Verb::Check => Version::V0_4_0,
        Verb::Gc | Verb::Status => Version::V1_1_0,
    };
    if given < needed {
        return Err(Error::verb_needs_version(verb.as_str(), needed, given));
    }
    Ok(())
}

fn name(raw: &RawConf) -> Result<String, Error> {
    let name =
        raw.text("name")?.ok_or_else(|| Error::invalid_config("name: missing; a network needs one"))?;
    checked_name("name", name)
}

fn checked_name(key: &str, name: &str) -> Result<String, Error> {
    if is_name(name) {
        return Ok(name.to_owned());
    }
    Err(Error::invalid_config(format!(
        "{key}: {name:?} must be letters, digits, '_', '.' and '-', and start with a letter or a digit"
    )))
}

fn plugin(raw: &RawConf) -> Result<String, Error> {
    let plugin = raw.text("type")?.ok_or_else(|| Error::invalid_config("type: missing"))?;
    Ok(plugin.to_owned())
}

fn mode(raw: &RawConf) -> Result<Mode, Error> {
    match raw.text("mode")? {
        None | Some("overlay") => Ok(Mode::Overlay),
        Some("macvlan") => Ok(Mode::Macvlan),
        Some(other) => Err(Error::invalid_config(format!("mode: {other:?} is neither overlay nor macvlan"))),
    }
}

fn agent_socket(raw: &RawConf) -> Result<PathBuf, Error> {
    let path = raw.text("agentSocket")?.unwrap_or(DEFAULT_AGENT_SOCKET);
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(PathBuf::from(path));
    }
    Err(Error::invalid_config(format!("agentSocket: {path:?} is not an absolute path")))
}

fn segment(raw: &RawConf) -> Result<Option<String>, Error> {
    raw.text("segment")?.map(|segment| checked_name("segment", segment)).transpose()
}

fn bandwidth(raw: &RawConf, runtime: Option<&Map<String, Value>>) -> Result<Bandwidth, Error> {
    let network = Bandwidth::parse(raw.0.get("bandwidth").unwrap_or(&Value::Null), "bandwidth")?;
    let of_pod = runtime.and_then(|runtime| runtime.get("bandwidth")).unwrap_or(&Value::Null);
    Ok(Bandwidth::parse(of_pod, "runtimeConfig.bandwidth")?.or(network))
}

fn ipam(raw: &RawConf) -> Result<Option<Ipam>, Error> {
    let plugin = match raw.object("ipam")?.and_then(|ipam| ipam.get("type")) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(plugin)) if plugin.is_empty() => return Ok(None),
        Some(Value::String(plugin)) => plugin,
        Some(other) => return Err(Error::invalid_config(format!("ipam.type: {other} is not text"))),
    };
    // The type names an executable below the directories of CNI_PATH, and must not lead out of them.
    if plugin.contains(['/', '\0']) || plugin == "." || plugin == ".." {
        return Err(Error::invalid_config(format!("ipam.type: {plugin:?} is not the name of a plugin")));
    }
    Ok(Some(Ipam { plugin: plugin.clone() }))
}

fn dns(raw: &RawConf) -> Result<Dns, Error> {
    match raw.0.get("dns") {
        None | Some(Value::Null) => Ok(Dns::default()),
        Some(dns) => {
            serde_json::from_value(dns.clone()).map_err(|e| Error::invalid_config(format!("dns: {dns}: {e}")))
        }
    }
}

fn ips(runtime: Option<&Map<String, Value>>) -> Result<Vec<RequestedIp>, Error> {
    let values = match runtime.and_then(|runtime| runtime.get("ips")) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(other) => {
            return Err(Error::invalid_config(format!("runtimeConfig.ips: {other} is not a list")));
        }
    };
    let parsed = values.iter().map(|value| match value {
        Value::String(text) => {
            text.parse().map_err(|e| Error::invalid_config(format!("runtimeConfig.ips: {e}")))
        }
        other => Err(Error::invalid_config(format!("runtimeConfig.ips: {other} is not text"))),
    });
    parsed.collect()
}

fn mac(runtime: Option<&Map<String, Value>>) -> Result<Option<Mac>, Error> {
    match runtime.and_then(|runtime| runtime.get("mac")) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => {
            text.parse().map(Some).map_err(|e| Error::invalid_config(format!("runtimeConfig.mac: {e}")))
        }
        Some(other) => Err(Error::invalid_config(format!("runtimeConfig.mac: {other} is not text"))),
    }
}

fn annotations(runtime: Option<&Map<String, Value>>) -> Result<BTreeMap<String, String>, Error> {
    let fields = match runtime.and_then(|runtime| runtime.get(ANNOTATIONS_CAPABILITY)) {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(fields)) => fields,
        Some(other) => {
            return Err(Error::invalid_config(format!(
                "runtimeConfig[{ANNOTATIONS_CAPABILITY:?}]: {other} is not an object"
            )));
        }
    };
    let annotations: BTreeMap<_, _> = fields
        .iter()
        .map(|(key, value)| match value {
            Value::String(text) => Ok((key.clone(), text.clone())),
            other => Err(Error::invalid_config(format!("annotation {key}: {other} is not text"))),
        })
        .collect::<Result<_, _>>()?;
    if let Some(segment) = annotations.get(SEGMENT_ANNOTATION).filter(|segment| !segment.is_empty()) {
        checked_name(&format!("annotation {SEGMENT_ANNOTATION}"), segment)?;
    }
    Ok(annotations)
}

fn capabilities(raw: &RawConf) -> Result<BTreeMap<String, bool>, Error> {
    let fields = raw.object("capabilities")?.into_iter().flatten();
    fields
        .map(|(key, value)| match value {
            Value::Bool(declared) => Ok((key.clone(), *declared)),
            other => {
                Err(Error::invalid_config(format!("capabilities.{key}: {other} is neither true nor false")))
            }
        })
        .collect()
}

fn prev_result(raw: &RawConf) -> Result<Option<Success>, Error> {
    match raw.0.get("prevResult") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => Success::parse(value.clone()).map(Some).map_err(|e| {
            Error::invalid_config("prevResult: not the result of an ADD").with_details(e.to_string())
        }),
    }
}

/// The attachments that stay. A missing list is a fault, for without one GC would remove every attachment; `null` is
/// how Go writes an empty list.
fn valid_attachments(raw: &RawConf) -> Result<Vec<Attachment>, Error> {
    let Some((key, value)) = ATTACHMENT_KEYS.iter().find_map(|key| Some((key, raw.0.get(*key)?))) else {
        let [key, _] = ATTACHMENT_KEYS;
        return Err(Error::invalid_config(format!("{key}: missing, and GC needs it")));
    };
    let entries = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(entries) => entries,
        other => return Err(Error::invalid_config(format!("{key}: {other} is not a list"))),
    };
    let parsed = entries.iter().map(|entry| {
        let text = |field: &str| entry.get(field).and_then(Value::as_str);
        match (text("containerID"), text("ifname")) {
            (Some(id), Some(ifname)) if is_name(id) && ifname_fault(ifname).is_none() => {
                Ok(Attachment { container_id: id.to_owned(), ifname: ifname.to_owned() })
            }
            _ => Err(Error::invalid_config(format!(
                "{key}: {entry} does not name a containerID and an ifname"
            ))),
        }
    });
    parsed.collect()
}

#[cfg(test)]
#[path = "conf_tests.rs"]
mod tests;
