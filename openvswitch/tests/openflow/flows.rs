//! Flows of somebody else's making: understood where we have words, kept as they are where we have none.

use std::time::Duration;

use crate::of::{Action, Connection, Field, FieldKind, Flow, FlowMod, Mac, Match, PortNo, Subfield};
use crate::switch::Switch;

async fn only_flow(connection: &Connection) -> Flow {
    let stats = connection.flow_stats(None, 0, 0).await.unwrap();
    assert_eq!(stats.len(), 1);
    stats.into_iter().next().unwrap().flow
}

#[tokio::test]
async fn what_ovs_ofctl_adds_is_understood() {
    let switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    let mac = Mac([2, 0, 0, 0, 0, 9]);
    let net: ipnet::Ipv4Net = "10.1.0.0/16".parse().unwrap();
    let low = Subfield::register::<2, 0, 16>();
    for (text, flow) in [
        ("table=0,priority=32768,actions=drop", Flow::new(0, 32768, Match::new())),
        (
            "table=4,cookie=0x12,priority=7,ip,nw_src=10.1.2.3/16,in_port=2,actions=dec_ttl,output:5",
            Flow::new(4, 7, Match::new().in_port(2).ipv4_src(net))
                .cookie(0x12)
                .actions([Action::DecTtl, Action::Output(PortNo(5))]),
        ),
        (
            "priority=1,arp,arp_op=1,dl_src=02:00:00:00:00:09,actions=move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],\
             mod_dl_src:02:00:00:00:00:09,load:2->NXM_OF_ARP_OP[],IN_PORT",
            Flow::new(0, 1, Match::new().arp_op(1).eth_src(mac)).actions([
                Action::copy(FieldKind::EthSrc, FieldKind::EthDst).unwrap(),
                Action::SetField(Field::eth_src(mac)),
                FieldKind::ArpOp.whole().load(2).unwrap(),
                Action::Output(PortNo::IN_PORT),
            ]),
        ),
        (
            "priority=1,reg2=0x5/0xffff,tun_id=9,actions=resubmit(,3),set_queue:1,output:NXM_NX_REG2[0..15]",
            Flow::new(0, 1, Match::new().with(low.matching(5).unwrap()).tun_id(9)).actions([
                Action::Resubmit { in_port: PortNo::IN_PORT, table: 3 },
                Action::SetQueue(1),
                Action::OutputReg(low),
            ]),
        ),
        (
            "priority=1,udp6,tp_dst=53,idle_timeout=60,hard_timeout=90,actions=NORMAL,goto_table:9",
            Flow {
                idle_timeout: 60,
                hard_timeout: 90,
                ..Flow::new(0, 1, Match::new().ipv6().udp_dst(53))
                    .actions([Action::Output(PortNo::NORMAL)])
                    .goto(9)
            },
        ),
        (
            "priority=1,dl_vlan=7,actions=set_field:10.0.0.1->tun_src,load:1->NXM_NX_TUN_ID[8..31]",
            Flow::new(0, 1, Match::new().with(Field::vlan(7).unwrap())).actions([
                Action::SetField(Field::tun_src("10.0.0.1/32".parse::<ipnet::Ipv4Net>().unwrap())),
                Subfield::new(FieldKind::TunId, 8, 24).unwrap().load(1).unwrap(),
            ]),
        ),
    ] {
        switch.ofctl("del-flows", &[]);
        switch.ofctl("add-flow", &[text]);
        assert_eq!(only_flow(&connection).await, flow, "{text}");
    }
}

/// What we have no words for is kept, tells flows apart, and can be taken out or put back by what it is.
#[tokio::test]
async fn what_has_no_name_here_is_kept() {
    let switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    for text in [
        "priority=1,tcp,tcp_flags=+syn-ack actions=drop",
        "priority=1,ip,nw_tos=32 actions=drop",
        "priority=1,icmp6,icmp_type=135,nd_target=fd00::1 actions=drop",
        "priority=1,ct_label=0x5 actions=drop",
        "priority=1,ip actions=ct(commit,zone=3,nat(src=10.0.0.1))",
        "priority=1 actions=learn(table=1,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],output:NXM_OF_IN_PORT[])",
        "priority=1 actions=push_vlan:0x8100,set_field:4103->vlan_vid,output:2",
        "priority=1 actions=CONTROLLER:128",
        "priority=1 actions=write_metadata:0x5/0xff,goto_table:2",
        "priority=1 actions=clear_actions,write_actions(output:1)",
        "priority=1 actions=multipath(eth_src,50,modulo_n,1,0,NXM_NX_REG0[0..3])",
        "priority=1,conj_id=4 actions=drop",
    ] {
        switch.ofctl("del-flows", &[]);
        switch.ofctl("add-flow", &[text]);
        assert_eq!(switch.dump(), [text]);
        let flow = only_flow(&connection).await;
        let unknown = !flow.match_.unknown_fields().is_empty()
            || flow.actions.iter().any(|action| matches!(action, Action::Unknown(_)))
            || !flow.other_instructions.is_empty();
        assert!(unknown, "{text}: {flow}");
        assert!(flow.to_string().contains("unknown("), "{flow}");
        assert_ne!(flow, Flow::new(0, 1, Match::new()), "{text}");

        connection.flow_mods_atomically(&[FlowMod::Delete(flow.key())]).await.unwrap();
        assert_eq!(switch.dump(), Vec::<String>::new(), "{text}");
        connection.flow_mods_atomically(&[FlowMod::Add(flow.clone())]).await.unwrap();
        assert_eq!(switch.dump(), [text]);
        assert_eq!(only_flow(&connection).await, flow);
    }
}

#[tokio::test]
async fn counters_count_and_go_on_when_a_flow_is_replaced() {
    let switch = Switch::start();
    switch.vsctl(&[
        "add-port",
        "br0",
        "p1",
        "--",
        "set",
        "interface",
        "p1",
        "type=dummy",
        "ofport_request=1",
    ]);
    let connection = Connection::connect(switch.socket()).await.unwrap();
    let flow = Flow::new(0, 1, Match::new().in_port(1));
    connection.flow_mods_atomically(&[FlowMod::Add(flow.clone())]).await.unwrap();
    for _ in 0..5 {
        let frame = "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x88cc)";
        switch.appctl(&["netdev-dummy/receive", "p1", frame]);
    }
    // The data path reports its counters now and then.
    let counted = async |flow: &Flow, packets| {
        for _ in 0..200 {
            let stats = connection.flow_stats(None, 0, 0).await.unwrap();
            let [stats] = stats.as_slice() else { panic!("{stats:?}") };
            assert_eq!(stats.flow, *flow);
            if stats.packets == packets && stats.duration > Duration::ZERO {
                assert!(stats.bytes >= packets * 14, "{stats:?}");
                assert!(stats.duration < Duration::from_secs(60));
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{packets} packets have not been counted");
    };
    counted(&flow, 5).await;
    let replaced = flow.actions([Action::Output(PortNo::LOCAL)]).cookie(3);
    connection.flow_mods_atomically(&[FlowMod::Add(replaced.clone())]).await.unwrap();
    counted(&replaced, 5).await;
}
