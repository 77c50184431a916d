//! The store against real etcd: one member and three, members that die, stop, forget and change their mind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the functions around the tests fail as the tests do")]

mod access;
mod calls;
mod cluster;
mod election;
mod proxy;
mod session;
mod watch;
