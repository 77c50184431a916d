//! How a client connects and what it replicates.

use super::{Endpoint, Monitor};
use std::time::Duration;

/// What a [`Client`](super::Client) needs to know. [`Settings::new`] gives timings for a server on the same
/// machine; every field can be changed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server.
    pub endpoint: Endpoint,
    /// The database whose tables are monitored.
    pub database: String,
    /// The tables and columns to replicate.
    pub monitor: Monitor,
    /// The wait before the first attempt to connect again; it doubles with every attempt. 50 ms.
    pub reconnect_first: Duration,
    /// The longest wait between two attempts to connect again. 2 s.
    pub reconnect_longest: Duration,
    /// After how long without a byte from the server the client asks for an echo. 5 s.
    pub echo_after: Duration,
    /// After how long without a byte from the server the connection counts as dead. 15 s.
    pub dead_after: Duration,
    /// The longest message accepted from the server, in bytes. 64 MiB.
    pub message_limit_bytes: usize,
}

impl Settings {
    /// Settings for this server, database and monitor, with timings for a server on the same machine.
    pub fn new(endpoint: Endpoint, database: impl Into<String>, monitor: Monitor) -> Self {
        Self {
            endpoint,
            database: database.into(),
            monitor,
            reconnect_first: Duration::from_millis(50),
            reconnect_longest: Duration::from_secs(2),
            echo_after: Duration::from_secs(5),
            dead_after: Duration::from_secs(15),
            message_limit_bytes: 64 << 20,
        }
    }
}
