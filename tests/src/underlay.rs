//! The physical network: one switch, and a router with the world behind it.

use std::{net::Ipv4Addr, sync::Arc};

use crate::{
    command::Tool,
    error::{BedError, Outcome},
    ground::Ground,
    matrix::Place,
    netns::Netns,
};

/// The prefix length of the underlay.
pub const PREFIX_LENGTH: u8 = 24;
/// The router's address on the underlay.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
/// The router's address on the far side.
const ROUTER_FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
/// A machine somewhere in the world (RFC 5737, TEST-NET-2).
pub const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The underlay address of node number `index`, counted from 1.
pub fn node_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, index)
}

/// The address of etcd member number `index`, counted from 1.
pub fn etcd_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 200 + index)
}

/// A Linux bridge in a namespace of its own, with one MTU on all its ports.
#[derive(Debug)]
pub struct Underlay {
    netns: Netns,
    mtu: u32,
}

impl Underlay {
    /// Makes the switch; `mtu` in bytes.
    pub fn create(ground: &Arc<Ground>, mtu: u32) -> Result<Self, BedError> {
        let netns = Netns::create(ground, "switch")?;
        let mtu_text = mtu.to_string();
        netns.ip(&["link", "add", "sw0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0"])?;
        netns.ip(&["link", "set", "sw0", "mtu", &mtu_text, "up"])?;
        fill_checksums(&netns, "sw0")?;
        Ok(Self { netns, mtu })
    }

    /// The MTU of its ports, in bytes.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// The namespace of the switch; etcd lives here.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Gives the switch itself an address.
    pub fn add_address(&self, address: Ipv4Addr) -> Outcome {
        let address = format!("{address}/{PREFIX_LENGTH}");
        self.netns.ip(&["addr", "add", &address, "dev", "sw0"]).map(|_| ())
    }

    /// Plugs a namespace in: it gets a link `eth0`, up, without an address; the switch's port is called `port`.
    pub fn plug(&self, netns: &Netns, port: &str) -> Outcome {
        let mtu = self.mtu.to_string();
        self.netns.ip(&[
            "link",
            "add",
            port,
            "mtu",
            &mtu,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "mtu",
            &mtu,
            "netns",
            netns.name(),
        ])?;
        self.netns.ip(&["link", "set", port, "master", "sw0", "up"])?;
        netns.ip(&["link", "set", "eth0", "up"])?;
        fill_checksums(netns, "eth0")
    }

    /// Pulls a port's cable (`false`) or puts it back.
    pub fn set_port(&self, port: &str, up: bool) -> Outcome {
        self.netns.ip(&["link", "set", port, if up { "up" } else { "down" }]).map(|_| ())
    }

    /// A machine on the switch that is no node, with this address.
    pub fn stranger(&self, ground: &Arc<Ground>, name: &str, address: Ipv4Addr) -> Result<Netns, BedError> {
        let netns = Netns::create(ground, name)?;
        self.plug(&netns, name)?;
        netns.ip(&["addr", "add", &format!("{address}/{PREFIX_LENGTH}"), "dev", "eth0"])?;
        Ok(netns)
    }
}

/// Has a link's sender fill in checksums, as every frame on a real wire has them; a veth would hand them on
/// unfilled, and a switch in user space could not tell.
pub fn fill_checksums(netns: &Netns, link: &str) -> Outcome {
    Tool::new("ethtool").inside(netns.path()).args(["-K", link, "tx", "off"]).run().map(|_| ())
}

/// A router on the underlay and a machine beyond it. The router knows the underlay and nothing of the pods'
/// network, so a pod gets an answer from beyond only when its node masquerades it.
#[derive(Debug)]
pub struct Internet {
    world: Netns,
    _router: Netns,
}

impl Internet {
    /// Plugs the router in.
    pub fn create(ground: &Arc<Ground>, underlay: &Underlay) -> Result<Self, BedError> {
        let router = underlay.stranger(ground, "router", ROUTER)?;
        let world = Netns::create(ground, "world")?;
        router.ip(&["link", "add", "far0", "type", "veth", "peer", "name", "eth0", "netns", world.name()])?;
        router.ip(&["addr", "add", &format!("{ROUTER_FAR}/{PREFIX_LENGTH}"), "dev", "far0"])?;
        router.ip(&["link", "set", "far0", "up"])?;
        router.sysctl("ipv4/ip_forward", "1")?;
        world.ip(&["addr", "add", &format!("{WORLD}/{PREFIX_LENGTH}"), "dev", "eth0"])?;
        world.ip(&["link", "set", "eth0", "up"])?;
        fill_checksums(&world, "eth0")?;
        world.ip(&["route", "add", "default", "via", &ROUTER_FAR.to_string()])?;
        Ok(Self { world, _router: router })
    }

    /// The machine beyond the router.
    pub fn place(&self) -> Place {
        Place { name: "world".into(), netns: self.world.path(), address: WORLD }
    }
}
