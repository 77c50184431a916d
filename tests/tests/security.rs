//! What a pod, or a machine on the underlay, may not do; each time something honest goes the same way first, so
//! that a test that sees nothing has been seen to see something.

use std::{net::Ipv4Addr, time::Duration};

use tenon_tests::{
    BedError, Cluster, Outcome, Plan,
    command::until,
    datapath::patience,
    frames::{self, BROADCAST, Capture, arp, ethernet, ipv4, udp, vxlan},
    matrix::Matrix,
    node::Node,
    pod::Pod,
    run,
};

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const VXLAN_PORT: u16 = 4789;

/// Whether a frame is a UDP datagram with this mark, and not the complaint about one that comes back.
fn is_datagram(frame: &[u8], mark: &[u8]) -> bool {
    frame.get(12..14) == Some(&IPV4.to_be_bytes()[..])
        && frame.get(23) == Some(&17)
        && frames::contains(frame, mark)
}

/// How long a frame may take to where it must not arrive.
const LINGER: Duration = Duration::from_millis(400);

/// `a1`, `a2` and `b1` on the first node, `a3` on the second.
struct Scene {
    a1: Pod,
    a2: Pod,
    b1: Pod,
    a3: Pod,
    /// The MAC address by which `a1` knows its next hop to `a2`.
    next_hop: [u8; 6],
}

fn scene(cluster: &Cluster) -> Result<Scene, BedError> {
    cluster.add_tenants(&["a", "b"])?;
    let a1 = cluster.node(1).pod("a", "a1")?;
    let a2 = cluster.node(1).pod("a", "a2")?;
    let b1 = cluster.node(1).pod("b", "b1")?;
    let a3 = cluster.node(2).pod("a", "a3")?;
    let places = [a1.place()?, a2.place()?, b1.place()?, a3.place()?];
    Matrix::require(&places, |from, to| from[..1] == to[..1])?;
    let next_hop = next_hop(&a1, a2.address()?)?;
    Ok(Scene { a1, a2, b1, a3, next_hop })
}

/// The MAC address that a pod's kernel has learnt for an address on its link.
fn neighbour(pod: &Pod, address: Ipv4Addr) -> Result<[u8; 6], BedError> {
    let text = pod.netns().ip(&["neigh", "show", &address.to_string(), "dev", "eth0"])?;
    let mac = text.split("lladdr ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
    let bytes: Vec<u8> = mac.split(':').filter_map(|b| u8::from_str_radix(b, 16).ok()).collect();
    bytes.try_into().map_err(|_| BedError::answer(format!("the neighbour {address}"), text))
}

/// The MAC address that a pod's kernel sends packets for an address to: the owner's, or its gateway's.
fn next_hop(pod: &Pod, to: Ipv4Addr) -> Result<[u8; 6], BedError> {
    let route = pod.netns().ip(&["route", "get", &to.to_string()])?;
    let via = route.split("via ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    neighbour(pod, via.unwrap_or(to))
}

/// Sends frames out of a pod and returns those that arrive at another's interface.
fn arriving(from: &Pod, frames: &[Vec<u8>], at: &Pod, mark: &'static [u8]) -> Result<Vec<Vec<u8>>, BedError> {
    let capture = Capture::start(&at.netns().path(), "eth0", move |frame| is_datagram(frame, mark))?;
    frames::send(&from.netns().path(), "eth0", frames)?;
    Ok(capture.stop(LINGER))
}

/// Does `work` and waits until the node's drop flows have counted so many packets more, for a while: the switch
/// brings the counters of cached flows up to date about once a second. Returns how many there were.
fn counted(node: &Node, expected: usize, work: impl FnOnce() -> Outcome) -> Result<u64, BedError> {
    let before = node.dropped()?;
    work()?;
    let mut more = 0;
    let waited = until("the drop flows' counters", patience(Duration::from_secs(4)), || {
        more = node.dropped().map_err(|e| e.to_string())? - before;
        if more >= expected as u64 { Ok(()) } else { Err(more.to_string()) }
    });
    match waited {
        // Whether too few is a failure is the test's to say.
        Ok(()) | Err(BedError::Late { .. }) => Ok(more),
        Err(e) => Err(e),
    }
}

fn datagram(from: Ipv4Addr, to: Ipv4Addr, port: u16, mark: &[u8]) -> Vec<u8> {
    ipv4(from, to, 17, &udp(4000, port, mark))
}

#[test]
fn forged_addresses_are_dropped_and_counted() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let s = scene(cluster)?;
        let mark: &'static [u8] = b"forged or not";
        let (own, own_mac) = (s.a1.address()?, s.a1.mac()?);
        let forged_mac = [2, 0xde, 0xad, 0, 0, 1];
        for (target, name) in [(&s.a2, "same node"), (&s.a3, "other node")] {
            let to = target.address()?;
            let via = next_hop(&s.a1, to)?;
            let honest = ethernet(via, own_mac, IPV4, &datagram(own, to, 4001, mark));
            assert_eq!(arriving(&s.a1, &vec![honest; 5], target, mark)?.len(), 5, "honest frames, {name}");

            let forged_ip = |ip| ethernet(via, own_mac, IPV4, &datagram(ip, to, 4001, mark));
            let frames = [
                forged_ip(s.b1.address()?),
                forged_ip(s.a2.address()?),
                forged_ip(s.a3.address()?),
                forged_ip(Ipv4Addr::new(8, 8, 8, 8)),
                forged_ip(cluster.node(1).address()),
                forged_ip(Ipv4Addr::UNSPECIFIED),
                ethernet(via, forged_mac, IPV4, &datagram(own, to, 4001, mark)),
                ethernet(via, s.a2.mac()?, IPV4, &datagram(s.a2.address()?, to, 4001, mark)),
            ];
            let more = counted(cluster.node(1), frames.len(), || {
                let arrived = arriving(&s.a1, &frames, target, mark)?;
                assert_eq!(arrived, Vec::<Vec<u8>>::new(), "forged frames, {name}");
                Ok(())
            })?;
            assert!(more >= frames.len() as u64, "{more} of {} forged frames were counted", frames.len());
        }
        Ok(())
    })
}

/// openshift/origin#7765: a pod's forged ARP poisons nobody.
#[test]
fn forged_arp_reaches_nobody() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let s = scene(cluster)?;
        let (own_mac, victim, peer) = (s.a1.mac()?, s.a2.address()?, s.a3.address()?);
        let learnt = neighbour(&s.a2, s.a1.address()?)?;
        let is_arp = |frame: &[u8]| frame.get(12..14) == Some(&ARP.to_be_bytes()[..]);
        // "The address of a3 (and that of the gateway) is at my MAC", to a2 alone and to all.
        let mut forged = Vec::new();
        for stolen in [peer, s.a1.gateway()?, victim] {
            for to in [s.a2.mac()?, BROADCAST, s.next_hop] {
                let reply = arp(2, (own_mac, stolen), (s.a2.mac()?, victim));
                forged.push(ethernet(to, own_mac, ARP, &reply));
                let request = arp(1, (own_mac, stolen), ([0; 6], victim));
                forged.push(ethernet(to, own_mac, ARP, &request));
            }
        }
        let at_pod = Capture::start(&s.a2.netns().path(), "eth0", move |frame| {
            is_arp(frame) && frame.get(22..28) == Some(&own_mac[..])
        })?;
        let more =
            counted(cluster.node(1), forged.len(), || frames::send(&s.a1.netns().path(), "eth0", &forged))?;
        assert_eq!(at_pod.stop(LINGER).len(), 0);
        assert!(more >= forged.len() as u64, "{more} of {} forged ARP messages were counted", forged.len());
        assert_eq!(neighbour(&s.a2, s.a1.address()?)?, learnt);
        let places = [s.a1.place()?, s.a2.place()?, s.a3.place()?];
        Matrix::require(&places, |_, _| true)?;
        Ok(())
    })
}

/// openshift/origin#21363: a pod sends VXLAN to a node and forges a VNI.
#[test]
fn pod_cannot_send_to_a_vtep() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let s = scene(cluster)?;
        let mark: &'static [u8] = b"VXLAN from a pod";
        let (own, own_mac) = (s.b1.address()?, s.b1.mac()?);
        let gateway_mac = {
            Matrix::require(
                &[
                    s.b1.place()?,
                    tenon_tests::matrix::Place {
                        name: "gw".into(),
                        ..cluster.gateway_place(cluster.node(1))?
                    },
                ],
                |_, _| true,
            )?;
            neighbour(&s.b1, s.b1.gateway()?)?
        };
        let vni = u32::try_from(cluster.etcd.vni("a")?).expect("a VNI has 24 bits");
        let inner =
            ethernet(s.a1.mac()?, s.a3.mac()?, IPV4, &datagram(s.a3.address()?, s.a1.address()?, 4001, mark));
        let to = |address| {
            let packet = ipv4(own, address, 17, &udp(5555, VXLAN_PORT, &vxlan(vni, &inner)));
            ethernet(gateway_mac, own_mac, IPV4, &packet)
        };
        let targets = [
            cluster.node(1).address(),
            cluster.node(2).address(),
            cluster.gateway(cluster.node(1))?,
            cluster.gateway(cluster.node(2))?,
        ];
        let frames: Vec<_> = targets.into_iter().map(to).collect();
        let mut victims = Vec::new();
        for pod in [&s.a1, &s.a3] {
            victims.push(Capture::start(&pod.netns().path(), "eth0", move |f| frames::contains(f, mark))?);
        }
        // On the wire a datagram may be seen inside the node's own VXLAN, with the pod's true VNI, and never as
        // VXLAN that says what the pod wrote.
        let wire = cluster.node(2).netns().path();
        let on_the_wire = Capture::start(&wire, "eth0", move |f| {
            is_datagram(f, mark) && f.get(46..49) == vni.to_be_bytes().get(1..)
        })?;
        let mut here = 0;
        let there = counted(cluster.node(2), 1, || {
            here = counted(cluster.node(1), 4, || frames::send(&s.b1.netns().path(), "eth0", &frames))?;
            Ok(())
        })?;
        for victim in victims {
            assert_eq!(victim.stop(LINGER).len(), 0, "the forged VNI was believed");
        }
        assert_eq!(on_the_wire.stop(LINGER).len(), 0, "VXLAN of a pod left the node");
        assert!(here >= 3 && here + there >= 4, "of 4 datagrams, {here} were counted here and {there} there");

        // Another port of the same machines is none of our business.
        let elsewhere =
            ethernet(gateway_mac, own_mac, IPV4, &datagram(own, cluster.node(2).address(), 4001, mark));
        let at_uplink =
            Capture::start(&cluster.node(2).netns().path(), "eth0", move |f| frames::contains(f, mark))?;
        frames::send(&s.b1.netns().path(), "eth0", &[elsewhere])?;
        assert!(!at_uplink.stop(LINGER).is_empty());
        Ok(())
    })
}

#[test]
fn vxlan_is_taken_from_nodes_alone() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let s = scene(cluster)?;
        let mark: &'static [u8] = b"VXLAN from the underlay";
        let node = cluster.node(1);
        let stranger = cluster.underlay.stranger(&cluster.ground, "stranger", Ipv4Addr::new(10, 0, 0, 99))?;
        let vni = u32::try_from(cluster.etcd.vni("a")?).expect("a VNI has 24 bits");
        let inner_packet = datagram(s.a3.address()?, s.a1.address()?, 4001, mark);
        // What a real packet between the two looks like on the wire is copied, so that only its sender differs.
        let peer_mac = s.a1.mac()?;
        let inner = ethernet(peer_mac, s.a3.mac()?, IPV4, &inner_packet);
        let from = |netns: std::path::PathBuf| -> Result<usize, BedError> {
            let capture = Capture::start(&s.a1.netns().path(), "eth0", move |f| is_datagram(f, mark))?;
            let socket = tenon_tests::netns::inside(&netns, || std::net::UdpSocket::bind("0.0.0.0:0"))?
                .map_err(|e| BedError::system("open a socket", e))?;
            for _ in 0..5 {
                socket
                    .send_to(&vxlan(vni, &inner), (node.address(), VXLAN_PORT))
                    .map_err(|e| BedError::system("send VXLAN", e))?;
            }
            Ok(capture.stop(LINGER).len())
        };
        assert_eq!(from(cluster.node(2).netns().path())?, 5, "from a node");
        let mut arrived = 0;
        let more = counted(node, 5, || {
            arrived = from(stranger.path())?;
            Ok(())
        })?;
        assert_eq!(arrived, 0, "from a stranger");
        assert!(more >= 5, "{more} of 5 datagrams were counted");
        Ok(())
    })
}

/// Nothing is flooded: ARP is answered on the node, and what is for nobody, or for all, goes nowhere.
#[test]
fn nothing_is_flooded() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let s = scene(cluster)?;
        let mark: &'static [u8] = b"for everybody";
        let (own, own_mac) = (s.a1.address()?, s.a1.mac()?);
        let unknown = [2, 0xaa, 0xbb, 0xcc, 0xdd, 0xee];
        let to = |mac, ip| ethernet(mac, own_mac, IPV4, &datagram(own, ip, 4001, mark));
        let nobody = Ipv4Addr::from(u32::from(own) | 0xf0);
        let mut frames = vec![
            to(BROADCAST, Ipv4Addr::BROADCAST),
            to([1, 0, 0x5e, 0, 0, 0xfb], Ipv4Addr::new(224, 0, 0, 251)),
            to(unknown, nobody),
            to(s.next_hop, nobody),
            to(s.next_hop, Ipv4Addr::new(172, 11, 255, 255)),
            ethernet(BROADCAST, own_mac, 0x88cc, mark),
            ethernet([0x33, 0x33, 0, 0, 0, 1], own_mac, 0x86dd, mark),
        ];
        let asked = [s.a2.address()?, s.a1.gateway()?];
        for address in asked {
            let mut question = arp(1, (own_mac, own), ([0; 6], address));
            question.extend(mark);
            frames.push(ethernet(BROADCAST, own_mac, ARP, &question));
        }

        let mut captures = Vec::new();
        for pod in [&s.a2, &s.b1, &s.a3] {
            captures.push(Capture::start(&pod.netns().path(), "eth0", move |f| frames::contains(f, mark))?);
        }
        let answers = Capture::start(&s.a1.netns().path(), "eth0", move |frame| {
            frame.get(12..14) == Some(&ARP.to_be_bytes()[..]) && frame.get(21) == Some(&2)
        })?;
        frames::send(&s.a1.netns().path(), "eth0", &frames)?;
        let heard: Vec<usize> = captures.into_iter().map(|capture| capture.stop(LINGER).len()).collect();
        assert_eq!(heard, [0, 0, 0]);
        let answers = answers.stop(LINGER);
        for address in asked {
            let count =
                answers.iter().filter(|frame| frame.get(28..32) == Some(&address.octets()[..])).count();
            assert_eq!(count, 1, "the flows answer for {address}, and nobody beside them");
        }
        Ok(())
    })
}
