//! A tenant's record, as people edit it.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{FieldError, Fields, Vni, VniError, bounded_error, shorten};

/// A tenant's record under `netnamespaces/`:
/// `{"NetName":"helloworld1","NetID":300924,"Action":"","Namespace":""}`, with `"Error"` when the last edit was
/// refused. Fields that are not known are carried along.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The tenant, which is also the last part of the record's key.
    pub net_name: String,
    /// The VNI that the record claims to have. `None` asks for one. Always `None` when there is an action: what a
    /// record with an action says under NetID does not count.
    pub net_id: Option<Vni>,
    /// What the admin wants done.
    pub action: Option<Action>,
    /// Why the last edit was refused.
    pub error: Option<String>,
    extra: Map<String, Value>,
}

/// What an admin can ask for, in `Action` (and `Namespace`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `join`: take the NetID of the tenant that `Namespace` names.
    Join(String),
    /// `isolate`: a NetID of its own again.
    Isolate,
    /// `global`: NetID 0.
    Global,
}

/// Why a text is no tenant record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not JSON, not an object, or a field of a wrong type.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The name inside and the key differ.
    #[error("NetName is {found:?}, but the record's key says {key:?}")]
    NetName {
        /// The last part of the key.
        key: String,
        /// What the record says, shortened.
        found: String,
    },
    /// A NetID that no tenant can have.
    #[error(transparent)]
    NetId(#[from] VniError),
    /// An action that does not exist.
    #[error("Action {0:?} is not known: use \"join\", \"isolate\" or \"global\"")]
    UnknownAction(String),
    /// A join to nobody.
    #[error("Action \"join\" needs the tenant to join in Namespace, which is empty")]
    JoinWithoutNamespace,
}

impl Record {
    /// A record that asks for a NetID, as the controller makes it for a new namespace.
    pub fn new(net_name: &str) -> Record {
        Record { net_name: net_name.to_owned(), net_id: None, action: None, error: None, extra: Map::new() }
    }

    /// Reads the text found under the key of the tenant `key`.
    ///
    /// What may be left out: NetName (or empty: the key says it), NetID (asks for one), Action, Namespace and Error.
    /// Namespace counts only with `join`; elsewhere it is a leftover and not taken over.
    ///
    /// # Errors
    /// See [`RecordError`]; every variant names the field and what it holds.
    pub fn parse(key: &str, text: &[u8]) -> Result<Record, RecordError> {
        Record::from_fields(key, Fields::parse(text)?)
    }

    pub(crate) fn from_fields(key: &str, mut fields: Fields) -> Result<Record, RecordError> {
        let net_name = fields.take_text("NetName")?.filter(|name| !name.is_empty());
        if let Some(found) = net_name.filter(|name| name != key) {
            return Err(RecordError::NetName { key: shorten(key), found: shorten(&found) });
        }
        let action = fields.take_text("Action")?.unwrap_or_default();
        let namespace = fields.take_text("Namespace")?.unwrap_or_default();
        let action = match action.as_str() {
            "" => None,
            "join" if namespace.is_empty() => return Err(RecordError::JoinWithoutNamespace),
            "join" => Some(Action::Join(namespace)),
            "isolate" => Some(Action::Isolate),
            "global" => Some(Action::Global),
            unknown => return Err(RecordError::UnknownAction(shorten(unknown))),
        };
        let net_id = if action.is_some() {
            fields.take("NetID");
            None
        } else {
            fields.take_integer("NetID", 0, Vni::LAST.get())?.map(Vni::new).transpose()?
        };
        let error = fields.take_error()?;
        Ok(Record { net_name: key.to_owned(), net_id, action, error, extra: fields.rest()? })
    }

    /// The record to leave behind when `text` was refused and there is nothing good to go back to: no NetID, no
    /// action, the reason, and whatever unknown fields can be saved.
    pub(crate) fn refused(key: &str, text: &[u8], reason: String) -> Record {
        let extra = Fields::parse(text).and_then(|mut fields| {
            for known in ["NetName", "NetID", "Action", "Namespace", "Error"] {
                fields.take(known);
            }
            fields.rest()
        });
        Record { error: Some(bounded_error(reason)), extra: extra.unwrap_or_default(), ..Record::new(key) }
    }

    /// The same record with another NetID, nothing to do, and `error`.
    pub(crate) fn with(&self, net_id: Vni, error: Option<String>) -> Record {
        Record { net_id: Some(net_id), action: None, error: error.map(bounded_error), ..self.clone() }
    }

    /// The fields that Tenon carries along without knowing them.
    pub fn extra(&self) -> &Map<String, Value> {
        &self.extra
    }

    /// The record as it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings, numbers and maps with string keys always serialise")
    }

    /// Whether `text` already says what this record says, spelled with all its fields.
    pub(crate) fn is_stored_as(&self, text: &[u8]) -> bool {
        let wanted = serde_json::to_value(self).ok();
        wanted.is_some() && wanted == serde_json::from_slice(text).ok()
    }
}

impl Action {
    /// The text in the field `Action`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Action::Join(_) => "join",
            Action::Isolate => "isolate",
            Action::Global => "global",
        }
    }
}

impl Serialize for Record {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Stored<'a> {
            net_name: &'a str,
            #[serde(rename = "NetID", skip_serializing_if = "Option::is_none")]
            net_id: Option<Vni>,
            action: &'a str,
            namespace: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            error: Option<&'a str>,
            #[serde(flatten)]
            extra: &'a Map<String, Value>,
        }
        Stored {
            net_name: &self.net_name,
            net_id: self.net_id,
            action: self.action.as_ref().map_or("", Action::as_str),
            namespace: match &self.action {
                Some(Action::Join(namespace)) => namespace,
                _ => "",
            },
            error: self.error.as_deref(),
            extra: &self.extra,
        }
        .serialize(serializer)
    }
}
