//! The replica follows what others change, and others see what the client changes.

use crate::switch::{DATABASE, SOON, Switch, run};
use openvswitch::ovsdb::{
    ChangeKind, Client, Columns, Error, Event, Fault, Monitor, Mutation, RowChange, Transaction, Uuid,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

fn monitor() -> Monitor {
    Monitor::new()
        .table("Bridge", ["name", "ports", "external_ids"])
        .table("Port", ["name", "tag", "interfaces"])
        .table("Interface", ["name", "type", "ofport"])
}

async fn updated(changes: &mut openvswitch::ovsdb::Changes) -> Arc<[RowChange]> {
    match tokio::time::timeout(SOON, changes.next()).await.unwrap().unwrap() {
        Event::Updated(rows) => rows,
        event => panic!("{event:?}"),
    }
}

fn named(view: &openvswitch::ovsdb::View, table: &str, name: &str) -> Option<Uuid> {
    Some(view.find(table, "name", name)?.0)
}

#[tokio::test]
async fn what_was_there_before_and_what_vsctl_changes_is_seen() {
    let switch = Switch::database();
    switch.vsctl(&["add-br", "br0"]);
    let client = switch.client(monitor()).await;
    let bridge = named(&client.view(), "Bridge", "br0").expect("the initial state has the bridge");

    let mut changes = client.changes();
    switch.vsctl(&["add-port", "br0", "p1", "tag=7"]);
    let port = client.wait_until(SOON, |view| named(view, "Port", "p1")).await.unwrap();
    let view = client.view();
    let row = view.row("Port", port).unwrap();
    assert_eq!(row.optional_integer("tag").unwrap(), Some(7));
    assert_eq!(row.table(), "Port");
    assert!(view.row("Bridge", bridge).unwrap().uuid_set("ports").unwrap().contains(&port));
    let interface = row.uuid("interfaces").unwrap();
    assert_eq!(view.row("Interface", interface).unwrap().string("name").unwrap(), "p1");

    // One transaction of vsctl is one event, with its rows before and after.
    let rows = updated(&mut changes).await;
    let kinds: BTreeSet<_> =
        rows.iter().map(|row| (row.table.to_string(), row.kind() == ChangeKind::Inserted)).collect();
    let expected = [("Bridge", false), ("Interface", true), ("Port", true)];
    assert_eq!(kinds, expected.map(|(table, inserted)| (table.to_owned(), inserted)).into());
    let change = rows.iter().find(|row| row.uuid == bridge).unwrap();
    assert!(!change.old.as_ref().unwrap().uuid_set("ports").unwrap().contains(&port));
    assert!(change.new.as_ref().unwrap().uuid_set("ports").unwrap().contains(&port));

    switch.vsctl(&["set", "port", "p1", "tag=8"]);
    client.wait_row("Port", port, SOON, |row| (row?.integer("tag").ok()? == 8).then_some(())).await.unwrap();
    let rows = updated(&mut changes).await;
    assert_eq!((rows.len(), rows[0].kind(), rows[0].uuid), (1, ChangeKind::Modified, port));
    assert_eq!(rows[0].old.as_ref().unwrap().integer("tag").unwrap(), 7);

    switch.vsctl(&["del-port", "br0", "p1"]);
    client.wait_row("Port", port, SOON, |row| row.is_none().then_some(())).await.unwrap();
    let rows = updated(&mut changes).await;
    assert_eq!(rows.iter().find(|row| row.uuid == port).unwrap().kind(), ChangeKind::Deleted);
    assert!(client.view().row("Interface", interface).is_none());
}

#[tokio::test]
async fn what_the_client_changes_is_seen_by_the_tools() {
    let switch = Switch::database();
    switch.vsctl(&["add-br", "br0"]);
    let client = switch.client(monitor()).await;
    let mut transaction = Transaction::new(DATABASE);
    let interface = transaction.insert("Interface", Columns::new().set("name", "p1").set("type", "internal"));
    let port = transaction
        .insert("Port", Columns::new().set("name", "p1").set("interfaces", &interface).set("tag", Some(9)));
    transaction.mutate("Bridge", [], [Mutation::insert("ports", &port)]);
    client.transact(&transaction).await.unwrap();
    assert_eq!(switch.vsctl(&["list-ports", "br0"]), "p1");
    assert_eq!(switch.vsctl(&["get", "port", "p1", "tag"]), "9");
    let dump = run("ovsdb-client", &["dump", &switch.address(), DATABASE, "Interface", "name", "type"]);
    assert!(dump.contains("p1") && dump.contains("internal"), "{dump}");
}

#[tokio::test]
async fn a_kept_view_stays_as_it_was() {
    let switch = Switch::database();
    let client = switch.client(monitor()).await;
    let before = client.view();
    switch.vsctl(&["add-br", "br0"]);
    client.wait_until(SOON, |view| named(view, "Bridge", "br0")).await.unwrap();
    assert!(named(&before, "Bridge", "br0").is_none());
    assert!(before.table("Bridge").unwrap().is_empty());
}

#[tokio::test]
async fn a_wait_in_vain_ends_and_says_for_what_it_waited() {
    let switch = Switch::database();
    let client = switch.client(monitor()).await;
    let timeout = Duration::from_millis(50);
    let error = client.wait_until(timeout, |view| named(view, "Bridge", "br0")).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let uuid = Uuid::from_u128(7);
    let error = client.wait_row("Port", uuid, timeout, |row| row.map(drop)).await.unwrap_err();
    let message = error.to_string();
    assert!(message.contains(&uuid.to_string()) && message.contains("which is connected"), "{message}");
}

#[tokio::test]
async fn a_receiver_that_falls_behind_is_told_to_read_the_view_anew() {
    let switch = Switch::database();
    switch.vsctl(&["add-br", "br0"]);
    let client = switch.client(monitor()).await;
    let mut changes = client.changes();
    for round in 0..1100 {
        let mut transaction = Transaction::new(DATABASE);
        let columns = Columns::new()
            .set("external_ids", openvswitch::ovsdb::Value::map([("round", round.to_string())]));
        transaction.update("Bridge", [], columns);
        client.transact(&transaction).await.unwrap();
    }
    assert!(matches!(changes.next().await, Some(Event::Synced)));
    switch.vsctl(&["add-port", "br0", "p1"]);
    assert_eq!(updated(&mut changes).await.len(), 3, "after that only what is newer than the view");
}

#[tokio::test]
async fn a_database_or_column_that_does_not_exist_is_refused() {
    let switch = Switch::database();
    let error =
        Client::connect(switch.settings(Monitor::new().table("Port", ["nonsense"]))).await.unwrap_err();
    let Error::Disconnected { cause, .. } = &error else { panic!("{error}") };
    assert!(
        matches!(cause.as_ref(), Fault::MonitorRefused(_)) && error.to_string().contains("nonsense"),
        "{error}"
    );

    let mut settings = switch.settings(Monitor::new());
    settings.database = "Nowhere".to_owned();
    let error = Client::connect(settings).await.unwrap_err();
    assert!(error.to_string().contains("Nowhere"), "{error}");
}
