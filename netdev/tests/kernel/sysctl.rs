use nix::errno::Errno;
use tenon_netdev::sysctl;

use crate::ground::Ground;

#[test]
fn settings_are_those_of_the_threads_own_namespace() {
    let (one, other) = (Ground::new(), Ground::new());
    for ground in [&one, &other] {
        assert_eq!(ground.netns.run(|| sysctl::read("net.ipv4.ip_forward")).unwrap().unwrap(), "0");
    }
    let here = sysctl::read("net.ipv4.ip_forward").unwrap();
    assert!(one.netns.run(|| sysctl::write("net.ipv4.ip_forward", "1")).unwrap().unwrap());
    assert!(!one.netns.run(|| sysctl::write("net.ipv4.ip_forward", "1")).unwrap().unwrap());
    assert_eq!(one.tool("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
    assert_eq!(other.tool("cat /proc/sys/net/ipv4/ip_forward").trim(), "0");
    assert_eq!(sysctl::read("net.ipv4.ip_forward").unwrap(), here);
}

#[test]
fn values_of_several_numbers_are_compared_by_number() {
    let ground = Ground::new();
    ground
        .netns
        .run(|| {
            assert!(sysctl::write("net.ipv4.ip_local_port_range", "40000 50000").unwrap());
            // The kernel answers with a tab.
            assert_eq!(sysctl::read("net.ipv4.ip_local_port_range").unwrap(), "40000\t50000");
            assert!(!sysctl::write("net.ipv4.ip_local_port_range", "40000 50000").unwrap());
        })
        .unwrap();
}

#[test]
fn a_links_name_may_have_dots() {
    let (host, pod) = (Ground::new(), Ground::new());
    host.connect(&pod, "eth0.100", "p0");
    host.netns
        .run(|| {
            assert!(sysctl::write("net/ipv4/conf/eth0.100/proxy_arp", "1").unwrap());
            assert_eq!(sysctl::read("net.ipv4.conf.eth0/100.proxy_arp").unwrap(), "1");
        })
        .unwrap();
}

#[test]
fn errors_name_the_setting() {
    let ground = Ground::new();
    ground
        .netns
        .run(|| {
            let error = sysctl::read("net.ipv4.no_such_thing").unwrap_err();
            assert_eq!(error.errno(), Some(Errno::ENOENT));
            assert!(error.to_string().starts_with("cannot read sysctl net.ipv4.no_such_thing: "), "{error}");
            let error = sysctl::write("net.ipv4.ip_forward", "perhaps").unwrap_err();
            assert_eq!(error.errno(), Some(Errno::EINVAL));
            assert!(
                error.to_string().starts_with("cannot write sysctl net.ipv4.ip_forward=perhaps: "),
                "{error}"
            );
            for key in ["", "net..ipv4", "net/../../self/comm", "/etc/passwd", ".net", "net/ipv4/\0"] {
                assert!(sysctl::read(key).is_err(), "{key:?}");
            }
        })
        .unwrap();
}
