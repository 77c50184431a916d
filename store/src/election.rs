//! Who is the controller: one of all candidates, and writes that prove it.
//!
//! A candidate writes a key of its own, bound to its lease; the oldest key leads. Every other candidate waits for
//! the one before it to vanish. Keys are named as etcd's own election names them (`<prefix><lease in hex>`), so
//! `etcdctl elect --listen <prefix without the last />` shows who leads. Unlike etcd's `Campaign` call, the waiting
//! is done on this side: there, the server keeps a waiting candidate's lease alive for as long as it takes the
//! connection to be open, and elects a machine that has long lost power.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::session::keep_until_lost;
use crate::watch::{Change, Event};
use crate::{Compare, Error, Result, Store, TxnOutcome, Write};

/// A dead leader is replaced after this time, unless another is asked for.
const TTL: Duration = Duration::from_secs(6);

/// An election under a prefix, and who we are in it.
#[derive(Debug, Clone)]
pub struct Election {
    store: Store,
    prefix: String,
    identity: String,
    ttl: Duration,
}

/// Being the leader. Dropping it resigns in the background; [`Leadership::resign`] waits for it.
#[derive(Debug)]
pub struct Leadership {
    candidacy: Candidacy,
    fence: Compare,
}

impl Election {
    /// A candidate called `identity` (for people to read, as the value of its key) under `prefix`, as
    /// [`NetworkKeys::controller`](crate::NetworkKeys::controller) gives it.
    pub fn new(store: &Store, prefix: impl Into<String>, identity: impl Into<String>) -> Self {
        Self { store: store.clone(), prefix: prefix.into(), identity: identity.into(), ttl: TTL }
    }

    /// Sets how long a leader that has died still stands in the way: in whole seconds, 6 unless set.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Waits until we lead, for as long as it takes, also while etcd is out of reach. Dropping the future withdraws
    /// the candidacy.
    pub async fn campaign(&self) -> Leadership {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut told = false;
        loop {
            let started = Instant::now();
            match self.stand().await {
                Ok(Some(leadership)) => {
                    info!(identity = self.identity, prefix = self.prefix, "elected");
                    return leadership;
                }
                Ok(None) => debug!(prefix = self.prefix, "candidacy lost; standing again"),
                Err(cause) if !told => {
                    told = true;
                    warn!(%cause, prefix = self.prefix, "cannot stand for election; trying on");
                }
                Err(cause) => debug!(%cause, prefix = self.prefix, "still cannot stand for election"),
            }
            if started.elapsed() > self.ttl {
                backoff.reset();
            }
            sleep(backoff.next()).await;
        }
    }

    /// One candidacy: ends when we lead, or with `None` when it was lost before.
    async fn stand(&self) -> Result<Option<Leadership>> {
        let granted = Instant::now();
        let (lease, ttl) = self.store.grant(self.ttl).await?;
        let key = format!("{}{lease:x}", self.prefix);
        // From here on, whatever happens, the lease is revoked.
        let mut candidacy = Candidacy::start(self.store.clone(), lease, ttl, granted);
        let write = Write::put_leased(key.as_str(), self.identity.as_str(), lease);
        let born = match self.store.txn(&[Compare::absent(key.as_str())], &[write]).await {
            Ok(TxnOutcome::Applied { revision }) => revision,
            // The key is named by our lease, so whoever wrote it was us, in a try that was not answered.
            Ok(TxnOutcome::Conflict { current, .. }) => match current.first() {
                Some(own) => own.create_revision,
                None => return Ok(None),
            },
            Err(Error::LeaseGone { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        while let Some(before) = self.store.predecessor(&self.prefix, born).await? {
            tokio::select! {
                () = gone(&self.store, &before.key) => {}
                () = candidacy.lost() => return Ok(None),
            }
        }
        candidacy.guard(key.clone());
        Ok(Some(Leadership { candidacy, fence: Compare::CreateRevision(key, born) }))
    }
}

impl Leadership {
    /// The condition that we still lead. Every transaction of the leader carries it, so that one who was deposed
    /// without knowing it writes nothing.
    pub fn fence(&self) -> &Compare {
        &self.fence
    }

    /// Resolves when the leadership is lost, or may be: the lease ended, could not be kept alive for its time, or
    /// somebody deleted the key. The future does not borrow the leadership and can be awaited more than once.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        self.candidacy.lost()
    }

    /// Whether the leadership is lost, as far as is known now.
    pub fn is_lost(&self) -> bool {
        self.candidacy.is_lost()
    }

    /// Hands over: the next candidate leads as soon as this returns.
    ///
    /// # Errors
    /// When etcd could not be told: the next candidate leads when the time to live is over.
    pub async fn resign(mut self) -> Result<()> {
        self.candidacy.end();
        let outcome = self.candidacy.store.revoke(self.candidacy.lease).await;
        self.candidacy.revoked = outcome.is_ok();
        outcome
    }
}

/// A key in the election with its lease, and what keeps it alive.
#[derive(Debug)]
struct Candidacy {
    store: Store,
    lease: i64,
    lost: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    revoked: bool,
}

impl Candidacy {
    fn start(store: Store, lease: i64, ttl: Duration, granted: Instant) -> Self {
        let lost = watch::Sender::new(false);
        let mut candidacy = Self { store: store.clone(), lease, lost, tasks: Vec::new(), revoked: false };
        candidacy.lost_after(async move { keep_until_lost(&store, lease, ttl, granted).await });
        candidacy
    }

    /// Counts the candidacy as lost when its key vanishes, though the lease may live on.
    fn guard(&mut self, key: String) {
        let store = self.store.clone();
        self.lost_after(async move { gone(&store, &key).await });
    }

    fn lost_after(&mut self, event: impl Future<Output = ()> + Send + 'static) {
        let lost = self.lost.clone();
        self.tasks.push(tokio::spawn(async move {
            event.await;
            lost.send_replace(true);
        }));
    }

    fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut lost = self.lost.subscribe();
        async move {
            // An error means that all who could tell are gone, and the candidacy with them.
            let _lost = lost.wait_for(|lost| *lost).await;
        }
    }

    fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    fn end(&mut self) {
        self.lost.send_replace(true);
        self.tasks.drain(..).for_each(|task| task.abort());
    }
}

impl Drop for Candidacy {
    fn drop(&mut self) {
        self.end();
        // Without a runtime the process is ending, and the lease ends by its time to live.
        if let (false, Ok(runtime)) = (self.revoked, tokio::runtime::Handle::try_current()) {
            let (store, lease) = (self.store.clone(), self.lease);
            runtime.spawn(async move {
                if let Err(cause) = store.revoke(lease).await {
                    debug!(%cause, "a candidacy's lease is left to its time to live");
                }
            });
        }
    }
}

/// Waits until the key does not exist.
async fn gone(store: &Store, key: &str) {
    let mut watch = store.watch_key(key);
    loop {
        match watch.next().await {
            Event::Snapshot { kvs, .. } if kvs.is_empty() => return,
            Event::Changes { changes, .. }
                if changes.iter().any(|change| matches!(change, Change::Deleted { .. })) =>
            {
                return;
            }
            _ => {}
        }
    }
}
