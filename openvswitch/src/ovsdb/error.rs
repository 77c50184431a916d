//! What can go wrong.

use super::{Endpoint, Uuid};
use std::sync::Arc;
use std::time::Duration;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no endpoint that this client can connect to.
    #[error(
        "{text:?} is not a database that can be connected to: only unix:/absolute/path/to/db.sock is supported"
    )]
    Endpoint {
        /// The text as it was given.
        text: String,
    },
    /// There is no synchronised connection. Nothing was sent, so the same request can be made again later.
    #[error("not connected to the database at {endpoint}: {cause}")]
    Disconnected {
        /// The server.
        endpoint: Endpoint,
        /// Why there is no connection.
        cause: Arc<Fault>,
    },
    /// The connection broke while the request was on its way. **It may or may not have been applied**: look at
    /// the view after the next sync before doing it again.
    #[error(
        "the connection to the database at {endpoint} broke before the reply, so the transaction may or may not have been applied: {cause}"
    )]
    Interrupted {
        /// The server.
        endpoint: Endpoint,
        /// Why the connection broke.
        cause: Arc<Fault>,
    },
    /// The server refused the request as a whole (the reply's `error` member, RFC 7047 section 4.1.3): the
    /// request has no effect. An unknown database or a request that breaks the syntax of the RFC ends so.
    #[error("the database refused to {method}: {error}")]
    Refused {
        /// The JSON-RPC method.
        method: &'static str,
        /// The server's error, as it sent it.
        error: String,
    },
    /// One operation of a transaction failed, so nothing of the transaction was applied.
    #[error("operation {index} of the transaction ({operation}) failed: {error}{}", suffix(details))]
    Operation {
        /// The operation's place in the transaction, from 0.
        index: usize,
        /// What the operation is, such as `insert into Port`.
        operation: String,
        /// The error's name, as RFC 7047 section 5.2 and ovsdb-server(7) list them, such as `timed out`.
        error: String,
        /// What the server says of it; may be empty.
        details: String,
    },
    /// Every operation was fine, but the transaction could not be committed (the additional, last result of
    /// RFC 7047 section 4.1.3), for example because of a constraint; nothing of it was applied.
    #[error("the transaction could not be committed: {error}{}", suffix(details))]
    Commit {
        /// The error's name, such as `referential integrity violation`.
        error: String,
        /// What the server says of it; may be empty.
        details: String,
    },
    /// The transaction holds what JSON cannot carry, such as a real number that is not finite.
    #[error("the transaction cannot be written as JSON: {reason}")]
    Unencodable {
        /// What cannot be written.
        reason: String,
    },
    /// The view did not come to show what was waited for.
    #[error("waited {waited:?} in vain for {what} at {endpoint}, which is {status}")]
    Timeout {
        /// The server.
        endpoint: Endpoint,
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// The state of the connection when the time was up.
        status: super::Status,
    },
    /// The result that was asked for is not one of this transaction.
    #[error("the transaction has no {wanted} as its operation {index}")]
    Result {
        /// The operation's place in the transaction, from 0.
        index: usize,
        /// The kind of result that was asked for.
        wanted: &'static str,
    },
    /// A column does not hold what was asked for.
    #[error(transparent)]
    Column(#[from] ColumnError),
}

fn suffix(details: &str) -> String {
    if details.is_empty() { String::new() } else { format!(" ({details})") }
}

/// A column does not hold what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnError {
    /// The row has no such column: the table lacks it, or it was not selected or monitored.
    #[error("column {column} of table {table} is not among the columns that were asked for")]
    Missing {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
    /// The column holds something else.
    #[error("column {column} of table {table} holds {found} where {expected} was expected")]
    Mismatch {
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// What was asked for.
        expected: &'static str,
        /// What the column holds, shortened.
        found: String,
    },
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No attempt has been made yet.
    #[error("no connection has been tried yet")]
    Starting,
    /// The socket cannot be connected to.
    #[error("cannot connect: {0}; is ovsdb-server running?")]
    Connect(std::io::Error),
    /// Reading from the socket or writing to it failed.
    #[error("the connection failed: {0}")]
    Socket(std::io::Error),
    /// The server closed the connection.
    #[error("the server closed the connection{}", cut(*unfinished_bytes))]
    Closed {
        /// How much of an unfinished message had come, in bytes.
        unfinished_bytes: usize,
    },
    /// Nothing came from the server, not even the answer to an echo.
    #[error("nothing came from the server for {0:?}")]
    Silent(Duration),
    /// The server refused the monitor request: the database, a table or a column does not exist there.
    #[error("the server refused to monitor: {0}")]
    MonitorRefused(String),
    /// The server sent a message longer than [`Settings::message_limit_bytes`](super::Settings).
    #[error("the server sent a message of more than {0} bytes")]
    TooLong(usize),
    /// The server sent something that is not OVSDB.
    #[error("the server sent something that is not OVSDB: {0}")]
    Malformed(String),
    /// The server sent an update that does not fit the rows it sent before.
    #[error("the server's update of row {uuid} in table {table} does not fit what it sent before: {reason}")]
    Inconsistent {
        /// The table.
        table: String,
        /// The row.
        uuid: Uuid,
        /// What does not fit.
        reason: &'static str,
    },
}

fn cut(unfinished_bytes: usize) -> String {
    match unfinished_bytes {
        0 => String::new(),
        bytes => format!(" in the middle of a message, after {bytes} bytes of it"),
    }
}
