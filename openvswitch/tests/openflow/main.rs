//! The OpenFlow client against a real Open vSwitch, with ovs-ofctl as the witness of what arrives.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod arbitrary;
mod bundles;
mod connection;
mod flows;
mod hostile;
mod random;
mod switch;
mod vocabulary;

use openvswitch::openflow as of;
