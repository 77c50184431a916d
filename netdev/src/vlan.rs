//! VLAN links: the packets of one VLAN of a trunk as a link of its own (IEEE 802.1Q; `ip-link(8)`, type vlan).

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::link::{Link, check_name};
use crate::socket::Netlink;

const OPERATION: &str = "create VLAN link";

/// A VLAN link that is there and up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VlanLink {
    /// Its number in its network namespace.
    pub index: u32,
    /// Its name: the one asked for, unless the master had a link for this VLAN under another.
    pub name: String,
    /// Whether it was made for this call; otherwise it belongs to whoever made it.
    pub made: bool,
}

impl Netlink {
    /// Makes a link for the packets of a master that carry this VLAN id, and sets it up. It has its master's MTU and
    /// hardware address.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a VLAN id that is not in 1–4094. [`Error::Refused`], and nothing was made, with `EEXIST`
    /// if the name or the VLAN on this master is taken, `ENODEV` if there is no such master, and `ENETDOWN` if it is
    /// down.
    pub fn create_vlan(&self, name: &str, master: u32, vlan_id: u16) -> Result<()> {
        check_name(OPERATION, name)?;
        if !(1..=4094).contains(&vlan_id) {
            return Err(Error::Invalid {
                operation: OPERATION,
                object: format!("{name} for VLAN {vlan_id}"),
                reason: "VLAN ids are 1 to 4094",
            });
        }
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Link(master),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(vlan_id)])),
            ]),
        ];
        let object = format_args!("{name} for VLAN {vlan_id} of link {master}");
        self.change(OPERATION, &object, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|error| self.say_why(error, name, master, vlan_id))
    }

    /// The link for this VLAN of a master, up; made under this name if there is none.
    ///
    /// # Errors
    /// As [`Netlink::create_vlan`]; `EEXIST` only if the name belongs to a link of another kind, master or VLAN.
    pub fn ensure_vlan(&self, name: &str, master: u32, vlan_id: u16) -> Result<VlanLink> {
        // What there is in most cases; the attempt to make it again would list all links.
        if let Some(link) = self.link_by_name(name)?
            && link.up
            && is_vlan_of(&link, master, vlan_id)
        {
            return Ok(VlanLink { index: link.index, name: link.name, made: false });
        }
        match self.create_vlan(name, master, vlan_id) {
            Ok(()) => {
                let made = self.link_by_name(name)?.ok_or_else(|| Error::vanished(OPERATION, name))?;
                Ok(VlanLink { index: made.index, name: name.to_owned(), made: true })
            }
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                let links = self.links()?;
                let Some(link) = links.into_iter().find(|link| is_vlan_of(link, master, vlan_id)) else {
                    return Err(error);
                };
                if !link.up {
                    self.set_up(link.index)?;
                }
                Ok(VlanLink { index: link.index, name: link.name, made: false })
            }
            Err(error) => Err(error),
        }
    }

    /// Adds what the kernel's number means here.
    fn say_why(&self, error: Error, name: &str, master: u32, vlan_id: u16) -> Error {
        let Error::Refused { operation, object, errno, message } = error else { return error };
        let (object, reason) = match self.link_by_index(master) {
            Ok(Some(link)) => {
                let reason = match errno {
                    Errno::EEXIST => match self.link_by_name(name) {
                        Ok(Some(taken)) => Some(format!("the name belongs to {}", describe(&taken))),
                        _ => Some(format!("{} has a link for VLAN {vlan_id} under another name", link.name)),
                    },
                    Errno::ENETDOWN => Some(format!("{} is down: set it up first", link.name)),
                    _ => None,
                };
                (format!("{name} for VLAN {vlan_id} of {}", link.name), reason)
            }
            Ok(None) => (object, Some(format!("there is no link {master}"))),
            Err(_) => (object, None),
        };
        let words = [Some(message).filter(|message| !message.is_empty()), reason];
        let message = words.into_iter().flatten().collect::<Vec<_>>().join(": ");
        Error::Refused { operation, object, errno, message }
    }
}

/// A link that was moved here from another namespace may have a master there by the same number.
fn is_vlan_of(link: &Link, master: u32, vlan_id: u16) -> bool {
    link.vlan_id == Some(vlan_id) && link.peer_index == Some(master) && link.peer_netns_id.is_none()
}

fn describe(link: &Link) -> String {
    match (link.vlan_id, link.peer_index) {
        (Some(vlan_id), Some(master)) => format!("VLAN {vlan_id} of link {master}"),
        _ => format!("a link of kind {}", link.kind.as_deref().unwrap_or("hardware")),
    }
}
