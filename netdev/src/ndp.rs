//! IPv6 neighbour discovery (RFC 4861): the messages of duplicate address detection (RFC 4862 section 5.4) and of
//! announcements.

use std::net::Ipv6Addr;

use crate::frame::{EtherType, Ethernet, take};

/// ff02::1
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// IPv6's number for ICMPv6.
pub(crate) const ICMPV6: u8 = 58;
/// The types of ICMPv6 messages that are understood here.
pub(crate) const SOLICITATION: u8 = 135;
pub(crate) const ADVERTISEMENT: u8 = 136;

/// Routers pass no packet on without counting this down: what still has it comes from this link.
const HOP_LIMIT: u8 = 255;
/// The flag that has receivers replace what they knew, in the first byte after the checksum.
const OVERRIDE: u8 = 0x20;
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
/// Options are counted in units of so many bytes.
const OPTION_UNIT_BYTES: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// Who has this address?
    Solicitation,
    /// It is at this hardware address.
    Advertisement { link_layer_address: Option<[u8; 6]> },
}

/// A neighbour discovery packet and the frame around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source_mac: [u8; 6],
    pub(crate) source: Ipv6Addr,
    pub(crate) destination: Ipv6Addr,
    pub(crate) target: Ipv6Addr,
    pub(crate) message: Message,
}

/// The group in which a holder of this address listens for questions about it (RFC 4291 section 2.7.1).
pub(crate) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The hardware address of an IPv6 group on Ethernet (RFC 2464 section 7).
fn group_mac(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

impl Packet {
    /// The question whether anybody uses an address, asked without one (RFC 4862 section 5.4.2).
    pub(crate) fn probe(mac: [u8; 6], address: Ipv6Addr) -> Self {
        Self {
            source_mac: mac,
            source: Ipv6Addr::UNSPECIFIED,
            destination: solicited_node(address),
            target: address,
            message: Message::Solicitation,
        }
    }

    /// The statement that an address is at this hardware address now (RFC 4861 section 7.2.6).
    pub(crate) fn announcement(mac: [u8; 6], address: Ipv6Addr) -> Self {
        Self {
            source_mac: mac,
            source: address,
            destination: ALL_NODES,
            target: address,
            message: Message::Advertisement { link_layer_address: Some(mac) },
        }
    }

    /// As a frame to the group that is its destination.
    pub(crate) fn multicast(&self) -> Vec<u8> {
        let (kind, flags, option) = match self.message {
            Message::Solicitation => (SOLICITATION, 0, None),
            Message::Advertisement { link_layer_address } => (ADVERTISEMENT, OVERRIDE, link_layer_address),
        };
        let mut icmp = vec![kind, 0, 0, 0, flags, 0, 0, 0];
        icmp.extend(self.target.octets());
        if let Some(mac) = option {
            icmp.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
            icmp.extend(mac);
        }
        let checksum = !sum(self.source, self.destination, &icmp);
        if let Some(field) = icmp.get_mut(2..4) {
            field.copy_from_slice(&checksum.to_be_bytes());
        }
        let length = icmp.len() as u16; // at most 32
        let header = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[ICMPV6, HOP_LIMIT]].concat();
        let packet = [&header[..], &self.source.octets(), &self.destination.octets(), &icmp].concat();
        Ethernet { destination: group_mac(self.destination), source: self.source_mac }
            .frame(EtherType::Ipv6, &packet)
    }

    /// Nothing for other packets, and for those that RFC 4861 sections 7.1.1 and 7.1.2 have receivers discard.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let (ethernet, mut packet) = Ethernet::parse(frame, EtherType::Ipv6)?;
        let rest = &mut packet;
        let [version, _, _, _] = take(rest)?;
        let length = usize::from(u16::from_be_bytes(take(rest)?));
        let [next_header, hop_limit] = take(rest)?;
        let source = Ipv6Addr::from(take::<16>(rest)?);
        let destination = Ipv6Addr::from(take::<16>(rest)?);
        // What follows is padding.
        let icmp = packet.get(..length)?;
        if version >> 4 != 6 || next_header != ICMPV6 || hop_limit != HOP_LIMIT {
            return None;
        }
        if sum(source, destination, icmp) != u16::MAX {
            return None;
        }
        let rest = &mut &*icmp;
        let [kind, code, _, _, flags, _, _, _] = take(rest)?;
        let target = Ipv6Addr::from(take::<16>(rest)?);
        let options = options(rest)?;
        if code != 0 || target.is_multicast() {
            return None;
        }
        let message = match kind {
            SOLICITATION => {
                let anonymous = source.is_unspecified();
                let to_group = destination == solicited_node(target);
                if anonymous && (!to_group || options.source.is_some()) {
                    return None;
                }
                Message::Solicitation
            }
            ADVERTISEMENT => {
                const SOLICITED: u8 = 0x40;
                if destination.is_multicast() && flags & SOLICITED != 0 {
                    return None;
                }
                Message::Advertisement { link_layer_address: options.target }
            }
            _ => return None,
        };
        Some(Self { source_mac: ethernet.source, source, destination, target, message })
    }

    /// The hardware address of another host that this packet shows to use the address, or to probe for it at the same
    /// time (RFC 4862 sections 5.4.3 and 5.4.4). Whoever merely asks who has the address is neither.
    pub(crate) fn rival(&self, own_mac: [u8; 6], address: Ipv6Addr) -> Option<[u8; 6]> {
        let mac = match self.message {
            Message::Solicitation => self.source.is_unspecified().then_some(self.source_mac),
            Message::Advertisement { link_layer_address } => {
                Some(link_layer_address.unwrap_or(self.source_mac))
            }
        };
        mac.filter(|mac| *mac != own_mac && self.source_mac != own_mac && self.target == address)
    }
}

/// The options that are read.
#[derive(Default)]
struct Options {
    source: Option<[u8; 6]>,
    target: Option<[u8; 6]>,
}

/// Nothing if an option has no length or is cut short (RFC 4861 section 4.6).
fn options(mut rest: &[u8]) -> Option<Options> {
    let mut options = Options::default();
    while let [kind, units, ..] = *rest {
        let (option, tail) = rest.split_at_checked(usize::from(units) * OPTION_UNIT_BYTES)?;
        let mac = option.get(2..)?.try_into().ok();
        match kind {
            SOURCE_LINK_LAYER_ADDRESS => options.source = mac,
            TARGET_LINK_LAYER_ADDRESS => options.target = mac,
            _ => {}
        }
        rest = tail;
    }
    rest.is_empty().then_some(options)
}

/// The one's complement sum over a message and the pseudo-header (RFC 8200 section 8.1): all ones if it has its right
/// checksum, and that checksum's complement if it has zero for it.
fn sum(source: Ipv6Addr, destination: Ipv6Addr, icmp: &[u8]) -> u16 {
    let (words, last) = icmp.as_chunks::<2>();
    let words = words.iter().copied().map(u16::from_be_bytes);
    let last = last.first().map(|byte| u16::from_be_bytes([*byte, 0]));
    let pseudo = source.segments().into_iter().chain(destination.segments());
    let total: u64 = words.chain(last).chain(pseudo).map(u64::from).sum();
    let mut total = total + icmp.len() as u64 + u64::from(ICMPV6);
    while total > u64::from(u16::MAX) {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: [u8; 6] = [2, 0, 10, 0, 0, 5];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0x12, 0x3456);

    #[test]
    fn a_probe_asks_without_an_address_of_its_own() {
        assert_eq!(
            Packet::probe(OWN, ADDRESS).multicast(),
            [
                0x33, 0x33, 0xff, 0x12, 0x34, 0x56, 2, 0, 10, 0, 0, 5, 0x86, 0xdd, // Ethernet
                0x60, 0, 0, 0, 0, 24, 58, 255, // IPv6
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // from
                0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0x12, 0x34, 0x56, // to
                135, 0, 0x14, 0xd7, 0, 0, 0, 0, // solicitation
                0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56, // target
            ]
        );
    }

    #[test]
    fn an_announcement_overrides_what_was_known() {
        assert_eq!(
            Packet::announcement(OWN, ADDRESS).multicast(),
            [
                0x33, 0x33, 0, 0, 0, 1, 2, 0, 10, 0, 0, 5, 0x86, 0xdd, // Ethernet
                0x60, 0, 0, 0, 0, 32, 58, 255, // IPv6
                0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56, // from
                0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, // to
                136, 0, 0xe7, 0xc8, 0x20, 0, 0, 0, // advertisement, override
                0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56, // target
                2, 1, 2, 0, 10, 0, 0, 5, // target link-layer address
            ]
        );
    }

    #[test]
    fn use_and_simultaneous_probes_are_told_from_questions_and_from_our_own() {
        let probe = Packet::probe(OTHER, ADDRESS);
        let question = Packet { source: "fd00::1".parse().unwrap(), ..probe };
        let answer = Packet::announcement(OTHER, ADDRESS);
        let without_option =
            Packet { message: Message::Advertisement { link_layer_address: None }, ..answer };
        // Sent on behalf of the holder by somebody else.
        let proxied = Packet { source_mac: [2, 0, 0, 0, 0, 8], ..answer };
        let elsewhere = Packet::announcement(OTHER, "fd00::12:3457".parse().unwrap());
        for (packet, rival) in [
            (probe, true),
            (answer, true),
            (without_option, true),
            (proxied, true),
            (question, false),
            (elsewhere, false),
        ] {
            assert_eq!(packet.rival(OWN, ADDRESS), rival.then_some(OTHER), "{packet:?}");
            assert_eq!(Packet { source_mac: OWN, ..packet }.rival(OWN, ADDRESS), None, "{packet:?}");
            assert_eq!(Packet::parse(&packet.multicast()), Some(packet));
        }
    }

    #[test]
    fn what_a_receiver_must_discard_is_discarded() {
        let frame = Packet::probe(OTHER, ADDRESS).multicast();
        for (at, value) in [(14, 0x40), (20, 17), (21, 254), (54, 134), (55, 1), (56, 0), (69, 0x57)] {
            let mut broken = frame.clone();
            broken[at] = value;
            assert_eq!(Packet::parse(&broken), None, "byte {at} is {value}");
        }
        let to_all = Packet { destination: ALL_NODES, ..Packet::probe(OTHER, ADDRESS) };
        assert_eq!(Packet::parse(&to_all.multicast()), None);
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            Just(Message::Solicitation),
            any::<Option<[u8; 6]>>()
                .prop_map(|link_layer_address| Message::Advertisement { link_layer_address }),
        ]
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(
            noise in prop::collection::vec(any::<u8>(), 0..80),
            tail in prop::collection::vec(0_u8..4, 0..24),
            cut in 0_usize..90,
        ) {
            let _ = Packet::parse(&noise);
            let mut frame = Packet::announcement(OTHER, ADDRESS).multicast();
            frame.truncate(cut);
            let _ = Packet::parse(&frame);
            let _ = options(&tail);
        }

        #[test]
        fn what_is_sent_is_understood(
            source_mac: [u8; 6], source: u128, target: u128, message in message(), padding in 0_usize..20,
        ) {
            let (source, target) = (Ipv6Addr::from(source), Ipv6Addr::from(target));
            prop_assume!(!target.is_multicast());
            let packet = Packet { source_mac, source, destination: solicited_node(target), target, message };
            let mut frame = packet.multicast();
            for cut in 0..frame.len() {
                prop_assert_eq!(Packet::parse(&frame[..cut]), None);
            }
            frame.resize(frame.len() + padding, 0);
            prop_assert_eq!(Packet::parse(&frame), Some(packet));
        }
    }
}
