//! Several nodes with views that lag behind, in any order of steps, with any of them killed at any step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;
use tenon_ipam::{
    Attachment, Choice, Lease, LeaseBook, LeaseChange, LeaseWrite, Refusal, Request, Segment, mac_of_lease,
};

use crate::store::Store;
use crate::{container, pod, segment};

/// What happens next. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Step {
    /// A container of a pod (or of none) begins to attach on a node: it is chosen for.
    Begin { node: usize, pod: Option<u8> },
    /// A choice is carried out.
    Commit { node: usize, which: usize },
    /// A container whose addresses are written is ready to run.
    Finish { node: usize, which: usize },
    /// A container whose addresses are written cannot run.
    Fail { node: usize, which: usize },
    /// A choice is carried out, but the node dies before it knows.
    CommitAndDie { node: usize, which: usize },
    /// The node's agent dies; its containers go on.
    Die { node: usize },
    /// The watch brings some of what was written.
    Watch { node: usize, changes: usize },
    /// A container ends and is deleted.
    Delete { node: usize, which: usize },
    /// A container ends and nobody says so.
    Vanish { node: usize, which: usize },
    /// The node gives back what belongs to containers that are gone.
    Reclaim { node: usize },
    /// The node deletes keys whose time is over.
    Sweep { node: usize },
    /// Time passes.
    Wait { seconds: u64 },
}

const NODES: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    prop_oneof![
        6 => (node(), prop::option::weighted(0.8, 0_u8..4)).prop_map(|(node, pod)| Step::Begin { node, pod }),
        6 => (node(), 0_usize..9).prop_map(|(node, which)| Step::Commit { node, which }),
        4 => (node(), 0_usize..9).prop_map(|(node, which)| Step::Finish { node, which }),
        1 => (node(), 0_usize..9).prop_map(|(node, which)| Step::Fail { node, which }),
        1 => (node(), 0_usize..9).prop_map(|(node, which)| Step::CommitAndDie { node, which }),
        1 => node().prop_map(|node| Step::Die { node }),
        4 => (node(), 1_usize..9).prop_map(|(node, changes)| Step::Watch { node, changes }),
        3 => (node(), 0_usize..9).prop_map(|(node, which)| Step::Delete { node, which }),
        1 => (node(), 0_usize..9).prop_map(|(node, which)| Step::Vanish { node, which }),
        2 => node().prop_map(|node| Step::Reclaim { node }),
        1 => node().prop_map(|node| Step::Sweep { node }),
        2 => (1_u64..40).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

struct Node {
    book: LeaseBook,
    seen: usize,
    /// Chosen and not yet carried out.
    choices: Vec<(Request, Choice)>,
    /// What is written and does not run yet, with the addresses it has.
    attaching: BTreeMap<Attachment, Vec<IpAddr>>,
    /// What runs on the node, with the addresses it has.
    live: BTreeMap<Attachment, Vec<IpAddr>>,
}

struct Cluster {
    segment: Segment,
    store: Store,
    nodes: Vec<Node>,
    now: u64,
    containers: usize,
}

impl Cluster {
    fn new(segment: Segment) -> Cluster {
        let node = |number: usize| Node {
            book: LeaseBook::new(segment.clone(), &format!("node{number}")),
            seen: 0,
            choices: Vec::new(),
            attaching: BTreeMap::new(),
            live: BTreeMap::new(),
        };
        let nodes = (0..NODES).map(node).collect();
        Cluster { segment, store: Store::default(), nodes, now: 1000, containers: 0 }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Begin { node, pod: name } => {
                self.containers += 1;
                let container_id = format!("c{}", self.containers);
                let request = match name {
                    Some(name) => pod(&format!("m{name}"), &container_id),
                    None => container(&container_id),
                };
                self.choose(*node, request);
            }
            Step::Commit { node, which } => {
                if let Some((request, choice)) = self.pick(*node, *which) {
                    let applied = self.grant(&choice);
                    let Node { book, attaching, .. } = &mut self.nodes[*node];
                    self.store.answer(book, &choice.writes, applied);
                    if applied {
                        let ips = choice.leases.iter().map(|lease| lease.ip).collect();
                        attaching.insert(request.attachment, ips);
                    } else {
                        self.choose(*node, request);
                    }
                }
            }
            Step::Finish { node, which } => {
                let Node { attaching, live, .. } = &mut self.nodes[*node];
                live.extend(pick(attaching, *which));
            }
            Step::Fail { node, which } => {
                if let Some((attachment, _)) = pick(&mut self.nodes[*node].attaching, *which) {
                    self.delete(*node, &attachment);
                }
            }
            Step::CommitAndDie { node, which } => {
                if let Some((_, choice)) = self.pick(*node, *which) {
                    self.grant(&choice);
                    self.restart(*node);
                }
            }
            Step::Die { node } => self.restart(*node),
            Step::Watch { node, changes } => self.watch(*node, *changes),
            Step::Delete { node, which } => {
                if let Some((attachment, _)) = pick(&mut self.nodes[*node].live, *which) {
                    self.delete(*node, &attachment);
                }
            }
            Step::Vanish { node, which } => _ = pick(&mut self.nodes[*node].live, *which),
            Step::Reclaim { node } => self.reclaim(*node),
            Step::Sweep { node } => self.sweep(*node),
            Step::Wait { seconds } => self.now += seconds,
        }
        self.check();
    }

    fn choose(&mut self, node: usize, request: Request) {
        let Node { book, choices, .. } = &mut self.nodes[node];
        let view = book.clone();
        match book.choose(&request, self.now) {
            Ok(choice) => {
                for lease in &choice.leases {
                    judge(&view, &request, lease.ip, self.now);
                }
                choices.push((request, choice));
            }
            Err(Refusal::Exhausted { family, .. }) => {
                let subnet = view.segment().subnets.iter().find(|subnet| subnet.family() == family).unwrap();
                let free = addresses(&self.segment)
                    .filter(|ip| subnet.subnet.contains(ip) && !blocked(&view, *ip))
                    .find(|ip| open_to(&view, &request, *ip, self.now) != Open::No);
                assert_eq!(free, None, "refused although it was to be had");
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn pick(&mut self, node: usize, which: usize) -> Option<(Request, Choice)> {
        let choices = &mut self.nodes[node].choices;
        (!choices.is_empty()).then(|| choices.remove(which % choices.len()))
    }

    /// Carries out a choice, and judges it by what the store had.
    fn grant(&mut self, choice: &Choice) -> bool {
        if !self.store.holds(&choice.writes) {
            return self.store.transact(&choice.writes);
        }
        for lease in &choice.leases {
            let Some((before, _)) = self.store.leases.get(&lease.ip) else { continue };
            let released = before.released.expect("no lease is overwritten before it is released");
            let quarantined = released + u64::from(self.segment.quarantine_seconds) > self.now;
            assert!(!quarantined || before.pod == lease.pod, "{} was in quarantine", lease.ip);
        }
        self.store.transact(&choice.writes)
    }

    fn watch(&mut self, node: usize, changes: usize) {
        let Node { book, seen, .. } = &mut self.nodes[node];
        *seen = self.store.show(book, *seen, *seen + changes);
    }

    /// A new agent reads everything anew; what was chosen and not carried out is forgotten.
    fn restart(&mut self, node: usize) {
        let Node { book, seen, choices, attaching, .. } = &mut self.nodes[node];
        choices.clear();
        attaching.clear();
        *book = LeaseBook::new(self.segment.clone(), &format!("node{node}"));
        *seen = self.store.log.len();
        for (ip, (lease, revision)) in &self.store.leases {
            book.put(&ip.to_string(), &lease.to_json(), *revision).unwrap();
        }
    }

    /// Tries until there is nothing left to release.
    fn delete(&mut self, node: usize, attachment: &Attachment) {
        for _ in 0..3 {
            let writes = self.nodes[node].book.release(attachment, self.now);
            self.write(node, &writes);
            self.watch(node, usize::MAX / 2);
        }
        assert_eq!(self.nodes[node].book.held_by(attachment).count(), 0);
    }

    fn reclaim(&mut self, node: usize) {
        let Node { book, choices, attaching, live, .. } = &self.nodes[node];
        let live: BTreeSet<Attachment> = live.keys().cloned().collect();
        let chosen = choices.iter().map(|(request, _)| request.attachment.clone());
        let pending = chosen.chain(attaching.keys().cloned()).collect();
        for writes in book.stale(&format!("node{node}"), &live, &pending, self.now) {
            self.write(node, &writes);
        }
    }

    fn write(&mut self, node: usize, writes: &[LeaseWrite]) {
        for write in writes.iter().filter(|write| write.change == LeaseChange::Delete) {
            let Some((lease, revision)) = self.store.leases.get(&write.ip) else { continue };
            let (quarantine, sticky) = (self.segment.quarantine_seconds, self.segment.sticky_seconds);
            let seconds = u64::from(if lease.pod.is_some() { quarantine.max(sticky) } else { quarantine });
            let end = lease.released.map_or(if seconds == 0 { 0 } else { u64::MAX }, |at| at + seconds);
            assert!(
                write.expected != Some(*revision) || end <= self.now,
                "{} was deleted before its time",
                write.ip
            );
        }
        let applied = self.store.transact(writes);
        self.store.answer(&mut self.nodes[node].book, writes, applied);
    }

    fn sweep(&mut self, node: usize) {
        for write in self.nodes[node].book.ended(self.now) {
            self.write(node, &[write]);
        }
    }

    /// Every container that runs or is about to has the lease of its addresses, and so nobody else does.
    fn check(&self) {
        let mut taken = BTreeMap::new();
        for node in &self.nodes {
            for (attachment, ips) in node.live.iter().chain(&node.attaching) {
                assert_eq!(ips.len(), self.segment.subnets.len());
                for ip in ips {
                    assert_eq!(taken.insert(*ip, attachment), None, "{ip} has two holders");
                    let (lease, _) = self.store.leases.get(ip).expect("a live container's lease was deleted");
                    assert_eq!((&lease.attachment, lease.released), (attachment, None));
                }
            }
        }
    }

    /// Everything ends; nothing may be left.
    fn wind_up(mut self) {
        for node in 0..NODES {
            self.nodes[node].live.clear();
            self.nodes[node].attaching.clear();
            self.nodes[node].choices.clear();
            self.watch(node, usize::MAX / 2);
            self.reclaim(node);
        }
        self.now += 1000;
        for node in 0..NODES {
            self.watch(node, usize::MAX / 2);
            self.sweep(node);
        }
        assert!(self.store.leases.is_empty(), "{:?} leaked", self.store.leases);
        // And every node can give out all of it.
        for node in 0..NODES {
            self.watch(node, usize::MAX / 2);
            let book = &mut self.nodes[node].book;
            let mut alone = Store::default();
            let smallest = self.segment.subnets.iter().map(|subnet| subnet.pool.count()).min().unwrap();
            for n in 0..smallest {
                let choice = book.choose(&container(&format!("last {n}")), self.now).unwrap();
                assert!(alone.transact(&choice.writes));
                book.applied(&choice.writes, self.store.revision + 1);
            }
            assert!(book.choose(&container("one more"), self.now).is_err());
        }
    }
}

fn pick(
    attachments: &mut BTreeMap<Attachment, Vec<IpAddr>>,
    which: usize,
) -> Option<(Attachment, Vec<IpAddr>)> {
    let attachment = attachments.keys().nth(which % attachments.len().max(1)).cloned()?;
    attachments.remove_entry(&attachment)
}

/// How an address can be had, by rules written down anew from what they promise.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Open {
    /// It was this pod's or container's.
    Own,
    /// Nobody has a claim.
    Free,
    /// It is kept for another pod, since this time.
    Kept(u64),
    No,
}

fn open_to(view: &LeaseBook, request: &Request, ip: IpAddr, now: u64) -> Open {
    let segment = view.segment();
    let Some(lease) = view.lease(ip) else { return Open::Free };
    let Some(released) = lease.released else {
        return if lease.attachment == request.attachment { Open::Own } else { Open::No };
    };
    let sticky = segment.sticky_seconds > 0 && lease.pod.is_some();
    if lease.attachment == request.attachment || (sticky && lease.pod == request.pod) {
        Open::Own
    } else if now < released + u64::from(segment.quarantine_seconds) {
        Open::No
    } else if sticky && now < released + u64::from(segment.sticky_seconds) {
        Open::Kept(released)
    } else {
        Open::Free
    }
}

/// Whether the view has a lease of another address with the MAC of this one: a conflict has shown one address of a pod of
/// which the other is yet to be seen.
fn blocked(view: &LeaseBook, ip: IpAddr) -> bool {
    let mac = Some(mac_of_lease("s", ip));
    view.leases().any(|lease| lease.ip != ip && lease.mac == mac)
}

fn addresses(segment: &Segment) -> impl Iterator<Item = IpAddr> {
    let all = segment.subnets.iter().flat_map(|subnet| {
        subnet.subnet.hosts().filter(|ip| subnet.pool.contains(*ip)).collect::<Vec<IpAddr>>()
    });
    all.collect::<Vec<IpAddr>>().into_iter()
}

/// Whether no better address was to be had than the chosen one.
fn judge(view: &LeaseBook, request: &Request, chosen: IpAddr, now: u64) {
    let segment = view.segment();
    let rivals = addresses(segment).filter(|ip| ip.is_ipv4() == chosen.is_ipv4() && !blocked(view, *ip));
    let best = rivals.map(|ip| open_to(view, request, ip, now)).min().unwrap_or(Open::No);
    let open = open_to(view, request, chosen, now);
    assert_ne!(open, Open::No, "{chosen} was not to be had");
    assert!(open <= best, "{chosen} was not the best to be had");
}

fn run(segment: Segment, steps: &[Step]) {
    let mut cluster = Cluster::new(segment);
    for step in steps {
        cluster.take(step);
    }
    cluster.wind_up();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn no_address_has_two_holders_and_none_leaks(
        steps in vec(step(), 1..150),
        quarantine in prop_oneof![Just(0_u32), Just(30)],
        sticky in prop_oneof![Just(0_u32), Just(20), Just(90)],
        subnet in prop_oneof![
            Just("10.0.0.0/29"),
            Just("10.0.0.0/27"),
            Just("fd00::/125"),
            Just("10.0.0.0/29,fd00::/124"),
        ],
    ) {
        let more = json!({"QuarantineSeconds": quarantine, "StickySeconds": sticky});
        run(segment(subnet, more), &steps);
    }
}

/// The node dies at each step of its first attachment; the second pod's is not disturbed.
#[test]
fn whatever_step_a_node_dies_at_the_next_agent_gives_back_what_it_held() {
    let begin = || Step::Begin { node: 0, pod: Some(1) };
    let commit = || Step::Commit { node: 0, which: 0 };
    let finish = || Step::Finish { node: 0, which: 0 };
    let die = || Step::Die { node: 0 };
    for steps in [
        vec![begin(), die()],
        vec![begin(), Step::CommitAndDie { node: 0, which: 0 }],
        vec![begin(), commit(), die()],
        vec![begin(), commit(), finish(), die()],
        vec![begin(), commit(), Step::Fail { node: 0, which: 0 }, die()],
        vec![begin(), commit(), finish(), Step::Vanish { node: 0, which: 1 }, die()],
        vec![begin(), commit(), finish(), Step::Delete { node: 0, which: 1 }, die()],
    ] {
        let mut cluster = Cluster::new(segment("10.0.0.8/31", json!({})));
        cluster.take(&Step::Begin { node: 0, pod: Some(0) });
        cluster.take(&commit());
        cluster.take(&finish());
        for step in &steps {
            cluster.take(step);
        }
        cluster.take(&Step::Reclaim { node: 0 });
        let live = cluster.nodes[0].live.len();
        let held = cluster.store.leases.values().filter(|(lease, _)| lease.released.is_none());
        let held: Vec<&Lease> = held.map(|(lease, _)| lease).collect();
        assert_eq!(held.len(), live, "{steps:?}: {held:?}");
        cluster.wind_up();
    }
}
