//! The vocabulary of reads and transactions: key-values, conditions, writes, and what became of them.

/// A key with its value and its place in etcd's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The whole key.
    pub key: String,
    /// The value, as it was written.
    pub value: Vec<u8>,
    /// The revision at which the key came into being; it changes when the key is deleted and made again.
    pub create_revision: i64,
    /// The revision of the last write to the key: what a compare-and-swap compares.
    pub mod_revision: i64,
    /// The etcd lease that the key lives by; 0 for none.
    pub lease: i64,
}

/// A condition of a transaction. All must hold, or nothing is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key was last written at this revision; 0: the key does not exist.
    ModRevision(String, i64),
    /// The key has existed since this revision, whatever was written to it meanwhile; 0: it does not exist.
    CreateRevision(String, i64),
    /// The key exists and has this value.
    Value(String, Vec<u8>),
}

impl Compare {
    /// The condition that `key` does not exist.
    pub fn absent(key: impl Into<String>) -> Self {
        Self::ModRevision(key.into(), 0)
    }

    /// The condition that nobody has written to the key since `kv` was read.
    pub fn unchanged(kv: &KeyValue) -> Self {
        Self::ModRevision(kv.key.clone(), kv.mod_revision)
    }

    /// The key that the condition is about.
    pub fn key(&self) -> &str {
        match self {
            Self::ModRevision(key, _) | Self::CreateRevision(key, _) | Self::Value(key, _) => key,
        }
    }
}

/// One write of a transaction. A transaction may write a key only once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Writes the key. Without a lease, a lease that the key had is taken off it.
    Put {
        /// The whole key.
        key: String,
        /// The new value.
        value: Vec<u8>,
        /// The etcd lease that the key shall live by.
        lease: Option<i64>,
    },
    /// Deletes the key; nothing happens when it does not exist.
    Delete {
        /// The whole key.
        key: String,
    },
}

impl Write {
    /// Writes `value` to `key`, bound to no lease.
    pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: None }
    }

    /// Writes `value` to `key`, to vanish with `lease`.
    pub fn put_leased(key: impl Into<String>, value: impl Into<Vec<u8>>, lease: i64) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: Some(lease) }
    }

    /// Deletes `key`.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Every condition held and every write was applied, at `revision`.
    Applied {
        /// The revision of the writes (of the store, when there was nothing to write).
        revision: i64,
    },
    /// A condition did not hold, so this try wrote nothing.
    Conflict {
        /// The store's revision when the conditions were looked at.
        revision: i64,
        /// The keys that the conditions named, as they were then; a key that did not exist is missing. There is
        /// no need to read again before the next try.
        current: Vec<KeyValue>,
        /// An earlier try of this same call ended without an answer. It may have been applied, and the conflict be
        /// with ourselves: see in `current` whether it holds what was to be written.
        unsure: bool,
    },
}

impl TxnOutcome {
    /// Whether the writes were applied.
    pub fn applied(&self) -> bool {
        matches!(self, Self::Applied { .. })
    }

    /// The store's revision: of the writes, or when the conditions were looked at.
    pub fn revision(&self) -> i64 {
        match self {
            Self::Applied { revision } | Self::Conflict { revision, .. } => *revision,
        }
    }
}
