//! Random flows that a switch accepts.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;

use super::of::{
    Action, ETH_TYPE_ARP, ETH_TYPE_IPV4, ETH_TYPE_IPV6, Field, FieldKind, Flow, IP_PROTO_ICMP,
    IP_PROTO_ICMPV6, IP_PROTO_TCP, IP_PROTO_UDP, Match, PortNo, Subfield,
};

use FieldKind as K;

/// Fields of every packet that actions may write.
const EVERYWHERE: [FieldKind; 25] = [
    K::Metadata,
    K::TunId,
    K::TunSrc,
    K::TunDst,
    K::PktMark,
    K::EthSrc,
    K::EthDst,
    K::Reg0,
    K::Reg1,
    K::Reg2,
    K::Reg3,
    K::Reg4,
    K::Reg5,
    K::Reg6,
    K::Reg7,
    K::Reg8,
    K::Reg9,
    K::Reg10,
    K::Reg11,
    K::Reg12,
    K::Reg13,
    K::Reg14,
    K::Reg15,
    K::Reg0,
    K::TunId,
];

/// A kind of packet: what selects it, and the fields that it has beyond those of every packet.
#[derive(Clone, Debug)]
struct Packet {
    selects: Vec<Field>,
    matched: &'static [FieldKind],
    written: &'static [FieldKind],
}

fn packets() -> Vec<Packet> {
    let ip = |eth_type, protocol| vec![Field::eth_type(eth_type), Field::ip_proto(protocol)];
    vec![
        Packet { selects: vec![], matched: &[], written: &[] },
        Packet { selects: vec![Field::eth_type(0x88cc)], matched: &[], written: &[] },
        Packet {
            selects: vec![Field::eth_type(ETH_TYPE_ARP)],
            matched: &[K::ArpSpa, K::ArpTpa, K::ArpSha, K::ArpTha],
            written: &[K::ArpSpa, K::ArpTpa, K::ArpSha, K::ArpTha],
        },
        Packet {
            selects: vec![Field::eth_type(ETH_TYPE_IPV4)],
            matched: &[K::Ipv4Src, K::Ipv4Dst, K::IpTtl, K::IpProto],
            written: &[K::Ipv4Src, K::Ipv4Dst, K::IpTtl],
        },
        Packet {
            selects: vec![Field::eth_type(ETH_TYPE_IPV6)],
            matched: &[K::Ipv6Src, K::Ipv6Dst, K::IpTtl],
            written: &[K::Ipv6Src, K::Ipv6Dst, K::IpTtl],
        },
        Packet {
            selects: ip(ETH_TYPE_IPV4, IP_PROTO_TCP),
            matched: &[K::Ipv4Src, K::TcpSrc, K::TcpDst],
            written: &[K::TcpSrc, K::TcpDst],
        },
        Packet {
            selects: ip(ETH_TYPE_IPV6, IP_PROTO_UDP),
            matched: &[K::Ipv6Dst, K::UdpSrc, K::UdpDst],
            written: &[K::UdpSrc, K::UdpDst],
        },
        Packet {
            selects: ip(ETH_TYPE_IPV4, IP_PROTO_ICMP),
            matched: &[K::Ipv4Dst, K::IcmpType, K::IcmpCode],
            written: &[],
        },
        Packet {
            selects: ip(ETH_TYPE_IPV6, IP_PROTO_ICMPV6),
            matched: &[K::Ipv6Src, K::Icmpv6Type, K::Icmpv6Code],
            written: &[],
        },
    ]
}

fn full_mask(kind: FieldKind) -> u128 {
    u128::MAX >> (128 - u32::from(kind.bits()))
}

/// A field with any value and any mask.
pub(crate) fn field(kind: FieldKind) -> impl Strategy<Value = Field> {
    (any::<u128>(), any::<u128>(), any::<bool>()).prop_map(move |(value, mask, exact)| {
        let full = full_mask(kind);
        // ovs-ofctl takes a mask of an IPv6 address that starts with a digit for a prefix length.
        let start = if kind.bits() == 128 { 0xf << 124 } else { 0 };
        let mask = if exact || !kind.maskable() { full } else { mask & full | start };
        Field::new(kind, value & mask, mask).unwrap()
    })
}

fn exact(kind: FieldKind) -> impl Strategy<Value = Field> {
    any::<u128>().prop_map(move |value| Field::exact(kind, value & full_mask(kind)).unwrap())
}

fn part(kind: FieldKind, most: u8) -> impl Strategy<Value = Subfield> {
    (0..kind.bits()).prop_flat_map(move |first| {
        (1..=most.min(kind.bits() - first)).prop_map(move |bits| Subfield::new(kind, first, bits).unwrap())
    })
}

fn some_kind(packet: &Packet) -> impl Strategy<Value = FieldKind> + use<> {
    select(EVERYWHERE.iter().chain(packet.written).copied().collect::<Vec<_>>())
}

fn copy(packet: &Packet) -> impl Strategy<Value = Action> + use<> {
    (some_kind(packet), some_kind(packet)).prop_flat_map(|(src, dst)| {
        part(src, dst.bits()).prop_flat_map(move |src| {
            (0..=dst.bits() - src.bits())
                .prop_map(move |first| src.copy_to(Subfield::new(dst, first, src.bits()).unwrap()).unwrap())
        })
    })
}

fn port() -> impl Strategy<Value = PortNo> {
    prop_oneof![
        (1u32..65279).prop_map(PortNo),
        select(vec![
            PortNo::IN_PORT,
            PortNo::NORMAL,
            PortNo::FLOOD,
            PortNo::ALL,
            PortNo::CONTROLLER,
            PortNo::LOCAL
        ]),
    ]
}

fn action(packet: &Packet) -> impl Strategy<Value = Action> + use<> {
    let resubmit_port =
        prop_oneof![(1u32..65279).prop_map(PortNo), Just(PortNo::IN_PORT), Just(PortNo::LOCAL)];
    prop_oneof![
        port().prop_map(Action::Output),
        select(&EVERYWHERE[..]).prop_flat_map(|kind| part(kind, 32)).prop_map(Action::OutputReg),
        some_kind(packet).prop_flat_map(exact).prop_map(Action::SetField),
        some_kind(packet).prop_flat_map(|kind| part(kind, 64)).prop_flat_map(|dst| {
            any::<u64>().prop_map(move |value| dst.load(value >> (64 - dst.bits())).unwrap())
        }),
        copy(packet),
        (resubmit_port, 0u8..255).prop_map(|(in_port, table)| Action::Resubmit { in_port, table }),
        (0u32..1000).prop_map(Action::SetQueue),
    ]
}

/// Connection states that can occur: tracked, with one meaning more.
fn ct_state() -> impl Strategy<Value = Field> {
    select(vec![(0x21, 0x21), (0x22, 0x23), (0x20, 0x30), (0x2a, 0x2a), (0, 0x20)])
        .prop_map(|(value, mask)| Field::ct_state(value, mask))
}

fn fragment() -> impl Strategy<Value = Field> {
    select(vec![(0, 3), (1, 1), (1, 3), (3, 3), (0, 2)])
        .prop_map(|(value, mask)| Field::ip_frag(value, mask).unwrap())
}

fn vlan() -> impl Strategy<Value = Vec<Field>> {
    let tagged = (1u16..4095, option::of(0u128..8)).prop_map(|(vid, priority)| {
        let tag = Field::vlan(vid).unwrap();
        std::iter::once(tag).chain(priority.map(|bits| Field::exact(K::VlanPcp, bits).unwrap())).collect()
    });
    prop_oneof![Just(vec![]), Just(vec![Field::vlan_untagged()]), Just(vec![Field::vlan_tagged()]), tagged]
}

fn match_(packet: &Packet) -> impl Strategy<Value = Match> + use<> {
    let kinds =
        EVERYWHERE.iter().chain(packet.matched).copied().chain([K::CtMark, K::CtZone]).collect::<Vec<_>>();
    let is_ip = packet.selects.iter().any(|field| {
        field.kind() == K::EthType && [ETH_TYPE_IPV4, ETH_TYPE_IPV6].map(u128::from).contains(&field.value())
    });
    let has_ports = packet.selects.iter().any(|field| field.kind() == K::IpProto);
    let is_arp = packet.selects.contains(&Field::eth_type(ETH_TYPE_ARP));
    let selects = packet.selects.clone();
    (
        vec(select(kinds).prop_flat_map(field), 0..6),
        option::of(1u32..65279),
        option::of(ct_state()),
        option::of(fragment()),
        option::of(1u16..256),
        vlan(),
    )
        .prop_map(move |(fields, in_port, ct_state, fragment, arp_op, vlan)| {
            selects
                .iter()
                .copied()
                .chain(fields)
                .chain(in_port.map(Field::in_port))
                .chain(ct_state)
                // Later fragments have no ports: a match that is about both is refused.
                .chain(fragment.filter(|fragment| is_ip && (!has_ports || fragment.value() != 3)))
                .chain(arp_op.filter(|_| is_arp).map(Field::arp_op))
                .chain(vlan)
                .fold(Match::new(), Match::with)
        })
}

/// Any flow that needs nothing else in the switch, such as a meter or a group.
pub(crate) fn flow() -> impl Strategy<Value = Flow> {
    select(packets()).prop_flat_map(|packet| {
        (
            0u8..253,
            any::<u16>(),
            any::<u64>(),
            match_(&packet),
            vec(action(&packet), 0..6),
            option::of(1u8..253),
        )
            .prop_map(|(table, priority, cookie, match_, actions, goto)| Flow {
                goto: goto.filter(|goto| *goto > table),
                ..Flow::new(table, priority, match_).cookie(cookie).actions(actions)
            })
    })
}
