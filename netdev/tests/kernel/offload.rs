use nix::errno::Errno;
use tenon_netdev::checksum_offload_off;

use crate::ground::Ground;

/// The value of one feature in `ethtool -k`.
fn feature(ground: &Ground, name: &str) -> String {
    let features = ground.tool("ethtool -k p0");
    let line = features.lines().find(|line| line.trim().starts_with(&format!("{name}:"))).unwrap();
    line.split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn checksum_offload_goes_off_and_segmentation_with_it() {
    const FEATURES: [&str; 3] = ["tx-checksumming", "tx-tcp-segmentation", "tx-tcp6-segmentation"];
    let (host, pod) = (Ground::new(), Ground::new());
    host.connect(&pod, "h0", "p0");
    assert_eq!(FEATURES.map(|name| feature(&pod, name)), ["on", "on", "on"]);
    pod.netns.run(|| checksum_offload_off("p0")).unwrap().unwrap();
    assert_eq!(FEATURES.map(|name| feature(&pod, name)), ["off", "off", "off"]);
    pod.netns.run(|| checksum_offload_off("p0")).unwrap().unwrap();
}

#[test]
fn a_missing_link_is_named() {
    for name in ["nobody", "", "a-name-of-far-more-than-15-bytes", "no\0body"] {
        let error = Ground::new().netns.run(|| checksum_offload_off(name)).unwrap().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENODEV));
        let start = format!("cannot switch off checksum offload of link {name}: ENODEV");
        assert!(error.to_string().starts_with(&start), "{error}");
    }
}
