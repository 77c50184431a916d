//! What can be wrong with a segment's record.

use std::net::IpAddr;

use ipnet::IpNet;
use tenon_tenant::FieldError;

use crate::Family;

/// Why a text is no segment. Every message names the field and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Not JSON, not an object, or a field of a wrong type.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The name inside and the key differ.
    #[error("Name is {found:?}, but the record's key says {key:?}")]
    Name {
        /// The last part of the key, shortened.
        key: String,
        /// What the record says, shortened.
        found: String,
    },
    /// A field that has to be there is not, or is empty.
    #[error("{field} is missing: {example} would do")]
    Missing {
        /// The field's name.
        field: &'static str,
        /// What it could look like.
        example: &'static str,
    },
    /// No interface can be called so.
    #[error("Master is {0:?}, which is no interface's name: 1 to 15 characters without \"/\" and spaces")]
    Master(String),
    /// None of the modes.
    #[error("Mode is {0:?}; it must be \"bridge\", \"private\", \"vepa\" or \"passthru\"")]
    Mode(String),
    /// Not a network.
    #[error("{field} is {value:?}, not a network such as 10.100.0.0/24 or fd00:100::/64")]
    NotNetwork {
        /// The field's name.
        field: String,
        /// What it holds, shortened.
        value: String,
    },
    /// An address within a network rather than the network.
    #[error("{field} is {value}, which has host bits set: did you mean {meant}?")]
    HostBits {
        /// The field's name.
        field: String,
        /// What it holds.
        value: IpNet,
        /// The same without host bits.
        meant: IpNet,
    },
    /// Not an address.
    #[error("{field} is {value:?}, not an IPv4 or IPv6 address")]
    NotAddress {
        /// The field's name.
        field: String,
        /// What it holds, shortened.
        value: String,
    },
    /// Two values of one family.
    #[error("{field} is {value:?}: at most one {family} value can be given")]
    FamilyTwice {
        /// The field's name.
        field: &'static str,
        /// What it holds, shortened.
        value: String,
        /// The family.
        family: Family,
    },
    /// A value of a family that the segment has no subnet of.
    #[error("{field} is {value}, but Subnet has no {family} network")]
    NoSubnet {
        /// The field's name.
        field: String,
        /// What it holds.
        value: String,
        /// The family.
        family: Family,
    },
    /// Addresses that pods cannot have.
    #[error("Subnet is {subnet}, which overlaps {reserved} ({role}): pods need unicast addresses")]
    NotUnicast {
        /// The subnet.
        subnet: IpNet,
        /// What it overlaps.
        reserved: IpNet,
        /// What that is for.
        role: &'static str,
    },
    /// An address outside the subnet.
    #[error("{field} is {value}, outside Subnet {subnet}")]
    Outside {
        /// The field's name.
        field: String,
        /// What it holds.
        value: String,
        /// The subnet, or both.
        subnet: String,
    },
    /// A gateway that no router can have.
    #[error("Gateway is {gateway}, the {role} of Subnet {subnet}")]
    GatewayRole {
        /// The gateway.
        gateway: IpAddr,
        /// What the address is.
        role: &'static str,
        /// The subnet.
        subnet: IpNet,
    },
    /// The range ends before it starts.
    #[error("RangeStart is {first}, after RangeEnd {last}")]
    Reversed {
        /// RangeStart, or the subnet's first address.
        first: IpAddr,
        /// RangeEnd, or the subnet's last address.
        last: IpAddr,
    },
    /// Nothing is left for pods.
    #[error(
        "no address is left for a pod between {first} and {last} without Exclude, Gateway and what no interface can have"
    )]
    Empty {
        /// The start of the range.
        first: IpAddr,
        /// Its end.
        last: IpAddr,
    },
    /// Not a list.
    #[error("{field} is {value}, not a list")]
    NotList {
        /// The field's name.
        field: &'static str,
        /// Its value as JSON, shortened.
        value: String,
    },
    /// An element of Routes that is no route.
    #[error("{field} is {value}, not a route such as {{\"dst\":\"10.0.0.0/8\",\"gw\":\"10.100.0.2\"}}")]
    NotRoute {
        /// Which element.
        field: String,
        /// Its value as JSON, shortened.
        value: String,
    },
    /// A route whose next hop is of another family.
    #[error("{field} goes to {dst} by way of {gw}: both must be of one family")]
    RouteFamilies {
        /// Which element.
        field: String,
        /// The destination.
        dst: IpNet,
        /// The next hop.
        gw: IpAddr,
    },
    /// Too small to carry the protocol.
    #[error("Mtu is {mtu}, but {family} needs at least {least}; 0 takes that of the master")]
    Mtu {
        /// The MTU in bytes.
        mtu: u32,
        /// The family.
        family: Family,
        /// The least in bytes.
        least: u32,
    },
}
