use serde_json::Value;

use crate::ground::Ground;

fn neighbour(ground: &Ground, ip: &str) -> Value {
    let all = ground.ip("neigh show dev p0");
    all.as_array().unwrap().iter().find(|neighbour| neighbour["dst"] == ip).unwrap().clone()
}

#[test]
fn neighbours_are_set_and_replaced() {
    let (host, pod) = (Ground::new(), Ground::new());
    let index = host.connect(&pod, "h0", "p0").peer_index;
    for ip in ["10.1.2.9", "fd00::9"] {
        pod.netlink.replace_neighbour(index, ip.parse().unwrap(), [2, 0, 0, 0, 0, 1], true).unwrap();
        assert_eq!(neighbour(&pod, ip)["lladdr"], "02:00:00:00:00:01");
        assert_eq!(neighbour(&pod, ip)["state"][0], "PERMANENT");
        pod.netlink.replace_neighbour(index, ip.parse().unwrap(), [2, 0, 0, 0, 0, 2], false).unwrap();
        assert_eq!(neighbour(&pod, ip)["lladdr"], "02:00:00:00:00:02");
        assert_eq!(neighbour(&pod, ip)["state"][0], "REACHABLE");
    }
    let error = pod.netlink.replace_neighbour(4711, "10.1.2.9".parse().unwrap(), [2; 6], true).unwrap_err();
    assert!(error.to_string().starts_with("cannot set neighbour 10.1.2.9 on link 4711: ENODEV"), "{error}");
}
