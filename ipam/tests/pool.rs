//! A node's pod addresses, against a plain model.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking, in its helpers too.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use proptest::collection::vec;
use proptest::prelude::*;
use tenon_ipam::{NodePool, PoolError};

fn pool(subnet: &str) -> NodePool {
    NodePool::new(subnet.parse().unwrap()).unwrap()
}

#[test]
fn the_first_pod_gets_the_address_after_the_gateway() {
    let mut pool = pool("172.11.0.0/22");
    assert_eq!(pool.gateway(), Ipv4Addr::new(172, 11, 0, 1));
    assert_eq!(pool.capacity(), 1021);
    assert_eq!(pool.allocate(), Ok(Ipv4Addr::new(172, 11, 0, 2)));
    assert_eq!((pool.used(), pool.last()), (1, Some(Ipv4Addr::new(172, 11, 0, 2))));
}

#[test]
fn a_released_address_waits_until_the_others_had_their_turn() {
    let mut pool = pool("10.0.0.0/29");
    let first = pool.allocate().unwrap();
    assert!(pool.release(first));
    assert!(!pool.release(first));
    let turn: Vec<_> = (0..5).map(|_| pool.allocate().unwrap().octets()[3]).collect();
    assert_eq!(turn, [3, 4, 5, 6, 2]);
    assert_eq!(
        pool.allocate().unwrap_err().to_string(),
        "all 5 pod addresses of this node's subnet 10.0.0.0/29 are in use"
    );
}

#[test]
fn the_turn_survives_a_restart_and_a_change_of_subnet() {
    let mut restarted = pool("10.0.0.0/24");
    restarted.set_last(Some(Ipv4Addr::new(10, 0, 0, 77)));
    assert_eq!(restarted.allocate(), Ok(Ipv4Addr::new(10, 0, 0, 78)));
    restarted.set_last(Some(Ipv4Addr::new(10, 0, 0, 255)));
    assert_eq!(restarted.allocate(), Ok(Ipv4Addr::new(10, 0, 0, 2)));
    restarted.set_last(Some(Ipv4Addr::new(10, 0, 1, 77)));
    assert_eq!(restarted.last(), None);
    assert_eq!(restarted.allocate(), Ok(Ipv4Addr::new(10, 0, 0, 3)));
}

#[test]
fn a_request_is_granted_or_told_why_not() {
    let mut pool = pool("10.0.0.0/24");
    let ask = |pool: &mut NodePool, address: &str| {
        pool.allocate_specific(address.parse().unwrap()).map_err(|error| error.to_string())
    };
    assert!(ask(&mut pool, "10.0.0.9").is_ok());
    assert_eq!(pool.allocate(), Ok(Ipv4Addr::new(10, 0, 0, 2)), "a request does not move the turn");
    for (address, reason) in [
        ("10.0.0.9", "10.0.0.9 is in use by another pod"),
        ("10.0.0.0", "10.0.0.0 is the network address of this node's subnet 10.0.0.0/24"),
        ("10.0.0.1", "10.0.0.1 is the gateway"),
        ("10.0.0.255", "10.0.0.255 is the broadcast address"),
        ("10.0.1.9", "10.0.1.9 is not in this node's subnet 10.0.0.0/24"),
        ("fd00::1", "fd00::1 is not in this node's subnet 10.0.0.0/24"),
    ] {
        let error = ask(&mut pool, address).unwrap_err();
        assert!(error.contains(reason), "{address}: {error}");
    }
}

#[test]
fn small_and_huge_subnets_work() {
    for small in ["10.0.0.0/31", "10.0.0.0/32"] {
        assert!(matches!(NodePool::new(small.parse().unwrap()), Err(PoolError::TooSmall(_))));
    }
    let mut one = pool("255.255.255.252/30");
    assert_eq!(one.allocate(), Ok(Ipv4Addr::new(255, 255, 255, 254)));
    assert!(one.allocate().is_err());
    let mut all = pool("0.0.0.0/0");
    assert_eq!(all.capacity(), u32::MAX - 2);
    all.set_last(Some(Ipv4Addr::BROADCAST));
    assert_eq!(all.allocate(), Ok(Ipv4Addr::new(0, 0, 0, 2)));
}

#[test]
fn a_whole_16_is_given_out_without_a_repeat() {
    let mut pool = pool("10.1.0.0/16");
    let given: HashSet<Ipv4Addr> = (0..pool.capacity()).map(|_| pool.allocate().unwrap()).collect();
    assert_eq!(given.len(), 65_533);
    assert!(pool.allocate().is_err());
    // With every other address free, each is found at once.
    given.iter().filter(|address| address.octets()[3] % 2 == 0).for_each(|address| {
        pool.release(*address);
    });
    for _ in 0..32_767 {
        assert_eq!(pool.allocate().unwrap().octets()[3] % 2, 0);
    }
    assert_eq!(pool.used(), 65_533);
}

#[derive(Debug, Clone)]
enum Step {
    Allocate,
    Specific(u8),
    Reserve(u8),
    Release(u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Allocate),
        1 => any::<u8>().prop_map(Step::Specific),
        1 => any::<u8>().prop_map(Step::Reserve),
        3 => any::<u8>().prop_map(Step::Release),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #[test]
    fn the_pool_does_as_a_plain_set_would(length in 27_u8..=30, steps in vec(step(), 1..200)) {
        let subnet = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 64), length).unwrap().trunc();
        let hosts: Vec<Ipv4Addr> = subnet.hosts().skip(1).collect();
        // Mostly inside the subnet, now and then beside it.
        let size = 1_u32 << (32 - length);
        let pick = |place: u8| Ipv4Addr::from_bits(subnet.network().to_bits() - 1 + u32::from(place) % (size + 2));
        let mut pool = NodePool::new(subnet).unwrap();
        let mut model = BTreeSet::new();
        let mut last: Option<Ipv4Addr> = None;
        for step in steps {
            match step {
                Step::Allocate => {
                    let after = hosts.iter().filter(|host| last.is_none_or(|last| **host > last));
                    let free = after.chain(&hosts).find(|host| !model.contains(*host)).copied();
                    prop_assert_eq!(pool.allocate().ok(), free);
                    model.extend(free);
                    last = free.or(last);
                }
                Step::Specific(place) => {
                    let address = pick(place);
                    let fine = hosts.contains(&address) && model.insert(address);
                    prop_assert_eq!(pool.allocate_specific(IpAddr::V4(address)).is_ok(), fine);
                }
                Step::Reserve(place) => {
                    let address = pick(place);
                    let fine = hosts.contains(&address);
                    prop_assert_eq!(pool.reserve(IpAddr::V4(address)).is_ok(), fine);
                    model.extend(fine.then_some(address));
                }
                Step::Release(place) => prop_assert_eq!(pool.release(pick(place)), model.remove(&pick(place))),
                Step::Restart => {
                    let mut restarted = NodePool::new(subnet).unwrap();
                    restarted.set_last(pool.last());
                    model.iter().for_each(|address| restarted.reserve(IpAddr::V4(*address)).unwrap());
                    pool = restarted;
                }
            }
            prop_assert_eq!(pool.used() as usize, model.len());
            prop_assert_eq!(pool.last(), last);
            prop_assert_eq!(pool.capacity() as usize, hosts.len());
            prop_assert!(hosts.iter().all(|host| pool.contains(*host) == model.contains(host)));
        }
    }
}
