//! How addresses come back.

use std::collections::BTreeSet;

use serde_json::json;
use tenon_ipam::{Attachment, Lease, LeaseBook, LeaseChange, LeaseWrite, Mac, Refusal};

use crate::{Alone, asking, attachment, container, ip, pod, segment};

fn addresses(writes: &[LeaseWrite]) -> Vec<String> {
    writes.iter().map(|write| write.ip.to_string()).collect()
}

fn set(containers: &[&str]) -> BTreeSet<Attachment> {
    containers.iter().map(|container_id| attachment(container_id)).collect()
}

#[test]
fn a_release_is_a_quarantine_a_reservation_or_a_deletion() {
    for (quarantine, sticky, request, deleted) in [
        (30_u32, 0, container("c"), false),
        (0, 600, pod("m", "c"), false),
        // Nobody can come back for it.
        (0, 600, container("c"), true),
        (0, 0, pod("m", "c"), true),
    ] {
        let more = json!({"QuarantineSeconds": quarantine, "StickySeconds": sticky});
        let mut node = Alone::new(segment("10.0.0.8/32", more));
        let held = node.add(&request, 50).unwrap().leases[0].clone();
        let writes = node.book.release(&attachment("c"), 70);
        let [write] = writes.as_slice() else { panic!("one lease, one write") };
        assert_eq!((write.ip, write.expected), (held.ip, Some(1)));
        match &write.change {
            LeaseChange::Delete => assert!(deleted),
            LeaseChange::Put(lease) => {
                assert!(!deleted);
                assert_eq!((lease.released, &lease.attachment), (Some(70), &held.attachment));
            }
            LeaseChange::Keep => panic!("nothing was released"),
        }
        node.write(&writes);
        assert!(node.book.release(&attachment("c"), 80).is_empty(), "releasing twice is fine");
        let over = 70 + u64::from(quarantine.max(if request.pod.is_some() { sticky } else { 0 }));
        if !deleted {
            assert!(node.book.ended(over - 1).is_empty());
            let ended = node.book.ended(over);
            assert_eq!((addresses(&ended), ended[0].expected), (vec!["10.0.0.8".to_owned()], Some(2)));
            node.write(&ended);
        }
        assert_eq!(node.book.leases().count(), 0);
        assert!(node.book.ended(over).is_empty());
    }
}

#[test]
fn only_leases_of_the_node_that_are_neither_live_nor_pending_are_stale() {
    let mut node = Alone::new(segment("10.0.0.0/24", json!({"StickySeconds": 60})));
    let at =
        |last: &str, container_id: &str| asking(pod("m", container_id), &[&format!("10.0.0.{last}")], None);
    for (last, container_id) in [("2", "live"), ("3", "pending"), ("4", "gone"), ("5", "released")] {
        node.add(&at(last, container_id), 0).unwrap();
    }
    node.delete("released", 0);
    node.put("10.0.0.6", json!({"Node": "node2", "ContainerID": "elsewhere", "IfName": "eth0"}));
    node.put("10.0.0.7", json!({"Node": "node1", "PodName": "reserved by hand"}));
    // Another interface of a live container is an attachment of its own.
    node.put("10.0.0.8", json!({"Node": "node1", "ContainerID": "live", "IfName": "net1"}));
    let stale = node.book.stale("node1", &set(&["live"]), &set(&["pending"]), 9).concat();
    assert_eq!(addresses(&stale), ["10.0.0.4", "10.0.0.8"]);
    assert_eq!(addresses(&node.book.stale("node2", &set(&[]), &set(&[]), 9).concat()), ["10.0.0.6"]);
    node.write(&stale);
    assert_eq!(node.book.lease(ip("10.0.0.4")).unwrap().released, Some(9));
    assert!(node.book.stale("node1", &set(&["live"]), &set(&["pending"]), 9).is_empty());
}

/// A cleaner that compares pods' UIDs frees the address of a StatefulSet's pod that was made anew
/// (spidernet-io/spiderpool#2526, #3778).
#[test]
fn an_address_that_a_new_pod_of_the_same_name_has_taken_over_is_not_stale() {
    let mut node = Alone::new(segment("10.0.0.0/24", json!({"StickySeconds": 60})));
    let first = node.address(&pod("db-0", "old"), 0);
    let gone = node.book.stale("node1", &set(&[]), &set(&["new"]), 5).concat();
    assert_eq!(addresses(&gone), std::slice::from_ref(&first));
    node.write(&gone);
    assert_eq!(node.address(&pod("db-0", "new"), 6), first);
    assert!(node.book.stale("node1", &set(&[]), &set(&["new"]), 7).is_empty());
    // A cleaner that decided before the takeover holds a condition that no longer does.
    assert_ne!(gone[0].expected, node.book.release(&attachment("new"), 8)[0].expected);
}

#[test]
fn an_address_that_a_machine_outside_has_is_set_aside() {
    let mut node = Alone::new(segment("10.0.0.8/31", json!({"QuarantineSeconds": 30})));
    let outside = "52:54:00:00:00:01".parse().unwrap();
    let held = node.address(&container("c1"), 100);
    let other = node.address(&container("c2"), 100);
    assert_eq!(node.book.set_aside(Some(&attachment("c1")), ip(&other), outside, 100), []);
    assert_eq!(node.book.set_aside(None, ip(&held), outside, 100), []);
    let writes = node.book.set_aside(Some(&attachment("c1")), ip(&held), outside, 100);
    assert_eq!((addresses(&writes), writes[0].expected), (vec![held.clone()], Some(1)));
    node.write(&writes);
    assert!(node.book.release(&attachment("c1"), 100).is_empty());
    let error = node.add(&container("c3"), 699).unwrap_err();
    assert!(error.contains("of 2, 1 are held, 0 in quarantine, 1 set aside"), "{error}");
    assert_eq!(
        node.book.lease(ip(&held)).unwrap().holder(),
        "52:54:00:00:00:01 outside the cluster, which answered for it"
    );
    // By name it can be had at once: somebody may have turned the machine off.
    let asked = asking(container("c3"), &[&held], None);
    assert_eq!(node.book.choose(&asked, 200).unwrap().writes[0].expected, Some(3));
    // It answers once more.
    let again = node.book.set_aside(None, ip(&held), outside, 300);
    node.write(&again);
    assert!(node.add(&container("c3"), 899).is_err());
    assert_eq!(node.address(&container("c3"), 900), held);
}

#[test]
fn an_address_found_in_use_before_anybody_needs_it_is_set_aside() {
    let mut node = Alone::new(segment("10.0.0.8/32", json!({})));
    let outside = "52:54:00:00:00:01".parse().unwrap();
    let writes = node.book.set_aside(None, ip("10.0.0.8"), outside, 100);
    assert_eq!((writes.len(), writes[0].expected), (1, None));
    node.write(&writes);
    assert!(node.add(&container("c"), 100).is_err());
}

#[test]
fn a_conflict_in_one_family_gives_back_the_other() {
    let mut node = Alone::new(segment("10.0.0.8/32,fd00::8/128", json!({"QuarantineSeconds": 0})));
    node.add(&container("c1"), 100).unwrap();
    let writes = node.book.set_aside(
        Some(&attachment("c1")),
        ip("fd00::8"),
        "52:54:00:00:00:01".parse().unwrap(),
        100,
    );
    assert_eq!(addresses(&writes), ["fd00::8", "10.0.0.8"]);
    assert_eq!(writes[1].change, LeaseChange::Delete);
    node.write(&writes);
    assert_eq!(node.book.leases().count(), 1);
}

/// Others have given back what a pod runs with.
#[test]
fn a_running_attachment_takes_back_what_nobody_holds() {
    let mut node = Alone::new(segment("10.0.0.0/24", json!({"QuarantineSeconds": 30})));
    let mine = node.add(&pod("m", "c"), 50).unwrap().leases[0].clone();
    assert_eq!(node.book.retake(&mine), Ok(None), "held");
    let key = mine.ip.to_string();
    let own_mac = mine.mac.unwrap();
    let other_mac: Mac = "02:99:99:99:99:99".parse().unwrap();
    let with = |change: &dyn Fn(&mut Lease)| {
        let mut lease = mine.clone();
        change(&mut lease);
        lease
    };
    let set_aside = |mac| {
        with(&|lease| {
            lease.attachment = Attachment { container_id: String::new(), if_name: String::new() };
            (lease.released, lease.conflict) = (Some(60), Some(mac));
        })
    };
    let released = with(&|lease| lease.released = Some(60));
    let cases = [
        (released.clone(), true),
        (with(&|lease| (lease.attachment, lease.released) = (attachment("other"), Some(60))), true),
        (with(&|lease| lease.node = "renamed".to_owned()), true),
        (set_aside(own_mac), true),
        (set_aside(other_mac), false),
        (with(&|lease| lease.attachment = attachment("other")), false),
        (with(&|lease| lease.attachment = attachment("")), false),
    ];
    for (revision, (stored, retaken)) in (100..).zip(cases) {
        node.book.put(&key, &stored.to_json(), revision).unwrap();
        match node.book.retake(&mine) {
            Ok(Some(write)) => {
                assert!(retaken, "{stored:?}");
                assert_eq!((write.ip, write.expected), (mine.ip, Some(revision)));
                assert_eq!(write.change, LeaseChange::Put(mine.clone()));
            }
            Ok(None) => panic!("{stored:?}"),
            Err(Refusal::Taken { ip, holder }) => {
                assert!(!retaken, "{stored:?}");
                assert_eq!((ip, holder), (mine.ip, stored.holder()));
            }
            Err(other) => panic!("{other}"),
        }
        node.book.remove(&key, revision);
        let write = node.book.retake(&released).unwrap().unwrap();
        assert_eq!((write.expected, &write.change), (None, &LeaseChange::Put(mine.clone())), "deleted");
    }
    assert!(node.book.put(&key, b"torn", 200).is_err());
    assert!(node.book.retake(&mine).is_err(), "nobody can say whose it is");
}

#[test]
fn fields_of_others_are_edited_on_condition_that_nobody_else_wrote() {
    let mut node = Alone::new(segment("10.0.0.0/24,fd00::/64", json!({})));
    node.add(&container("c"), 100).unwrap();
    node.add(&container("other"), 100).unwrap();
    let note = |value: i64| move |lease: &mut Lease| lease.set_extra("Note", value);
    let writes = node.book.edit(&attachment("c"), note(7));
    assert_eq!(writes.len(), 2, "both families in one transaction");
    assert!(writes.iter().all(|write| write.expected == Some(1)), "{writes:?}");
    node.write(&writes);
    let noted = |book: &LeaseBook| book.leases().filter(|lease| lease.extra().get("Note").is_some()).count();
    assert_eq!(noted(&node.book), 2);
    // What is so already rests on what it is, and is not written.
    let again = node.book.edit(&attachment("c"), note(7));
    assert!(again.iter().all(|w| w.change == LeaseChange::Keep && w.expected == Some(3)), "{again:?}");
    node.write(&node.book.edit(&attachment("c"), |lease| lease.remove_extra("Note")));
    assert_eq!(noted(&node.book), 0);
    node.delete("c", 101);
    assert_eq!(node.book.edit(&attachment("c"), note(8)), [], "what it held is not its own any more");
}
