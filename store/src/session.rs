//! Leases that live as long as their holder: for keys that say who is alive.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::{Result, Store};

/// A lease of this process, kept alive in the background and replaced when it is lost.
///
/// A key that was written with the lease vanishes when the process is gone for longer than the time to live. A lease
/// can be lost while the process lives, when etcd was out of reach for too long; its keys have to be written again
/// with the next one:
///
/// ```no_run
/// # async fn example(store: tenon_store::Store) {
/// use std::time::Duration;
/// use tenon_store::{Error, Session, Write};
/// let mut session = Session::open(&store, Duration::from_secs(10));
/// loop {
///     let lease = session.granted().await;
///     let write = [Write::put_leased("/agents/10.0.0.1", "{}", lease)];
///     while let Err(error) = store.txn(&[], &write).await {
///         if let Error::LeaseGone { .. } = error {
///             break; // The next lease is on its way.
///         }
///         tokio::time::sleep(Duration::from_secs(1)).await;
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Session {
    lease: watch::Receiver<Option<i64>>,
    keeper: JoinHandle<()>,
    store: Store,
}

impl Session {
    /// A session whose keys vanish `ttl` (in whole seconds, rounded up; etcd has a minimum of its own, usually 2)
    /// after the process. etcd may be down: the first lease comes when it is there.
    pub fn open(store: &Store, ttl: Duration) -> Self {
        let (sender, lease) = watch::channel(None);
        let keeper = tokio::spawn(keep(store.clone(), ttl, sender));
        Self { lease, keeper, store: store.clone() }
    }

    /// Waits for a lease that this was not called for yet: at first the first one, later the next after a loss.
    /// Nothing is lost when the future is dropped before it is ready.
    pub async fn granted(&mut self) -> i64 {
        loop {
            if self.lease.changed().await.is_err() {
                // The keeper ends only when the runtime is shut down, and this future with it.
                std::future::pending::<()>().await;
            }
            if let Some(lease) = *self.lease.borrow_and_update() {
                return lease;
            }
        }
    }

    /// The lease, if there is one now.
    pub fn lease(&self) -> Option<i64> {
        *self.lease.borrow()
    }

    /// Ends the lease, so that its keys vanish now.
    ///
    /// # Errors
    /// When etcd could not be told: the keys vanish when the time to live is over.
    pub async fn close(self) -> Result<()> {
        self.keeper.abort();
        let lease = self.lease();
        match lease {
            Some(lease) => self.store.revoke(lease).await,
            None => Ok(()),
        }
    }
}

impl Drop for Session {
    /// Leaves the lease to its time to live: a process that is started again may take its place before that.
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

async fn keep(store: Store, ttl: Duration, current: watch::Sender<Option<i64>>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(3));
    loop {
        let (lease, ttl) = match store.grant(ttl).await {
            Ok(granted) => granted,
            Err(cause) => {
                debug!(%cause, "etcd grants no lease yet");
                sleep(backoff.next()).await;
                continue;
            }
        };
        backoff.reset();
        info!(lease = format!("{lease:x}"), "etcd lease granted");
        current.send_replace(Some(lease));
        // Out of reach is not lost: etcd may have prolonged the lease by itself when its leader changed.
        loop {
            sleep(beat(ttl)).await;
            match store.keep_alive(lease).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(cause) => debug!(%cause, "etcd lease not kept alive; trying on"),
            }
        }
        warn!(lease = format!("{lease:x}"), "etcd lease lost; getting another");
        current.send_replace(None);
    }
}

/// Keeps a lease alive until it is lost: gone, or perhaps gone, because its time went by without an answer.
pub(crate) async fn keep_until_lost(store: &Store, lease: i64, ttl: Duration, granted: Instant) {
    let mut expires = granted + ttl;
    loop {
        sleep(beat(ttl)).await;
        let asked = Instant::now();
        match timeout_at(expires, store.keep_alive(lease)).await {
            Ok(Ok(true)) => expires = asked + ttl,
            Ok(Ok(false)) | Err(_) => return,
            Ok(Err(cause)) => debug!(%cause, "etcd lease not kept alive; trying on"),
        }
    }
}

/// Three beats in a lease's time leave room for two that fail.
fn beat(ttl: Duration) -> Duration {
    ttl / 3
}
