use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::bandwidth::Limit;
use crate::error::code;

fn conf() -> Value {
    json!({"cniVersion": "1.1.0", "name": "tenon", "type": "tenon"})
}

fn with(key: &str, value: Value) -> Value {
    let mut conf = conf();
    conf[key] = value;
    conf
}

fn resolve(conf: Value, verb: Verb) -> Result<NetConf, Error> {
    NetConf::resolve(RawConf::from_value(conf)?, verb)
}

#[test]
fn the_shortest_configuration() {
    let resolved = resolve(conf(), Verb::Add).unwrap();
    assert_eq!(resolved.version, Version::V1_1_0);
    assert_eq!((resolved.name.as_str(), resolved.plugin.as_str()), ("tenon", "tenon"));
    assert_eq!(resolved.mode, Mode::Overlay);
    assert_eq!(resolved.agent_socket, PathBuf::from("/run/tenon/agent.sock"));
    assert_eq!((resolved.segment, resolved.ipam, resolved.mac), (None, None, None));
    assert_eq!(resolved.bandwidth, Bandwidth::default());
    assert!(resolved.ips.is_empty() && resolved.annotations.is_empty() && resolved.dns.is_empty());
}

#[test]
fn a_full_configuration() {
    let resolved = resolve(
        json!({
            "cniVersion": "0.4.0", "name": "lan", "type": "tenon", "mode": "macvlan", "agentSocket": "/tmp/a.sock",
            "segment": "vlan100", "foreign": {"kept": [1]}, "ipam": {"type": "host-local", "subnet": "10.0.0.0/24"},
            "bandwidth": {"ingressRate": 5, "egressRate": 6, "egressBurst": 7},
            "dns": {"nameservers": ["10.96.0.10"], "search": null}, "capabilities": {"mac": true, "aliases": false},
            "runtimeConfig": {
                "bandwidth": {"IngressRate": 9, "IngressBurst": 4_294_967_295_u64, "EgressRate": 0, "EgressBurst": 0},
                "ips": ["10.0.0.5/24", "fd00::5"], "mac": "02:00:00:00:00:05",
                "io.kubernetes.cri.pod-annotations": {"tenon.io/segment": "vlan200", "a": "b"}
            },
            "prevResult": {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.5/24"}]}
        }),
        Verb::Check,
    )
    .unwrap();
    assert_eq!(resolved.version, Version::V0_4_0);
    assert_eq!(resolved.mode, Mode::Macvlan);
    assert_eq!(resolved.agent_socket, PathBuf::from("/tmp/a.sock"));
    assert_eq!(resolved.segment.as_deref(), Some("vlan100"));
    assert_eq!(resolved.ipam, Some(Ipam { plugin: "host-local".to_owned() }));
    assert_eq!(resolved.bandwidth.ingress, Some(Limit { rate_bps: 9, burst_bits: None }));
    assert_eq!(resolved.bandwidth.egress, Some(Limit { rate_bps: 6, burst_bits: Some(7) }));
    assert_eq!(resolved.dns.nameservers, ["10.96.0.10"]);
    assert_eq!(resolved.capabilities.get("aliases"), Some(&false));
    assert_eq!(resolved.ips.len(), 2);
    assert_eq!(resolved.mac.unwrap().to_string(), "02:00:00:00:00:05");
    assert_eq!(resolved.annotations.get(SEGMENT_ANNOTATION).map(String::as_str), Some("vlan200"));
    assert_eq!(resolved.prev_result.unwrap().ips.len(), 1);
    assert_eq!(resolved.raw.fields().get("foreign"), Some(&json!({"kept": [1]})));
}

#[test]
fn what_is_not_json_cannot_be_decoded() {
    for bytes in ["", "x", "{", "[]", "1", "null", "{}{}", "\u{0}"] {
        assert_eq!(RawConf::parse(bytes.as_bytes()).unwrap_err().code, code::DECODING_FAILURE, "{bytes:?}");
    }
    assert_eq!(RawConf::parse(b"{\"name\":\"\xff\"}").unwrap_err().code, code::DECODING_FAILURE);
    assert_eq!(RawConf::parse(&[b'['; 100_000]).unwrap_err().code, code::DECODING_FAILURE);
}

#[test]
fn versions_have_their_verbs() {
    let table = [
        (Verb::Add, "0.3.1", None),
        (Verb::Del, "0.3.1", None),
        (Verb::Check, "0.3.1", Some(code::INCOMPATIBLE_VERSION)),
        (Verb::Check, "0.4.0", None),
        (Verb::Gc, "1.0.0", Some(code::INCOMPATIBLE_VERSION)),
        (Verb::Gc, "1.1.0", None),
        (Verb::Status, "1.0.0", Some(code::INCOMPATIBLE_VERSION)),
        (Verb::Status, "1.1.0", None),
        (Verb::Add, "0.2.0", Some(code::INCOMPATIBLE_VERSION)),
        (Verb::Add, "2.0.0", Some(code::INCOMPATIBLE_VERSION)),
    ];
    for (verb, version, fault) in table {
        let mut conf = with("cniVersion", json!(version));
        conf["prevResult"] = json!({});
        conf["cni.dev/valid-attachments"] = json!([]);
        assert_eq!(resolve(conf, verb).err().map(|error| error.code), fault, "{verb} {version}");
    }
    let mut without = conf();
    without.as_object_mut().unwrap().remove("cniVersion");
    assert_eq!(resolve(without, Verb::Add).unwrap_err().code, code::INCOMPATIBLE_VERSION);
    assert_eq!(resolve(with("cniVersion", json!(1)), Verb::Add).unwrap_err().code, code::DECODING_FAILURE);
}

/// Faults that no verb can pass over: without these nothing tells which attachment is meant.
#[test]
fn a_network_needs_a_name() {
    for name in [json!(null), json!(""), json!(5), json!("a/b"), json!("-a"), json!("a b"), json!("../x")] {
        for verb in [Verb::Add, Verb::Del] {
            let error = resolve(with("name", name.clone()), verb).unwrap_err();
            assert_eq!(error.code, code::INVALID_CONFIG);
            assert!(error.msg.starts_with("name: "), "{}", error.msg);
        }
    }
}

/// Every fault in a setting, and that it ends ADD but not the DEL that follows.
#[test]
fn faults_name_key_and_value() {
    let annotations = |value: Value| json!({"io.kubernetes.cri.pod-annotations": value});
    let table = [
        ("type", json!(""), "type: missing"),
        ("mode", json!("vlan"), "mode: \"vlan\" is neither overlay nor macvlan"),
        ("mode", json!(1), "mode: 1 is not text"),
        ("agentSocket", json!("agent.sock"), "agentSocket: \"agent.sock\" is not an absolute path"),
        ("agentSocket", json!("/a\u{0}"), "agentSocket: \"/a\\0\" is not"),
        ("segment", json!("a/b"), "segment: \"a/b\" must be"),
        ("bandwidth", json!({"ingressRate": -5}), "bandwidth.ingressRate: -5 is"),
        ("ipam", json!("host-local"), "ipam: \"host-local\" is not an object"),
        ("ipam", json!({"type": 1}), "ipam.type: 1 is not text"),
        ("ipam", json!({"type": "../sh"}), "ipam.type: \"../sh\" is not the name of a plugin"),
        ("ipam", json!({"type": ".."}), "ipam.type: \"..\" is not the name of a plugin"),
        ("dns", json!({"nameservers": "x"}), "dns: {\"nameservers\":\"x\"}: "),
        ("capabilities", json!({"mac": "yes"}), "capabilities.mac: \"yes\" is neither"),
        ("runtimeConfig", json!([]), "runtimeConfig: [] is not an object"),
        (
            "runtimeConfig",
            json!({"bandwidth": {"EgressRate": 0.5}}),
            "runtimeConfig.bandwidth.EgressRate: 0.5 is",
        ),
        ("runtimeConfig", json!({"ips": "10.0.0.1"}), "runtimeConfig.ips: \"10.0.0.1\" is not a list"),
        ("runtimeConfig", json!({"ips": [1]}), "runtimeConfig.ips: 1 is not text"),
        ("runtimeConfig", json!({"ips": ["x"]}), "runtimeConfig.ips: \"x\" is not an IP address"),
        ("runtimeConfig", json!({"mac": "x"}), "runtimeConfig.mac: \"x\" is not a MAC address"),
        ("runtimeConfig", json!({"mac": 1}), "runtimeConfig.mac: 1 is not text"),
        (
            "runtimeConfig",
            annotations(json!([])),
            "runtimeConfig[\"io.kubernetes.cri.pod-annotations\"]: [] is not",
        ),
        ("runtimeConfig", annotations(json!({"a": 1})), "annotation a: 1 is not text"),
        (
            "runtimeConfig",
            annotations(json!({"tenon.io/segment": "a/b"})),
            "annotation tenon.io/segment: \"a/b\" must",
        ),
        ("prevResult", json!({"ips": [{"address": "x"}]}), "prevResult: not the result of an ADD"),
    ];
    for (key, value, message) in table {
        let error = resolve(with(key, value.clone()), Verb::Add).unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG);
        assert!(error.msg.starts_with(message), "{key} {value}: {}", error.msg);
        let released = resolve(with(key, value.clone()), Verb::Del);
        assert!(released.is_ok(), "{key} {value}: {released:?}");
    }
}

#[test]
fn empty_settings_count_as_not_given() {
    for key in ["mode", "agentSocket", "segment"] {
        for empty in [json!(null), json!("")] {
            assert_eq!(resolve(with(key, empty), Verb::Add).unwrap().mode, Mode::Overlay);
        }
    }
    for ipam in [json!(null), json!({}), json!({"type": null}), json!({"type": ""})] {
        assert_eq!(resolve(with("ipam", ipam), Verb::Add).unwrap().ipam, None);
    }
    let runtime =
        json!({"bandwidth": null, "ips": null, "mac": "", "io.kubernetes.cri.pod-annotations": null});
    let resolved = resolve(with("runtimeConfig", runtime), Verb::Add).unwrap();
    assert_eq!((resolved.bandwidth, resolved.mac), (Bandwidth::default(), None));
}

#[test]
fn check_needs_the_result_of_add() {
    for conf in [conf(), with("prevResult", json!(null))] {
        let error = resolve(conf, Verb::Check).unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG);
        assert!(error.msg.starts_with("prevResult: missing"));
    }
}

/// Removing what is not listed is only safe where there is a list.
#[test]
fn gc_needs_its_list() {
    let error = resolve(conf(), Verb::Gc).unwrap_err();
    assert_eq!(
        (error.code, error.msg.starts_with("cni.dev/valid-attachments: missing")),
        (code::INVALID_CONFIG, true)
    );
    let list = json!([{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "net1"}]);
    for key in ATTACHMENT_KEYS {
        let attachments = resolve(with(key, list.clone()), Verb::Gc).unwrap().valid_attachments;
        assert_eq!(attachments.len(), 2);
        assert_eq!(attachments[1], Attachment { container_id: "c2".to_owned(), ifname: "net1".to_owned() });
    }
    assert!(resolve(with(ATTACHMENT_KEYS[0], json!(null)), Verb::Gc).unwrap().valid_attachments.is_empty());
    let malformed = [
        json!("c1"),
        json!({}),
        json!(["c1"]),
        json!([{"containerID": "c1"}]),
        json!([{"containerID": "c1", "ifname": 1}]),
        json!([{"containerID": "/", "ifname": "eth0"}]),
        json!([{"containerID": "c1", "ifname": "a/b"}]),
    ];
    for value in malformed {
        let error = resolve(with(ATTACHMENT_KEYS[0], value.clone()), Verb::Gc).unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG, "{value}");
    }
}

/// The file that is installed on nodes, as a runtime makes a plugin's configuration of it.
#[test]
fn the_shipped_conflist() {
    let list: Value = serde_json::from_str(include_str!("../../conf/10-tenon.conflist")).unwrap();
    let [plugin] = list["plugins"].as_array().unwrap().as_slice() else { panic!("one plugin expected") };
    let mut conf = plugin.clone();
    conf["name"] = list["name"].clone();
    conf["cniVersion"] = list["cniVersion"].clone();
    let resolved = resolve(conf, Verb::Add).unwrap();
    assert_eq!((resolved.version, resolved.name.as_str()), (Version::V1_1_0, "tenon"));
    assert_eq!((resolved.plugin.as_str(), resolved.mode), ("tenon", Mode::Overlay));
    assert_eq!(resolved.agent_socket, PathBuf::from(DEFAULT_AGENT_SOCKET));
    let declared: Vec<_> = resolved.capabilities.into_iter().collect();
    assert_eq!(declared, ["bandwidth", "ips", "mac"].map(|name| (name.to_owned(), true)));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[a-z0-9./:%-]{0,17}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let key = prop_oneof![
            "bandwidth|ips|mac|type|ingressRate|IngressBurst|address|containerID|ifname",
            ".{0,4}"
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key, inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn any_verb() -> impl Strategy<Value = Verb> {
    prop_oneof![
        Just(Verb::Add),
        Just(Verb::Del),
        Just(Verb::Check),
        Just(Verb::Gc),
        Just(Verb::Status),
        Just(Verb::Version)
    ]
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in any::<Vec<u8>>(), verb in any_verb()) {
        if let Ok(raw) = RawConf::parse(&bytes) {
            let _ = NetConf::resolve(raw, verb);
        }
    }

    #[test]
    fn no_setting_panics(
        key in "cniVersion|name|type|mode|agentSocket|segment|bandwidth|ipam|dns|runtimeConfig|prevResult|capabilities|cni.dev/valid-attachments",
        value in any_json(),
        verb in any_verb(),
    ) {
        if let Err(error) = resolve(with(&key, value), verb) {
            prop_assert!([1, 6, 7].contains(&error.code), "{}", error);
        }
    }

    /// Whatever a setting other than the network's name and version says, the pod can be deleted.
    #[test]
    fn no_setting_keeps_del_from_its_work(
        key in "type|mode|agentSocket|segment|bandwidth|ipam|dns|runtimeConfig|prevResult|capabilities",
        value in any_json(),
    ) {
        prop_assert!(resolve(with(&key, value), Verb::Del).is_ok());
    }
}
