//! How long the steps of attaching and detaching a pod take: medians over many pods, in network namespaces of the
//! benchmark's own. Needs root. `cargo bench -p tenon-netdev`

use std::net::Ipv4Addr;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use tenon_netdev::{
    AddressFlags, AddressProbe, Announcer, Macvlan, MacvlanMode, Masquerade, NetNs, Netlink, Result, Route,
    Veth, VethPair,
};

const PODS: usize = 200;
const GROUP: u32 = 7000;
const GROUP_LINKS: usize = 10;

/// A network namespace that is deleted when the benchmark ends.
struct Ground {
    name: String,
    netns: NetNs,
}

impl Ground {
    fn new(role: &str) -> Result<Self> {
        let name = format!("tndev-{role}-{}", std::process::id());
        // The namespace's absence shows in the next line.
        let _ = Command::new("ip").args(["netns", "add", &name]).status();
        Ok(Self { netns: NetNs::open(format!("/run/netns/{name}"))?, name })
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let (host_ground, pod_ground) = (Ground::new("host")?, Ground::new("pod")?);
    let host = Netlink::open_in(&host_ground.netns)?;
    let (mut create, mut open, mut configure, mut delete, mut dump) =
        (vec![], vec![], vec![], vec![], vec![]);
    let address = Ipv4Net::new_assert(Ipv4Addr::new(10, 1, 2, 3), 22).into();
    let gateway = Ipv4Addr::new(10, 1, 0, 1).into();
    let everywhere = Ipv4Net::default().into();
    let services = Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12).into();
    for _ in 0..PODS {
        let veth = time(&mut create, || host.create_veth(&pair("h0", "eth0", &pod_ground.netns)))?;
        let pod = time(&mut open, || Netlink::open_in(&pod_ground.netns))?;
        time(&mut configure, || {
            pod.add_address(veth.peer_index, address, AddressFlags::default())?;
            pod.set_up(veth.peer_index)?;
            pod.replace_route(&Route::via(everywhere, gateway, veth.peer_index))?;
            pod.replace_route(&Route::direct(services, veth.peer_index))
        })?;
        time(&mut dump, || host.links())?;
        time(&mut delete, || host.delete_link(veth.host_index))?;
    }

    let mut delete_group = vec![];
    for _ in 0..PODS / GROUP_LINKS {
        for n in 0..GROUP_LINKS {
            host.create_veth(&pair(&format!("h{n}"), &format!("p{n}"), &pod_ground.netns))?;
        }
        time(&mut delete_group, || host.delete_group(GROUP))?;
    }

    let (mut macvlan, mut announce, mut find) = (vec![], vec![], vec![]);
    let Veth { host_index: master, peer_index } = host.create_veth(&pair("h0", "eth0", &pod_ground.netns))?;
    let pod = Netlink::open_in(&pod_ground.netns)?;
    pod.set_up(peer_index)?;
    pod.add_address(peer_index, address, AddressFlags::default())?;
    for _ in 0..PODS {
        let netns = Some((&pod_ground.netns, &pod));
        let mode = MacvlanMode::Bridge;
        let asked = Macvlan { name: "net1", master, netns, mode, mac: None, mtu: None, up: true };
        let link = time(&mut macvlan, || host.create_macvlan(&asked))?;
        let addresses = [address.addr()];
        let announcer = pod_ground.netns.run(Announcer::open)??;
        let mac = link.mac.unwrap_or_default();
        time(&mut announce, || announcer.announce(link.index, mac, &addresses))?;
        pod.delete_link(link.index)?;
        let probe = AddressProbe {
            netns: Some(&host_ground.netns),
            link: master,
            addresses: &addresses,
            wait: Duration::from_millis(100),
        };
        time(&mut find, || probe.run())?;
    }

    let (mut install, mut verify) = (vec![], vec![]);
    host_ground.netns.run(|| {
        for n in 0..PODS {
            let except = if n % 2 == 0 { vec![] } else { vec![Ipv4Net::default()] };
            let masquerade = Masquerade { table: "tenon".to_owned(), network: Ipv4Net::default(), except };
            time(&mut install, || masquerade.install())?;
            time(&mut verify, || masquerade.install())?;
        }
        Ok(())
    })??;

    for (what, mut times) in [
        ("create_veth", create),
        ("Netlink::open_in", open),
        ("address, up, two routes", configure),
        ("links", dump),
        ("delete_link", delete),
        ("delete_group of 10", delete_group),
        ("create_macvlan", macvlan),
        ("Announcer::announce", announce),
        ("AddressProbe::run, in use", find),
        ("Masquerade::install, replacing", install),
        ("Masquerade::install, in place", verify),
    ] {
        times.sort();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        println!("{what:32}{:>10.1} us", median.as_secs_f64() * 1e6);
    }
    Ok(())
}

fn pair<'a>(host_name: &'a str, peer_name: &'a str, peer_netns: &'a NetNs) -> VethPair<'a> {
    VethPair {
        host_name,
        peer_name,
        peer_netns,
        mtu: 1450,
        host_mac: Some([2, 0, 0, 0, 0, 1]),
        peer_mac: Some([2, 0, 0, 0, 0, 2]),
        host_alias: None,
        host_up: true,
        host_group: GROUP,
        queues: 1,
    }
}

fn time<T>(times: &mut Vec<Duration>, step: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = step();
    times.push(start.elapsed());
    result
}
