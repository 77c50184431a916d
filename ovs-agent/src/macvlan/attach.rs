//! ADD for macvlan.
//!
//! It makes sure of the segment's link, takes the leases in one transaction while it makes a draft of the pod's
//! interface, and then settles it: asked for conflicts, given its addresses and announced before anybody is told of it.
//! What fails is undone in reverse: the interface first, the leases last.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tenon_cni::{Bandwidth, Cidr, Error, Interface, Ip, Request, Route, Success, code};
use tenon_ipam::{Attachment, Lease, Mac, Mode, PodName, Segment};
use tenon_netdev::{Link, MacvlanMode};
use tracing::{info, warn};

use super::delegation::{self, Delegated};
use super::detach::{put_off_release, release, undo_delegated};
use super::leases::{NoLease, Wanted, networks};
use super::limits;
use super::links::{InUse, SegmentLink, has_host_access, local_pods};
use super::notes::note_error;
use super::pod::{self, Draft, Given, PodEnd, Trouble};
use crate::attach::{blocking, id_of, netdev_error};
use crate::attachment::AttachmentId;
use crate::node::Node;

/// ANNOUNCE_INTERVAL of RFC 5227 section 1.1: after which the announcement is made a second time.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);

/// Carries out ADD.
pub(crate) async fn add(node: &Arc<Node>, request: &Request) -> Result<Success, Error> {
    let bandwidth = request.bandwidth()?;
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
    let (link, in_use) = segment_link(node, &segment).await?;
    macvlan.releases.remove(&id).map_err(note_error)?;
    let base = Base { id, netns, segment, link, bandwidth };
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
    bandwidth: Bandwidth,
}

/// What can be made before a pod has its addresses.
struct Drafted {
    draft: Draft,
    /// The index of the host's macvlan, if the segment has one.
    host_link: Option<u32>,
}

impl Drafted {
    /// Deletes what no pod will have. The host's link stays for others; without any, the upkeep removes it.
    async fn give_up(&self, id: &AttachmentId) {
        if let Err(error) = blocking(|| self.draft.delete()).await {
            warn!(attachment = %id, %error, "cannot delete the draft of a pod's interface; the next ADD or DEL does");
        }
    }
}

impl Base {
    /// Makes the pod's interface, and the host's, as far as that can be done without the pod's addresses.
    async fn draft(&self, node: &Node) -> Result<Drafted, Trouble> {
        let end = PodEnd {
            netns: self.netns.clone(),
            ifname: self.id.ifname.clone(),
            draft_name: self.id.link_name(),
            link: self.link.index,
            mode: mode_of(self.segment.mode),
            mtu: self.segment.mtu.map_or(self.link.mtu, |mtu| mtu.min(self.link.mtu)),
        };
        let draft = || {
            blocking(|| {
                let links = &node.macvlan.links;
                let host_link = links.host_link(&self.segment, &self.link)?;
                Ok(Drafted { draft: end.clone().draft(&links.netlink)?, host_link })
            })
        };
        match draft().await {
            // What a DEL has handed to the reaper may still be there.
            Err(Trouble::Occupied) if node.macvlan.reaper.is_busy() => {
                node.macvlan.reaper.idle().await;
                draft().await
            }
            made => made,
        }
    }

    fn given(
        &self,
        mac: Option<[u8; 6]>,
        addresses: Vec<IpNet>,
        routes: Vec<(IpNet, Option<IpAddr>)>,
    ) -> Given {
        let mac = mac.filter(|_| self.segment.mode != Mode::Passthru);
        let probe = Duration::from_millis(self.segment.probe_ms.into());
        Given { mac, addresses, routes, probe, bandwidth: self.bandwidth }
    }

    /// What to answer when there is no interface.
    fn error(&self, trouble: Trouble) -> Error {
        match trouble {
            Trouble::Occupied => {
                let reason = format!("{}: the pod has a link of this name already", self.id);
                Error::new(code::ALREADY_ATTACHED, reason)
            }
            Trouble::Netdev(error) => netdev_error(error),
            Trouble::Conflict(conflict) => {
                let reason =
                    format!("segment {:?}: {conflict}, so it is not given to a pod", self.segment.name);
                Error::try_again(reason)
            }
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
    let attached_before = !macvlan.segments().held(&base.id).is_empty();
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
        bandwidth: base.bandwidth,
    };
    let (drafted, leases) = if attached_before || base.segment.mode == Mode::Passthru {
        // What an interface has that is there already stays as it is.
        let drafted = base.draft(node).await;
        if let Err(trouble) = drafted {
            return Err(base.error(trouble));
        }
        (drafted, macvlan.take(node, &wanted).await)
    } else {
        let (leases, drafted) = tokio::join!(macvlan.take(node, &wanted), base.draft(node));
        (drafted, leases)
    };
    let leases = match leases {
        Ok(leases) => leases,
        Err(no_lease) => {
            let error = match no_lease {
                NoLease::Refused(error) => error,
                NoLease::Unsure(error) => {
                    // What has been written, if anything has, only etcd knows: it is read when the note's turn comes.
                    put_off_release(node, &base.id, error.to_string())?;
                    error
                }
            };
            if let Ok(drafted) = drafted {
                drafted.give_up(&base.id).await;
            }
            return Err(error);
        }
    };
    let routes = base.segment.routes().into_iter().map(|route| (route.dst, route.gw)).collect();
    let mac = leases.first().and_then(|lease| lease.mac).map(Mac::bytes);
    let given = base.given(mac, networks(&base.segment, &leases), routes);
    let settled = match drafted {
        Ok(drafted) => settle(node, base, drafted, &given).await,
        Err(trouble) => Err(trouble),
    };
    match settled {
        Ok(link) => Ok(success(base, &given, &link, request)),
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
    let Trouble::Conflict(conflict) = trouble else {
        release(node, &base.id).await?;
        return Ok(base.error(trouble));
    };
    let mac = Mac::new(conflict.mac).ok();
    let lease = leases.iter().find(|lease| lease.ip == conflict.address);
    if let Some((mac, lease)) = mac.zip(lease)
        && let Err(error) = node.macvlan.set_aside(node, &base.segment.name, &base.id, lease.ip, mac).await
    {
        warn!(%error, ip = %lease.ip, "cannot set the address aside");
    }
    release(node, &base.id).await?;
    let error = base.error(trouble);
    // Asking again for this very address would come to the same.
    Ok(if asked(conflict.address) { Error::invalid_config(error.msg) } else { error })
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
        bandwidth: limits::record(base.bandwidth),
    };
    let drafted = base.draft(node).await.map_err(|trouble| base.error(trouble))?;
    let noted = macvlan.delegated.put(&base.id, &note).map_err(note_error);
    let asked = match noted {
        Ok(()) => delegation::add(request).await,
        Err(error) => Err(error),
    };
    let result = match asked {
        Ok(result) => result,
        Err(error) => {
            drafted.give_up(&base.id).await;
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
        let given = base.given(mac, addresses.collect(), routes.collect());
        let link = settle(node, base, drafted, &given).await.map_err(|trouble| base.error(trouble))?;
        note.ips = given.addresses.iter().map(IpNet::addr).collect();
        note.mac = mac_text(&link);
        macvlan.delegated.put(&base.id, &note).map_err(note_error)?;
        let mut success = success(base, &given, &link, request);
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

/// Makes a draft the pod's interface, lets the host in, and notes what the pod holds.
async fn settle(node: &Arc<Node>, base: &Base, drafted: Drafted, given: &Given) -> Result<Link, Trouble> {
    let Base { id, netns, link, .. } = base;
    let links = &node.macvlan.links;
    let ips: Vec<IpAddr> = given.addresses.iter().map(IpNet::addr).collect();
    let Drafted { draft, host_link } = drafted;
    let (made, announcer) = blocking(|| {
        let addresses = match host_link.map(|_| links.host_addresses(&link.name, &ips)).transpose() {
            Ok(addresses) => addresses.unwrap_or_default(),
            Err(error) => {
                draft.delete()?;
                return Err(error.into());
            }
        };
        let (made, announcer) = draft.settle(given, &addresses)?;
        let pods = local_pods(&link.name, &ips, made.mac);
        if let Some(host_link) = host_link
            && let Err(error) = links.let_in(host_link, &pods)
        {
            // Passing on is better than a pod without its host. The upkeep may have removed the host's link before it
            // knew of this pod, and tries again now.
            warn!(attachment = %id, %error, "the host cannot reach a pod yet");
            node.macvlan.keep.notify_one();
        }
        Ok::<_, Trouble>((made, announcer))
    })
    .await?;
    let (node, id, mac, netns) = (node.clone(), id.clone(), made.mac, netns.clone());
    tokio::spawn(async move {
        blocking(|| {
            node.macvlan.remember(&id);
            drop(announcer);
        })
        .await;
        tokio::time::sleep(ANNOUNCE_INTERVAL).await;
        let again = blocking(|| mac.map_or(Ok(()), |mac| pod::announce(&netns, &id.ifname, mac, &ips)));
        if let Err(error) = again.await {
            warn!(%error, "cannot announce a pod's addresses a second time");
        }
    });
    Ok(made)
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

/// The segment's link.
async fn segment_link(node: &Arc<Node>, segment: &Segment) -> Result<(SegmentLink, InUse), Error> {
    let found = blocking(|| node.macvlan.links.ensure(segment)).await;
    found.map_err(|error| Error::invalid_config(error.to_string()))
}

fn success(base: &Base, given: &Given, link: &Link, request: &Request) -> Success {
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
        ips: given.addresses.iter().filter_map(ip).collect(),
        routes: given.routes.iter().filter_map(route).collect(),
        dns: request.conf.dns.clone(),
    }
}

fn mac_text(link: &Link) -> String {
    link.mac.and_then(|mac| Mac::new(mac).ok()).map(|mac| mac.to_string()).unwrap_or_default()
}
