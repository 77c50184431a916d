//! Fields with values: what a match asks for and Set-Field writes.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::{FieldKind, Mac, PortNo, Subfield};

/// The value of [`FieldKind::EthType`] for IPv4.
pub const ETH_TYPE_IPV4: u16 = 0x0800;
/// The value of [`FieldKind::EthType`] for ARP.
pub const ETH_TYPE_ARP: u16 = 0x0806;
/// The value of [`FieldKind::EthType`] for IPv6.
pub const ETH_TYPE_IPV6: u16 = 0x86dd;
/// The value of [`FieldKind::IpProto`] for ICMP.
pub const IP_PROTO_ICMP: u8 = 1;
/// The value of [`FieldKind::IpProto`] for TCP.
pub const IP_PROTO_TCP: u8 = 6;
/// The value of [`FieldKind::IpProto`] for UDP.
pub const IP_PROTO_UDP: u8 = 17;
/// The value of [`FieldKind::IpProto`] for ICMPv6.
pub const IP_PROTO_ICMPV6: u8 = 58;

/// A value that a field cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The value, or its mask, has more bits than there is room for.
    #[error("{value:#x} does not fit into the {bits} bits of {kind}")]
    TooWide {
        /// The field.
        kind: FieldKind,
        /// The bits there are.
        bits: u8,
        /// The value that has more.
        value: u128,
    },
    /// A mask that leaves bits open, on a field that is matched as a whole or not at all.
    #[error("{kind} cannot be matched in part (mask {mask:#x})")]
    NotMaskable {
        /// The field.
        kind: FieldKind,
        /// The mask that was asked for.
        mask: u128,
    },
    /// A part that reaches beyond the field, or has no bits.
    #[error("{kind} has no bits {first_bit} to {first_bit}+{bits}")]
    NoSuchBits {
        /// The field.
        kind: FieldKind,
        /// The lowest bit of the part.
        first_bit: u8,
        /// The number of bits in the part.
        bits: u8,
    },
    /// A copy between parts of different sizes.
    #[error("cannot copy {src}, {} bits, to {dst}, {} bits", src.bits(), dst.bits())]
    UnequalParts {
        /// Where to copy from.
        src: Subfield,
        /// Where to copy to.
        dst: Subfield,
    },
}

/// A field with the value that it is to have, and a mask whose set bits say which bits of the value count.
///
/// Bits outside the mask are zero, so that equal matches compare as equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Field {
    kind: FieldKind,
    value: u128,
    mask: u128,
}

impl Field {
    /// Any field with any mask. Bits of `value` outside of `mask` are ignored.
    ///
    /// # Errors
    /// [`FieldError::TooWide`] and [`FieldError::NotMaskable`].
    pub fn new(kind: FieldKind, value: u128, mask: u128) -> Result<Field, FieldError> {
        let full = kind.full_mask();
        for part in [value, mask] {
            if part & !full != 0 {
                return Err(FieldError::TooWide { kind, bits: kind.bits(), value: part });
            }
        }
        if !kind.maskable() && mask != full {
            return Err(FieldError::NotMaskable { kind, mask });
        }
        Ok(Field { kind, value: value & mask, mask })
    }

    /// Any field with all bits given.
    ///
    /// # Errors
    /// [`FieldError::TooWide`].
    pub fn exact(kind: FieldKind, value: u128) -> Result<Field, FieldError> {
        Field::new(kind, value, kind.full_mask())
    }

    /// All bits given, by a type that has no more bits than the field.
    const fn whole(kind: FieldKind, value: u128) -> Field {
        Field { kind, value, mask: kind.full_mask() }
    }

    /// Some bits given, by types that have no more bits than the field.
    const fn masked(kind: FieldKind, value: u128, mask: u128) -> Field {
        Field { kind, value: value & mask, mask }
    }

    fn ipv4(kind: FieldKind, net: Ipv4Net) -> Field {
        Field::masked(kind, net.addr().to_bits().into(), net.netmask().to_bits().into())
    }

    fn ipv6(kind: FieldKind, net: Ipv6Net) -> Field {
        Field::masked(kind, net.addr().to_bits(), net.netmask().to_bits())
    }

    /// What the field is.
    pub const fn kind(&self) -> FieldKind {
        self.kind
    }

    /// The value, in the low bits; zero outside of the mask.
    pub const fn value(&self) -> u128 {
        self.value
    }

    /// Which bits of the value count.
    pub const fn mask(&self) -> u128 {
        self.mask
    }

    /// Whether all bits of the field are given.
    pub const fn is_exact(&self) -> bool {
        self.mask == self.kind.full_mask()
    }

    /// Both fields' bits in one; where both give a bit, `later` wins. Both are of the same kind.
    pub(crate) const fn merged(self, later: Field) -> Field {
        Field { kind: self.kind, value: self.value & !later.mask | later.value, mask: self.mask | later.mask }
    }

    /// Port that the packet came in by.
    pub fn in_port(port: impl Into<PortNo>) -> Field {
        Field::whole(FieldKind::InPort, port.into().0.into())
    }
    /// Metadata handed from table to table.
    pub const fn metadata(value: u64, mask: u64) -> Field {
        Field::masked(FieldKind::Metadata, value as u128, mask as u128)
    }
    /// Tunnel key; for VXLAN the VNI.
    pub const fn tun_id(value: u64) -> Field {
        Field::whole(FieldKind::TunId, value as u128)
    }
    /// Outer IPv4 source of a packet from a tunnel.
    pub fn tun_src(net: impl Into<Ipv4Net>) -> Field {
        Field::ipv4(FieldKind::TunSrc, net.into())
    }
    /// Outer IPv4 destination of a packet from or to a tunnel.
    pub fn tun_dst(net: impl Into<Ipv4Net>) -> Field {
        Field::ipv4(FieldKind::TunDst, net.into())
    }
    /// Connection state: of the bits in `mask`, those in `value` are set (`+new-est`, …; see ovs-fields(7)).
    pub const fn ct_state(value: u32, mask: u32) -> Field {
        Field::masked(FieldKind::CtState, value as u128, mask as u128)
    }
    /// Zone of the packet's connection.
    pub const fn ct_zone(zone: u16) -> Field {
        Field::whole(FieldKind::CtZone, zone as u128)
    }
    /// Mark of the packet's connection.
    pub const fn ct_mark(value: u32, mask: u32) -> Field {
        Field::masked(FieldKind::CtMark, value as u128, mask as u128)
    }
    /// Mark of the packet (`skb->mark`).
    pub const fn pkt_mark(value: u32, mask: u32) -> Field {
        Field::masked(FieldKind::PktMark, value as u128, mask as u128)
    }
    /// Ethernet source.
    pub const fn eth_src(mac: Mac) -> Field {
        Field::whole(FieldKind::EthSrc, mac.bits())
    }
    /// Ethernet destination.
    pub const fn eth_dst(mac: Mac) -> Field {
        Field::whole(FieldKind::EthDst, mac.bits())
    }
    /// Ethernet destination in part, such as every group address: `01:00:00:00:00:00/01:00:00:00:00:00`.
    pub const fn eth_dst_masked(mac: Mac, mask: Mac) -> Field {
        Field::masked(FieldKind::EthDst, mac.bits(), mask.bits())
    }
    /// Type of the Ethernet payload.
    pub const fn eth_type(eth_type: u16) -> Field {
        Field::whole(FieldKind::EthType, eth_type as u128)
    }
    /// No VLAN tag.
    pub const fn vlan_untagged() -> Field {
        Field::whole(FieldKind::VlanVid, 0)
    }
    /// Some VLAN tag.
    pub const fn vlan_tagged() -> Field {
        Field::masked(FieldKind::VlanVid, 0x1000, 0x1000)
    }
    /// The VLAN tag with this ID.
    ///
    /// # Errors
    /// [`FieldError::TooWide`] for an ID of more than 12 bits.
    pub fn vlan(vid: u16) -> Result<Field, FieldError> {
        if vid > 0xfff {
            return Err(FieldError::TooWide { kind: FieldKind::VlanVid, bits: 12, value: vid.into() });
        }
        Ok(Field::whole(FieldKind::VlanVid, 0x1000 | u128::from(vid)))
    }
    /// IP protocol (IPv4) or last next header (IPv6).
    pub const fn ip_proto(protocol: u8) -> Field {
        Field::whole(FieldKind::IpProto, protocol as u128)
    }
    /// Time to live (IPv4) or hop limit (IPv6).
    pub const fn ip_ttl(ttl: u8) -> Field {
        Field::whole(FieldKind::IpTtl, ttl as u128)
    }
    /// Fragments: of the bits in `mask`, those in `value` are set. Bit 0: any fragment, bit 1: not the first one.
    ///
    /// # Errors
    /// [`FieldError::TooWide`] beyond bit 1.
    pub fn ip_frag(value: u8, mask: u8) -> Result<Field, FieldError> {
        Field::new(FieldKind::IpFrag, value.into(), mask.into())
    }
    /// IPv4 source.
    pub fn ipv4_src(net: impl Into<Ipv4Net>) -> Field {
        Field::ipv4(FieldKind::Ipv4Src, net.into())
    }
    /// IPv4 destination.
    pub fn ipv4_dst(net: impl Into<Ipv4Net>) -> Field {
        Field::ipv4(FieldKind::Ipv4Dst, net.into())
    }
    /// IPv6 source.
    pub fn ipv6_src(net: impl Into<Ipv6Net>) -> Field {
        Field::ipv6(FieldKind::Ipv6Src, net.into())
    }
    /// IPv6 destination.
    pub fn ipv6_dst(net: impl Into<Ipv6Net>) -> Field {
        Field::ipv6(FieldKind::Ipv6Dst, net.into())
    }
    /// ARP operation: 1 request, 2 reply.
    pub const fn arp_op(operation: u16) -> Field {
        Field::whole(FieldKind::ArpOp, operation as u128)
    }
    /// ARP sender's IPv4 address.
    pub fn arp_spa(net: impl Into<Ipv4Net>) -> Field {
        Field::ipv4(FieldKind::ArpSpa, net.into())
    }
    /// ARP target's IPv4 address.
    pub fn arp_tpa(net: impl Into<Ipv4Net>) -> Field {
        Field::ipv4(FieldKind::ArpTpa, net.into())
    }
    /// ARP sender's Ethernet address.
    pub const fn arp_sha(mac: Mac) -> Field {
        Field::whole(FieldKind::ArpSha, mac.bits())
    }
    /// ARP target's Ethernet address.
    pub const fn arp_tha(mac: Mac) -> Field {
        Field::whole(FieldKind::ArpTha, mac.bits())
    }
    /// TCP source port.
    pub const fn tcp_src(port: u16) -> Field {
        Field::whole(FieldKind::TcpSrc, port as u128)
    }
    /// TCP destination port.
    pub const fn tcp_dst(port: u16) -> Field {
        Field::whole(FieldKind::TcpDst, port as u128)
    }
    /// UDP source port.
    pub const fn udp_src(port: u16) -> Field {
        Field::whole(FieldKind::UdpSrc, port as u128)
    }
    /// UDP destination port.
    pub const fn udp_dst(port: u16) -> Field {
        Field::whole(FieldKind::UdpDst, port as u128)
    }
    /// ICMP type.
    pub const fn icmp_type(icmp_type: u8) -> Field {
        Field::whole(FieldKind::IcmpType, icmp_type as u128)
    }
    /// ICMP code.
    pub const fn icmp_code(code: u8) -> Field {
        Field::whole(FieldKind::IcmpCode, code as u128)
    }
    /// ICMPv6 type.
    pub const fn icmpv6_type(icmp_type: u8) -> Field {
        Field::whole(FieldKind::Icmpv6Type, icmp_type as u128)
    }
    /// ICMPv6 code.
    pub const fn icmpv6_code(code: u8) -> Field {
        Field::whole(FieldKind::Icmpv6Code, code as u128)
    }
}

/// Writes one value of the kind as ovs-ofctl(8) reads it.
fn write_value(f: &mut fmt::Formatter<'_>, kind: FieldKind, value: u128) -> fmt::Result {
    match kind {
        FieldKind::InPort => fmt::Display::fmt(&PortNo(value as u32), f),
        FieldKind::EthDst | FieldKind::EthSrc | FieldKind::ArpSha | FieldKind::ArpTha => {
            let [.., a, b, c, d, e, g] = value.to_be_bytes();
            fmt::Display::fmt(&Mac([a, b, c, d, e, g]), f)
        }
        _ if !kind.is_ip_address() => write!(f, "{value:#x}"),
        FieldKind::Ipv6Src | FieldKind::Ipv6Dst => fmt::Display::fmt(&Ipv6Addr::from_bits(value), f),
        _ => fmt::Display::fmt(&Ipv4Addr::from_bits(value as u32), f),
    }
}

impl Field {
    /// The prefix length of an address's mask, if it has one.
    fn prefix_length(&self) -> Option<u32> {
        if !self.kind.is_ip_address() {
            return None;
        }
        let length = self.mask.count_ones();
        let host_bits = u32::from(self.kind.bits()).checked_sub(length)?;
        let netmask = self.kind.full_mask().checked_shr(host_bits)?.checked_shl(host_bits)?;
        (self.mask == netmask).then_some(length)
    }

    /// Writes the value alone, with its mask if not all bits are given.
    pub(crate) fn write_value(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == FieldKind::IpFrag {
            // ovs-ofctl has names for these and takes nothing else.
            return match (self.value, self.mask) {
                (0, 3) => f.write_str("no"),
                (1, 1) => f.write_str("yes"),
                (1, 3) => f.write_str("first"),
                (3, 3) => f.write_str("later"),
                (0, 2) => f.write_str("not_later"),
                (value, mask) => write!(f, "{value}/{mask}"),
            };
        }
        write_value(f, self.kind, self.value)?;
        if self.is_exact() {
            return Ok(());
        }
        f.write_str("/")?;
        match self.prefix_length() {
            Some(length) => write!(f, "{length}"),
            None => write_value(f, self.kind, self.mask),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.kind)?;
        self.write_value(f)
    }
}
