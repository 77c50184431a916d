use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;
use tenon_netdev::{AddressFlags, Error, Route, RouteFilter, Scope};

use crate::ground::Ground;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A pod with an IPv4 and an IPv6 address, and the index of its link.
fn pod() -> (Ground, Ground, u32) {
    let (host, pod) = (Ground::new(), Ground::new());
    let index = host.connect(&pod, "h0", "p0").peer_index;
    let nodad = AddressFlags { nodad: true, ..AddressFlags::default() };
    pod.netlink.add_address(index, net("10.1.2.3/22"), AddressFlags::default()).unwrap();
    pod.netlink.add_address(index, net("fd00::3/64"), nodad).unwrap();
    (host, pod, index)
}

#[test]
fn routes_are_made_as_asked() {
    let (_host, pod, index) = pod();
    let routes = [
        Route::via(net("0.0.0.0/0"), ip("10.1.0.1"), index),
        Route { source: Some(ip("10.1.2.3")), mtu: Some(1400), ..Route::direct(net("10.9.0.0/16"), index) },
        Route { onlink: true, ..Route::via(net("10.8.0.0/16"), ip("169.254.1.1"), index) },
        Route { table: 1000, ..Route::via(net("10.7.0.0/16"), ip("10.1.0.2"), index) },
        Route { scope: Scope::Link, ..Route::direct(net("10.6.6.6/32"), index) },
        Route::via(net("::/0"), ip("fd00::1"), index),
        Route { mtu: Some(1380), ..Route::direct(net("fd01::/64"), index) },
    ];
    for route in &routes {
        pod.netlink.replace_route(route).unwrap();
        pod.netlink.replace_route(route).unwrap();
    }

    let default = &pod.ip("route show default")[0];
    assert_eq!((&default["gateway"], &default["dev"]), (&"10.1.0.1".into(), &"p0".into()));
    let direct = &pod.ip("route show 10.9.0.0/16")[0];
    assert_eq!(direct["prefsrc"], "10.1.2.3");
    assert_eq!(direct["scope"], "link");
    assert_eq!(direct["metrics"][0]["mtu"], 1400);
    assert_eq!(pod.ip("route show 10.8.0.0/16")[0]["flags"][0], "onlink");
    assert_eq!(pod.ip("route show table 1000")[0]["gateway"], "10.1.0.2");
    assert_eq!(pod.ip("-6 route show default")[0]["gateway"], "fd00::1");
    assert_eq!(pod.ip("-6 route show fd01::/64")[0]["metrics"][0]["mtu"], 1380);

    let listed = pod.netlink.routes(RouteFilter::default()).unwrap();
    for route in &routes {
        assert_eq!(listed.iter().filter(|listed| *listed == route).count(), 1, "{route:?} in {listed:#?}");
    }
    let by_table = pod.netlink.routes(RouteFilter { table: Some(1000), device: None }).unwrap();
    assert_eq!(by_table, [routes[3]]);
    assert_eq!(pod.netlink.routes(RouteFilter { table: Some(1001), device: None }).unwrap(), []);
    let by_device = RouteFilter { device: Some(index), table: Some(254) };
    assert!(pod.netlink.routes(by_device).unwrap().contains(&routes[0]));
    // The loopback is number 1 in every namespace.
    let by_other_device = RouteFilter { device: Some(1), table: Some(254) };
    assert_eq!(pod.netlink.routes(by_other_device).unwrap(), []);

    for route in &routes {
        pod.netlink.delete_route(route).unwrap();
        pod.netlink.delete_route(route).unwrap();
    }
    let listed = pod.netlink.routes(RouteFilter::default()).unwrap();
    assert!(routes.iter().all(|route| !listed.contains(route)), "{listed:#?}");
}

#[test]
fn a_route_takes_the_place_of_another() {
    let (_host, pod, index) = pod();
    pod.netlink.replace_route(&Route::via(net("10.9.0.0/16"), ip("10.1.0.1"), index)).unwrap();
    pod.netlink.replace_route(&Route::via(net("10.9.0.0/16"), ip("10.1.0.2"), index)).unwrap();
    let seen = pod.ip("route show 10.9.0.0/16");
    assert_eq!(seen.as_array().unwrap().len(), 1);
    assert_eq!(seen[0]["gateway"], "10.1.0.2");
}

#[test]
fn bits_after_the_prefix_do_not_matter() {
    let (_host, pod, index) = pod();
    pod.netlink.replace_route(&Route::direct(net("10.9.8.7/16"), index)).unwrap();
    assert_eq!(pod.ip("route show 10.9.0.0/16").as_array().unwrap().len(), 1);
    pod.netlink.delete_route(&Route::direct(net("10.9.6.5/16"), index)).unwrap();
    assert_eq!(pod.ip("route show 10.9.0.0/16").as_array().unwrap().len(), 0);
}

#[test]
fn every_next_hop_of_a_route_is_listed() {
    let (_host, pod, index) = pod();
    pod.tool("ip route add 10.9.0.0/16 nexthop via 10.1.0.1 dev p0 nexthop via 10.1.0.2 dev p0 onlink");
    pod.tool("ip route add 10.8.0.0/16 via inet6 fd00::1 dev p0");
    let listed = pod.netlink.routes(RouteFilter { device: Some(index), table: None }).unwrap();
    for wanted in [
        Route::via(net("10.9.0.0/16"), ip("10.1.0.1"), index),
        Route { onlink: true, ..Route::via(net("10.9.0.0/16"), ip("10.1.0.2"), index) },
        Route::via(net("10.8.0.0/16"), ip("fd00::1"), index),
    ] {
        assert!(listed.contains(&wanted), "{wanted:?} in {listed:#?}");
    }
}

#[test]
fn refusals_name_the_route_and_carry_the_kernels_words() {
    let (_host, pod, index) = pod();
    let error =
        pod.netlink.replace_route(&Route::via(net("10.9.0.0/16"), ip("192.0.2.1"), index)).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENETUNREACH));
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("cannot set route to 10.9.0.0/16 by link {index}: ENETUNREACH")),
        "{text}"
    );
    assert!(text.contains("Nexthop has invalid gateway"), "{text}");
    let mixed = Route::via(net("10.9.0.0/16"), ip("fd00::1"), index);
    assert!(matches!(pod.netlink.replace_route(&mixed), Err(Error::Invalid { .. })));
    let missing = Route::direct(net("10.9.0.0/16"), 4711);
    assert_eq!(pod.netlink.replace_route(&missing).unwrap_err().errno(), Some(Errno::ENODEV));
    pod.netlink.delete_route(&missing).unwrap();
    let filter = RouteFilter { device: Some(4711), table: None };
    assert_eq!(pod.netlink.routes(filter).unwrap_err().errno(), Some(Errno::ENODEV));
}

#[test]
fn the_way_to_a_destination_is_found() {
    let (_host, pod, index) = pod();
    let direct = pod.netlink.route_to(ip("10.1.0.9")).unwrap();
    assert_eq!((direct.device, direct.source, direct.gateway), (index, Some(ip("10.1.2.3")), None));
    assert_eq!(direct.mtu, None);
    pod.netlink
        .replace_route(&Route { mtu: Some(1400), ..Route::via(net("0.0.0.0/0"), ip("10.1.0.1"), index) })
        .unwrap();
    let far = pod.netlink.route_to(ip("192.0.2.1")).unwrap();
    assert_eq!((far.device, far.source, far.gateway), (index, Some(ip("10.1.2.3")), Some(ip("10.1.0.1"))));
    assert_eq!(far.mtu, Some(1400));
    let v6 = pod.netlink.route_to(ip("fd00::9")).unwrap();
    assert_eq!((v6.device, v6.source, v6.gateway), (index, Some(ip("fd00::3")), None));
}

#[test]
fn no_way_is_an_error_that_names_the_destination() {
    let ground = Ground::new();
    for destination in ["192.0.2.1", "fd77::1"] {
        let error = ground.netlink.route_to(ip(destination)).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENETUNREACH));
        assert!(
            error.to_string().starts_with(&format!("cannot find a route to {destination}: ENETUNREACH")),
            "{error}"
        );
    }
    ground.tool("ip -6 route add unreachable fd78::/64");
    ground.tool("ip route add unreachable 192.0.3.0/24");
    for destination in ["192.0.3.1", "fd78::1"] {
        assert!(ground.netlink.route_to(ip(destination)).is_err());
    }
}
