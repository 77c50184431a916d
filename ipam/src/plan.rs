//! What the controller does about an edit of a node's record.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use tenon_tenant::{Edit, shorten};

use crate::node_record::{refused_record, same_record};
use crate::{NodeRecord, NodeRecordError, SettledSubnet, Subnets};

/// What to write, in one transaction that holds only if the record is still the one that was read.
#[derive(Debug, Clone, PartialEq)]
pub enum SubnetPlan {
    /// Nothing.
    Nothing,
    /// The node's grant is new, or its last good record is.
    Settle {
        /// The text to store as the record; `None` when what is there is right.
        record: Option<Vec<u8>>,
        /// The settled copy to store. Its subnet never differs from one that the node had.
        settled: SettledSubnet,
        /// The subnet given out last, to be stored too, when this plan gives one out.
        cursor: Option<Ipv4Net>,
    },
    /// The edit is refused: nothing that was granted changes.
    PutBack {
        /// The text to store as the record: the last good one with Error, or an inert one for a node without.
        record: Vec<u8>,
        /// Why.
        refusal: SubnetRefusal,
    },
    /// The node is gone: remove its settled copy.
    Forget,
}

/// Why an edit is refused. The text goes into the record's Error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetRefusal {
    /// The text is no record.
    #[error(transparent)]
    Record(#[from] NodeRecordError),
    /// The node's own address is one that pods get.
    #[error("HostIP {host_ip} lies inside the pods' Network {network}: a node needs an address outside it")]
    HostIpInNetwork {
        /// The node's address.
        host_ip: Ipv4Addr,
        /// The cluster's network.
        network: Ipv4Net,
    },
    /// Two records of one node.
    #[error("Host {host:?} is already registered with the address {host_ip}: delete that record first")]
    HostTaken {
        /// The name, shortened.
        host: String,
        /// Where it is registered.
        host_ip: Ipv4Addr,
    },
    /// The name was edited: the subnet would go to another node, with pods in it.
    #[error(
        "Host was changed by hand from {settled:?} to {found:?}: a node that is renamed changes its record itself; for a host without agent, delete the record and add it anew"
    )]
    HostChanged {
        /// The node's, shortened.
        settled: String,
        /// What the record says, shortened.
        found: String,
    },
    /// The subnet was edited.
    #[error(
        "Subnet was changed by hand from {settled} to {found}: delete the record to give up the node's subnet"
    )]
    SubnetChanged {
        /// The node's.
        settled: Ipv4Net,
        /// What the record says.
        found: Ipv4Net,
    },
    /// The subnet is none of those that the cluster's network is divided into.
    #[error("Subnet {found} is not a /{prefix_length} inside Network {network}")]
    Unsuitable {
        /// What the record says.
        found: Ipv4Net,
        /// The prefix length of a node's subnet.
        prefix_length: u8,
        /// The cluster's network.
        network: Ipv4Net,
    },
    /// The subnet belongs to another node.
    #[error(
        "Subnet {found} overlaps {taken} of node {host:?} ({host_ip}): set Assign to true to get a free one"
    )]
    Taken {
        /// What the record says.
        found: Ipv4Net,
        /// The other node's.
        taken: Ipv4Net,
        /// The other node's name, shortened.
        host: String,
        /// The other node's address.
        host_ip: Ipv4Addr,
    },
    /// The record neither has a subnet nor asks for one.
    #[error("Subnet is empty and Assign is false: set Assign to true to ask for a subnet")]
    NothingAsked,
    /// All subnets are in use.
    #[error("all {count} subnets of Network {network} are in use: delete the records of nodes that are gone")]
    Exhausted {
        /// How many there are.
        count: u32,
        /// The cluster's network.
        network: Ipv4Net,
    },
}

/// Decides what an edit of the node record under the key that ends in `key` means.
///
/// The plan for a record that an earlier plan wrote is [`SubnetPlan::Nothing`]. A record of a node without a grant
/// that has an Error, no Subnet and does not ask for one is inert: somebody has to put a better one.
pub fn plan_subnet(subnets: &Subnets, key: &str, edit: Edit<'_>) -> SubnetPlan {
    let settled = key.parse().ok().and_then(|host_ip| subnets.settled(host_ip));
    match (edit, settled) {
        (Edit::Deleted, None) => SubnetPlan::Nothing,
        (Edit::Deleted, Some(_)) => SubnetPlan::Forget,
        (Edit::Put(text), _) => {
            judge(subnets, key, text).unwrap_or_else(|refusal| put_back(settled, key, text, refusal))
        }
    }
}

fn judge(subnets: &Subnets, key: &str, text: &[u8]) -> Result<SubnetPlan, SubnetRefusal> {
    if is_inert(subnets, key, text) {
        return Ok(SubnetPlan::Nothing);
    }
    let record = NodeRecord::parse(key, text)?;
    let cluster = subnets.cluster();
    let settled = subnets.settled(record.host_ip);
    if settled.is_none() && cluster.network.contains(&record.host_ip) {
        return Err(SubnetRefusal::HostIpInNetwork { host_ip: record.host_ip, network: cluster.network });
    }
    if let Some(settled) = settled.filter(|settled| settled.host != record.host) {
        return Err(SubnetRefusal::HostChanged {
            settled: shorten(&settled.host),
            found: shorten(&record.host),
        });
    }
    if settled.is_none()
        && let Some(host_ip) = subnets.address_of(&record.host)
    {
        return Err(SubnetRefusal::HostTaken { host: shorten(&record.host), host_ip });
    }
    let (subnet, cursor) = match (settled, record.subnet) {
        (Some(settled), None) => (settled.subnet, None),
        (Some(settled), Some(found)) if found == settled.subnet => (found, None),
        (Some(settled), Some(found)) => {
            return Err(SubnetRefusal::SubnetChanged { settled: settled.subnet, found });
        }
        (None, Some(imported)) => (check_free(subnets, imported)?, None),
        (None, None) if record.assign => {
            let exhausted =
                SubnetRefusal::Exhausted { count: cluster.subnet_count(), network: cluster.network };
            let given = subnets.next_free().ok_or(exhausted)?;
            (given, Some(given))
        }
        (None, None) => return Err(SubnetRefusal::NothingAsked),
    };
    // Error tells about the last edit that was refused, until one that asks for something has gone well.
    let error = record.error.clone().filter(|_| !record.assign && settled.is_some());

    let copy = SettledSubnet::new(&record, subnet);
    let wanted = copy.record(error).to_json();
    let stored = same_record(&wanted, text);
    if stored && settled == Some(&copy) {
        return Ok(SubnetPlan::Nothing);
    }
    Ok(SubnetPlan::Settle { record: (!stored).then_some(wanted), settled: copy, cursor })
}

/// Whether the text is what a refusal leaves behind, or as good as it: even a key or a Host that can never be right
/// is told only once.
fn is_inert(subnets: &Subnets, key: &str, text: &[u8]) -> bool {
    let settled = key.parse().is_ok_and(|host_ip| subnets.settled(host_ip).is_some());
    let mut fields = match tenon_tenant::Fields::parse(text) {
        Ok(fields) if !settled => fields,
        _ => return false,
    };
    let empty = |text: Option<String>| text.is_none_or(|text| text.is_empty());
    fields.take_text("Error").is_ok_and(|error| !empty(error))
        && fields.take_text("Subnet").is_ok_and(empty)
        && fields.take_bool("Assign").is_ok_and(|assign| assign != Some(true))
}

fn check_free(subnets: &Subnets, found: Ipv4Net) -> Result<Ipv4Net, SubnetRefusal> {
    let cluster = subnets.cluster();
    if found.prefix_len() != cluster.subnet_prefix_length() || !cluster.network.contains(&found) {
        let prefix_length = cluster.subnet_prefix_length();
        return Err(SubnetRefusal::Unsuitable { found, prefix_length, network: cluster.network });
    }
    match subnets.overlapping(found) {
        None => Ok(found),
        Some(other) => Err(SubnetRefusal::Taken {
            found,
            taken: other.subnet,
            host: shorten(&other.host),
            host_ip: other.host_ip,
        }),
    }
}

fn put_back(settled: Option<&SettledSubnet>, key: &str, text: &[u8], refusal: SubnetRefusal) -> SubnetPlan {
    let record = match settled {
        Some(settled) => settled.record(Some(refusal.to_string())).to_json(),
        None => refused_record(key, text, format!("{refusal}; to try again, set Assign to true")),
    };
    if same_record(&record, text) { SubnetPlan::Nothing } else { SubnetPlan::PutBack { record, refusal } }
}
