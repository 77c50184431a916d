use ipnet::IpNet;
use nix::errno::Errno;
use serde_json::Value;
use tenon_netdev::AddressFlags;

use crate::ground::Ground;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn seen(ground: &Ground, address: &str) -> Option<Value> {
    let links = ground.ip("address show dev p0");
    let infos = links[0]["addr_info"].as_array().unwrap().clone();
    infos.into_iter().find(|info| info["local"] == address)
}

#[test]
fn addresses_are_added_listed_and_deleted() {
    let (host, pod) = (Ground::new(), Ground::new());
    let index = host.connect(&pod, "h0", "p0").peer_index;
    let nodad = AddressFlags { nodad: true, ..AddressFlags::default() };
    pod.netlink.add_address(index, net("10.1.2.3/22"), AddressFlags::default()).unwrap();
    pod.netlink.add_address(index, net("fd00::3/64"), nodad).unwrap();

    let v4 = seen(&pod, "10.1.2.3").unwrap();
    assert_eq!(v4["prefixlen"], 22);
    assert_eq!(v4["scope"], "global");
    let v6 = seen(&pod, "fd00::3").unwrap();
    assert_eq!(v6["prefixlen"], 64);
    assert_eq!(v6["nodad"], true);
    assert!(v6["tentative"].is_null(), "{v6}");

    let listed = pod.netlink.addresses(index).unwrap();
    for wanted in ["10.1.2.3/22", "fd00::3/64"] {
        let address = listed.iter().find(|address| address.address == net(wanted)).unwrap();
        assert!(address.index == index && !address.tentative && !address.duplicate, "{address:?}");
    }
    // The link-local one is the kernel's own.
    assert_eq!(listed.len(), 3);

    for address in ["10.1.2.3/22", "fd00::3/64"] {
        pod.netlink.delete_address(index, net(address)).unwrap();
        pod.netlink.delete_address(index, net(address)).unwrap();
    }
    assert_eq!(seen(&pod, "10.1.2.3"), None);
    assert_eq!(seen(&pod, "fd00::3"), None);
}

#[test]
fn an_address_is_tentative_unless_told_otherwise() {
    let (host, pod) = (Ground::new(), Ground::new());
    let index = host.connect(&pod, "h0", "p0").peer_index;
    pod.netlink.add_address(index, net("fd00::3/64"), AddressFlags::default()).unwrap();
    let listed = pod.netlink.addresses(index).unwrap();
    assert!(listed.iter().find(|address| address.address == net("fd00::3/64")).unwrap().tentative);
}

#[test]
fn an_address_that_is_there_already_is_an_error_or_fine() {
    let (host, pod) = (Ground::new(), Ground::new());
    let index = host.connect(&pod, "h0", "p0").peer_index;
    for address in ["10.1.2.3/22", "fd00::3/64"] {
        pod.netlink.ensure_address(index, net(address), AddressFlags::default()).unwrap();
        pod.netlink.ensure_address(index, net(address), AddressFlags::default()).unwrap();
        let error = pod.netlink.add_address(index, net(address), AddressFlags::default()).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EEXIST));
        let start = format!("cannot add address {address} to link {index}: EEXIST");
        assert!(error.to_string().starts_with(&start), "{error}");
    }
}

#[test]
fn no_route_is_made_to_the_subnet_if_so_asked() {
    let (host, pod) = (Ground::new(), Ground::new());
    let index = host.connect(&pod, "h0", "p0").peer_index;
    let flags = AddressFlags { noprefixroute: true, ..AddressFlags::default() };
    pod.netlink.add_address(index, net("10.1.2.3/22"), flags).unwrap();
    assert_eq!(pod.ip("route").as_array().unwrap().len(), 0);
    assert_eq!(seen(&pod, "10.1.2.3").unwrap()["noprefixroute"], true);
}

#[test]
fn a_missing_link_is_named() {
    let ground = Ground::new();
    let error = ground.netlink.addresses(4711).unwrap_err();
    assert!(error.to_string().starts_with("cannot list addresses of link 4711: ENODEV"), "{error}");
    let error = ground.netlink.add_address(4711, net("10.1.2.3/22"), AddressFlags::default()).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENODEV));
    ground.netlink.delete_address(4711, net("10.1.2.3/22")).unwrap();
    ground.netlink.delete_address(4711, net("fd00::3/64")).unwrap();
}
