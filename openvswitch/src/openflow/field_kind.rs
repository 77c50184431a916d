//! The kinds of fields that a flow can match on and an action can write to: packet headers, tunnel metadata and
//! registers, as in OpenFlow 1.4.1 §7.2.3.7 and, for what Open vSwitch adds, ovs-fields(7).

use std::fmt;

use super::Subfield;

/// OXM class of the first Nicira fields (`NXM_OF_*`).
const NXM_OF: u16 = 0x0000;
/// OXM class of the later Nicira fields (`NXM_NX_*`).
const NXM_NX: u16 = 0x0001;
/// OXM class of the standard's fields (`OXM_OF_*`).
const OXM_OF: u16 = 0x8000;

/// What is known about a kind of field.
struct Spec {
    /// The name in ovs-fields(7).
    name: &'static str,
    /// The bits that carry meaning.
    bits: u8,
    /// The bytes of the value on the wire.
    bytes: u8,
    /// Whether a match may leave some of the bits open.
    maskable: bool,
    /// OXM class and field number to send.
    code: (u16, u8),
}

macro_rules! field_kinds {
    ($($(#[$doc:meta])+ $kind:ident: $name:literal, $bits:literal bits of $bytes:literal, $maskable:literal,
       $class:ident $number:literal $(or $other_class:ident $other_number:literal)?;)+) => {
        /// A kind of field. The order is that of a canonical match: what a field depends on comes before it, as
        /// Open vSwitch wants it on the wire.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum FieldKind {
            $($(#[$doc])+ $kind,)+
        }

        impl FieldKind {
            /// Every kind, in canonical order.
            pub const ALL: &'static [FieldKind] = &[$(FieldKind::$kind,)+];

            const fn spec(self) -> Spec {
                match self {
                    $(FieldKind::$kind => Spec {
                        name: $name, bits: $bits, bytes: $bytes, maskable: $maskable, code: ($class, $number),
                    },)+
                }
            }

            /// The kind that a class and number stand for. Several fields have a Nicira code and a standard one, and
            /// Open vSwitch answers with either, depending on the message.
            const fn from_code(class: u16, number: u8) -> Option<FieldKind> {
                match (class, number) {
                    $(($class, $number) $(| ($other_class, $other_number))? => Some(FieldKind::$kind),)+
                    _ => None,
                }
            }
        }
    };
}

field_kinds! {
    /// Port that the packet came in by.
    InPort: "in_port", 32 bits of 4, false, OXM_OF 0;
    /// Metadata handed from table to table.
    Metadata: "metadata", 64 bits of 8, true, OXM_OF 2;
    /// Tunnel key, the VNI of VXLAN in its low 24 bits.
    TunId: "tun_id", 64 bits of 8, true, OXM_OF 38 or NXM_NX 16;
    /// Outer IPv4 source of a packet from a tunnel.
    TunSrc: "tun_src", 32 bits of 4, true, NXM_NX 31;
    /// Outer IPv4 destination of a packet from or to a tunnel.
    TunDst: "tun_dst", 32 bits of 4, true, NXM_NX 32;
    /// Register 0.
    Reg0: "reg0", 32 bits of 4, true, NXM_NX 0;
    /// Register 1.
    Reg1: "reg1", 32 bits of 4, true, NXM_NX 1;
    /// Register 2.
    Reg2: "reg2", 32 bits of 4, true, NXM_NX 2;
    /// Register 3.
    Reg3: "reg3", 32 bits of 4, true, NXM_NX 3;
    /// Register 4.
    Reg4: "reg4", 32 bits of 4, true, NXM_NX 4;
    /// Register 5.
    Reg5: "reg5", 32 bits of 4, true, NXM_NX 5;
    /// Register 6.
    Reg6: "reg6", 32 bits of 4, true, NXM_NX 6;
    /// Register 7.
    Reg7: "reg7", 32 bits of 4, true, NXM_NX 7;
    /// Register 8.
    Reg8: "reg8", 32 bits of 4, true, NXM_NX 8;
    /// Register 9.
    Reg9: "reg9", 32 bits of 4, true, NXM_NX 9;
    /// Register 10.
    Reg10: "reg10", 32 bits of 4, true, NXM_NX 10;
    /// Register 11.
    Reg11: "reg11", 32 bits of 4, true, NXM_NX 11;
    /// Register 12.
    Reg12: "reg12", 32 bits of 4, true, NXM_NX 12;
    /// Register 13.
    Reg13: "reg13", 32 bits of 4, true, NXM_NX 13;
    /// Register 14.
    Reg14: "reg14", 32 bits of 4, true, NXM_NX 14;
    /// Register 15.
    Reg15: "reg15", 32 bits of 4, true, NXM_NX 15;
    /// Mark of the packet (`skb->mark`), shared with the kernel.
    PktMark: "pkt_mark", 32 bits of 4, true, NXM_NX 33;
    /// State of the packet's connection.
    CtState: "ct_state", 32 bits of 4, true, NXM_NX 105;
    /// Zone of the packet's connection.
    CtZone: "ct_zone", 16 bits of 2, false, NXM_NX 106;
    /// Mark of the packet's connection.
    CtMark: "ct_mark", 32 bits of 4, true, NXM_NX 107;
    /// Ethernet destination.
    EthDst: "eth_dst", 48 bits of 6, true, OXM_OF 3 or NXM_OF 1;
    /// Ethernet source.
    EthSrc: "eth_src", 48 bits of 6, true, OXM_OF 4 or NXM_OF 2;
    /// Type of the Ethernet payload.
    EthType: "eth_type", 16 bits of 2, false, OXM_OF 5 or NXM_OF 3;
    /// VLAN ID with, as bit 12, whether there is a tag at all.
    VlanVid: "vlan_vid", 13 bits of 2, true, OXM_OF 6;
    /// VLAN priority; needs a [`FieldKind::VlanVid`] with a tag.
    VlanPcp: "vlan_pcp", 3 bits of 1, false, OXM_OF 7;
    /// IP protocol (IPv4) or last next header (IPv6).
    IpProto: "nw_proto", 8 bits of 1, false, OXM_OF 10 or NXM_OF 6;
    /// Time to live (IPv4) or hop limit (IPv6).
    IpTtl: "nw_ttl", 8 bits of 1, false, NXM_NX 29;
    /// Whether the packet is a fragment: bit 0 any fragment, bit 1 one that is not the first.
    IpFrag: "ip_frag", 2 bits of 1, true, NXM_NX 26;
    /// IPv4 source.
    Ipv4Src: "ip_src", 32 bits of 4, true, OXM_OF 11 or NXM_OF 7;
    /// IPv4 destination.
    Ipv4Dst: "ip_dst", 32 bits of 4, true, OXM_OF 12 or NXM_OF 8;
    /// IPv6 source.
    Ipv6Src: "ipv6_src", 128 bits of 16, true, OXM_OF 26 or NXM_NX 19;
    /// IPv6 destination.
    Ipv6Dst: "ipv6_dst", 128 bits of 16, true, OXM_OF 27 or NXM_NX 20;
    /// ARP operation; the switch knows 1 to 255.
    ArpOp: "arp_op", 16 bits of 2, false, OXM_OF 21 or NXM_OF 15;
    /// ARP sender's IPv4 address.
    ArpSpa: "arp_spa", 32 bits of 4, true, OXM_OF 22 or NXM_OF 16;
    /// ARP target's IPv4 address.
    ArpTpa: "arp_tpa", 32 bits of 4, true, OXM_OF 23 or NXM_OF 17;
    /// ARP sender's Ethernet address.
    ArpSha: "arp_sha", 48 bits of 6, true, OXM_OF 24 or NXM_NX 17;
    /// ARP target's Ethernet address.
    ArpTha: "arp_tha", 48 bits of 6, true, OXM_OF 25 or NXM_NX 18;
    /// TCP source port.
    TcpSrc: "tcp_src", 16 bits of 2, true, OXM_OF 13 or NXM_OF 9;
    /// TCP destination port.
    TcpDst: "tcp_dst", 16 bits of 2, true, OXM_OF 14 or NXM_OF 10;
    /// UDP source port.
    UdpSrc: "udp_src", 16 bits of 2, true, OXM_OF 15 or NXM_OF 11;
    /// UDP destination port.
    UdpDst: "udp_dst", 16 bits of 2, true, OXM_OF 16 or NXM_OF 12;
    /// ICMP type.
    IcmpType: "icmp_type", 8 bits of 1, false, OXM_OF 19 or NXM_OF 13;
    /// ICMP code.
    IcmpCode: "icmp_code", 8 bits of 1, false, OXM_OF 20 or NXM_OF 14;
    /// ICMPv6 type.
    Icmpv6Type: "icmpv6_type", 8 bits of 1, false, OXM_OF 29 or NXM_NX 21;
    /// ICMPv6 code.
    Icmpv6Code: "icmpv6_code", 8 bits of 1, false, OXM_OF 30 or NXM_NX 22;
}

/// The registers by number.
pub(crate) const REGISTERS: [FieldKind; 16] = [
    FieldKind::Reg0,
    FieldKind::Reg1,
    FieldKind::Reg2,
    FieldKind::Reg3,
    FieldKind::Reg4,
    FieldKind::Reg5,
    FieldKind::Reg6,
    FieldKind::Reg7,
    FieldKind::Reg8,
    FieldKind::Reg9,
    FieldKind::Reg10,
    FieldKind::Reg11,
    FieldKind::Reg12,
    FieldKind::Reg13,
    FieldKind::Reg14,
    FieldKind::Reg15,
];

/// The lowest `bits` bits set.
pub(crate) const fn low_bits(bits: u8) -> u128 {
    if bits >= 128 { u128::MAX } else { (1 << bits) - 1 }
}

impl FieldKind {
    /// The name in ovs-fields(7).
    pub const fn name(self) -> &'static str {
        self.spec().name
    }

    /// How many bits the value has.
    pub const fn bits(self) -> u8 {
        self.spec().bits
    }

    /// Whether a match may leave some of the bits open.
    pub const fn maskable(self) -> bool {
        self.spec().maskable
    }

    /// All bits of the field, for an action that writes or reads all of it.
    pub const fn whole(self) -> Subfield {
        Subfield::whole(self)
    }

    /// Whether the value is an IPv4 or IPv6 address.
    pub(crate) const fn is_ip_address(self) -> bool {
        matches!(
            self,
            FieldKind::Ipv4Src
                | FieldKind::Ipv4Dst
                | FieldKind::Ipv6Src
                | FieldKind::Ipv6Dst
                | FieldKind::ArpSpa
                | FieldKind::ArpTpa
                | FieldKind::TunSrc
                | FieldKind::TunDst
        )
    }

    /// How many bytes the value takes on the wire.
    pub(crate) const fn wire_bytes(self) -> u8 {
        self.spec().bytes
    }

    /// The mask that leaves no bit open.
    pub(crate) const fn full_mask(self) -> u128 {
        low_bits(self.bits())
    }

    /// The OXM header (OpenFlow 1.4.1 §7.2.3.2) for a value with or without a mask.
    pub(crate) const fn header(self, masked: bool) -> u32 {
        let Spec { bytes, code: (class, number), .. } = self.spec();
        let length = if masked { bytes * 2 } else { bytes };
        (class as u32) << 16 | (number as u32) << 9 | (masked as u32) << 8 | length as u32
    }

    /// The kind and whether a mask follows; `None` when the header is not one of ours, its length included.
    pub(crate) const fn from_header(header: u32) -> Option<(FieldKind, bool)> {
        let masked = header & 0x100 != 0;
        let number = (header >> 9 & 0x7f) as u8;
        match FieldKind::from_code((header >> 16) as u16, number) {
            Some(kind) => {
                let length = if masked { kind.wire_bytes() * 2 } else { kind.wire_bytes() };
                if header & 0xff == length as u32 { Some((kind, masked)) } else { None }
            }
            None => None,
        }
    }
}

impl fmt::Display for FieldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
