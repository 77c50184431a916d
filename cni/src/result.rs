//! The result of ADD.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::address::Cidr;
use crate::version::Version;

/// The result of ADD in the newest form, that of CNI 1.1.0. [`to_json`](Self::to_json) writes it for any version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Success {
    /// Interfaces that the attachment consists of, in the host and in the container.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses of these interfaces.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Routes in the container.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name resolution in the container.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// An interface in a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address as text, for other plugins' interfaces need not be Ethernet; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes; CNI 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The path of its network namespace; empty for an interface of the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// The socket of a vhost-user interface; CNI 1.1.0.
    #[serde(default, rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// The PCI address of the interface's device; CNI 1.1.0.
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address in a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// The address and the length of its network's prefix.
    pub address: Cidr,
    /// The gateway of that network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Which of the interfaces has it, counted from 0; an IPAM plugin does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u32>,
}

/// A route in a result. All but `dst` and `gw` are of CNI 1.1.0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    pub dst: Cidr,
    /// The next hop; without one it is the gateway of the addresses, as the plugin sees fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// The MTU along the path, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The segment size to advertise to TCP peers, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// The priority; lower goes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The scope, as in rtnetlink(7): 0 global, 253 link, 254 host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route to a destination, without a next hop of its own.
    pub fn to(dst: Cidr) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    /// The same route by way of a next hop.
    #[must_use]
    pub fn via(self, gw: IpAddr) -> Self {
        Self { gw: Some(gw), ..self }
    }
}

/// Name resolution in a result or a configuration, as in resolv.conf(5).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers, most preferred first.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search domains, most preferred first.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options to the resolver.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Success {
    /// Reads a result in the form of any version from 0.3.1 on: another plugin's answer, or a `prevResult`.
    ///
    /// # Errors
    /// What is missing or malformed, in serde's words.
    pub fn parse(value: Value) -> Result<Self, serde_json::Error> {
        serde_json::from_value(value)
    }

    /// The result as a plugin prints it in answer to a configuration of this version. Before 1.0.0 an address names its
    /// IP version, and before 1.1.0 there is no MTU, nor any of the other keys that came with it.
    pub fn to_json(&self, version: Version) -> Value {
        let mut fields = match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            // Serialising plain structs to a tree has no case that fails.
            _ => Map::new(),
        };
        if version < Version::V1_1_0 {
            remove_from_each(&mut fields, "interfaces", &["mtu", "socketPath", "pciID"]);
            remove_from_each(&mut fields, "routes", &["mtu", "advmss", "priority", "table", "scope"]);
        }
        if version < Version::V1_0_0 {
            name_ip_versions(&mut fields, &self.ips);
        }
        fields.insert("cniVersion".to_owned(), Value::from(version.as_str()));
        Value::Object(fields)
    }
}

fn remove_from_each(fields: &mut Map<String, Value>, list: &str, keys: &[&str]) {
    let entries = fields.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
    for entry in entries.filter_map(Value::as_object_mut) {
        for key in keys {
            entry.remove(*key);
        }
    }
}

fn name_ip_versions(fields: &mut Map<String, Value>, ips: &[Ip]) {
    let entries = fields.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten();
    for (entry, ip) in entries.filter_map(Value::as_object_mut).zip(ips) {
        let version = if ip.address.address().is_ipv4() { "4" } else { "6" };
        entry.insert("version".to_owned(), Value::from(version));
    }
}

/// Go programs write `null` for an empty list or object.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
#[path = "result_tests.rs"]
mod tests;
