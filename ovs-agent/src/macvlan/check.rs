//! CHECK for macvlan: the lease, and the interface with its mode, addresses, routes and limits.

use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use tenon_cni::{Bandwidth, Error, Request, Verb, code};
use tenon_ipam::{Lease, Mac};

use super::delegation::{self, Delegated};
use super::limits;
use super::pod::Expected;
use super::segments::{field, text};
use crate::attach::{blocking, id_of, netdev_error};
use crate::node::Node;

/// Carries out CHECK.
pub(crate) async fn check(node: &Arc<Node>, request: &Request) -> Result<(), Error> {
    let id = id_of(request);
    let fault = |fault: String| Error::new(code::CHECK_FAILED, format!("{id}: {fault}"));
    if let Some(obstacle) = node.macvlan.obstacle() {
        return Err(Error::try_again(obstacle));
    }
    let netns =
        request.arguments.netns.clone().ok_or_else(|| Error::invalid_environment("CNI_NETNS", "not set"))?;
    let result = request.conf.prev_result.clone().unwrap_or_default();
    let routes = result
        .routes
        .iter()
        .filter_map(|route| Some((IpNet::new(route.dst.address(), route.dst.prefix()).ok()?, route.gw)));
    let mut expected = Expected {
        netns,
        ifname: id.ifname.clone(),
        mode: None,
        mac: None,
        addresses: Vec::new(),
        link: None,
        routes: routes.collect(),
        bandwidth: Bandwidth::default(),
    };
    let given = result.ips.iter().filter_map(|ip| IpNet::new(ip.address.address(), ip.address.prefix()).ok());
    let given: Vec<IpNet> = given.collect();
    if let Some(note) = node.macvlan.delegated.get::<Delegated>(&id) {
        delegation::call_for_effect(request, Verb::Check).await?;
        expected.bandwidth = limits::of_record(&note.bandwidth)?;
        expected.link = Some(note.link);
        expected.mac = note.mac.parse::<Mac>().ok().map(Mac::bytes);
        expected.addresses = given;
    } else {
        let held = node.macvlan.segments().held(&id);
        let lost = node.macvlan.lost(&id);
        if !lost.is_empty() {
            return Err(fault(lost.join("; ")));
        }
        let Some((_, lease)) = held.first() else {
            return Err(Error::container_unknown(&id.container_id).with_details(format!("{id} has no lease")));
        };
        if let Some(recorded) =
            text(lease, field::NETNS).filter(|recorded| Path::new(recorded) != expected.netns)
        {
            let netns = expected.netns.display();
            return Err(fault(format!("CNI_NETNS is {netns}, it was attached in {recorded}")));
        }
        if let Some(other) = given.iter().find(|given| !held.iter().any(|(_, l)| l.ip == given.addr())) {
            return Err(fault(format!("prevResult has {}, of which it has no lease", other.addr())));
        }
        expected.bandwidth = limits::of_lease(lease)?;
        expected.mode = text(lease, field::MODE).and_then(|mode| mode.parse().ok());
        expected.link = text(lease, field::LINK).map(str::to_owned);
        expected.mac = lease.mac.map(Mac::bytes);
        let in_result = |lease: &Lease| given.iter().find(|given| given.addr() == lease.ip).copied();
        let address = |(_, lease): &(String, Lease)| in_result(lease);
        expected.addresses = held.iter().filter_map(address).collect();
    }
    let found = blocking(move || expected.fault()).await.map_err(netdev_error)?;
    found.map_or(Ok(()), |found| Err(fault(found)))
}
