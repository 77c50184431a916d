//! The environment variables by which a runtime calls a plugin.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The variables of the CNI specification, section "Parameters", as the runtime set them; an unset one is empty.
/// This is what goes to the agent, and what a delegated IPAM plugin is called with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// `CNI_COMMAND`: the verb.
    #[serde(rename = "CNI_COMMAND")]
    pub command: String,
    /// `CNI_CONTAINERID`: the runtime's name for the container.
    #[serde(rename = "CNI_CONTAINERID")]
    pub container_id: String,
    /// `CNI_NETNS`: the path of the container's network namespace.
    #[serde(rename = "CNI_NETNS")]
    pub netns: String,
    /// `CNI_IFNAME`: the name of the interface inside the container.
    #[serde(rename = "CNI_IFNAME")]
    pub ifname: String,
    /// `CNI_ARGS`: `KEY=VALUE` pairs with semicolons between them.
    #[serde(rename = "CNI_ARGS")]
    pub args: String,
    /// `CNI_PATH`: where plugins are searched for, with colons between the directories.
    #[serde(rename = "CNI_PATH")]
    pub path: String,
}

impl Environment {
    /// Reads the variables of this process.
    ///
    /// # Errors
    /// Code 4 for a variable whose value is not UTF-8; the variables of one call travel as JSON.
    pub fn of_process() -> Result<Self, Error> {
        let read = |name: &str| match std::env::var_os(name).map(std::ffi::OsString::into_string) {
            None => Ok(String::new()),
            Some(Ok(value)) => Ok(value),
            Some(Err(value)) => Err(Error::invalid_environment(name, format!("{value:?} is not UTF-8"))),
        };
        Ok(Self {
            command: read("CNI_COMMAND")?,
            container_id: read("CNI_CONTAINERID")?,
            netns: read("CNI_NETNS")?,
            ifname: read("CNI_IFNAME")?,
            args: read("CNI_ARGS")?,
            path: read("CNI_PATH")?,
        })
    }

    /// Name and value of every variable.
    pub fn variables(&self) -> [(&'static str, &str); 6] {
        [
            ("CNI_COMMAND", &self.command),
            ("CNI_CONTAINERID", &self.container_id),
            ("CNI_NETNS", &self.netns),
            ("CNI_IFNAME", &self.ifname),
            ("CNI_ARGS", &self.args),
            ("CNI_PATH", &self.path),
        ]
    }
}
