//! OVSDB and OpenFlow clients for a local Open vSwitch.
