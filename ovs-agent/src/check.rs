//! CHECK for the overlay: the record, the interface with its address and route, the limits, the port and the flows.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use tenon_cni::{Error, Mode, Request, code};
use tenon_netdev::{NetNs, Netlink};

use crate::attach::{blocking, id_of, netdev_error, recovered_for};
use crate::attachment::Attachment;
use crate::macvlan::{self, detach};
use crate::model::Object;
use crate::node::Node;

/// Carries out CHECK.
pub(crate) async fn check(node: &Arc<Node>, request: &Request) -> Result<(), Error> {
    let id = id_of(request);
    let fault = |fault: String| Error::new(code::CHECK_FAILED, format!("{id}: {fault}"));
    recovered_for(node, request, &id).await?;
    let Some(attachment) = node.state().model.attachment(&id).cloned() else {
        if request.conf.mode == Mode::Macvlan || detach::has(node, &id) {
            return macvlan::check::check(node, request).await;
        }
        return Err(Error::container_unknown(&id.container_id).with_details(format!("{id} is not attached")));
    };
    if let Some(netns) = &request.arguments.netns
        && *netns != attachment.netns
    {
        return Err(fault(format!(
            "CNI_NETNS is {}, it was attached in {}",
            netns.display(),
            attachment.netns.display()
        )));
    }
    let expected = request.conf.prev_result.as_ref();
    if let Some(ip) = expected.and_then(|result| result.ips.first())
        && ip.address.address() != attachment.ip
    {
        return Err(fault(format!(
            "prevResult has {}, it was given {}",
            ip.address.address(),
            attachment.ip
        )));
    }
    let (gateway, prefix, mtu) = {
        let state = node.state();
        let place = state.place.as_ref().ok_or_else(|| Error::try_again("the node has no subnet yet"))?;
        (place.network.gateway, place.network.subnet.prefix_len(), place.mtu)
    };
    let faults =
        blocking(|| inspect(&attachment, prefix, gateway.into(), mtu)).await.map_err(netdev_error)?;
    if let Some(found) = faults {
        return Err(fault(found));
    }
    let shapers = node.state().shapers();
    if let Ok(shapers) = shapers {
        let limits = blocking(|| shapers.check(&attachment, mtu)).await.map_err(netdev_error)?;
        limits.map_err(|found| fault(found.to_string()))?;
    }
    node.bridge.check(&attachment).map_err(|found| fault(found.to_string()))?;
    match node.reconciler.missing(Object::Attachment(id.clone())).await {
        Ok(None) => Ok(()),
        Ok(Some(flow)) => Err(fault(format!("flow {flow} is not in the switch"))),
        Err(error) => Err(Error::try_again(error.to_string())),
    }
}

/// What is wrong with an attachment in the kernel.
fn inspect(
    pod: &Attachment,
    prefix: u8,
    gateway: IpAddr,
    mtu: u32,
) -> Result<Option<String>, tenon_netdev::Error> {
    let name = pod.id.link_name();
    match Netlink::open()?.link_by_name(&name)? {
        None => return Ok(Some(format!("link {name} is gone"))),
        Some(link) if !link.up => return Ok(Some(format!("link {name} is down"))),
        Some(_) => {}
    }
    let netlink = Netlink::open_in(&NetNs::open(&pod.netns)?)?;
    let ifname = &pod.id.ifname;
    let Some(link) = netlink.link_by_name(ifname)? else {
        return Ok(Some(format!("the pod has no {ifname}")));
    };
    let address = IpNet::V4(Ipv4Net::new_assert(pod.ip, prefix));
    let routes = netlink.routes(tenon_netdev::RouteFilter { device: Some(link.index), table: None })?;
    let has_route = routes.iter().any(|r| r.destination.prefix_len() == 0 && r.gateway == Some(gateway));
    Ok(if !link.up {
        Some(format!("the pod's {ifname} is down"))
    } else if link.mac != Some(pod.mac.0) {
        Some(format!("the pod's {ifname} does not have the MAC {}", pod.mac))
    } else if link.mtu > mtu {
        Some(format!("the pod's {ifname} has an MTU of {}, more than the overlay's {mtu}", link.mtu))
    } else if !netlink.addresses(link.index)?.iter().any(|a| a.address == address) {
        Some(format!("the pod's {ifname} does not have the address {address}"))
    } else if !has_route {
        Some(format!("the pod has no default route by {gateway}"))
    } else {
        None
    })
}
