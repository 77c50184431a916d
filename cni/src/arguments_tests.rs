use proptest::prelude::*;

use super::*;
use crate::error::code;

fn of_verb(verb: &str) -> Environment {
    Environment {
        command: verb.to_owned(),
        container_id: "c0ffee".to_owned(),
        netns: "/run/netns/pod".to_owned(),
        ifname: "eth0".to_owned(),
        args: "K8S_POD_NAMESPACE=a;K8S_POD_NAME=p1".to_owned(),
        path: "/opt/cni/bin:/usr/lib/cni".to_owned(),
    }
}

fn fault(environment: &Environment) -> String {
    let error = Arguments::parse(environment).unwrap_err();
    assert_eq!(error.code, code::INVALID_ENVIRONMENT);
    error.msg
}

#[test]
fn a_full_call() {
    let arguments = Arguments::parse(&of_verb("ADD")).unwrap();
    assert_eq!(arguments.verb, Verb::Add);
    assert_eq!(arguments.container_id, "c0ffee");
    assert_eq!(arguments.netns, Some(PathBuf::from("/run/netns/pod")));
    assert_eq!(arguments.ifname, "eth0");
    assert_eq!(arguments.path, [PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")]);
    assert_eq!(arguments.tenant(), "a");
    assert_eq!(arguments.pod.name.as_deref(), Some("p1"));
}

#[test]
fn verbs() {
    for verb in Verb::ALL {
        assert_eq!(Verb::parse(verb.as_str()).unwrap(), verb);
    }
    for text in ["", "add", "UPDATE", "ADD "] {
        let message = fault(&Environment { command: text.to_owned(), ..of_verb("") });
        assert!(message.starts_with("CNI_COMMAND: "), "{message}");
    }
}

/// Which variables a verb cannot do without, and that the message names them all at once.
#[test]
fn required_variables() {
    let table = [
        ("ADD", "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"),
        ("CHECK", "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"),
        ("DEL", "CNI_CONTAINERID, CNI_IFNAME"),
        ("GC", "CNI_PATH"),
    ];
    for (verb, missing) in table {
        let nothing = Environment { command: verb.to_owned(), ..Environment::default() };
        assert_eq!(fault(&nothing), format!("{missing}: required by {verb} and not set"));
    }
    for verb in ["STATUS", "VERSION"] {
        let nothing = Environment { command: verb.to_owned(), ..Environment::default() };
        Arguments::parse(&nothing).unwrap();
    }
    let no_netns = Environment { netns: String::new(), path: String::new(), ..of_verb("DEL") };
    assert_eq!(Arguments::parse(&no_netns).unwrap().netns, None);
}

#[test]
fn verbs_without_a_container_ignore_what_is_said_about_one() {
    for verb in ["GC", "STATUS", "VERSION"] {
        let odd = Environment {
            container_id: "/".to_owned(),
            ifname: "/".to_owned(),
            args: "?".to_owned(),
            ..of_verb(verb)
        };
        let arguments = Arguments::parse(&odd).unwrap();
        assert_eq!(
            (arguments.container_id.as_str(), arguments.ifname.as_str(), arguments.netns.as_ref()),
            ("", "", None)
        );
        assert_eq!(arguments.tenant(), DEFAULT_TENANT);
    }
}

#[test]
fn container_ids() {
    for id in ["a", "0", "A.b_c-9", &"f".repeat(64)] {
        Arguments::parse(&Environment { container_id: id.to_owned(), ..of_verb("ADD") }).unwrap();
    }
    for id in ["-a", ".a", "_a", "a/b", "../a", "a b", "a\n", "é", "a\0"] {
        let message = fault(&Environment { container_id: id.to_owned(), ..of_verb("DEL") });
        assert!(message.starts_with("CNI_CONTAINERID: "), "{message}");
    }
}

#[test]
fn interface_names() {
    for name in ["e", "eth0", "eth0.100", "...", "é", "fifteen-letters"] {
        Arguments::parse(&Environment { ifname: name.to_owned(), ..of_verb("ADD") }).unwrap();
    }
    for name in
        [".", "..", "a/b", "a:1", "a b", "a\tb", "a\u{a0}b", "a\0", "eth%d", "sixteen-letters-", "éééééééé"]
    {
        let message = fault(&Environment { ifname: name.to_owned(), ..of_verb("CHECK") });
        assert!(message.starts_with("CNI_IFNAME: "), "{message}");
    }
}

#[test]
fn a_netns_is_a_path() {
    assert!(fault(&Environment { netns: "/run\0".to_owned(), ..of_verb("ADD") }).starts_with("CNI_NETNS: "));
}

#[test]
fn pod_arguments() {
    let all = "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=p1;K8S_POD_UID=u;K8S_POD_INFRA_CONTAINER_ID=c;\
               IP=10.0.0.5/24;MAC=02:00:00:00:00:05;TENON_SEGMENT=vlan100;FOO=bar";
    let pod = PodArguments::parse(all).unwrap();
    assert_eq!(
        pod,
        PodArguments {
            namespace: Some("a".to_owned()),
            name: Some("p1".to_owned()),
            uid: Some("u".to_owned()),
            infra_container_id: Some("c".to_owned()),
            ip: Some("10.0.0.5/24".parse().unwrap()),
            mac: Some("02:00:00:00:00:05".parse().unwrap()),
            segment: Some("vlan100".to_owned()),
        }
    );
    assert_eq!(PodArguments::parse("").unwrap(), PodArguments::default());
    let empty = PodArguments::parse("K8S_POD_NAMESPACE=;IP=;MAC=;TENON_SEGMENT=;K8S_POD_NAME=").unwrap();
    assert_eq!(empty, PodArguments::default());
    assert_eq!(PodArguments::parse("K8S_POD_NAME=a;K8S_POD_NAME=b").unwrap().name.as_deref(), Some("b"));
}

/// The rules of the reference plugins, wherever in the list `IgnoreUnknown` stands.
#[test]
fn unknown_pod_arguments() {
    for args in ["FOO=bar;IgnoreUnknown=1", "IgnoreUnknown=true;FOO=bar", "IgnoreUnknown=TRUE;FOO="] {
        assert_eq!(PodArguments::parse(args).unwrap(), PodArguments::default(), "{args}");
    }
    for args in ["FOO=bar", "IgnoreUnknown=0;FOO=bar", "IgnoreUnknown=false;FOO=bar"] {
        let error = PodArguments::parse(args).unwrap_err();
        assert_eq!(error.code, code::INVALID_ENVIRONMENT);
        assert_eq!(error.msg, "CNI_ARGS: unknown [\"FOO=bar\"]; IgnoreUnknown=1 allows them");
    }
}

#[test]
fn malformed_pod_arguments() {
    let table = [
        ("FOO", "\"FOO\" is not KEY=VALUE"),
        ("IgnoreUnknown=1;", "\"\" is not KEY=VALUE"),
        ("K8S_POD_NAME=a=b", "\"K8S_POD_NAME=a=b\" is not KEY=VALUE"),
        ("IgnoreUnknown=yes", "IgnoreUnknown=\"yes\" is neither"),
        ("IP=10.0.0", "IP: \"10.0.0\" is not an IP address"),
        ("IP=10.0.0.1/33", "IP: \"10.0.0.1/33\" does not end in a prefix length from /0 to /32"),
        ("MAC=02:00", "MAC: \"02:00\" is not a MAC address"),
        ("MAC=01:00:5e:00:00:01", "MAC: 01:00:5e:00:00:01 is a multicast"),
        ("TENON_SEGMENT=a/b", "TENON_SEGMENT=\"a/b\" must be"),
        ("K8S_POD_NAMESPACE=a/b", "K8S_POD_NAMESPACE=\"a/b\" must be"),
        ("K8S_POD_NAMESPACE=A", "K8S_POD_NAMESPACE=\"A\" must be"),
        ("K8S_POD_NAMESPACE=-a", "K8S_POD_NAMESPACE=\"-a\" must be"),
        ("K8S_POD_NAMESPACE=a-", "K8S_POD_NAMESPACE=\"a-\" must be"),
    ];
    for (args, message) in table {
        for verb in ["ADD", "CHECK"] {
            let found = fault(&Environment { args: args.to_owned(), ..of_verb(verb) });
            assert!(found.starts_with(&format!("CNI_ARGS: {message}")), "{args}: {found}");
        }
        // What ADD refused must not keep the runtime from deleting the pod.
        let released = Arguments::parse(&Environment { args: args.to_owned(), ..of_verb("DEL") }).unwrap();
        assert_eq!(released.pod, PodArguments::default());
    }
    let long = format!("K8S_POD_NAMESPACE={}", "a".repeat(64));
    assert!(PodArguments::parse(&long).is_err());
    assert!(PodArguments::parse(long.get(..long.len() - 1).unwrap()).is_ok());
}

proptest! {
    #[test]
    fn no_environment_panics(
        verb in prop_oneof!["ADD|DEL|CHECK|GC|STATUS|VERSION", any::<String>()],
        container_id in any::<String>(),
        netns in any::<String>(),
        ifname in any::<String>(),
        args in prop_oneof![any::<String>(), "((IP|MAC|IgnoreUnknown|K8S_POD_NAMESPACE|TENON_SEGMENT)=[^;]{0,9};?){0,4}"],
        path in any::<String>(),
    ) {
        let environment = Environment { command: verb, container_id, netns, ifname, args, path };
        if let Err(error) = Arguments::parse(&environment) {
            prop_assert_eq!(error.code, code::INVALID_ENVIRONMENT);
            prop_assert!(error.msg.starts_with("CNI_"));
        }
    }
}
