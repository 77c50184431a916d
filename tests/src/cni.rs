//! The container runtime's side of CNI: environment and standard input in, a result or an error out.

use std::{net::Ipv4Addr, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    command::{Output, Tool},
    error::BedError,
    ground::binary,
};

/// One interface of one pod, as a runtime names it.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`; a runtime leaves it empty when the namespace is gone.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `K8S_POD_NAMESPACE`; `None` leaves it out.
    pub tenant: Option<String>,
    /// `K8S_POD_NAME`.
    pub pod: String,
}

/// How a runtime calls the plugin on one node.
#[derive(Debug, Clone)]
pub struct Cni {
    plugin: PathBuf,
    node: PathBuf,
    socket: PathBuf,
    /// The network's name.
    pub network: String,
    /// The spec version that the configuration asks for.
    pub version: String,
    /// Further keys of the network configuration (`runtimeConfig`, `prevResult`, `mode` …).
    pub extra: Vec<(String, Value)>,
}

/// What the plugin answered.
#[derive(Debug)]
pub struct Reply {
    /// Whether it exited with 0.
    pub success: bool,
    /// Standard output as JSON; null when there was none.
    pub json: Value,
    /// Everything it printed, for messages.
    pub text: String,
}

impl Cni {
    /// Calls in the namespace `node` to the agent that listens on `socket`.
    pub fn new(node: PathBuf, socket: PathBuf) -> Result<Self, BedError> {
        Ok(Self {
            plugin: binary("tenon")?,
            node,
            socket,
            network: "tenon".into(),
            version: "1.0.0".into(),
            extra: Vec::new(),
        })
    }

    /// The same calls in another version of the spec.
    pub fn version(&self, version: &str) -> Self {
        Self { version: version.into(), ..self.clone() }
    }

    /// The same calls with one more key in the configuration.
    pub fn with(&self, key: &str, value: Value) -> Self {
        let mut cni = self.clone();
        cni.extra.push((key.into(), value));
        cni
    }

    /// The configuration that a runtime makes of one plugin of a conflist.
    pub fn config(&self) -> Value {
        let mut config = json!({
            "cniVersion": self.version,
            "name": self.network,
            "type": "tenon",
            "mode": "overlay",
            "agentSocket": self.socket,
        });
        if let Some(fields) = config.as_object_mut() {
            fields.extend(self.extra.iter().cloned());
        }
        config
    }

    /// The plugin with its environment set, not yet started.
    pub fn tool(&self, verb: &str, attachment: Option<&Attachment>, config: &str) -> Tool {
        let mut tool = Tool::new(&self.plugin)
            .inside(&self.node)
            .clear_env()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_PATH", "/usr/lib/cni")
            .env("CNI_COMMAND", verb)
            .input(config);
        if let Some(a) = attachment {
            let mut args = String::from("IgnoreUnknown=1");
            if let Some(tenant) = &a.tenant {
                args.push_str(&format!(";K8S_POD_NAMESPACE={tenant}"));
            }
            args.push_str(&format!(";K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}", a.pod, a.container));
            tool = tool
                .env("CNI_CONTAINERID", &a.container)
                .env("CNI_NETNS", a.netns.clone().unwrap_or_default())
                .env("CNI_IFNAME", &a.interface)
                .env("CNI_ARGS", args);
        }
        tool
    }

    /// Runs one verb to its end.
    pub fn call(&self, verb: &str, attachment: Option<&Attachment>) -> Result<Reply, BedError> {
        self.tool(verb, attachment, &self.config().to_string()).output().map(Reply::from)
    }
}

impl From<Output> for Reply {
    fn from(output: Output) -> Self {
        Self {
            success: output.status.success(),
            json: serde_json::from_str(&output.stdout).unwrap_or(Value::Null),
            text: format!("{}{}", output.stdout, output.stderr),
        }
    }
}

impl Reply {
    /// The reply, if the verb succeeded.
    pub fn accepted(self) -> Result<Self, BedError> {
        if self.success { Ok(self) } else { Err(BedError::answer("a call of the plugin", self.text)) }
    }

    /// The spec's error code, if the verb failed with one.
    pub fn code(&self) -> Option<u64> {
        if self.success { None } else { self.json.get("code")?.as_u64() }
    }

    /// The error's message and details.
    pub fn message(&self) -> String {
        let part = |key| self.json.get(key).and_then(Value::as_str).unwrap_or_default();
        format!("{} {}", part("msg"), part("details"))
    }

    /// The first address of a result, without its prefix length.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.json.pointer("/ips/0/address")?.as_str()?.split('/').next()?.parse().ok()
    }

    /// The gateway of a result's first address.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.json.pointer("/ips/0/gateway")?.as_str()?.parse().ok()
    }

    /// The MAC address of the interface inside the pod.
    pub fn mac(&self) -> Option<String> {
        let interfaces = self.json.get("interfaces")?.as_array()?;
        let inside = |i: &&Value| i.get("sandbox").and_then(Value::as_str).is_some_and(|s| !s.is_empty());
        interfaces.iter().find(inside)?.get("mac")?.as_str().map(str::to_owned)
    }

    /// The name of the interface at the host's end.
    pub fn host_interface(&self) -> Option<String> {
        let interfaces = self.json.get("interfaces")?.as_array()?;
        let outside = |i: &&Value| i.get("sandbox").and_then(Value::as_str).unwrap_or_default().is_empty();
        interfaces.iter().find(outside)?.get("name")?.as_str().map(str::to_owned)
    }
}
