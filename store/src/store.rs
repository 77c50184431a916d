//! Reads, transactions and leases on an etcd cluster.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{CompareOp, GetOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse};

use crate::pool::{Answer, Fault, Pool};
use crate::{Compare, Error, KeyValue, Options, Result, TxnOutcome, Watch, Write};

/// Keys of a listing that are asked for at once. At Tenon's records of some 200 bytes a page is far below the
/// 1.5 MiB that etcd itself sets as the size of a request.
const PAGE: i64 = 1000;
/// The largest message that is accepted: etcd bounds a value by 1.5 MiB, not an answer that holds many.
pub(crate) const LARGEST_MESSAGE_BYTES: usize = 256 << 20;

/// An etcd cluster. Clones are cheap and share their connections.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) pool: Arc<Pool>,
}

/// A prefix as it was at one revision.
pub(crate) struct Listing {
    pub(crate) kvs: Vec<KeyValue>,
    pub(crate) revision: i64,
    pub(crate) cluster: u64,
    /// The last key as etcd gave it, when there are more after it.
    more_after: Option<Vec<u8>>,
}

impl Store {
    /// A store at the cluster that `options` name. Nothing is connected yet, so etcd may be down; each call connects
    /// as it needs.
    ///
    /// # Errors
    /// [`Error::Options`] when the options cannot be right, [`Error::File`] when one of their files cannot be read.
    pub fn connect(options: Options) -> Result<Self> {
        Ok(Self { pool: Arc::new(Pool::new(options)?) })
    }

    /// The key as it is now (a linearizable read), or `None` when it does not exist.
    pub async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        Ok(self.range(key, GetOptions::new()).await.map_err(unexpected)?.kvs.pop())
    }

    /// Everything under `prefix`, sorted by key, and the revision at which it was all so. Long listings come in
    /// pages, all of the same revision.
    pub async fn list(&self, prefix: &str) -> Result<(Vec<KeyValue>, i64)> {
        let listing = self.listing(prefix, true).await?;
        Ok((listing.kvs, listing.revision))
    }

    /// Applies all `writes` when all conditions hold, and none otherwise. Without conditions it always applies.
    ///
    /// A try that ends without an answer is made again, here or on another endpoint, and may have been applied the
    /// first time. With a condition that the writes themselves make false (a [`Compare::ModRevision`] on a written
    /// key) the second try then ends in [`TxnOutcome::Conflict`] with `unsure` set, never in a double write. Writes
    /// without such a condition may be applied twice, with writes of others in between; let them be such that this
    /// does no harm.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: the writes may or may not have been applied. [`Error::LeaseGone`], [`Error::Denied`],
    /// [`Error::Full`], [`Error::Invalid`] (more than 128 conditions or writes, a key twice, more than 1.5 MiB): this
    /// try wrote nothing.
    pub async fn txn(&self, compares: &[Compare], writes: &[Write]) -> Result<TxnOutcome> {
        let request = transaction(compares, writes);
        let answer =
            self.pool.call("a transaction", |client| {
                let request = request.clone();
                async move {
                    client.kv_client().max_decoding_message_size(LARGEST_MESSAGE_BYTES).txn(request).await
                }
            });
        let Answer { value: response, unsure } = match answer.await {
            Ok(answer) => answer,
            Err(Fault::LeaseGone) => {
                let lease = writes.iter().find_map(|write| match write {
                    Write::Put { lease, .. } => *lease,
                    Write::Delete { .. } => None,
                });
                return Err(Error::LeaseGone { lease: lease.unwrap_or_default() });
            }
            Err(fault) => return Err(unexpected(fault)),
        };
        let revision = response.header().map(|header| header.revision()).unwrap_or_default();
        if response.succeeded() {
            return Ok(TxnOutcome::Applied { revision });
        }
        let current = response.op_responses().into_iter().flat_map(|op| match op {
            TxnOpResponse::Get(mut found) => found.take_kvs(),
            _ => Vec::new(),
        });
        Ok(TxnOutcome::Conflict { revision, current: current.filter_map(key_value).collect(), unsure })
    }

    /// Watches everything under `prefix`; see [`Watch`].
    pub fn watch(&self, prefix: impl Into<String>) -> Watch {
        Watch::start(self.clone(), prefix.into(), true)
    }

    /// Watches one key; see [`Watch`].
    pub fn watch_key(&self, key: impl Into<String>) -> Watch {
        Watch::start(self.clone(), key.into(), false)
    }

    /// The key, or all under it as a prefix, at one revision.
    pub(crate) async fn listing(&self, key: &str, prefix: bool) -> Result<Listing> {
        if !prefix {
            return self.range(key, GetOptions::new()).await.map_err(unexpected);
        }
        // A listing that outlasts the history it reads from starts over; more often than this, etcd is being
        // compacted faster than it can be read, and the last failure is the answer.
        for _ in 0..3 {
            match self.pages(key).await {
                Err(Fault::Compacted) => {}
                other => return other.map_err(unexpected),
            }
        }
        self.pages(key).await.map_err(unexpected)
    }

    async fn pages(&self, prefix: &str) -> Result<Listing, Fault> {
        let page = GetOptions::new().with_limit(PAGE);
        let mut listing = self.range(prefix, page.clone().with_prefix()).await?;
        let end = prefix_end(prefix);
        while let Some(mut after) = listing.more_after.take() {
            after.push(0);
            let rest = page.clone().with_range(end.clone()).with_revision(listing.revision);
            let mut next = self.range(after, rest).await?;
            listing.kvs.append(&mut next.kvs);
            listing.more_after = next.more_after;
        }
        Ok(listing)
    }

    async fn range(&self, key: impl Into<Vec<u8>>, options: GetOptions) -> Result<Listing, Fault> {
        let key = key.into();
        let answer = self.pool.call("a read", |client| {
            let (key, options) = (key.clone(), options.clone());
            async move {
                let mut kv = client.kv_client().max_decoding_message_size(LARGEST_MESSAGE_BYTES);
                kv.get(key, Some(options)).await
            }
        });
        let mut response = answer.await?.value;
        let (revision, cluster) =
            response.header().map(|header| (header.revision(), header.cluster_id())).unwrap_or_default();
        let more_after = response.kvs().last().filter(|_| response.more()).map(|last| last.key().to_vec());
        let kvs = response.take_kvs().into_iter().filter_map(key_value).collect();
        Ok(Listing { kvs, revision, cluster, more_after })
    }

    /// The youngest key under `prefix` that is older than `create_revision`.
    pub(crate) async fn predecessor(&self, prefix: &str, create_revision: i64) -> Result<Option<KeyValue>> {
        let options = GetOptions::new()
            .with_prefix()
            .with_max_create_revision(create_revision - 1)
            .with_sort(SortTarget::Create, SortOrder::Descend)
            .with_limit(1);
        Ok(self.range(prefix, options).await.map_err(unexpected)?.kvs.pop())
    }

    /// A new lease: its id, and the time to live that etcd gave it, which may be longer than what was asked for.
    pub(crate) async fn grant(&self, ttl: Duration) -> Result<(i64, Duration)> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
        let answer = self
            .pool
            .call("a lease", |client| async move { client.lease_client().grant(seconds, None).await });
        let response = answer.await.map_err(unexpected)?.value;
        Ok((response.id(), Duration::from_secs(response.ttl().try_into().unwrap_or_default())))
    }

    /// Lets the lease live on for its time from now; `false` when it does not exist any more.
    pub(crate) async fn keep_alive(&self, lease: i64) -> Result<bool> {
        // A stream for each beat: it costs one round trip, and the call's failover serves it too.
        let answer = self.pool.call("a keep-alive", |client| async move {
            client.lease_client().keep_alive(lease).await.map(|_| ())
        });
        match answer.await {
            Ok(_) => Ok(true),
            Err(Fault::LeaseGone) => Ok(false),
            Err(fault) => Err(unexpected(fault)),
        }
    }

    /// Ends the lease; every key bound to it vanishes.
    pub(crate) async fn revoke(&self, lease: i64) -> Result<()> {
        let answer = self.pool.call("the end of a lease", |client| async move {
            client.lease_client().revoke(lease).await.map(|_| ())
        });
        match answer.await {
            Ok(_) | Err(Fault::LeaseGone) => Ok(()),
            Err(fault) => Err(unexpected(fault)),
        }
    }
}

/// The faults that a call cannot meet because it names no revision or lease, said as what they would be.
fn unexpected(fault: Fault) -> Error {
    let cause = match fault {
        Fault::Error(error) => return error,
        Fault::Compacted => "the revision has been compacted".to_owned(),
        Fault::LeaseGone => "the lease does not exist".to_owned(),
    };
    Error::Invalid { endpoint: "the cluster".to_owned(), what: "the request", cause }
}

fn transaction(compares: &[Compare], writes: &[Write]) -> Txn {
    let conditions: Vec<_> = compares
        .iter()
        .map(|compare| match compare {
            Compare::ModRevision(key, revision) => {
                etcd_client::Compare::mod_revision(key.as_str(), CompareOp::Equal, *revision)
            }
            Compare::CreateRevision(key, revision) => {
                etcd_client::Compare::create_revision(key.as_str(), CompareOp::Equal, *revision)
            }
            Compare::Value(key, value) => {
                etcd_client::Compare::value(key.as_str(), CompareOp::Equal, value.clone())
            }
        })
        .collect();
    let operations: Vec<_> = writes
        .iter()
        .map(|write| match write {
            Write::Put { key, value, lease } => {
                let options = lease.map(|lease| etcd_client::PutOptions::new().with_lease(lease));
                TxnOp::put(key.as_str(), value.clone(), options)
            }
            Write::Delete { key } => TxnOp::delete(key.as_str(), None),
        })
        .collect();
    let mut named: Vec<_> = compares.iter().map(Compare::key).collect();
    named.sort_unstable();
    named.dedup();
    let looks: Vec<_> = named.into_iter().map(|key| TxnOp::get(key, None)).collect();
    Txn::new().when(conditions).and_then(operations).or_else(looks)
}

/// The first key after all keys with this prefix. The prefix is text, so its last byte is below 0xff.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        Some(last) => *last = last.saturating_add(1),
        // The end of all keys, as etcd writes it.
        None => end.push(0),
    }
    end
}

/// Keys that are not text are none of Tenon's.
pub(crate) fn key_value(kv: etcd_client::KeyValue) -> Option<KeyValue> {
    let (create_revision, mod_revision, lease) = (kv.create_revision(), kv.mod_revision(), kv.lease());
    let (key, value) = kv.into_key_value();
    Some(KeyValue { key: String::from_utf8(key).ok()?, value, create_revision, mod_revision, lease })
}
