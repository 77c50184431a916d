//! Which packets a flow is for.

use std::fmt;

use ipnet::{Ipv4Net, Ipv6Net};

use super::field::{
    ETH_TYPE_ARP, ETH_TYPE_IPV4, ETH_TYPE_IPV6, IP_PROTO_ICMP, IP_PROTO_ICMPV6, IP_PROTO_TCP, IP_PROTO_UDP,
};
use super::wire::{Reader, Writer};
use super::{DecodeError, EncodeError, Field, FieldKind, Mac, PortNo};

/// What has to be matched before a field can be (OpenFlow 1.4.1 §7.2.3.6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Prerequisite {
    /// The Ethernet payload is of this type.
    EthType(u16),
    /// The Ethernet payload is IPv4 or IPv6.
    Ip,
    /// The IP payload is of this protocol.
    IpProto(u8),
    /// There is a VLAN tag.
    VlanTag,
}

impl fmt::Display for Prerequisite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Prerequisite::EthType(eth_type) => write!(f, "eth_type={eth_type:#06x}"),
            Prerequisite::Ip => {
                write!(f, "eth_type={ETH_TYPE_IPV4:#06x} or eth_type={ETH_TYPE_IPV6:#06x}")
            }
            Prerequisite::IpProto(protocol) => write!(f, "nw_proto={protocol}"),
            Prerequisite::VlanTag => f.write_str("vlan_vid=0x1000/0x1000"),
        }
    }
}

impl FieldKind {
    /// What has to be matched before this field can be; all of it.
    pub const fn prerequisites(self) -> &'static [Prerequisite] {
        match self {
            FieldKind::VlanPcp => &[Prerequisite::VlanTag],
            FieldKind::Ipv4Src | FieldKind::Ipv4Dst => &[Prerequisite::EthType(ETH_TYPE_IPV4)],
            FieldKind::Ipv6Src | FieldKind::Ipv6Dst => &[Prerequisite::EthType(ETH_TYPE_IPV6)],
            FieldKind::IpProto | FieldKind::IpTtl | FieldKind::IpFrag => &[Prerequisite::Ip],
            FieldKind::ArpOp
            | FieldKind::ArpSpa
            | FieldKind::ArpTpa
            | FieldKind::ArpSha
            | FieldKind::ArpTha => &[Prerequisite::EthType(ETH_TYPE_ARP)],
            FieldKind::TcpSrc | FieldKind::TcpDst => &[Prerequisite::Ip, Prerequisite::IpProto(IP_PROTO_TCP)],
            FieldKind::UdpSrc | FieldKind::UdpDst => &[Prerequisite::Ip, Prerequisite::IpProto(IP_PROTO_UDP)],
            FieldKind::IcmpType | FieldKind::IcmpCode => {
                &[Prerequisite::EthType(ETH_TYPE_IPV4), Prerequisite::IpProto(IP_PROTO_ICMP)]
            }
            FieldKind::Icmpv6Type | FieldKind::Icmpv6Code => {
                &[Prerequisite::EthType(ETH_TYPE_IPV6), Prerequisite::IpProto(IP_PROTO_ICMPV6)]
            }
            _ => &[],
        }
    }
}

/// A matched field that this crate has no name for, as it was on the wire. It is kept so that a flow of somebody
/// else's making is never taken for a wider one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UnknownField {
    /// The OXM header.
    pub header: u32,
    /// What follows the header.
    pub body: Vec<u8>,
}

/// A set of fields that a packet must have.
///
/// Fields are kept in canonical order whatever the order of the calls, so that equal matches compare as equal. A
/// field brings along the prerequisites that leave no choice (`ipv4_src` that the packet is IPv4, `tcp_dst` that it
/// is TCP, though not whether over IPv4 or IPv6); [`Match::check`] finds what is missing or contradicts itself.
///
/// ```
/// use openvswitch::openflow::Match;
/// let net: ipnet::Ipv4Net = "172.11.0.0/22".parse()?;
/// let match_ = Match::new().in_port(3).ipv4_src(net).tcp_dst(80);
/// assert_eq!(match_.to_string(), "in_port=3,eth_type=0x800,nw_proto=0x6,ip_src=172.11.0.0/22,tcp_dst=0x50");
/// match_.check()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Match {
    /// Sorted by kind, each kind once, no mask empty.
    fields: Vec<Field>,
    unknown: Vec<UnknownField>,
}

impl Match {
    /// Every packet.
    pub const fn new() -> Match {
        Match { fields: Vec::new(), unknown: Vec::new() }
    }

    /// The fields in canonical order.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The fields that this crate has no name for.
    pub fn unknown_fields(&self) -> &[UnknownField] {
        &self.unknown
    }

    /// The field of this kind.
    pub fn field(&self, kind: FieldKind) -> Option<&Field> {
        let at = self.fields.binary_search_by_key(&kind, Field::kind).ok()?;
        self.fields.get(at)
    }

    fn insert(&mut self, field: Field) {
        if field.mask() == 0 {
            return;
        }
        match self.fields.binary_search_by_key(&field.kind(), Field::kind) {
            Ok(at) => {
                if let Some(place) = self.fields.get_mut(at) {
                    *place = place.merged(field);
                }
            }
            Err(at) => self.fields.insert(at, field),
        }
    }

    /// This match and `field`. Several parts of one field (such as a register) add up; where two give the same bit,
    /// the later one wins.
    #[must_use]
    pub fn with(mut self, field: Field) -> Match {
        for prerequisite in field.kind().prerequisites() {
            let (kind, implied) = match *prerequisite {
                Prerequisite::EthType(eth_type) => (FieldKind::EthType, Field::eth_type(eth_type)),
                Prerequisite::IpProto(protocol) => (FieldKind::IpProto, Field::ip_proto(protocol)),
                Prerequisite::VlanTag => (FieldKind::VlanVid, Field::vlan_tagged()),
                Prerequisite::Ip => continue,
            };
            if self.field(kind).is_none() {
                self.insert(implied);
            }
        }
        self.insert(field);
        self
    }

    /// Whether every field has its prerequisites; the switch would refuse the match otherwise.
    ///
    /// # Errors
    /// [`EncodeError::Prerequisite`].
    pub fn check(&self) -> Result<(), EncodeError> {
        for field in &self.fields {
            for needs in field.kind().prerequisites() {
                if !self.meets(*needs) {
                    return Err(EncodeError::Prerequisite { field: field.kind(), needs: *needs });
                }
            }
        }
        Ok(())
    }

    fn meets(&self, prerequisite: Prerequisite) -> bool {
        let value = |kind| self.field(kind).map(Field::value);
        match prerequisite {
            Prerequisite::EthType(eth_type) => value(FieldKind::EthType) == Some(eth_type.into()),
            Prerequisite::Ip => {
                let eth_type = value(FieldKind::EthType);
                eth_type == Some(ETH_TYPE_IPV4.into()) || eth_type == Some(ETH_TYPE_IPV6.into())
            }
            Prerequisite::IpProto(protocol) => value(FieldKind::IpProto) == Some(protocol.into()),
            Prerequisite::VlanTag => value(FieldKind::VlanVid).is_some_and(|vid| vid & 0x1000 != 0),
        }
    }

    /// Packets that came in by this port.
    #[must_use]
    pub fn in_port(self, port: impl Into<PortNo>) -> Match {
        self.with(Field::in_port(port))
    }
    /// IPv4 packets.
    #[must_use]
    pub fn ipv4(self) -> Match {
        self.eth_type(ETH_TYPE_IPV4)
    }
    /// IPv6 packets.
    #[must_use]
    pub fn ipv6(self) -> Match {
        self.eth_type(ETH_TYPE_IPV6)
    }
    /// ARP packets.
    #[must_use]
    pub fn arp(self) -> Match {
        self.eth_type(ETH_TYPE_ARP)
    }
    /// TCP segments; say as well whether over IPv4 or IPv6.
    #[must_use]
    pub fn tcp(self) -> Match {
        self.ip_proto(IP_PROTO_TCP)
    }
    /// UDP datagrams; say as well whether over IPv4 or IPv6.
    #[must_use]
    pub fn udp(self) -> Match {
        self.ip_proto(IP_PROTO_UDP)
    }
    /// ICMP messages, over IPv4.
    #[must_use]
    pub fn icmp(self) -> Match {
        self.ipv4().ip_proto(IP_PROTO_ICMP)
    }
    /// Frames with this type of payload.
    #[must_use]
    pub fn eth_type(self, eth_type: u16) -> Match {
        self.with(Field::eth_type(eth_type))
    }
    /// Frames from this station.
    #[must_use]
    pub fn eth_src(self, mac: Mac) -> Match {
        self.with(Field::eth_src(mac))
    }
    /// Frames to this station.
    #[must_use]
    pub fn eth_dst(self, mac: Mac) -> Match {
        self.with(Field::eth_dst(mac))
    }
    /// Packets of this IP protocol; say as well whether over IPv4 or IPv6.
    #[must_use]
    pub fn ip_proto(self, protocol: u8) -> Match {
        self.with(Field::ip_proto(protocol))
    }
    /// IPv4 packets from this network or address.
    #[must_use]
    pub fn ipv4_src(self, net: impl Into<Ipv4Net>) -> Match {
        self.with(Field::ipv4_src(net))
    }
    /// IPv4 packets to this network or address.
    #[must_use]
    pub fn ipv4_dst(self, net: impl Into<Ipv4Net>) -> Match {
        self.with(Field::ipv4_dst(net))
    }
    /// IPv6 packets from this network or address.
    #[must_use]
    pub fn ipv6_src(self, net: impl Into<Ipv6Net>) -> Match {
        self.with(Field::ipv6_src(net))
    }
    /// IPv6 packets to this network or address.
    #[must_use]
    pub fn ipv6_dst(self, net: impl Into<Ipv6Net>) -> Match {
        self.with(Field::ipv6_dst(net))
    }
    /// ARP packets of this operation: 1 request, 2 reply.
    #[must_use]
    pub fn arp_op(self, operation: u16) -> Match {
        self.with(Field::arp_op(operation))
    }
    /// ARP packets whose sender's IPv4 address is in this network.
    #[must_use]
    pub fn arp_spa(self, net: impl Into<Ipv4Net>) -> Match {
        self.with(Field::arp_spa(net))
    }
    /// ARP packets whose target's IPv4 address is in this network.
    #[must_use]
    pub fn arp_tpa(self, net: impl Into<Ipv4Net>) -> Match {
        self.with(Field::arp_tpa(net))
    }
    /// ARP packets with this sender's Ethernet address.
    #[must_use]
    pub fn arp_sha(self, mac: Mac) -> Match {
        self.with(Field::arp_sha(mac))
    }
    /// ARP packets with this target's Ethernet address.
    #[must_use]
    pub fn arp_tha(self, mac: Mac) -> Match {
        self.with(Field::arp_tha(mac))
    }
    /// Segments from this TCP port.
    #[must_use]
    pub fn tcp_src(self, port: u16) -> Match {
        self.with(Field::tcp_src(port))
    }
    /// Segments to this TCP port.
    #[must_use]
    pub fn tcp_dst(self, port: u16) -> Match {
        self.with(Field::tcp_dst(port))
    }
    /// Datagrams from this UDP port.
    #[must_use]
    pub fn udp_src(self, port: u16) -> Match {
        self.with(Field::udp_src(port))
    }
    /// Datagrams to this UDP port.
    #[must_use]
    pub fn udp_dst(self, port: u16) -> Match {
        self.with(Field::udp_dst(port))
    }
    /// Packets with this tunnel key; for VXLAN the VNI.
    #[must_use]
    pub fn tun_id(self, key: u64) -> Match {
        self.with(Field::tun_id(key))
    }
    /// Packets from a tunnel whose outer source is in this network.
    #[must_use]
    pub fn tun_src(self, net: impl Into<Ipv4Net>) -> Match {
        self.with(Field::tun_src(net))
    }
    /// Packets from or to a tunnel whose outer destination is in this network.
    #[must_use]
    pub fn tun_dst(self, net: impl Into<Ipv4Net>) -> Match {
        self.with(Field::tun_dst(net))
    }

    /// Appends an `ofp_match` (OpenFlow 1.4.1 §7.2.3.1).
    pub(crate) fn encode(&self, out: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        let start = out.len();
        out.u16(1); // OFPMT_OXM
        out.u16(0); // the length, filled in below
        for field in &self.fields {
            encode_field(field, out);
        }
        for field in &self.unknown {
            out.u32(field.header);
            out.bytes(&field.body);
        }
        out.set_length(start + 2, start)?; // without the padding
        out.pad(start);
        Ok(())
    }

    /// Reads an `ofp_match` and its padding.
    pub(crate) fn decode(input: &mut Reader<'_>) -> Result<Match, DecodeError> {
        let before = input.rest().len();
        let mut fields = input.structure("match", 2, 4)?;
        let length = before - input.rest().len();
        input.skip(length.next_multiple_of(8) - length)?;
        fields.skip(4)?;
        let mut match_ = Match::new();
        while !fields.is_empty() {
            let header = fields.u32()?;
            let body = fields.bytes((header & 0xff) as usize)?;
            match decode_field(header, body) {
                Some(field) => match_.insert(field),
                None => match_.unknown.push(UnknownField { header, body: body.to_vec() }),
            }
        }
        match_.unknown.sort_unstable();
        Ok(match_)
    }
}

/// Appends an OXM TLV.
pub(crate) fn encode_field(field: &Field, out: &mut Writer) {
    let kind = field.kind();
    out.u32(kind.header(!field.is_exact()));
    out.number(field.value(), kind.wire_bytes());
    if !field.is_exact() {
        out.number(field.mask(), kind.wire_bytes());
    }
}

/// Reads an OXM TLV; `None` when it is none of ours, or has bits where the field has none.
pub(crate) fn decode_field(header: u32, body: &[u8]) -> Option<Field> {
    let (kind, masked) = FieldKind::from_header(header)?;
    let mut body = Reader::new("field", body);
    let value = body.number(kind.wire_bytes()).ok()?;
    // A mask of all ones may have bits beyond the field's own.
    let mask = if masked { body.number(kind.wire_bytes()).ok()? } else { kind.full_mask() };
    Field::new(kind, value, mask & kind.full_mask()).ok()
}

impl fmt::Display for Match {
    /// In the syntax of ovs-ofctl(8), but for unknown fields.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for field in &self.fields {
            write!(f, "{separator}{field}")?;
            separator = ",";
        }
        for field in &self.unknown {
            write!(f, "{separator}unknown({:#010x})=", field.header)?;
            for octet in &field.body {
                write!(f, "{octet:02x}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}
