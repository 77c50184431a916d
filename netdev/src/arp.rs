//! ARP packets on Ethernet for IPv4 (RFC 826), and what they say about who uses an address (RFC 5227).

use std::net::Ipv4Addr;

use crate::frame::{BROADCAST, EtherType, Ethernet, take};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Operation {
    Request = 1,
    Reply = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arp {
    pub(crate) operation: Operation,
    pub(crate) sender_mac: [u8; 6],
    pub(crate) sender_ip: Ipv4Addr,
    pub(crate) target_mac: [u8; 6],
    pub(crate) target_ip: Ipv4Addr,
}

/// Hardware type Ethernet, protocol type IPv4, and the lengths of their addresses.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

impl Arp {
    /// The question whether anybody uses an address, asked without one (RFC 5227 section 2.1.1).
    pub(crate) fn probe(mac: [u8; 6], address: Ipv4Addr) -> Self {
        Self {
            operation: Operation::Request,
            sender_mac: mac,
            sender_ip: Ipv4Addr::UNSPECIFIED,
            target_mac: [0; 6],
            target_ip: address,
        }
    }

    /// The statement that an address is at this hardware address now: as a request, the form that RFC 5227 section 3
    /// explains, and as a reply, for receivers that heed only replies (a gratuitous reply is addressed to its sender).
    pub(crate) fn announcements(mac: [u8; 6], address: Ipv4Addr) -> [Self; 2] {
        let request = Self { sender_ip: address, ..Self::probe(mac, address) };
        [request, Self { operation: Operation::Reply, target_mac: mac, ..request }]
    }

    /// As a frame to everybody on the link.
    pub(crate) fn broadcast(&self) -> Vec<u8> {
        let payload = [
            &ETHERNET_IPV4[..],
            &(self.operation as u16).to_be_bytes(),
            &self.sender_mac,
            &self.sender_ip.octets(),
            &self.target_mac,
            &self.target_ip.octets(),
        ]
        .concat();
        Ethernet { destination: BROADCAST, source: self.sender_mac }.frame(EtherType::Arp, &payload)
    }

    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let (_, mut payload) = Ethernet::parse(frame, EtherType::Arp)?;
        let rest = &mut payload;
        if take(rest)? != ETHERNET_IPV4 {
            return None;
        }
        let operation = match u16::from_be_bytes(take(rest)?) {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return None,
        };
        Some(Self {
            operation,
            sender_mac: take(rest)?,
            sender_ip: take::<4>(rest)?.into(),
            target_mac: take(rest)?,
            target_ip: take::<4>(rest)?.into(),
        })
    }

    /// The hardware address of another host that this packet shows to use the address, or to probe for it at the same
    /// time (RFC 5227 section 2.1.1). Whoever merely asks who has the address is neither.
    pub(crate) fn rival(&self, own_mac: [u8; 6], address: Ipv4Addr) -> Option<[u8; 6]> {
        let uses = self.sender_ip == address;
        let probes = self.operation == Operation::Request
            && self.sender_ip.is_unspecified()
            && self.target_ip == address;
        (self.sender_mac != own_mac && (uses || probes)).then_some(self.sender_mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: [u8; 6] = [2, 0, 10, 0, 0, 5];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);

    #[test]
    fn a_probe_asks_without_an_address_of_its_own() {
        assert_eq!(
            Arp::probe(OWN, ADDRESS).broadcast(),
            [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 10, 0, 0, 5, 0x08, 0x06, // Ethernet
                0, 1, 8, 0, 6, 4, 0, 1, // request
                2, 0, 10, 0, 0, 5, 0, 0, 0, 0, // sender
                0, 0, 0, 0, 0, 0, 10, 0, 0, 5, // target
            ]
        );
    }

    #[test]
    fn announcements_name_sender_and_target_alike() {
        let [request, reply] = Arp::announcements(OWN, ADDRESS).map(|arp| arp.broadcast());
        assert_eq!(
            request,
            [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 10, 0, 0, 5, 0x08, 0x06, // Ethernet
                0, 1, 8, 0, 6, 4, 0, 1, // request
                2, 0, 10, 0, 0, 5, 10, 0, 0, 5, // sender
                0, 0, 0, 0, 0, 0, 10, 0, 0, 5, // target
            ]
        );
        assert_eq!(
            reply,
            [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 10, 0, 0, 5, 0x08, 0x06, // Ethernet
                0, 1, 8, 0, 6, 4, 0, 2, // reply
                2, 0, 10, 0, 0, 5, 10, 0, 0, 5, // sender
                2, 0, 10, 0, 0, 5, 10, 0, 0, 5, // target
            ]
        );
    }

    #[test]
    fn use_and_simultaneous_probes_are_told_from_questions_and_from_our_own() {
        let question = Arp { sender_ip: Ipv4Addr::new(10, 0, 0, 1), ..Arp::probe(OTHER, ADDRESS) };
        let answer = Arp { operation: Operation::Reply, sender_mac: OTHER, sender_ip: ADDRESS, ..question };
        // A holder that talks about something else.
        let holder = Arp { target_ip: Ipv4Addr::new(10, 0, 0, 77), sender_ip: ADDRESS, ..question };
        let elsewhere = Arp::probe(OTHER, Ipv4Addr::new(10, 0, 0, 6));
        let unspecified_reply = Arp { operation: Operation::Reply, ..Arp::probe(OTHER, ADDRESS) };
        for (packet, rival) in [
            (Arp::probe(OTHER, ADDRESS), true),
            (answer, true),
            (holder, true),
            (question, false),
            (elsewhere, false),
            (unspecified_reply, false),
        ] {
            assert_eq!(packet.rival(OWN, ADDRESS), rival.then_some(OTHER), "{packet:?}");
            assert_eq!(Arp { sender_mac: OWN, ..packet }.rival(OWN, ADDRESS), None, "{packet:?}");
        }
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(frame in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Arp::parse(&frame);
        }

        #[test]
        fn what_is_sent_is_understood(reply: bool, macs: [[u8; 6]; 2], ips: [u32; 2], padding in 0_usize..20) {
            let [sender_mac, target_mac] = macs;
            let [sender_ip, target_ip] = ips.map(Ipv4Addr::from);
            let operation = if reply { Operation::Reply } else { Operation::Request };
            let arp = Arp { operation, sender_mac, sender_ip, target_mac, target_ip };
            let mut frame = arp.broadcast();
            for cut in 0..frame.len() {
                prop_assert_eq!(Arp::parse(&frame[..cut]), None);
            }
            frame.resize(frame.len() + padding, 0);
            prop_assert_eq!(Arp::parse(&frame), Some(arp));
        }

        #[test]
        fn our_own_packets_never_conflict(reply: bool, ips: [u32; 2], address: u32) {
            let [sender_ip, target_ip] = ips.map(Ipv4Addr::from);
            let operation = if reply { Operation::Reply } else { Operation::Request };
            let arp = Arp { operation, sender_mac: OWN, sender_ip, target_mac: [0; 6], target_ip };
            prop_assert_eq!(arp.rival(OWN, address.into()), None);
            prop_assert_eq!(arp.rival(OWN, sender_ip), None);
        }
    }
}
