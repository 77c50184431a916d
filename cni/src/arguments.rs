//! What the environment variables of a call mean.

use std::fmt;
use std::path::PathBuf;

use crate::address::{Mac, RequestedIp};
use crate::environment::Environment;
use crate::error::Error;

/// The tenant of a pod whose runtime names no Kubernetes namespace.
pub const DEFAULT_TENANT: &str = "default";

/// The longest interface name that Linux takes, in bytes: IFNAMSIZ of `linux/if.h` without the final zero.
const IFNAME_BYTES: usize = 15;

/// The longest name of a Kubernetes namespace, in bytes: a label of RFC 1123.
const LABEL_BYTES: usize = 63;

/// A verb of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Attach a container to the network.
    Add,
    /// Detach a container.
    Del,
    /// See whether an attachment is as ADD left it; from 0.4.0 on.
    Check,
    /// Remove what belongs to no valid attachment; from 1.1.0 on.
    Gc,
    /// Tell whether ADD can be served; from 1.1.0 on.
    Status,
    /// Tell the versions that the plugin speaks.
    Version,
}

impl Verb {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// The verb as `CNI_COMMAND` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// Reads `CNI_COMMAND`.
    ///
    /// # Errors
    /// Code 4 if it is empty or no verb.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::invalid_environment("CNI_COMMAND", "required and not set"));
        }
        Self::ALL
            .into_iter()
            .find(|verb| verb.as_str() == text)
            .ok_or_else(|| Error::invalid_environment("CNI_COMMAND", format!("unknown verb {text:?}")))
    }

    /// Whether the verb gives up what an attachment holds. Such a call must succeed also where the ADD before it was
    /// refused for a setting it did not understand: otherwise the runtime could never delete that pod.
    pub const fn releases(self) -> bool {
        matches!(self, Self::Del | Self::Gc)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The checked variables of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// The verb.
    pub verb: Verb,
    /// The container; empty for GC, STATUS and VERSION.
    pub container_id: String,
    /// The path of the container's network namespace; `None` where the runtime gave none, as DEL may.
    pub netns: Option<PathBuf>,
    /// The interface inside the container; empty for GC, STATUS and VERSION.
    pub ifname: String,
    /// What `CNI_ARGS` says about the pod.
    pub pod: PodArguments,
    /// The directories in which delegated plugins are found.
    pub path: Vec<PathBuf>,
}

impl Arguments {
    /// Checks the variables against the CNI specification, sections "Parameters" and the verb's own. DEL does not look
    /// at `CNI_ARGS` that ADD would refuse.
    ///
    /// # Errors
    /// Code 4, and the message names the variable.
    pub fn parse(environment: &Environment) -> Result<Self, Error> {
        let verb = Verb::parse(&environment.command)?;
        require(verb, environment)?;
        let attachment = matches!(verb, Verb::Add | Verb::Del | Verb::Check);
        if attachment {
            check_container_id(&environment.container_id)?;
            check_ifname(&environment.ifname)?;
            check_netns(&environment.netns)?;
        }
        let pod = match PodArguments::parse(&environment.args) {
            Ok(pod) if attachment => pod,
            Err(error) if matches!(verb, Verb::Add | Verb::Check) => return Err(error),
            _ => PodArguments::default(),
        };
        let of_attachment = |value: &str| if attachment { value.to_owned() } else { String::new() };
        Ok(Self {
            verb,
            container_id: of_attachment(&environment.container_id),
            netns: Some(of_attachment(&environment.netns)).filter(|path| !path.is_empty()).map(PathBuf::from),
            ifname: of_attachment(&environment.ifname),
            pod,
            path: environment.path.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect(),
        })
    }

    /// The tenant that the pod belongs to: its Kubernetes namespace, or [`DEFAULT_TENANT`].
    pub fn tenant(&self) -> &str {
        self.pod.namespace.as_deref().unwrap_or(DEFAULT_TENANT)
    }
}

fn require(verb: Verb, environment: &Environment) -> Result<(), Error> {
    let required: &[&str] = match verb {
        Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
        Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
        Verb::Gc => &["CNI_PATH"],
        Verb::Status | Verb::Version => &[],
    };
    let missing: Vec<_> = environment
        .variables()
        .into_iter()
        .filter(|(name, value)| value.is_empty() && required.contains(name))
        .map(|(name, _)| name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::invalid_environment(&missing.join(", "), format!("required by {verb} and not set")))
}

/// Whether a text is a name as the specification has it for networks and containers: it starts with a letter or a
/// digit, and goes on with those, `_`, `.` and `-`.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn check_container_id(id: &str) -> Result<(), Error> {
    if is_name(id) {
        return Ok(());
    }
    Err(Error::invalid_environment(
        "CNI_CONTAINERID",
        format!("{id:?} must be letters, digits, '_', '.' and '-', and start with a letter or a digit"),
    ))
}

pub(crate) fn ifname_fault(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("is empty"),
        "." | ".." => Some("may not be a name"),
        _ if name.len() > IFNAME_BYTES => Some("is longer than 15 bytes"),
        _ if name.contains(['/', ':']) => Some("contains '/' or ':'"),
        // The kernel takes a name with a '%' for a pattern and makes another one of it.
        _ if name.contains('%') => Some("contains '%'"),
        _ if name.contains(|c: char| c.is_whitespace() || c.is_control()) => Some("contains whitespace"),
        _ => None,
    }
}

fn check_ifname(name: &str) -> Result<(), Error> {
    ifname_fault(name)
        .map_or(Ok(()), |fault| Err(Error::invalid_environment("CNI_IFNAME", format!("{name:?} {fault}"))))
}

fn check_netns(path: &str) -> Result<(), Error> {
    if path.contains('\0') {
        return Err(Error::invalid_environment("CNI_NETNS", format!("{path:?} contains a zero byte")));
    }
    Ok(())
}

/// What `CNI_ARGS` says about the pod; a key with an empty value counts as not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodArguments {
    /// `K8S_POD_NAMESPACE`: the pod's namespace, and so its tenant.
    pub namespace: Option<String>,
    /// `K8S_POD_NAME`
    pub name: Option<String>,
    /// `K8S_POD_UID`
    pub uid: Option<String>,
    /// `K8S_POD_INFRA_CONTAINER_ID`
    pub infra_container_id: Option<String>,
    /// `IP`: an address that the pod asks for.
    pub ip: Option<RequestedIp>,
    /// `MAC`: a MAC address that the pod asks for.
    pub mac: Option<Mac>,
    /// `TENON_SEGMENT`: the macvlan segment that the pod asks for.
    pub segment: Option<String>,
}

impl PodArguments {
    /// Reads `K=V;K=V` by the rules of the reference plugins: every part has exactly one `=`, the last of several
    /// values for a key counts, and unknown keys are an error unless `IgnoreUnknown` is `1` or `true`.
    ///
    /// # Errors
    /// Code 4 with `CNI_ARGS` and the part at fault.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut pod = Self::default();
        let mut ignore_unknown = false;
        let mut unknown = Vec::new();
        let pairs = if text.is_empty() { None } else { Some(text.split(';')) };
        for pair in pairs.into_iter().flatten() {
            let Some((key, value)) = pair.split_once('=').filter(|(_, value)| !value.contains('=')) else {
                return Err(args_fault(format!("{pair:?} is not KEY=VALUE")));
            };
            let given = Some(value.to_owned()).filter(|value| !value.is_empty());
            match key {
                "K8S_POD_NAMESPACE" => pod.namespace = given.map(namespace).transpose()?,
                "K8S_POD_NAME" => pod.name = given,
                "K8S_POD_UID" => pod.uid = given,
                "K8S_POD_INFRA_CONTAINER_ID" => pod.infra_container_id = given,
                "IP" => {
                    pod.ip =
                        given.map(|ip| ip.parse()).transpose().map_err(|e| args_fault(format!("IP: {e}")))?
                }
                "MAC" => {
                    pod.mac = given
                        .map(|mac| mac.parse())
                        .transpose()
                        .map_err(|e| args_fault(format!("MAC: {e}")))?;
                }
                "TENON_SEGMENT" => pod.segment = given.map(segment).transpose()?,
                "IgnoreUnknown" => ignore_unknown = boolean(value)?,
                _ => unknown.push(pair),
            }
        }
        if unknown.is_empty() || ignore_unknown {
            return Ok(pod);
        }
        Err(args_fault(format!("unknown {unknown:?}; IgnoreUnknown=1 allows them")))
    }
}

fn args_fault(fault: impl fmt::Display) -> Error {
    Error::invalid_environment("CNI_ARGS", fault)
}

fn boolean(value: &str) -> Result<bool, Error> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(args_fault(format!("IgnoreUnknown={value:?} is neither 1, true, 0 nor false"))),
    }
}

/// The namespace becomes part of a key in etcd, so it must be what Kubernetes allows: a label of RFC 1123.
fn namespace(name: String) -> Result<String, Error> {
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.len() > LABEL_BYTES || !name.chars().all(inside) || name.starts_with('-') || name.ends_with('-') {
        return Err(args_fault(format!(
            "K8S_POD_NAMESPACE={name:?} must be at most 63 lower-case letters, digits and '-', without '-' at either end"
        )));
    }
    Ok(name)
}

fn segment(name: String) -> Result<String, Error> {
    if is_name(&name) {
        return Ok(name);
    }
    Err(args_fault(format!(
        "TENON_SEGMENT={name:?} must be letters, digits, '_', '.' and '-', and start with a letter or a digit"
    )))
}

#[cfg(test)]
#[path = "arguments_tests.rs"]
mod tests;
