//! How to reach etcd.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use crate::{Error, Result};

/// How long one endpoint may take to be connected to, before the next one's turn comes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection with open streams is pinged this often. etcd closes connections that ping more often than every
/// 5 s (`--grpc-keepalive-min-time`).
const PING_INTERVAL: Duration = Duration::from_secs(6);
/// A connection whose ping goes unanswered for so long is dead.
const PING_TIMEOUT: Duration = Duration::from_secs(4);

/// Where etcd is and who we are to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The members' client URLs, `http://HOST:PORT` or `https://HOST:PORT`. Without a scheme it is https when
    /// `ca_file` is given and http otherwise.
    pub endpoints: Vec<String>,
    /// The PEM file of the authority that signed the members' certificates; https needs it.
    pub ca_file: Option<PathBuf>,
    /// The PEM file of our own certificate, for members that ask for one.
    pub cert_file: Option<PathBuf>,
    /// The PEM file of its private key.
    pub key_file: Option<PathBuf>,
    /// The etcd user.
    pub username: Option<String>,
    /// The file that holds the user's password; a newline at its end is not part of it.
    pub password_file: Option<PathBuf>,
    /// How long a call may take in total, over all endpoints and tries.
    pub timeout: Duration,
}

impl Default for Options {
    /// One member on this machine, no TLS, no user, 5 seconds.
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: None,
            password_file: None,
            timeout: Duration::from_secs(5),
        }
    }
}

impl Options {
    /// The endpoints as URLs, or what is wrong with the options as a whole.
    pub(crate) fn urls(&self) -> Result<Vec<String>> {
        if self.endpoints.is_empty() {
            return Err(Error::Options(
                "no endpoints are given; name at least one member's client URL".into(),
            ));
        }
        if self.timeout.is_zero() {
            return Err(Error::Options("timeout is 0; give the calls some time".into()));
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err(Error::Options("cert_file and key_file go together; give both or none".into()));
        }
        if self.cert_file.is_some() && self.ca_file.is_none() {
            return Err(Error::Options("cert_file needs ca_file, to know the members by".into()));
        }
        if self.username.is_some() != self.password_file.is_some() {
            return Err(Error::Options("username and password_file go together; give both or none".into()));
        }
        self.endpoints.iter().map(|endpoint| self.url(endpoint)).collect()
    }

    fn url(&self, endpoint: &str) -> Result<String> {
        let endpoint = endpoint.trim();
        let url = match (endpoint.split_once("://"), &self.ca_file) {
            (Some(("http", _)), Some(_)) => {
                return Err(Error::Options(format!(
                    "endpoint {endpoint} is http, but ca_file is given; write https://, or leave the file out"
                )));
            }
            (Some(("https", _)), None) => {
                return Err(Error::Options(format!(
                    "endpoint {endpoint} is https, but no ca_file says whose certificates to trust"
                )));
            }
            (Some((scheme @ ("http" | "https"), host)), _) => {
                format!("{scheme}://{}", host.trim_end_matches('/'))
            }
            (Some((scheme, _)), _) => {
                return Err(Error::Options(format!(
                    "endpoint {endpoint} has the unknown scheme {scheme:?}; it must be http:// or https://"
                )));
            }
            (None, Some(_)) => format!("https://{}", endpoint.trim_end_matches('/')),
            (None, None) => format!("http://{}", endpoint.trim_end_matches('/')),
        };
        match url.parse::<tonic::codegen::http::Uri>() {
            Ok(uri) if uri.host().is_some_and(|host| !host.is_empty()) => Ok(url),
            Ok(_) => Err(Error::Options(format!("endpoint {endpoint:?} has no host"))),
            Err(cause) => Err(Error::Options(format!("endpoint {endpoint:?} is no URL: {cause}"))),
        }
    }

    /// The client library's options, with the files as they are now. `as_user` leaves the user out when false.
    pub(crate) fn connect_options(&self, as_user: bool) -> Result<ConnectOptions> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            // etcd takes pings on a connection without streams for abuse and closes it.
            .with_keep_alive_while_idle(false)
            // A member that has lost its cluster must say so instead of answering from the past.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(ca_file) = &self.ca_file {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read("ca_file", ca_file)?));
            if let (Some(cert_file), Some(key_file)) = (&self.cert_file, &self.key_file) {
                tls = tls
                    .identity(Identity::from_pem(read("cert_file", cert_file)?, read("key_file", key_file)?));
            }
            options = options.with_tls(tls);
        }
        if let (true, Some(username), Some(password_file)) = (as_user, &self.username, &self.password_file) {
            let password = read("password_file", password_file)?;
            let password = String::from_utf8(password).map_err(|_| Error::File {
                option: "password_file",
                path: password_file.clone(),
                cause: "it is not UTF-8".to_owned(),
            })?;
            options = options.with_user(username, password.trim_end_matches(['\r', '\n']));
        }
        Ok(options)
    }
}

fn read(option: &'static str, path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|cause| Error::File { option, path: path.to_owned(), cause: cause.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(endpoint: &str, ca: bool) -> Result<Vec<String>> {
        Options {
            endpoints: vec![endpoint.to_owned()],
            ca_file: ca.then(|| PathBuf::from("/ca.pem")),
            ..Options::default()
        }
        .urls()
    }

    #[test]
    fn a_missing_scheme_follows_the_authority() {
        assert_eq!(urls("node1:2379", false).unwrap(), ["http://node1:2379"]);
        assert_eq!(urls("node1:2379/", true).unwrap(), ["https://node1:2379"]);
        assert_eq!(urls("http://[fd00::1]:2379", false).unwrap(), ["http://[fd00::1]:2379"]);
    }

    #[test]
    fn contradictions_are_named() {
        for (result, word) in [
            (urls("http://a:1", true), "http, but ca_file"),
            (urls("https://a:1", false), "no ca_file"),
            (urls("ftp://a:1", false), "\"ftp\""),
            (urls("http://", false), "no URL"),
            (urls("a b:1", false), "no URL"),
            (Options { endpoints: Vec::new(), ..Options::default() }.urls(), "no endpoints"),
            (Options { username: Some("a".into()), ..Options::default() }.urls(), "password_file"),
            (Options { cert_file: Some("/c".into()), ..Options::default() }.urls(), "key_file"),
        ] {
            let text = result.unwrap_err().to_string();
            assert!(text.contains(word), "{text:?} lacks {word:?}");
        }
    }

    #[test]
    fn an_unreadable_file_is_named_with_its_option() {
        let options = Options { ca_file: Some("/nowhere/ca.pem".into()), ..Options::default() };
        let text = options.connect_options(true).unwrap_err().to_string();
        assert!(text.contains("ca_file /nowhere/ca.pem"), "{text}");
    }
}
