//! What the controller has granted to a tenant.

use serde::{Deserialize, Serialize};

use crate::{Fields, Record, RecordError, Vni};

/// The controller's own copy of a tenant, kept in the store beside the record: `{"NetID":300924,"Record":{…}}`.
///
/// Nodes apply this and never the record, which people edit. The controller, and its successor, put the record in it
/// back when an edit is refused.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Settled {
    #[serde(rename = "NetID")]
    net_id: Vni,
    record: Record,
}

/// Why a text is no settled copy.
#[derive(Debug, thiserror::Error)]
pub enum SettledError {
    /// Not of the form `{"NetID":…,"Record":{…}}`.
    #[error("the settled copy of tenant {tenant:?} is damaged: {source}")]
    Damaged {
        /// Whose.
        tenant: String,
        /// What the JSON reader says.
        source: serde_json::Error,
    },
    /// The record in it is not one.
    #[error("the record in the settled copy of tenant {tenant:?} is damaged: {source}")]
    Record {
        /// Whose.
        tenant: String,
        /// What is wrong with it.
        source: RecordError,
    },
}

impl Settled {
    /// A grant of `net_id`, with the record's unknown fields.
    pub(crate) fn new(net_id: Vni, record: &Record) -> Settled {
        Settled { net_id, record: record.with(net_id, None) }
    }

    /// Reads the text found under the settled key of the tenant.
    ///
    /// # Errors
    /// The text was not written by [`Settled::to_json`].
    pub fn parse(tenant: &str, text: &[u8]) -> Result<Settled, SettledError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Stored<'a> {
            #[serde(rename = "NetID")]
            net_id: Vni,
            #[serde(borrow)]
            record: &'a serde_json::value::RawValue,
        }
        let stored: Stored<'_> = serde_json::from_slice(text)
            .map_err(|source| SettledError::Damaged { tenant: tenant.to_owned(), source })?;
        let record = Fields::parse(stored.record.get().as_bytes())
            .map_err(RecordError::from)
            .and_then(|fields| Record::from_fields(tenant, fields))
            .map_err(|source| SettledError::Record { tenant: tenant.to_owned(), source })?;
        Ok(Settled::new(stored.net_id, &record))
    }

    /// The tenant's VNI.
    pub fn net_id(&self) -> Vni {
        self.net_id
    }

    /// The last good record: it has this NetID, no action and no error.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The copy as it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings, numbers and maps with string keys always serialise")
    }
}
