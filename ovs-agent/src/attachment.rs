//! One interface of one pod, and how it is written into the `external_ids` of its OVSDB Interface row.
//!
//! That row is the node's only record of an attachment: a restarted agent reads its pods back from there.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use openvswitch::openflow::Mac;
use tenon_cni::{Bandwidth, Limit};
use thiserror::Error;

/// What the CNI specification makes an attachment's identity. A StatefulSet's new pod has the name of the old one but
/// another container ID, so a late DEL for the old one cannot touch it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct AttachmentId {
    pub(crate) network: String,
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

impl AttachmentId {
    /// The host-side link and OVS port of this attachment: `tenon` and ten hexadecimal digits, which are the kernel's
    /// 15 characters.
    pub(crate) fn link_name(&self) -> String {
        // FNV-1a: the name must be the same in every build of the agent, which std's hasher does not promise.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for part in [&self.network, &self.container_id, &self.ifname] {
            for byte in part.bytes().chain([0]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        format!("{LINK_PREFIX}{:010x}", hash & 0xff_ffff_ffff)
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {} in network {}", self.ifname, self.container_id, self.network)
    }
}

/// What every host-side link of a pod is called; a link so named without an OVSDB row is left over and is deleted.
pub(crate) const LINK_PREFIX: &str = "tenon";

/// One interface of one pod on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) id: AttachmentId,
    pub(crate) netns: PathBuf,
    /// The Kubernetes namespace.
    pub(crate) tenant: String,
    pub(crate) pod: String,
    pub(crate) uid: String,
    pub(crate) ip: Ipv4Addr,
    pub(crate) mac: Mac,
    /// The OpenFlow port that is asked for in `Interface.ofport_request`.
    pub(crate) ofport: u16,
    /// How much it may send and receive.
    pub(crate) bandwidth: Bandwidth,
}

/// An Interface row that says it is ours but cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("interface {interface}: external_ids:{key} is {}", .value.as_deref().unwrap_or("missing"))]
pub(crate) struct UnreadableAttachment {
    pub(crate) interface: String,
    pub(crate) key: &'static str,
    pub(crate) value: Option<String>,
}

const NETWORK: &str = "tenon-network";
const CONTAINER_ID: &str = "tenon-container-id";
const IFNAME: &str = "tenon-ifname";
const NETNS: &str = "tenon-netns";
const NAMESPACE: &str = "tenon-namespace";
const POD: &str = "tenon-pod";
const UID: &str = "tenon-pod-uid";
const IP: &str = "tenon-ip";
/// Open vSwitch's own name for it (Integration Guide for Centralized Control).
const MAC: &str = "attached-mac";

/// Rates in bits per second and bursts in bits; absent where there is no limit.
const INGRESS: [&str; 2] = ["tenon-ingress-rate", "tenon-ingress-burst"];
const EGRESS: [&str; 2] = ["tenon-egress-rate", "tenon-egress-burst"];

impl Attachment {
    /// Whether an Interface row with these `external_ids` is an attachment of ours.
    pub(crate) fn is_recorded_in(external_ids: &BTreeMap<String, String>) -> bool {
        external_ids.contains_key(CONTAINER_ID)
    }

    /// What is written into `Interface.external_ids`.
    pub(crate) fn external_ids(&self) -> BTreeMap<String, String> {
        let limits = [(INGRESS, self.bandwidth.ingress), (EGRESS, self.bandwidth.egress)];
        let limits = limits.into_iter().flat_map(|([rate, burst], limit)| {
            let rate = limit.map(|limit| (rate, limit.rate_bps.to_string()));
            let burst = limit.and_then(|limit| Some((burst, limit.burst_bits?.to_string())));
            rate.into_iter().chain(burst)
        });
        let ids = [
            (NETWORK, self.id.network.clone()),
            (CONTAINER_ID, self.id.container_id.clone()),
            (IFNAME, self.id.ifname.clone()),
            (NETNS, self.netns.display().to_string()),
            (NAMESPACE, self.tenant.clone()),
            (POD, self.pod.clone()),
            (UID, self.uid.clone()),
            (IP, self.ip.to_string()),
            (MAC, self.mac.to_string()),
        ];
        ids.into_iter().chain(limits).map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Reads back what [`Self::external_ids`] wrote for the interface called `interface`.
    pub(crate) fn from_external_ids(
        interface: &str,
        external_ids: &BTreeMap<String, String>,
        ofport: u16,
    ) -> Result<Self, UnreadableAttachment> {
        let unreadable = |key, value: Option<&String>| UnreadableAttachment {
            interface: interface.to_owned(),
            key,
            value: value.cloned(),
        };
        let text = |key| external_ids.get(key).cloned().ok_or_else(|| unreadable(key, None));
        let number = |key| {
            let text = external_ids.get(key);
            text.map(|text| text.parse::<u64>().map_err(|_| unreadable(key, Some(text)))).transpose()
        };
        let limit = |[rate, burst]: [&'static str; 2]| {
            let burst_bits = number(burst)?;
            Ok(number(rate)?.map(|rate_bps| Limit { rate_bps, burst_bits }))
        };
        let (ip, mac) = (text(IP)?, text(MAC)?);
        Ok(Self {
            id: AttachmentId {
                network: text(NETWORK)?,
                container_id: text(CONTAINER_ID)?,
                ifname: text(IFNAME)?,
            },
            netns: text(NETNS)?.into(),
            tenant: text(NAMESPACE)?,
            pod: text(POD)?,
            uid: text(UID)?,
            ip: ip.parse().map_err(|_| unreadable(IP, Some(&ip)))?,
            mac: mac.parse().map_err(|_| unreadable(MAC, Some(&mac)))?,
            ofport,
            bandwidth: Bandwidth { ingress: limit(INGRESS)?, egress: limit(EGRESS)? },
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn attachment(container_id: &str, tenant: &str, last_octet: u8, ofport: u16) -> Attachment {
        Attachment {
            id: AttachmentId {
                network: "tenon".into(),
                container_id: container_id.into(),
                ifname: "eth0".into(),
            },
            netns: "/run/netns/x".into(),
            tenant: tenant.into(),
            pod: "m1".into(),
            uid: "u".into(),
            ip: Ipv4Addr::new(172, 11, 0, last_octet),
            mac: Mac([0x0e, 0x74, 172, 11, 0, last_octet]),
            ofport,
            bandwidth: Bandwidth::default(),
        }
    }

    #[test]
    fn an_attachment_is_read_back_as_it_was_written() {
        let limit = |rate_bps, burst_bits| Some(Limit { rate_bps, burst_bits });
        for (ingress, egress) in [
            (None, None),
            (limit(1_000, None), None),
            (limit(5_000, Some(9)), limit(u64::MAX, Some(u64::MAX))),
        ] {
            let written =
                Attachment { bandwidth: Bandwidth { ingress, egress }, ..attachment("c1", "a", 5, 7) };
            let read = Attachment::from_external_ids("tn1", &written.external_ids(), 7).unwrap();
            assert_eq!(read, written);
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let mut ids = attachment("c1", "a", 5, 7).external_ids();
        ids.insert(IP.into(), "300.1.1.1".into());
        let error = Attachment::from_external_ids("tn1", &ids, 7).unwrap_err().to_string();
        assert_eq!(error, "interface tn1: external_ids:tenon-ip is 300.1.1.1");
        ids.remove(IP);
        let error = Attachment::from_external_ids("tn1", &ids, 7).unwrap_err().to_string();
        assert_eq!(error, "interface tn1: external_ids:tenon-ip is missing");
    }

    #[test]
    fn link_names_fit_the_kernel_and_tell_attachments_apart() {
        let id = |container: &str, ifname: &str| AttachmentId {
            network: "tenon".into(),
            container_id: container.into(),
            ifname: ifname.into(),
        };
        assert_eq!(id("c1", "eth0").link_name().len(), 15);
        assert_eq!(id("c1", "eth0").link_name(), id("c1", "eth0").link_name());
        assert_ne!(id("c1", "eth0").link_name(), id("c1", "eth1").link_name());
        assert_ne!(id("c1e", "th0").link_name(), id("c1", "eth0").link_name());
    }
}
