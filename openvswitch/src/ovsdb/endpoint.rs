//! Where an OVSDB server listens.

use super::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The address of an OVSDB server, written as Open vSwitch writes it (ovsdb(7), "Connection Methods").
///
/// Only `unix:PATH` with an absolute path is supported: the database of the switch on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    path: PathBuf,
}

impl Endpoint {
    /// The path of the server's Unix socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self { path: PathBuf::from(path) }),
            _ => Err(Error::Endpoint { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "unix:{}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_socket_is_read_and_written() {
        let endpoint: Endpoint = "unix:/var/run/openvswitch/db.sock".parse().unwrap();
        assert_eq!(endpoint.path(), Path::new("/var/run/openvswitch/db.sock"));
        assert_eq!(endpoint.to_string(), "unix:/var/run/openvswitch/db.sock");
    }

    #[test]
    fn everything_else_is_refused_and_told_what_is_supported() {
        for text in ["tcp:127.0.0.1:6640", "ssl:[::1]:6640", "/db.sock", "unix:db.sock", "unix:", ""] {
            let message = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(message.contains(&format!("{text:?}")), "{message}");
            assert!(message.contains("unix:/"), "{message}");
        }
    }
}
