//! OVSDB and OpenFlow clients for a local Open vSwitch.
//!
//! Both speak to Unix sockets of the switch on this machine, run on tokio, and start no process: [`ovsdb`]
//! reads and changes the switch's configuration database (RFC 7047), [`openflow`] programs the flow tables of
//! one bridge. Neither knows what the switch is used for.

pub mod openflow;
pub mod ovsdb;
