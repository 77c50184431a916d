//! A JSON object as a person wrote it, read field by field, so that an error can name the field and its value.

use serde_json::{Map, Value};

/// How many bytes the unknown fields of a record may take as compact JSON. The store refuses requests of 1.5 MiB, and
/// a record must fit into one twice: as itself and in its settled copy.
pub const MAX_EXTRA_BYTES: usize = 256 * 1024;

/// How deep the unknown fields of a record may nest. The JSON parser stops at 128 levels, and the settled copy adds
/// one around the record: what was once read must stay readable there.
pub const MAX_EXTRA_DEPTH: usize = 64;

/// How many characters of a wrong value an error repeats.
const SHOWN_CHARS: usize = 80;

/// How many characters of the field Error are kept: our own messages fit, and no edit makes a record grow without bound.
const ERROR_CHARS: usize = 1000;

/// A JSON object whose known fields are taken out one by one; what is left are fields that Tenon carries unread.
///
/// A field that is absent and one that is `null` are the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Fields(Map<String, Value>);

/// Why a text is no record, or a field of it not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The text does not parse.
    #[error("the record is not JSON: {0}")]
    NotJson(String),
    /// The text is JSON but no object.
    #[error("the record is {0}, not a JSON object")]
    NotObject(String),
    /// A field holds something other than a string.
    #[error("{field} is {value}, not a string")]
    NotText {
        /// The field's name.
        field: &'static str,
        /// Its value as JSON, shortened.
        value: String,
    },
    /// A field holds something other than `true` or `false`.
    #[error("{field} is {value}, not true or false")]
    NotBool {
        /// The field's name.
        field: &'static str,
        /// Its value as JSON, shortened.
        value: String,
    },
    /// A field holds no integer, or one out of its range.
    #[error("{field} is {value}, not an integer from {min} to {max}")]
    NotInteger {
        /// The field's name.
        field: &'static str,
        /// Its value as JSON, shortened.
        value: String,
        /// The least that is allowed.
        min: u32,
        /// The most that is allowed.
        max: u32,
    },
    /// The unknown fields together are longer than [`MAX_EXTRA_BYTES`].
    #[error("the record's unknown fields take {0} bytes, more than {MAX_EXTRA_BYTES}")]
    TooLong(usize),
    /// The unknown fields nest deeper than [`MAX_EXTRA_DEPTH`].
    #[error("the record's unknown fields nest deeper than {MAX_EXTRA_DEPTH} levels")]
    TooDeep,
}

/// Cuts a text that goes into a message, so that a message stays short whatever a person wrote.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Cuts a text that goes into the field Error. Cutting it again changes nothing.
pub fn bounded_error(mut error: String) -> String {
    if let Some((end, _)) = error.char_indices().nth(ERROR_CHARS) {
        error.truncate(end);
    }
    error
}

impl Fields {
    /// Reads a JSON object. Of a field that is there twice the last counts, as in most JSON readers.
    ///
    /// # Errors
    /// The text is not JSON, or not an object.
    pub fn parse(text: &[u8]) -> Result<Fields, FieldError> {
        match serde_json::from_slice(text) {
            Ok(Value::Object(fields)) => Ok(Fields(fields)),
            Ok(other) => Err(FieldError::NotObject(shown(&other))),
            Err(error) => Err(FieldError::NotJson(error.to_string())),
        }
    }

    /// Takes out a field that holds a string.
    ///
    /// # Errors
    /// It holds something else.
    pub fn take_text(&mut self, field: &'static str) -> Result<Option<String>, FieldError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(FieldError::NotText { field, value: shown(&other) }),
        }
    }

    /// Takes out a field that holds `true` or `false`.
    ///
    /// # Errors
    /// It holds something else.
    pub fn take_bool(&mut self, field: &'static str) -> Result<Option<bool>, FieldError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(FieldError::NotBool { field, value: shown(&other) }),
        }
    }

    /// Takes out a field that holds an integer from `min` to `max`.
    ///
    /// # Errors
    /// It holds something else (`1.0` and `"1"` are no integers).
    pub fn take_integer(
        &mut self,
        field: &'static str,
        min: u32,
        max: u32,
    ) -> Result<Option<u32>, FieldError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => Err(FieldError::NotInteger { field, value: shown(&value), min, max }),
        }
    }

    /// Takes out the field Error, cut as [`bounded_error`] does; an empty one counts as absent.
    ///
    /// # Errors
    /// It holds something other than a string.
    pub fn take_error(&mut self) -> Result<Option<String>, FieldError> {
        Ok(self.take_text("Error")?.filter(|error| !error.is_empty()).map(bounded_error))
    }

    /// Takes out a field whatever it holds; `null` counts as absent.
    pub fn take(&mut self, field: &str) -> Option<Value> {
        self.0.remove(field).filter(|value| !value.is_null())
    }

    /// What has not been taken out: the fields to carry unread.
    ///
    /// # Errors
    /// They are too long or nest too deep to be carried.
    pub fn rest(self) -> Result<Map<String, Value>, FieldError> {
        if self.0.values().any(|value| depth(value) > MAX_EXTRA_DEPTH) {
            return Err(FieldError::TooDeep);
        }
        let length = self.0.iter().map(|(name, value)| name.len() + value.to_string().len()).sum();
        if length > MAX_EXTRA_BYTES { Err(FieldError::TooLong(length)) } else { Ok(self.0) }
    }
}

fn shown(value: &Value) -> String {
    shorten(&value.to_string())
}

/// How many arrays and objects lie around the innermost value. The parser has bounded it.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
