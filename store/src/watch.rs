//! A watch that never ends and never lies: a snapshot, then every change after it, across the loss of members, of
//! history and of etcd itself.

use std::time::Duration;

use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::failure::{Failure, judge};
use crate::pool::Member;
use crate::store::LARGEST_MESSAGE_BYTES;
use crate::{KeyValue, Result, Store};

/// A stream that is silent for so long is asked for a sign of life.
const SILENCE: Duration = Duration::from_secs(10);
/// After so many unanswered questions the stream is given up.
const UNANSWERED: u32 = 2;
/// A stream that has lived for so long was a good one: the next loss starts with a short wait again.
const GOOD_STREAM: Duration = Duration::from_secs(10);

/// What a [`Watch`] reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Everything under the prefix at one revision. It replaces whatever was known: what is not in it is gone. The
    /// first event is always one; later ones come when changes were missed for good, after a compaction or when
    /// etcd was restored from a backup.
    Snapshot {
        /// The revision of the whole.
        revision: i64,
        /// All key-values, sorted by key.
        kvs: Vec<KeyValue>,
    },
    /// The changes since the last event, in their order. All writes of a transaction are in the same event.
    Changes {
        /// The revision that the prefix has reached with them.
        revision: i64,
        /// The changes; a key can occur more than once when etcd delivers several revisions together.
        changes: Vec<Change>,
    },
}

/// One change to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key was written.
    Put(KeyValue),
    /// The key was deleted, or its lease ended.
    Deleted {
        /// The whole key.
        key: String,
        /// The revision of the deletion.
        revision: i64,
    },
}

impl Change {
    /// The key that was written or deleted.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Deleted { key, .. } => key,
        }
    }
}

/// How a [`Watch`] is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchStatus {
    /// No connection has been made yet.
    Starting,
    /// Changes arrive as they happen.
    Live {
        /// The endpoint they come from.
        endpoint: String,
    },
    /// etcd is out of reach; the watch goes on trying.
    Lost {
        /// Why.
        cause: String,
    },
}

/// A view of a prefix, kept up to date in the background for as long as it is not dropped.
///
/// It needs no care: a lost stream is taken up again after the last revision seen, on another endpoint, with growing
/// waits; a change is never delivered twice, skipped or out of order. When nobody takes the events, at most two wait
/// here; the rest waits in etcd.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<Event>,
    status: watch::Receiver<WatchStatus>,
    task: JoinHandle<()>,
}

impl Watch {
    pub(crate) fn start(store: Store, key: String, prefix: bool) -> Self {
        let (events, receiver) = mpsc::channel(1);
        let (status, status_receiver) = watch::channel(WatchStatus::Starting);
        let follower = Follower { store, key, prefix, events, status, seen: None };
        let task = tokio::spawn(follower.run());
        Self { events: receiver, status: status_receiver, task }
    }

    /// Waits for the next event. Nothing is lost when the future is dropped before it is ready.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            // The task ends only when the runtime is shut down, and this future with it.
            None => std::future::pending().await,
        }
    }

    /// How the watch is doing, now and as it changes. While events wait to be taken nothing is read from etcd, so a
    /// loss is noticed only afterwards.
    pub fn status(&self) -> watch::Receiver<WatchStatus> {
        self.status.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How far the view has come, and in whose history.
#[derive(Clone, Copy)]
struct Seen {
    revision: i64,
    cluster: u64,
}

/// Why a stream is no longer followed.
enum End {
    /// Nobody takes the events any more.
    Dropped,
    /// What comes next cannot be had from this history: list again.
    Missed(&'static str),
    /// The stream broke.
    Broken(Failure),
    /// There is no stream, for the reason told.
    Lost(String),
}

struct Follower {
    store: Store,
    key: String,
    prefix: bool,
    events: mpsc::Sender<Event>,
    status: watch::Sender<WatchStatus>,
    seen: Option<Seen>,
}

impl Follower {
    async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(3));
        loop {
            let seen = match self.seen {
                Some(seen) => seen,
                None => match self.snapshot().await {
                    Ok(Some(seen)) => seen,
                    Ok(None) => return,
                    Err(error) => {
                        self.lost(error.to_string());
                        sleep(backoff.next()).await;
                        continue;
                    }
                },
            };
            let started = Instant::now();
            match self.follow(seen).await {
                End::Dropped => return,
                End::Missed(why) => {
                    info!(key = self.key, revision = seen.revision, "etcd watch lists again: {why}");
                    self.seen = None;
                }
                End::Broken(failure) => self.lost(failure.cause()),
                End::Lost(cause) => self.lost(cause),
            }
            if started.elapsed() >= GOOD_STREAM {
                backoff.reset();
            }
            sleep(backoff.next()).await;
        }
    }

    /// Lists and delivers; `None` when nobody takes the events any more.
    async fn snapshot(&mut self) -> Result<Option<Seen>> {
        let listing = self.store.listing(&self.key, self.prefix).await?;
        let seen = Seen { revision: listing.revision, cluster: listing.cluster };
        let event = Event::Snapshot { revision: listing.revision, kvs: listing.kvs };
        if self.events.send(event).await.is_err() {
            return Ok(None);
        }
        self.seen = Some(seen);
        Ok(self.seen)
    }

    /// Opens a stream after the last revision seen, and delivers until it ends.
    async fn follow(&mut self, seen: Seen) -> End {
        let store = self.store.clone();
        let member = match store.pool.current_member().await {
            Ok(member) => member,
            Err(cause) => return End::Lost(cause),
        };
        let end = match self.open(&member, seen).await {
            Ok(stream) => self.deliver(&member, stream).await,
            Err(end) => end,
        };
        match end {
            End::Broken(failure) => End::Lost(store.pool.stream_failed(&member, failure).await),
            other => other,
        }
    }

    async fn open(&self, member: &Member<'_>, seen: Seen) -> Result<WatchStream, End> {
        let mut options = WatchOptions::new().with_start_revision(seen.revision + 1).with_progress_notify();
        if self.prefix {
            options = options.with_prefix();
        }
        let mut client = member.client.watch_client().max_decoding_message_size(LARGEST_MESSAGE_BYTES);
        let opening = async {
            let mut stream = client.watch(self.key.as_str(), Some(options)).await?;
            Ok((stream.message().await?, stream))
        };
        let (first, stream) = match timeout(self.store.pool.longest_try(), opening).await {
            Ok(Ok((Some(first), stream))) => (first, stream),
            Ok(Ok((None, _))) => return Err(End::Broken(closed())),
            Ok(Err(error)) => return Err(End::Broken(judge(&error))),
            Err(_) => return Err(End::Broken(Failure::silent())),
        };
        if let Some(end) = canceled(&first) {
            return Err(end);
        }
        let Some(header) = first.header() else {
            return Err(End::Broken(closed()));
        };
        if header.cluster_id() != seen.cluster {
            return Err(End::Missed("the endpoint belongs to another cluster than before"));
        }
        // A member may merely lag behind. Only a read that the whole cluster agrees on can tell that history was
        // taken back; a watch would then wait in silence for a revision that means something else by now.
        if header.revision() < seen.revision {
            match self.store.listing(&self.key, false).await {
                Ok(now) if now.revision < seen.revision || now.cluster != seen.cluster => {
                    return Err(End::Missed("etcd's revision went backwards, as after a restore"));
                }
                Ok(_) => {}
                Err(error) => return Err(End::Lost(error.to_string())),
            }
        }
        Ok(stream)
    }

    async fn deliver(&mut self, member: &Member<'_>, mut stream: WatchStream) -> End {
        self.live(member.url());
        let mut unanswered = 0;
        loop {
            let response = match timeout(SILENCE, stream.message()).await {
                Ok(Ok(Some(response))) => response,
                Ok(Ok(None)) => return End::Broken(closed()),
                Ok(Err(error)) => return End::Broken(judge(&error)),
                Err(_) if unanswered >= UNANSWERED => return End::Broken(Failure::silent()),
                Err(_) => {
                    unanswered += 1;
                    if let Err(error) = stream.request_progress().await {
                        return End::Broken(judge(&error));
                    }
                    continue;
                }
            };
            unanswered = 0;
            if let Some(end) = canceled(&response) {
                return end;
            }
            let Some(revision) = reached(&response) else {
                continue;
            };
            if let Some(seen) = &mut self.seen {
                seen.revision = seen.revision.max(revision);
            }
            let changes: Vec<_> = response.events().iter().filter_map(change).collect();
            if !changes.is_empty() && self.events.send(Event::Changes { revision, changes }).await.is_err() {
                return End::Dropped;
            }
        }
    }

    fn live(&self, endpoint: &str) {
        let before = self.status.send_replace(WatchStatus::Live { endpoint: endpoint.to_owned() });
        if let WatchStatus::Lost { .. } = before {
            info!(key = self.key, endpoint, "etcd watch is live again");
        }
    }

    /// Tells a loss once; what follows until the watch is live again is more of the same.
    fn lost(&self, cause: String) {
        if let WatchStatus::Lost { .. } = *self.status.borrow() {
            debug!(key = self.key, cause, "etcd watch still lost");
        } else {
            warn!(key = self.key, cause, "etcd watch lost; trying on");
        }
        self.status.send_replace(WatchStatus::Lost { cause });
    }
}

/// Why etcd ended the watch by itself, if this response says so.
fn canceled(response: &WatchResponse) -> Option<End> {
    if !response.canceled() {
        return None;
    }
    // A compacted start comes without a reason.
    if response.compact_revision() > 0 {
        return Some(End::Missed("the changes since were compacted"));
    }
    let reason = response.cancel_reason().to_owned();
    // etcd says "permission denied" to an expired token as well, so a new login is worth a try either way.
    let reason = if reason.is_empty() { "etcd canceled the watch".to_owned() } else { reason };
    Some(End::Broken(Failure::Login(reason)))
}

/// The revision after which a new stream has to start to miss nothing and repeat nothing.
fn reached(response: &WatchResponse) -> Option<i64> {
    match response.events().iter().filter_map(|event| event.kv()).map(|kv| kv.mod_revision()).max() {
        Some(revision) => Some(revision),
        // Progress that etcd reports by itself comes after all events up to it. That which was asked for (watch id
        // -1) can overtake events before etcd 3.4.25 and 3.5.8 (etcd#15220): it is a sign of life, nothing more.
        None if response.watch_id() >= 0 => response.header().map(|header| header.revision()),
        None => None,
    }
}

fn change(event: &etcd_client::Event) -> Option<Change> {
    let kv = event.kv()?;
    let key = kv.key_str().ok()?.to_owned();
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    // A deletion is known by what it lacks: a key that exists was created at some revision.
    if create_revision == 0 {
        return Some(Change::Deleted { key, revision: mod_revision });
    }
    let (value, lease) = (kv.value().to_vec(), kv.lease());
    Some(Change::Put(KeyValue { key, value, create_revision, mod_revision, lease }))
}

fn closed() -> Failure {
    Failure::Retry { cause: "the stream was closed".to_owned(), sent: true, answered: false }
}
