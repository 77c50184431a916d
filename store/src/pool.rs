//! The endpoints, a client for each, and the one loop that tries them in turn.
//!
//! The client library has no failover of its own, so each endpoint gets a client that knows only it. All calls go to
//! the same endpoint until it fails; then all go to the next one.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::Client;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};

use crate::backoff::{Backoff, random};
use crate::failure::{Failure, judge};
use crate::{Error, Options, Result};

/// No try is given less than this, however many endpoints share the time.
const SHORTEST_TRY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Pool {
    options: Options,
    endpoints: Vec<Endpoint>,
    current: AtomicUsize,
}

struct Endpoint {
    url: String,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    client: Option<Client>,
    /// Counts the clients that this endpoint has had, so that a failure is held against the right one.
    generation: u64,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// A client, and which one it is.
pub(crate) struct Member<'a> {
    pub(crate) client: Client,
    endpoint: &'a Endpoint,
    index: usize,
    generation: u64,
}

/// What a call brought.
pub(crate) struct Answer<T> {
    pub(crate) value: T,
    /// An earlier try ended without an answer and may have been carried out.
    pub(crate) unsure: bool,
}

/// Why a call brought nothing. The first two mean something to the caller that only it can act upon.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The revision that was asked for is no longer in etcd's history.
    Compacted,
    /// The lease does not exist.
    LeaseGone,
    /// Anything else.
    Error(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Pool {
    pub(crate) fn new(options: Options) -> Result<Self> {
        let endpoints: Vec<_> =
            options.urls()?.into_iter().map(|url| Endpoint { url, slot: Mutex::default() }).collect();
        // The files must be there at the start; each new client reads them again, so that they can be renewed.
        options.connect_options(true)?;
        // Different agents start with different members.
        let current = AtomicUsize::new(random() as usize % endpoints.len());
        Ok(Self { options, endpoints, current })
    }

    /// The longest that one endpoint may keep a call: so short that each gets its turn before the deadline.
    pub(crate) fn longest_try(&self) -> Duration {
        let shares = u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX).saturating_add(1);
        (self.options.timeout / shares).max(SHORTEST_TRY)
    }

    /// Carries out `operation` on one endpoint after another until one answers or the time is up.
    pub(crate) async fn call<T, F, Fut>(&self, what: &'static str, operation: F) -> Result<Answer<T>, Fault>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let started = Instant::now();
        let deadline = started + self.options.timeout;
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
        let mut unsure = false;
        let mut logged_in_again = false;
        let mut tries = 0_usize;
        let mut last = String::new();
        loop {
            let index = self.current.load(Ordering::Relaxed);
            let until = deadline.min(Instant::now() + self.longest_try());
            let failure = match self.member(index, until).await {
                Err(failure) => failure,
                Ok(member) => match timeout_at(until, operation(member.client.clone())).await {
                    Ok(Ok(value)) => return Ok(Answer { value, unsure }),
                    Ok(Err(error)) => self.held_against(&member, judge(&error)).await,
                    Err(_) => self.held_against(&member, Failure::silent()).await,
                },
            };
            let endpoint = self.url(index);
            let cause = match failure {
                Failure::Retry { cause, sent, .. } => {
                    unsure |= sent;
                    cause
                }
                Failure::Login(_) if !logged_in_again => {
                    logged_in_again = true;
                    continue;
                }
                Failure::Login(cause) => {
                    return Err(Error::Denied { endpoint, what, cause, way_out: self.login_way_out() }.into());
                }
                Failure::Denied(cause) => {
                    let way_out = "grant the etcd user's role readwrite on Tenon's prefix";
                    return Err(Error::Denied { endpoint, what, cause, way_out }.into());
                }
                Failure::Full(cause) => return Err(Error::Full { endpoint, cause }.into()),
                failure @ (Failure::Invalid(_) | Failure::NoUsers) => {
                    return Err(Error::Invalid { endpoint, what, cause: failure.cause() }.into());
                }
                Failure::Options(error) => return Err(error.into()),
                Failure::LeaseGone => return Err(Fault::LeaseGone),
                Failure::Compacted => return Err(Fault::Compacted),
            };
            self.advance(index);
            tries += 1;
            // A try that the deadline cut short says less than the one before it.
            if last.is_empty() || Instant::now() < deadline {
                last = format!("{endpoint}: {cause}");
            }
            let pause =
                if tries.is_multiple_of(self.endpoints.len()) { backoff.next() } else { Duration::ZERO };
            if Instant::now() + pause >= deadline {
                return Err(self.unavailable(last, started.elapsed()).into());
            }
            sleep(pause).await;
        }
    }

    /// A client of the endpoint whose turn it is, for a stream; or why there is none, for people.
    pub(crate) async fn current_member(&self) -> Result<Member<'_>, String> {
        let index = self.current.load(Ordering::Relaxed);
        let member = self.member(index, Instant::now() + self.longest_try()).await;
        member.map_err(|failure| {
            self.advance(index);
            format!("{}: {}", self.url(index), failure.cause())
        })
    }

    /// A stream of this member has failed: the next one's turn has come. Gives the cause, for people.
    pub(crate) async fn stream_failed(&self, member: &Member<'_>, failure: Failure) -> String {
        let failure = self.held_against(member, failure).await;
        self.advance(member.index);
        format!("{}: {}", member.url(), failure.cause())
    }

    /// The endpoint's client; logs in when there is none yet.
    async fn member(&self, index: usize, until: Instant) -> Result<Member<'_>, Failure> {
        // `current` never leaves the range, but nothing is lost by not relying on it.
        let Some(endpoint) = self.endpoints.get(index).or(self.endpoints.first()) else {
            return Err(Failure::Options(Error::Options("no endpoints are given".into())));
        };
        let login = async {
            let mut slot = endpoint.slot.lock().await;
            if let Some(client) = &slot.client {
                return Ok(Member { client: client.clone(), endpoint, index, generation: slot.generation });
            }
            let client = match self.log_in(&endpoint.url, true).await {
                // The cluster may get its users later; until then there is no one to log in as.
                Err(Failure::NoUsers) => self.log_in(&endpoint.url, false).await?,
                other => other?,
            };
            slot.generation += 1;
            slot.client = Some(client.clone());
            Ok(Member { client, endpoint, index, generation: slot.generation })
        };
        match timeout_at(until, login).await {
            Ok(outcome) => outcome.map_err(Failure::unsent),
            Err(_) => Err(Failure::silent().unsent()),
        }
    }

    async fn log_in(&self, url: &str, as_user: bool) -> Result<Client, Failure> {
        let options = self.options.connect_options(as_user).map_err(Failure::Options)?;
        Client::connect([url], Some(options)).await.map_err(|error| judge(&error))
    }

    /// Drops the client that the failure speaks against: the next call connects anew, with the files as they are
    /// then. A member that answered, if only with an error, keeps its connection.
    async fn held_against(&self, member: &Member<'_>, failure: Failure) -> Failure {
        if failure.speaks_against_client() {
            let mut slot = member.endpoint.slot.lock().await;
            if slot.generation == member.generation {
                slot.client = None;
            }
        }
        failure
    }

    /// Makes the endpoint after `index` the current one, unless another call has moved on already.
    fn advance(&self, index: usize) {
        let next = (index + 1) % self.endpoints.len();
        // When it fails, the current endpoint is another already, which is all that is wanted.
        let _moved = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn url(&self, index: usize) -> String {
        self.endpoints.get(index).map(|endpoint| endpoint.url.clone()).unwrap_or_default()
    }

    fn unavailable(&self, cause: String, waited: Duration) -> Error {
        let endpoints: Vec<_> = self.endpoints.iter().map(|endpoint| endpoint.url.as_str()).collect();
        let over_tls = match self.options.ca_file {
            Some(_) => ", that ca_file signed the members' certificates, and that they accept cert_file",
            None => "",
        };
        Error::Unavailable { endpoints: endpoints.join(", "), cause, waited, over_tls }
    }

    fn login_way_out(&self) -> &'static str {
        match self.options.username {
            Some(_) => "check username and the password in password_file",
            None => "set username and password_file, or cert_file and key_file",
        }
    }
}

impl Member<'_> {
    /// The URL of the member's endpoint.
    pub(crate) fn url(&self) -> &str {
        &self.endpoint.url
    }
}
