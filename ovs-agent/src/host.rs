//! The node's own kernel state: the gateway address, the route to the cluster network, forwarding and masquerading.
//!
//! Everything is put in place again and again ("ensure"): the gateway's interface goes with ovs-vswitchd, and people
//! change things.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Once;

use ipnet::{IpNet, Ipv4Net};
use nix::errno::Errno;
use openvswitch::openflow::Mac;
use tenon_netdev::{AddressFlags, Error, Masquerade, Netlink, PortGuard, Route, sysctl};
use thiserror::Error as ThisError;
use tracing::warn;

use crate::attachment::LINK_PREFIX;
use crate::bridge::GATEWAY_NAME;
use crate::config::Datapath;
use crate::model::NodeNetwork;

/// VXLAN over IPv4 adds the outer IP, UDP and VXLAN headers and the inner Ethernet header (RFC 7348 section 5).
pub(crate) const VXLAN_OVERHEAD_BYTES: u32 = 50;
/// Our tables in nftables.
const NFT_TABLE: &str = "tenon";

/// Why the node's kernel state is not as it should be.
#[derive(Debug, ThisError)]
pub(crate) enum HostError {
    #[error(transparent)]
    Netdev(#[from] Error),
    #[error("no link of this node has the underlay address {0}; set node.ip in agent.toml to one that has")]
    NoUnderlay(Ipv4Addr),
    #[error("the way to {0} has no source address; set node.ip in agent.toml")]
    NoSource(Ipv4Addr),
    #[error("{GATEWAY_NAME} does not exist (yet)")]
    NoGateway,
}

/// The underlay address when none is configured: the source address of the default route.
pub(crate) fn default_underlay_address() -> Result<Ipv4Addr, HostError> {
    // RFC 5737: an address that only the default route leads to.
    const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    match Netlink::open()?.route_to(ELSEWHERE.into())?.source {
        Some(IpAddr::V4(source)) => Ok(source),
        _ => Err(HostError::NoSource(ELSEWHERE)),
    }
}

/// The MTU of the pods: what the underlay link carries, less the overhead of VXLAN.
pub(crate) fn pod_mtu(underlay: Ipv4Addr) -> Result<u32, HostError> {
    let netlink = Netlink::open()?;
    for link in netlink.links()? {
        if netlink.addresses(link.index)?.iter().any(|a| a.address.addr() == IpAddr::V4(underlay)) {
            return Ok(link.mtu.saturating_sub(VXLAN_OVERHEAD_BYTES));
        }
    }
    Err(HostError::NoUnderlay(underlay))
}

/// Puts the node's kernel state in place.
pub(crate) fn ensure(node: &NodeNetwork, mac: Mac, mtu: u32, datapath: Datapath) -> Result<(), HostError> {
    let netlink = Netlink::open()?;
    let gateway = netlink.link_by_name(GATEWAY_NAME)?.ok_or(HostError::NoGateway)?;
    if gateway.mac != Some(mac.0) {
        netlink.set_mac(gateway.index, mac.0)?;
    }
    if gateway.mtu != mtu {
        netlink.set_mtu(gateway.index, mtu)?;
    }
    let address = IpNet::V4(Ipv4Net::new_assert(node.gateway, node.subnet.prefix_len()));
    for old in netlink.addresses(gateway.index)? {
        if old.address.addr().is_ipv4() && old.address != address {
            netlink.delete_address(gateway.index, old.address)?;
        }
    }
    netlink.ensure_address(gateway.index, address, AddressFlags::default())?;
    netlink.set_up(gateway.index)?;
    let mut route = Route::direct(IpNet::V4(node.network), gateway.index);
    route.source = Some(node.gateway.into());
    netlink.replace_route(&route)?;

    sysctl::write("net.ipv4.ip_forward", "1")?;
    let masquerade = Masquerade { table: NFT_TABLE.to_owned(), network: node.network, except: Vec::new() };
    // Without it pods still reach each other; the outside answers them if it has a route to their network.
    tolerate(masquerade.install(), "pods' addresses are not masqueraded", &NO_MASQUERADE)?;
    let guard = PortGuard { table: NFT_TABLE.to_owned(), link_prefix: LINK_PREFIX.to_owned() };
    match datapath {
        // The node's IP stack sees what pods send beside the switch; nothing may work without the guard.
        Datapath::Netdev => drop(guard.install()?),
        // The switch takes it first; the guard is for the moment before a link becomes its port.
        Datapath::System => {
            tolerate(guard.install(), "pods' links are not guarded while they are made", &NO_GUARD)?
        }
    }
    Ok(())
}

static NO_MASQUERADE: Once = Once::new();
static NO_GUARD: Once = Once::new();

/// Says once, instead of failing, that this kernel has no nftables for what was tried.
fn tolerate(outcome: Result<bool, Error>, consequence: &str, told: &Once) -> Result<(), HostError> {
    match outcome {
        Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => {
            told.call_once(|| warn!(%error, "{consequence}: this kernel has no nftables for it"));
            Ok(())
        }
        outcome => Ok(outcome.map(drop)?),
    }
}
