use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::arguments::Verb;
use crate::conf::Attachment;
use crate::error::code;

fn environment(verb: &str) -> Environment {
    Environment {
        command: verb.to_owned(),
        container_id: "c1".to_owned(),
        netns: "/run/netns/pod".to_owned(),
        ifname: "eth0".to_owned(),
        args: "K8S_POD_NAMESPACE=a".to_owned(),
        path: "/opt/cni/bin".to_owned(),
    }
}

fn request(args: &str, extra: Value) -> Request {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "tenon", "type": "tenon"});
    conf.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let environment = Environment { args: args.to_owned(), ..environment("ADD") };
    Request::new(environment, RawConf::from_value(conf).unwrap()).unwrap()
}

fn body(frame: &[u8]) -> &[u8] {
    let (header, body) = frame.split_first_chunk().unwrap();
    assert_eq!(frame::body_length(*header).unwrap(), body.len());
    body
}

#[test]
fn a_request_arrives_as_it_was_sent() {
    let sent = request(
        "IP=10.0.0.9;MAC=02:00:00:00:00:09",
        json!({"bandwidth": {"ingressRate": 5}, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24"}]]}}),
    );
    let received = Request::decode(body(&sent.encode().unwrap())).unwrap();
    assert_eq!(received, sent);
    assert_eq!(received.conf.raw.fields()["ipam"]["ranges"][0][0]["subnet"], "10.0.0.0/24");
}

#[test]
fn gc_carries_the_network_and_its_attachments() {
    let conf = br#"{"cniVersion":"1.1.0","name":"tenon","type":"tenon",
        "cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]}"#;
    let sent = Request::new(environment("GC"), RawConf::parse(conf).unwrap()).unwrap();
    let received = Request::decode(body(&sent.encode().unwrap())).unwrap();
    assert_eq!(received.arguments.verb, Verb::Gc);
    assert_eq!(received.conf.name, "tenon");
    let kept = Attachment { container_id: "c1".to_owned(), ifname: "eth0".to_owned() };
    assert_eq!(received.conf.valid_attachments, [kept]);
}

/// The pod's wish goes before the network's, and the runtime's configuration before `CNI_ARGS`.
#[test]
fn who_is_heard_first() {
    let annotated = json!({"segment": "net", "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"tenon.io/segment": "pod"}}});
    assert_eq!(request("TENON_SEGMENT=args", annotated).segment(), Some("pod"));
    let blank = json!({"segment": "net", "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"tenon.io/segment": ""}}});
    assert_eq!(request("TENON_SEGMENT=args", blank).segment(), Some("args"));
    assert_eq!(request("", json!({"segment": "net"})).segment(), Some("net"));
    assert_eq!(request("", json!({})).segment(), None);

    let args = "IP=10.0.0.9;MAC=02:00:00:00:00:09";
    let wished = json!({"runtimeConfig": {"ips": ["10.0.0.5/24"], "mac": "02:00:00:00:00:05"}});
    let both = request(args, wished);
    assert_eq!(both.requested_ips(), ["10.0.0.5/24".parse().unwrap()]);
    assert_eq!(both.requested_mac().unwrap().to_string(), "02:00:00:00:00:05");
    let of_args = request(args, json!({}));
    assert_eq!(of_args.requested_ips(), ["10.0.0.9".parse().unwrap()]);
    assert_eq!(of_args.requested_mac().unwrap().to_string(), "02:00:00:00:00:09");
    assert!(request("", json!({})).requested_ips().is_empty());
}

#[test]
fn responses_arrive_as_they_were_sent() {
    let error = Error::try_again("no subnet yet").with_details("wait");
    let added = Success::parse(json!({"ips": [{"address": "10.0.0.5/24", "interface": 0}]})).unwrap();
    let responses = [
        Response::Added(Success::default()),
        Response::from(Ok::<_, Error>(added)),
        Response::from(Ok::<_, Error>(())),
        Response::from(Err::<(), _>(error.clone())),
        Response::from(Err::<Success, _>(error)),
    ];
    for sent in responses {
        assert_eq!(Response::decode(body(&sent.encode().unwrap())).unwrap(), sent);
    }
}

#[test]
fn peers_of_another_release_are_told() {
    let other = br#"{"protocol":2,"verb":{"is":"anything"},"result":[]}"#;
    assert_eq!(Response::decode(other), Err(WireError::Protocol(2)));
    let error = Error::from(Request::decode(other).unwrap_err());
    assert_eq!(error.code, code::PROTOCOL);
    assert!(error.msg.contains("speaks protocol 2, this program protocol 1: install"), "{}", error.msg);
}

#[test]
fn documents_that_are_none() {
    for bytes in ["", "{}", "[]", "{\"protocol\":\"1\"}", "{\"protocol\":-1}", "{\"protocol\":1", "\u{0}"] {
        assert!(matches!(Request::decode(bytes.as_bytes()), Err(WireError::Malformed(_))), "{bytes:?}");
        assert!(matches!(Response::decode(bytes.as_bytes()), Err(WireError::Malformed(_))), "{bytes:?}");
    }
    let both = br#"{"protocol":1,"result":{},"error":{"code":7,"msg":"x"}}"#;
    assert!(matches!(Response::decode(both), Err(WireError::Malformed(_))));
    assert!(matches!(Request::decode(b"{\"protocol\":1}"), Err(WireError::Malformed(_))));
}

/// What a plugin would have refused, the agent refuses too, with the code for it.
#[test]
fn the_agent_checks_as_the_plugin_does() {
    let table = [
        (json!({"CNI_COMMAND": "ADD"}), json!({}), code::INVALID_ENVIRONMENT),
        (json!({"CNI_COMMAND": "STATUS"}), json!([]), code::DECODING_FAILURE),
        (
            json!({"CNI_COMMAND": "STATUS"}),
            json!({"name": "../x", "cniVersion": "1.1.0"}),
            code::INVALID_CONFIG,
        ),
        (
            json!({"CNI_COMMAND": "STATUS"}),
            json!({"name": "x", "cniVersion": "1.0.0"}),
            code::INCOMPATIBLE_VERSION,
        ),
    ];
    for (environment, conf, code) in table {
        let document = json!({"protocol": 1, "environment": environment, "conf": conf}).to_string();
        assert_eq!(Error::from(Request::decode(document.as_bytes()).unwrap_err()).code, code, "{document}");
    }
}

#[test]
fn a_request_has_its_bound() {
    let long = request("", json!({"foreign": "x".repeat(frame::MAX_BODY_BYTES)}));
    assert!(long.encode().is_err());
}

proptest! {
    #[test]
    fn no_document_panics(bytes in any::<Vec<u8>>(), text in "\\{\"protocol\":1,\"(environment|conf|result|error)\":.{0,20}\\}") {
        for body in [bytes.as_slice(), text.as_bytes()] {
            let _ = Request::decode(body);
            let _ = Response::decode(body);
        }
    }

    #[test]
    fn errors_survive_the_way(code in any::<u32>(), msg in any::<String>(), details in any::<String>()) {
        let sent = Response::Failed(Error { code, msg, details });
        prop_assert_eq!(Response::decode(body(&sent.encode().unwrap())).unwrap(), sent);
    }
}

fn limited_request(annotations: serde_json::Value, bandwidth: serde_json::Value) -> Result<Bandwidth, Error> {
    let conf = serde_json::json!({
        "cniVersion": "1.1.0", "name": "tenon", "type": "tenon",
        "runtimeConfig": { "bandwidth": bandwidth, "io.kubernetes.cri.pod-annotations": annotations },
    });
    let environment = Environment {
        command: "ADD".into(),
        container_id: "c1".into(),
        netns: "/run/netns/x".into(),
        ifname: "eth0".into(),
        ..Environment::default()
    };
    Request::new(environment, RawConf::from_value(conf)?)?.bandwidth()
}

#[test]
fn an_annotation_wins_over_the_configuration() {
    let configured =
        serde_json::json!({ "ingressRate": 5_000_000, "egressRate": 7_000_000, "egressBurst": 9_000 });
    let rates =
        |bandwidth: Bandwidth| (bandwidth.ingress.map(|l| l.rate_bps), bandwidth.egress.map(|l| l.rate_bps));
    for (annotations, ingress, egress) in [
        (serde_json::json!({}), Some(5_000_000), Some(7_000_000)),
        (serde_json::json!({"kubernetes.io/ingress-bandwidth": "10M"}), Some(10_000_000), Some(7_000_000)),
        (serde_json::json!({"kubernetes.io/egress-bandwidth": "1Mi"}), Some(5_000_000), Some(1 << 20)),
        (serde_json::json!({"kubernetes.io/egress-bandwidth": "0"}), Some(5_000_000), None),
    ] {
        let found = limited_request(annotations.clone(), configured.clone()).unwrap();
        assert_eq!(rates(found), (ingress, egress), "{annotations}");
    }
    let own_burst = serde_json::json!({"kubernetes.io/egress-bandwidth": "7M"});
    assert_eq!(limited_request(own_burst, configured).unwrap().egress.unwrap().burst_bits, Some(9_000));
}

#[test]
fn a_limit_that_no_pod_can_have_is_refused_by_name_and_value() {
    for (annotations, bandwidth, named) in [
        (
            serde_json::json!({"kubernetes.io/ingress-bandwidth": "10MB"}),
            serde_json::json!({}),
            ["ingress-bandwidth", "10MB"],
        ),
        (
            serde_json::json!({"kubernetes.io/egress-bandwidth": "-1M"}),
            serde_json::json!({}),
            ["egress-bandwidth", "-1M"],
        ),
        (
            serde_json::json!({"kubernetes.io/egress-bandwidth": "999"}),
            serde_json::json!({}),
            ["egress-bandwidth", "999"],
        ),
        (
            serde_json::json!({"kubernetes.io/egress-bandwidth": "1.1P"}),
            serde_json::json!({}),
            ["egress-bandwidth", "1P"],
        ),
        (serde_json::json!({}), serde_json::json!({"ingressRate": 999}), ["bandwidth.ingressRate", "999"]),
    ] {
        let error = limited_request(annotations, bandwidth).unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG);
        for part in named {
            assert!(error.msg.contains(part), "{} does not name {part}", error.msg);
        }
    }
}

#[test]
fn a_change_of_limits_is_a_call() {
    let body = br#"{"protocol":1,"limit":{"namespace":"a","pod":"m1","bandwidth":{"egressRate":1000000}}}"#;
    let Call::Limit(change) = Call::decode(body).unwrap() else { panic!("not a change of limits") };
    assert_eq!((change.namespace.as_str(), change.pod.as_str()), ("a", "m1"));
    assert_eq!(change.bandwidth.egress.unwrap().rate_bps, 1_000_000);
    assert_eq!(change.bandwidth.ingress, None);
    let body = br#"{"protocol":1,"limit":{"namespace":"a","pod":"m1","bandwidth":{"egressRate":1}}}"#;
    assert!(Call::decode(body).unwrap_err().to_string().contains("egressRate"));
    assert!(Call::decode(br#"{"protocol":9,"limit":{}}"#).is_err());
}
