//! The CNI verbs: ADD, DEL, GC and STATUS of attachments to the overlay; what concerns macvlan goes on from here to
//! [`macvlan`](crate::macvlan).
//!
//! ADD takes an address and a port, makes the veth pair straight in the pod's namespace, and then at once records the
//! attachment in OVSDB (which adds the port), puts its flows in and configures the pod's end. Every step has an undo
//! that may be done twice, so that one [`detach`] undoes an ADD that failed anywhere, serves DEL, and finishes what an
//! agent that died has left.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use nix::errno::Errno;
use openvswitch::openflow::Mac;
use tenon_cni::{
    Bandwidth, Cidr, Error, Interface, Ip, LimitChange, Mode, Request, Response, Route, Success, Verb, code,
};
use tenon_netdev::{AddressFlags, NetNs, Netlink, VethPair, checksum_offload_off, sysctl};
use tracing::{info, warn};

use crate::attachment::{Attachment, AttachmentId};
use crate::bridge::BridgeError;
use crate::check::check;
use crate::macvlan::{attach as macvlan_attach, detach as macvlan_detach, limits as macvlan_limits};
use crate::node::{Node, State, Wish};
use crate::tenants;

/// How long an ADD waits for what its tenant needs before it asks the runtime to try again.
const TENANT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call for a pod on the overlay waits for an agent that has just started to know its pods.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Carries out one call of the plugin.
pub(crate) async fn handle(node: &Arc<Node>, request: Request) -> Response {
    match request.arguments.verb {
        Verb::Add => add(node, &request).await.into(),
        Verb::Del => del(node, &request).await.into(),
        Verb::Check => check(node, &request).await.into(),
        Verb::Gc => gc(node, &request).await.into(),
        Verb::Status => status(node, &request).into(),
        Verb::Version => Response::Done,
    }
}

fn status(node: &Node, request: &Request) -> Result<(), Error> {
    let obstacle = match request.conf.mode {
        Mode::Overlay => node.obstacle(),
        Mode::Macvlan => node.macvlan.obstacle(),
    };
    obstacle.map_or(Ok(()), |obstacle| Err(Error::not_available(obstacle)))
}

/// Waits, not for ever, until the overlay's pods are known.
async fn recovered(node: &Node) -> Result<(), Error> {
    let known = tokio::time::timeout(RECOVERY_TIMEOUT, node.recovered()).await;
    known.map_err(|_| Error::try_again(node.without_database()))
}

/// The same, for a call about one attachment: one on a segment need not wait.
pub(crate) async fn recovered_for(node: &Node, request: &Request, id: &AttachmentId) -> Result<(), Error> {
    // To know whose it is takes a look at the disk, and once all is known it does not matter.
    if node.is_recovered() || request.conf.mode == Mode::Macvlan || macvlan_detach::has(node, id) {
        return Ok(());
    }
    recovered(node).await
}

pub(crate) fn id_of(request: &Request) -> AttachmentId {
    AttachmentId {
        network: request.conf.name.clone(),
        container_id: request.arguments.container_id.clone(),
        ifname: request.arguments.ifname.clone(),
    }
}

async fn add(node: &Arc<Node>, request: &Request) -> Result<Success, Error> {
    if request.conf.mode == Mode::Macvlan {
        return macvlan_attach::add(node, request).await;
    }
    if let Some(ipam) = &request.conf.ipam {
        return Err(Error::invalid_config(format!(
            "ipam: {:?} cannot give the overlay's addresses, which come from the node's subnet; leave the key out",
            ipam.plugin
        )));
    }
    if let Some(obstacle) = node.obstacle() {
        return Err(Error::try_again(obstacle));
    }
    let id = id_of(request);
    let netns =
        request.arguments.netns.clone().ok_or_else(|| Error::invalid_environment("CNI_NETNS", "not set"))?;
    let wish = wish(request)?;
    let bandwidth = request.bandwidth()?;

    let _claim = node.claim(&id).ok_or_else(|| Error::try_again(format!("{id} is being worked on")))?;
    if node.state().model.attachment(&id).is_some() {
        return Err(Error::new(code::ALREADY_ATTACHED, format!("{id} is attached already; DEL it first")));
    }
    finish_leaving(node, &id).await?;
    let tenant = request.arguments.tenant();
    tenants::wait_for(node, tenant, TENANT_TIMEOUT).await?;

    let (ip, mac, ofport) = node.state().reserve(&wish)?;
    let attachment = Attachment {
        id,
        netns,
        tenant: tenant.to_owned(),
        pod: request.arguments.pod.name.clone().unwrap_or_default(),
        uid: request.arguments.pod.uid.clone().unwrap_or_default(),
        ip,
        mac,
        ofport,
        bandwidth,
    };
    match attach(node, attachment.clone()).await {
        Ok(success) => {
            info!(attachment = %attachment.id, tenant, %ip, ofport, "attached");
            Ok(success)
        }
        Err(error) => {
            warn!(attachment = %attachment.id, %error, "cannot attach; undoing");
            detach(node, attachment).await;
            Err(error)
        }
    }
}

/// What the pod asked for; the overlay has IPv4 only.
fn wish(request: &Request) -> Result<Wish, Error> {
    let ip = match request.requested_ips() {
        [] => None,
        [one] => Some(one.address),
        _ => {
            return Err(Error::invalid_config(
                "ips: the overlay gives one address to an interface; ask for one",
            ));
        }
    };
    if let Some(ip @ IpAddr::V6(_)) = ip {
        return Err(Error::invalid_config(format!("ips: {ip}: the overlay has IPv4 only")));
    }
    Ok(Wish { ip, mac: request.requested_mac().map(|mac| Mac(mac.bytes())) })
}

/// The pod's side of an attachment.
struct PodEnd {
    netns: PathBuf,
    ifname: String,
    link: String,
    mac: Mac,
    address: Ipv4Net,
    gateway: IpAddr,
    mtu: u32,
    without_offload: bool,
}

async fn attach(node: &Arc<Node>, attachment: Attachment) -> Result<Success, Error> {
    let pod = {
        let state = node.state();
        let place = state.place.as_ref().ok_or_else(|| Error::try_again("the node has no subnet yet"))?;
        PodEnd {
            netns: attachment.netns.clone(),
            ifname: attachment.id.ifname.clone(),
            link: attachment.id.link_name(),
            mac: attachment.mac,
            address: Ipv4Net::new_assert(attachment.ip, place.network.subnet.prefix_len()),
            gateway: place.network.gateway.into(),
            mtu: place.mtu,
            without_offload: node.needs_checksums(),
        }
    };
    limit(node, &attachment).await?;
    make_veth(node, &pod).await?;
    let flows = node.commit(|state| state.model.attach(attachment.clone()));
    let configured = blocking(|| configure(&pod));
    let (given, configured) = tokio::join!(node.bridge.add(&attachment), configured);
    let given = given.map_err(bridge_error)?;
    configured.map_err(netdev_error)?;
    flows.installed().await.map_err(|error| Error::try_again(error.to_string()))?;
    if given != attachment.ofport {
        // Somebody else's port has the number that was asked for.
        let moved = Attachment { ofport: given, ..attachment.clone() };
        limit(node, &moved).await?;
        node.commit(|state| state.model.attach(moved))
            .installed()
            .await
            .map_err(|error| Error::try_again(error.to_string()))?;
    }
    Ok(success(&attachment, &pod))
}

/// Gives the pod's classes in the shapers their limits: before its flows lead there.
async fn limit(node: &Node, attachment: &Attachment) -> Result<(), Error> {
    if attachment.bandwidth == Bandwidth::default() {
        return Ok(());
    }
    let (shapers, mtu) = {
        let state = node.state();
        (state.shapers()?, state.place.as_ref().map_or(0, |place| place.mtu))
    };
    let (class, bandwidth) = (attachment.ofport, attachment.bandwidth);
    blocking(move || shapers.set(class, bandwidth, mtu)).await.map_err(netdev_error)
}

/// Changes the limits of a running pod, on every interface that it has here, without losing a packet.
pub(crate) async fn change_limits(node: &Arc<Node>, change: LimitChange) -> Result<(), Error> {
    recovered(node).await?;
    let ids: Vec<AttachmentId> = {
        let state = node.state();
        let pods = state.model.attachments().filter(|a| a.tenant == change.namespace && a.pod == change.pod);
        pods.map(|a| a.id.clone()).collect()
    };
    let on_segments = macvlan_limits::change(node, &change).await?;
    if ids.is_empty() && on_segments == 0 {
        if let Some(obstacle) = node.macvlan.obstacle() {
            return Err(Error::try_again(obstacle));
        }
        let pod = format!("{}/{}", change.namespace, change.pod);
        return Err(Error::new(code::CONTAINER_UNKNOWN, format!("pod {pod} has no interface on this node")));
    }
    for id in ids {
        let _claim = node.claim_when_free(&id).await?;
        let Some(before) = node.state().model.attachment(&id).cloned() else { continue };
        let after = Attachment { bandwidth: change.bandwidth, ..before.clone() };
        if before == after {
            continue;
        }
        let (shapers, class) = (node.state().shapers()?, after.ofport);
        // What is to be limited has its class before its flows lead there; what is not is let go before they leave.
        node.bridge.update(&after).await.map_err(bridge_error)?;
        limit(node, &after).await?;
        let bandwidth = after.bandwidth;
        blocking(move || shapers.open(class, bandwidth)).await.map_err(netdev_error)?;
        let flows = node.commit(|state| state.model.attach(after));
        flows.installed().await.map_err(|error| Error::try_again(error.to_string()))?;
        blocking(move || shapers.remove(class, bandwidth)).await.map_err(netdev_error)?;
        info!(attachment = %id, ?bandwidth, "changed limits");
    }
    Ok(())
}

/// Makes the veth pair. What a DEL has handed to the reaper may still have one of the two names.
async fn make_veth(node: &Node, pod: &PodEnd) -> Result<(), Error> {
    let make = || {
        blocking(|| {
            let netns = NetNs::open(&pod.netns)?;
            let netlink = Netlink::open()?;
            let veth = netlink.create_veth(&VethPair {
                host_name: &pod.link,
                peer_name: &pod.ifname,
                peer_netns: &netns,
                mtu: pod.mtu,
                host_mac: None,
                peer_mac: Some(pod.mac.0),
                host_alias: None,
                host_up: false,
                host_group: 0,
                queues: 1,
            })?;
            // With IPv6 the kernel would talk to the pod past the switch, and put three routes for each pod into tables
            // that ovs-vswitchd reads again at every change. A kernel without IPv6 has no such setting.
            let setting = format!("net/ipv6/conf/{}/disable_ipv6", pod.link);
            sysctl::write_if_there(&setting, "1")?;
            netlink.set_up(veth.host_index)
        })
    };
    match make().await {
        Err(error) if error.errno() == Some(Errno::EEXIST) => {
            // A link of ours without a record is what a dead agent has left of this very attachment.
            node.reaper.doom(pod.link.clone());
            node.reaper.idle().await;
            make().await.map_err(netdev_error)
        }
        made => made.map_err(netdev_error),
    }
}

fn configure(pod: &PodEnd) -> Result<(), tenon_netdev::Error> {
    let netns = NetNs::open(&pod.netns)?;
    let configure = || {
        let netlink = Netlink::open()?;
        let Some(link) = netlink.link_by_name(&pod.ifname)? else {
            return Err(tenon_netdev::Error::NetNsNotFound { path: pod.netns.clone() });
        };
        if pod.without_offload {
            checksum_offload_off(&pod.ifname)?;
        }
        netlink.add_address(link.index, IpNet::V4(pod.address), AddressFlags::default())?;
        netlink.set_up(link.index)?;
        netlink.replace_route(&default_route(pod, link.index))
    };
    netns.run(configure)?
}

fn default_route(pod: &PodEnd, device: u32) -> tenon_netdev::Route {
    tenon_netdev::Route::via(IpNet::V4(Ipv4Net::default()), pod.gateway, device)
}

fn success(attachment: &Attachment, pod: &PodEnd) -> Success {
    let cidr = |address: IpNet| Cidr::new(address.addr(), address.prefix_len());
    let interface = |name: &str, mac: String, sandbox: String| Interface {
        name: name.to_owned(),
        mac,
        mtu: Some(pod.mtu),
        sandbox,
        ..Interface::default()
    };
    let address = cidr(IpNet::V4(pod.address));
    let everywhere = cidr(IpNet::V4(Ipv4Net::default()));
    Success {
        interfaces: vec![
            interface(&pod.link, String::new(), String::new()),
            interface(&pod.ifname, attachment.mac.to_string(), attachment.netns.display().to_string()),
        ],
        ips: address
            .map(|address| Ip { address, gateway: Some(pod.gateway), interface: Some(1) })
            .into_iter()
            .collect(),
        routes: everywhere.map(|dst| Route::to(dst).via(pod.gateway)).into_iter().collect(),
        ..Success::default()
    }
}

async fn del(node: &Arc<Node>, request: &Request) -> Result<(), Error> {
    let id = id_of(request);
    recovered_for(node, request, &id).await?;
    let _claim = node.claim_when_free(&id).await?;
    let attachment = node.state().model.attachment(&id).cloned();
    match attachment {
        Some(attachment) => {
            detach(node, attachment).await;
            info!(attachment = %id, "detached");
        }
        None if request.conf.mode == Mode::Macvlan || macvlan_detach::has(node, &id) => {
            macvlan_detach::del(node, request, &id).await?;
        }
        // Also what an ADD that died with its agent has left, if it has.
        None => node.reaper.doom(id.link_name()),
    }
    Ok(())
}

/// Takes an attachment down, whatever there is of it: flows, port and record, link, address. Everything is tried; what
/// Open vSwitch cannot do now, the keeper does when it is back.
pub(crate) async fn detach(node: &Node, attachment: Attachment) {
    // Nobody waits for the switch: what a later ADD puts into it comes after this, whatever is reused by then.
    node.change(|state| {
        state.leaving.insert(attachment.id.clone(), attachment.clone());
        state.model.detach(&attachment.id)
    });
    // While the port's number, and so the class, is still its own.
    let shapers = node.state().shapers();
    if let Ok(shapers) = shapers
        && attachment.bandwidth != Bandwidth::default()
    {
        let class = attachment.ofport;
        if let Err(error) = blocking(move || shapers.remove(class, Bandwidth::default())).await {
            warn!(attachment = %attachment.id, %error, "its limits go with the next look at the shapers");
        }
    }
    let link = attachment.id.link_name();
    match node.bridge.remove(std::slice::from_ref(&link)).await {
        Ok(()) => left(&mut node.state(), &attachment.id),
        Err(error) => {
            warn!(attachment = %attachment.id, %error, "its port goes when OVSDB is back");
            node.keep.notify_one();
        }
    }
    node.reaper.doom(link);
}

/// Notes that OVSDB has no record of a detached attachment any more: what it had is free.
pub(crate) fn left(state: &mut State, id: &AttachmentId) {
    if let Some(attachment) = state.leaving.remove(id) {
        state.release(&attachment);
    }
}

/// An attachment whose DEL could not reach OVSDB comes again: its old record goes first.
async fn finish_leaving(node: &Node, id: &AttachmentId) -> Result<(), Error> {
    if node.state().leaving.contains_key(id) {
        node.bridge.remove(&[id.link_name()]).await.map_err(bridge_error)?;
        left(&mut node.state(), id);
    }
    Ok(())
}

async fn gc(node: &Arc<Node>, request: &Request) -> Result<(), Error> {
    let valid = |id: &AttachmentId| {
        request
            .conf
            .valid_attachments
            .iter()
            .any(|a| a.container_id == id.container_id && a.ifname == id.ifname)
    };
    if request.conf.mode == Mode::Overlay {
        recovered(node).await?;
    }
    let stale: Vec<AttachmentId> = {
        let state = node.state();
        let ours = state.model.attachments().map(|a| &a.id).filter(|id| id.network == request.conf.name);
        ours.filter(|id| !valid(id)).cloned().collect()
    };
    for id in stale {
        let _claim = node.claim_when_free(&id).await?;
        let attachment = node.state().model.attachment(&id).cloned();
        if let Some(attachment) = attachment {
            detach(node, attachment).await;
            info!(attachment = %id, "collected");
        }
    }
    macvlan_detach::gc(node, request).await
}

/// Runs what blocks, on this very thread; the runtime's other tasks go on with another. To have a thread of the pool do it
/// would wait for it to wake up, and then for this one: as long as many of the kernel's answers take.
pub(crate) async fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

pub(crate) fn netdev_error(error: tenon_netdev::Error) -> Error {
    match &error {
        tenon_netdev::Error::NetNsNotFound { .. } | tenon_netdev::Error::NotANetNs { .. } => {
            Error::invalid_environment("CNI_NETNS", error)
        }
        _ => Error::agent_internal(error.to_string()),
    }
}

fn bridge_error(error: BridgeError) -> Error {
    Error::try_again(error.to_string())
}
