//! All of a bundle or nothing, and the mod that is to blame has its place named.

use std::time::Instant;

use crate::of::{
    Action, Connection, Error, Field, FieldKind, Flow, FlowKey, FlowMod, Match, PortNo, Subfield,
};
use crate::switch::Switch;

fn output(port: u32) -> Flow {
    Flow::new(0, 100, Match::new().in_port(port)).actions([Action::Output(PortNo(port + 1))])
}

/// A change to what is there, a good flow on each side of the bad one, and the one that takes everything away.
async fn assert_nothing_applied(bad: Flow, name: &str) {
    let switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    connection.flow_mods_atomically(&[FlowMod::Add(output(1)), FlowMod::Add(output(2))]).await.unwrap();
    let before = switch.dump();
    assert_eq!(before.len(), 2);

    let mods = [
        FlowMod::Delete(output(1).key()),
        FlowMod::Add(output(3)),
        FlowMod::Add(output(2).actions([Action::Output(PortNo(9))])),
        FlowMod::Add(bad),
        FlowMod::Add(output(4)),
        FlowMod::DeleteAll { table: None, cookie: 0, cookie_mask: 0 },
    ];
    match connection.flow_mods_atomically(&mods).await {
        Err(error @ Error::RefusedMod { index: 3, .. }) => {
            assert_eq!(
                error.to_string(),
                format!("the switch refused flow mod 3, and with it all of them: {name}")
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(switch.dump(), before);

    // Without the bad one they all apply, on the same connection.
    let good: Vec<FlowMod> = mods[..3].iter().chain(&mods[4..5]).cloned().collect();
    connection.flow_mods_atomically(&good).await.unwrap();
    assert_eq!(
        switch.dump(),
        [
            "priority=100,in_port=2 actions=output:3,output:9",
            "priority=100,in_port=3 actions=output:4",
            "priority=100,in_port=4 actions=output:5",
        ]
    );
}

/// The switch refuses this one when it is put into the bundle.
#[tokio::test]
async fn a_flow_that_the_switch_cannot_read_spoils_the_bundle() {
    let no_arp = Flow::new(0, 1, Match::new().ipv4()).actions([Action::SetField(Field::arp_op(2))]);
    assert_nothing_applied(no_arp, "OFPET_BAD_ACTION OFPBAC_MATCH_INCONSISTENT").await;
}

/// The switch refuses this one when it commits.
#[tokio::test]
async fn a_flow_that_the_switch_cannot_apply_spoils_the_bundle() {
    let no_group = Flow::new(0, 1, Match::new()).actions([Action::Group(7)]);
    assert_nothing_applied(no_group, "OFPET_BAD_ACTION OFPBAC_BAD_OUT_GROUP").await;
}

#[tokio::test]
async fn other_refusals_have_names() {
    let switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    for (flow, name) in [
        (Flow::new(5, 1, Match::new()).goto(4), "OFPET_BAD_INSTRUCTION OFPBIC_BAD_TABLE_ID"),
        (Flow::new(0, 1, Match::new()).meter(77), "OFPET_METER_MOD_FAILED OFPMMFC_INVALID_METER"),
        (Flow::new(255, 1, Match::new()), "OFPET_FLOW_MOD_FAILED OFPFMFC_BAD_TABLE_ID"),
        (
            Flow::new(0, 1, Match::new().with(Field::exact(FieldKind::ArpOp, 256).unwrap())),
            "OFPET_BAD_MATCH OFPBMC_BAD_VALUE",
        ),
    ] {
        match connection.flow_mods_atomically(&[FlowMod::Add(flow.clone())]).await {
            Err(Error::RefusedMod { index: 0, error }) => assert_eq!(error.to_string(), name, "{flow}"),
            other => panic!("{flow}: {other:?}"),
        }
    }
    assert_eq!(switch.dump(), Vec::<String>::new());
}

#[tokio::test]
async fn what_cannot_be_written_down_is_not_sent() {
    let switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    let part = Field::new(FieldKind::TunId, 1, 1).unwrap();
    let wide = Subfield::new(FieldKind::Ipv6Src, 0, 128).unwrap();
    let any = || Flow::new(0, 1, Match::new());
    for (flow, reason) in [
        (
            Flow::new(0, 1, Match::new().tcp_dst(80)),
            "a match on nw_proto needs eth_type=0x0800 or eth_type=0x86dd as well",
        ),
        (
            Flow::new(0, 1, Match::new().arp().ip_proto(6)),
            "a match on nw_proto needs eth_type=0x0800 or eth_type=0x86dd as well",
        ),
        (
            Flow::new(0, 1, Match::new().ipv4().udp().tcp_dst(80)),
            "a match on tcp_dst needs nw_proto=6 as well",
        ),
        (
            any().actions([Action::SetField(part)]),
            "set_field writes all of tun_id or nothing; write some of its bits with a load",
        ),
        (
            any().actions([Action::Load { dst: wide, value: 1 }]),
            "cannot load 0x1 into ipv6_src[0..127]: no more than 64 bits",
        ),
        (
            any().actions([Action::Move { src: FieldKind::Reg0.whole(), dst: FieldKind::TunId.whole() }]),
            "cannot copy reg0[0..31], 32 bits, to tun_id[0..63], 64 bits",
        ),
        (
            any().actions([Action::Resubmit { in_port: PortNo(0x1_0000), table: 1 }]),
            "a resubmit cannot name port 65536: its port number has 16 bits",
        ),
        (
            any().actions(vec![Action::DecTtl; 9000]),
            "the encoding takes 72008 bytes, more than the 65535 of an OpenFlow message",
        ),
    ] {
        let mods = [FlowMod::Add(output(1)), FlowMod::Add(flow)];
        let error = connection.flow_mods_atomically(&mods).await.unwrap_err();
        assert_eq!(error.to_string(), format!("flow mod 1: {reason}"));
    }
    assert_eq!(switch.dump(), Vec::<String>::new());
}

#[tokio::test]
async fn deletes_take_what_they_name() {
    let switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    let flow = |table, cookie| Flow::new(table, 5, Match::new().in_port(1)).cookie(cookie);
    let start = [flow(0, 0x1_0001), flow(1, 0x1_0002), flow(2, 0x2_0001), flow(3, 0)];
    let install = start.clone().map(FlowMod::Add);
    let left = async |mods: &[FlowMod]| {
        connection.flow_mods_atomically(&install).await.unwrap();
        connection.flow_mods_atomically(mods).await.unwrap();
        let stats = connection.flow_stats(None, 0, 0).await.unwrap();
        let mut tables: Vec<u8> = stats.into_iter().map(|stats| stats.flow.table).collect();
        tables.sort_unstable();
        tables
    };
    let all = |table, cookie, cookie_mask| FlowMod::DeleteAll { table, cookie, cookie_mask };
    assert_eq!(left(&[FlowMod::Delete(start[2].key())]).await, [0, 1, 3]);
    // No such priority: nothing goes, and that is no error.
    let stranger = FlowKey { priority: 6, ..start[2].key() };
    assert_eq!(left(&[FlowMod::Delete(stranger)]).await, [0, 1, 2, 3]);
    assert_eq!(left(&[all(None, 0x1_0000, 0xffff_0000)]).await, [2, 3]);
    assert_eq!(left(&[all(Some(1), 0x1_0000, 0xffff_0000)]).await, [0, 2, 3]);
    assert_eq!(left(&[all(Some(2), 0, 0)]).await, [0, 1, 3]);
    assert_eq!(left(&[all(None, 0, 0)]).await, Vec::<u8>::new());
    // In the order given: what is added after the wipe stays.
    assert_eq!(left(&[all(None, 0, 0), install[1].clone()]).await, [1]);

    connection.flow_mods_atomically(&install).await.unwrap();
    let tables = async |table, cookie, mask| {
        let stats = connection.flow_stats(table, cookie, mask).await.unwrap();
        stats.into_iter().map(|stats| stats.flow.table).collect::<Vec<_>>()
    };
    assert_eq!(tables(Some(3), 0, 0).await, [3]);
    assert_eq!(tables(None, 0x1_0000, 0xffff_0000).await, [0, 1]);
}

/// A thousand flows are one answer of the switch away from the next thousand.
#[tokio::test]
async fn bundles_of_a_thousand_flows_and_answers_in_many_parts() {
    let switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    let part = Subfield::register::<1, 0, 24>();
    let mods: Vec<FlowMod> = (0..5000)
        .map(|number| {
            let match_ = Match::new().tun_id(number).ipv4_dst(std::net::Ipv4Addr::from_bits(number as u32));
            FlowMod::Add(Flow::new(3, 7, match_).actions([part.load(number).unwrap()]).goto(4))
        })
        .collect();
    let mut times = Vec::new();
    for thousand in mods.chunks(1000) {
        let start = Instant::now();
        connection.flow_mods_atomically(thousand).await.unwrap();
        times.push(start.elapsed());
    }
    println!("bundles of 1000 flows took {times:?}");
    let start = Instant::now();
    let stats = connection.flow_stats(Some(3), 0, 0).await.unwrap();
    println!("a dump of {} flows took {:?}", stats.len(), start.elapsed());
    let found: std::collections::HashSet<Flow> = stats.into_iter().map(|stats| stats.flow).collect();
    assert_eq!(found.len(), mods.len());
    for wanted in mods {
        assert!(matches!(wanted, FlowMod::Add(flow) if found.contains(&flow)));
    }
}
