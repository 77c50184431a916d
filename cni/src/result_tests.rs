use proptest::prelude::*;
use serde_json::json;

use super::*;

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn success() -> Success {
    Success {
        interfaces: vec![
            Interface {
                name: "veth1".to_owned(),
                mac: "02:00:00:00:00:01".to_owned(),
                ..Interface::default()
            },
            Interface {
                name: "eth0".to_owned(),
                mac: "02:00:00:00:00:05".to_owned(),
                mtu: Some(1450),
                sandbox: "/run/netns/pod".to_owned(),
                ..Interface::default()
            },
        ],
        ips: vec![
            Ip { address: cidr("172.11.0.5/22"), gateway: Some([172, 11, 0, 1].into()), interface: Some(1) },
            Ip { address: cidr("fd00::5/64"), gateway: None, interface: Some(1) },
        ],
        routes: vec![
            Route { mtu: Some(1400), scope: Some(0), ..Route::to(cidr("0.0.0.0/0")) }
                .via([172, 11, 0, 1].into()),
            Route {
                advmss: Some(1360),
                priority: Some(10),
                table: Some(254),
                ..Route::to(cidr("10.96.0.0/12"))
            },
        ],
        dns: Dns { nameservers: vec!["10.96.0.10".to_owned()], ..Dns::default() },
    }
}

#[test]
fn golden_1_1_0() {
    assert_eq!(
        success().to_json(Version::V1_1_0),
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "veth1", "mac": "02:00:00:00:00:01"},
                {"name": "eth0", "mac": "02:00:00:00:00:05", "mtu": 1450, "sandbox": "/run/netns/pod"}
            ],
            "ips": [
                {"address": "172.11.0.5/22", "gateway": "172.11.0.1", "interface": 1},
                {"address": "fd00::5/64", "interface": 1}
            ],
            "routes": [
                {"dst": "0.0.0.0/0", "gw": "172.11.0.1", "mtu": 1400, "scope": 0},
                {"dst": "10.96.0.0/12", "advmss": 1360, "priority": 10, "table": 254}
            ],
            "dns": {"nameservers": ["10.96.0.10"]}
        })
    );
}

#[test]
fn golden_1_0_0() {
    assert_eq!(
        success().to_json(Version::V1_0_0),
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "veth1", "mac": "02:00:00:00:00:01"},
                {"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": "/run/netns/pod"}
            ],
            "ips": [
                {"address": "172.11.0.5/22", "gateway": "172.11.0.1", "interface": 1},
                {"address": "fd00::5/64", "interface": 1}
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "172.11.0.1"}, {"dst": "10.96.0.0/12"}],
            "dns": {"nameservers": ["10.96.0.10"]}
        })
    );
}

#[test]
fn golden_0_4_0_and_0_3_1() {
    for version in [Version::V0_4_0, Version::V0_3_1] {
        assert_eq!(
            success().to_json(version),
            json!({
                "cniVersion": version.as_str(),
                "interfaces": [
                    {"name": "veth1", "mac": "02:00:00:00:00:01"},
                    {"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": "/run/netns/pod"}
                ],
                "ips": [
                    {"version": "4", "address": "172.11.0.5/22", "gateway": "172.11.0.1", "interface": 1},
                    {"version": "6", "address": "fd00::5/64", "interface": 1}
                ],
                "routes": [{"dst": "0.0.0.0/0", "gw": "172.11.0.1"}, {"dst": "10.96.0.0/12"}],
                "dns": {"nameservers": ["10.96.0.10"]}
            })
        );
    }
}

#[test]
fn an_empty_result_has_its_version_alone() {
    assert_eq!(Success::default().to_json(Version::V0_3_1), json!({"cniVersion": "0.3.1"}));
}

/// What was printed for any version is read again as a `prevResult`.
#[test]
fn printed_results_are_read() {
    assert_eq!(Success::parse(success().to_json(Version::V1_1_0)).unwrap(), success());
    for version in [Version::V1_0_0, Version::V0_4_0, Version::V0_3_1] {
        let read = Success::parse(success().to_json(version)).unwrap();
        assert_eq!(read.ips, success().ips);
        assert_eq!(read.interfaces[1].mtu, None);
        assert_eq!(read.routes[0], Route::to(cidr("0.0.0.0/0")).via([172, 11, 0, 1].into()));
    }
}

/// As `host-local` 1.1.1 prints it, and as Go programs write what is empty.
#[test]
fn other_programs_results_are_read() {
    let host_local = r#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.0.2/16","gateway":"10.1.0.1"}],
        "routes":[{"dst":"0.0.0.0/0"}],"dns":{}}"#;
    let read = Success::parse(serde_json::from_str(host_local).unwrap()).unwrap();
    assert_eq!(
        read.ips,
        [Ip { address: cidr("10.1.0.2/16"), gateway: Some([10, 1, 0, 1].into()), interface: None }]
    );
    let empty = json!({"interfaces": null, "ips": null, "routes": null, "dns": {"nameservers": null, "domain": null}});
    assert_eq!(Success::parse(empty).unwrap(), Success::default());
    for malformed in [json!({"ips": [{}]}), json!({"interfaces": [{"mac": "x"}]}), json!([1]), json!("x")] {
        assert!(Success::parse(malformed.clone()).is_err(), "{malformed}");
    }
}

proptest! {
    #[test]
    fn addresses_survive_every_version(octets in any::<[u8; 4]>(), prefix in 0..=32_u8, index in any::<u32>()) {
        let address = Cidr::new(octets.into(), prefix).unwrap();
        let ips = vec![Ip { address, gateway: Some(octets.into()), interface: Some(index) }];
        for version in Version::SUPPORTED {
            let printed = Success { ips: ips.clone(), ..Success::default() }.to_json(version);
            prop_assert_eq!(&Success::parse(printed).unwrap().ips, &ips);
        }
    }
}
