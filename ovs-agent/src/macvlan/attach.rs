//! ADD, DEL and GC for macvlan.
//!
//! ADD makes sure of the segment's link, takes the leases in one transaction, and then makes the pod's interface: asked
//! for conflicts, given its addresses and announced before anybody is told of it. What fails is undone in reverse: the
//! interface first, the leases last.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tenon_cni::{Bandwidth, Cidr, Error, Interface, Ip, Request, Route, Success, Verb, code};
use tenon_ipam::{Attachment, Lease, Mac, Mode, PodName, Segment};
use tenon_netdev::{Link, MacvlanMode};
use tracing::{info, warn};

use super::NO_VIEW;
use super::delegation::{self, Delegated};
use super::leases::{NoLease, Wanted, networks};
use super::links::{InUse, LocalPod, SegmentLink, has_host_access};
use super::pod::{self, PodEnd, Trouble};
use super::segments::{field, text};
use crate::attach::{blocking, id_of, netdev_error};
use crate::attachment::AttachmentId;
use crate::node::Node;

/// How long a DEL waits for etcd before the release is put off.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// ANNOUNCE_INTERVAL of RFC 5227 section 1.1: after which the announcement is made a second time.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);

/// Whether the attachment is a macvlan of this node.
pub(crate) fn has(node: &Node, id: &AttachmentId) -> bool {
    !node.macvlan.segments().held(id).is_empty() || node.macvlan.delegated.get::<Delegated>(id).is_some()
}

/// Carries out ADD.
pub(crate) async fn add(node: &Arc<Node>, request: &Request) -> Result<Success, Error> {
    if request.bandwidth()? != Bandwidth::default() {
        let reason =
            "bandwidth: limits are not enforced on macvlan pods; take the limit off, or use mode \"overlay\"";
        return Err(Error::invalid_config(reason));
    }
    let macvlan = &node.macvlan;
    let name = request.segment().ok_or_else(|| {
        Error::invalid_config(
            "segment: missing, and mode macvlan needs one: of the network, or of the pod (tenon.io/segment)",
        )
    })?;
    let id = id_of(request);
    let netns =
        request.arguments.netns.clone().ok_or_else(|| Error::invalid_environment("CNI_NETNS", "not set"))?;
    let _claim = node.claim(&id).ok_or_else(|| Error::try_again(format!("{id} is being worked on")))?;
    let segment = macvlan.segment(name).await?;
    if has_interface(node, &netns, &id.ifname).await? {
        return Err(Error::new(
            code::ALREADY_ATTACHED,
            format!("{id}: the pod has a link of this name already"),
        ));
    }
    let (link, in_use) = segment_link(node, &segment).await?;
    macvlan.releases.remove(&id).map_err(note_error)?;
    let base = Base { id, netns, segment, link };
    let added = if request.conf.ipam.is_some() {
        add_delegated(node, request, &base).await
    } else {
        add_leased(node, request, &base).await
    };
    drop(in_use);
    match &added {
        Ok(success) => {
            let ips: Vec<String> = success.ips.iter().map(|ip| ip.address.address().to_string()).collect();
            info!(attachment = %base.id, segment = base.segment.name, ips = ips.join(","), "attached");
        }
        Err(error) => warn!(attachment = %base.id, segment = base.segment.name, %error, "cannot attach"),
    }
    added
}

/// What every ADD begins with.
struct Base {
    id: AttachmentId,
    netns: PathBuf,
    segment: Segment,
    link: SegmentLink,
}

impl Base {
    fn pod_end(&self) -> PodEnd {
        PodEnd {
            netns: self.netns.clone(),
            ifname: self.id.ifname.clone(),
            link: self.link.index,
            mode: mode_of(self.segment.mode),
            mac: None,
            mtu: self.segment.mtu.map_or(self.link.mtu, |mtu| mtu.min(self.link.mtu)),
            addresses: Vec::new(),
            routes: Vec::new(),
            probe: Duration::from_millis(self.segment.probe_ms.into()),
            host: Vec::new(),
        }
    }
}

async fn add_leased(node: &Arc<Node>, request: &Request, base: &Base) -> Result<Success, Error> {
    let macvlan = &node.macvlan;
    let leftover = macvlan.segments().held(&base.id).iter().any(|(name, _)| *name != base.segment.name);
    if leftover {
        // An ADD that died with its agent, and now the pod wants another segment.
        macvlan.give_back(node, &base.id).await.map_err(|error| Error::try_again(error.to_string()))?;
    }
    let mac = request.requested_mac().map(|mac| Mac::new(mac.bytes())).transpose();
    let mac = mac.map_err(|error| Error::invalid_config(format!("mac: {error}")))?;
    let netns = base.netns.display().to_string();
    let wanted = Wanted {
        segment: &base.segment.name,
        id: &base.id,
        request: tenon_ipam::Request {
            attachment: Attachment {
                container_id: base.id.container_id.clone(),
                if_name: base.id.ifname.clone(),
            },
            pod: request
                .arguments
                .pod
                .name
                .clone()
                .filter(|name| !name.is_empty())
                .map(|name| PodName { namespace: request.arguments.tenant().to_owned(), name }),
            ips: request.requested_ips().iter().map(|ip| ip.address).collect(),
            mac,
        },
        mac_of_master: mac_of_master(base, mac)?,
        netns: &netns,
        link: &base.link.name,
    };
    let leases = match macvlan.take(node, &wanted).await {
        Ok(leases) => leases,
        Err(NoLease::Refused(error)) => return Err(error),
        Err(NoLease::Unsure(error)) => {
            // What has been written, if anything has, only etcd knows: it is read when the note's turn comes.
            put_off_release(node, &base.id, error.to_string())?;
            return Err(error);
        }
    };
    let end = PodEnd {
        mac: leases
            .first()
            .and_then(|lease| lease.mac)
            .map(Mac::bytes)
            .filter(|_| wanted.mac_of_master.is_none()),
        addresses: networks(&base.segment, &leases),
        routes: base.segment.routes().into_iter().map(|route| (route.dst, route.gw)).collect(),
        ..base.pod_end()
    };
    match make(node, base, end.clone()).await {
        Ok(link) => Ok(success(base, &end, &link, request)),
        Err(trouble) => {
            let asked = |ip| wanted.request.ips.contains(&ip);
            Err(undo(node, base, &leases, trouble, asked).await?)
        }
    }
}

/// Gives back what an ADD had leased. Returns what to answer.
async fn undo(
    node: &Arc<Node>,
    base: &Base,
    leases: &[Lease],
    trouble: Trouble,
    asked: impl Fn(IpAddr) -> bool,
) -> Result<Error, Error> {
    let conflict = match trouble {
        Trouble::Netdev(error) => {
            release(node, &base.id).await?;
            return Ok(netdev_error(error));
        }
        Trouble::Conflict(conflict) => conflict,
    };
    let message = format!("segment {:?}: {conflict}, so it is not given to a pod", base.segment.name);
    let mac = Mac::new(conflict.mac).ok();
    let lease = leases.iter().find(|lease| lease.ip == conflict.address);
    if let Some((mac, lease)) = mac.zip(lease)
        && let Err(error) = node.macvlan.set_aside(node, &base.segment.name, &base.id, lease.ip, mac).await
    {
        warn!(%error, ip = %lease.ip, "cannot set the address aside");
    }
    release(node, &base.id).await?;
    let error =
        if asked(conflict.address) { Error::invalid_config(message) } else { Error::try_again(message) };
    Ok(error)
}

async fn add_delegated(node: &Arc<Node>, request: &Request, base: &Base) -> Result<Success, Error> {
    let macvlan = &node.macvlan;
    let mut note = Delegated {
        environment: request.environment.clone(),
        conf: request.conf.raw.fields().clone(),
        link: base.link.name.clone(),
        host_access: has_host_access(&base.segment),
        ips: Vec::new(),
        mac: String::new(),
    };
    macvlan.delegated.put(&base.id, &note).map_err(note_error)?;
    let result = match delegation::add(request).await {
        Ok(result) => result,
        Err(error) => {
            macvlan.delegated.remove(&base.id).map_err(note_error)?;
            return Err(error);
        }
    };
    let added = async {
        let gateway_of = |dst: IpAddr| {
            let mut gateways = result.ips.iter().filter_map(|ip| ip.gateway);
            gateways.find(|gateway| gateway.is_ipv4() == dst.is_ipv4())
        };
        let routes = result.routes.iter().filter_map(|route| {
            let dst = IpNet::new(route.dst.address(), route.dst.prefix()).ok()?;
            Some((dst, route.gw.or_else(|| gateway_of(dst.addr()))))
        });
        let addresses =
            result.ips.iter().filter_map(|ip| IpNet::new(ip.address.address(), ip.address.prefix()).ok());
        let mac = request.requested_mac().map(|mac| mac.bytes());
        let end = PodEnd {
            mac: mac.filter(|_| base.segment.mode != Mode::Passthru),
            addresses: addresses.collect(),
            routes: routes.collect(),
            ..base.pod_end()
        };
        let link = make(node, base, end.clone()).await.map_err(|trouble| match trouble {
            Trouble::Netdev(error) => netdev_error(error),
            Trouble::Conflict(conflict) => {
                Error::try_again(format!("segment {:?}: {conflict}", base.segment.name))
            }
        })?;
        note.ips = end.addresses.iter().map(IpNet::addr).collect();
        note.mac = mac_text(&link);
        macvlan.delegated.put(&base.id, &note).map_err(note_error)?;
        let mut success = success(base, &end, &link, request);
        success.ips = result.ips.iter().map(|ip| Ip { interface: Some(0), ..ip.clone() }).collect();
        success.routes = result.routes.clone();
        if !result.dns.is_empty() {
            success.dns = result.dns;
        }
        Ok(success)
    };
    let added = added.await;
    if added.is_err()
        && let Err(error) = undo_delegated(node, request, &base.id, Some(&base.netns)).await
    {
        warn!(attachment = %base.id, %error, "cannot undo what another plugin has given; going on when the pod is gone");
    }
    added
}

/// Makes the pod's interface, and lets the host in.
async fn make(node: &Arc<Node>, base: &Base, mut end: PodEnd) -> Result<Link, Trouble> {
    let (links, segment, link) = (node.macvlan.links.clone(), base.segment.clone(), base.link.clone());
    let ips: Vec<IpAddr> = end.addresses.iter().map(IpNet::addr).collect();
    let announced = (end.netns.clone(), end.ifname.clone(), ips.clone());
    let made = blocking(move || {
        end.host = links.host_for(&segment, &link, &ips)?;
        let made = end.make()?;
        if has_host_access(&segment)
            && let Err(error) = links.let_in(&local_pods(&link.name, &ips, made.mac))
        {
            // Passing on is better than a pod without its host; the upkeep tries again.
            warn!(%error, "the host cannot reach a pod yet");
        }
        Ok::<_, Trouble>(made)
    })
    .await?;
    if let Some(mac) = made.mac {
        tokio::spawn(async move {
            tokio::time::sleep(ANNOUNCE_INTERVAL).await;
            let (netns, ifname, ips) = announced;
            if let Err(error) = blocking(move || pod::announce(&netns, &ifname, mac, &ips)).await {
                warn!(%error, "cannot announce a pod's addresses a second time");
            }
        });
    }
    Ok(made)
}

fn local_pods(link: &str, ips: &[IpAddr], mac: Option<[u8; 6]>) -> Vec<LocalPod> {
    let pod = |(ip, mac): (&IpAddr, [u8; 6])| LocalPod { link: link.to_owned(), ip: *ip, mac };
    ips.iter().filter_map(|ip| Some((ip, mac?))).map(pod).collect()
}

/// In mode passthru the pod has its master's MAC address.
fn mac_of_master(base: &Base, asked: Option<Mac>) -> Result<Option<Mac>, Error> {
    if base.segment.mode != Mode::Passthru {
        return Ok(None);
    }
    let mac = base.link.mac.and_then(|mac| Mac::new(mac).ok());
    match asked.filter(|asked| Some(*asked) != mac) {
        None => Ok(mac),
        Some(asked) => Err(Error::invalid_config(format!(
            "mac: {asked} is not to be had: segment {:?} is in mode passthru, where a pod has the MAC address of {}",
            base.segment.name, base.link.name
        ))),
    }
}

fn mode_of(mode: Mode) -> MacvlanMode {
    match mode {
        Mode::Bridge => MacvlanMode::Bridge,
        Mode::Private => MacvlanMode::Private,
        Mode::Vepa => MacvlanMode::Vepa,
        Mode::Passthru => MacvlanMode::Passthru,
    }
}

async fn segment_link(node: &Arc<Node>, segment: &Segment) -> Result<(SegmentLink, InUse), Error> {
    let (links, segment) = (node.macvlan.links.clone(), segment.clone());
    let found = blocking(move || links.ensure(&segment)).await;
    found.map_err(|error| Error::invalid_config(error.to_string()))
}

/// Whether the pod has a link of this name, after what a DEL has handed to the reaper is gone.
async fn has_interface(node: &Node, netns: &Path, ifname: &str) -> Result<bool, Error> {
    let look = || {
        let (netns, ifname) = (netns.to_owned(), ifname.to_owned());
        blocking(move || pod::has_link(&netns, &ifname))
    };
    let there = look().await.map_err(netdev_error)?;
    if there && node.macvlan.reaper.is_busy() {
        node.macvlan.reaper.idle().await;
        return look().await.map_err(netdev_error);
    }
    Ok(there)
}

fn success(base: &Base, end: &PodEnd, link: &Link, request: &Request) -> Success {
    let cidr = |net: &IpNet| Cidr::new(net.addr(), net.prefix_len());
    let gateway = |ip| base.segment.subnet_of(ip).and_then(|subnet| subnet.gateway);
    let ip = |net: &IpNet| Some(Ip { address: cidr(net)?, gateway: gateway(net.addr()), interface: Some(0) });
    let route = |(dst, gw): &(IpNet, Option<IpAddr>)| Some(Route { gw: *gw, ..Route::to(cidr(dst)?) });
    Success {
        interfaces: vec![Interface {
            name: base.id.ifname.clone(),
            mac: mac_text(link),
            mtu: Some(link.mtu),
            sandbox: base.netns.display().to_string(),
            ..Interface::default()
        }],
        ips: end.addresses.iter().filter_map(ip).collect(),
        routes: end.routes.iter().filter_map(route).collect(),
        dns: request.conf.dns.clone(),
    }
}

fn mac_text(link: &Link) -> String {
    link.mac.and_then(|mac| Mac::new(mac).ok()).map(|mac| mac.to_string()).unwrap_or_default()
}

/// Carries out DEL; the caller has claimed the attachment.
pub(crate) async fn del(node: &Arc<Node>, request: &Request, id: &AttachmentId) -> Result<(), Error> {
    let netns = request.arguments.netns.clone();
    if request.conf.ipam.is_some() && node.macvlan.delegated.get::<Delegated>(id).is_none() {
        // The plugin may know what this node does not.
        return undo_delegated(node, request, id, netns.as_deref()).await;
    }
    detach(node, id, netns).await
}

/// Takes an attachment down, whatever there is of it.
///
/// # Errors
/// What it holds can neither be given back now nor noted for later.
pub(super) async fn detach(node: &Arc<Node>, id: &AttachmentId, netns: Option<PathBuf>) -> Result<(), Error> {
    if let Some(note) = node.macvlan.delegated.get::<Delegated>(id) {
        let request = note.request()?;
        let netns = netns.or_else(|| request.arguments.netns.clone());
        return undo_delegated(node, &request, id, netns.as_deref()).await;
    }
    let held = node.macvlan.segments().held(id);
    let recorded = held.iter().find_map(|(_, lease)| text(lease, field::NETNS)).map(PathBuf::from);
    let pods = held.iter().flat_map(|(_, lease)| {
        local_pods(text(lease, field::LINK).unwrap_or_default(), &[lease.ip], lease.mac.map(Mac::bytes))
    });
    remove_interface(node, id, netns.or(recorded), pods.collect()).await;
    release(node, id).await?;
    if !held.is_empty() {
        info!(attachment = %id, "detached");
    }
    let left: Vec<_> = held.iter().filter_map(|(_, lease)| text(lease, field::LINK)).collect();
    let in_use = node
        .macvlan
        .segments()
        .held_here()
        .any(|(_, lease)| text(lease, field::LINK).is_some_and(|link| left.contains(&link)));
    if !in_use && !left.is_empty() {
        node.macvlan.keep.notify_one();
    }
    Ok(())
}

/// Silences a pod's interface and has it deleted.
async fn remove_interface(node: &Arc<Node>, id: &AttachmentId, netns: Option<PathBuf>, pods: Vec<LocalPod>) {
    let (links, ifname) = (node.macvlan.links.clone(), id.ifname.clone());
    let silenced = blocking(move || {
        if let Err(error) = links.shut_out(&pods) {
            warn!(%error, "the host keeps routes to a pod that goes");
        }
        let macs: Vec<_> = pods.iter().map(|pod| pod.mac).collect();
        netns.map_or(Ok(None), |netns| pod::silence(&netns, &ifname, &macs))
    });
    match silenced.await {
        Ok(Some((netns, index))) => node.macvlan.reaper.doom(netns, index),
        Ok(None) => {}
        Err(error) => {
            warn!(attachment = %id, %error, "cannot delete a pod's interface; it goes with the pod's namespace")
        }
    }
}

/// Gives back an attachment's leases, now or, if etcd is away, later.
async fn release(node: &Arc<Node>, id: &AttachmentId) -> Result<(), Error> {
    let macvlan = &node.macvlan;
    let known = macvlan.segments().network().is_some();
    let failed = if known {
        match tokio::time::timeout(RELEASE_TIMEOUT, macvlan.give_back(node, id)).await {
            Ok(Ok(())) => return macvlan.releases.remove(id).map_err(note_error),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "etcd does not answer".to_owned(),
        }
    } else {
        NO_VIEW.to_owned()
    };
    warn!(attachment = %id, error = failed, "its addresses are given back when etcd can be reached");
    put_off_release(node, id, failed)
}

fn put_off_release(node: &Node, id: &AttachmentId, reason: String) -> Result<(), Error> {
    node.macvlan.releases.put(id, reason).map_err(note_error)?;
    node.macvlan.keep.notify_one();
    Ok(())
}

/// Undoes an attachment whose addresses another plugin gave.
async fn undo_delegated(
    node: &Arc<Node>,
    request: &Request,
    id: &AttachmentId,
    netns: Option<&Path>,
) -> Result<(), Error> {
    let note = node.macvlan.delegated.get::<Delegated>(id);
    let pods = note.iter().flat_map(|note| {
        let mac: Option<Mac> = note.mac.parse().ok();
        local_pods(&note.link, &note.ips, mac.map(Mac::bytes))
    });
    remove_interface(node, id, netns.map(Path::to_owned), pods.collect()).await;
    delegation::call_for_effect(request, Verb::Del).await?;
    node.macvlan.delegated.remove(id).map_err(note_error)?;
    node.macvlan.keep.notify_one();
    Ok(())
}

/// Carries out GC: takes down what belongs to the network and is not among its valid attachments.
pub(crate) async fn gc(node: &Arc<Node>, request: &Request) -> Result<(), Error> {
    let network = &request.conf.name;
    let valid = |container_id: &str, ifname: &str| {
        let mut attachments = request.conf.valid_attachments.iter();
        attachments.any(|a| a.container_id == container_id && a.ifname == ifname)
    };
    let mut stale: Vec<AttachmentId> = {
        let segments = node.macvlan.segments();
        let ours = segments.held_here().filter(|(_, lease)| text(lease, field::NETWORK) == Some(network));
        ours.map(|(_, lease)| id_of_lease(network, lease)).collect()
    };
    let delegated = node.macvlan.delegated.all::<Delegated>().into_iter().map(|(id, _)| id);
    stale.extend(delegated.filter(|id| id.network == *network));
    stale.retain(|id| !valid(&id.container_id, &id.ifname));
    stale.sort();
    stale.dedup();
    // One that cannot be collected does not keep the others.
    let mut outcome = Ok(());
    for id in stale {
        let _claim = node.claim_when_free(&id).await?;
        match detach(node, &id, None).await {
            Ok(()) => info!(attachment = %id, "collected"),
            Err(error) => outcome = Err(error),
        }
    }
    if request.conf.mode == tenon_cni::Mode::Macvlan && request.conf.ipam.is_some() {
        // Plugins from before CNI 1.1 know no GC.
        if let Err(error) = delegation::call_for_effect(request, Verb::Gc).await {
            warn!(%error, "the IPAM plugin did not collect");
        }
    }
    outcome
}

/// The attachment that a lease was given to.
pub(super) fn id_of_lease(network: &str, lease: &Lease) -> AttachmentId {
    AttachmentId {
        network: network.to_owned(),
        container_id: lease.attachment.container_id.clone(),
        ifname: lease.attachment.if_name.clone(),
    }
}

fn note_error(error: std::io::Error) -> Error {
    Error::io_failure(format!("cannot keep a note beside the agent's socket: {error}"))
}
