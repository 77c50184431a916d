//! A node's record, as people edit it, and what the controller has granted to the node.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Serialize;
use serde_json::{Map, Value};
use tenon_tenant::{FieldError, Fields, bounded_error, shorten};

/// A node's record under `subnets/`:
/// `{"Host":"node1","HostIP":"10.0.0.1","Subnet":"172.11.0.0/22","Assign":false}`, with `"Error"` when the last edit
/// was refused. Fields that are not known are carried along.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeRecord {
    /// The node's name.
    pub host: String,
    /// The node's address in the underlay, which is also the last part of the record's key.
    pub host_ip: Ipv4Addr,
    /// The subnet that the record claims to have.
    pub subnet: Option<Ipv4Net>,
    /// Whether the record asks for a subnet.
    pub assign: bool,
    /// Why the last edit was refused.
    pub error: Option<String>,
    extra: Map<String, Value>,
}

/// Why a text is no node record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeRecordError {
    /// Not JSON, not an object, or a field of a wrong type.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The last part of the key is no address.
    #[error("the record's key ends in {0:?}, which is not an IPv4 address")]
    Key(String),
    /// No name.
    #[error("Host is empty: it must name the node")]
    NoHost,
    /// The address inside and the key differ.
    #[error("HostIP is {found:?}, but the record's key says {key}")]
    HostIp {
        /// The last part of the key.
        key: Ipv4Addr,
        /// What the record says, shortened.
        found: String,
    },
    /// Not an IPv4 network.
    #[error("Subnet is {0:?}, not an IPv4 network such as 172.11.0.0/22")]
    Subnet(String),
    /// An address within a network rather than the network.
    #[error("Subnet is {value}, which has host bits set: did you mean {meant}?")]
    HostBits {
        /// What it holds.
        value: Ipv4Net,
        /// The same without host bits.
        meant: Ipv4Net,
    },
}

impl NodeRecord {
    /// A record that asks for a subnet: how a node registers.
    pub fn new(host: &str, host_ip: Ipv4Addr) -> NodeRecord {
        NodeRecord {
            host: host.to_owned(),
            host_ip,
            subnet: None,
            assign: true,
            error: None,
            extra: Map::new(),
        }
    }

    /// Reads the text found under a key that ends in `key`.
    ///
    /// What may be left out: HostIP (or empty: the key says it), Subnet, Assign and Error. Whether the subnet suits
    /// the cluster is for [`plan_subnet`](crate::plan_subnet) to say.
    ///
    /// # Errors
    /// See [`NodeRecordError`]; every variant names the field and what it holds.
    pub fn parse(key: &str, text: &[u8]) -> Result<NodeRecord, NodeRecordError> {
        let host_ip: Ipv4Addr = key.parse().map_err(|_| NodeRecordError::Key(shorten(key)))?;
        let mut fields = Fields::parse(text)?;
        let host =
            fields.take_text("Host")?.filter(|host| !host.is_empty()).ok_or(NodeRecordError::NoHost)?;
        let found = fields.take_text("HostIP")?.filter(|found| !found.is_empty());
        if let Some(found) = found.filter(|found| found.parse() != Ok(host_ip)) {
            return Err(NodeRecordError::HostIp { key: host_ip, found: shorten(&found) });
        }
        let subnet = match fields.take_text("Subnet")?.filter(|subnet| !subnet.is_empty()) {
            Some(text) => Some(parse_subnet(&text)?),
            None => None,
        };
        let assign = fields.take_bool("Assign")?.unwrap_or(false);
        let error = fields.take_error()?;
        Ok(NodeRecord { host, host_ip, subnet, assign, error, extra: fields.rest()? })
    }

    /// The fields that Tenon carries along without knowing them.
    pub fn extra(&self) -> &Map<String, Value> {
        &self.extra
    }

    /// The same record under another address.
    pub(crate) fn moved_to(&self, host_ip: Ipv4Addr) -> NodeRecord {
        NodeRecord { host_ip, ..self.clone() }
    }

    /// The same record, asking for a subnet anew.
    pub(crate) fn asking(&self) -> NodeRecord {
        NodeRecord { subnet: None, assign: true, error: None, ..self.clone() }
    }

    /// The record as it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        stored(
            &self.host,
            &self.host_ip.to_string(),
            self.subnet,
            self.assign,
            self.error.as_deref(),
            &self.extra,
        )
    }
}

/// The record to leave behind when `text` was refused and there is nothing good to go back to: no subnet, not asking,
/// the reason, and whatever else can be saved.
pub(crate) fn refused_record(key: &str, text: &[u8], reason: String) -> Vec<u8> {
    let mut fields = Fields::parse(text).ok();
    let host = fields.as_mut().and_then(|fields| fields.take_text("Host").ok().flatten()).unwrap_or_default();
    let extra = fields.and_then(|mut fields| {
        for known in ["HostIP", "Subnet", "Assign", "Error"] {
            fields.take(known);
        }
        fields.rest().ok()
    });
    stored(&bounded_error(host), key, None, false, Some(&bounded_error(reason)), &extra.unwrap_or_default())
}

/// Whether the text of a record already says what `wanted` says.
pub(crate) fn same_record(wanted: &[u8], text: &[u8]) -> bool {
    let value = |text| serde_json::from_slice::<Value>(text).ok();
    wanted == text || value(wanted).is_some_and(|wanted| Some(wanted) == value(text))
}

/// What the controller has granted to a node, kept in the store beside the record:
/// `{"Host":"node1","HostIP":"10.0.0.1","Subnet":"172.11.0.0/22"}` and the record's unknown fields.
///
/// Nodes apply this and never the record, which people edit. The controller, and its successor, put the record back
/// from it when an edit is refused.
#[derive(Debug, Clone, PartialEq)]
pub struct SettledSubnet {
    /// The node's name.
    pub host: String,
    /// The node's address in the underlay: where its VTEP is.
    pub host_ip: Ipv4Addr,
    /// The addresses of the node's pods.
    pub subnet: Ipv4Net,
    extra: Map<String, Value>,
}

impl SettledSubnet {
    pub(crate) fn new(record: &NodeRecord, subnet: Ipv4Net) -> SettledSubnet {
        let NodeRecord { host, host_ip, extra, .. } = record.clone();
        SettledSubnet { host, host_ip, subnet, extra }
    }

    /// Reads the text found under a settled key that ends in `key`.
    ///
    /// # Errors
    /// The text was not written by [`SettledSubnet::to_json`].
    pub fn parse(key: &str, text: &[u8]) -> Result<SettledSubnet, NodeRecordError> {
        let record = NodeRecord::parse(key, text)?;
        let subnet = record.subnet.ok_or_else(|| NodeRecordError::Subnet(String::new()))?;
        Ok(SettledSubnet::new(&record, subnet))
    }

    /// The same grant under another address.
    pub(crate) fn moved_to(&self, host_ip: Ipv4Addr) -> SettledSubnet {
        SettledSubnet { host_ip, ..self.clone() }
    }

    /// The last good record.
    pub fn record(&self, error: Option<String>) -> NodeRecord {
        NodeRecord {
            host: self.host.clone(),
            host_ip: self.host_ip,
            subnet: Some(self.subnet),
            assign: false,
            error: error.map(bounded_error),
            extra: self.extra.clone(),
        }
    }

    /// The copy as it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Stored<'a> {
            host: &'a str,
            #[serde(rename = "HostIP")]
            host_ip: Ipv4Addr,
            subnet: Ipv4Net,
            #[serde(flatten)]
            extra: &'a Map<String, Value>,
        }
        let copy =
            Stored { host: &self.host, host_ip: self.host_ip, subnet: self.subnet, extra: &self.extra };
        serde_json::to_vec(&copy).expect("strings, numbers and maps with string keys always serialise")
    }
}

fn stored(
    host: &str,
    host_ip: &str,
    subnet: Option<Ipv4Net>,
    assign: bool,
    error: Option<&str>,
    extra: &Map<String, Value>,
) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Stored<'a> {
        host: &'a str,
        #[serde(rename = "HostIP")]
        host_ip: &'a str,
        subnet: String,
        assign: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a str>,
        #[serde(flatten)]
        extra: &'a Map<String, Value>,
    }
    let subnet = subnet.map(|subnet| subnet.to_string()).unwrap_or_default();
    serde_json::to_vec(&Stored { host, host_ip, subnet, assign, error, extra })
        .expect("strings, numbers and maps with string keys always serialise")
}

fn parse_subnet(text: &str) -> Result<Ipv4Net, NodeRecordError> {
    let value: Ipv4Net = text.parse().map_err(|_| NodeRecordError::Subnet(shorten(text)))?;
    let meant = value.trunc();
    if meant == value { Ok(value) } else { Err(NodeRecordError::HostBits { value, meant }) }
}
