//! tenon-netdev on the real kernel, with iproute2, nft and ethtool as witnesses. Needs root.
#![allow(clippy::unwrap_used)] // clippy.toml lets tests unwrap, but not their helper functions

mod address;
mod announcement;
mod capture;
mod ground;
mod link;
mod link_shaper;
mod macvlan;
mod masquerade;
mod neighbour;
mod netns;
mod offload;
mod port_guard;
mod probe;
mod route;
mod segment;
mod shaper;
mod sysctl;
