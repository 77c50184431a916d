//! What a failed try means: whether another endpoint may do better, and whether the request may have been carried
//! out nevertheless. etcd's answers are known by their gRPC code and, where codes are shared, by their text, which
//! etcd's own client relies on too (<https://pkg.go.dev/go.etcd.io/etcd/api/v3/v3rpc/rpctypes>).

use std::error::Error as StdError;
use std::io;

use tonic::{Code, Status};

use crate::Error;

/// What one try failed with, by what is to be done about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Another endpoint, or the same one later, may do better.
    Retry {
        /// What happened, for people.
        cause: String,
        /// The request may have reached etcd, and may have been carried out.
        sent: bool,
        /// It was etcd that answered, so the connection is good.
        answered: bool,
    },
    /// The login is not, or no longer, good: log in afresh.
    Login(String),
    /// The user lacks the right.
    Denied(String),
    /// A login was tried at a cluster without users.
    NoUsers,
    /// etcd has no room left.
    Full(String),
    /// The request can never work.
    Invalid(String),
    /// The options, or files that they name, keep us from trying at all.
    Options(Error),
    /// The lease does not exist.
    LeaseGone,
    /// The revision is no longer in the history.
    Compacted,
}

impl Failure {
    /// No answer came in the time that the endpoint had.
    pub(crate) fn silent() -> Self {
        Self::Retry { cause: "no answer in time".to_owned(), sent: true, answered: false }
    }

    /// The same failure, of a step that comes before the request is sent.
    pub(crate) fn unsent(self) -> Self {
        match self {
            Self::Retry { cause, answered, .. } => Self::Retry { cause, sent: false, answered },
            other => other,
        }
    }

    /// Whether a new connection or a new login could help.
    pub(crate) fn speaks_against_client(&self) -> bool {
        match self {
            Self::Retry { answered, .. } => !answered,
            Self::Login(_) => true,
            _ => false,
        }
    }

    /// For log lines.
    pub(crate) fn cause(self) -> String {
        match self {
            Self::Retry { cause, .. }
            | Self::Login(cause)
            | Self::Denied(cause)
            | Self::Full(cause)
            | Self::Invalid(cause) => cause,
            Self::Options(error) => error.to_string(),
            Self::NoUsers => "authentication is not enabled".to_owned(),
            Self::LeaseGone => "the lease does not exist".to_owned(),
            Self::Compacted => "the revision is compacted".to_owned(),
        }
    }
}

/// Sorts an error of the client library.
pub(crate) fn judge(error: &etcd_client::Error) -> Failure {
    match error {
        etcd_client::Error::GRpcStatus(status) => judge_status(status),
        // The only way for the library to say so: the answer to a keep-alive has no time to live.
        etcd_client::Error::LeaseKeepAliveError(_) => Failure::LeaseGone,
        etcd_client::Error::InvalidArgs(_)
        | etcd_client::Error::InvalidUri(_)
        | etcd_client::Error::InvalidMetadataValue(_) => Failure::Invalid(error.to_string()),
        _ => Failure::Retry { cause: with_sources(error), sent: true, answered: false },
    }
}

fn judge_status(status: &Status) -> Failure {
    let text = status.message();
    let answered = text.starts_with("etcdserver: ");
    let retry = || Failure::Retry {
        cause: if answered { text.to_owned() } else { with_sources(status) },
        sent: !never_sent(status),
        answered,
    };
    match status.code() {
        Code::Unauthenticated => Failure::Login(text.to_owned()),
        Code::PermissionDenied => Failure::Denied(text.to_owned()),
        Code::ResourceExhausted if text.contains("database space exceeded") => Failure::Full(text.to_owned()),
        Code::ResourceExhausted if answered => retry(),
        Code::InvalidArgument if is_login(text) => Failure::Login(text.to_owned()),
        Code::FailedPrecondition if text.contains("authentication is not enabled") => Failure::NoUsers,
        Code::NotFound if text.contains("requested lease not found") => Failure::LeaseGone,
        Code::OutOfRange if text.contains("has been compacted") => Failure::Compacted,
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::OutOfRange
        | Code::AlreadyExists
        | Code::Unimplemented
        | Code::ResourceExhausted => Failure::Invalid(text.to_owned()),
        _ => retry(),
    }
}

/// Whether an invalid argument is the login: no user, a wrong password, or one that was changed since.
fn is_login(text: &str) -> bool {
    ["user name is empty", "authentication failed", "revision of auth store is old"]
        .iter()
        .any(|part| text.contains(part))
}

/// Whether the connection was never made, so that the request cannot have been carried out.
fn never_sent(status: &Status) -> bool {
    sources(status).filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|cause| {
        matches!(
            cause.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::NetworkDown
                | io::ErrorKind::AddrNotAvailable
        )
    })
}

fn sources<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

/// The innermost source says what happened; the layers around it repeat that something did.
fn with_sources(error: &(dyn StdError + 'static)) -> String {
    let own = match error.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => error.to_string(),
    };
    match sources(error).last() {
        Some(cause) => format!("{own}: {cause}"),
        None => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_etcd_are_sorted_by_what_to_do() {
        for (code, text, expected) in [
            (Code::Unauthenticated, "etcdserver: invalid auth token", Failure::Login("".into())),
            (Code::InvalidArgument, "etcdserver: user name is empty", Failure::Login("".into())),
            (Code::PermissionDenied, "etcdserver: permission denied", Failure::Denied("".into())),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", Failure::Full("".into())),
            (Code::InvalidArgument, "etcdserver: request is too large", Failure::Invalid("".into())),
            (Code::NotFound, "etcdserver: requested lease not found", Failure::LeaseGone),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", Failure::Compacted),
            (
                Code::Unavailable,
                "etcdserver: request timed out",
                Failure::Retry { cause: String::new(), sent: true, answered: true },
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: too many requests",
                Failure::Retry { cause: String::new(), sent: true, answered: true },
            ),
            (
                Code::Unknown,
                "transport error",
                Failure::Retry { cause: String::new(), sent: true, answered: false },
            ),
        ] {
            let expected = match expected {
                Failure::Login(_) => Failure::Login(text.into()),
                Failure::Denied(_) => Failure::Denied(text.into()),
                Failure::Full(_) => Failure::Full(text.into()),
                Failure::Invalid(_) => Failure::Invalid(text.into()),
                Failure::Retry { sent, answered, .. } => {
                    Failure::Retry { cause: text.into(), sent, answered }
                }
                other => other,
            };
            assert_eq!(judge(&etcd_client::Error::GRpcStatus(Status::new(code, text))), expected);
        }
    }
}
