//! OpenFlow 1.4 to one bridge of the local Open vSwitch, over its management socket `<rundir>/<bridge>.mgmt`.
//!
//! Version 1.4 is the first with bundles, by which many flow mods take effect as one. Section numbers in these
//! pages are those of the *OpenFlow Switch Specification 1.4.1*; what Open vSwitch adds is in ovs-fields(7) and
//! ovs-actions(7).
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use openvswitch::openflow::{Action, Connection, Flow, FlowMod, Match, PortNo};
//! let switch = Connection::connect("/var/run/openvswitch/br0.mgmt").await?;
//! let flow = Flow::new(0, 100, Match::new().in_port(3)).actions([Action::Output(PortNo(4))]);
//! switch.flow_mods_atomically(&[FlowMod::Add(flow)]).await?;
//! # Ok(())
//! # }
//! ```

mod action;
mod connection;
mod error;
mod field;
mod field_kind;
mod flow;
mod mac;
mod matching;
mod message;
mod subfield;
mod switch_error;
#[cfg(test)]
mod tests;
mod transport;
mod wire;

pub use action::{Action, PortNo};
pub use connection::{Connection, REQUEST_DEADLINE};
pub use error::{DecodeError, EncodeError, Error};
pub use field::{
    ETH_TYPE_ARP, ETH_TYPE_IPV4, ETH_TYPE_IPV6, Field, FieldError, IP_PROTO_ICMP, IP_PROTO_ICMPV6,
    IP_PROTO_TCP, IP_PROTO_UDP,
};
pub use field_kind::FieldKind;
pub use flow::{Flow, FlowKey, FlowMod, FlowStats};
pub use mac::{Mac, MacError};
pub use matching::{Match, Prerequisite, UnknownField};
pub use message::{Features, Meter, MeterMod, Port, PortChange, PortStatus};
pub use subfield::Subfield;
pub use switch_error::SwitchError;
