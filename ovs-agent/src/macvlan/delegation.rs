//! Addresses from another IPAM plugin: `ipam.type` of the network configuration names it, CNI_PATH has it, and it is
//! called as the CNI specification says (section "Plugin Delegation").

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tenon_cni::{Environment, Error, RawConf, Request, Success, Verb};
use tenon_ipam::Mac;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::links::{LocalPod, local_pods};

/// How long a plugin may take.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(60);

/// The note about an attachment with delegated addresses: enough to undo it without the runtime.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Delegated {
    pub(super) environment: Environment,
    pub(super) conf: Map<String, Value>,
    /// The host's link that the pod's interface is on.
    pub(super) link: String,
    /// What the host reaches, if it shall.
    pub(super) host_access: bool,
    pub(super) ips: Vec<std::net::IpAddr>,
    pub(super) mac: String,
    /// Its limits, as a lease has them.
    #[serde(default)]
    pub(super) bandwidth: Value,
}

impl Delegated {
    /// The pod with its addresses, for the host to reach.
    pub(super) fn local_pods(&self) -> Vec<LocalPod> {
        let mac: Option<Mac> = self.mac.parse().ok();
        local_pods(&self.link, &self.ips, mac.map(Mac::bytes))
    }

    /// The request by which the plugin is to undo what it did.
    pub(super) fn request(&self) -> Result<Request, Error> {
        let environment = Environment { command: Verb::Del.as_str().to_owned(), ..self.environment.clone() };
        let text = serde_json::to_vec(&self.conf).map_err(|e| Error::agent_internal(e.to_string()))?;
        Request::new(environment, RawConf::parse(&text)?)
    }
}

/// Asks the plugin for addresses.
pub(super) async fn add(request: &Request) -> Result<Success, Error> {
    let output = call(request, Verb::Add).await?;
    let result = serde_json::from_slice(&output).and_then(Success::parse);
    result.map_err(|error| {
        Error::decoding_failure("the IPAM plugin's result cannot be read").with_details(error.to_string())
    })
}

/// Has the plugin carry out a verb that has no result.
pub(super) async fn call_for_effect(request: &Request, verb: Verb) -> Result<(), Error> {
    call(request, verb).await.map(drop)
}

/// Runs the plugin. Returns what it printed.
async fn call(request: &Request, verb: Verb) -> Result<Vec<u8>, Error> {
    let Some(ipam) = &request.conf.ipam else { return Ok(Vec::new()) };
    let plugin = find(&ipam.plugin, &request.arguments.path)?;
    let environment = Environment { command: verb.as_str().to_owned(), ..request.environment.clone() };
    let conf =
        serde_json::to_vec(request.conf.raw.fields()).map_err(|e| Error::agent_internal(e.to_string()))?;
    run(&plugin, &environment, &conf).await
}

fn find(name: &str, path: &[PathBuf]) -> Result<PathBuf, Error> {
    let is_program = |file: &PathBuf| {
        fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    path.iter().map(|dir| dir.join(name)).find(is_program).ok_or_else(|| {
        let path: Vec<_> = path.iter().map(|dir| dir.display().to_string()).collect();
        Error::invalid_config(format!("ipam.type: no plugin {name:?} in CNI_PATH ({})", path.join(":")))
    })
}

async fn run(plugin: &Path, environment: &Environment, conf: &[u8]) -> Result<Vec<u8>, Error> {
    let failed = |step: &str, error: std::io::Error| {
        Error::io_failure(format!("cannot {step} the IPAM plugin {}: {error}", plugin.display()))
    };
    let mut child = Command::new(plugin)
        .env_clear()
        .envs(environment.variables())
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // When it has taken too long, and is dropped.
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed("start", error))?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut pipe) = stdin {
            // A plugin that ends without reading is told by what it printed.
            let _ = pipe.write_all(conf).await;
        }
    };
    let ended = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = match tokio::time::timeout(PLUGIN_TIMEOUT, ended).await {
        Ok(output) => output.map_err(|error| failed("wait for", error))?,
        Err(_) => {
            return Err(Error::try_again(format!(
                "the IPAM plugin {} did not end within {} s",
                plugin.display(),
                PLUGIN_TIMEOUT.as_secs()
            )));
        }
    };
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        let complaints = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let status = output.status;
        Error::agent_internal(format!("the IPAM plugin {} failed ({status})", plugin.display()))
            .with_details(complaints)
    }))
}
