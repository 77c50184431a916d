//! Reads and transactions.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tenon_store::{Compare, Error, Options, Store, TxnOutcome, Write};

use crate::cluster::{Cluster, free_ports, quantile, soon, within};
use crate::proxy::{Proxy, Wire};

#[tokio::test]
async fn a_transaction_applies_wholly_or_tells_what_is_there() {
    let cluster = Cluster::start(1);
    let store = cluster.store();
    let both = [Write::put("/t/a", "1"), Write::put("/t/b", "1")];
    let absent = [Compare::absent("/t/a"), Compare::absent("/t/b")];
    let TxnOutcome::Applied { revision } = store.txn(&absent, &both).await.unwrap() else { panic!() };
    let a = store.get("/t/a").await.unwrap().unwrap();
    assert_eq!((a.value.as_slice(), a.create_revision, a.mod_revision), (&b"1"[..], revision, revision));

    let again = store.txn(&absent, &both).await.unwrap();
    let TxnOutcome::Conflict { current, unsure: false, .. } = again else { panic!("{again:?}") };
    assert_eq!(current.iter().map(|kv| kv.key.as_str()).collect::<Vec<_>>(), ["/t/a", "/t/b"]);

    let swap = [Write::put("/t/a", "2"), Write::delete("/t/b")];
    let fence = Compare::CreateRevision("/t/a".into(), revision);
    assert!(store.txn(&[Compare::unchanged(&a), fence.clone()], &swap).await.unwrap().applied());
    let stale = store.txn(&[Compare::unchanged(&a), fence.clone()], &swap).await.unwrap();
    let TxnOutcome::Conflict { current, .. } = stale else { panic!("{stale:?}") };
    assert_eq!(current.len(), 1, "a key that two conditions name is reported once: {current:?}");
    assert_eq!(current[0].value, b"2");
    assert!(store.txn(&[Compare::Value("/t/a".into(), b"2".into()), fence], &[]).await.unwrap().applied());
    assert!(!store.txn(&[Compare::Value("/t/a".into(), b"1".into())], &[]).await.unwrap().applied());
    assert_eq!(cluster.etcdctl(&["get", "--prefix", "/t/"]), "/t/a\n2");
    assert_eq!(store.get("/t/b").await.unwrap(), None);
}

#[tokio::test]
async fn what_can_never_work_is_told_at_once_with_its_reason() {
    let cluster = Cluster::start(1);
    let store = cluster.store();
    let started = Instant::now();
    let twice = store.txn(&[], &[Write::put("/t/a", "1"), Write::put("/t/a", "2")]).await;
    assert!(
        matches!(&twice, Err(Error::Invalid { cause, .. }) if cause.contains("duplicate key")),
        "{twice:?}"
    );
    let many: Vec<_> = (0..129).map(|i| Write::put(format!("/t/{i}"), "")).collect();
    let many = store.txn(&[], &many).await;
    assert!(matches!(&many, Err(Error::Invalid { cause, .. }) if cause.contains("too many")), "{many:?}");
    let large = store.txn(&[], &[Write::put("/t/a", vec![0; 7 << 18])]).await;
    assert!(matches!(&large, Err(Error::Invalid { cause, .. }) if cause.contains("too large")), "{large:?}");
    let leased = store.txn(&[], &[Write::put_leased("/t/a", "", 0x1234)]).await;
    assert_eq!(leased, Err(Error::LeaseGone { lease: 0x1234 }));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(cluster.etcdctl(&["get", "--prefix", "/"]), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_swap_exactly_one_wins_each_revision() {
    const TASKS: usize = 16;
    const EACH: usize = 12;
    let cluster = Cluster::start(3);
    let store = cluster.store();
    store.txn(&[], &[Write::put("/t/count", "0")]).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let store = cluster.store();
        tasks.spawn(async move {
            let mut kv = store.get("/t/count").await.unwrap().unwrap();
            let mut revisions = Vec::new();
            while revisions.len() < EACH {
                let count: usize = String::from_utf8(kv.value.clone()).unwrap().parse().unwrap();
                let write = Write::put("/t/count", (count + 1).to_string());
                match store.txn(&[Compare::unchanged(&kv)], &[write]).await.unwrap() {
                    TxnOutcome::Applied { revision } => {
                        revisions.push(revision);
                        kv.mod_revision = revision;
                        kv.value = (count + 1).to_string().into();
                    }
                    TxnOutcome::Conflict { current, unsure, .. } => {
                        assert!(!unsure, "no member failed");
                        kv = current.into_iter().next().unwrap();
                    }
                }
            }
            revisions
        });
    }
    let mut revisions: Vec<_> = soon("the race", tasks.join_all()).await.into_iter().flatten().collect();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), TASKS * EACH, "two swaps won the same revision");
    assert_eq!(cluster.etcdctl(&["get", "--print-value-only", "/t/count"]), (TASKS * EACH).to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_listing_is_of_one_revision_while_others_write() {
    let cluster = Cluster::start(1);
    let store = cluster.store();
    for base in (0..2500).step_by(100) {
        let writes: Vec<_> = (base..base + 100).map(|i| Write::put(format!("/t/{i:05}"), "old")).collect();
        store.txn(&[], &writes).await.unwrap();
    }
    let (before, revision) = store.list("/t/").await.unwrap();
    assert_eq!(before.len(), 2500);
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..40 {
                // The first and the last key change together: a listing shows both or neither.
                let value = round.to_string();
                let writes = [Write::put("/t/00000", value.as_str()), Write::put("/t/02499", value.as_str())];
                store.txn(&[], &writes).await.unwrap();
            }
        })
    };
    let mut seen = 0;
    while !writer.is_finished() {
        let (kvs, at) = store.list("/t/").await.unwrap();
        assert_eq!(kvs.len(), 2500);
        assert!(kvs.is_sorted_by(|a, b| a.key < b.key));
        assert_eq!(kvs.first().unwrap().value, kvs.last().unwrap().value, "torn at revision {at}");
        assert!(at >= revision && kvs.iter().all(|kv| kv.mod_revision <= at));
        seen += 1;
    }
    writer.await.unwrap();
    assert!(seen > 1, "the writer was done before a listing");
    assert_eq!(store.list("/none/").await.unwrap().0, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_of_three_members_dead_every_put_succeeds() {
    let mut cluster = Cluster::start(3);
    let store = cluster.store();
    soon("a leader", store.txn(&[], &[Write::put("/t/warm", "")])).await.unwrap();
    let mut quiet = Vec::new();
    for i in 0..200 {
        let started = Instant::now();
        store.txn(&[Compare::absent(format!("/q/{i}"))], &[Write::put(format!("/q/{i}"), "")]).await.unwrap();
        quiet.push(started.elapsed());
    }
    cluster.members[0].kill();
    // Each task has a store of its own, so some begin at the dead member.
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..10 {
        let store = cluster.store();
        tasks.spawn(async move {
            for i in 0..30 {
                let key = format!("/t/{task:02}/{i:02}");
                let outcome =
                    store.txn(&[Compare::absent(key.as_str())], &[Write::put(key.as_str(), "")]).await;
                match outcome.unwrap() {
                    TxnOutcome::Applied { .. } | TxnOutcome::Conflict { unsure: true, .. } => {}
                    other => panic!("a conflict with nobody: {other:?}"),
                }
            }
        });
    }
    soon("300 puts", tasks.join_all()).await;
    let count = cluster.etcdctl(&["get", "--prefix", "--keys-only", "/t/"]).matches("/t/").count();
    assert_eq!(count, 301);
    println!("txn, three members: p50 {:?} p99 {:?}", quantile(&mut quiet, 0.5), quantile(&mut quiet, 0.99));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_costs_one_try_and_a_refused_one_leaves_no_doubt() {
    let cluster = Cluster::start(3);
    let store = cluster.store();
    soon("a leader", store.txn(&[], &[Write::put("/t/warm", "")])).await.unwrap();
    cluster.members[2].signal(Signal::SIGSTOP);
    for i in 0..6 {
        let key = format!("/t/{i}");
        // Other stores begin elsewhere.
        let outcome = cluster.store().txn(&[Compare::absent(key.as_str())], &[Write::put(key, "")]).await;
        assert!(outcome.unwrap().applied());
    }
    cluster.members[2].signal(Signal::SIGCONT);

    let refused = free_ports(1)[0];
    let endpoints = vec![format!("127.0.0.1:{refused}"), cluster.members[0].endpoint()];
    for _ in 0..8 {
        let store = Store::connect(Options { endpoints: endpoints.clone(), ..Options::default() }).unwrap();
        let outcome = store.txn(&[Compare::absent("/t/0")], &[]).await.unwrap();
        assert!(matches!(outcome, TxnOutcome::Conflict { unsure: false, .. }), "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_ends_in_an_unsure_conflict_that_shows_our_own_write() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::start(cluster.members[0].endpoint()).await;
    let options = Options { endpoints: vec![proxy.endpoint.clone()], ..Options::default() };
    let store = Store::connect(options).unwrap();
    store.get("/t/a").await.unwrap();
    // The request gets through; the answer does not.
    proxy.set(Wire::Deaf);
    let writing = {
        let store = store.clone();
        tokio::spawn(
            async move { store.txn(&[Compare::absent("/t/a")], &[Write::put("/t/a", "mine")]).await },
        )
    };
    while cluster.etcdctl(&["get", "--print-value-only", "/t/a"]) != "mine" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    proxy.set(Wire::Cut);
    tokio::time::sleep(Duration::from_millis(100)).await;
    proxy.set(Wire::Good);
    let outcome = soon("the second try", writing).await.unwrap().unwrap();
    let TxnOutcome::Conflict { current, unsure: true, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(current[0].value, b"mine");
}

#[tokio::test]
async fn etcd_that_is_down_is_named_and_used_when_it_comes_up() {
    let mut cluster = Cluster::down();
    let store = Store::connect(Options { timeout: Duration::from_millis(700), ..cluster.options() }).unwrap();
    let started = Instant::now();
    let error = store.get("/t/a").await.unwrap_err();
    assert!(started.elapsed() < Duration::from_millis(1200), "{:?}", started.elapsed());
    let text = error.to_string();
    assert!(matches!(error, Error::Unavailable { .. }));
    assert!(text.contains(&cluster.members[0].endpoint()) && text.contains("refused"), "{text}");

    cluster.members[0].run();
    within(Duration::from_secs(20), "etcd in use", async {
        while store.txn(&[], &[Write::put("/t/a", "1")]).await.is_err() {}
    })
    .await;
    assert_eq!(cluster.etcdctl(&["get", "--print-value-only", "/t/a"]), "1");
}
