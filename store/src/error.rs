//! What can go wrong, each with its way out.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// Why the store could not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// No endpoint answered in time. A write may or may not have been applied: read before the next try.
    #[error(
        "etcd does not answer at {endpoints} (tried for {} ms; last: {cause}): check that etcd runs, has a leader \
         (`etcdctl endpoint status`), and that the endpoints are right{over_tls}",
        .waited.as_millis()
    )]
    Unavailable {
        /// The endpoints that were tried, separated by commas.
        endpoints: String,
        /// What the last one failed with.
        cause: String,
        /// How long the call went on.
        waited: Duration,
        /// What more to check when the connections are over TLS; empty when not. A member that does not accept our
        /// certificate just closes the connection (TLS 1.3 ends the handshake before it looks at it).
        over_tls: &'static str,
    },
    /// etcd knows us not, or not with the right to do this.
    #[error("etcd at {endpoint} refuses {what}: {cause}; {way_out}")]
    Denied {
        /// The endpoint that refused.
        endpoint: String,
        /// What was asked of it.
        what: &'static str,
        /// Its reason.
        cause: String,
        /// What the operator can do.
        way_out: &'static str,
    },
    /// etcd has no room left and takes no more writes.
    #[error(
        "etcd at {endpoint} is out of space ({cause}): compact and defragment it, or raise --quota-backend-bytes, \
         then `etcdctl alarm disarm`"
    )]
    Full {
        /// The endpoint that answered.
        endpoint: String,
        /// Its reason.
        cause: String,
    },
    /// The etcd lease of a write does not exist any more: get a new one and write again.
    #[error("the etcd lease {lease:x} has expired or was revoked; a new one is needed")]
    LeaseGone {
        /// The lease's id.
        lease: i64,
    },
    /// The request can never work.
    #[error("etcd at {endpoint} refuses {what} as invalid: {cause}")]
    Invalid {
        /// The endpoint that answered.
        endpoint: String,
        /// What was asked of it.
        what: &'static str,
        /// Its reason.
        cause: String,
    },
    /// The options contradict each other or are incomplete.
    #[error("etcd options: {0}")]
    Options(String),
    /// A file that the options name cannot be read.
    #[error("etcd options: {option} {path}: {cause}", path = .path.display())]
    File {
        /// The option.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
}
