//! Transactions on a real server.

use crate::switch::{DATABASE, SOON, Switch};
use openvswitch::ovsdb::{
    Client, Columns, Condition, Error, Monitor, Mutation, OperationResult, Transaction, Until, Value,
};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

async fn client(switch: &Switch) -> Client {
    switch.client(Monitor::new().table("Bridge", ["name", "external_ids", "ports"])).await
}

/// Adds an empty bridge, which the root row must refer to or it would vanish at the commit.
fn add_bridge(transaction: &mut Transaction, name: &str) -> openvswitch::ovsdb::InsertedRow {
    let bridge = transaction.insert("Bridge", Columns::new().set("name", name));
    transaction.mutate("Open_vSwitch", [], [Mutation::insert("bridges", &bridge)]);
    bridge
}

#[tokio::test]
async fn rows_are_inserted_selected_updated_mutated_and_deleted() {
    let switch = Switch::database();
    let client = client(&switch).await;

    let mut transaction = Transaction::new(DATABASE);
    let bridge = add_bridge(&mut transaction, "br0");
    let results = client.transact(&transaction).await.unwrap();
    let uuid = results.inserted(&bridge).unwrap();
    assert_eq!(results.as_slice()[1], OperationResult::Count(1));
    assert_eq!(switch.vsctl(&["get", "bridge", "br0", "_uuid"]), uuid.to_string());

    let mut transaction = Transaction::new(DATABASE);
    let values = Columns::new()
        .set("fail_mode", "secure")
        .set("mcast_snooping_enable", true)
        .set("flood_vlans", [1, 2])
        .set("external_ids", Value::map([("owner", "tenon"), ("quote", "a\"b\\c\n ü")]));
    let update = transaction.update("Bridge", [Condition::uuid(uuid)], values);
    let mutate = transaction.mutate(
        "Bridge",
        [Condition::equal("name", "br0"), Condition::includes("flood_vlans", 2)],
        [
            Mutation::insert("external_ids", Value::map([("more", "1")])),
            Mutation::delete("external_ids", Value::set(["owner"])),
        ],
    );
    let none =
        transaction.mutate("Bridge", [Condition::equal("name", "br1")], [Mutation::delete("flood_vlans", 1)]);
    let select = transaction.select(
        "Bridge",
        [Condition::uuid(uuid)],
        ["name", "fail_mode", "flood_vlans", "external_ids", "_uuid"],
    );
    let all = transaction.select_all("Bridge", []);
    transaction.comment("a line for the server's log");
    let results = client.transact(&transaction).await.unwrap();
    assert_eq!(results.count(update).unwrap(), 1);
    assert_eq!(results.count(mutate).unwrap(), 1);
    assert_eq!(results.count(none).unwrap(), 0);
    let row = &results.rows(select).unwrap()[0];
    assert_eq!(row.uuid("_uuid").unwrap(), uuid);
    assert_eq!(row.string("name").unwrap(), "br0");
    assert_eq!(row.optional_string("fail_mode").unwrap(), Some("secure"));
    assert_eq!(row.integer_set("flood_vlans").unwrap(), BTreeSet::from([1, 2]));
    assert_eq!(
        row.map("external_ids").unwrap().into_iter().collect::<Vec<_>>(),
        [("more".to_owned(), "1".to_owned()), ("quote".to_owned(), "a\"b\\c\n ü".to_owned())]
    );
    assert_eq!(
        results.rows(all).unwrap()[0].optional_integer("datapath_version").unwrap_err().to_string(),
        "column datapath_version of table Bridge holds \"\" where at most one integer was expected"
    );
    assert_eq!(switch.vsctl(&["get", "bridge", "br0", "external_ids:more"]), "\"1\"");
    assert_eq!(switch.vsctl(&["get", "bridge", "br0", "fail_mode"]), "secure");

    let mut transaction = Transaction::new(DATABASE);
    transaction.mutate("Open_vSwitch", [], [Mutation::delete("bridges", uuid)]);
    client.transact(&transaction).await.unwrap();
    assert_eq!(switch.vsctl(&["list-br"]), "");
    assert!(client.view().row("Bridge", uuid).is_none());
}

#[tokio::test]
async fn a_failing_operation_is_named_and_undoes_the_others() {
    let switch = Switch::database();
    let client = client(&switch).await;
    let mut transaction = Transaction::new(DATABASE);
    add_bridge(&mut transaction, "br0");
    transaction.update("Bridge", [], Columns::new().set("nonsense", 1));
    transaction.comment("never reached");
    let error = client.transact(&transaction).await.unwrap_err();
    let Error::Operation { index: 2, operation, error, details } = error else { panic!("{error}") };
    assert_eq!(operation, "update of Bridge");
    assert!(!error.is_empty() && details.contains("nonsense"), "{error}: {details}");
    assert_eq!(switch.vsctl(&["list-br"]), "");
}

#[tokio::test]
async fn a_transaction_that_cannot_be_committed_says_so() {
    let switch = Switch::database();
    let client = client(&switch).await;
    let mut transaction = Transaction::new(DATABASE);
    add_bridge(&mut transaction, "br0");
    add_bridge(&mut transaction, "br0");
    let error = client.transact(&transaction).await.unwrap_err();
    let Error::Commit { error, details } = error else { panic!("{error}") };
    assert_eq!(error, "constraint violation");
    assert!(details.contains("br0"), "{details}");
    assert_eq!(switch.vsctl(&["list-br"]), "");
}

#[tokio::test]
async fn a_dry_run_is_aborted_and_changes_nothing() {
    let switch = Switch::database();
    let client = client(&switch).await;
    let mut transaction = Transaction::new(DATABASE);
    add_bridge(&mut transaction, "br0");
    transaction.abort();
    let error = client.transact(&transaction).await.unwrap_err();
    assert!(matches!(&error, Error::Operation { index: 2, error, .. } if error == "aborted"), "{error}");
    assert_eq!(switch.vsctl(&["list-br"]), "");
}

#[tokio::test]
async fn an_unknown_database_and_an_unencodable_value_are_refused_as_a_whole() {
    let switch = Switch::database();
    let client = client(&switch).await;
    let error = client.transact(&Transaction::new("Nowhere")).await.unwrap_err();
    assert!(matches!(&error, Error::Refused { error, .. } if error.contains("Nowhere")), "{error}");
    let mut transaction = Transaction::new(DATABASE);
    transaction.update("Bridge", [], Columns::new().set("name", f64::NAN));
    let error = client.transact(&transaction).await.unwrap_err();
    assert!(matches!(error, Error::Unencodable { .. }), "{error}");
    assert!(client.connected());
}

#[tokio::test]
async fn a_wait_times_out_or_holds_others_back_until_it_holds() {
    let switch = Switch::database();
    let client = client(&switch).await;
    let wait = |timeout| {
        let mut transaction = Transaction::new(DATABASE);
        let rows = [Columns::new().set("name", "br0")];
        let conditions = [Condition::equal("name", "br0")];
        transaction.wait("Bridge", conditions, ["name"], Until::Equal, rows, timeout);
        transaction
    };
    let began = Instant::now();
    let error = client.transact(&wait(Duration::from_millis(200))).await.unwrap_err();
    assert!(matches!(&error, Error::Operation { index: 0, error, .. } if error == "timed out"), "{error}");
    assert!(began.elapsed() >= Duration::from_millis(200));

    let error = client.transact(&wait(Duration::ZERO)).await.unwrap_err();
    assert!(matches!(&error, Error::Operation { error, .. } if error == "timed out"), "{error}");

    // The waiting transaction does not hold back the one that it waits for.
    let waiting = wait(SOON);
    let waiting = client.transact(&waiting);
    let mut transaction = Transaction::new(DATABASE);
    add_bridge(&mut transaction, "br0");
    let adding = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.transact(&transaction).await
    };
    let (waited, added) = tokio::join!(waiting, adding);
    assert_eq!(waited.unwrap().as_slice(), [OperationResult::Done]);
    added.unwrap();
}

/// The order that the module's documentation promises: the view shows a transaction when its reply is here.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_transactions_each_get_their_own_result_and_see_it_in_the_view() {
    const TASKS: i64 = 32;
    const ROUNDS: i64 = 8;
    let switch = Switch::database();
    let client = client(&switch).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let client = client.clone();
        tasks.spawn(async move {
            for round in 0..ROUNDS {
                let name = format!("br{task}-{round}");
                let mut transaction = Transaction::new(DATABASE);
                let bridge = add_bridge(&mut transaction, &name);
                let select =
                    transaction.select("Bridge", [Condition::equal("name", name.as_str())], ["_uuid"]);
                let results = client.transact(&transaction).await.unwrap();
                let uuid = results.inserted(&bridge).unwrap();
                assert_eq!(results.rows(select).unwrap()[0].uuid("_uuid").unwrap(), uuid);
                let view = client.view();
                let row = view.row("Bridge", uuid).expect("the update comes before the reply");
                assert_eq!(row.string("name").unwrap(), name);
                let mut transaction = Transaction::new(DATABASE);
                if round % 2 == 0 {
                    transaction.mutate("Open_vSwitch", [], [Mutation::delete("bridges", uuid)]);
                    client.transact(&transaction).await.unwrap();
                    assert!(client.view().row("Bridge", uuid).is_none(), "the update comes before the reply");
                }
            }
        });
    }
    tasks.join_all().await;
    let expected = usize::try_from(TASKS * ROUNDS / 2).unwrap();
    assert_eq!(client.view().table("Bridge").unwrap().len(), expected);
    assert_eq!(switch.vsctl(&["list-br"]).lines().count(), expected);
}

#[tokio::test]
async fn a_large_request_and_a_large_reply_pass() {
    let switch = Switch::database();
    let client = client(&switch).await;
    let long = "ä{\"[".repeat(20_000);
    let mut transaction = Transaction::new(DATABASE);
    for index in 0..40 {
        let columns = Columns::new()
            .set("name", format!("br{index}"))
            .set("external_ids", Value::map([("long", long.as_str())]));
        let bridge = transaction.insert("Bridge", columns);
        transaction.mutate("Open_vSwitch", [], [Mutation::insert("bridges", &bridge)]);
    }
    let select = transaction.select_all("Bridge", []);
    let results = client.transact(&transaction).await.unwrap();
    let rows = results.rows(select).unwrap();
    assert_eq!(rows.len(), 40);
    for row in rows {
        assert_eq!(row.map_entry("external_ids", "long").unwrap(), Some(long.as_str()));
    }
    assert_eq!(client.view().rows("Bridge").count(), 40);
}
