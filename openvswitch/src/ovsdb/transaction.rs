//! Transactions: operations that the server carries out together or not at all (RFC 7047 sections 4.1.3, 5.2).

use super::{Atom, Columns, Uuid, Value};
use serde::ser::{Serialize, SerializeSeq, Serializer};
use std::time::Duration;

/// The operations of one `transact` request.
///
/// Every method that adds an operation returns its place among the results of
/// [`Client::transact`](super::Client::transact).
#[derive(Clone, Debug)]
pub struct Transaction {
    database: String,
    operations: Vec<Operation>,
}

/// A row that a transaction inserts: a value for other rows of the same transaction to refer to it, and the key
/// to its UUID in the [results](super::TransactionResults::inserted).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InsertedRow {
    pub(super) operation: usize,
    name: String,
}

impl From<&InsertedRow> for Atom {
    fn from(row: &InsertedRow) -> Self {
        Self::NamedUuid(row.name.clone())
    }
}

/// One operation, in the RFC's notation.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Operation {
    Insert {
        table: String,
        row: Columns,
        #[serde(rename = "uuid-name")]
        name: String,
    },
    Select {
        table: String,
        #[serde(rename = "where")]
        conditions: Vec<Condition>,
        #[serde(skip_serializing_if = "Option::is_none")]
        columns: Option<Vec<String>>,
    },
    Update {
        table: String,
        #[serde(rename = "where")]
        conditions: Vec<Condition>,
        row: Columns,
    },
    Mutate {
        table: String,
        #[serde(rename = "where")]
        conditions: Vec<Condition>,
        mutations: Vec<Mutation>,
    },
    Delete {
        table: String,
        #[serde(rename = "where")]
        conditions: Vec<Condition>,
    },
    Wait {
        #[serde(rename = "timeout")]
        timeout_ms: u64,
        table: String,
        #[serde(rename = "where")]
        conditions: Vec<Condition>,
        columns: Vec<String>,
        until: Until,
        rows: Vec<Columns>,
    },
    Comment {
        comment: String,
    },
    Abort,
}

/// What the result of an operation looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// The UUID of the new row.
    Uuid,
    /// Rows of this table.
    Rows(String),
    /// A number of rows.
    Count,
    /// Nothing but success.
    Done,
}

/// What a `wait` operation waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Until {
    /// The selected rows are exactly those given.
    #[serde(rename = "==")]
    Equal,
    /// They are not.
    #[serde(rename = "!=")]
    NotEqual,
}

impl Transaction {
    /// A transaction on this database (`Open_vSwitch` for the switch's configuration) that does nothing yet.
    pub fn new(database: impl Into<String>) -> Self {
        Self { database: database.into(), operations: Vec::new() }
    }

    /// How many operations there are.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether there is no operation.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Inserts a row; columns left out get their defaults.
    pub fn insert(&mut self, table: impl Into<String>, row: Columns) -> InsertedRow {
        let operation = self.operations.len();
        let name = format!("row{operation}");
        self.operations.push(Operation::Insert { table: table.into(), row, name: name.clone() });
        InsertedRow { operation, name }
    }

    /// Reads these columns of the rows that meet all conditions (every row without a condition).
    pub fn select<C: Into<String>>(
        &mut self,
        table: impl Into<String>,
        conditions: impl IntoIterator<Item = Condition>,
        columns: impl IntoIterator<Item = C>,
    ) -> usize {
        let columns = Some(columns.into_iter().map(Into::into).collect());
        self.push(Operation::Select { table: table.into(), conditions: all(conditions), columns })
    }

    /// Reads all columns, `_uuid` included, of the rows that meet all conditions.
    pub fn select_all(
        &mut self,
        table: impl Into<String>,
        conditions: impl IntoIterator<Item = Condition>,
    ) -> usize {
        self.push(Operation::Select { table: table.into(), conditions: all(conditions), columns: None })
    }

    /// Sets these columns in the rows that meet all conditions (every row without a condition).
    pub fn update(
        &mut self,
        table: impl Into<String>,
        conditions: impl IntoIterator<Item = Condition>,
        row: Columns,
    ) -> usize {
        self.push(Operation::Update { table: table.into(), conditions: all(conditions), row })
    }

    /// Changes columns in place, in the rows that meet all conditions (every row without a condition).
    pub fn mutate(
        &mut self,
        table: impl Into<String>,
        conditions: impl IntoIterator<Item = Condition>,
        mutations: impl IntoIterator<Item = Mutation>,
    ) -> usize {
        let mutations = mutations.into_iter().collect();
        self.push(Operation::Mutate { table: table.into(), conditions: all(conditions), mutations })
    }

    /// Deletes the rows that meet all conditions (every row without a condition). A server deletes rows of
    /// tables other than root tables by itself when nothing refers to them any more.
    pub fn delete(
        &mut self,
        table: impl Into<String>,
        conditions: impl IntoIterator<Item = Condition>,
    ) -> usize {
        self.push(Operation::Delete { table: table.into(), conditions: all(conditions) })
    }

    /// Waits until these columns of the rows that meet all conditions are, or are no longer, exactly `rows`.
    ///
    /// With a timeout of zero this is a check: the transaction fails at once with the error `timed out` when it
    /// does not hold, which makes read-modify-write safe. Timeouts are sent in whole milliseconds.
    pub fn wait<C: Into<String>>(
        &mut self,
        table: impl Into<String>,
        conditions: impl IntoIterator<Item = Condition>,
        columns: impl IntoIterator<Item = C>,
        until: Until,
        rows: impl IntoIterator<Item = Columns>,
        timeout: Duration,
    ) -> usize {
        self.push(Operation::Wait {
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            table: table.into(),
            conditions: all(conditions),
            columns: columns.into_iter().map(Into::into).collect(),
            until,
            rows: rows.into_iter().collect(),
        })
    }

    /// Adds a line to the server's log of the transaction.
    pub fn comment(&mut self, comment: impl Into<String>) -> usize {
        self.push(Operation::Comment { comment: comment.into() })
    }

    /// Makes the transaction fail with the error `aborted` once the operations before this one have succeeded:
    /// a dry run.
    pub fn abort(&mut self) -> usize {
        self.push(Operation::Abort)
    }

    fn push(&mut self, operation: Operation) -> usize {
        self.operations.push(operation);
        self.operations.len() - 1
    }

    /// What the result of each operation looks like.
    pub(super) fn expected(&self) -> Vec<Expected> {
        let expected = |operation: &Operation| match operation {
            Operation::Insert { .. } => Expected::Uuid,
            Operation::Select { table, .. } => Expected::Rows(table.clone()),
            Operation::Update { .. } | Operation::Mutate { .. } | Operation::Delete { .. } => Expected::Count,
            Operation::Wait { .. } | Operation::Comment { .. } | Operation::Abort => Expected::Done,
        };
        self.operations.iter().map(expected).collect()
    }

    /// The operation in words, for an error message.
    pub(super) fn describe(&self, index: usize) -> String {
        match self.operations.get(index) {
            Some(Operation::Insert { table, .. }) => format!("insert into {table}"),
            Some(Operation::Select { table, .. }) => format!("select from {table}"),
            Some(Operation::Update { table, .. }) => format!("update of {table}"),
            Some(Operation::Mutate { table, .. }) => format!("mutate of {table}"),
            Some(Operation::Delete { table, .. }) => format!("delete from {table}"),
            Some(Operation::Wait { table, .. }) => format!("wait on {table}"),
            Some(Operation::Comment { .. }) => "comment".to_owned(),
            Some(Operation::Abort) => "abort".to_owned(),
            None => "none".to_owned(),
        }
    }
}

fn all(conditions: impl IntoIterator<Item = Condition>) -> Vec<Condition> {
    conditions.into_iter().collect()
}

/// The `params` of a `transact` request.
impl Serialize for Transaction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut params = serializer.serialize_seq(Some(1 + self.operations.len()))?;
        params.serialize_element(&self.database)?;
        for operation in &self.operations {
            params.serialize_element(operation)?;
        }
        params.end()
    }
}

/// What a row must meet to be touched (RFC 7047 section 5.1, `<condition>`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    column: String,
    function: Function,
    value: Value,
}

/// How a column is compared (RFC 7047 section 5.1, `<function>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Function {
    /// Less than, for integers and reals.
    #[serde(rename = "<")]
    LessThan,
    /// Less than or equal, for integers and reals.
    #[serde(rename = "<=")]
    LessOrEqual,
    /// Equal.
    #[serde(rename = "==")]
    Equal,
    /// Not equal.
    #[serde(rename = "!=")]
    NotEqual,
    /// Greater than or equal, for integers and reals.
    #[serde(rename = ">=")]
    GreaterOrEqual,
    /// Greater than, for integers and reals.
    #[serde(rename = ">")]
    GreaterThan,
    /// The column holds all of the given set or map.
    #[serde(rename = "includes")]
    Includes,
    /// The column holds nothing of the given set or map.
    #[serde(rename = "excludes")]
    Excludes,
}

impl Condition {
    /// The column compared with a value.
    pub fn new(column: impl Into<String>, function: Function, value: impl Into<Value>) -> Self {
        Self { column: column.into(), function, value: value.into() }
    }

    /// The column holds exactly this value.
    pub fn equal(column: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(column, Function::Equal, value)
    }

    /// The column, a set or a map, holds all of this one.
    pub fn includes(column: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(column, Function::Includes, value)
    }

    /// The row with this UUID.
    pub fn uuid(uuid: Uuid) -> Self {
        Self::equal("_uuid", uuid)
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.column, self.function, &self.value).serialize(serializer)
    }
}

/// A change of a column in place (RFC 7047 section 5.1, `<mutation>`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    column: String,
    mutator: Mutator,
    value: Value,
}

/// How a column is changed in place (RFC 7047 section 5.1, `<mutator>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Mutator {
    /// Add to every number.
    #[serde(rename = "+=")]
    Add,
    /// Subtract from every number.
    #[serde(rename = "-=")]
    Subtract,
    /// Multiply every number.
    #[serde(rename = "*=")]
    Multiply,
    /// Divide every number.
    #[serde(rename = "/=")]
    Divide,
    /// Replace every integer by its remainder.
    #[serde(rename = "%=")]
    Remainder,
    /// Put into a set or map.
    #[serde(rename = "insert")]
    Insert,
    /// Take out of a set or map.
    #[serde(rename = "delete")]
    Delete,
}

impl Mutation {
    /// The column changed with a value.
    pub fn new(column: impl Into<String>, mutator: Mutator, value: impl Into<Value>) -> Self {
        Self { column: column.into(), mutator, value: value.into() }
    }

    /// Puts these into a set or map. A key that a map already has keeps its value; delete it first to replace it.
    pub fn insert(column: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(column, Mutator::Insert, value)
    }

    /// Takes these out of a set or map; from a map, a set of keys or the pairs themselves.
    pub fn delete(column: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(column, Mutator::Delete, value)
    }
}

impl Serialize for Mutation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.column, self.mutator, &self.value).serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn params_are_those_of_the_rfc() {
        let mut transaction = Transaction::new("Open_vSwitch");
        let interface = transaction.insert("Interface", Columns::new().set("name", "veth0"));
        let port =
            transaction.insert("Port", Columns::new().set("name", "veth0").set("interfaces", &interface));
        transaction.mutate(
            "Bridge",
            [Condition::equal("name", "br0")],
            [Mutation::insert("ports", &port), Mutation::delete("external_ids", Value::set(["a"]))],
        );
        transaction.select("Port", [], ["name"]);
        transaction.select_all("Port", [Condition::includes("trunks", 1)]);
        transaction.update("Port", [], Columns::new().set("tag", 3));
        let rows = [Columns::new().set("next_cfg", 1)];
        transaction.wait("Open_vSwitch", [], ["next_cfg"], Until::Equal, rows, Duration::from_millis(5));
        transaction.delete("Port", [Condition::uuid(Uuid::nil())]);
        transaction.comment("why");
        assert_eq!(transaction.abort(), 9);
        assert_eq!(transaction.len(), 10);
        assert_eq!(
            serde_json::to_value(&transaction).unwrap(),
            json!([
                "Open_vSwitch",
                { "op": "insert", "table": "Interface", "row": { "name": "veth0" }, "uuid-name": "row0" },
                { "op": "insert", "table": "Port", "uuid-name": "row1",
                  "row": { "name": "veth0", "interfaces": ["named-uuid", "row0"] } },
                { "op": "mutate", "table": "Bridge", "where": [["name", "==", "br0"]], "mutations": [
                    ["ports", "insert", ["named-uuid", "row1"]],
                    ["external_ids", "delete", ["set", ["a"]]] ] },
                { "op": "select", "table": "Port", "where": [], "columns": ["name"] },
                { "op": "select", "table": "Port", "where": [["trunks", "includes", 1]] },
                { "op": "update", "table": "Port", "where": [], "row": { "tag": 3 } },
                { "op": "wait", "timeout": 5, "table": "Open_vSwitch", "where": [], "columns": ["next_cfg"],
                  "until": "==", "rows": [{ "next_cfg": 1 }] },
                { "op": "delete", "table": "Port",
                  "where": [["_uuid", "==", ["uuid", "00000000-0000-0000-0000-000000000000"]]] },
                { "op": "comment", "comment": "why" },
                { "op": "abort" },
            ])
        );
    }
}
