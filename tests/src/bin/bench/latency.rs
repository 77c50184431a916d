//! How long ADD and DEL take, one at a time and many at a time.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tenon_tests::{
    BedError, Cluster, Outcome, cni::Attachment, command::until, netns::Netns, node::Node, pod::container_id,
    threads::joined,
};

use crate::{
    figures::{Goal, Samples, judge, median, topic},
    way::{Verb, Way},
};

/// Pods that one way attaches before it is the next one's turn.
pub(crate) const BLOCK: usize = 12;
/// Every round takes all ways through a block of ADDs, then through one of DELs.
const ROUNDS: usize = 20;
/// Pods of a batch when pods per second are measured.
pub(crate) const BATCH: usize = 64;
pub(crate) const BATCH_ROUNDS: usize = 5;
/// ADDs under way at a time in the faster of the two.
pub(crate) const AT_A_TIME: usize = 16;
/// What a kernel takes to be done with links that have vanished, so that one way's work does not fall into the
/// next one's time.
pub(crate) const SETTLING: Duration = Duration::from_millis(50);

/// A way with its name and what was measured of it.
#[derive(Debug)]
pub(crate) struct Lane {
    name: &'static str,
    way: Way,
    add: Samples,
    del: Samples,
}

impl Lane {
    pub(crate) fn new(name: &'static str, way: Way) -> Self {
        Self { name, way, add: Samples::default(), del: Samples::default() }
    }
}

/// Namespaces for pods. They are made beforehand and used again and again.
#[derive(Debug)]
pub(crate) struct Sandboxes(Vec<Netns>);

impl Sandboxes {
    pub(crate) fn create(cluster: &Cluster) -> Result<Self, BedError> {
        let made: Result<_, _> =
            (0..BATCH).map(|n| Netns::create(&cluster.ground, &format!("sandbox{n}"))).collect();
        made.map(Self)
    }

    /// New pods in the namespaces, at most `count`.
    pub(crate) fn pods(&self, tenant: &str, count: usize) -> Vec<Attachment> {
        let pod = |netns: &Netns| Attachment {
            container: container_id(),
            netns: Some(netns.path()),
            interface: "eth0".into(),
            tenant: Some(tenant.to_owned()),
            pod: netns.name().to_owned(),
        };
        self.0.iter().take(count).map(pod).collect()
    }

    /// Waits until none of the first `count` pods' interfaces is left and the kernel has done with them.
    pub(crate) fn settle(&self, count: usize) -> Outcome {
        for netns in self.0.iter().take(count) {
            until("the end of the pods' interfaces", Duration::from_secs(10), || {
                match netns.ip(&["-o", "link"]).map_err(|e| e.to_string())? {
                    links if links.contains("eth0") => Err(links),
                    _ => Ok(()),
                }
            })?;
        }
        thread::sleep(SETTLING);
        Ok(())
    }
}

/// Nodes' switches as they are when nothing goes on.
pub(crate) struct Rest<'a>(Vec<(&'a Node, usize)>);

impl<'a> Rest<'a> {
    /// Remembers how they are now.
    pub(crate) fn of(nodes: &[&'a Node]) -> Result<Self, BedError> {
        nodes.iter().map(|node| Ok((*node, node.ovs().open_files()?))).collect::<Result<_, _>>().map(Self)
    }

    /// Waits until they are so again. DELs leave Open vSwitch sockets to close, each of which stops it for some 10 ms:
    /// that is not to fall into the time of the next ADDs.
    fn wait(&self) -> Outcome {
        for (node, files) in &self.0 {
            until("Open vSwitch at rest", Duration::from_secs(20), || match node.ovs().open_files() {
                Ok(open) if open <= *files => Ok(()),
                Ok(open) => Err(format!("{open} files are open, not {files}")),
                Err(error) => Err(error.to_string()),
            })?;
        }
        Ok(())
    }
}

/// One call for each pod, so many at a time; the time of each and that of all.
pub(crate) fn calls(
    way: &Way,
    verb: Verb,
    pods: &[Attachment],
    at_a_time: usize,
) -> Result<(Vec<Duration>, Duration), BedError> {
    let next = AtomicUsize::new(0);
    let taken = Mutex::new(Vec::new());
    let begin = Instant::now();
    let worker = || {
        while let Some(pod) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
            let time = way.tool(verb, pod).timed()?;
            taken.lock().unwrap_or_else(PoisonError::into_inner).push(time);
        }
        Ok(())
    };
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let threads: Vec<_> = (0..at_a_time).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().map(joined).collect()
    });
    let whole = begin.elapsed();
    outcomes.into_iter().collect::<Outcome>()?;
    Ok((taken.into_inner().unwrap_or_else(PoisonError::into_inner), whole))
}

/// The lanes of the first topic.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// A node that has no other pods.
    pub(crate) tenon: Lane,
    /// A node that has many.
    pub(crate) tenon_full: Lane,
    pub(crate) bridge: Lane,
    pub(crate) ancestor: Lane,
}

impl Lanes {
    /// ADDs and DELs one at a time. The lanes take turns, so that whatever else the machine does hits all alike;
    /// which one begins changes from round to round.
    pub(crate) fn one_at_a_time(&mut self, sandboxes: &Sandboxes, tenant: &str, switches: &Rest) -> Outcome {
        let mut turns = [&mut self.tenon, &mut self.tenon_full, &mut self.bridge, &mut self.ancestor];
        for _ in 0..ROUNDS {
            for lane in &mut turns {
                let pods = sandboxes.pods(tenant, BLOCK);
                lane.add.extend(calls(&lane.way, Verb::Add, &pods, 1)?.0);
                thread::sleep(SETTLING);
                lane.del.extend(calls(&lane.way, Verb::Del, &pods, 1)?.0);
                sandboxes.settle(BLOCK)?;
                switches.wait()?;
            }
            turns.rotate_left(1);
        }
        self.print();
        Ok(())
    }

    fn print(&self) {
        topic(&format!(
            "ADD and DEL from exec to exit, one at a time, {} of each, in milliseconds",
            self.tenon.add.count()
        ));
        println!(
            "  {:<26} {:>8} {:>8} {:>8}   {:>8} {:>8} {:>8}",
            "", "ADD p50", "p99", "p99/p50", "DEL p50", "p99", "p99/p50"
        );
        for lane in [&self.tenon, &self.tenon_full, &self.bridge, &self.ancestor] {
            print!("  {:<26}", lane.name);
            for samples in [&lane.add, &lane.del] {
                let (p50, p99) = (samples.p50(), samples.p99());
                print!(" {p50:>8.2} {p99:>8.2} {:>8.2}  ", p99 / p50);
            }
            println!();
        }
        let (tenon, full, bridge, ancestor) = (&self.tenon, &self.tenon_full, &self.bridge, &self.ancestor);
        let ratio = |a: &Samples, b: &Samples| a.p50() / b.p50();
        judge("ADD p50, tenon : bridge + host-local", ratio(&tenon.add, &bridge.add), "", Goal::AtMost(0.4));
        judge(
            "ADD p50, tenon : the ancestor's script",
            ratio(&tenon.add, &ancestor.add),
            "",
            Goal::AtMost(0.05),
        );
        judge("ADD p99 : p50, tenon", tenon.add.p99() / tenon.add.p50(), "", Goal::AtMost(3.0));
        judge(
            "ADD p50, tenon with 250 pods : without",
            ratio(&full.add, &tenon.add),
            "",
            Goal::Between(0.9, 1.1),
        );
        judge("DEL p50, tenon : bridge + host-local", ratio(&tenon.del, &bridge.del), "", Goal::AtMost(0.15));
        judge(
            "DEL p50, tenon : the ancestor's script",
            ratio(&tenon.del, &ancestor.del),
            "",
            Goal::AtMost(0.05),
        );
        judge("DEL p99 : p50, tenon", tenon.del.p99() / tenon.del.p50(), "", Goal::AtMost(3.0));
        judge(
            "DEL p50, tenon with 250 pods : without",
            ratio(&full.del, &tenon.del),
            "",
            Goal::Between(0.9, 1.1),
        );
    }

    /// ADDs of many pods, one at a time and [`AT_A_TIME`], in turns.
    pub(crate) fn many_at_a_time(&self, sandboxes: &Sandboxes, tenant: &str, switches: &Rest) -> Outcome {
        topic(&format!("ADD of {BATCH} pods, pods per second, medians of {BATCH_ROUNDS} batches"));
        println!("  {:<26} {:>14} {:>14} {:>8}", "", "one at a time", "16 at a time", "ratio");
        let mut rates = [const { Vec::new() }; 4];
        for _ in 0..BATCH_ROUNDS {
            let mut figures = rates.iter_mut();
            for lane in [&self.tenon, &self.bridge] {
                for (at_a_time, rates) in [1, AT_A_TIME].into_iter().zip(&mut figures) {
                    let pods = sandboxes.pods(tenant, BATCH);
                    let (_, whole) = calls(&lane.way, Verb::Add, &pods, at_a_time)?;
                    rates.push(pods.len() as f64 / whole.as_secs_f64());
                    thread::sleep(SETTLING);
                    calls(&lane.way, Verb::Del, &pods, AT_A_TIME)?;
                    sandboxes.settle(BATCH)?;
                    switches.wait()?;
                }
            }
        }
        let [tenon_one, tenon_many, bridge_one, bridge_many] = rates.map(|rates| median(&rates));
        for (name, one, many) in
            [(self.tenon.name, tenon_one, tenon_many), (self.bridge.name, bridge_one, bridge_many)]
        {
            println!("  {name:<26} {one:>14.0} {many:>14.0} {:>8.2}", many / one);
        }
        judge("pods per second, tenon, 16 at a time : one", tenon_many / tenon_one, "", Goal::AtLeast(1.5));
        Ok(())
    }
}
