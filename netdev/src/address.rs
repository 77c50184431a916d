//! IP addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NlasIterator, parse_ip, parse_u32};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags as KernelFlags, AddressHeader, AddressMessage, AddressScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::socket::{Decoded, Netlink};

/// An address of a link (`ip address`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The link that has it.
    pub index: u32,
    /// The address, with the prefix length of its subnet.
    pub address: IpNet,
    /// IPv6: duplicate address detection has not ended yet, and packets from it are not sent.
    pub tentative: bool,
    /// IPv6: another host has it already.
    pub duplicate: bool,
}

/// How an address is added; by default as `ip address add` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AddressFlags {
    /// IPv6: use it at once, without duplicate address detection (RFC 4862 section 5.4), which takes over a second.
    pub nodad: bool,
    /// Make no route to the address's subnet.
    pub noprefixroute: bool,
}

impl Netlink {
    /// Gives a link an address.
    ///
    /// # Errors
    /// [`Error::Refused`] with `EEXIST` if the link has it already.
    pub fn add_address(&self, index: u32, address: IpNet, flags: AddressFlags) -> Result<()> {
        let mut message = address_message(index, address);
        if let IpAddr::V6(ip) = address.addr()
            && ip.is_unicast_link_local()
        {
            message.header.scope = AddressScope::Link;
        }
        let mut bits = KernelFlags::empty();
        bits.set(KernelFlags::Nodad, flags.nodad);
        bits.set(KernelFlags::Noprefixroute, flags.noprefixroute);
        if !bits.is_empty() {
            message.attributes.push(AddressAttribute::Flags(bits));
        }
        let object = format_args!("{address} to link {index}");
        self.change(
            "add address",
            &object,
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Gives a link an address unless it has it already; then the flags stay as they were.
    pub fn ensure_address(&self, index: u32, address: IpNet, flags: AddressFlags) -> Result<()> {
        match self.add_address(index, address, flags) {
            Err(Error::Refused { errno: Errno::EEXIST, .. }) => Ok(()),
            other => other,
        }
    }

    /// Takes an address from a link; an address or a link that is gone already is fine.
    pub fn delete_address(&self, index: u32, address: IpNet) -> Result<()> {
        let message = RouteNetlinkMessage::DelAddress(address_message(index, address));
        match self.change("delete address", &format_args!("{address} from link {index}"), message, 0) {
            Err(Error::Refused { errno: Errno::EADDRNOTAVAIL | Errno::ENODEV, .. }) => Ok(()),
            other => other,
        }
    }

    /// The addresses of a link, IPv4 and IPv6.
    ///
    /// # Errors
    /// [`Error::Refused`] with `ENODEV` if there is no such link.
    pub fn addresses(&self, index: u32) -> Result<Vec<Address>> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        let object = format_args!("addresses of link {index}");
        self.dump("list", &object, RouteNetlinkMessage::GetAddress(message), |body| {
            Ok(decode(body)?.filter(|address| address.index == index))
        })
    }
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match address {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes =
        vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    message
}

fn decode(body: &[u8]) -> Decoded<Address> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_FLAGS: u16 = 8;
    /// `struct ifaddrmsg`.
    const HEADER_BYTES: usize = 8;

    let header = AddressHeader::parse(body)?;
    let (mut address, mut local) = (None, None);
    let mut flags = KernelFlags::from_bits_retain(u32::from(header.flags.bits()));
    for attribute in NlasIterator::new(body.get(HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind() {
            IFA_ADDRESS => address = Some(parse_ip(attribute.value())?),
            IFA_LOCAL => local = Some(parse_ip(attribute.value())?),
            IFA_FLAGS => flags = KernelFlags::from_bits_retain(parse_u32(attribute.value())?),
            _ => {}
        }
    }
    // On a link with a peer address, IFA_ADDRESS is the peer's. IPv6 has no IFA_LOCAL otherwise.
    let network = local.or(address).and_then(|ip| IpNet::new(ip, header.prefix_len).ok());
    Ok(network.map(|address| Address {
        index: header.index,
        address,
        tentative: flags.contains(KernelFlags::Tentative),
        duplicate: flags.contains(KernelFlags::Dadfailed),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(
            header in prop::collection::vec(any::<u8>(), 8),
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
