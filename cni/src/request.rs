//! The call between plugin and agent: one request and one response, each a JSON document in a [`frame`](crate::frame).
//!
//! The request carries the runtime's variables and the configuration as they are, and both sides read them with the same
//! code: what the agent decodes is as valid as what the plugin checked.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::address::{Mac, RequestedIp};
use crate::arguments::Arguments;
use crate::conf::{NetConf, RawConf, SEGMENT_ANNOTATION};
use crate::environment::Environment;
use crate::error::Error;
use crate::frame::{self, TooLong};
use crate::result::Success;

/// The version of this protocol. It goes up when a plugin and an agent of different releases would misread each other.
pub const PROTOCOL: u32 = 1;

/// What a peer sent could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The document is not what the protocol says.
    #[error("the peer sent a document that cannot be read: {0}")]
    Malformed(String),
    /// The peer is of another release.
    #[error(
        "the peer speaks protocol {0}, this program protocol {PROTOCOL}: install `tenon` and `tenon-agent` of one release"
    )]
    Protocol(u32),
    /// A request was read, but its variables or its configuration are not valid. The plugin checks them before it calls,
    /// so this is what an agent answers to other callers.
    #[error(transparent)]
    Invalid(#[from] Error),
}

impl From<WireError> for Error {
    /// The error to answer with.
    fn from(error: WireError) -> Self {
        match error {
            WireError::Invalid(error) => error,
            other => Self::protocol(other.to_string()),
        }
    }
}

/// A checked call of a runtime.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What the variables mean.
    pub arguments: Arguments,
    /// What the configuration means.
    pub conf: NetConf,
    /// The variables as the runtime set them, with which a delegated plugin is called.
    pub environment: Environment,
}

#[derive(Serialize)]
struct SentRequest<'a> {
    protocol: u32,
    environment: &'a Environment,
    conf: &'a serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
struct ReceivedRequest {
    environment: Environment,
    conf: Value,
}

#[derive(Deserialize)]
struct ReceivedProtocol {
    protocol: u32,
}

impl Request {
    /// Checks a call's variables and configuration.
    ///
    /// # Errors
    /// The codes of [`Arguments::parse`] and [`NetConf::resolve`].
    pub fn new(environment: Environment, raw: RawConf) -> Result<Self, Error> {
        let arguments = Arguments::parse(&environment)?;
        let conf = NetConf::resolve(raw, arguments.verb)?;
        Ok(Self { arguments, conf, environment })
    }

    /// The request as a frame, ready to be written.
    ///
    /// # Errors
    /// [`TooLong`] for a configuration beyond [`frame::MAX_BODY_BYTES`].
    pub fn encode(&self) -> Result<Vec<u8>, TooLong> {
        encode(&SentRequest {
            protocol: PROTOCOL,
            environment: &self.environment,
            conf: self.conf.raw.fields(),
        })
    }

    /// Reads a request from the body of a frame.
    ///
    /// # Errors
    /// [`WireError`]; turn it into the [`Error`] to answer with by `Error::from`.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let received: ReceivedRequest = decode(body)?;
        Ok(Self::new(received.environment, RawConf::from_value(received.conf)?)?)
    }

    /// The macvlan segment: what the pod's annotation asks for, else `TENON_SEGMENT`, else the network's own.
    pub fn segment(&self) -> Option<&str> {
        let annotated = self.conf.annotations.get(SEGMENT_ANNOTATION).filter(|segment| !segment.is_empty());
        annotated.or(self.arguments.pod.segment.as_ref()).or(self.conf.segment.as_ref()).map(String::as_str)
    }

    /// The addresses that the pod asks for: `runtimeConfig.ips`, else the `IP` of `CNI_ARGS`.
    pub fn requested_ips(&self) -> &[RequestedIp] {
        if self.conf.ips.is_empty() { self.arguments.pod.ip.as_slice() } else { &self.conf.ips }
    }

    /// The MAC address that the pod asks for: `runtimeConfig.mac`, else the `MAC` of `CNI_ARGS`.
    pub fn requested_mac(&self) -> Option<Mac> {
        self.conf.mac.or(self.arguments.pod.mac)
    }
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// ADD was carried out.
    Added(Success),
    /// Another verb was carried out.
    Done,
    /// The verb failed.
    Failed(Error),
}

#[derive(Serialize)]
struct SentResponse<'a> {
    protocol: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a Success>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Error>,
}

#[derive(Deserialize)]
struct ReceivedResponse {
    result: Option<Success>,
    error: Option<Error>,
}

impl Response {
    /// The response as a frame, ready to be written.
    ///
    /// # Errors
    /// [`TooLong`] for a result beyond [`frame::MAX_BODY_BYTES`].
    pub fn encode(&self) -> Result<Vec<u8>, TooLong> {
        let (result, error) = match self {
            Self::Added(success) => (Some(success), None),
            Self::Done => (None, None),
            Self::Failed(error) => (None, Some(error)),
        };
        encode(&SentResponse { protocol: PROTOCOL, result, error })
    }

    /// Reads a response from the body of a frame.
    ///
    /// # Errors
    /// [`WireError::Malformed`] and [`WireError::Protocol`].
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let received: ReceivedResponse = decode(body)?;
        match received {
            ReceivedResponse { result: Some(_), error: Some(_) } => {
                Err(WireError::Malformed("both a result and an error".to_owned()))
            }
            ReceivedResponse { error: Some(error), .. } => Ok(Self::Failed(error)),
            ReceivedResponse { result: Some(success), .. } => Ok(Self::Added(success)),
            ReceivedResponse { .. } => Ok(Self::Done),
        }
    }
}

impl From<Result<Success, Error>> for Response {
    fn from(result: Result<Success, Error>) -> Self {
        result.map_or_else(Self::Failed, Self::Added)
    }
}

impl From<Result<(), Error>> for Response {
    fn from(result: Result<(), Error>) -> Self {
        result.map_or_else(Self::Failed, |()| Self::Done)
    }
}

fn encode(document: &impl Serialize) -> Result<Vec<u8>, TooLong> {
    // Serialising plain structs with text keys has no case that fails.
    frame::encode(&serde_json::to_vec(document).unwrap_or_default())
}

/// Reads a document after its protocol number: another protocol's document may look any way it likes.
fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, WireError> {
    let malformed = |error: serde_json::Error| WireError::Malformed(error.to_string());
    let ReceivedProtocol { protocol } = serde_json::from_slice(body).map_err(malformed)?;
    if protocol != PROTOCOL {
        return Err(WireError::Protocol(protocol));
    }
    serde_json::from_slice(body).map_err(malformed)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
