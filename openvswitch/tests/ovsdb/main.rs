//! The OVSDB client against a real `ovsdb-server` and `ovs-vswitchd`, with `ovs-vsctl` and `ovsdb-client` as
//! witnesses; and against a peer that breaks the protocol, which the real ones never do.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, and so do the helpers of tests"
)]

mod attach;
mod faults;
mod mirror;
mod reconnect;
mod switch;
mod transact;
