//! Ports on a real `ovs-vswitchd`: added in one transaction, and followed until it has given them numbers.

use crate::switch::{DATABASE, SOON, Switch};
use openvswitch::ovsdb::{Client, Columns, Condition, Monitor, Mutation, Row, Transaction, Uuid, Value};
use std::time::{Duration, Instant};

fn monitor() -> Monitor {
    Monitor::new()
        .table("Bridge", ["name", "ports"])
        .table("Port", ["name", "interfaces"])
        .table("Interface", ["name", "ofport", "error", "external_ids"])
}

async fn bridge(client: &Client) -> Uuid {
    client.wait_until(SOON, |view| Some(view.find("Bridge", "name", "br0")?.0)).await.unwrap()
}

fn ofport(row: Option<&Row>) -> Option<i64> {
    row?.optional_integer("ofport").ok()?
}

/// Adds a port to the bridge and returns its row, its interface's row, and the OpenFlow port number.
async fn add_port(client: &Client, bridge: Uuid, name: &str) -> (Uuid, Uuid, i64) {
    let mut transaction = Transaction::new(DATABASE);
    let columns = Columns::new().set("name", name).set("external_ids", Value::map([("pod", name)]));
    let interface = transaction.insert("Interface", columns);
    let port = transaction.insert("Port", Columns::new().set("name", name).set("interfaces", &interface));
    transaction.mutate("Bridge", [Condition::uuid(bridge)], [Mutation::insert("ports", &port)]);
    let results = client.transact(&transaction).await.unwrap();
    let (port, interface) = (results.inserted(&port).unwrap(), results.inserted(&interface).unwrap());
    (port, interface, client.wait_row("Interface", interface, SOON, ofport).await.unwrap())
}

async fn delete_port(client: &Client, bridge: Uuid, port: Uuid) {
    let mut transaction = Transaction::new(DATABASE);
    transaction.mutate("Bridge", [Condition::uuid(bridge)], [Mutation::delete("ports", port)]);
    client.transact(&transaction).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_gets_its_number_soon_after_it_is_added() {
    const ROUNDS: usize = 30;
    let switch = Switch::running();
    switch.in_namespace(&["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"]);
    switch.in_namespace(&["ip", "link", "set", "v0", "up"]);
    let client = switch.client(monitor()).await;
    let bridge = bridge(&client).await;
    let mut took = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let began = Instant::now();
        let (port, interface, number) = add_port(&client, bridge, "v0").await;
        took.push(began.elapsed());
        assert!(number > 0, "ovs-vswitchd refused the port");
        if round == 0 {
            assert_eq!(switch.vsctl(&["get", "interface", "v0", "ofport"]), number.to_string());
            assert_eq!(switch.vsctl(&["get", "interface", "v0", "external_ids:pod"]), "v0");
        }
        delete_port(&client, bridge, port).await;
        assert!(client.view().row("Interface", interface).is_none());
        // ovs-vswitchd closes the device's socket after that, for which the kernel takes its time; the next
        // port would wait behind it.
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    took.sort();
    let median = took[ROUNDS / 2];
    println!(
        "from the transaction to the ofport: median {median:?}, best {:?}, worst {:?}",
        took[0],
        took[ROUNDS - 1]
    );
    assert!(median < Duration::from_millis(50), "{median:?}");
}

#[tokio::test]
async fn a_port_without_a_device_gets_the_number_that_says_so() {
    let switch = Switch::running();
    let client = switch.client(monitor()).await;
    let bridge = bridge(&client).await;
    let (_, interface, number) = add_port(&client, bridge, "missing0").await;
    assert_eq!(number, -1);
    let error = client
        .wait_row("Interface", interface, SOON, |row| row?.optional_string("error").ok()?.map(str::to_owned))
        .await
        .unwrap();
    assert!(error.contains("missing0"), "{error}");
}

/// Waiting for one row of many wakes nobody else, so many ports at once are not slowed down by each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_ports_at_once_all_get_a_number() {
    const PORTS: usize = 60;
    let switch = Switch::running();
    for index in 0..PORTS {
        switch.in_namespace(&[
            "ip",
            "link",
            "add",
            &format!("v{index}"),
            "type",
            "veth",
            "peer",
            "name",
            &format!("w{index}"),
        ]);
    }
    let client = switch.client(monitor()).await;
    let bridge = bridge(&client).await;
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..PORTS {
        let client = client.clone();
        tasks.spawn(async move { add_port(&client, bridge, &format!("v{index}")).await.2 });
    }
    let numbers: std::collections::BTreeSet<i64> = tasks.join_all().await.into_iter().collect();
    println!("{PORTS} ports at once: {:?}", began.elapsed());
    assert_eq!(numbers.len(), PORTS);
    assert!(numbers.first() > Some(&0), "{numbers:?}");
}
