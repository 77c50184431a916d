//! The record of one address that is given out on a segment.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use serde_json::{Map, Value};
use tenon_tenant::{FieldError, Fields, shorten};

use crate::{Mac, MacError};

/// One interface of one container: what an address is given to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// The container's id, as the runtime calls it.
    pub container_id: String,
    /// The interface's name inside the container.
    pub if_name: String,
}

/// A pod by name: what remains the same when a pod is made again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// The namespace.
    pub namespace: String,
    /// The name. Not empty.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A lease, the record under `/leases/<segment>/<ip>`: `{"IP":"10.100.0.10","MAC":"02:…","Node":"node1",
/// "ContainerID":"…","IfName":"eth0","PodNamespace":"a","PodName":"m1"}`. Fields that are not known are carried along.
///
/// As long as the key exists, its address belongs to the attachment in it, unless the lease is released. A lease that a
/// person writes without a ContainerID takes the address out of use until the person deletes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    /// The address, which is also the last part of the record's key.
    pub ip: IpAddr,
    /// The interface's MAC address.
    pub mac: Option<Mac>,
    /// The name of the pod's node.
    pub node: String,
    /// Who has it, or had it until the release.
    pub attachment: Attachment,
    /// The pod, where the runtime told its name.
    pub pod: Option<PodName>,
    /// When the address was released, in Unix seconds. It then waits in quarantine, is kept for its pod, or (the key
    /// is just not yet deleted) is free.
    pub released: Option<u64>,
    /// The MAC address of a machine outside that answered when somebody asked whether the address is in use. Such a
    /// lease is released from the start, and belongs to no attachment.
    pub conflict: Option<Mac>,
    pub(crate) extra: Map<String, Value>,
}

/// Why a text is no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Not JSON, not an object, or a field of a wrong type.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The last part of the key is no address.
    #[error("the record's key ends in {0:?}, which is not an address")]
    Key(String),
    /// An address that is written in an unusual way: there would be two keys for it.
    #[error("the record's key ends in {key:?}, which must be written {canonical}")]
    KeyForm {
        /// The last part of the key, shortened.
        key: String,
        /// As it is written in keys (RFC 5952).
        canonical: IpAddr,
    },
    /// The address inside and the key differ.
    #[error("IP is {found:?}, but the record's key says {key}")]
    Ip {
        /// The last part of the key.
        key: IpAddr,
        /// What the record says, shortened.
        found: String,
    },
    /// No MAC address.
    #[error("{field} is {value:?}, {error}")]
    Mac {
        /// The field's name.
        field: &'static str,
        /// What it holds, shortened.
        value: String,
        /// What is wrong with it.
        error: MacError,
    },
}

impl Lease {
    /// Reads the text found under a key that ends in `key`. Every field may be left out.
    ///
    /// # Errors
    /// See [`LeaseError`]; every variant names the field and what it holds.
    pub fn parse(key: &str, text: &[u8]) -> Result<Lease, LeaseError> {
        let ip = leased_address(key)?;
        let mut fields = Fields::parse(text)?;
        let found = fields.take_text("IP")?.filter(|found| !found.is_empty());
        if let Some(found) = found.filter(|found| found.parse() != Ok(ip)) {
            return Err(LeaseError::Ip { key: ip, found: shorten(&found) });
        }
        let mac = take_mac(&mut fields, "MAC")?;
        let mut text = |field| fields.take_text(field).map(Option::unwrap_or_default);
        let node = text("Node")?;
        let attachment = Attachment { container_id: text("ContainerID")?, if_name: text("IfName")? };
        let pod = PodName { namespace: text("PodNamespace")?, name: text("PodName")? };
        Ok(Lease {
            ip,
            mac,
            node,
            attachment,
            pod: Some(pod).filter(|pod| !pod.name.is_empty()),
            released: fields.take_integer("Released", 0, u32::MAX)?.map(u64::from),
            conflict: take_mac(&mut fields, "Conflict")?,
            extra: fields.rest()?,
        })
    }

    /// The fields that Tenon carries along without knowing them.
    pub fn extra(&self) -> &Map<String, Value> {
        &self.extra
    }

    /// Gives a field that this crate does not know a value, in the place of the one it had.
    pub fn set_extra(&mut self, field: &str, value: impl Into<Value>) {
        self.extra.insert(field.to_owned(), value.into());
    }

    /// Removes a field that this crate does not know; one that is not there is fine.
    pub fn remove_extra(&mut self, field: &str) {
        self.extra.remove(field);
    }

    /// Who has the address, or had it, in words for people.
    pub fn holder(&self) -> String {
        if let Some(mac) = self.conflict {
            return format!("{mac} outside the cluster, which answered for it");
        }
        let Attachment { container_id, if_name } = &self.attachment;
        let place = match (container_id.is_empty(), self.node.is_empty()) {
            (true, true) => String::new(),
            (true, false) => format!("node {}", self.node),
            (false, true) => format!("{if_name} of container {container_id}"),
            (false, false) => format!("{if_name} of container {container_id} on node {}", self.node),
        };
        match (&self.pod, place.is_empty()) {
            (Some(pod), true) => format!("pod {pod}"),
            (Some(pod), false) => format!("pod {pod} ({place})"),
            (None, true) => "a lease that names no container".to_owned(),
            (None, false) => place,
        }
    }

    /// Whether the lease names a container: one without belongs to nobody whom Tenon knows.
    pub(crate) fn is_attached(&self) -> bool {
        !self.attachment.container_id.is_empty()
    }

    /// The record as it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Stored<'a> {
            #[serde(rename = "IP")]
            ip: IpAddr,
            #[serde(rename = "MAC")]
            mac: String,
            node: &'a str,
            #[serde(rename = "ContainerID")]
            container_id: &'a str,
            if_name: &'a str,
            pod_namespace: &'a str,
            pod_name: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            released: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            conflict: Option<String>,
            #[serde(flatten)]
            extra: &'a Map<String, Value>,
        }
        let stored = Stored {
            ip: self.ip,
            mac: self.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            node: &self.node,
            container_id: &self.attachment.container_id,
            if_name: &self.attachment.if_name,
            pod_namespace: self.pod.as_ref().map_or("", |pod| &pod.namespace),
            pod_name: self.pod.as_ref().map_or("", |pod| &pod.name),
            released: self.released,
            conflict: self.conflict.map(|mac| mac.to_string()),
            extra: &self.extra,
        };
        serde_json::to_vec(&stored).expect("strings, numbers and maps with string keys always serialise")
    }
}

/// The address that a lease's key ends in.
///
/// # Errors
/// It is none, or written in another way than [`IpAddr`] writes it.
pub(crate) fn leased_address(key: &str) -> Result<IpAddr, LeaseError> {
    let canonical: IpAddr = key.parse().map_err(|_| LeaseError::Key(shorten(key)))?;
    if canonical.to_string() == key {
        Ok(canonical)
    } else {
        Err(LeaseError::KeyForm { key: shorten(key), canonical })
    }
}

fn take_mac(fields: &mut Fields, field: &'static str) -> Result<Option<Mac>, LeaseError> {
    let Some(text) = fields.take_text(field)?.filter(|text| !text.is_empty()) else { return Ok(None) };
    let mac = text.parse().map_err(|error| LeaseError::Mac { field, value: shorten(&text), error })?;
    Ok(Some(mac))
}
