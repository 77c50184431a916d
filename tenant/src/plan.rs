//! What the controller does about an edit of a tenant's record.

use crate::{Action, Record, RecordError, Settled, Snapshot, Vni, shorten};

/// What happened to a tenant's record in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit<'a> {
    /// This text was put there.
    Put(&'a [u8]),
    /// The record was deleted.
    Deleted,
}

/// What to write, in one transaction that holds only if the record is still the one that was read.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// Nothing.
    Nothing,
    /// The tenant's grant is new, or its last good record is.
    Settle {
        /// The text to store as the record; `None` when what is there is right.
        record: Option<Vec<u8>>,
        /// The settled copy to store. Its NetID is often the one that the tenant had.
        settled: Settled,
        /// The VNI given out last, to be stored too, when this plan gives one out.
        cursor: Option<Vni>,
    },
    /// The edit is refused: nothing that was granted changes.
    PutBack {
        /// The text to store as the record: the last good one with Error, or an inert one for a tenant without.
        record: Vec<u8>,
        /// Why.
        refusal: Refusal,
    },
    /// The tenant is gone: remove its settled copy.
    Forget,
}

/// Why an edit is refused. The text goes into the record's Error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The text is no record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// NetID was edited without an action.
    #[error(
        "NetID was changed by hand from {settled} to {found}: set Action to \"join\", \"isolate\" or \"global\" instead"
    )]
    NetIdChanged {
        /// The tenant's.
        settled: Vni,
        /// What the record says.
        found: Vni,
    },
    /// A join of a tenant to itself.
    #[error("{0:?} cannot join itself")]
    JoinSelf(String),
    /// A join to a tenant that is not there, or has no NetID yet.
    #[error("cannot join {0:?}: there is no such tenant with a NetID")]
    NoSuchTenant(String),
    /// All 16,777,206 VNIs are in use.
    #[error("every NetID from {first} to {last} is in use: delete tenants or join some", first = Vni::FIRST, last = Vni::LAST)]
    Exhausted,
}

/// Decides what an edit of the record of `tenant` means.
///
/// The plan for a record that an earlier plan wrote is [`Plan::Nothing`], so that a controller that watches its own
/// writes comes to rest. A record of a tenant without a grant that has an Error, no NetID and no action is inert:
/// somebody has to put a better one.
pub fn plan(snapshot: &Snapshot, tenant: &str, edit: Edit<'_>) -> Plan {
    let settled = snapshot.settled(tenant);
    match (edit, settled) {
        (Edit::Deleted, None) => Plan::Nothing,
        (Edit::Deleted, Some(_)) => Plan::Forget,
        (Edit::Put(text), _) => {
            judge(snapshot, tenant, text).unwrap_or_else(|refusal| put_back(settled, tenant, text, refusal))
        }
    }
}

fn judge(snapshot: &Snapshot, tenant: &str, text: &[u8]) -> Result<Plan, Refusal> {
    let record = Record::parse(tenant, text)?;
    let settled = snapshot.settled(tenant);
    let grant = match (&record.action, settled, record.net_id) {
        (Some(Action::Global), _, _) => Grant::Known(Vni::GLOBAL),
        (Some(Action::Join(other)), _, _) => Grant::Known(vni_to_join(snapshot, tenant, other)?),
        (Some(Action::Isolate), Some(settled), _) if has_own_vni(snapshot, settled) => {
            Grant::Known(settled.net_id())
        }
        (Some(Action::Isolate), _, _) => Grant::next(snapshot)?,
        (None, Some(settled), None) => Grant::Known(settled.net_id()),
        (None, Some(settled), Some(found)) if found == settled.net_id() => Grant::Known(found),
        (None, Some(settled), Some(found)) => {
            return Err(Refusal::NetIdChanged { settled: settled.net_id(), found });
        }
        (None, None, Some(imported)) => Grant::Known(imported),
        (None, None, None) if record.error.is_some() => return Ok(Plan::Nothing),
        (None, None, None) => Grant::next(snapshot)?,
    };
    // Error tells about the last edit that was refused, until an action (or a first grant) has gone well.
    let error = record.error.clone().filter(|_| record.action.is_none() && settled.is_some());

    let copy = Settled::new(grant.vni(), &record);
    let wanted = record.with(grant.vni(), error);
    let stored = wanted.is_stored_as(text);
    if stored && settled == Some(&copy) {
        return Ok(Plan::Nothing);
    }
    Ok(Plan::Settle { record: (!stored).then(|| wanted.to_json()), settled: copy, cursor: grant.cursor() })
}

/// Where a tenant's VNI comes from.
enum Grant {
    /// It was given out before, is global, or came with an import.
    Known(Vni),
    /// It is given out now.
    New(Vni),
}

impl Grant {
    fn next(snapshot: &Snapshot) -> Result<Grant, Refusal> {
        snapshot.next_free().map(Grant::New).ok_or(Refusal::Exhausted)
    }

    fn vni(&self) -> Vni {
        match self {
            Grant::Known(vni) | Grant::New(vni) => *vni,
        }
    }

    fn cursor(&self) -> Option<Vni> {
        match self {
            Grant::Known(_) => None,
            Grant::New(vni) => Some(*vni),
        }
    }
}

fn vni_to_join(snapshot: &Snapshot, tenant: &str, other: &str) -> Result<Vni, Refusal> {
    if other == tenant {
        return Err(Refusal::JoinSelf(shorten(tenant)));
    }
    snapshot.settled(other).map(Settled::net_id).ok_or_else(|| Refusal::NoSuchTenant(shorten(other)))
}

fn has_own_vni(snapshot: &Snapshot, settled: &Settled) -> bool {
    !settled.net_id().is_global() && snapshot.tenants_with(settled.net_id()) == 1
}

fn put_back(settled: Option<&Settled>, tenant: &str, text: &[u8], refusal: Refusal) -> Plan {
    let record = match settled {
        Some(settled) => settled.record().with(settled.net_id(), Some(refusal.to_string())),
        None => {
            Record::refused(tenant, text, format!("{refusal}; to try again, put the record without Error"))
        }
    };
    if record.is_stored_as(text) {
        Plan::Nothing
    } else {
        Plan::PutBack { record: record.to_json(), refusal }
    }
}
