//! The call between plugin and agent: one request and one response, each a JSON document in a [`frame`](crate::frame).
//!
//! The request carries the runtime's variables and the configuration as they are, and both sides read them with the same
//! code: what the agent decodes is as valid as what the plugin checked.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::address::{Mac, RequestedIp};
use crate::arguments::Arguments;
use crate::bandwidth::{Bandwidth, Limit};
use crate::conf::{NetConf, RawConf, SEGMENT_ANNOTATION};
use crate::environment::Environment;
use crate::error::Error;
use crate::frame::{self, TooLong};
use crate::quantity::parse_quantity;
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

    /// The limits of the pod: its annotations, where the runtime hands them over, else what the configuration says.
    ///
    /// # Errors
    /// [`code::INVALID_CONFIG`](crate::code::INVALID_CONFIG) naming the annotation or key and its value: no quantity, or
    /// outside the 1k to 1P bits per second that the kubelet accepts. 0 is no limit.
    pub fn bandwidth(&self) -> Result<Bandwidth, Error> {
        let ingress = self.limit(INGRESS_ANNOTATION, "bandwidth.ingressRate", self.conf.bandwidth.ingress)?;
        let egress = self.limit(EGRESS_ANNOTATION, "bandwidth.egressRate", self.conf.bandwidth.egress)?;
        Ok(Bandwidth { ingress, egress })
    }

    fn limit(&self, annotation: &str, key: &str, configured: Option<Limit>) -> Result<Option<Limit>, Error> {
        let Some(text) = self.conf.annotations.get(annotation) else {
            let checked = configured.map(|limit| checked_rate(limit.rate_bps, key).map(|_| limit));
            return checked.transpose();
        };
        let place = format!("annotation {annotation}");
        let rate_bps =
            parse_quantity(text).map_err(|error| Error::invalid_config(format!("{place}: {error}")))?;
        if rate_bps == 0 {
            return Ok(None);
        }
        // The runtime made its own figures of the same annotation; a burst can only be there.
        let burst_bits =
            configured.filter(|limit| limit.rate_bps == rate_bps).and_then(|limit| limit.burst_bits);
        Ok(Some(Limit { rate_bps: checked_rate(rate_bps, &place)?, burst_bits }))
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

/// A change of a running pod's limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitChange {
    /// The pod's Kubernetes namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// Its limits from now on; a direction without one is not limited any more.
    pub bandwidth: Bandwidth,
}

/// What the agent's socket is asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// What a container runtime asked the plugin for.
    Cni(Box<Request>),
    /// `{"protocol":1,"limit":{"namespace":"a","pod":"m1","bandwidth":{"ingressRate":10000000}}}`, with the fields that
    /// `bandwidth` has in the network configuration.
    Limit(LimitChange),
}

#[derive(Deserialize)]
struct ReceivedCall {
    limit: Option<ReceivedLimit>,
}

#[derive(Deserialize)]
struct ReceivedLimit {
    namespace: String,
    pod: String,
    bandwidth: Value,
}

impl Call {
    /// Reads a call from a frame's body.
    ///
    /// # Errors
    /// As [`Request::decode`]; limits that no pod can have.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let ReceivedCall { limit } = decode(body)?;
        let Some(limit) = limit else { return Ok(Self::Cni(Box::new(Request::decode(body)?))) };
        let bandwidth = Bandwidth::parse(&limit.bandwidth, "limit.bandwidth")?;
        for (direction, of) in [("ingressRate", bandwidth.ingress), ("egressRate", bandwidth.egress)] {
            if let Some(of) = of {
                checked_rate(of.rate_bps, &format!("limit.bandwidth.{direction}"))?;
            }
        }
        Ok(Self::Limit(LimitChange { namespace: limit.namespace, pod: limit.pod, bandwidth }))
    }
}

/// The annotations by which a pod's owner limits it, in Kubernetes quantities of bits per second.
const INGRESS_ANNOTATION: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS_ANNOTATION: &str = "kubernetes.io/egress-bandwidth";
/// What the kubelet accepts, in bits per second.
const RATES_BPS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

fn checked_rate(rate_bps: u64, place: &str) -> Result<u64, Error> {
    if RATES_BPS.contains(&rate_bps) {
        return Ok(rate_bps);
    }
    Err(Error::invalid_config(format!("{place}: {rate_bps} is outside 1k to 1P bits per second")))
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
