//! Tenon's state in etcd: keys, compare-and-swap, a watch that resyncs, election.
//!
//! [`Store`] speaks to an etcd v3 cluster and survives the loss of single members: every call is tried on one
//! endpoint after another until its deadline. [`Keys`] knows where each record lives. Values are bytes here; what
//! they mean is for the callers to know.
//!
//! Everything is built on a few etcd guarantees: a transaction applies wholly or not at all, each at a revision of
//! its own; a watch delivers every change after a revision, in order; a key bound to a lease vanishes when the
//! lease ends (<https://etcd.io/docs/v3.4/learning/api_guarantees/>).

mod backoff;
mod election;
mod error;
mod failure;
mod keys;
mod options;
mod pool;
mod session;
mod store;
mod txn;
mod watch;

pub use election::{Election, Leadership};
pub use error::Error;
pub use keys::{Key, Keys, NameError, NetworkKeys, Record};
pub use options::Options;
pub use session::Session;
pub use store::Store;
pub use txn::{Compare, KeyValue, TxnOutcome, Write};
pub use watch::{Change, Event, Watch, WatchStatus};

/// What calls of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
