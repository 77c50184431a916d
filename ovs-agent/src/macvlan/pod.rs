//! The pod's interface: first a draft that nobody can use, made while etcd writes the lease; then set up, asked for
//! conflicts, given addresses and routes, announced.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::errno::Errno;
use tenon_cni::Bandwidth;
use tenon_netdev::{
    AddressFlags, AddressProbe, Announcer, Conflict, Error, Link, LinkShaper, Macvlan, MacvlanMode, NetNs,
    Netlink, Route, RouteFilter, sysctl,
};

use super::limits;

/// How long the MAC address of a pod that is just being deleted may be in the way of the next one: the kernel takes a
/// namespace down some time after its name is gone.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(3);
const LEFTOVER_INTERVAL: Duration = Duration::from_millis(5);

/// Which interface a pod is to have, and where.
#[derive(Debug, Clone)]
pub(super) struct PodEnd {
    pub(super) netns: PathBuf,
    pub(super) ifname: String,
    /// What the interface is called as it is made, and its alias until it is settled: a name of this attachment alone, by
    /// which another agent knows what a dead one has left.
    pub(super) draft_name: String,
    /// The index of the host's link that it is on.
    pub(super) link: u32,
    pub(super) mode: MacvlanMode,
    /// In bytes.
    pub(super) mtu: u32,
}

/// What the interface is given.
#[derive(Debug, Clone)]
pub(super) struct Given {
    /// `None`: its master's, as mode passthru has it, or a random one.
    pub(super) mac: Option<[u8; 6]>,
    pub(super) addresses: Vec<IpNet>,
    /// Destinations and next hops.
    pub(super) routes: Vec<(IpNet, Option<IpAddr>)>,
    /// How long to wait for others to answer for the addresses.
    pub(super) probe: Duration,
    pub(super) bandwidth: Bandwidth,
}

/// Why there is no interface; none is left behind.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The pod has a link of this name already.
    Occupied,
    Netdev(Error),
    Conflict(Conflict),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Netdev(error)
    }
}

/// A pod's interface before it is settled: it is down, so that nothing is sent from it, and has no address.
#[derive(Debug)]
pub(super) struct Draft {
    end: PodEnd,
    netns: NetNs,
    pod: Netlink,
    announcer: Announcer,
    index: u32,
}

impl PodEnd {
    /// Makes the interface; `host` is a handle on its master's namespace. Blocks.
    pub(super) fn draft(self, host: &Netlink) -> Result<Draft, Trouble> {
        let netns = NetNs::open(&self.netns)?;
        let (pod, announcer) = netns.run(|| Ok::<_, Error>((Netlink::open()?, Announcer::open()?)))??;
        match pod.link_by_name(&self.ifname)? {
            None => {}
            Some(left) if is_draft(&left, &self.draft_name) => pod.delete_link(left.index)?,
            Some(_) => return Err(Trouble::Occupied),
        }
        let wanted = Macvlan {
            name: &self.draft_name,
            master: self.link,
            netns: Some((&netns, &pod)),
            mode: self.mode,
            mac: None,
            mtu: Some(self.mtu),
            up: false,
        };
        let create = || patiently(self.mode, || host.create_macvlan(&wanted));
        let made = match create() {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                // What an ADD of this attachment has left that died with its agent.
                if let Some(left) = pod.link_by_name(&self.draft_name)? {
                    pod.delete_link(left.index)?;
                }
                create()
            }
            made => made,
        };
        let draft = Draft { index: made?.index, end: self, netns, pod, announcer };
        match draft.name() {
            Ok(()) => Ok(draft),
            Err(error) => {
                draft.delete()?;
                Err(if error.errno() == Some(Errno::EEXIST) { Trouble::Occupied } else { error.into() })
            }
        }
    }
}

impl Draft {
    /// Names it as the pod's interface is called, but marks it as none yet. To name a link is what takes the kernel
    /// longest of all that is done to it.
    fn name(&self) -> Result<(), Error> {
        self.pod.set_alias(self.index, &self.end.draft_name)?;
        self.pod.set_name(self.index, &self.end.ifname)
    }

    /// Deletes it. Blocks for some 20 ms.
    pub(super) fn delete(&self) -> Result<(), Error> {
        self.pod.delete_link(self.index)?;
        self.netns.run(|| LinkShaper::remove_leftovers(&self.pod))?.map(drop)
    }

    /// Makes it the pod's interface. `host` is the host's addresses and the MAC address of its own macvlan, if the pod
    /// shall reach it. Returns it as the pod has it now, and what it was announced by. Blocks.
    pub(super) fn settle(
        self,
        given: &Given,
        host: &[(IpAddr, [u8; 6])],
    ) -> Result<(Link, Announcer), Trouble> {
        match self.configure(given, host) {
            Ok(link) => Ok((link, self.announcer)),
            Err(trouble) => {
                self.delete()?;
                Err(trouble)
            }
        }
    }

    fn configure(&self, given: &Given, host: &[(IpAddr, [u8; 6])]) -> Result<Link, Trouble> {
        let PodEnd { ifname, mode, .. } = &self.end;
        let link = patiently(*mode, || self.pod.raise_macvlan(self.index, given.mac))?;
        self.pod.set_alias(self.index, "")?;
        let ips: Vec<IpAddr> = given.addresses.iter().map(IpNet::addr).collect();
        if ips.iter().any(IpAddr::is_ipv6) {
            let setting = format!("net/ipv6/conf/{ifname}/disable_ipv6");
            self.netns.run(|| sysctl::write(&setting, "0"))??;
        }
        let netns = Some(&self.netns);
        let probe = AddressProbe { netns, link: link.index, addresses: &ips, wait: given.probe };
        if let Some(conflict) = probe.run()?.into_iter().next() {
            return Err(Trouble::Conflict(conflict));
        }
        for address in &given.addresses {
            // The kernel's own detection would keep an IPv6 address from use for a second and more.
            let flags = AddressFlags { nodad: true, ..AddressFlags::default() };
            self.pod.add_address(link.index, *address, flags)?;
        }
        self.set_routes(given, host)?;
        if given.bandwidth != Bandwidth::default() {
            let limits = limits::on_link(given.bandwidth, &link);
            self.netns.run(|| LinkShaper::new(&self.pod, &link).set(&limits))??;
        }
        if let Some(mac) = link.mac {
            self.announcer.announce(link.index, mac, &ips)?;
        }
        Ok(link)
    }

    fn set_routes(&self, given: &Given, host: &[(IpAddr, [u8; 6])]) -> Result<(), Error> {
        let (pod, link) = (&self.pod, self.index);
        for (ip, mac) in host {
            if !given.addresses.iter().any(|address| address.contains(ip)) {
                pod.replace_route(&Route::direct(IpNet::from(*ip), link))?;
            }
            pod.replace_neighbour(link, *ip, *mac, true)?;
        }
        for (destination, gateway) in &given.routes {
            let route = match gateway {
                Some(gateway) => Route::via(*destination, *gateway, link),
                None => Route::direct(*destination, link),
            };
            pod.replace_route(&route)?;
        }
        Ok(())
    }
}

/// Whether a pod's interface is a draft of this name that an agent has left which died.
fn is_draft(link: &Link, draft_name: &str) -> bool {
    is_macvlan(link) && !link.up && link.alias.as_deref() == Some(draft_name)
}

/// Tries again while what is in the way may be gone in a moment.
fn patiently<T>(mode: MacvlanMode, make: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    let start = Instant::now();
    loop {
        match make() {
            Err(error) if is_in_the_way(&error, mode) && start.elapsed() < LEFTOVER_TIMEOUT => {
                thread::sleep(LEFTOVER_INTERVAL);
            }
            made => return made,
        }
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
    let Some(netns) = NetNs::open_if_there(netns)? else { return Ok(()) };
    netns.run(|| match Netlink::open()?.link_by_name(ifname)? {
        Some(link) if link.mac == Some(mac) => Announcer::open()?.announce(link.index, mac, addresses),
        _ => Ok(()),
    })?
}

/// Whether a pod's namespace is there.
///
/// # Errors
/// Nobody can say.
pub(super) fn is_there(netns: &Path) -> Result<bool, Error> {
    Ok(NetNs::open_if_there(netns)?.is_some())
}

/// Takes the addresses from a pod's macvlan, so that it answers for them no more, and returns its namespace and index, by
/// which it is to be deleted; the same for a draft. No index: there is no macvlan with one of these MAC addresses, and no
/// draft. One with another MAC address belongs to a pod that came later, under the same path. `None`: there is no such
/// namespace.
pub(super) fn silence(
    netns: &Path,
    ifname: &str,
    draft_name: &str,
    macs: &[[u8; 6]],
) -> Result<Option<(NetNs, Option<u32>)>, Error> {
    let Some(netns) = NetNs::open_if_there(netns)? else { return Ok(None) };
    let pod = Netlink::open_in(&netns)?;
    let is_its_own = |link: &Link| {
        is_macvlan(link) && link.mac.is_some_and(|mac| macs.contains(&mac)) || is_draft(link, draft_name)
    };
    let Some(link) = pod.link_by_name(ifname)?.filter(is_its_own) else {
        let draft = pod.link_by_name(draft_name)?;
        return Ok(Some((netns, draft.map(|draft| draft.index))));
    };
    for address in pod.addresses(link.index)? {
        pod.delete_address(link.index, address.address)?;
    }
    Ok(Some((netns, Some(link.index))))
}

/// The addresses of a pod's macvlan with this MAC address (`None`: any); none if there is no such interface.
pub(super) fn addresses(netns: &Path, ifname: &str, mac: Option<[u8; 6]>) -> Result<Vec<IpAddr>, Error> {
    let Some(netns) = NetNs::open_if_there(netns)? else { return Ok(Vec::new()) };
    let pod = Netlink::open_in(&netns)?;
    let is_its_own = |link: &Link| is_macvlan(link) && (mac.is_none() || link.mac == mac);
    let Some(link) = pod.link_by_name(ifname)?.filter(is_its_own) else { return Ok(Vec::new()) };
    Ok(pod.addresses(link.index)?.iter().map(|address| address.address.addr()).collect())
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
    pub(super) bandwidth: Bandwidth,
}

impl Expected {
    /// What is wrong with the interface.
    pub(super) fn fault(&self) -> Result<Option<String>, Error> {
        let ifname = &self.ifname;
        let netns = NetNs::open(&self.netns)?;
        let pod = Netlink::open_in(&netns)?;
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
        if let Some((destination, gateway)) = missing {
            let by = gateway.map_or_else(|| ifname.clone(), |gateway| gateway.to_string());
            return Ok(Some(format!("the pod has no route to {destination} by {by}")));
        }
        let limits = netns.run(|| limits::fault(&pod, &link, self.bandwidth))??;
        Ok(limits.map(|fault| fault.to_string()))
    }
}

pub(super) fn is_macvlan(link: &Link) -> bool {
    link.kind.as_deref() == Some("macvlan")
}
