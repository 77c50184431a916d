//! Every field and every action, as ovs-ofctl reads what we have sent.

use std::collections::BTreeSet;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::of::{
    Action, Connection, Field, FieldKind, Flow, FlowMod, Mac, Match, Meter, MeterMod, PortNo, Subfield,
};
use crate::switch::Switch;

const MAC: Mac = Mac([2, 0, 0x5e, 0x10, 0, 1]);

fn net4(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn net6(text: &str) -> Ipv6Net {
    text.parse().unwrap()
}

fn field(field: Field) -> Match {
    Match::new().with(field)
}

/// A match, and what ovs-ofctl calls it.
fn matches() -> Vec<(Match, String)> {
    let registers = (0..16).map(|number| {
        let name = format!("reg{number}");
        let kind = FieldKind::ALL.iter().find(|kind| kind.name() == name).unwrap();
        let value = 0x1234_0000 + number;
        (field(Field::new(*kind, value, 0xffff_00ff).unwrap()), format!("{name}={value:#x}/0xffff00ff"))
    });
    let group = Mac([1, 0, 0, 0, 0, 0]);
    let part = Subfield::new(FieldKind::TunId, 8, 8).unwrap();
    let others = [
        (Match::new().in_port(3), "in_port=3"),
        (Match::new().in_port(PortNo::LOCAL), "in_port=LOCAL"),
        (field(Field::metadata(0x10, 0xff)), "metadata=0x10/0xff"),
        (Match::new().tun_id(300_924), "tun_id=0x4977c"),
        (field(part.matching(0xab).unwrap()), "tun_id=0xab00/0xff00"),
        (Match::new().tun_src(net4("10.0.0.1/32")), "tun_src=10.0.0.1"),
        (Match::new().tun_dst(net4("10.0.0.0/24")), "tun_dst=10.0.0.0/24"),
        (field(Field::pkt_mark(1, 1)), "pkt_mark=0x1/0x1"),
        (field(Field::ct_state(0x22, 0x23)), "ct_state=-new+est+trk"),
        (field(Field::ct_zone(7)), "ct_zone=7"),
        (field(Field::ct_mark(5, u32::MAX)), "ct_mark=0x5"),
        (Match::new().eth_dst(MAC), "dl_dst=02:00:5e:10:00:01"),
        (field(Field::eth_dst_masked(group, group)), "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00"),
        (Match::new().eth_src(MAC), "dl_src=02:00:5e:10:00:01"),
        (Match::new().eth_type(0x88cc), "dl_type=0x88cc"),
        (field(Field::vlan_untagged()), "vlan_tci=0x0000/0x1fff"),
        (field(Field::vlan_tagged()), "vlan_tci=0x1000/0x1000"),
        (field(Field::vlan(100).unwrap()), "dl_vlan=100"),
        (
            field(Field::vlan(100).unwrap()).with(Field::exact(FieldKind::VlanPcp, 5).unwrap()),
            "dl_vlan=100,dl_vlan_pcp=5",
        ),
        (Match::new().ipv4(), "ip"),
        (Match::new().ipv6(), "ipv6"),
        (Match::new().arp(), "arp"),
        (Match::new().ipv4().ip_proto(47), "ip,nw_proto=47"),
        (Match::new().ipv4().tcp(), "tcp"),
        (Match::new().ipv6().udp(), "udp6"),
        (Match::new().icmp(), "icmp"),
        (Match::new().ipv4().with(Field::ip_ttl(1)), "ip,nw_ttl=1"),
        (Match::new().ipv4().with(Field::ip_frag(3, 3).unwrap()), "ip,nw_frag=later"),
        (Match::new().ipv4_src(net4("172.11.0.0/22")), "ip,nw_src=172.11.0.0/22"),
        (Match::new().ipv4_dst(net4("172.11.0.7/32")), "ip,nw_dst=172.11.0.7"),
        (Match::new().ipv6_src(net6("fd00::/64")), "ipv6,ipv6_src=fd00::/64"),
        (Match::new().ipv6_dst(net6("fd00::1/128")), "ipv6,ipv6_dst=fd00::1"),
        (Match::new().arp_op(1), "arp,arp_op=1"),
        (Match::new().arp_spa(net4("172.11.0.0/16")), "arp,arp_spa=172.11.0.0/16"),
        (Match::new().arp_tpa(net4("172.11.0.1/32")), "arp,arp_tpa=172.11.0.1"),
        (Match::new().arp_sha(MAC), "arp,arp_sha=02:00:5e:10:00:01"),
        (Match::new().arp_tha(MAC), "arp,arp_tha=02:00:5e:10:00:01"),
        (Match::new().ipv4().tcp_src(1), "tcp,tp_src=1"),
        (Match::new().ipv6().tcp_dst(80), "tcp6,tp_dst=80"),
        (Match::new().ipv4().udp_src(68), "udp,tp_src=68"),
        (Match::new().udp_dst(4789).ipv4(), "udp,tp_dst=4789"),
        (field(Field::icmp_type(8)), "icmp,icmp_type=8"),
        (field(Field::icmp_code(1)), "icmp,icmp_code=1"),
        (field(Field::icmpv6_type(135)), "icmp6,icmp_type=135"),
        (field(Field::icmpv6_code(1)), "icmp6,icmp_code=1"),
    ];
    registers.chain(others.map(|(match_, text)| (match_, text.to_owned()))).collect()
}

#[tokio::test]
async fn ovs_ofctl_sees_every_field() {
    let switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    let matches = matches();
    let covered: BTreeSet<FieldKind> =
        matches.iter().flat_map(|(match_, _)| match_.fields()).map(Field::kind).collect();
    assert_eq!(covered.into_iter().collect::<Vec<_>>(), FieldKind::ALL);

    let mods: Vec<_> = (1..)
        .zip(&matches)
        .map(|(priority, (match_, _))| FlowMod::Add(Flow::new(0, priority, match_.clone())))
        .collect();
    connection.flow_mods_atomically(&mods).await.unwrap();
    let found: BTreeSet<String> = switch.dump().into_iter().collect();
    let wanted: BTreeSet<String> = (1..)
        .zip(&matches)
        .map(|(priority, (_, text)): (u16, _)| format!("priority={priority},{text} actions=drop"))
        .collect();
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn ovs_ofctl_sees_every_action() {
    const PORT: Subfield = Subfield::register::<1, 0, 16>();
    const TENANT: Subfield = Subfield::register::<0, 0, 24>();
    let vni = Subfield::new(FieldKind::TunId, 0, 24).unwrap();
    let arp = Match::new().arp();
    let ip = Match::new().ipv4();
    let any = Match::new();
    let actions = [
        (&any, Action::Output(PortNo(4)), "output:4"),
        (&any, Action::Output(PortNo::IN_PORT), "IN_PORT"),
        (&any, Action::Output(PortNo::LOCAL), "LOCAL"),
        (&any, Action::Output(PortNo::NORMAL), "NORMAL"),
        (&any, Action::Output(PortNo::CONTROLLER), "CONTROLLER:65535"),
        (&any, Action::OutputReg(PORT), "output:NXM_NX_REG1[0..15]"),
        (&any, Action::SetField(Field::tun_id(7)), "set_field:0x7->tun_id"),
        (&any, Action::SetField(Field::tun_dst(net4("10.0.0.2/32"))), "set_field:10.0.0.2->tun_dst"),
        (&any, Action::SetField(Field::eth_dst(MAC)), "set_field:02:00:5e:10:00:01->eth_dst"),
        (&arp, Action::SetField(Field::arp_op(2)), "set_field:2->arp_op"),
        (&any, TENANT.load(300_924).unwrap(), "load:0x4977c->NXM_NX_REG0[0..23]"),
        (&any, vni.copy_to(TENANT).unwrap(), "move:NXM_NX_TUN_ID[0..23]->NXM_NX_REG0[0..23]"),
        (&any, TENANT.copy_to(vni).unwrap(), "move:NXM_NX_REG0[0..23]->NXM_NX_TUN_ID[0..23]"),
        (
            &any,
            Action::copy(FieldKind::EthSrc, FieldKind::EthDst).unwrap(),
            "move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[]",
        ),
        (
            &arp,
            Action::copy(FieldKind::ArpSha, FieldKind::ArpTha).unwrap(),
            "move:NXM_NX_ARP_SHA[]->NXM_NX_ARP_THA[]",
        ),
        (
            &arp,
            Action::copy(FieldKind::ArpSpa, FieldKind::ArpTpa).unwrap(),
            "move:NXM_OF_ARP_SPA[]->NXM_OF_ARP_TPA[]",
        ),
        (
            &ip,
            Action::copy(FieldKind::Ipv4Dst, FieldKind::TunDst).unwrap(),
            "move:NXM_OF_IP_DST[]->NXM_NX_TUN_IPV4_DST[]",
        ),
        (&ip, Action::DecTtl, "dec_ttl"),
        (&any, Action::Resubmit { in_port: PortNo::IN_PORT, table: 20 }, "resubmit(,20)"),
        (&any, Action::Resubmit { in_port: PortNo(5), table: 20 }, "resubmit(5,20)"),
        (&any, Action::SetQueue(3), "set_queue:3"),
        (&any, Action::Group(9), "group:9"),
    ];
    let switch = Switch::start();
    switch.ofctl("add-group", &["group_id=9,type=all,bucket=output:1"]);
    let connection = Connection::connect(switch.socket()).await.unwrap();
    connection.meter_mod(&MeterMod::Add(Meter { id: 2, rate_kbps: 15_000, burst_kbit: 1500 })).await.unwrap();
    let mut flows: Vec<Flow> = (1..)
        .zip(&actions)
        .map(|(priority, (match_, action, _))| {
            Flow::new(0, priority, (*match_).clone()).actions([action.clone()])
        })
        .collect();
    flows.push(Flow::new(1, 0, ip.clone()).cookie(0xab).meter(2).actions([Action::DecTtl]).goto(3));
    let mods: Vec<_> = flows.iter().cloned().map(FlowMod::Add).collect();
    connection.flow_mods_atomically(&mods).await.unwrap();

    let found: BTreeSet<String> = switch.dump().into_iter().collect();
    let mut wanted: BTreeSet<String> = (1..)
        .zip(&actions)
        .map(|(priority, (match_, _, text)): (u16, _)| {
            let selects = if *match_ == &arp {
                ",arp"
            } else if *match_ == &ip {
                ",ip"
            } else {
                ""
            };
            format!("priority={priority}{selects} actions={text}")
        })
        .collect();
    wanted.insert("cookie=0xab, table=1, priority=0,ip actions=meter:2,dec_ttl,goto_table:3".to_owned());
    assert_eq!(found, wanted);

    let dumped: BTreeSet<Flow> =
        connection.flow_stats(None, 0, 0).await.unwrap().into_iter().map(|stats| stats.flow).collect();
    assert_eq!(dumped, flows.into_iter().collect());
}
