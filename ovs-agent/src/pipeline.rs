//! The forwarding pipeline: which flows each object of the [model](crate::model) has. Pure.
//!
//! ```text
//!  0 CLASSIFY   by the port of entry: pod (20), host (30/40), VXLAN (10)
//! 10 TUNNEL     VXLAN from known nodes only; the tunnel key is the source's VNI
//! 15 SHAPED     what comes back from a shaper goes on where it was: to the routes, or to its pod
//! 20 POD        a pod's own MAC, IP and ARP only; loads its VNI
//! 30 ARP        every question within the cluster network is answered here, with the router's MAC
//! 40 ROUTE      by destination: a pod here, the host, another node, the outside
//! 50 ISOLATE    the source's VNI and the destination's are equal, or one is 0
//! 60 HOST       to the node itself and the outside; never to a VTEP port
//! ```
//!
//! Nothing is flooded: a packet has one way or is dropped. Every drop is a flow of its own, whose cookie says why
//! ([`Drop`]) and whose counter says how often.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use openvswitch::openflow::{Action, Field, FieldKind, Flow, Mac, Match, PortNo, Subfield};
use tenon_netdev::class_mac;
use tenon_tenant::Vni;

use crate::attachment::Attachment;
use crate::model::NodeNetwork;

/// OpenFlow port of the VXLAN tunnels.
pub(crate) const VXLAN_PORT: u16 = 1;
/// OpenFlow port of the internal interface that is the node's gateway.
pub(crate) const GATEWAY_PORT: u16 = 2;
/// OpenFlow ports given to pods. Higher ones are given by Open vSwitch itself, or reserved.
pub(crate) const POD_PORTS: std::ops::RangeInclusive<u16> = 3..=0x7fff;

/// OpenFlow port of the shaper for what pods send.
pub(crate) const EGRESS_SHAPER_PORT: u16 = 0x8000;
/// OpenFlow port of the shaper for what pods receive. It is another one because a packet is never sent out by the port
/// that it came in by, and a pod that is limited in sending may talk to one that is limited in receiving.
pub(crate) const INGRESS_SHAPER_PORT: u16 = 0x8001;

/// The MAC of every pod's next hop, the same on every node, so that a neighbour entry is never stale.
pub(crate) const ROUTER_MAC: Mac = Mac([0x0e, 0x74, 0, 0, 0, 1]);

/// Raise it with every change of the flows (a test compares them with the golden file): a node's flows tell by it
/// which pipeline they belong to.
const VERSION: u64 = 3;
/// `teno` in the high half marks a flow as ours.
const COOKIE: u64 = 0x7465_6e6f_0000_0000 | VERSION << 16;

mod table {
    pub(super) const CLASSIFY: u8 = 0;
    pub(super) const TUNNEL: u8 = 10;
    pub(super) const SHAPED: u8 = 15;
    pub(super) const POD: u8 = 20;
    pub(super) const ARP: u8 = 30;
    pub(super) const ROUTE: u8 = 40;
    pub(super) const ISOLATE: u8 = 50;
    pub(super) const HOST: u8 = 60;
}

const SOURCE_VNI: Subfield = Subfield::register::<0, 0, 24>();
const DESTINATION_VNI: Subfield = Subfield::register::<1, 0, 24>();
const OUTPUT_PORT: Subfield = Subfield::register::<2, 0, 16>();
const ORIGIN: Subfield = Subfield::register::<3, 0, 2>();

/// Where a packet came in: the value of [`ORIGIN`].
#[derive(Clone, Copy)]
enum Origin {
    Pod = 1,
    Host = 2,
    Tunnel = 3,
}

/// Why a packet is dropped; in the low byte of the cookie of the flow that drops it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Drop {
    UnknownPort = 1,
    UnknownVtep = 2,
    Spoofed = 3,
    NoTenant = 4,
    ArpIgnored = 5,
    NoSuchPod = 6,
    NoSuchNode = 7,
    NotUnicast = 8,
    Isolated = 9,
    ToVtepPort = 10,
    PodBehindHost = 11,
    NotForThisNode = 12,
    NotShaped = 13,
}

impl Drop {
    pub(crate) const ALL: [Self; 13] = [
        Self::UnknownPort,
        Self::UnknownVtep,
        Self::Spoofed,
        Self::NoTenant,
        Self::ArpIgnored,
        Self::NoSuchPod,
        Self::NoSuchNode,
        Self::NotUnicast,
        Self::Isolated,
        Self::ToVtepPort,
        Self::PodBehindHost,
        Self::NotForThisNode,
        Self::NotShaped,
    ];

    /// The reason as a metric's label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UnknownPort => "unknown_port",
            Self::UnknownVtep => "unknown_vtep",
            Self::Spoofed => "spoofed",
            Self::NoTenant => "no_tenant",
            Self::ArpIgnored => "arp_ignored",
            Self::NoSuchPod => "no_such_pod",
            Self::NoSuchNode => "no_such_node",
            Self::NotUnicast => "not_unicast",
            Self::Isolated => "isolated",
            Self::ToVtepPort => "to_vtep_port",
            Self::PodBehindHost => "pod_behind_host",
            Self::NotForThisNode => "not_for_this_node",
            Self::NotShaped => "not_shaped",
        }
    }

    /// The reason that a flow with this cookie stands for.
    pub(crate) fn of_cookie(cookie: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| cookie == reason.cookie())
    }

    fn cookie(self) -> u64 {
        COOKIE | self as u64
    }
}

/// What every node has.
pub(crate) fn base(node: &NodeNetwork) -> Vec<Flow> {
    let gateway_mac = gateway_mac(node);
    let to_host = [
        set(Field::eth_src(ROUTER_MAC)),
        set(Field::eth_dst(gateway_mac)),
        Action::Output(port(GATEWAY_PORT)),
    ];
    vec![
        // From the tunnels.
        flow(table::CLASSIFY, 200, in_port(VXLAN_PORT)).goto(table::TUNNEL),
        drop(table::TUNNEL, 0, Match::new(), Drop::UnknownVtep),
        // From the shapers. Their ends are links of the node's kernel, which talks on every link.
        flow(table::CLASSIFY, 200, in_port(EGRESS_SHAPER_PORT)).goto(table::SHAPED),
        flow(table::CLASSIFY, 200, in_port(INGRESS_SHAPER_PORT)).goto(table::SHAPED),
        drop(table::SHAPED, 0, Match::new(), Drop::NotShaped),
        // From the host. The host speaks for itself and for the outside, never for a pod: a pod's packet that a
        // service's rules turned round in the host would otherwise come back with the host's rights.
        flow(table::CLASSIFY, 230, ipv4_from(in_port(GATEWAY_PORT), node.gateway))
            .actions([load(SOURCE_VNI, Vni::GLOBAL), origin(Origin::Host)])
            .goto(table::ROUTE),
        drop(table::CLASSIFY, 220, ipv4_from(in_port(GATEWAY_PORT), node.network), Drop::PodBehindHost),
        flow(table::CLASSIFY, 210, in_port(GATEWAY_PORT).ipv4())
            .actions([load(SOURCE_VNI, Vni::GLOBAL), origin(Origin::Host)])
            .goto(table::ROUTE),
        flow(table::CLASSIFY, 210, in_port(GATEWAY_PORT).arp()).goto(table::ARP),
        drop(table::CLASSIFY, 200, in_port(GATEWAY_PORT), Drop::NotUnicast),
        // From pods; what is no pod's is dropped in the table of pods.
        flow(table::CLASSIFY, 0, Match::new()).goto(table::POD),
        drop(table::POD, 0, Match::new(), Drop::UnknownPort),
        // ARP. Nobody is told that his own address is taken, or gratuitous ARP and duplicate address detection fail.
        drop(
            table::ARP,
            110,
            in_port(GATEWAY_PORT).arp().with(Field::arp_tpa(node.gateway)),
            Drop::ArpIgnored,
        ),
        arp_responder(node.network),
        drop(table::ARP, 0, Match::new(), Drop::ArpIgnored),
        // Routes. Local pods have 400.
        flow(table::ROUTE, 400, ipv4_to(node.gateway)).goto(table::HOST),
        drop(table::ROUTE, 350, ipv4_to(node.subnet), Drop::NoSuchPod),
        drop(table::ROUTE, 300, from(Origin::Tunnel), Drop::NotForThisNode),
        // Other nodes have 250.
        drop(table::ROUTE, 240, ipv4_to(node.network), Drop::NoSuchNode),
        drop(table::ROUTE, 230, ipv4_to(MULTICAST), Drop::NotUnicast),
        drop(table::ROUTE, 230, ipv4_to(Ipv4Addr::BROADCAST), Drop::NotUnicast),
        drop(table::ROUTE, 220, from(Origin::Host), Drop::NoSuchNode),
        flow(table::ROUTE, 0, Match::new()).goto(table::HOST),
        // Tenants. Each VNI that is here has 100.
        flow(table::ISOLATE, 110, Match::new().with(matching(SOURCE_VNI, Vni::GLOBAL))).actions([deliver()]),
        flow(table::ISOLATE, 110, Match::new().with(matching(DESTINATION_VNI, Vni::GLOBAL)))
            .actions([deliver()]),
        drop(table::ISOLATE, 0, Match::new(), Drop::Isolated),
        // The host masquerades what leaves the cluster network, so that a pod's VXLAN would reach a VTEP as this
        // node's own, with whatever VNI the pod has written into it.
        drop(table::HOST, 100, Match::new().ipv4().udp().udp_dst(node.vxlan_port), Drop::ToVtepPort),
        flow(table::HOST, 0, Match::new()).actions(to_host),
    ]
}

/// Another node: its VXLAN is let in, and its subnet is behind it.
pub(crate) fn vtep(node: &NodeNetwork, ip: Ipv4Addr, subnet: Ipv4Net) -> Vec<Flow> {
    // The kernel of the other node listens for VXLAN on its gateway's address too.
    let gateway = subnet.hosts().next().unwrap_or(subnet.addr());
    vec![
        flow(table::TUNNEL, 100, Match::new().ipv4().tun_src(ip))
            .actions([copy(tunnel_vni(), SOURCE_VNI), origin(Origin::Tunnel)])
            .goto(table::ROUTE),
        drop(table::ROUTE, 260, ipv4_to(gateway).udp().udp_dst(node.vxlan_port), Drop::ToVtepPort),
        flow(table::ROUTE, 250, ipv4_to(subnet)).actions([
            copy(SOURCE_VNI, tunnel_vni()),
            set(Field::tun_dst(ip)),
            Action::Output(port(VXLAN_PORT)),
        ]),
    ]
}

/// A VNI of this node's pods: within it they reach each other.
pub(crate) fn vni(vni: Vni) -> Vec<Flow> {
    if vni.is_global() {
        return Vec::new();
    }
    let same = Match::new().with(matching(SOURCE_VNI, vni)).with(matching(DESTINATION_VNI, vni));
    vec![flow(table::ISOLATE, 100, same).actions([deliver()])]
}

/// A pod's interface. Without a VNI (its tenant is not known, or deleted) it reaches nobody and nobody reaches it.
pub(crate) fn attachment(pod: &Attachment, vni: Option<Vni>) -> Vec<Flow> {
    let Some(vni) = vni else {
        return vec![
            drop(table::POD, 100, in_port(pod.ofport), Drop::NoTenant),
            drop(table::ROUTE, 400, ipv4_to(pod.ip), Drop::NoTenant),
        ];
    };
    let own_arp = |source_ip| {
        in_port(pod.ofport)
            .arp()
            .with(Field::eth_src(pod.mac))
            .with(Field::arp_sha(pod.mac))
            .with(Field::arp_spa(Ipv4Net::from(source_ip)))
    };
    let class = Mac(class_mac(pod.ofport));
    let shaped = |shaper| flow(table::SHAPED, 100, in_port(shaper).eth_dst(class));
    let to_shaper = |shaper| [set(Field::eth_dst(class)), Action::Output(port(shaper))];
    let own_ipv4 =
        flow(table::POD, 200, ipv4_from(in_port(pod.ofport).with(Field::eth_src(pod.mac)), pod.ip));
    let route = [load(SOURCE_VNI, vni), origin(Origin::Pod)];
    let deliver_to = |by: u16, as_mac| {
        let delivery = [
            load(DESTINATION_VNI, vni),
            number(OUTPUT_PORT, by.into()),
            set(Field::eth_src(ROUTER_MAC)),
            set(Field::eth_dst(as_mac)),
        ];
        flow(table::ROUTE, 400, ipv4_to(pod.ip)).actions(delivery).goto(table::ISOLATE)
    };
    let to_pod = [set(Field::eth_dst(pod.mac)), Action::Output(port(pod.ofport))];
    let mut flows = vec![
        // Also without a limit: what is still on its way from a shaper when a limit is lifted must arrive.
        shaped(EGRESS_SHAPER_PORT).actions(route.clone()).goto(table::ROUTE),
        shaped(INGRESS_SHAPER_PORT).actions(to_pod),
        flow(table::POD, 200, own_arp(pod.ip)).goto(table::ARP),
        drop(table::POD, 210, own_arp(pod.ip).with(Field::arp_tpa(pod.ip)), Drop::ArpIgnored),
        drop(table::POD, 100, in_port(pod.ofport), Drop::Spoofed),
    ];
    if pod.bandwidth.egress.is_some() {
        flows.push(own_ipv4.actions(to_shaper(EGRESS_SHAPER_PORT)));
    } else {
        flows.push(own_ipv4.actions(route).goto(table::ROUTE));
    }
    if pod.bandwidth.ingress.is_some() {
        flows.push(deliver_to(INGRESS_SHAPER_PORT, class));
    } else {
        flows.push(deliver_to(pod.ofport, pod.mac));
    }
    flows
}

/// The MAC of the node's internal interface.
pub(crate) fn gateway_mac(node: &NodeNetwork) -> Mac {
    Mac(tenon_ipam::mac_of(node.gateway))
}

/// RFC 5771: no pod is in a multicast group of another.
const MULTICAST: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4);

/// Turns a question into its answer and sends it back where it came from (RFC 826): the router's MAC for any address.
/// Who is there is then a matter of routes, and an answer gives away nothing about other tenants.
fn arp_responder(network: Ipv4Net) -> Flow {
    let question = Match::new().arp().arp_op(1).with(Field::arp_tpa(network));
    flow(table::ARP, 100, question).actions([
        copy(FieldKind::EthSrc, FieldKind::EthDst),
        set(Field::eth_src(ROUTER_MAC)),
        set(Field::arp_op(2)),
        copy(FieldKind::ArpSha, FieldKind::ArpTha),
        set(Field::arp_sha(ROUTER_MAC)),
        // The two addresses change places by way of a register.
        copy(FieldKind::ArpTpa, FieldKind::Reg4),
        copy(FieldKind::ArpSpa, FieldKind::ArpTpa),
        copy(FieldKind::Reg4, FieldKind::ArpSpa),
        Action::Output(PortNo::IN_PORT),
    ])
}

/// The 24 bits of the tunnel key that VXLAN carries (RFC 7348 section 5).
fn tunnel_vni() -> Subfield {
    Subfield::new(FieldKind::TunId, 0, 24).expect("the tunnel key has 64 bits")
}

fn flow(table: u8, priority: u16, match_: Match) -> Flow {
    Flow::new(table, priority, match_).cookie(COOKIE)
}

fn drop(table: u8, priority: u16, match_: Match, reason: Drop) -> Flow {
    Flow::new(table, priority, match_).cookie(reason.cookie())
}

fn in_port(number: u16) -> Match {
    Match::new().with(Field::in_port(port(number)))
}

fn port(number: u16) -> PortNo {
    PortNo(number.into())
}

fn ipv4_from(match_: Match, source: impl Into<Ipv4Net>) -> Match {
    match_.ipv4().with(Field::ipv4_src(source))
}

fn ipv4_to(destination: impl Into<Ipv4Net>) -> Match {
    Match::new().ipv4().with(Field::ipv4_dst(destination))
}

fn from(origin: Origin) -> Match {
    Match::new().with(ORIGIN.matching(origin as u64).expect("an origin has two bits"))
}

fn matching(part: Subfield, vni: Vni) -> Field {
    part.matching(vni.get().into()).expect("a VNI has 24 bits")
}

fn load(part: Subfield, vni: Vni) -> Action {
    number(part, vni.get().into())
}

fn origin(origin: Origin) -> Action {
    number(ORIGIN, origin as u64)
}

fn number(part: Subfield, value: u64) -> Action {
    part.load(value)
        .expect("callers pass VNIs of 24 bits, ports of 16 and origins of two, as wide as the part")
}

fn copy(from: impl Into<Subfield>, to: impl Into<Subfield>) -> Action {
    from.into().copy_to(to).expect("both parts are constants of this module, and equally wide")
}

fn set(field: Field) -> Action {
    Action::SetField(field)
}

fn deliver() -> Action {
    Action::OutputReg(OUTPUT_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::tests::attachment as pod;

    fn node() -> NodeNetwork {
        NodeNetwork {
            network: "172.11.0.0/16".parse().unwrap(),
            subnet: "172.11.0.0/22".parse().unwrap(),
            gateway: Ipv4Addr::new(172, 11, 0, 1),
            vxlan_port: 4789,
            single_tenant: false,
        }
    }

    /// One of each object, as ovs-ofctl would print it.
    fn example() -> Vec<Flow> {
        let blue = Vni::new(300_924).unwrap();
        let mut flows = base(&node());
        flows.extend(vtep(&node(), Ipv4Addr::new(10, 0, 0, 2), "172.11.4.0/22".parse().unwrap()));
        flows.extend(vni(blue));
        flows.extend(attachment(&pod("c1", "blue", 2, 3), Some(blue)));
        flows.extend(attachment(&pod("c2", "deleted", 3, 4), None));
        let limit = Some(tenon_cni::Limit { rate_bps: 10_000_000, burst_bits: None });
        let bandwidth = tenon_cni::Bandwidth { ingress: limit, egress: limit };
        flows.extend(attachment(&Attachment { bandwidth, ..pod("c3", "blue", 4, 5) }, Some(blue)));
        flows
    }

    /// Flows change only together with [`VERSION`]. To accept a change, raise it and run this test with
    /// `UPDATE_GOLDEN=1`.
    #[test]
    fn flows_change_only_with_their_version() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/pipeline.golden");
        let lines: Vec<String> = example().iter().map(Flow::to_string).collect();
        let now = format!("pipeline version {VERSION}\n{}\n", lines.join("\n"));
        let golden = std::fs::read_to_string(path).unwrap_or_default();
        let raised = golden.lines().next() != now.lines().next();
        if std::env::var_os("UPDATE_GOLDEN").is_some() && raised {
            std::fs::write(path, &now).unwrap();
            return;
        }
        assert!(
            now == golden,
            "the flows differ from {path}: raise VERSION, then run with UPDATE_GOLDEN=1\n{now}"
        );
    }

    #[test]
    fn every_flow_can_be_sent_and_no_two_are_the_same() {
        let flows = example();
        let keys: std::collections::BTreeSet<_> = flows.iter().map(Flow::key).collect();
        assert_eq!(keys.len(), flows.len());
        for flow in flows {
            flow.match_.check().unwrap_or_else(|error| panic!("{flow}: {error}"));
        }
    }

    #[test]
    fn every_drop_says_why() {
        for flow in example() {
            let drops = flow.actions.is_empty() && flow.goto.is_none();
            assert_eq!(Drop::of_cookie(flow.cookie).is_some(), drops, "{flow}");
        }
    }
}
