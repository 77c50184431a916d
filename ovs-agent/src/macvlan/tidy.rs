//! The controller's part: leases whose time is over, and those of nodes that are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tenon_ipam::LeaseWrite;
use tenon_store::Compare;
use tracing::{info, warn};

use super::leases::now;
use super::segments::Segments;
use crate::node::Node;

/// For how long a node has to be without a living agent until its leases are given back. An agent that is only being
/// replaced leaves its pods running, so this is as long as Kubernetes waits before it moves the pods of a node that is
/// lost (`tolerationSeconds` of `node.kubernetes.io/unreachable`, 300 s).
pub(crate) const GONE_NODE_GRACE: Duration = Duration::from_secs(300);
const INTERVAL: Duration = Duration::from_secs(10);
/// Deletions of one round; there is no hurry.
const ENDED_AT_ONCE: usize = 200;

/// Works until it is dropped; `fence` is the condition that this agent is the controller.
pub(crate) async fn run(node: &Node, fence: &Compare) {
    go_rounds(node, fence, INTERVAL, GONE_NODE_GRACE).await;
}

/// Makes a round after every `interval`. How long nodes have been gone is counted from the first round.
pub(super) async fn go_rounds(node: &Node, fence: &Compare, interval: Duration, grace: Duration) {
    let mut absences = Absences::new(grace);
    loop {
        tokio::time::sleep(interval).await;
        let writes = decide(&mut node.macvlan.segments(), &mut absences, Instant::now(), now());
        for (segment, writes) in writes {
            if let Err(error) = node.macvlan.write_as_controller(node, &segment, &writes, fence).await {
                warn!(%error, segment, "cannot tidy leases up; going on later");
                break;
            }
        }
    }
}

/// What to write, with the segment's name, each in a transaction of its own; `time` is `at` in Unix seconds.
fn decide(
    segments: &mut Segments,
    absences: &mut Absences,
    at: Instant,
    time: u64,
) -> Vec<(String, Vec<LeaseWrite>)> {
    let mut absent = segments.other_nodes();
    absent.retain(|name| !segments.is_alive(name));
    let given_up = absences.note(absent, at);
    let mut writes = Vec::new();
    for book in segments.books() {
        let segment = book.segment().name.clone();
        let ended = book.ended(time).into_iter().take(ENDED_AT_ONCE);
        writes.extend(ended.map(|write| (segment.clone(), vec![write])));
        for name in &given_up {
            let stale = book.stale(name, &BTreeSet::new(), &BTreeSet::new(), time);
            if !stale.is_empty() {
                info!(
                    node = name,
                    segment,
                    attachments = stale.len(),
                    "the node is gone; giving its leases back"
                );
            }
            writes.extend(stale.into_iter().map(|writes| (segment.clone(), writes)));
        }
    }
    writes
}

/// Since when nodes have been without a living agent.
struct Absences {
    grace: Duration,
    since: BTreeMap<String, Instant>,
}

impl Absences {
    fn new(grace: Duration) -> Self {
        Self { grace, since: BTreeMap::new() }
    }

    /// Takes note of which nodes are absent at this moment, and returns those that have been for all of the grace time.
    fn note(&mut self, absent: BTreeSet<String>, at: Instant) -> Vec<String> {
        self.since.retain(|name, _| absent.contains(name));
        for name in absent {
            self.since.entry(name).or_insert(at);
        }
        let past = |since: &Instant| at.saturating_duration_since(*since) >= self.grace;
        self.since.iter().filter(|(_, since)| past(since)).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tenon_ipam::LeaseChange;
    use tenon_store::{Change, KeyValue, Keys};

    use super::*;

    const NETWORK: &str = "k8ssdn";
    /// Unix seconds of the first round.
    const BEGIN: u64 = 1_800_000_000;

    /// The view of the controller on node1, and its clock.
    struct Controller {
        keys: Keys,
        segments: Segments,
        absences: Absences,
        begin: Instant,
        revision: i64,
    }

    impl Controller {
        /// One segment; node1, node2 and node3 are alive and have a lease each, in this order from 10.100.0.11.
        fn new(segment: serde_json::Value) -> Self {
            let keys = Keys::new("/p");
            let mut segments = Segments::new("node1");
            segments.replace(&keys, NETWORK, keys.network(NETWORK).unwrap(), &[], 1);
            let absences = Absences::new(GONE_NODE_GRACE);
            let mut controller = Self { keys, segments, absences, begin: Instant::now(), revision: 1 };
            controller.put("segments/lan", segment);
            for number in 1..=3 {
                controller.agent(number, true);
                controller.lease(number, 10 + number, &format!("c{number}"));
            }
            controller
        }

        fn change(&mut self, key: &str, value: Option<serde_json::Value>) -> i64 {
            self.revision += 1;
            let (key, revision) = (format!("/p/{NETWORK}/{key}"), self.revision);
            let change = match value {
                Some(value) => Change::Put(KeyValue {
                    key,
                    value: value.to_string().into(),
                    create_revision: revision,
                    mod_revision: revision,
                    lease: 0,
                }),
                None => Change::Deleted { key, revision },
            };
            self.segments.take(&self.keys, NETWORK, &change);
            revision
        }

        fn put(&mut self, key: &str, value: serde_json::Value) -> i64 {
            self.change(key, Some(value))
        }

        fn agent(&mut self, number: u8, alive: bool) {
            let value = alive.then(|| json!({"Host": format!("node{number}")}));
            self.change(&format!("agents/10.0.0.{number}"), value);
        }

        fn lease(&mut self, node: u8, last_byte: u8, container: &str) -> i64 {
            let ip = format!("10.100.0.{last_byte}");
            let lease = json!({
                "IP": ip, "MAC": format!("02:00:00:00:00:{last_byte:02x}"), "Node": format!("node{node}"),
                "ContainerID": container, "IfName": "eth0", "PodNamespace": "a", "PodName": container,
                "Netns": "/run/netns/x",
            });
            self.put(&format!("leases/lan/{ip}"), lease)
        }

        /// A round so many seconds after the first.
        fn round(&mut self, seconds: u64) -> Vec<Vec<LeaseWrite>> {
            let at = self.begin + Duration::from_secs(seconds);
            let writes = decide(&mut self.segments, &mut self.absences, at, BEGIN + seconds);
            assert!(writes.iter().all(|(segment, _)| segment == "lan"), "{writes:?}");
            writes.into_iter().map(|(_, writes)| writes).collect()
        }
    }

    fn segment(changes: &[(&str, u32)]) -> serde_json::Value {
        let mut record = json!({"Name": "lan", "Master": "eth0", "Subnet": "10.100.0.0/24"});
        changes.iter().for_each(|(key, value)| record[*key] = json!(value));
        record
    }

    /// The address, the expected revision, and when it is released (`None`: deleted).
    fn released(write: &LeaseWrite) -> (String, Option<i64>, Option<u64>) {
        let time = match &write.change {
            LeaseChange::Put(lease) => Some(lease.released.unwrap()),
            LeaseChange::Delete => None,
            LeaseChange::Keep => panic!("{write:?}"),
        };
        (write.ip.to_string(), write.expected, time)
    }

    #[test]
    fn leases_of_a_node_without_an_agent_are_given_back_after_the_grace_time() {
        let mut controller = Controller::new(segment(&[]));
        let revision = controller.lease(2, 12, "c2");
        assert_eq!(controller.round(0), Vec::<Vec<LeaseWrite>>::new());
        controller.agent(2, false);
        for seconds in [10, 20, 309] {
            assert_eq!(controller.round(seconds), Vec::<Vec<LeaseWrite>>::new(), "{seconds}");
        }
        // The absence was first seen at 10 s.
        let writes = controller.round(310);
        assert_eq!(writes.len(), 1, "{writes:?}");
        assert_eq!(released(&writes[0][0]), ("10.100.0.12".into(), Some(revision), Some(BEGIN + 310)));
        let LeaseChange::Put(lease) = &writes[0][0].change else { panic!("{writes:?}") };
        assert_eq!(lease.extra()["Netns"], "/run/netns/x", "what is not known is kept");
        // As long as it is not written, it is decided again.
        assert_eq!(controller.round(320).len(), 1);
    }

    #[test]
    fn how_leases_are_given_back_is_the_segment_s_to_say() {
        for (fields, kept) in [
            (&[("QuarantineSeconds", 0)][..], false),
            (&[("QuarantineSeconds", 30)], true),
            (&[("QuarantineSeconds", 0), ("StickySeconds", 600)], true),
        ] {
            let mut controller = Controller::new(segment(fields));
            controller.agent(2, false);
            controller.round(0);
            let writes = controller.round(300);
            assert_eq!(writes.len(), 1, "{fields:?}: {writes:?}");
            assert_eq!(released(&writes[0][0]).2, kept.then_some(BEGIN + 300), "{fields:?}");
        }
    }

    #[test]
    fn addresses_of_one_attachment_go_together_and_attachments_apart() {
        let mut controller = Controller::new(segment(&[]));
        controller.lease(2, 22, "c2");
        controller.lease(2, 32, "other");
        controller.agent(2, false);
        controller.round(0);
        let writes = controller.round(300);
        let mut sizes: Vec<usize> = writes.iter().map(Vec::len).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [1, 2], "{writes:?}");
    }

    #[test]
    fn node_that_comes_back_in_time_is_spared_and_counted_anew() {
        let mut controller = Controller::new(segment(&[]));
        controller.agent(2, false);
        controller.round(0);
        controller.round(299);
        controller.agent(2, true);
        assert!(controller.round(301).is_empty());
        controller.agent(2, false);
        assert!(controller.round(310).is_empty());
        assert!(controller.round(609).is_empty());
        assert_eq!(controller.round(610).len(), 1);
    }

    #[test]
    fn new_controller_counts_from_its_first_round() {
        let mut controller = Controller::new(segment(&[]));
        controller.agent(2, false);
        controller.round(0);
        controller.absences = Absences::new(GONE_NODE_GRACE);
        assert!(controller.round(300).is_empty());
        assert_eq!(controller.round(600).len(), 1);
    }

    /// The controller's own agent may just be announcing itself anew.
    #[test]
    fn own_node_is_never_given_up() {
        let mut controller = Controller::new(segment(&[]));
        controller.agent(1, false);
        controller.round(0);
        assert!(controller.round(1_000_000).is_empty());
    }

    #[test]
    fn what_belongs_to_nobody_or_is_released_already_is_left_alone() {
        let mut controller = Controller::new(segment(&[("QuarantineSeconds", 1_000_000)]));
        controller.change("leases/lan/10.100.0.12", None);
        // Taken out of use by a person; released; set aside.
        controller.put("leases/lan/10.100.0.50", json!({"IP": "10.100.0.50", "Node": "node2"}));
        controller.put(
            "leases/lan/10.100.0.51",
            json!({"Node": "node2", "ContainerID": "c", "IfName": "eth0", "Released": BEGIN}),
        );
        controller.put(
            "leases/lan/10.100.0.52",
            json!({"Node": "node2", "Released": BEGIN, "Conflict": "02:00:00:00:00:99"}),
        );
        controller.agent(2, false);
        controller.round(0);
        assert!(controller.round(300).is_empty());
    }

    #[test]
    fn lease_that_was_edited_meanwhile_is_judged_by_what_it_says_now() {
        let mut controller = Controller::new(segment(&[]));
        controller.agent(2, false);
        controller.round(0);
        // Its address has another holder, on a living node.
        controller.lease(3, 12, "new");
        assert!(controller.round(300).is_empty());
        // Given to a pod of the lost node again: the condition is the revision of that.
        let revision = controller.lease(2, 12, "newer");
        assert_eq!(controller.round(310), Vec::<Vec<LeaseWrite>>::new(), "it had no lease in the last round");
        let writes = controller.round(610);
        assert_eq!(released(&writes[0][0]).1, Some(revision));
    }

    #[test]
    fn what_was_released_is_deleted_when_its_time_is_over() {
        let mut controller = Controller::new(segment(&[("QuarantineSeconds", 30)]));
        let lease = json!({"Node": "node3", "ContainerID": "c", "IfName": "eth0", "Released": BEGIN});
        let revision = controller.put("leases/lan/10.100.0.60", lease);
        assert!(controller.round(29).is_empty());
        let writes = controller.round(30);
        assert_eq!(released(&writes[0][0]), ("10.100.0.60".into(), Some(revision), None));
    }
}
