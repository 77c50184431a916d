//! Links, addresses, routes and masquerading over netlink, and entry into network namespaces.
//!
//! Everything here is synchronous: the kernel answers a netlink request while the request is being sent, so there is
//! nothing to wait for. A program with an async runtime calls it from a blocking thread.
//!
//! [`Netlink`] is a handle on the links, addresses, routes and neighbours of one network namespace, [`NetNs`] names a
//! network namespace and runs code in it, [`sysctl`] reads and writes kernel settings, [`Masquerade`] is source
//! translation for a network, [`PortGuard`] keeps a switch's ports apart from the node's own IP stack, and a [`Shaper`]
//! holds what a switch hands it to [limits](Limit). Where there is no switch, a [`LinkShaper`] does that for a single link.
//!
//! [`Macvlan`] and VLAN links put pods on a network outside; there, an [`AddressProbe`] asks whether an address is in
//! use, and an [`Announcer`] tells everybody where it is now.

mod address;
mod announcement;
mod arp;
mod error;
mod frame;
mod limit;
mod link;
mod link_shaper;
mod macvlan;
mod masquerade;
mod ndp;
mod neighbour;
mod netns;
mod nftables;
mod offload;
mod packet;
mod port_guard;
mod probe;
mod route;
mod shaper;
mod socket;
pub mod sysctl;
mod traffic_control;
mod vlan;

pub use address::{Address, AddressFlags};
pub use announcement::Announcer;
pub use error::{Error, Result};
pub use limit::{Limit, Shape};
pub use link::{Link, Veth, VethPair};
pub use link_shaper::{Direction, LinkLimits, LinkShaper, Shaping};
pub use macvlan::{Macvlan, MacvlanMode, UnknownMacvlanMode};
pub use masquerade::Masquerade;
pub use netns::{NetNs, NetNsId};
pub use offload::checksum_offload_off;
pub use port_guard::PortGuard;
pub use probe::{AddressProbe, Conflict};
pub use route::{Route, RouteFilter, RouteLookup, Scope};
pub use shaper::{Shaper, ShaperPair, Waiting, class_mac};
pub use socket::Netlink;
pub use vlan::VlanLink;
