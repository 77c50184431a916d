//! What a client replicates: the tables and columns of a `monitor` request (RFC 7047 section 4.1.5).

use serde::ser::{Serialize, SerializeMap, Serializer};
use std::collections::{BTreeMap, BTreeSet};

/// Tables and those of their columns that a client keeps a replica of.
///
/// A modified row comes with all its monitored columns, so a column that changes often and is not needed
/// (`statistics`) is better left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Monitor {
    tables: BTreeMap<String, BTreeSet<String>>,
}

impl Monitor {
    /// Nothing yet: for a client that only makes transactions.
    pub fn new() -> Self {
        Self::default()
    }

    /// With these columns of `table`, in addition to others of it that were named before.
    #[must_use]
    pub fn table<C: Into<String>>(
        mut self,
        table: impl Into<String>,
        columns: impl IntoIterator<Item = C>,
    ) -> Self {
        self.tables.entry(table.into()).or_default().extend(columns.into_iter().map(Into::into));
        self
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = &str> {
        self.tables.keys().map(String::as_str)
    }
}

/// The `<monitor-requests>` of the request.
impl Serialize for Monitor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Request<'a> {
            columns: &'a BTreeSet<String>,
        }
        let mut requests = serializer.serialize_map(Some(self.tables.len()))?;
        for (table, columns) in &self.tables {
            requests.serialize_entry(table, &Request { columns })?;
        }
        requests.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_are_those_of_the_rfc() {
        let monitor =
            Monitor::new().table("Port", ["name", "tag"]).table("Bridge", ["name"]).table("Port", ["tag"]);
        assert_eq!(
            serde_json::to_value(&monitor).unwrap(),
            json!({ "Port": { "columns": ["name", "tag"] }, "Bridge": { "columns": ["name"] } })
        );
    }
}
