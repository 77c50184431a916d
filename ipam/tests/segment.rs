//! Segments, well and badly written, and side by side.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking, in its helpers too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use tenon_ipam::{Attachment, LeaseBook, Mode, Request, Segment, overlaps};

fn good() -> Value {
    json!({
        "Name": "vlan100", "Master": "eth0", "Vlan": 100, "Mode": "bridge", "Subnet": "10.100.0.0/24",
        "Gateway": "10.100.0.1", "RangeStart": "", "RangeEnd": "", "Exclude": [], "Routes": [], "Mtu": 0,
        "HostAccess": true
    })
}

fn dual() -> Value {
    let mut record = good();
    record["Subnet"] = json!("10.100.0.0/24,fd00:100::/64");
    record["Gateway"] = json!("fd00:100::1, 10.100.0.1");
    record
}

fn read(record: &Value) -> Result<Segment, String> {
    Segment::parse("vlan100", record.to_string().as_bytes()).map_err(|error| error.to_string())
}

fn with(mut record: Value, changes: &[(&str, Value)]) -> Result<Segment, String> {
    for (field, value) in changes {
        record[*field] = value.clone();
    }
    read(&record)
}

fn pool(segment: &Segment, place: usize) -> Vec<String> {
    let subnet = &segment.subnets[place];
    let octets = |last: u8| -> IpAddr { IpAddr::from([10, 100, 0, last]) };
    (0..=255).map(octets).filter(|ip| subnet.pool.contains(*ip)).map(|ip| ip.to_string()).collect()
}

#[test]
fn the_documented_example_reads_as_it_says() {
    let segment = read(&good()).unwrap();
    assert_eq!((segment.name.as_str(), segment.master.as_str()), ("vlan100", "eth0"));
    assert_eq!(
        (segment.vlan, segment.mode, segment.mtu, segment.host_access),
        (Some(100), Mode::Bridge, None, true)
    );
    assert_eq!((segment.sticky_seconds, segment.quarantine_seconds, segment.probe_ms), (0, 30, 100));
    let [subnet] = segment.subnets.as_slice() else { panic!("one subnet") };
    assert_eq!(subnet.subnet.to_string(), "10.100.0.0/24");
    assert_eq!(subnet.gateway, Some("10.100.0.1".parse().unwrap()));
    // Without the network, the gateway and the broadcast address.
    assert_eq!(subnet.pool.count(), 253);
    assert_eq!(pool(&segment, 0).first().unwrap(), "10.100.0.2");
    assert_eq!(pool(&segment, 0).last().unwrap(), "10.100.0.254");
    let routes: Vec<String> = segment.routes().iter().map(|r| format!("{} {:?}", r.dst, r.gw)).collect();
    assert_eq!(routes, ["0.0.0.0/0 Some(10.100.0.1)"]);
}

#[test]
fn what_is_optional_can_be_left_out() {
    let segment =
        read(&json!({"Master": "eth0", "Subnet": "10.100.0.0/24", "Comment": {"by": "admin"}})).unwrap();
    assert_eq!((segment.name.as_str(), segment.vlan, segment.mode), ("vlan100", None, Mode::Bridge));
    assert_eq!((segment.mtu, segment.host_access, segment.subnets[0].gateway), (None, true, None));
    assert_eq!(segment.subnets[0].pool.count(), 254);
    assert!(segment.routes().is_empty());
    let set = [("StickySeconds", 3600), ("QuarantineSeconds", 0), ("ProbeMs", 0), ("Mtu", 1400), ("Vlan", 0)];
    let set = set.map(|(field, value)| (field, json!(value)));
    let segment = with(good(), &set).unwrap();
    assert_eq!((segment.sticky_seconds, segment.quarantine_seconds, segment.probe_ms), (3600, 0, 0));
    assert_eq!((segment.mtu, segment.vlan), (Some(1400), None));
    for (text, mode) in [
        ("", Mode::Bridge),
        ("bridge", Mode::Bridge),
        ("private", Mode::Private),
        ("vepa", Mode::Vepa),
        ("passthru", Mode::Passthru),
    ] {
        let segment = with(good(), &[("Mode", json!(text))]).unwrap();
        assert_eq!(segment.mode, mode);
        assert!(text.is_empty() || mode.to_string() == text);
    }
}

#[test]
fn ranges_and_exclusions_say_what_is_given_out() {
    let range = [("RangeStart", json!("10.100.0.10")), ("RangeEnd", json!("10.100.0.20"))];
    assert_eq!(with(good(), &range).unwrap().subnets[0].pool.count(), 11);
    let mut cut = range.to_vec();
    cut.push(("Exclude", json!(["10.100.0.12", "10.100.0.16/30", "10.0.0.0/8"])));
    assert!(with(good(), &cut).unwrap_err().contains("no address is left"), "10.0.0.0/8 covers it all");
    cut[2].1 = json!(["10.100.0.12", "10.100.0.16/30"]);
    let segment = with(good(), &cut).unwrap();
    let left = ["10", "11", "13", "14", "15", "20"].map(|last| format!("10.100.0.{last}"));
    assert_eq!(pool(&segment, 0), left);
    for (subnet, gateway, count) in [
        ("10.100.0.0/30", "10.100.0.1", 1),
        ("10.100.0.0/31", "", 2),
        ("10.100.0.0/31", "10.100.0.0", 1),
        ("10.100.0.7/32", "", 1),
        ("10.0.0.0/8", "", (1 << 24) - 2),
        ("fd00::/64", "fd00::1", (1 << 64) - 2),
        ("fd00::/64", "fe80::1", (1 << 64) - 1),
        ("fd00::/127", "", 2),
        ("fd00::7/128", "", 1),
        ("2000::/3", "", (1 << 125) - 1),
    ] {
        let segment = with(good(), &[("Subnet", json!(subnet)), ("Gateway", json!(gateway))]).unwrap();
        assert_eq!(segment.subnets[0].pool.count(), count, "{subnet}");
    }
}

#[test]
fn both_families_are_told_apart_by_themselves() {
    let mut record = dual();
    record["RangeEnd"] = json!("fd00:100::ff");
    record["Exclude"] = json!(["fd00:100::/120", "10.100.0.2"]);
    assert!(
        read(&record)
            .unwrap_err()
            .contains("no address is left for a pod between fd00:100:: and fd00:100::ff")
    );
    record["Exclude"] = json!(["fd00:100::80/121", "10.100.0.2"]);
    let segment = read(&record).unwrap();
    let [v4, v6] = segment.subnets.as_slice() else { panic!("two subnets") };
    assert_eq!((v4.pool.count(), v6.pool.count()), (252, 126));
    assert_eq!(v6.gateway, Some("fd00:100::1".parse().unwrap()));
    assert_eq!(segment.subnet_of("fd00:100::9".parse().unwrap()), Some(v6));
    let routes: Vec<String> =
        segment.routes().iter().map(|r| format!("{} {}", r.dst, r.gw.unwrap())).collect();
    assert_eq!(routes, ["0.0.0.0/0 10.100.0.1", "::/0 fd00:100::1"]);
    let reversed = with(dual(), &[("Subnet", json!("fd00:100::/64,10.100.0.0/24"))]).unwrap();
    assert_eq!(reversed.subnets[0].subnet.to_string(), "fd00:100::/64");
}

#[test]
fn routes_go_by_way_of_their_own_hop_the_gateway_or_none() {
    let routes = json!([
        {"dst": "10.0.0.0/8", "gw": "10.100.0.2", "priority": 7},
        {"dst": "192.168.0.0/16"},
        {"dst": "::/0", "gw": "fe80::5"},
        {"dst": "fd01::/16", "gw": null}
    ]);
    let segment = with(dual(), &[("Routes", routes.clone())]).unwrap();
    let shown = |segment: &Segment| -> Vec<String> {
        let gw = |gw: Option<IpAddr>| gw.map_or("-".to_owned(), |gw| gw.to_string());
        segment.routes().iter().map(|route| format!("{} {}", route.dst, gw(route.gw))).collect()
    };
    let expected = [
        "0.0.0.0/0 10.100.0.1",
        "10.0.0.0/8 10.100.0.2",
        "192.168.0.0/16 10.100.0.1",
        "::/0 fe80::5",
        "fd01::/16 fd00:100::1",
    ];
    assert_eq!(shown(&segment), expected);
    let segment = with(dual(), &[("Routes", routes), ("Gateway", json!(""))]).unwrap();
    assert_eq!(shown(&segment), ["10.0.0.0/8 10.100.0.2", "192.168.0.0/16 -", "::/0 fe80::5", "fd01::/16 -"]);
}

#[test]
fn every_mistake_is_named_with_its_value() {
    let cases = [
        ("Name", json!("vlan200"), "Name is \"vlan200\", but the record's key says \"vlan100\""),
        ("Name", json!(1), "Name is 1, not a string"),
        ("Master", json!(""), "Master is missing"),
        ("Master", Value::Null, "Master is missing"),
        ("Master", json!("eth0/1"), "Master is \"eth0/1\", which is no interface's name"),
        ("Master", json!("a-name-too-long-for-a-link"), "Master is \"a-name-too-long"),
        ("Vlan", json!(4095), "Vlan is 4095, not an integer from 0 to 4094"),
        ("Vlan", json!(-1), "Vlan is -1, not an integer"),
        ("Vlan", json!("100"), "Vlan is \"100\", not an integer"),
        ("Mode", json!("Bridge"), "Mode is \"Bridge\"; it must be \"bridge\", \"private\", \"vepa\" or"),
        ("Mode", json!("l2"), "Mode is \"l2\""),
        ("Subnet", json!(""), "Subnet is missing"),
        ("Subnet", json!("10.100.0.0"), "Subnet is \"10.100.0.0\", not a network"),
        ("Subnet", json!("10.100.0.0/24,"), "Subnet is \"\", not a network"),
        ("Subnet", json!("10.100.0.0/33"), "Subnet is \"10.100.0.0/33\", not a network"),
        ("Subnet", json!(["10.100.0.0/24"]), "Subnet is [\"10.100.0.0/24\"], not a string"),
        ("Subnet", json!("10.100.0.5/24"), "has host bits set: did you mean 10.100.0.0/24?"),
        ("Subnet", json!("10.100.0.0/25,10.100.0.128/25"), "at most one IPv4 value"),
        ("Subnet", json!("10.100.0.0/24,fd00::/64,fd01::/64"), "at most one IPv6 value"),
        ("Subnet", json!("224.0.1.0/24"), "Subnet is 224.0.1.0/24, which overlaps 224.0.0.0/3 (multicast"),
        ("Subnet", json!("fd00::/64"), "Gateway is 10.100.0.1, but Subnet has no IPv4 network"),
        ("Gateway", json!("10.100.1.1"), "Gateway is 10.100.1.1, outside Subnet 10.100.0.0/24"),
        ("Gateway", json!("10.100.0.0"), "Gateway is 10.100.0.0, the network address of Subnet"),
        ("Gateway", json!("10.100.0.255"), "Gateway is 10.100.0.255, the broadcast address of"),
        ("Gateway", json!("gw"), "Gateway is \"gw\", not an IPv4 or IPv6 address"),
        ("Gateway", json!("10.100.0.1,10.100.0.2"), "at most one IPv4 value"),
        ("Gateway", json!("fe80::1"), "Gateway is fe80::1, but Subnet has no IPv6 network"),
        ("RangeStart", json!("10.100.1.0"), "RangeStart is 10.100.1.0, outside Subnet 10.100.0.0/24"),
        ("RangeStart", json!("10.100.0"), "RangeStart is \"10.100.0\", not an IPv4 or IPv6 address"),
        ("RangeEnd", json!("10.99.0.1"), "RangeEnd is 10.99.0.1, outside Subnet"),
        ("RangeEnd", json!("fd00::9"), "RangeEnd is fd00::9, but Subnet has no IPv6 network"),
        (
            "RangeStart",
            json!("10.100.0.255"),
            "no address is left for a pod between 10.100.0.255 and 10.100.0.255",
        ),
        ("Exclude", json!("10.100.0.2"), "Exclude is \"10.100.0.2\", not a list"),
        ("Exclude", json!(["10.100.0.2", "x"]), "Exclude[1] is \"x\", not a network"),
        ("Exclude", json!([5]), "Exclude[0] is \"5\", not a network"),
        ("Exclude", json!(["10.100.0.5/28"]), "Exclude[0] is 10.100.0.5/28, which has host bits set"),
        ("Exclude", json!(["10.101.0.5"]), "Exclude[0] is 10.101.0.5, outside Subnet 10.100.0.0/24"),
        ("Exclude", json!(["10.100.0.0/24"]), "no address is left"),
        ("Exclude", json!(["0.0.0.0/0"]), "no address is left"),
        ("Routes", json!({}), "Routes is {}, not a list"),
        ("Routes", json!(["10.0.0.0/8"]), "Routes[0] is \"10.0.0.0/8\", not a route"),
        ("Routes", json!([{"gw": "10.100.0.2"}]), "Routes[0] is {\"gw\":\"10.100.0.2\"}, not a route"),
        ("Routes", json!([{"dst": 1}]), "Routes[0] is {\"dst\":1}, not a route"),
        ("Routes", json!([{"dst": "10.0.0.0"}]), "Routes[0].dst is \"10.0.0.0\", not a network"),
        ("Routes", json!([{"dst": "10.1.0.0/8"}]), "Routes[0].dst is 10.1.0.0/8, which has host bits"),
        ("Routes", json!([{"dst": "fd00::/8"}]), "Routes[0].dst is fd00::, but Subnet has no IPv6"),
        ("Routes", json!([{"dst": "10.0.0.0/8", "gw": "x"}]), "Routes[0].gw is \"x\", not an IPv4"),
        ("Routes", json!([{"dst": "10.0.0.0/8", "gw": "fe80::1"}]), "both must be of one family"),
        ("Routes", json!([{"dst": "10.0.0.0/8", "gw": "10.9.0.1"}]), "Routes[0].gw is 10.9.0.1, outside"),
        ("Mtu", json!(67), "Mtu is 67, but IPv4 needs at least 68"),
        ("Mtu", json!(70000), "Mtu is 70000, not an integer from 0 to 65535"),
        ("HostAccess", json!("yes"), "HostAccess is \"yes\", not true or false"),
        ("StickySeconds", json!(-1), "StickySeconds is -1"),
        ("QuarantineSeconds", json!(1.5), "QuarantineSeconds is 1.5"),
        ("ProbeMs", json!(60001), "ProbeMs is 60001, not an integer from 0 to 60000"),
    ];
    for (field, value, reason) in cases {
        let error = with(good(), &[(field, value.clone())]).unwrap_err();
        assert!(error.contains(reason), "{field} = {value}: {error}");
    }
    let reversed = [("RangeStart", json!("10.100.0.20")), ("RangeEnd", json!("10.100.0.10"))];
    let error = with(good(), &reversed).unwrap_err();
    assert_eq!(error, "RangeStart is 10.100.0.20, after RangeEnd 10.100.0.10");
    let error = with(dual(), &[("Mtu", json!(1279))]).unwrap_err();
    assert!(error.contains("Mtu is 1279, but IPv6 needs at least 1280"), "{error}");
    for subnet in ["0.0.0.0/0", "::/0", "127.0.0.0/8", "fe80::/64", "ff02::/16", "::ffff:10.0.0.0/104"] {
        let error = with(good(), &[("Subnet", json!(subnet)), ("Gateway", json!(""))]).unwrap_err();
        assert!(error.contains("pods need unicast addresses"), "{subnet}: {error}");
    }
    assert!(Segment::parse("s", b"[]").unwrap_err().to_string().contains("not a JSON object"));
    assert!(Segment::parse("s", b"{").unwrap_err().to_string().contains("not JSON"));
}

fn book(name: &str, changes: &[(&str, &str)]) -> LeaseBook {
    let mut record = good();
    record["Name"] = json!(name);
    for (field, value) in changes {
        record[*field] = json!(value);
    }
    LeaseBook::new(Segment::parse(name, record.to_string().as_bytes()).unwrap(), "node1")
}

/// Names the refused segments with their reasons.
fn refused(books: &[(i64, &LeaseBook)]) -> Vec<(String, String)> {
    overlaps(books.iter().copied()).into_iter().map(|(name, error)| (name, error.to_string())).collect()
}

#[test]
fn of_two_segments_that_overlap_the_one_created_later_is_refused() {
    let (a, b) = (book("a", &[]), book("b", &[]));
    let other = book("c", &[("Subnet", "10.101.0.0/24"), ("Gateway", "10.101.0.1")]);
    for books in [[(7, &a), (9, &b), (8, &other)], [(9, &b), (8, &other), (7, &a)]] {
        let refused = refused(&books);
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(refused[0].0, "b");
        let reason =
            "segment \"b\" (10.100.0.0/24) would give out 10.100.0.2, which segment \"a\" (10.100.0.0/24)";
        assert!(refused[0].1.starts_with(reason), "{}", refused[0].1);
    }
    assert_eq!(refused(&[(9, &a), (7, &b)])[0].0, "a");
    assert_eq!(refused(&[(7, &a), (7, &b)])[0].0, "b");
    // A refused segment stands in nobody's way.
    let wide = book("wide", &[("Subnet", "10.100.0.0/15")]);
    assert_eq!(refused(&[(1, &a), (2, &wide), (3, &other)]).len(), 1);
}

#[test]
fn one_subnet_can_be_shared_by_ranges_that_do_not_overlap() {
    let low = book("low", &[("RangeEnd", "10.100.0.99")]);
    let high = book("high", &[("RangeStart", "10.100.0.100")]);
    assert!(refused(&[(1, &low), (2, &high)]).is_empty());
    let meeting = book("meeting", &[("RangeStart", "10.100.0.99")]);
    let found = refused(&[(1, &low), (2, &meeting)]);
    assert!(found[0].1.contains("would give out 10.100.0.99,"), "{}", found[0].1);
    // The other one's router is not to be given out either.
    let far = book("far", &[("RangeStart", "10.100.0.100"), ("Gateway", "10.100.0.50")]);
    for (books, later) in [([(1, &low), (2, &far)], "far"), ([(2, &low), (1, &far)], "low")] {
        let found = refused(&books);
        assert_eq!(found[0].0, later);
        assert!(
            found[0].1.contains("segment \"low\" would give out 10.100.0.50, the Gateway of segment \"far\"")
        );
    }
}

#[test]
fn an_older_segment_that_is_widened_over_another_ones_pods_is_refused() {
    let wide = book("wide", &[("Subnet", "10.100.0.0/15")]);
    let mut other = book("other", &[("Subnet", "10.101.0.0/24"), ("Gateway", "10.101.0.1")]);
    assert_eq!(refused(&[(1, &wide), (2, &other)])[0].0, "other");
    other.put("10.101.0.9", br#"{"ContainerID":"c","IfName":"eth0","Node":"node1"}"#, 3).unwrap();
    assert_eq!(refused(&[(1, &wide), (2, &other)])[0].0, "wide");
    other.put("10.101.0.9", br#"{"ContainerID":"c","Released":5}"#, 4).unwrap();
    assert_eq!(refused(&[(1, &wide), (2, &other)])[0].0, "other");
}

/// Networks of both families and any size, most of them near 10.0.0.0/8 or fd00::/8.
fn network() -> impl Strategy<Value = IpNet> {
    let v4 = (prop_oneof![any::<u32>(), 0x0a00_0000_u32..0x0a00_0400], 0_u8..=32)
        .prop_map(|(bits, length)| IpNet::new(Ipv4Addr::from_bits(bits).into(), length).unwrap());
    let v6 = (prop_oneof![any::<u128>(), (0xfd_u128 << 120)..(0xfd_u128 << 120 | 0x400)], 0_u8..=128)
        .prop_map(|(bits, length)| IpNet::new(Ipv6Addr::from_bits(bits).into(), length).unwrap());
    prop_oneof![v4, v6]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_bytes_are_answered(bytes in vec(any::<u8>(), 0..100)) {
        prop_assert!(Segment::parse("s", &bytes).is_err());
    }

    #[test]
    fn what_a_segment_gives_out_lies_in_its_range_and_outside_its_exclusions(
        subnet in network(),
        range in prop::option::of((network(), network())),
        gateway in prop::option::of(network()),
        exclude in vec(network(), 0..4),
    ) {
        let subnet = subnet.trunc();
        // Bring what belongs to the other family or elsewhere into the subnet, or the record is just refused.
        let inside = |net: IpNet| match (subnet, net.addr()) {
            (IpNet::V4(v4), IpAddr::V4(ip)) => {
                IpAddr::from(Ipv4Addr::from_bits(v4.network().to_bits() | ip.to_bits() & v4.hostmask().to_bits()))
            }
            (IpNet::V6(v6), IpAddr::V6(ip)) => {
                IpAddr::from(Ipv6Addr::from_bits(v6.network().to_bits() | ip.to_bits() & v6.hostmask().to_bits()))
            }
            _ => subnet.broadcast(),
        };
        let mut record = json!({"Master": "eth0", "Subnet": subnet});
        if let Some((one, other)) = range {
            let (one, other) = (inside(one), inside(other));
            record["RangeStart"] = json!(one.min(other));
            record["RangeEnd"] = json!(one.max(other));
        }
        if let Some(gateway) = gateway {
            record["Gateway"] = json!(inside(gateway));
        }
        let exclude: Vec<IpNet> = exclude
            .into_iter()
            .map(|net| IpNet::new(inside(net), net.prefix_len().clamp(subnet.prefix_len(), subnet.max_prefix_len())))
            .map(|net| net.unwrap().trunc())
            .collect();
        record["Exclude"] = json!(exclude.iter().map(IpNet::to_string).collect::<Vec<_>>());
        let Ok(segment) = Segment::parse("s", record.to_string().as_bytes()) else { return Ok(()) };
        let given = &segment.subnets[0];
        let attachment = Attachment { container_id: "c".to_owned(), if_name: "eth0".to_owned() };
        for node in ["node1", "node2", "node3"] {
            let mut book = LeaseBook::new(segment.clone(), node);
            let request = Request { attachment: attachment.clone(), pod: None, ips: Vec::new(), mac: None };
            let ip = book.choose(&request, 0).unwrap().leases[0].ip;
            prop_assert!((given.first..=given.last).contains(&ip) && subnet.contains(&ip));
            prop_assert!(given.gateway != Some(ip) && !exclude.iter().any(|net| net.contains(&ip)));
        }
    }
}
