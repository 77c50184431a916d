//! What goes on around the flows: ports, meters, signs of life, and the end of a connection.

use std::time::{Duration, Instant};

use crate::of::{Action, Connection, Error, Flow, FlowMod, Match, Meter, MeterMod, PortChange, PortNo};
use crate::switch::Switch;

#[tokio::test]
async fn features_ports_and_port_changes() {
    let switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    let features = connection.features().await.unwrap();
    let id = switch.vsctl(&["get", "bridge", "br0", "datapath_id"]);
    assert_eq!(format!("\"{:016x}\"", features.datapath_id), id.trim());
    assert_eq!(features.tables, 254);
    connection.echo().await.unwrap();
    connection.barrier().await.unwrap();

    let mut changes = connection.port_changes().await.unwrap();
    let mac = "02:00:00:00:00:77";
    switch.vsctl(&[
        "add-port",
        "br0",
        "p7",
        "--",
        "set",
        "interface",
        "p7",
        "type=dummy",
        "ofport_request=7",
        &format!("mac=\"{mac}\""),
    ]);
    let mut ports = connection.port_desc().await.unwrap();
    ports.sort_by_key(|port| port.no); // the switch has no order of its own
    let names: Vec<_> = ports.iter().map(|port| (port.no, port.name.as_str())).collect();
    assert_eq!(names, [(PortNo(7), "p7"), (PortNo::LOCAL, "br0")]);

    let wait = Duration::from_secs(10);
    let added = tokio::time::timeout(wait, changes.recv()).await.unwrap().unwrap();
    assert_eq!((added.change, added.port.no, added.port.name.as_str()), (PortChange::Added, PortNo(7), "p7"));
    assert_eq!(added.port.mac, ports[0].mac);
    switch.vsctl(&["del-port", "p7"]);
    loop {
        let change = tokio::time::timeout(wait, changes.recv()).await.unwrap().unwrap();
        if change.change == PortChange::Removed {
            assert_eq!(change.port, ports[0]);
            break;
        }
    }
}

#[tokio::test]
async fn meters_are_made_changed_and_taken_away() {
    let switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    let meter = Meter { id: 3, rate_kbps: 15_000, burst_kbit: 1_500 };
    let dump = || switch.ofctl("dump-meters", &[]);
    let refused = async |change: MeterMod, name: &str| match connection.meter_mod(&change).await {
        Err(Error::Refused { request: "meter mod", error }) => assert_eq!(error.code_name(), Some(name)),
        other => panic!("{other:?}"),
    };
    refused(MeterMod::Modify(meter), "OFPMMFC_UNKNOWN_METER").await;
    connection.meter_mod(&MeterMod::Add(meter)).await.unwrap();
    refused(MeterMod::Add(meter), "OFPMMFC_METER_EXISTS").await;
    assert!(
        dump().ends_with("meter=3 kbps burst bands=\ntype=drop rate=15000 burst_size=1500\n"),
        "{}",
        dump()
    );
    connection.meter_mod(&MeterMod::Modify(Meter { rate_kbps: 20_000, ..meter })).await.unwrap();
    assert!(
        dump().ends_with("meter=3 kbps burst bands=\ntype=drop rate=20000 burst_size=1500\n"),
        "{}",
        dump()
    );

    connection.flow_mods_atomically(&[FlowMod::Add(Flow::new(0, 1, Match::new()).meter(3))]).await.unwrap();
    connection.meter_mod(&MeterMod::Delete(3)).await.unwrap();
    assert!(!dump().contains("meter=3"), "{}", dump());
    assert_eq!(switch.dump(), Vec::<String>::new());
}

/// Requests of several tasks on one connection, each with the answers that belong to it.
#[tokio::test(flavor = "multi_thread")]
async fn requests_at_once() {
    let switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for table in 0..20 {
        let connection = connection.clone();
        tasks.spawn(async move {
            for round in 0..20u16 {
                let good = Flow::new(table, round, Match::new()).actions([Action::Output(PortNo(1))]);
                connection.flow_mods_atomically(&[FlowMod::Add(good)]).await.unwrap();
                let bad = Flow::new(table, round, Match::new()).goto(0);
                let mods = [FlowMod::DeleteAll { table: None, cookie: 0, cookie_mask: 0 }, FlowMod::Add(bad)];
                match connection.flow_mods_atomically(&mods).await {
                    Err(Error::RefusedMod { index: 1, .. }) => {}
                    other => panic!("{other:?}"),
                }
                connection.echo().await.unwrap();
                let stats = connection.flow_stats(Some(table), 0, 0).await.unwrap();
                assert_eq!(stats.len(), usize::from(round) + 1);
                assert!(stats.iter().all(|stats| stats.flow.table == table));
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(switch.dump().len(), 400);
}

/// A bundle that is given up before its commit changes nothing, and the connection goes on.
#[tokio::test]
async fn given_up_requests_leave_no_trace() {
    let switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    let mods: Vec<_> = (0..2000).map(|priority| FlowMod::Add(Flow::new(0, priority, Match::new()))).collect();
    let hasty = connection.clone().with_deadline(Duration::from_micros(1));
    match hasty.flow_mods_atomically(&mods).await {
        Err(Error::Timeout { request: "bundle", after }) => assert_eq!(after, Duration::from_micros(1)),
        other => panic!("{other:?}"),
    }
    connection.barrier().await.unwrap();
    assert_eq!(switch.dump(), Vec::<String>::new());
    connection.flow_mods_atomically(&mods).await.unwrap();
    assert_eq!(connection.flow_stats(None, 0, 0).await.unwrap().len(), 2000);
}

#[tokio::test]
async fn the_end_of_the_switch_is_noticed() {
    let mut switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    let watcher = connection.clone();
    let closed = tokio::spawn(async move { watcher.closed().await });
    connection.echo().await.unwrap();
    assert!(!closed.is_finished());
    let start = Instant::now();
    switch.kill();
    let reason = tokio::time::timeout(Duration::from_secs(5), closed).await.unwrap().unwrap();
    assert!(matches!(reason, Error::Closed | Error::Io(_)), "{reason:?}");
    // At once, not after the requests' deadline.
    assert!(matches!(connection.echo().await, Err(Error::Closed | Error::Io(_))));
    assert!(matches!(
        connection.flow_mods_atomically(&[FlowMod::Add(Flow::new(0, 1, Match::new()))]).await,
        Err(Error::Closed | Error::Io(_))
    ));
    assert!(start.elapsed() < Duration::from_secs(5));

    let path = switch.socket();
    match Connection::connect(&path).await {
        Err(Error::Connect { path: named, .. }) => assert_eq!(named, path),
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[tokio::test]
async fn a_bridge_without_openflow_1_4_is_named_as_such() {
    let switch = Switch::start();
    switch.vsctl(&["set", "bridge", "br0", "protocols=OpenFlow10,OpenFlow13"]);
    match Connection::connect(switch.socket()).await {
        Err(Error::Version { offered: 4 }) => {}
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it is switched off"),
    }
}
