//! What needs another kernel than a machine's own may be: VLANs (`8021q`), and macvlans on a kernel before 6.15, which
//! looks for taken names elsewhere. Needs root, runs inside User-Mode Linux, and fails where there are no VLANs.
#![allow(clippy::unwrap_used)] // clippy.toml lets tests unwrap, but not their helper functions

#[path = "../kernel/announcement.rs"]
mod announcement;
#[path = "../kernel/capture.rs"]
mod capture;
#[path = "../kernel/ground.rs"]
mod ground;
#[path = "../kernel/macvlan.rs"]
mod macvlan;
#[path = "../kernel/probe.rs"]
mod probe;
#[path = "../kernel/segment.rs"]
mod segment;
mod vlan;
