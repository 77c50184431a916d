//! The store is late, away, compacted or half dead.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tenon_tests::{Outcome, Plan, datapath::patience, etcd::Etcd, matrix::Matrix, pod::Pod, probe, run};

/// No runtime waits longer for an ADD.
const BOUND: Duration = Duration::from_secs(35);

/// openshift/sdn#134, #490: the first pods come before their tenant. Where nobody else adds tenants, its record
/// appears by itself; while there is no VNI to be had, the runtime is told to try again.
#[test]
fn add_before_its_tenant_waits_or_says_try_again() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let mut first = cluster.node(1).sandbox("early", "early1")?;
        let mut second = cluster.node(2).sandbox("early", "early2")?;
        thread::scope(|scope| {
            let adding = [scope.spawn(|| first.add()), scope.spawn(|| second.add())];
            adding.into_iter().try_for_each(|thread| thread.join().expect("a thread that adds"))
        })?;
        Matrix::require(&[first.place()?, second.place()?], |_, _| true)?;
        assert!(cluster.etcd.vni("early")? >= 10);

        cluster.etcd.kill_member(0)?;
        let mut late = cluster.node(1).sandbox("late", "late1")?;
        let start = Instant::now();
        let reply = late.cni.call("ADD", Some(&late.attachment))?;
        assert!(start.elapsed() < patience(BOUND), "{:?}", start.elapsed());
        assert_eq!(reply.code(), Some(11), "{}", reply.text);
        assert!(reply.message().contains("late") || reply.message().contains("etcd"), "{}", reply.text);
        late.del()?;
        cluster.etcd.start_member(0)?;
        for node in &cluster.nodes {
            node.wait_ready()?;
        }
        late.add()?;
        let peer = cluster.node(2).pod("late", "late2")?;
        let places = [late.place()?, peer.place()?, first.place()?];
        Matrix::require(&places, |from, to| from[..4] == to[..4])?;
        Ok(())
    })
}

/// A watch that lags: the other node's agent stands still while a tenant moves, and catches up after.
#[test]
fn lagging_node_catches_up() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        cluster.add_tenants(&["a", "b"])?;
        let pods = [cluster.node(1).pod("a", "a1")?, cluster.node(2).pod("b", "b1")?];
        let places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
        Matrix::require(&places, |_, _| false)?;
        for lagging in &cluster.nodes {
            lagging.signal_agent(Signal::SIGSTOP)?;
            let action = cluster.etcd.action_record("b", "join", "a")?;
            cluster.etcd.put(&Etcd::tenant_key("b"), &action)?;
            thread::sleep(Duration::from_secs(1));
            lagging.signal_agent(Signal::SIGCONT)?;
            cluster.etcd.settled("b")?;
            Matrix::require(&places, |_, _| true)?;
            cluster.etcd.act("b", "isolate", "")?;
            Matrix::require(&places, |_, _| false)?;
        }
        Ok(())
    })
}

/// With etcd away: traffic goes on, an ADD is answered in bounded time, DEL succeeds, and all is well when it returns.
#[test]
fn etcd_away_is_survived() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        cluster.add_tenants(&["a", "b"])?;
        let pods = [
            cluster.node(1).pod("a", "a1")?,
            cluster.node(2).pod("a", "a2")?,
            cluster.node(2).pod("b", "b1")?,
        ];
        let leaver = cluster.node(1).pod("a", "leaver")?;
        let places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
        let rule = |from: &str, to: &str| from[..1] == to[..1];
        Matrix::require(&places, rule)?;

        cluster.etcd.kill_member(0)?;
        Matrix::require(&places, rule)?;
        leaver.del()?;
        let mut comer = cluster.node(1).sandbox("a", "comer")?;
        let start = Instant::now();
        let reply = comer.cni.call("ADD", Some(&comer.attachment))?;
        assert!(start.elapsed() < patience(BOUND), "{:?}", start.elapsed());
        assert!(reply.success || reply.code() == Some(11), "{}", reply.text);
        comer.del()?;

        cluster.etcd.start_member(0)?;
        for node in &cluster.nodes {
            node.wait_ready()?;
        }
        comer.add()?;
        assert!(probe::ping(&comer.netns().path(), pods[1].address()?)?);
        cluster.etcd.act("b", "join", "a")?;
        Matrix::require(&places, |_, _| true)?;
        Ok(())
    })
}

/// flannel#2470: history that a watch still needs is compacted away while its agent does not read.
#[test]
fn compaction_under_a_watch_is_survived() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        cluster.add_tenants(&["a", "b"])?;
        let pods = [cluster.node(1).pod("a", "a1")?, cluster.node(2).pod("b", "b1")?];
        let places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
        Matrix::require(&places, |_, _| false)?;

        // The agents are cut off, so that their watches have to start again, below what is compacted meanwhile.
        for node in &cluster.nodes {
            cluster.underlay.set_port(node.name(), false)?;
        }
        let action = cluster.etcd.action_record("b", "join", "a")?;
        for _ in 0..20 {
            cluster.etcd.put("/unrelated", "x")?;
        }
        cluster.etcd.put(&Etcd::tenant_key("b"), &action)?;
        cluster.etcd.compact()?;
        cluster.etcd.kill_member(0)?;
        cluster.etcd.start_member(0)?;
        for node in &cluster.nodes {
            cluster.underlay.set_port(node.name(), true)?;
        }
        Matrix::require(&places, |_, _| true)?;
        let lines: Vec<usize> = cluster.nodes.iter().map(|node| node.log().lines().count()).collect();
        thread::sleep(Duration::from_secs(2));
        let after: Vec<usize> = cluster.nodes.iter().map(|node| node.log().lines().count()).collect();
        for (before, after) in lines.iter().zip(&after) {
            assert!(after - before < 20, "{} lines of log in two idle seconds", after - before);
        }
        Ok(())
    })
}

/// One member of three dies, whichever: actions and ADDs go on.
#[test]
fn any_etcd_member_may_die() -> Outcome {
    run(&Plan { etcd: 3, ..Plan::nodes(2) }, |cluster| {
        cluster.add_tenants(&["a", "b"])?;
        let pods = [cluster.node(1).pod("a", "a1")?, cluster.node(2).pod("b", "b1")?];
        let places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
        for member in 0..3 {
            cluster.etcd.kill_member(member)?;
            cluster.etcd.act("b", "join", "a")?;
            Matrix::require(&places, |_, _| true)?;
            let more = cluster.node(1).pod("b", &format!("more{member}"))?;
            assert!(probe::ping(&more.netns().path(), pods[0].address()?)?);
            cluster.etcd.act("b", "isolate", "")?;
            Matrix::require(&places, |_, _| false)?;
            cluster.etcd.start_member(member)?;
        }
        Ok(())
    })
}
