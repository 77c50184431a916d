//! The error that a CNI plugin answers with.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::version::Version;

/// Error codes: those of the CNI specification, section "Error", and Tenon's own from 100 on.
pub mod code {
    /// The plugin does not speak the configuration's `cniVersion`.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration is not supported; the message holds its key and value.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown or does not exist; the runtime need not clean up.
    pub const CONTAINER_UNKNOWN: u32 = 3;
    /// A necessary environment variable is missing or invalid; the message names it.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO_FAILURE: u32 = 5;
    /// Content could not be decoded, such as a configuration that is not JSON.
    pub const DECODING_FAILURE: u32 = 6;
    /// The network configuration is JSON, but is not valid.
    pub const INVALID_CONFIG: u32 = 7;
    /// A transient condition: the runtime should try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: the plugin cannot serve ADD requests.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: the plugin cannot serve ADD requests, and containers in the network may have limited connectivity.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// The agent met a fault of its own.
    pub const AGENT_INTERNAL: u32 = 100;
    /// Plugin and agent do not understand each other: they come from different releases.
    pub const PROTOCOL: u32 = 101;
    /// ADD of an interface that the container has already.
    pub const ALREADY_ATTACHED: u32 = 102;
    /// CHECK found something that is not as ADD left it.
    pub const CHECK_FAILED: u32 = 103;
}

/// An error as the CNI specification has it, without the version, which belongs to the configuration being answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details}", if .details.is_empty() { "" } else { ": " })]
pub struct Error {
    /// One of [`code`], or another program's code that is passed on.
    pub code: u32,
    /// What went wrong, in one line.
    pub msg: String,
    /// The cause in full and the way out; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Error {
    /// An error with any code and without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same error with these details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Code 1: the configuration asks for a version that Tenon does not speak. Without a `cniVersion` it is 0.1.0.
    pub fn incompatible_version(asked: &str) -> Self {
        let asked = if asked.is_empty() { "0.1.0 (no cniVersion given)" } else { asked };
        let supported = Version::SUPPORTED.map(Version::as_str).join(", ");
        Self::new(code::INCOMPATIBLE_VERSION, "incompatible CNI version")
            .with_details(format!("the network configuration has {asked}, supported are {supported}"))
    }

    /// Code 1: the configuration's version does not have this verb.
    pub fn verb_needs_version(verb: &str, needed: Version, given: Version) -> Self {
        Self::new(code::INCOMPATIBLE_VERSION, "incompatible CNI version")
            .with_details(format!("{verb} needs cniVersion {needed}, the network configuration has {given}"))
    }

    /// Code 2: a field that Tenon cannot honour.
    pub fn unsupported_field(key: &str, value: &Value) -> Self {
        Self::new(code::UNSUPPORTED_FIELD, format!("unsupported field {key} with value {value}"))
    }

    /// Code 3: the container is not known; the runtime need not clean up.
    pub fn container_unknown(container_id: &str) -> Self {
        Self::new(code::CONTAINER_UNKNOWN, format!("container {container_id} is unknown"))
    }

    /// Code 4: an environment variable is missing or invalid.
    pub fn invalid_environment(variable: &str, fault: impl std::fmt::Display) -> Self {
        Self::new(code::INVALID_ENVIRONMENT, format!("{variable}: {fault}"))
    }

    /// Code 5: reading or writing failed.
    pub fn io_failure(msg: impl Into<String>) -> Self {
        Self::new(code::IO_FAILURE, msg)
    }

    /// Code 6: content could not be decoded.
    pub fn decoding_failure(msg: impl Into<String>) -> Self {
        Self::new(code::DECODING_FAILURE, msg)
    }

    /// Code 7: the network configuration is not valid.
    pub fn invalid_config(msg: impl Into<String>) -> Self {
        Self::new(code::INVALID_CONFIG, msg)
    }

    /// Code 11: a transient condition, the runtime should try again later.
    pub fn try_again(msg: impl Into<String>) -> Self {
        Self::new(code::TRY_AGAIN, msg)
    }

    /// Code 50: ADD requests cannot be served now (STATUS).
    pub fn not_available(msg: impl Into<String>) -> Self {
        Self::new(code::NOT_AVAILABLE, msg)
    }

    /// Code 51: as 50, and containers of the network may have limited connectivity (STATUS).
    pub fn limited_connectivity(msg: impl Into<String>) -> Self {
        Self::new(code::LIMITED_CONNECTIVITY, msg)
    }

    /// Code 100: the agent met a fault of its own.
    pub fn agent_internal(msg: impl Into<String>) -> Self {
        Self::new(code::AGENT_INTERNAL, msg)
    }

    /// Code 101: plugin and agent do not understand each other.
    pub fn protocol(msg: impl Into<String>) -> Self {
        Self::new(code::PROTOCOL, msg)
    }

    /// The error as a plugin prints it in answer to a configuration of this version.
    pub fn to_json(&self, version: Version) -> Value {
        let mut json = json!({"cniVersion": version.as_str(), "code": self.code, "msg": self.msg});
        if !self.details.is_empty() {
            json["details"] = Value::from(self.details.as_str());
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constructors_carry_the_codes_of_the_specification() {
        let table = [
            (Error::incompatible_version("0.2.0"), 1),
            (Error::verb_needs_version("GC", Version::V1_1_0, Version::V0_4_0), 1),
            (Error::unsupported_field("ipMasq", &json!(true)), 2),
            (Error::container_unknown("c1"), 3),
            (Error::invalid_environment("CNI_IFNAME", "missing"), 4),
            (Error::io_failure("x"), 5),
            (Error::decoding_failure("x"), 6),
            (Error::invalid_config("x"), 7),
            (Error::try_again("x"), 11),
            (Error::not_available("x"), 50),
            (Error::limited_connectivity("x"), 51),
            (Error::agent_internal("x"), 100),
            (Error::protocol("x"), 101),
        ];
        for (error, code) in table {
            assert_eq!(error.code, code, "{error}");
            assert!(!error.msg.is_empty());
        }
        assert!(Error::unsupported_field("ipMasq", &json!(true)).msg.contains("ipMasq with value true"));
        assert_eq!(Error::invalid_environment("CNI_IFNAME", "missing").msg, "CNI_IFNAME: missing");
    }

    #[test]
    fn json_is_the_specifications() {
        let error = Error::try_again("agent away").with_details("start it");
        assert_eq!(
            error.to_json(Version::V0_4_0),
            json!({"cniVersion": "0.4.0", "code": 11, "msg": "agent away", "details": "start it"})
        );
        assert_eq!(error.to_string(), "agent away: start it");
        assert_eq!(
            Error::invalid_config("no name").to_json(Version::V1_1_0),
            json!({"cniVersion": "1.1.0", "code": 7, "msg": "no name"})
        );
    }
}
