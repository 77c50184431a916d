//! The pods' MTU is exactly what the underlay carries after VXLAN's 50 bytes.

use tenon_tests::{BedError, Outcome, Plan, matrix::Matrix, pod::Pod, probe, run};

fn exact(underlay_bytes: u32) -> Outcome {
    run(&Plan { mtu: underlay_bytes, internet: true, ..Plan::nodes(2) }, |cluster| {
        cluster.add_tenants(&["a"])?;
        let pods = [
            cluster.node(1).pod("a", "a1")?,
            cluster.node(2).pod("a", "a2")?,
            cluster.node(1).pod("a", "a3")?,
        ];
        let places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
        Matrix::require(&places, |_, _| true)?;
        let mtu = underlay_bytes - 50;
        for pod in &pods {
            let link = pod.netns().ip(&["-o", "link", "show", "eth0"])?;
            assert!(link.contains(&format!("mtu {mtu} ")), "{link}");
        }
        let passes = |from: &Pod, to, bytes| probe::passes_unfragmented(&from.netns().path(), to, bytes);
        for to in [pods[1].address()?, pods[2].address()?, cluster.gateway(cluster.node(1))?] {
            assert!(passes(&pods[0], to, mtu)?, "{mtu} bytes to {to} under {underlay_bytes}");
            assert!(!passes(&pods[0], to, mtu + 1)?, "{} bytes to {to} under {underlay_bytes}", mtu + 1);
        }
        // From the node too, whose way to the pods is the bridge's internal port.
        let node = cluster.node(1).netns().path();
        assert!(probe::passes_unfragmented(&node, pods[1].address()?, mtu)?);
        assert!(!probe::passes_unfragmented(&node, pods[1].address()?, mtu + 1)?);
        probe::tcp_echo(&places[0], &places[1], 1 << 20)?;
        let world = cluster.internet.as_ref().map(|i| i.place());
        let world = world.ok_or_else(|| BedError::answer("the world", "not planned"))?;
        probe::tcp_echo(&places[0], &world, 1 << 18)
    })
}

#[test]
fn underlay_of_1500_bytes() -> Outcome {
    exact(1500)
}

#[test]
fn underlay_of_1400_bytes() -> Outcome {
    exact(1400)
}
