//! Links, addresses, routes and masquerading over netlink, and entry into network namespaces.
//!
//! Everything here is synchronous: the kernel answers a netlink request while the request is being sent, so there is
//! nothing to wait for. A program with an async runtime calls it from a blocking thread.
//!
//! [`Netlink`] is a handle on the links, addresses, routes and neighbours of one network namespace, [`NetNs`] names a
//! network namespace and runs code in it, [`sysctl`] reads and writes kernel settings, [`Masquerade`] is source
//! translation for a network, and [`PortGuard`] keeps a switch's ports apart from the node's own IP stack.

mod address;
mod error;
mod link;
mod masquerade;
mod neighbour;
mod netns;
mod nftables;
mod offload;
mod port_guard;
mod route;
mod socket;
pub mod sysctl;

pub use address::{Address, AddressFlags};
pub use error::{Error, Result};
pub use link::{Link, Veth, VethPair};
pub use masquerade::Masquerade;
pub use netns::{NetNs, NetNsId};
pub use offload::checksum_offload_off;
pub use port_guard::PortGuard;
pub use route::{Route, RouteFilter, RouteLookup, Scope};
pub use socket::Netlink;
