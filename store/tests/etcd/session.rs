//! Leases that live as long as their holder.

use std::time::Duration;

use tenon_store::{Session, Write};

use crate::cluster::{Cluster, soon, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_lives_as_long_as_its_session() {
    let cluster = Cluster::start(1);
    let store = cluster.store();
    let mut session = Session::open(&store, Duration::from_secs(2));
    let lease = soon("a lease", session.granted()).await;
    store.txn(&[], &[Write::put_leased("/t/agent", "up", lease)]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(cluster.etcdctl(&["get", "--print-value-only", "/t/agent"]), "up");
    assert_eq!(session.lease(), Some(lease));

    // Somebody takes it away: there is another, and the key can be written again.
    cluster.etcdctl(&["lease", "revoke", &format!("{lease:x}")]);
    assert_eq!(cluster.etcdctl(&["get", "/t/agent"]), "");
    let next = within(Duration::from_secs(5), "another lease", session.granted()).await;
    assert_ne!(next, lease);
    store.txn(&[], &[Write::put_leased("/t/agent", "again", next)]).await.unwrap();

    session.close().await.unwrap();
    assert_eq!(cluster.etcdctl(&["get", "/t/agent"]), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_vanishes_after_its_time_when_the_holder_is_gone() {
    let cluster = Cluster::start(1);
    let store = cluster.store();
    let mut session = Session::open(&store, Duration::from_secs(2));
    let lease = soon("a lease", session.granted()).await;
    store.txn(&[], &[Write::put_leased("/t/agent", "up", lease)]).await.unwrap();
    drop(session);
    assert_eq!(cluster.etcdctl(&["get", "--print-value-only", "/t/agent"]), "up");
    within(Duration::from_secs(6), "the end of the key", async {
        while store.get("/t/agent").await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_outlives_an_outage_of_etcd() {
    let mut cluster = Cluster::down();
    let store = cluster.store();
    let mut session = Session::open(&store, Duration::from_secs(2));
    assert_eq!(session.lease(), None);
    cluster.members[0].run();
    let lease = soon("a lease when etcd comes up", session.granted()).await;
    store.txn(&[], &[Write::put_leased("/t/agent", "up", lease)]).await.unwrap();
    // etcd comes back with the lease, which goes on as if nothing had happened.
    cluster.members[0].kill();
    cluster.members[0].run();
    cluster.members[0].wait();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(cluster.etcdctl(&["get", "--print-value-only", "/t/agent"]), "up");
    assert_eq!(session.lease(), Some(lease));
}
