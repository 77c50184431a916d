//! What can go wrong, always with the name of the thing it went wrong for.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation on the node's network failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing at this path: the pod or container that owned the namespace is gone.
    #[error("network namespace {path} does not exist", path = path.display())]
    NetNsNotFound {
        /// The path that was to be opened.
        path: PathBuf,
    },
    /// There is something at this path, but not a network namespace: often the empty file that is left when the
    /// namespace's bind mount is gone.
    #[error("{path} is not a network namespace", path = path.display())]
    NotANetNs {
        /// The path that was opened.
        path: PathBuf,
    },
    /// A network namespace could not be opened or entered.
    #[error("cannot {step} network namespace {netns}: {source}")]
    NetNs {
        /// What was tried.
        step: &'static str,
        /// The namespace, by path.
        netns: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Code that ran in a network namespace panicked; the calling thread is where it was.
    #[error("code run in network namespace {netns} panicked: {message}")]
    Panicked {
        /// The namespace, by path.
        netns: String,
        /// The panic's message.
        message: String,
    },
    /// A netlink or packet socket could not be used.
    #[error("cannot {operation} {object}: cannot {step}: {source}")]
    Socket {
        /// What the socket was needed for.
        operation: &'static str,
        /// What it was done to.
        object: String,
        /// What was tried on the socket.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {operation} {object}: {errno}{detail}", detail = detail(*errno, message))]
    Refused {
        /// What was asked for.
        operation: &'static str,
        /// What it was asked for.
        object: String,
        /// The error number.
        errno: Errno,
        /// The kernel's extended acknowledgement, empty if it gave none.
        message: String,
    },
    /// The answer could not be read whole, also when it was asked for again: it changed meanwhile every time.
    #[error(
        "cannot {operation} {object}: the answer was cut short or outdated {tries} times in a row; try again"
    )]
    Interrupted {
        /// What was asked for.
        operation: &'static str,
        /// What it was asked for.
        object: String,
        /// How often it was tried.
        tries: u32,
    },
    /// The kernel's answer is not what its documentation says.
    #[error("cannot {operation} {object}: the kernel's answer makes no sense: {reason}")]
    Malformed {
        /// What was asked for.
        operation: &'static str,
        /// What it was asked for.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What the caller asked for cannot be meant; the kernel was not asked.
    #[error("cannot {operation} {object}: {reason}")]
    Invalid {
        /// What was asked for.
        operation: &'static str,
        /// What it was asked for.
        object: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A kernel setting could not be read or written.
    #[error("cannot {operation} sysctl {key}: {source}")]
    Sysctl {
        /// `read` or `write`.
        operation: &'static str,
        /// The setting's name, and the value if one was to be written.
        key: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// What was made a moment ago is not there any more.
    pub fn vanished(operation: &'static str, object: impl Into<String>) -> Self {
        let message = "it was deleted as soon as it was made".to_owned();
        Self::Refused { operation, object: object.into(), errno: Errno::ENODEV, message }
    }

    /// The kernel's error number, where the kernel is the one that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::NetNs { source, .. } | Self::Socket { source, .. } | Self::Sysctl { source, .. } => {
                source.raw_os_error().map(Errno::from_raw)
            }
            _ => None,
        }
    }
}

/// The kernel's words, and where the error number is known to puzzle people, the way out.
fn detail(errno: Errno, message: &str) -> String {
    let hint = match errno {
        Errno::EPERM | Errno::EACCES => "CAP_NET_ADMIN is needed in the network namespace",
        Errno::EOPNOTSUPP => "the kernel was built without it, or its module is not loaded",
        Errno::ENETUNREACH | Errno::EHOSTUNREACH => "no route leads there, or its device is down",
        _ => "",
    };
    [message, hint].iter().filter(|part| !part.is_empty()).map(|part| format!(": {part}")).collect()
}
