//! Results of transactions (RFC 7047 sections 4.1.3 and 5.2).

use super::transaction::Expected;
use super::value::{parse_uuid, unexpected};
use super::{Error, InsertedRow, Row, Transaction, Uuid};
use serde_json::Value as Json;
use std::sync::Arc;

/// What one operation of a committed transaction gave.
#[derive(Clone, Debug, PartialEq)]
pub enum OperationResult {
    /// Of an insert: the UUID of the new row.
    Inserted(Uuid),
    /// Of a select: the rows.
    Rows(Vec<Row>),
    /// Of an update, mutate or delete: how many rows met the conditions.
    Count(u64),
    /// Of all others: success.
    Done,
}

/// The results of a committed transaction, one for each operation, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct TransactionResults(Vec<OperationResult>);

/// How a reply to a transaction ends.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    /// It was committed.
    Committed(TransactionResults),
    /// One operation failed.
    OperationFailed { index: usize, error: String, details: String },
    /// The operations were fine, the commit failed.
    CommitFailed { error: String, details: String },
}

impl TransactionResults {
    /// The UUID that an inserted row was given.
    pub fn inserted(&self, row: &InsertedRow) -> Result<Uuid, Error> {
        match self.0.get(row.operation) {
            Some(OperationResult::Inserted(uuid)) => Ok(*uuid),
            _ => Err(Error::Result { index: row.operation, wanted: "insert" }),
        }
    }

    /// The rows that the select at this place gave.
    pub fn rows(&self, index: usize) -> Result<&[Row], Error> {
        match self.0.get(index) {
            Some(OperationResult::Rows(rows)) => Ok(rows),
            _ => Err(Error::Result { index, wanted: "select" }),
        }
    }

    /// How many rows met the conditions of the update, mutate or delete at this place.
    pub fn count(&self, index: usize) -> Result<u64, Error> {
        match self.0.get(index) {
            Some(OperationResult::Count(count)) => Ok(*count),
            _ => Err(Error::Result { index, wanted: "update, mutate or delete" }),
        }
    }

    /// All results.
    pub fn as_slice(&self) -> &[OperationResult] {
        &self.0
    }
}

impl Outcome {
    /// Reads the `result` member of a reply; the error says what in it is not OVSDB.
    pub(super) fn decode(expected: &[Expected], json: Json) -> Result<Self, String> {
        let Json::Array(elements) = json else {
            return Err(unexpected("an array of results", &json));
        };
        let mut results = Vec::with_capacity(expected.len());
        for (index, element) in elements.into_iter().enumerate() {
            // An operation that failed comes last but for a null for each operation that was not tried; an
            // error beyond the last operation is one of the commit.
            if let Some(error) = element.get("error").and_then(Json::as_str) {
                let error = error.to_owned();
                let details = element.get("details").and_then(Json::as_str).unwrap_or_default().to_owned();
                return Ok(if index < expected.len() {
                    Self::OperationFailed { index, error, details }
                } else {
                    Self::CommitFailed { error, details }
                });
            }
            match expected.get(index) {
                Some(expected) => results.push(OperationResult::decode(expected, element)?),
                None => return Err("more results than operations".to_owned()),
            }
        }
        if results.len() < expected.len() {
            return Err(format!("{} results for {} operations", results.len(), expected.len()));
        }
        Ok(Self::Committed(TransactionResults(results)))
    }

    pub(super) fn into_result(self, transaction: &Transaction) -> Result<TransactionResults, Error> {
        match self {
            Self::Committed(results) => Ok(results),
            Self::OperationFailed { index, error, details } => {
                Err(Error::Operation { index, operation: transaction.describe(index), error, details })
            }
            Self::CommitFailed { error, details } => Err(Error::Commit { error, details }),
        }
    }
}

impl OperationResult {
    fn decode(expected: &Expected, mut json: Json) -> Result<Self, String> {
        let mut member = |name: &str| json.get_mut(name).map(Json::take).unwrap_or_default();
        match expected {
            Expected::Done => match json {
                Json::Object(_) => Ok(Self::Done),
                other => Err(unexpected("a result", &other)),
            },
            Expected::Count => {
                let count = member("count");
                count.as_u64().map(Self::Count).ok_or_else(|| unexpected("a count", &count))
            }
            Expected::Uuid => match member("uuid") {
                Json::Array(parts) => match parts.as_slice() {
                    [Json::String(tag), Json::String(text)] if tag == "uuid" => {
                        parse_uuid(text).map(Self::Inserted)
                    }
                    _ => Err(unexpected("a UUID", &Json::Array(parts))),
                },
                other => Err(unexpected("a UUID", &other)),
            },
            Expected::Rows(table) => match member("rows") {
                Json::Array(rows) => {
                    let table = Arc::from(table.as_str());
                    rows.into_iter()
                        .map(|row| Row::decode(&table, row))
                        .collect::<Result<_, _>>()
                        .map(Self::Rows)
                }
                other => Err(unexpected("an array of rows", &other)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Columns, Value};
    use super::*;
    use serde_json::json;

    const UUID: &str = "36bef046-7da7-43a5-905a-c17899216fcb";

    fn transaction() -> (Transaction, InsertedRow) {
        let mut transaction = Transaction::new("Open_vSwitch");
        let row = transaction.insert("Port", Columns::new());
        transaction.select("Port", [], ["name"]);
        transaction.delete("Port", []);
        transaction.comment("why");
        (transaction, row)
    }

    fn decode(json: Json) -> Result<Outcome, String> {
        Outcome::decode(&transaction().0.expected(), json)
    }

    fn good() -> Vec<Json> {
        vec![
            json!({ "uuid": ["uuid", UUID] }),
            json!({ "rows": [{ "name": "a" }] }),
            json!({ "count": 2 }),
            json!({}),
        ]
    }

    #[test]
    fn results_are_those_of_the_operations() {
        let (transaction, row) = transaction();
        let results = decode(Json::Array(good())).unwrap().into_result(&transaction).unwrap();
        assert_eq!(results.inserted(&row).unwrap().to_string(), UUID);
        assert_eq!(results.rows(1).unwrap()[0].value("name").unwrap(), &Value::from("a"));
        assert_eq!(results.count(2).unwrap(), 2);
        assert_eq!(results.as_slice().len(), 4);
        assert!(matches!(results.count(1), Err(Error::Result { index: 1, .. })));
        assert!(matches!(results.rows(9), Err(Error::Result { index: 9, .. })));
    }

    #[test]
    fn a_failed_operation_is_named() {
        let (transaction, _) = transaction();
        let mut results = good();
        results[1] = json!({ "error": "constraint violation", "details": "too many" });
        results[2] = Json::Null;
        results[3] = Json::Null;
        let error = decode(Json::Array(results)).unwrap().into_result(&transaction).unwrap_err();
        assert_eq!(
            error.to_string(),
            "operation 1 of the transaction (select from Port) failed: constraint violation (too many)"
        );
    }

    #[test]
    fn an_additional_error_is_one_of_the_commit() {
        let mut results = good();
        results.push(json!({ "error": "referential integrity violation" }));
        let error = decode(Json::Array(results)).unwrap().into_result(&transaction().0).unwrap_err();
        assert!(matches!(error, Error::Commit { .. }), "{error}");
    }

    #[test]
    fn what_does_not_fit_the_operations_is_refused() {
        let with = |index: usize, json: Json| {
            let mut results = good();
            results[index] = json;
            Json::Array(results)
        };
        let mut long = good();
        long.push(json!({}));
        for json in [
            json!(null),
            json!([]),
            Json::Array(good()[..3].to_vec()),
            Json::Array(long),
            with(0, json!({ "uuid": ["uuid", "x"] })),
            with(0, json!({ "uuid": ["uuid"] })),
            with(0, json!({ "uuid": "x" })),
            with(0, json!(null)),
            with(1, json!({ "rows": [1] })),
            with(1, json!({ "count": 1 })),
            with(2, json!({ "count": -1 })),
            with(3, json!(7)),
        ] {
            assert!(decode(json.clone()).is_err(), "{json}");
        }
    }
}
