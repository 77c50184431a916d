//! The node's own links for segments: the VLAN link that a segment's pods share, and the macvlan by which the host
//! reaches its own pods.
//!
//! A VLAN link is made when the first pod needs it. An alias marks it as ours, so that a later agent knows it again and
//! removes it after the last pod; one that somebody else made stays.
//!
//! The kernel passes nothing between a link and the macvlans on it. Where a segment has HostAccess, the host therefore
//! has a macvlan of its own there, without any address of the segment: routes to its local pods lead through it, with
//! the address that the host would otherwise use as their source, and the pods have a route to that address. Nobody
//! asks by ARP or neighbour discovery: both sides have permanent entries, and the host's macvlan answers nobody, or
//! machines outside would learn its MAC address for the host's addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard};

use ipnet::IpNet;
use nix::errno::Errno;
use tenon_ipam::{Mode, Segment, mac_of_lease};
use tenon_netdev::{Error, Link, Macvlan, MacvlanMode, Netlink, Route, RouteFilter, sysctl};
use tracing::{info, warn};

/// The aliases by which an agent knows its links again.
const VLAN_ALIAS: &str = "tenon: made for a segment's pods";
const HOST_ALIAS: &str = "tenon: host access to macvlan pods";

/// Why a segment has no link on this node.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error(
        "segment {segment:?}: this node has no interface {master:?}; say which it is here by segments.{segment}.master in agent.toml"
    )]
    NoMaster { segment: String, master: String },
    #[error("segment {segment:?}: {source}")]
    Netdev { segment: String, source: Error },
}

/// A segment's link on this node.
#[derive(Debug, Clone)]
pub(super) struct SegmentLink {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: u32,
    pub(super) mac: Option<[u8; 6]>,
}

/// Keeps a link from being removed while an ADD is about to use it.
#[derive(Debug)]
pub(super) struct InUse {
    links: Arc<Links>,
    key: (String, Option<u16>),
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut users = self.links.users();
        if let Some(count) = users.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.key);
            }
        }
    }
}

/// The links of this node.
#[derive(Debug)]
pub(super) struct Links {
    /// A handle on the host's namespace, for everything that is asked of it while a runtime waits. What deletes links has
    /// a handle of its own.
    pub(super) netlink: Netlink,
    /// Which interface is a segment's master here, where its record says another.
    masters: BTreeMap<String, String>,
    /// The address by which pods reach the host.
    underlay: Ipv4Addr,
    /// How many ADDs are about to use a VLAN of a master. Held while VLAN links are made and removed.
    users: Mutex<BTreeMap<(String, Option<u16>), usize>>,
    /// Held while the host's macvlans and their routes change.
    host: Mutex<()>,
}

/// A local pod that the host shall reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LocalPod {
    pub(super) link: String,
    pub(super) ip: IpAddr,
    pub(super) mac: [u8; 6],
}

impl Links {
    pub(super) fn new(masters: BTreeMap<String, String>, underlay: Ipv4Addr) -> Result<Self, Error> {
        let netlink = Netlink::open()?;
        Ok(Self { netlink, masters, underlay, users: Mutex::default(), host: Mutex::default() })
    }

    fn users(&self) -> MutexGuard<'_, BTreeMap<(String, Option<u16>), usize>> {
        self.users.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The segment's link, made if it is a VLAN that has none yet. It stays until what is returned with it is dropped,
    /// and for as long as a pod is on it.
    pub(super) fn ensure(self: &Arc<Self>, segment: &Segment) -> Result<(SegmentLink, InUse), LinkError> {
        let netlink = &self.netlink;
        let name = self.masters.get(&segment.name).unwrap_or(&segment.master);
        let failed = |source| LinkError::Netdev { segment: segment.name.clone(), source };
        let mut users = self.users();
        let master = netlink
            .link_by_name(name)
            .map_err(failed)?
            .ok_or_else(|| LinkError::NoMaster { segment: segment.name.clone(), master: name.clone() })?;
        let link = match segment.vlan {
            None => {
                if !master.up {
                    netlink.set_up(master.index).map_err(failed)?;
                }
                master
            }
            Some(vlan) => vlan_link(netlink, &master, vlan).map_err(failed)?,
        };
        let key = (name.clone(), segment.vlan);
        *users.entry(key.clone()).or_default() += 1;
        drop(users);
        let link = SegmentLink { index: link.index, name: link.name, mtu: link.mtu, mac: link.mac };
        Ok((link, InUse { links: self.clone(), key }))
    }

    /// Removes the VLAN links that were made here and that no pod is on. `wanted` says, after no ADD can begin, which
    /// links pods are on.
    pub(super) fn remove_unused(&self, wanted: impl FnOnce() -> BTreeSet<String>) -> Result<(), Error> {
        let netlink = Netlink::open()?;
        let links = netlink.links()?;
        let mut ours = links.iter().filter(|link| link.alias.as_deref() == Some(VLAN_ALIAS)).peekable();
        if ours.peek().is_none() {
            return Ok(());
        }
        let users = self.users();
        let wanted = wanted();
        for link in ours.filter(|link| !wanted.contains(&link.name)) {
            let master = links.iter().find(|master| Some(master.index) == link.peer_index);
            let key = master.map(|master| (master.name.clone(), link.vlan_id));
            if key.is_some_and(|key| users.contains_key(&key)) {
                continue;
            }
            info!(link = link.name, "no pod is on it any more; removing");
            netlink.delete_link(link.index)?;
        }
        Ok(())
    }

    /// The index of the host's macvlan on the segment's link, made if it is not there; `None` if the segment gives no
    /// access.
    pub(super) fn host_link(&self, segment: &Segment, link: &SegmentLink) -> Result<Option<u32>, Error> {
        if !has_host_access(segment) {
            return Ok(None);
        }
        let _held = self.host.lock();
        self.ensure_host_link(&self.netlink, &link.name, link.index).map(Some)
    }

    /// The host's addresses for pods with these addresses, each with the MAC address of its macvlan on the link.
    pub(super) fn host_addresses(
        &self,
        link: &str,
        pods: &[IpAddr],
    ) -> Result<Vec<(IpAddr, [u8; 6])>, Error> {
        let mac = self.host_mac(link);
        let sources = pods.iter().filter_map(|pod| self.source(&self.netlink, *pod).transpose());
        sources.map(|source| Ok((source?, mac))).collect()
    }

    /// Makes the host reach these pods too, by its macvlan of this index.
    pub(super) fn let_in(&self, host: u32, pods: &[LocalPod]) -> Result<(), Error> {
        let _held = self.host.lock();
        pods.iter().try_for_each(|pod| self.set_route(&self.netlink, host, pod))
    }

    /// Takes back what [`Self::let_in`] did for a pod that goes.
    pub(super) fn shut_out(&self, pods: &[LocalPod]) -> Result<(), Error> {
        let _held = self.host.lock();
        let netlink = &self.netlink;
        pods.iter().try_for_each(|pod| match netlink.link_by_name(&host_link_name(&pod.link))? {
            Some(host) => remove_route(netlink, host.index, pod.ip),
            None => Ok(()),
        })
    }

    /// Makes the host reach these pods and no others. `pods` is asked when nobody else changes routes.
    pub(super) fn reconcile_host(&self, pods: impl FnOnce() -> Vec<LocalPod>) -> Result<(), Error> {
        let _held = self.host.lock();
        let netlink = Netlink::open()?;
        let links = netlink.links()?;
        let pods = pods();
        let wanted: BTreeSet<&str> = pods.iter().map(|pod| pod.link.as_str()).collect();
        for link in links.iter().filter(|link| link.alias.as_deref() == Some(HOST_ALIAS)) {
            let under = links.iter().find(|under| Some(under.index) == link.peer_index);
            if !under.is_some_and(|under| wanted.contains(under.name.as_str())) {
                info!(link = link.name, "the host has no pods there any more; removing");
                netlink.delete_link(link.index)?;
            }
        }
        for name in wanted {
            let Some(under) = links.iter().find(|link| link.name == name) else { continue };
            let host = self.ensure_host_link(&netlink, name, under.index)?;
            let local: Vec<_> = pods.iter().filter(|pod| pod.link == name).collect();
            let found = netlink.routes(RouteFilter { device: Some(host), table: Some(254) })?;
            let is_host = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
            for route in found.iter().filter(|route| route.gateway.is_none() && is_host(&route.destination)) {
                let ip = route.destination.addr();
                if !local.iter().any(|pod| pod.ip == ip) && !is_link_local(ip) {
                    remove_route(&netlink, host, ip)?;
                }
            }
            for pod in local {
                self.set_route(&netlink, host, pod)?;
            }
        }
        Ok(())
    }

    fn set_route(&self, netlink: &Netlink, host: u32, pod: &LocalPod) -> Result<(), Error> {
        let Some(source) = self.source(netlink, pod.ip)? else { return Ok(()) };
        let route = Route { source: Some(source), ..Route::direct(IpNet::from(pod.ip), host) };
        netlink.replace_neighbour(host, pod.ip, pod.mac, true)?;
        netlink.replace_route(&route)
    }

    /// The host's macvlan on a link, made if it is not there. Returns its index.
    fn ensure_host_link(&self, netlink: &Netlink, link: &str, index: u32) -> Result<u32, Error> {
        let name = host_link_name(link);
        if let Some(found) = netlink.link_by_name(&name)? {
            if found.peer_index == Some(index) && found.mac == Some(self.host_mac(link)) && found.up {
                return Ok(found.index);
            }
            warn!(link = name, "it is not as it should be; making it anew");
            netlink.delete_link(found.index)?;
        }
        let made = netlink.create_macvlan(&Macvlan {
            name: &name,
            master: index,
            netns: None,
            mode: MacvlanMode::Bridge,
            mac: Some(self.host_mac(link)),
            mtu: None,
            up: true,
        })?;
        let prepare = || {
            netlink.set_alias(made.index, HOST_ALIAS)?;
            // 8: answer for no address (linux/Documentation/networking/ip-sysctl.rst).
            sysctl::write(&format!("net/ipv4/conf/{name}/arp_ignore"), "8")?;
            // The node may have no IPv6.
            sysctl::write_if_there(&format!("net/ipv6/conf/{name}/accept_ra"), "0")
        };
        if let Err(error) = prepare() {
            netlink.delete_link(made.index)?;
            return Err(error);
        }
        info!(link = name, "made, for the host to reach its pods");
        Ok(made.index)
    }

    /// The host's MAC address on a link: always the same, for pods have it in permanent entries.
    fn host_mac(&self, link: &str) -> [u8; 6] {
        mac_of_lease(&format!("host on {link}"), self.underlay.into()).bytes()
    }

    /// The address of the host that a pod with this address talks to.
    fn source(&self, netlink: &Netlink, pod: IpAddr) -> Result<Option<IpAddr>, Error> {
        match pod {
            IpAddr::V4(_) => Ok(Some(self.underlay.into())),
            IpAddr::V6(_) => match netlink.route_to(pod) {
                Ok(way) => Ok(way.source.filter(|source| !is_link_local(*source))),
                Err(error) if matches!(error.errno(), Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH)) => {
                    Ok(None)
                }
                Err(error) => Err(error),
            },
        }
    }
}

/// Whether the host can reach a segment's pods, and shall. Pods in mode private talk to no neighbour, and one in mode
/// passthru has its master for itself.
pub(super) fn has_host_access(segment: &Segment) -> bool {
    segment.host_access && matches!(segment.mode, Mode::Bridge | Mode::Vepa)
}

fn remove_route(netlink: &Netlink, host: u32, ip: IpAddr) -> Result<(), Error> {
    netlink.delete_route(&Route::direct(IpNet::from(ip), host))?;
    netlink.delete_neighbour(host, ip)
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local() || ip.is_multicast())
}

fn vlan_link(netlink: &Netlink, master: &Link, vlan: u16) -> Result<Link, Error> {
    if !master.up {
        netlink.set_up(master.index)?;
    }
    let made = netlink.ensure_vlan(&vlan_name(&master.name, vlan), master.index, vlan)?;
    if made.made {
        if let Err(error) = netlink.set_alias(made.index, VLAN_ALIAS) {
            netlink.delete_link(made.index)?;
            return Err(error);
        }
        info!(link = made.name, "made for a segment's pods");
    }
    netlink.link_by_index(made.index)?.ok_or_else(|| Error::vanished("create VLAN link", made.name))
}

/// `eth0.100`, as everybody calls it; of a master with a long name, as much as a link's 15 characters hold.
fn vlan_name(master: &str, vlan: u16) -> String {
    shortened("", master, &format!(".{vlan}"))
}

/// The host's macvlan on a link.
fn host_link_name(link: &str) -> String {
    shortened("mv-", link, "")
}

/// The kernel takes names of at most 15 bytes. Of a longer one the middle becomes a hash, which tells it from others.
fn shortened(before: &str, name: &str, after: &str) -> String {
    let room = 15_usize.saturating_sub(before.len() + after.len());
    if name.len() <= room {
        return format!("{before}{name}{after}");
    }
    // FNV-1a: a restarted agent of another build must come to the same name.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let digits = format!("{hash:016x}");
    let digits = digits.get(..room.saturating_sub(1).min(8)).unwrap_or_default();
    format!("{before}v{digits}{after}")
}

/// A pod with these addresses on a link, for the host to reach; nothing if its MAC address is not known.
pub(super) fn local_pods(link: &str, ips: &[IpAddr], mac: Option<[u8; 6]>) -> Vec<LocalPod> {
    let pod = |(ip, mac): (&IpAddr, [u8; 6])| LocalPod { link: link.to_owned(), ip: *ip, mac };
    ips.iter().filter_map(|ip| Some((ip, mac?))).map(pod).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_usual_ones_and_fit_the_kernel() {
        assert_eq!(vlan_name("eth0", 100), "eth0.100");
        assert_eq!(vlan_name("enp129s0f0np0", 4094).len(), 14);
        assert_ne!(vlan_name("enp129s0f0np0", 4094), vlan_name("enp129s0f1np1", 4094));
        assert_eq!(host_link_name("eth0.100"), "mv-eth0.100");
        assert!(host_link_name("enp129s0f0np0").len() <= 15);
        assert_ne!(host_link_name("enp129s0f0np0"), host_link_name("enp129s0f1np0"));
    }
}
