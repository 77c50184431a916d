//! What one node decides.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::json;
use tenon_ipam::{LeaseBook, LeaseChange, mac_of_lease};

use crate::{Alone, asking, attachment, container, ip, kept, pod, segment};

#[test]
fn an_address_that_nobody_has_is_taken_on_condition_that_its_key_is_absent() {
    let mut node = Alone::new(segment("10.0.0.0/24", json!({"Gateway": "10.0.0.1"})));
    let choice = node.add(&pod("m1", "c1"), 0).unwrap();
    let [lease] = choice.leases.as_slice() else { panic!("one family, one lease") };
    let [write] = choice.writes.as_slice() else { panic!("one lease, one write") };
    assert_eq!((write.ip, write.expected), (lease.ip, None));
    assert_eq!(write.change, LeaseChange::Put(lease.clone()));
    assert_eq!(lease.mac, Some(mac_of_lease("s", lease.ip)));
    assert_eq!((lease.node.as_str(), lease.attachment.clone()), ("node1", attachment("c1")));
    assert_eq!(node.book.lease(lease.ip), Some(lease));
}

#[test]
fn asking_again_changes_nothing_but_still_rests_on_the_lease() {
    let mut node = Alone::new(segment("10.0.0.0/24", json!({})));
    let first = node.add(&pod("m1", "c1"), 0).unwrap();
    let again = node.add(&pod("m1", "c1"), 9).unwrap();
    assert!(kept(&again));
    assert_eq!(again.leases, first.leases);
    assert_eq!(again.writes[0].expected, Some(1));
    let held = first.leases[0].ip.to_string();
    assert!(kept(&node.add(&asking(pod("m1", "c1"), &[&held], None), 9).unwrap()));
    let other = if held == "10.0.0.9" { "10.0.0.8" } else { "10.0.0.9" };
    let error = node.add(&asking(pod("m1", "c1"), &[other], None), 9).unwrap_err();
    assert_eq!(
        error,
        format!("eth0 of container c1 holds {held} already, and {other} was asked for: delete it first")
    );
    let error = node.add(&asking(pod("m1", "c1"), &[], Some("02:00:00:00:00:01")), 9).unwrap_err();
    assert!(error.contains("and 02:00:00:00:00:01 was asked for"), "{error}");
}

#[test]
fn addresses_are_given_out_in_turn_and_each_once_until_none_is_left() {
    let more =
        json!({"Gateway": "10.0.0.1", "RangeEnd": "10.0.0.99", "Exclude": ["10.0.0.32/28", "10.0.0.7"]});
    let mut node = Alone::new(segment("10.0.0.0/24", more));
    let given: Vec<IpAddr> =
        (0..81).map(|n| node.add(&container(&n.to_string()), 0).unwrap().leases[0].ip).collect();
    let jumps = given.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!(jumps <= 1, "{given:?}");
    let distinct: BTreeSet<IpAddr> = given.into_iter().collect();
    assert_eq!(distinct.len(), 81);
    let outside = |ip: &&IpAddr| !node.book.segment().subnets[0].pool.contains(**ip);
    assert_eq!(distinct.iter().find(outside), None);
    let error = node.add(&container("one more"), 0).unwrap_err();
    let counts = "of 81, 81 are held, 0 in quarantine, 0 set aside after a conflict and 0 under records";
    assert!(error.contains(counts), "{error}");
}

#[test]
fn nodes_start_at_places_of_their_own() {
    let segment = segment("10.0.0.0/16", json!({}));
    let starts: BTreeSet<IpAddr> = (0..64)
        .map(|n| {
            let mut book = LeaseBook::new(segment.clone(), &format!("node{n}"));
            book.choose(&container("c"), 0).unwrap().leases[0].ip
        })
        .collect();
    assert!(starts.len() >= 62, "{starts:?}");
}

#[test]
fn a_released_address_rests_before_another_pod_gets_it() {
    let mut node = Alone::new(segment("10.0.0.8/31", json!({"QuarantineSeconds": 30})));
    let first = node.address(&container("c1"), 100);
    node.address(&container("c2"), 100);
    node.delete("c1", 100);
    for now in [100, 129] {
        let error = node.add(&container("c3"), now).unwrap_err();
        assert!(error.contains("of 2, 1 are held, 1 in quarantine"), "{error}");
        let error = node.add(&asking(container("c3"), &[&first], None), now).unwrap_err();
        let reason =
            format!("{first} is in quarantine for {} s more; it was held by eth0 of container c1", 130 - now);
        assert!(error.starts_with(&reason), "{error}");
    }
    let choice = node.add(&container("c3"), 130).unwrap();
    assert_eq!(choice.leases[0].ip.to_string(), first);
    // The key is still there: it is overwritten, on condition that it is what was seen.
    assert_eq!(choice.writes[0].expected, Some(3));
}

#[test]
fn the_container_that_released_an_address_may_have_it_again_at_once() {
    let mut node = Alone::new(segment("10.0.0.8/31", json!({})));
    let first = node.address(&container("c1"), 100);
    node.delete("c1", 100);
    assert_eq!(node.address(&container("c1"), 101), first);
}

#[test]
fn a_sticky_pod_gets_its_address_and_mac_again() {
    let mut node = Alone::new(segment("10.0.0.0/24", json!({"StickySeconds": 600})));
    let wished = asking(pod("m1", "c1"), &["10.0.0.77"], Some("52:54:00:00:00:07"));
    node.add(&wished, 100).unwrap();
    node.put(
        "10.0.0.77",
        json!({"MAC": "52:54:00:00:00:07", "Node": "node9", "ContainerID": "c1", "IfName": "eth0",
            "PodNamespace": "a", "PodName": "m1", "Rack": 5}),
    );
    node.delete("c1", 100);
    // Even in quarantine, on another node, in another container.
    let choice = node.add(&pod("m1", "c2"), 110).unwrap();
    let lease = &choice.leases[0];
    assert_eq!((lease.ip, lease.mac.unwrap().to_string()), (ip("10.0.0.77"), "52:54:00:00:00:07".to_owned()));
    assert_eq!(
        (lease.node.as_str(), lease.released, lease.extra()["Rack"].clone()),
        ("node1", None, json!(5))
    );
    assert_eq!(choice.writes[0].expected, Some(3));
    // A late deletion of the old container takes nothing from the new one.
    assert!(node.book.release(&attachment("c1"), 120).is_empty());
    // While it runs, a second container of the same name gets another address.
    assert_ne!(node.address(&pod("m1", "c3"), 120), "10.0.0.77");
}

#[test]
fn an_address_is_kept_for_its_pod_alone_while_there_are_others() {
    let mut node = Alone::new(segment("10.0.0.8/29", json!({"StickySeconds": 600, "QuarantineSeconds": 30})));
    let kept = node.address(&pod("m1", "c1"), 100);
    node.delete("c1", 100);
    let error = node.add(&asking(container("x"), &[&kept], None), 150).unwrap_err();
    assert_eq!(error, format!("{kept} is kept for pod a/m1 for 550 s more"));
    assert_ne!(node.address(&container("c2"), 200), kept);
    // On another interface the pod is somebody else, unless it asks by name.
    let mut net1 = pod("m1", "c1b");
    net1.attachment.if_name = "net1".to_owned();
    assert_ne!(
        node.book.choose(&asking(net1.clone(), &[], None), 150).map(|c| c.leases[0].ip.to_string()),
        Ok(kept.clone())
    );
    assert_eq!(node.book.choose(&asking(net1, &[&kept], None), 150).unwrap().leases[0].ip.to_string(), kept);
}

#[test]
fn with_nothing_else_left_the_address_kept_longest_is_given_to_another_pod() {
    let mut node = Alone::new(segment("10.0.0.8/30", json!({"StickySeconds": 600, "QuarantineSeconds": 30})));
    let (one, two) = (node.address(&pod("m1", "c1"), 0), node.address(&pod("m2", "c2"), 0));
    node.delete("c2", 100);
    node.delete("c1", 110);
    assert!(node.add(&container("c3"), 129).unwrap_err().contains("2 in quarantine"));
    assert_eq!(node.address(&container("c3"), 145), two);
    // The pod whose address is gone gets another one; the other pod's is not younger than that.
    assert_eq!(node.address(&pod("m1", "c4"), 146), one);
    assert!(node.add(&pod("m2", "c5"), 146).is_err());
    // When its time is over, a kept address is free for anybody.
    node.delete("c4", 200);
    assert_eq!(node.address(&container("c6"), 800), one);
}

#[test]
fn both_families_come_in_one_transaction_with_one_mac() {
    let dual = segment("fd00::/64,10.0.0.0/24", json!({"StickySeconds": 60}));
    let mut node = Alone::new(dual);
    let choice = node.add(&asking(pod("m1", "c1"), &["10.0.0.9"], None), 0).unwrap();
    let [v6, v4] = choice.leases.as_slice() else { panic!("two families, two leases") };
    assert!(v6.ip.is_ipv6() && v4.ip == ip("10.0.0.9"));
    assert_eq!((v6.mac, v4.mac), (Some(mac_of_lease("s", v6.ip)), v6.mac));
    assert_eq!(choice.writes.len(), 2);
    node.delete("c1", 10);
    let again = node.add(&pod("m1", "c2"), 11).unwrap();
    let addresses: Vec<_> = again.leases.iter().map(|lease| (lease.ip, lease.mac)).collect();
    assert_eq!(addresses, [(v6.ip, v6.mac), (v4.ip, v4.mac)]);
    let error =
        node.add(&asking(container("c3"), &["10.0.0.1", "fd00::5", "10.0.0.2"], None), 0).unwrap_err();
    assert!(
        error.starts_with("10.0.0.1 and 10.0.0.2 were asked for, but an interface gets one IPv4"),
        "{error}"
    );
}

#[test]
fn a_full_family_fails_the_whole() {
    let mut node = Alone::new(segment("10.0.0.8/32,fd00::/64", json!({})));
    node.add(&container("c1"), 0).unwrap();
    assert!(
        node.add(&container("c2"), 0).unwrap_err().contains("has no IPv4 address left: of 1, 1 are held")
    );
}

#[test]
fn a_kept_pair_of_addresses_can_be_given_to_another_pod() {
    let mut node = Alone::new(segment("10.0.0.8/32,fd00::8/128", json!({"StickySeconds": 600})));
    node.add(&pod("m1", "c1"), 0).unwrap();
    node.delete("c1", 0);
    assert!(node.add(&pod("m2", "c2"), 29).is_err());
    assert_eq!(node.add(&pod("m2", "c2"), 30).unwrap().leases.len(), 2);
}

#[test]
fn a_requested_address_is_honoured_or_refused_with_the_reason() {
    let more = json!({"Gateway": "10.0.0.1", "RangeStart": "10.0.0.1", "RangeEnd": "10.0.0.99", "Exclude": ["10.0.0.7"]});
    let mut node = Alone::new(segment("10.0.0.0/24", more));
    node.add(&asking(pod("m1", "c1"), &["10.0.0.9"], None), 0).unwrap();
    node.put("10.0.0.20", json!({"PodName": "vm", "PodNamespace": "b"}));
    assert!(node.book.put("10.0.0.21", b"{", 99).is_err());
    for (asked, reason) in [
        ("10.0.0.9", "10.0.0.9 is held by pod a/m1 (eth0 of container c1 on node node1)"),
        ("10.0.0.20", "10.0.0.20 is held by pod b/vm"),
        ("10.0.0.21", "10.0.0.21 is held by a record that does not parse"),
        ("10.0.0.1", "10.0.0.1 is the Gateway of segment \"s\", not an address for a pod"),
        ("10.0.0.7", "10.0.0.7 is in Exclude of segment \"s\", not an address for a pod"),
        ("10.0.0.0", "10.0.0.0 is outside segment \"s\", which gives out 10.0.0.1 to 10.0.0.99"),
        ("10.0.0.100", "10.0.0.100 is outside segment \"s\", which gives out 10.0.0.1 to 10.0.0.99"),
        ("fd00::1", "fd00::1 is outside segment \"s\", which gives out 10.0.0.1 to 10.0.0.99"),
    ] {
        let error = node.add(&asking(pod("m2", "c2"), &[asked], None), 0).unwrap_err();
        assert_eq!(error, reason);
    }
    let whole = LeaseBook::new(segment("10.0.0.0/24", json!({})), "n")
        .choose(&asking(container("c"), &["10.0.0.255"], None), 0)
        .unwrap_err()
        .to_string();
    assert_eq!(whole, "10.0.0.255 is the broadcast address of segment \"s\", not an address for a pod");
}

#[test]
fn a_requested_mac_is_honoured_or_refused_with_the_holder() {
    let mut node = Alone::new(segment("10.0.0.0/24", json!({"StickySeconds": 600})));
    let mac = "52:54:00:00:00:07";
    node.add(&asking(pod("m1", "c1"), &["10.0.0.9"], Some(mac)), 0).unwrap();
    let error = node.add(&asking(pod("m2", "c2"), &[], Some(mac)), 0).unwrap_err();
    assert_eq!(
        error,
        format!(
            "{mac} is the MAC address of 10.0.0.9, held by pod a/m1 (eth0 of container c1 on node node1)"
        )
    );
    // Kept with the address, for its pod.
    node.delete("c1", 100);
    assert!(node.add(&asking(pod("m2", "c2"), &[], Some(mac)), 699).is_err());
    assert!(node.add(&asking(pod("m1", "c3"), &["10.0.0.10"], Some(mac)), 699).is_ok());
    node.delete("c3", 700);
    assert!(node.add(&asking(pod("m2", "c2"), &[], Some(mac)), 1300).is_ok());
}

#[test]
fn an_address_whose_own_mac_somebody_has_is_passed_over() {
    let mut node = Alone::new(segment("10.0.0.8/30", json!({})));
    let squatted = mac_of_lease("s", ip("10.0.0.10")).to_string();
    node.add(&asking(container("c1"), &["10.0.0.9"], Some(&squatted)), 0).unwrap();
    let error = node.add(&container("c2"), 0).unwrap_err();
    assert!(error.contains("has no IPv4 address left"), "{error}");
    let error = node.add(&asking(container("c2"), &["10.0.0.10"], None), 0).unwrap_err();
    assert!(error.starts_with(&format!("{squatted} is the MAC address of 10.0.0.9, held by")), "{error}");
    let mac = Some("52:54:00:00:00:07");
    assert_eq!(node.address(&asking(container("c2"), &[], mac), 0), "10.0.0.10");
}

#[test]
fn of_two_pods_with_one_requested_mac_the_later_sees_its_rival() {
    let mut node = Alone::new(segment("10.0.0.0/24", json!({})));
    let record = |container_id: &str| json!({"MAC": "52:54:00:00:00:07", "ContainerID": container_id, "IfName": "eth0"});
    node.put("10.0.0.9", record("c1"));
    node.put("10.0.0.8", record("c2"));
    assert_eq!(node.book.mac_rival(ip("10.0.0.9")), None);
    assert_eq!(node.book.mac_rival(ip("10.0.0.8")).unwrap().attachment, attachment("c1"));
    node.delete("c1", 5);
    assert_eq!(node.book.mac_rival(ip("10.0.0.8")), None);
}

#[test]
fn a_changed_segment_leaves_pods_their_addresses() {
    let mut node = Alone::new(segment("10.0.0.0/24", json!({})));
    node.add(&asking(container("c1"), &["10.0.0.200"], None), 0).unwrap();
    node.book.set_segment(segment("10.0.0.0/24", json!({"RangeEnd": "10.0.0.2"})));
    assert_eq!(node.address(&container("c1"), 0), "10.0.0.200");
    assert_eq!(node.address(&asking(container("c1"), &["10.0.0.200"], None), 0), "10.0.0.200");
    node.address(&container("c2"), 0);
    node.address(&container("c3"), 0);
    assert!(node.add(&container("c4"), 0).unwrap_err().contains("of 2, 2 are held"));
    // Once released, it is not given out again.
    node.delete("c1", 10);
    assert!(node.add(&container("c4"), 100).unwrap_err().contains("of 2, 2 are held"));
    assert_eq!(node.book.ended(100).len(), 1);
}

#[test]
fn what_is_older_than_what_is_known_changes_nothing() {
    let segment = segment("10.0.0.8/32", json!({}));
    let mut book = LeaseBook::new(segment, "node1");
    book.put("10.0.0.8", br#"{"ContainerID":"new"}"#, 7).unwrap();
    book.put("10.0.0.8", br#"{"ContainerID":"old"}"#, 5).unwrap();
    book.remove("10.0.0.8", 6);
    assert_eq!(book.lease(ip("10.0.0.8")).unwrap().attachment.container_id, "new");
    assert!(book.choose(&container("c"), 0).is_err());
    book.remove("10.0.0.8", 8);
    assert!(book.choose(&container("c"), 0).is_ok());
    book.put("10.0.0.8", br#"{"ContainerID":"new"}"#, 9).unwrap();
    book.reset();
    assert!(book.choose(&container("c"), 0).is_ok());
}

/// Linear time in each decision would take minutes here.
#[test]
fn a_whole_16_is_given_out_and_taken_back() {
    let mut node = Alone::new(segment("10.0.0.0/16", json!({"QuarantineSeconds": 30})));
    let count = 65_534;
    for n in 0..count {
        node.add(&container(&n.to_string()), 0).unwrap();
    }
    assert!(node.add(&container("one more"), 0).is_err());
    let addresses: BTreeSet<IpAddr> = node.book.leases().map(|lease| lease.ip).collect();
    assert_eq!(addresses.len(), count);
    for n in 0..count {
        node.delete(&n.to_string(), 10);
    }
    for n in 0..1000 {
        node.add(&container(&format!("again {n}")), 40).unwrap();
    }
    assert_eq!(node.book.ended(40).len(), count - 1000);
}
