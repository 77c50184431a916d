//! The server dies and comes back.

use crate::switch::{DATABASE, SOON, Switch};
use openvswitch::ovsdb::{Client, Columns, Error, Event, Fault, Monitor, Status, Transaction, Until};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

fn monitor() -> Monitor {
    Monitor::new().table("Bridge", ["name", "external_ids"])
}

fn names(client: &Client) -> BTreeSet<String> {
    client.view().rows("Bridge").map(|(_, row)| row.string("name").unwrap().to_owned()).collect()
}

async fn wait_disconnected(client: &Client) {
    let mut status = client.watch_status();
    let disconnected = status.wait_for(|status| matches!(status, Status::Disconnected(_)));
    tokio::time::timeout(SOON, disconnected).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_view_is_replaced_at_one_stroke_when_the_server_is_back() {
    let mut switch = Switch::database();
    for bridge in ["kept", "changed", "deleted"] {
        switch.vsctl(&["add-br", bridge]);
    }
    let client = switch.client(monitor()).await;
    let mut changes = client.changes();
    let before = client.view();

    switch.kill_server();
    wait_disconnected(&client).await;
    assert!(!client.connected());
    assert_eq!(client.view(), before, "the last view stays");
    assert!(matches!(changes.next().await, Some(Event::Disconnected(_))));
    let error = client.transact(&Transaction::new(DATABASE)).await.unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }), "{error}");

    // What changes while the client is away: by an other server on the same file, then back to the first socket.
    let socket = switch.file("db.sock");
    let elsewhere = switch.file("elsewhere.sock");
    std::fs::remove_file(&socket).unwrap();
    switch.start_server_at("elsewhere.sock");
    let database = format!("--db=unix:{elsewhere}");
    for command in [
        vec!["del-br", "deleted"],
        vec!["add-br", "added"],
        vec!["set", "bridge", "changed", "external_ids:a=b"],
    ] {
        let mut arguments = vec!["--timeout=10", "--no-wait", &database];
        arguments.extend(command);
        crate::switch::run("ovs-vsctl", &arguments);
    }
    assert!(!client.connected());
    assert_eq!(client.view(), before);
    switch.kill_server();
    switch.start_server();

    client.wait_connected(SOON).await.unwrap();
    // The first view that is not the old one is the complete new one.
    assert!(matches!(changes.next().await, Some(Event::Synced)));
    assert_eq!(names(&client), ["added", "changed", "kept"].map(str::to_owned).into());
    let view = client.view();
    let (_, row) = view.find("Bridge", "name", "changed").unwrap();
    assert_eq!(row.map_entry("external_ids", "a").unwrap(), Some("b"));

    switch.vsctl(&["add-br", "later"]);
    client.wait_until(SOON, |view| view.find("Bridge", "name", "later").map(drop)).await.unwrap();
}

#[tokio::test]
async fn a_transaction_under_way_is_told_that_its_fate_is_unknown() {
    let mut switch = Switch::database();
    let client = switch.client(monitor()).await;
    let mut transaction = Transaction::new(DATABASE);
    let rows = [Columns::new().set("name", "never")];
    transaction.wait("Bridge", [], ["name"], Until::Equal, rows, Duration::from_secs(60));
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.transact(&transaction).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    switch.kill_server();
    let error = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    assert!(error.to_string().contains("may or may not have been applied"), "{error}");
}

#[tokio::test]
async fn a_wait_outlasts_a_restart_of_the_server() {
    let mut switch = Switch::database();
    switch.vsctl(&["add-br", "br0"]);
    let client = switch.client(monitor()).await;
    let (bridge, _) =
        client.view().find("Bridge", "name", "br0").map(|(uuid, row)| (uuid, row.clone())).unwrap();
    let waiting = tokio::spawn({
        let client = client.clone();
        let marked =
            |row: Option<&openvswitch::ovsdb::Row>| row?.map_entry("external_ids", "a").ok()?.map(drop);
        async move { client.wait_row("Bridge", bridge, SOON, marked).await }
    });
    switch.kill_server();
    switch.start_server();
    switch.vsctl(&["set", "bridge", "br0", "external_ids:a=b"]);
    waiting.await.unwrap().unwrap();
}

/// The sync may be through on another thread before `connect` comes to wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connecting_returns_however_quick_the_sync_is() {
    let switch = Switch::database();
    for _ in 0..1000 {
        let connecting = Client::connect(switch.settings(monitor()));
        assert!(tokio::time::timeout(SOON, connecting).await.unwrap().unwrap().connected());
    }
}

#[tokio::test]
async fn a_client_that_starts_before_the_server_finds_it() {
    let mut switch = Switch::database();
    switch.vsctl(&["add-br", "br0"]);
    switch.kill_server();
    let error = Client::connect(switch.settings(monitor())).await.unwrap_err();
    let Error::Disconnected { cause, .. } = &error else { panic!("{error}") };
    assert!(matches!(cause.as_ref(), Fault::Connect(_)), "{error}");
    assert!(error.to_string().contains("db.sock"), "{error}");

    let client = Client::start(switch.settings(monitor()));
    assert!(!client.connected());
    let error = client.wait_connected(Duration::from_millis(120)).await.unwrap_err();
    assert!(error.to_string().contains("cannot connect"), "{error}");
    switch.start_server();
    let began = Instant::now();
    client.wait_connected(SOON).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(names(&client), ["br0".to_owned()].into());
}

/// An `ovsdb-server` closes a connection that does not answer its echo requests (5 s after it asked, having
/// been idle for 5 s), so a connection that outlives that has answered them.
#[tokio::test]
async fn echoes_are_answered_and_asked_for() {
    let switch = Switch::database();
    let mut settings = switch.settings(monitor());
    settings.echo_after = Duration::from_millis(100);
    settings.dead_after = Duration::from_millis(2000);
    let asking = Client::connect(settings).await.unwrap();
    let mut settings = switch.settings(monitor());
    settings.echo_after = Duration::from_secs(60);
    settings.dead_after = Duration::from_secs(60);
    let answering = Client::connect(settings).await.unwrap();
    let (mut asked, mut answered) = (asking.changes(), answering.changes());
    let quiet = tokio::time::timeout(Duration::from_secs(12), async {
        tokio::select! { event = asked.next() => event, event = answered.next() => event }
    });
    assert!(quiet.await.is_err(), "the connections stay up and nothing happens");
    assert!(asking.connected() && answering.connected());
}
