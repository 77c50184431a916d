//! One row as the server sent it, with getters that know what they expect.

use super::value::shortened;
use super::{Atom, ColumnError, Columns, Uuid, Value};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A row, or those of its columns that were selected or monitored.
///
/// Rows of a [`View`](super::View) have their UUID in the column `_uuid` like those of a select.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    table: Arc<str>,
    columns: Columns,
}

impl Row {
    /// A row from a row object (RFC 7047 section 5.1, `<row>`); the error says what is wrong with it.
    pub(super) fn decode(table: &Arc<str>, json: Json) -> Result<Self, String> {
        let Json::Object(members) = json else {
            return Err(super::value::unexpected("a row", &json));
        };
        let mut columns = Columns::new();
        for (column, value) in members {
            let value =
                Value::decode(value).map_err(|error| format!("column {column} of table {table}: {error}"))?;
            columns.0.insert(column, value);
        }
        Ok(Self { table: table.clone(), columns })
    }

    pub(super) fn insert(&mut self, column: &str, value: Value) {
        self.columns.0.insert(column.to_owned(), value);
    }

    /// The name of the row's table.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// All columns that the row has here.
    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    /// The value of a column.
    pub fn value(&self, column: &str) -> Result<&Value, ColumnError> {
        let missing = || ColumnError::Missing { table: self.table.to_string(), column: column.to_owned() };
        self.columns.0.get(column).ok_or_else(missing)
    }

    /// The string in a column that always holds one.
    pub fn string(&self, column: &str) -> Result<&str, ColumnError> {
        self.exactly_one(column, "a string", string)
    }

    /// The string in a column that may be empty.
    pub fn optional_string(&self, column: &str) -> Result<Option<&str>, ColumnError> {
        self.at_most_one(column, "at most one string", string)
    }

    /// The integer in a column that always holds one.
    pub fn integer(&self, column: &str) -> Result<i64, ColumnError> {
        self.exactly_one(column, "an integer", integer)
    }

    /// The integer in a column that may be empty.
    pub fn optional_integer(&self, column: &str) -> Result<Option<i64>, ColumnError> {
        self.at_most_one(column, "at most one integer", integer)
    }

    /// The number in a column of reals that always holds one. A server writes whole ones as integers.
    pub fn real(&self, column: &str) -> Result<f64, ColumnError> {
        self.exactly_one(column, "a number", |atom| match atom {
            Atom::Real(real) => Some(*real),
            Atom::Integer(integer) => Some(*integer as f64),
            _ => None,
        })
    }

    /// The boolean in a column that always holds one.
    pub fn boolean(&self, column: &str) -> Result<bool, ColumnError> {
        self.exactly_one(column, "a boolean", boolean)
    }

    /// The boolean in a column that may be empty.
    pub fn optional_boolean(&self, column: &str) -> Result<Option<bool>, ColumnError> {
        self.at_most_one(column, "at most one boolean", boolean)
    }

    /// The UUID in a column that always holds one; `_uuid` is the row's own.
    pub fn uuid(&self, column: &str) -> Result<Uuid, ColumnError> {
        self.exactly_one(column, "a UUID", uuid)
    }

    /// The UUID in a column that may be empty.
    pub fn optional_uuid(&self, column: &str) -> Result<Option<Uuid>, ColumnError> {
        self.at_most_one(column, "at most one UUID", uuid)
    }

    /// The UUIDs in a column.
    pub fn uuid_set(&self, column: &str) -> Result<BTreeSet<Uuid>, ColumnError> {
        self.all(column, "a set of UUIDs", uuid)
    }

    /// The strings in a column.
    pub fn string_set(&self, column: &str) -> Result<BTreeSet<&str>, ColumnError> {
        self.all(column, "a set of strings", string)
    }

    /// The integers in a column.
    pub fn integer_set(&self, column: &str) -> Result<BTreeSet<i64>, ColumnError> {
        self.all(column, "a set of integers", integer)
    }

    /// The map from strings to strings in a column such as `external_ids`.
    pub fn map(&self, column: &str) -> Result<BTreeMap<String, String>, ColumnError> {
        let expected = "a map from strings to strings";
        self.pairs(column, expected)?
            .iter()
            .map(|(key, value)| Some((string(key)?.to_owned(), string(value)?.to_owned())))
            .collect::<Option<_>>()
            .ok_or_else(|| self.mismatch(column, expected))
    }

    /// The string under `key` of the map from strings to strings in a column, without copying the map.
    pub fn map_entry(&self, column: &str, key: &str) -> Result<Option<&str>, ColumnError> {
        let expected = "a map from strings to strings";
        match self.pairs(column, expected)?.get(&Atom::from(key)) {
            Some(value) => string(value).map(Some).ok_or_else(|| self.mismatch(column, expected)),
            None => Ok(None),
        }
    }

    fn pairs(&self, column: &str, expected: &'static str) -> Result<&BTreeMap<Atom, Atom>, ColumnError> {
        match self.value(column)? {
            Value::Map(pairs) => Ok(pairs),
            _ => Err(self.mismatch(column, expected)),
        }
    }

    fn exactly_one<'a, T>(
        &'a self,
        column: &str,
        expected: &'static str,
        read: impl Fn(&'a Atom) -> Option<T>,
    ) -> Result<T, ColumnError> {
        self.at_most_one(column, expected, read)?.ok_or_else(|| self.mismatch(column, expected))
    }

    fn at_most_one<'a, T>(
        &'a self,
        column: &str,
        expected: &'static str,
        read: impl Fn(&'a Atom) -> Option<T>,
    ) -> Result<Option<T>, ColumnError> {
        let atom = match self.value(column)? {
            Value::Atom(atom) => Some(atom),
            Value::Set(atoms) if atoms.len() <= 1 => atoms.first(),
            _ => return Err(self.mismatch(column, expected)),
        };
        atom.map(|atom| read(atom).ok_or_else(|| self.mismatch(column, expected))).transpose()
    }

    fn all<'a, T: Ord>(
        &'a self,
        column: &str,
        expected: &'static str,
        read: impl Fn(&'a Atom) -> Option<T>,
    ) -> Result<BTreeSet<T>, ColumnError> {
        match self.value(column)? {
            Value::Atom(atom) => read(atom).map(|value| BTreeSet::from([value])),
            Value::Set(atoms) => atoms.iter().map(read).collect(),
            Value::Map(_) => None,
        }
        .ok_or_else(|| self.mismatch(column, expected))
    }

    fn mismatch(&self, column: &str, expected: &'static str) -> ColumnError {
        let found = self.columns.0.get(column).map(Value::to_string).unwrap_or_default();
        ColumnError::Mismatch {
            table: self.table.to_string(),
            column: column.to_owned(),
            expected,
            found: shortened(&found),
        }
    }
}

fn string(atom: &Atom) -> Option<&str> {
    match atom {
        Atom::String(string) => Some(string),
        _ => None,
    }
}

fn integer(atom: &Atom) -> Option<i64> {
    match atom {
        Atom::Integer(integer) => Some(*integer),
        _ => None,
    }
}

fn boolean(atom: &Atom) -> Option<bool> {
    match atom {
        Atom::Boolean(boolean) => Some(*boolean),
        _ => None,
    }
}

fn uuid(atom: &Atom) -> Option<Uuid> {
    match atom {
        Atom::Uuid(uuid) => Some(*uuid),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const UUID: &str = "36bef046-7da7-43a5-905a-c17899216fcb";

    fn row() -> Row {
        let columns = json!({
            "name": "veth0", "ofport": 5, "mtu": ["set", []], "trunks": ["set", [1, 2]], "up": true,
            "ratio": 3, "ports": ["uuid", UUID], "external_ids": ["map", [["a", "b"], ["c", "d"]]],
            "statistics": ["map", [["rx_bytes", 1]]], "lists": ["set", ["x", "y"]],
        });
        Row::decode(&Arc::from("Interface"), columns).unwrap()
    }

    #[test]
    fn getters_read_what_is_there() {
        let row = row();
        let uuid: Uuid = UUID.parse().unwrap();
        assert_eq!(row.table(), "Interface");
        assert_eq!(row.string("name").unwrap(), "veth0");
        assert_eq!(row.optional_string("mtu").unwrap(), None);
        assert_eq!(row.integer("ofport").unwrap(), 5);
        assert_eq!(row.optional_integer("ofport").unwrap(), Some(5));
        assert_eq!(row.optional_integer("mtu").unwrap(), None);
        assert_eq!(row.real("ratio").unwrap(), 3.0);
        assert!(row.boolean("up").unwrap());
        assert_eq!(row.optional_boolean("mtu").unwrap(), None);
        assert_eq!(row.uuid("ports").unwrap(), uuid);
        assert_eq!(row.optional_uuid("mtu").unwrap(), None);
        assert_eq!(row.uuid_set("ports").unwrap(), BTreeSet::from([uuid]));
        assert_eq!(row.uuid_set("mtu").unwrap(), BTreeSet::new());
        assert_eq!(row.integer_set("trunks").unwrap(), BTreeSet::from([1, 2]));
        assert_eq!(row.string_set("lists").unwrap(), BTreeSet::from(["x", "y"]));
        assert_eq!(row.map("external_ids").unwrap().get("c").unwrap(), "d");
        assert_eq!(row.map_entry("external_ids", "a").unwrap(), Some("b"));
        assert_eq!(row.map_entry("external_ids", "x").unwrap(), None);
    }

    #[test]
    fn errors_name_table_column_and_what_was_found() {
        let row = row();
        let message = row.integer("name").unwrap_err().to_string();
        assert_eq!(message, r#"column name of table Interface holds "veth0" where an integer was expected"#);
        let message = row.string("mac").unwrap_err().to_string();
        assert!(message.contains("column mac of table Interface"), "{message}");
        for error in [
            row.string("mtu").err(),
            row.integer("trunks").err(),
            row.uuid_set("external_ids").err(),
            row.integer_set("lists").err(),
            row.map("statistics").err(),
            row.map_entry("statistics", "rx_bytes").err(),
            row.map("name").err(),
        ] {
            assert!(matches!(error, Some(ColumnError::Mismatch { .. })), "{error:?}");
        }
    }

    #[test]
    fn a_bad_row_names_its_column() {
        let table = Arc::from("Port");
        assert!(Row::decode(&table, json!([])).is_err());
        let message = Row::decode(&table, json!({ "tag": null })).unwrap_err();
        assert!(message.contains("column tag of table Port"), "{message}");
    }
}
