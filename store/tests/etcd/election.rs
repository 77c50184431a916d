//! One leader, a quick successor, and no write of a deposed one.

use std::time::{Duration, Instant};

use tenon_store::{Compare, Election, Options, Store, Write};

use crate::cluster::{Cluster, soon, within};
use crate::proxy::{Proxy, Wire};

const PREFIX: &str = "/t/controller/";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_and_the_next_leads_as_soon_as_it_resigns() {
    let cluster = Cluster::start(3);
    let (names, mut elected) = tokio::sync::mpsc::unbounded_channel();
    let mut candidates = tokio::task::JoinSet::new();
    for name in ["a", "b", "c"] {
        let (store, names) = (cluster.store(), names.clone());
        candidates.spawn(async move {
            let leadership = Election::new(&store, PREFIX, name).campaign().await;
            names.send((name, leadership, store)).unwrap();
        });
    }
    let mut seen = Vec::new();
    let mut resigned = Instant::now();
    for turn in 0..3 {
        let (name, leadership, store) = soon("a leader", elected.recv()).await.unwrap();
        if turn > 0 {
            println!("hand-over upon resignation: {:?}", resigned.elapsed());
            assert!(resigned.elapsed() < Duration::from_secs(2), "{:?}", resigned.elapsed());
        }
        // etcd's own rule for who leads: the oldest key.
        let oldest = [
            "get",
            "--prefix",
            PREFIX,
            "--sort-by=CREATE",
            "--order=ASCEND",
            "--limit=1",
            "--print-value-only",
        ];
        assert_eq!(cluster.etcdctl(&oldest), name);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(elected.try_recv().is_err(), "two leaders");
        assert!(!leadership.is_lost());
        let write = [Write::put("/t/led-by", name)];
        assert!(store.txn(&[leadership.fence().clone()], &write).await.unwrap().applied());
        let (fence, lost) = (leadership.fence().clone(), leadership.lost());
        resigned = Instant::now();
        leadership.resign().await.unwrap();
        soon("the loss", lost).await;
        assert!(!store.txn(&[fence], &write).await.unwrap().applied(), "a write after resignation");
        seen.push(name);
    }
    seen.sort_unstable();
    assert_eq!(seen, ["a", "b", "c"]);
    assert_eq!(cluster.etcdctl(&["get", "--prefix", PREFIX]), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_is_replaced_knows_it_and_writes_nothing() {
    const TTL: Duration = Duration::from_secs(3);
    let cluster = Cluster::start(1);
    let proxy = Proxy::start(cluster.members[0].endpoint()).await;
    let options = Options { endpoints: vec![proxy.endpoint.clone()], ..Options::default() };
    let cut_off = Store::connect(options).unwrap();
    let old = soon("a leader", Election::new(&cut_off, PREFIX, "old").with_ttl(TTL).campaign()).await;
    let store = cluster.store();
    let successor = {
        let election = Election::new(&store, PREFIX, "new").with_ttl(TTL);
        tokio::spawn(async move { election.campaign().await })
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!successor.is_finished() && !old.is_lost());

    proxy.set(Wire::Silent);
    let started = Instant::now();
    let lost = old.lost();
    let loss = tokio::spawn(async move {
        lost.await;
        started.elapsed()
    });
    // The lease may have been renewed just before, and etcd looks for expired leases twice a second.
    let new = within(TTL + Duration::from_secs(3), "the successor", successor).await.unwrap();
    let replaced = started.elapsed();
    let lost = within(Duration::from_secs(1), "the old leader's insight", loss).await.unwrap();
    println!("leader cut off: it knows after {lost:?}, is replaced after {replaced:?} (ttl {TTL:?})");
    assert!(lost <= replaced, "two believed to lead: {lost:?} > {replaced:?}");

    proxy.set(Wire::Cut);
    proxy.set(Wire::Good);
    let write = [Write::put("/t/led-by", "old")];
    assert!(
        !soon("the deposed one's write", cut_off.txn(&[old.fence().clone()], &write))
            .await
            .unwrap()
            .applied()
    );
    assert!(store.txn(&[new.fence().clone()], &[Write::put("/t/led-by", "new")]).await.unwrap().applied());
    assert_eq!(cluster.etcdctl(&["get", "--print-value-only", "/t/led-by"]), "new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_key_is_deleted_by_hand_knows_it_and_can_stand_again() {
    let cluster = Cluster::start(1);
    let store = cluster.store();
    let election = Election::new(&store, PREFIX, "a");
    let leadership = soon("a leader", election.campaign()).await;
    cluster.etcdctl(&["del", "--prefix", PREFIX]);
    within(Duration::from_secs(2), "the loss", leadership.lost()).await;
    assert!(leadership.is_lost());
    let (Compare::CreateRevision(key, _), fence) = (leadership.fence().clone(), leadership.fence().clone())
    else {
        panic!("a fence is a create revision")
    };
    assert!(key.starts_with(PREFIX));
    assert!(!store.txn(&[fence], &[]).await.unwrap().applied());
    drop(leadership);
    let again = soon("a leader again", election.campaign()).await;
    assert!(!again.is_lost());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawn_candidate_and_a_dropped_leader_leave_no_key() {
    let cluster = Cluster::start(1);
    let store = cluster.store();
    let leader = soon("a leader", Election::new(&store, PREFIX, "a").campaign()).await;
    let candidate = Election::new(&store, PREFIX, "b");
    let waiting = tokio::time::timeout(Duration::from_millis(700), candidate.campaign()).await;
    assert!(waiting.is_err(), "two leaders");
    drop(leader);
    within(Duration::from_secs(2), "both keys gone", async {
        while !store.list(PREFIX).await.unwrap().0.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_keeps_its_lead_when_a_member_dies() {
    let mut cluster = Cluster::start(3);
    let store = cluster.store();
    let leadership = soon("a leader", Election::new(&store, PREFIX, "a").campaign()).await;
    cluster.members[1].kill();
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(!leadership.is_lost());
    assert!(store.txn(&[leadership.fence().clone()], &[]).await.unwrap().applied());
}
