//! Container Network Interface types and the call between plugin and agent.
//!
//! The types follow the [CNI specification](https://www.cni.dev/docs/spec/), versions 0.3.1 to 1.1.0. A runtime hands
//! the plugin an [`Environment`] and a network configuration; both become one [`Request`], which the plugin sends to the
//! node's agent and which ends in one [`Response`]. Everything here is pure: reading and writing is the caller's part.

mod address;
mod arguments;
mod bandwidth;
mod conf;
mod environment;
mod error;
pub mod frame;
mod quantity;
mod request;
mod result;
mod version;

pub use address::{AddressError, Cidr, Mac, RequestedIp};
pub use arguments::{Arguments, DEFAULT_TENANT, PodArguments, Verb};
pub use bandwidth::{Bandwidth, Limit};
pub use conf::{Attachment, DEFAULT_AGENT_SOCKET, Ipam, Mode, NetConf, RawConf, SEGMENT_ANNOTATION};
pub use environment::Environment;
pub use error::{Error, code};
pub use quantity::{QuantityError, parse_quantity};
pub use request::{Call, LimitChange, PROTOCOL, Request, Response, WireError};
pub use result::{Dns, Interface, Ip, Route, Success};
pub use version::Version;
