//! Links: network devices of any kind, and veth pairs between namespaces.

use std::os::fd::AsRawFd;

use netlink_packet_core::{
    DecodeError, NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL, NlasIterator, parse_i32, parse_u16, parse_u16_be,
    parse_u32,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader, LinkInfo, LinkMessage,
};
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::macvlan::MacvlanMode;
use crate::netns::NetNs;
use crate::socket::{Decoded, Netlink, text};

/// A network device (`ip -d link`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in its network namespace.
    pub index: u32,
    /// Its name in its network namespace.
    pub name: String,
    /// Its hardware address, if that is an Ethernet one.
    pub mac: Option<[u8; 6]>,
    /// The largest IP packet it carries, in bytes.
    pub mtu: u32,
    /// Whether it was set up by an administrator (IFF_UP).
    pub up: bool,
    /// Whether it can carry packets now (IFF_LOWER_UP): up, and the other end too.
    pub carrier: bool,
    /// Its group; 0 unless another was given.
    pub group: u32,
    /// The text that somebody attached to it.
    pub alias: Option<String>,
    /// `veth`, `bridge`, `openvswitch` …; `None` for hardware and the loopback.
    pub kind: Option<String>,
    /// IFLA_LINK: the index of a veth's peer in the peer's namespace, or of the link under a VLAN or macvlan.
    pub peer_index: Option<u32>,
    /// The number that this namespace has for the one of the peer or of the link under this one (IFLA_LINK_NETNSID);
    /// `None` if it is the same namespace.
    pub peer_netns_id: Option<i32>,
    /// The index of the bridge, bond or the like that it is a port of.
    pub master: Option<u32>,
    /// Of a macvlan, unless it is in the kernel's mode `source`.
    pub macvlan_mode: Option<MacvlanMode>,
    /// Of a VLAN link, if its VLAN is one of IEEE 802.1Q.
    pub vlan_id: Option<u16>,
}

/// A veth pair to be made (veth(4)): one end here, the other straight in another network namespace.
#[derive(Debug, Clone, Copy)]
pub struct VethPair<'a> {
    /// The name of the end that stays in the handle's namespace.
    pub host_name: &'a str,
    /// The name of the end in the other namespace.
    pub peer_name: &'a str,
    /// The other namespace.
    pub peer_netns: &'a NetNs,
    /// For both ends, in bytes.
    pub mtu: u32,
    /// The hardware address of this end; random if not given.
    pub host_mac: Option<[u8; 6]>,
    /// The hardware address of the other end; random if not given.
    pub peer_mac: Option<[u8; 6]>,
    /// A text for this end, at most 254 bytes.
    pub host_alias: Option<&'a str>,
    /// Whether this end is up from the start. Not if it has settings to be made before, such as IPv6 switched off.
    pub host_up: bool,
    /// The group of this end, to find or delete many at once; 0 is everybody's.
    pub host_group: u32,
    /// Transmit and receive queues of both ends. 1 is enough for most and quickest to make: by default the kernel
    /// makes one for each CPU.
    pub queues: u32,
}

/// The two ends of a veth pair, each by its index in its own network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Veth {
    /// The end in the handle's namespace.
    pub host_index: u32,
    /// The end in the other namespace.
    pub peer_index: u32,
}

impl Netlink {
    /// Makes a veth pair, this end up if wanted, the other end down in its namespace under its final name: a veth end cannot
    /// be set up before its peer is registered.
    ///
    /// # Errors
    /// [`Error::Refused`] with `EEXIST` names the end whose name is taken; nothing was made then. If only the alias
    /// is refused, the pair is deleted again.
    pub fn create_veth(&self, pair: &VethPair<'_>) -> Result<Veth> {
        const OPERATION: &str = "create veth";
        check_name(OPERATION, pair.host_name)?;
        check_name(OPERATION, pair.peer_name)?;
        check_alias(OPERATION, pair.host_name, pair.host_alias.unwrap_or_default())?;

        let mut peer = LinkMessage::default();
        peer.attributes = end_attributes(pair.peer_name, pair.mtu, pair.peer_mac, pair.queues);
        peer.attributes.push(LinkAttribute::NetNsFd(pair.peer_netns.as_raw_fd()));

        let mut host = if pair.host_up { up_message() } else { LinkMessage::default() };
        host.attributes = end_attributes(pair.host_name, pair.mtu, pair.host_mac, pair.queues);
        host.attributes.push(LinkAttribute::Group(pair.host_group));
        host.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));

        let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO;
        let object = format_args!("{} with peer {}", pair.host_name, pair.peer_name);
        let echo = self
            .request(OPERATION, &object, RouteNetlinkMessage::NewLink(host), flags, decode)
            .map_err(|error| self.name_the_taken(error, pair))?;
        // Kernels before 6.2 do not echo.
        let link = match echo {
            Some(link) => Some(link),
            None => self.link_by_name(pair.host_name)?,
        };
        let Some(Link { index: host_index, peer_index: Some(peer_index), .. }) = link else {
            return Err(Error::Malformed {
                operation: OPERATION,
                object: object.to_string(),
                reason: "the new link or its peer's index is missing".to_owned(),
            });
        };
        if let Some(alias) = pair.host_alias {
            // The kernel takes no alias in the request that makes a link.
            if let Err(error) = self.set_alias(host_index, alias) {
                self.delete_link(host_index)?;
                return Err(error);
            }
        }
        Ok(Veth { host_index, peer_index })
    }

    /// `EEXIST` does not say which of the two names is taken.
    fn name_the_taken(&self, error: Error, pair: &VethPair<'_>) -> Error {
        match error {
            Error::Refused { operation, errno: Errno::EEXIST, message, .. } => {
                let object = match self.link_by_name(pair.host_name) {
                    Ok(None) => format!("{}: its peer's name {}", pair.host_name, pair.peer_name),
                    _ => pair.host_name.to_owned(),
                };
                Error::Refused { operation, object, errno: Errno::EEXIST, message }
            }
            other => other,
        }
    }

    /// The link of this name, if there is one.
    pub fn link_by_name(&self, name: &str) -> Result<Option<Link>> {
        check_name("find link", name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.find_link(&name, message)
    }

    /// The link of this index, if there is one.
    pub fn link_by_index(&self, index: u32) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.find_link(&index, message)
    }

    fn find_link(&self, object: &dyn std::fmt::Display, mut message: LinkMessage) -> Result<Option<Link>> {
        message.attributes.push(without_statistics());
        match self.request("find link", object, RouteNetlinkMessage::GetLink(message), 0, decode) {
            Err(Error::Refused { errno: Errno::ENODEV, .. }) => Ok(None),
            answer => answer,
        }
    }

    /// All links of the network namespace.
    pub fn links(&self) -> Result<Vec<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(without_statistics());
        self.dump("list", &"links", RouteNetlinkMessage::GetLink(message), decode)
    }

    /// Sets a link up.
    pub fn set_up(&self, index: u32) -> Result<()> {
        self.set_link("set up", index, up_message())
    }

    /// Sets a link down.
    pub fn set_down(&self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.change_mask = LinkFlags::Up;
        self.set_link("set down", index, message)
    }

    /// Sets the size of the largest IP packet, in bytes.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        self.set_link_attribute("set the MTU of", index, LinkAttribute::Mtu(mtu))
    }

    /// Sets the hardware address; some kinds of link must be down for it.
    pub fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<()> {
        self.set_link_attribute("set the MAC address of", index, LinkAttribute::Address(mac.to_vec()))
    }

    /// Renames a link; before Linux 6.2 it must be down.
    pub fn set_name(&self, index: u32, name: &str) -> Result<()> {
        const OPERATION: &str = "rename";
        check_name(OPERATION, name)?;
        self.set_link_attribute(OPERATION, index, LinkAttribute::IfName(name.to_owned()))
    }

    /// Renames a link that is down and sets it up.
    pub(crate) fn set_name_and_up(&self, index: u32, name: &str) -> Result<()> {
        let mut message = up_message();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.set_link("rename and set up", index, message)
    }

    /// Gives a link that is down a hardware address, if one is given, and sets it up.
    pub(crate) fn set_up_with(&self, index: u32, mac: Option<[u8; 6]>) -> Result<()> {
        let mut message = up_message();
        message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        self.set_link("set up", index, message)
    }

    /// Attaches a text of at most 254 bytes to a link; an empty one removes it.
    pub fn set_alias(&self, index: u32, alias: &str) -> Result<()> {
        const OPERATION: &str = "set the alias of";
        check_alias(OPERATION, &index.to_string(), alias)?;
        self.set_link_attribute(OPERATION, index, LinkAttribute::IfAlias(alias.to_owned()))
    }

    /// Puts a link into a group.
    pub fn set_group(&self, index: u32, group: u32) -> Result<()> {
        self.set_link_attribute("set the group of", index, LinkAttribute::Group(group))
    }

    fn set_link_attribute(
        &self,
        operation: &'static str,
        index: u32,
        attribute: LinkAttribute,
    ) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(attribute);
        self.set_link(operation, index, message)
    }

    fn set_link(&self, operation: &'static str, index: u32, mut message: LinkMessage) -> Result<()> {
        message.header.index = index;
        let object = format_args!("link {index}");
        self.change(operation, &object, RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Deletes a link, and with one end of a veth pair the other; a link that is gone already is fine.
    /// The kernel takes some 20 ms for it.
    pub fn delete_link(&self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let object = format_args!("link {index}");
        gone_is_fine(self.change("delete", &object, RouteNetlinkMessage::DelLink(message), 0))
    }

    /// Deletes all links of a group, in about the time of one; a group without links is fine.
    ///
    /// # Errors
    /// [`Error::Invalid`] for group 0, which every link is in unless put elsewhere.
    pub fn delete_group(&self, group: u32) -> Result<()> {
        const OPERATION: &str = "delete link group";
        if group == 0 {
            return Err(Error::Invalid {
                operation: OPERATION,
                object: group.to_string(),
                reason: "it is the group of every link that was put in no other",
            });
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        gone_is_fine(self.change(OPERATION, &group, RouteNetlinkMessage::DelLink(message), 0))
    }
}

fn gone_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::Refused { errno: Errno::ENODEV, .. }) => Ok(()),
        other => other,
    }
}

fn end_attributes(name: &str, mtu: u32, mac: Option<[u8; 6]>, queues: u32) -> Vec<LinkAttribute> {
    let mut attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NumTxQueues(queues),
        LinkAttribute::NumRxQueues(queues),
    ];
    attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    attributes
}

/// Statistics are most of a link's description, and nobody here reads them.
fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

/// A message that sets up the link it makes or changes.
pub(crate) fn up_message() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

/// The kernel's rules for names (`dev_valid_name`); it also takes `%d` in a name for "the next free number".
pub(crate) fn check_name(operation: &'static str, name: &str) -> Result<()> {
    let reason = match name {
        "" => "a link's name cannot be empty",
        "." | ".." => "this name is taken by the file system",
        _ if name.len() > 15 => "a link's name has at most 15 bytes",
        _ if name.contains(['/', ':', '%', '\0']) || name.contains(char::is_whitespace) => {
            "a link's name has no blanks, slashes, colons or percent signs"
        }
        _ => return Ok(()),
    };
    Err(Error::Invalid { operation, object: format!("link {name:?}"), reason })
}

/// `IFALIASZ` of linux/if.h is 256; with its closing NUL, an attribute of that size is out of the kernel's range.
fn check_alias(operation: &'static str, link: &str, alias: &str) -> Result<()> {
    let reason = if alias.len() > 254 {
        "an alias has at most 254 bytes"
    } else if alias.contains('\0') {
        "an alias contains no NUL"
    } else {
        return Ok(());
    };
    Err(Error::Invalid { operation, object: format!("link {link}"), reason })
}

/// Reads the attributes that [`Link`] has and no others, so that a newer kernel's cannot get in the way.
fn decode(body: &[u8]) -> Decoded<Link> {
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MTU: u16 = 4;
    const IFLA_LINK: u16 = 5;
    const IFLA_MASTER: u16 = 10;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_IFALIAS: u16 = 20;
    const IFLA_GROUP: u16 = 27;
    const IFLA_LINK_NETNSID: u16 = 37;
    /// `struct ifinfomsg`.
    const HEADER_BYTES: usize = 16;

    let header = LinkHeader::parse(body)?;
    let mut link = Link {
        index: header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: header.flags.contains(LinkFlags::Up),
        carrier: header.flags.contains(LinkFlags::LowerUp),
        group: 0,
        alias: None,
        kind: None,
        peer_index: None,
        peer_netns_id: None,
        master: None,
        macvlan_mode: None,
        vlan_id: None,
    };
    for attribute in NlasIterator::new(body.get(HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU => link.mtu = parse_u32(value)?,
            IFLA_LINK => link.peer_index = Some(parse_u32(value)?).filter(|index| *index != 0),
            IFLA_MASTER => link.master = Some(parse_u32(value)?),
            IFLA_LINKINFO => read_kind(value, &mut link)?,
            IFLA_IFALIAS => link.alias = Some(text(value)),
            IFLA_GROUP => link.group = parse_u32(value)?,
            IFLA_LINK_NETNSID => link.peer_netns_id = Some(parse_i32(value)?),
            _ => {}
        }
    }
    Ok(Some(link))
}

/// A link's kind, and what is particular to that kind.
fn read_kind(link_info: &[u8], link: &mut Link) -> std::result::Result<(), DecodeError> {
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_DATA: u16 = 2;
    const IFLA_MACVLAN_MODE: u16 = 1;
    const IFLA_VLAN_ID: u16 = 1;
    const IFLA_VLAN_PROTOCOL: u16 = 5;
    const IEEE_802_1Q: u16 = 0x8100;

    // The kernel puts the kind before its data.
    for attribute in NlasIterator::new(link_info) {
        let attribute = attribute?;
        match (attribute.kind(), link.kind.as_deref()) {
            (IFLA_INFO_KIND, _) => link.kind = Some(text(attribute.value())),
            (IFLA_INFO_DATA, Some("macvlan")) => {
                let mode = find_attribute(attribute.value(), IFLA_MACVLAN_MODE, parse_u32)?;
                link.macvlan_mode = mode.and_then(MacvlanMode::from_number);
            }
            (IFLA_INFO_DATA, Some("vlan")) => {
                let protocol = find_attribute(attribute.value(), IFLA_VLAN_PROTOCOL, parse_u16_be)?;
                let id = find_attribute(attribute.value(), IFLA_VLAN_ID, parse_u16)?;
                link.vlan_id = id.filter(|_| protocol == Some(IEEE_802_1Q));
            }
            _ => {}
        }
    }
    Ok(())
}

fn find_attribute<T>(
    data: &[u8],
    kind: u16,
    parse: impl Fn(&[u8]) -> std::result::Result<T, DecodeError>,
) -> Decoded<T> {
    for attribute in NlasIterator::new(data) {
        let attribute = attribute?;
        if attribute.kind() == kind {
            return parse(attribute.value()).map(Some);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(
            header in prop::collection::vec(any::<u8>(), 16),
            attributes in prop::collection::vec((0_u8..28, 0_u8..28, prop::collection::vec(0_u8..28, 0..24)), 0..6),
            length in 0_usize..200,
        ) {
            let mut body = header;
            for (length, kind, value) in attributes {
                body.extend([length, 0, kind, 0]);
                body.extend(value);
            }
            body.truncate(length);
            let _ = decode(&body);
        }
    }
}
