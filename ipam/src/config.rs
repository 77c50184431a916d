//! The cluster's configuration: the record under `/config`.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use tenon_tenant::{FieldError, Fields, PluginName, UnknownPluginName, shorten};

/// The UDP port that IANA gave to VXLAN (RFC 7348 section 5).
pub const DEFAULT_VXLAN_PORT: u16 = 4789;

/// The cluster's network, read from `/config`:
/// `{"Name":"k8ssdn","Network":"172.11.0.0/16","HostSubnetLength":10,"ServiceNetwork":"10.96.0.0/12",
/// "PluginName":"k8s-ovs-multitenant"}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNetwork {
    /// The network's name, part of the key of every other record.
    pub name: String,
    /// Where all pod addresses come from.
    pub network: Ipv4Net,
    /// The host bits of a node's subnet: 10 makes it a /22.
    pub host_subnet_length: u8,
    /// Where Kubernetes' service addresses come from.
    pub service_network: Option<Ipv4Net>,
    /// Whether tenants are kept apart.
    pub plugin_name: PluginName,
    /// The UDP port of the overlay.
    pub vxlan_port: u16,
}

/// Why a text is no cluster configuration. Every message names the key and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, not an object, or a field of a wrong type.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A field that has to be there is not, or is empty.
    #[error("{field} is missing: {example} would do")]
    Missing {
        /// The field's name.
        field: &'static str,
        /// What it could look like.
        example: &'static str,
    },
    /// The name cannot be part of a key.
    #[error("Name is {0:?}; it must not contain \"/\"")]
    Name(String),
    /// Not an IPv4 network.
    #[error("{field} is {value:?}, not an IPv4 network such as {example}")]
    NotNetwork {
        /// The field's name.
        field: &'static str,
        /// What it holds, shortened.
        value: String,
        /// What it could look like.
        example: &'static str,
    },
    /// An address within a network rather than the network.
    #[error("{field} is {value}, which has host bits set: did you mean {meant}?")]
    HostBits {
        /// The field's name.
        field: &'static str,
        /// What it holds.
        value: Ipv4Net,
        /// The same without host bits.
        meant: Ipv4Net,
    },
    /// A node's subnet would be larger than the whole network.
    #[error("HostSubnetLength is {length}, but Network {network} has only {bits} host bits to share out")]
    SubnetTooBig {
        /// HostSubnetLength.
        length: u8,
        /// Network.
        network: Ipv4Net,
        /// Its host bits.
        bits: u8,
    },
    /// Service addresses would be pod addresses.
    #[error("ServiceNetwork {service_network} overlaps Network {network}")]
    Overlap {
        /// ServiceNetwork.
        service_network: Ipv4Net,
        /// Network.
        network: Ipv4Net,
    },
    /// Neither of the two plugin names.
    #[error(transparent)]
    PluginName(#[from] UnknownPluginName),
}

const NETWORK_EXAMPLE: &str = "172.11.0.0/16";
const SERVICE_NETWORK_EXAMPLE: &str = "10.96.0.0/12";

impl ClusterNetwork {
    /// Reads the text found under `/config`. Unknown fields are passed over.
    ///
    /// VxlanPort may be absent or 0 ([`DEFAULT_VXLAN_PORT`]), ServiceNetwork absent or empty.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(text: &[u8]) -> Result<ClusterNetwork, ConfigError> {
        let mut fields = Fields::parse(text)?;
        let name = needed(fields.take_text("Name")?, "Name", "\"k8ssdn\"")?;
        if name.contains('/') {
            return Err(ConfigError::Name(shorten(&name)));
        }
        let network = needed(fields.take_text("Network")?, "Network", NETWORK_EXAMPLE)?;
        let network = parse_network("Network", &network, NETWORK_EXAMPLE)?;
        // At least two host bits: network, gateway, a pod, broadcast.
        let length = fields.take_integer("HostSubnetLength", 2, 32)?.ok_or(ConfigError::Missing {
            field: "HostSubnetLength",
            example: "10 (a /22 for every node)",
        })?;
        let bits = 32 - network.prefix_len();
        let host_subnet_length = length as u8;
        if host_subnet_length > bits {
            return Err(ConfigError::SubnetTooBig { length: host_subnet_length, network, bits });
        }
        let service_network = match fields.take_text("ServiceNetwork")?.filter(|text| !text.is_empty()) {
            Some(text) => Some(parse_network("ServiceNetwork", &text, SERVICE_NETWORK_EXAMPLE)?),
            None => None,
        };
        if let Some(service_network) = service_network
            && (service_network.contains(&network) || network.contains(&service_network))
        {
            return Err(ConfigError::Overlap { service_network, network });
        }
        let plugin_name = needed(fields.take_text("PluginName")?, "PluginName", "\"k8s-ovs-multitenant\"")?;
        let vxlan_port = match fields.take_integer("VxlanPort", 0, u16::MAX.into())?.unwrap_or(0) as u16 {
            0 => DEFAULT_VXLAN_PORT,
            port => port,
        };
        Ok(ClusterNetwork {
            name,
            network,
            host_subnet_length,
            service_network,
            plugin_name: plugin_name.parse()?,
            vxlan_port,
        })
    }

    /// The prefix length of a node's subnet.
    pub fn subnet_prefix_length(&self) -> u8 {
        32_u8.saturating_sub(self.host_subnet_length)
    }

    /// How many node subnets the network holds.
    pub fn subnet_count(&self) -> u32 {
        // At most 2^30, as a subnet has at least two host bits.
        1_u32 << self.subnet_prefix_length().saturating_sub(self.network.prefix_len()).min(31)
    }

    /// A node subnet by its place in the network, from 0.
    pub(crate) fn subnet(&self, place: u32) -> Option<Ipv4Net> {
        if place >= self.subnet_count() {
            return None;
        }
        let offset = place.checked_shl(self.host_subnet_length.into()).unwrap_or(0);
        let first = Ipv4Addr::from_bits(self.network.network().to_bits() | offset);
        Ipv4Net::new(first, self.subnet_prefix_length()).ok()
    }

    /// The place in the network of the node subnet that holds an address.
    pub(crate) fn place_of(&self, address: Ipv4Addr) -> Option<u32> {
        let offset = address.to_bits() - self.network.network().to_bits().min(address.to_bits());
        self.network
            .contains(&address)
            .then(|| offset.checked_shr(self.host_subnet_length.into()).unwrap_or(0))
    }
}

fn needed(text: Option<String>, field: &'static str, example: &'static str) -> Result<String, ConfigError> {
    text.filter(|text| !text.is_empty()).ok_or(ConfigError::Missing { field, example })
}

fn parse_network(field: &'static str, text: &str, example: &'static str) -> Result<Ipv4Net, ConfigError> {
    let value: Ipv4Net =
        text.parse().map_err(|_| ConfigError::NotNetwork { field, value: shorten(text), example })?;
    let meant = value.trunc();
    if meant == value { Ok(value) } else { Err(ConfigError::HostBits { field, value, meant }) }
}
