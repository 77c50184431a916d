//! The pod's interface: made straight in its namespace, asked for conflicts, given addresses and routes, announced.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::errno::Errno;
use tenon_netdev::{
    AddressFlags, AddressProbe, Announcement, Conflict, Error, Link, Macvlan, MacvlanMode, NetNs, Netlink,
    Route, RouteFilter, sysctl,
};

/// How long the MAC address of a pod that is just being deleted may be in the way of the next one: the kernel takes a
/// namespace down some time after its name is gone.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(3);
const LEFTOVER_INTERVAL: Duration = Duration::from_millis(5);

/// What a pod's interface is to be.
#[derive(Debug, Clone)]
pub(super) struct PodEnd {
    pub(super) netns: PathBuf,
    pub(super) ifname: String,
    /// The index of the host's link that it is on.
    pub(super) link: u32,
    pub(super) mode: MacvlanMode,
    /// `None`: its master's, as mode passthru has it, or a random one.
    pub(super) mac: Option<[u8; 6]>,
    /// In bytes.
    pub(super) mtu: u32,
    pub(super) addresses: Vec<IpNet>,
    /// Destinations and next hops.
    pub(super) routes: Vec<(IpNet, Option<IpAddr>)>,
    /// How long to wait for others to answer for the addresses.
    pub(super) probe: Duration,
    /// The host, if it shall be reached: its addresses and the MAC address of its own macvlan.
    pub(super) host: Vec<(IpAddr, [u8; 6])>,
}

/// Why there is no interface; none is left behind.
#[derive(Debug)]
pub(super) enum Trouble {
    Netdev(Error),
    Conflict(Conflict),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Netdev(error)
    }
}

impl PodEnd {
    /// Makes the interface. Returns it as the pod has it now. Blocks.
    pub(super) fn make(&self) -> Result<Link, Trouble> {
        let netns = NetNs::open(&self.netns)?;
        let host = Netlink::open()?;
        netns.run(|| {
            let pod = Netlink::open()?;
            let link = self.create(&host, &netns, &pod)?;
            match self.configure(&pod, &link) {
                Ok(()) => Ok(link),
                Err(trouble) => {
                    pod.delete_link(link.index)?;
                    Err(trouble)
                }
            }
        })?
    }

    fn create(&self, host: &Netlink, netns: &NetNs, pod: &Netlink) -> Result<Link, Error> {
        let wanted = Macvlan {
            name: &self.ifname,
            master: self.link,
            netns: Some((netns, pod)),
            mode: self.mode,
            mac: self.mac,
            mtu: Some(self.mtu),
        };
        let start = Instant::now();
        loop {
            match host.create_macvlan(&wanted) {
                Err(error) if is_in_the_way(&error, self.mode) && start.elapsed() < LEFTOVER_TIMEOUT => {
                    thread::sleep(LEFTOVER_INTERVAL);
                }
                made => return made,
            }
        }
    }

    /// In the pod's namespace.
    fn configure(&self, pod: &Netlink, link: &Link) -> Result<(), Trouble> {
        let ips: Vec<IpAddr> = self.addresses.iter().map(IpNet::addr).collect();
        if ips.iter().any(IpAddr::is_ipv6) {
            sysctl::write(&format!("net/ipv6/conf/{}/disable_ipv6", self.ifname), "0")?;
        }
        let probe = AddressProbe { netns: None, link: link.index, addresses: &ips, wait: self.probe };
        if let Some(conflict) = probe.run()?.into_iter().next() {
            return Err(Trouble::Conflict(conflict));
        }
        for address in &self.addresses {
            // The kernel's own detection would keep an IPv6 address from use for a second and more.
            let flags = AddressFlags { nodad: true, ..AddressFlags::default() };
            pod.add_address(link.index, *address, flags)?;
        }
        self.set_routes(pod, link.index)?;
        Announcement { netns: None, link: link.index, addresses: &ips }.send()?;
        Ok(())
    }

    fn set_routes(&self, pod: &Netlink, link: u32) -> Result<(), Error> {
        for (ip, mac) in &self.host {
            if !self.addresses.iter().any(|address| address.contains(ip)) {
                pod.replace_route(&Route::direct(IpNet::from(*ip), link))?;
            }
            pod.replace_neighbour(link, *ip, *mac, true)?;
        }
        for (destination, gateway) in &self.routes {
            let route = match gateway {
                Some(gateway) => Route::via(*destination, *gateway, link),
                None => Route::direct(*destination, link),
            };
            pod.replace_route(&route)?;
        }
        Ok(())
    }
}

/// Whether the kernel refused because of what may be gone in a moment.
fn is_in_the_way(error: &Error, mode: MacvlanMode) -> bool {
    match error.errno() {
        Some(Errno::EADDRINUSE) => true,
        // Passthru does not share its master with the last pod either.
        Some(Errno::EINVAL | Errno::EBUSY) => mode == MacvlanMode::Passthru,
        _ => false,
    }
}

/// Says again, to those who missed it, where addresses are; not if the pod has gone meanwhile.
pub(super) fn announce(netns: &Path, ifname: &str, mac: [u8; 6], addresses: &[IpAddr]) -> Result<(), Error> {
    let netns = match NetNs::open(netns) {
        Err(Error::NetNsNotFound { .. } | Error::NotANetNs { .. }) => return Ok(()),
        opened => opened?,
    };
    netns.run(|| match Netlink::open()?.link_by_name(ifname)? {
        Some(link) if link.mac == Some(mac) => {
            Announcement { netns: None, link: link.index, addresses }.send()
        }
        _ => Ok(()),
    })?
}

/// Whether a pod's namespace is there.
///
/// # Errors
/// Nobody can say.
pub(super) fn is_there(netns: &Path) -> Result<bool, Error> {
    match NetNs::open(netns) {
        Ok(_) => Ok(true),
        Err(Error::NetNsNotFound { .. } | Error::NotANetNs { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the pod has a link of this name.
pub(super) fn has_link(netns: &Path, ifname: &str) -> Result<bool, Error> {
    Ok(Netlink::open_in(&NetNs::open(netns)?)?.link_by_name(ifname)?.is_some())
}

/// Takes the addresses from a pod's macvlan, so that it answers for them no more, and returns its namespace and index, by
/// which it is to be deleted. `None`: there is none with one of these MAC addresses. One with another belongs to a pod
/// that came later, under the same path.
pub(super) fn silence(netns: &Path, ifname: &str, macs: &[[u8; 6]]) -> Result<Option<(NetNs, u32)>, Error> {
    let netns = match NetNs::open(netns) {
        Err(Error::NetNsNotFound { .. } | Error::NotANetNs { .. }) => return Ok(None),
        opened => opened?,
    };
    let pod = Netlink::open_in(&netns)?;
    let is_its_own = |link: &Link| is_macvlan(link) && link.mac.is_some_and(|mac| macs.contains(&mac));
    let Some(link) = pod.link_by_name(ifname)?.filter(is_its_own) else { return Ok(None) };
    for address in pod.addresses(link.index)? {
        pod.delete_address(link.index, address.address)?;
    }
    Ok(Some((netns, link.index)))
}

/// What a pod's interface must be for CHECK.
pub(super) struct Expected {
    pub(super) netns: PathBuf,
    pub(super) ifname: String,
    pub(super) mode: Option<MacvlanMode>,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) addresses: Vec<IpNet>,
    /// The host's link that it is on.
    pub(super) link: Option<String>,
    pub(super) routes: Vec<(IpNet, Option<IpAddr>)>,
}

impl Expected {
    /// What is wrong with the interface.
    pub(super) fn fault(&self) -> Result<Option<String>, Error> {
        let ifname = &self.ifname;
        let pod = Netlink::open_in(&NetNs::open(&self.netns)?)?;
        let Some(link) = pod.link_by_name(ifname)? else {
            return Ok(Some(format!("the pod has no {ifname}")));
        };
        if !is_macvlan(&link) {
            let kind = link.kind.as_deref().unwrap_or("hardware");
            return Ok(Some(format!("the pod's {ifname} is of kind {kind}, not a macvlan")));
        }
        if let Some(mode) = self.mode.filter(|mode| link.macvlan_mode != Some(*mode)) {
            let found = link.macvlan_mode.map_or("another", MacvlanMode::name);
            return Ok(Some(format!("the pod's {ifname} is in mode {found}, not {mode}")));
        }
        if let Some(name) = &self.link {
            let master = Netlink::open()?.link_by_name(name)?.map(|master| master.index);
            if master.is_none() || link.peer_index != master {
                return Ok(Some(format!("the pod's {ifname} is not on {name}")));
            }
        }
        if !link.up {
            return Ok(Some(format!("the pod's {ifname} is down")));
        }
        if self.mac.is_some() && link.mac != self.mac {
            return Ok(Some(format!("the pod's {ifname} does not have the MAC address it was given")));
        }
        let addresses = pod.addresses(link.index)?;
        for address in &self.addresses {
            match addresses.iter().find(|found| found.address == *address) {
                None => return Ok(Some(format!("the pod's {ifname} does not have the address {address}"))),
                Some(found) if found.duplicate => {
                    return Ok(Some(format!("another host has the address {address} of the pod's {ifname}")));
                }
                Some(_) => {}
            }
        }
        let routes = pod.routes(RouteFilter { device: Some(link.index), table: None })?;
        let missing = self.routes.iter().find(|(destination, gateway)| {
            !routes.iter().any(|route| {
                route.destination == *destination && (gateway.is_none() || route.gateway == *gateway)
            })
        });
        Ok(missing.map(|(destination, gateway)| match gateway {
            Some(gateway) => format!("the pod has no route to {destination} by {gateway}"),
            None => format!("the pod has no route to {destination} by {ifname}"),
        }))
    }
}

fn is_macvlan(link: &Link) -> bool {
    link.kind.as_deref() == Some("macvlan")
}
