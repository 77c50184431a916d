//! The replica: tables of rows, and how `update` notifications change them (RFC 7047 section 4.1.6).

use super::value::{parse_uuid, unexpected};
use super::{Atom, Fault, Monitor, Row, Uuid, Value};
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The monitored tables as they were at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    // Tables and rows are shared between views, so that keeping a view costs an update only the index of each
    // table that it changes.
    tables: BTreeMap<Arc<str>, Arc<Table>>,
}

/// One monitored table of a [`View`]: its rows by their UUIDs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    rows: HashMap<Uuid, Arc<Row>>,
}

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// It is new.
    Inserted,
    /// Some of its columns changed.
    Modified,
    /// It is gone.
    Deleted,
}

/// The change of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowChange {
    /// The row's table.
    pub table: Arc<str>,
    /// The row.
    pub uuid: Uuid,
    /// The row as it was, unless it is new.
    pub old: Option<Arc<Row>>,
    /// The row as it is, unless it is gone.
    pub new: Option<Arc<Row>>,
}

impl RowChange {
    /// What happened.
    pub fn kind(&self) -> ChangeKind {
        match (&self.old, &self.new) {
            (None, _) => ChangeKind::Inserted,
            (Some(_), Some(_)) => ChangeKind::Modified,
            (Some(_), None) => ChangeKind::Deleted,
        }
    }
}

impl View {
    /// The monitored tables, all empty.
    pub(super) fn new(monitor: &Monitor) -> Self {
        Self { tables: monitor.tables().map(|table| (Arc::from(table), Arc::default())).collect() }
    }

    /// A monitored table; `None` for one that is not monitored.
    pub fn table(&self, table: &str) -> Option<&Table> {
        self.tables.get(table).map(Arc::as_ref)
    }

    /// The rows of a table in no particular order; none for a table that is not monitored.
    pub fn rows(&self, table: &str) -> impl Iterator<Item = (Uuid, &Arc<Row>)> {
        self.table(table).into_iter().flat_map(Table::rows)
    }

    /// The row of a table with this UUID.
    pub fn row(&self, table: &str, uuid: Uuid) -> Option<&Arc<Row>> {
        self.table(table)?.row(uuid)
    }

    /// The first row found of a table whose column holds exactly this, such as the bridge of a name. It looks
    /// at one row after the other.
    pub fn find(&self, table: &str, column: &str, value: impl Into<Atom>) -> Option<(Uuid, &Arc<Row>)> {
        let value = Value::Atom(value.into());
        self.rows(table).find(|(_, row)| row.value(column) == Ok(&value))
    }

    /// What `<table-updates>` (the content of an `update` notification and of the reply to a monitor request)
    /// change in this view. Nothing is changed yet, so that updates that are wrong somewhere change nothing.
    pub(super) fn changes(&self, updates: Json) -> Result<Vec<RowChange>, Fault> {
        let mut changes = Vec::new();
        for (table, rows) in object("table updates", updates)? {
            let Some((name, table)) = self.tables.get_key_value(table.as_str()) else {
                return Err(Fault::Malformed(format!("an update of table {table}, which is not monitored")));
            };
            for (uuid, update) in object("row updates", rows)? {
                let update = RowUpdate::decode(name, &uuid, update).map_err(Fault::Malformed)?;
                changes.push(table.change(name, update)?);
            }
        }
        Ok(changes)
    }

    /// Makes changes that [`View::changes`] found.
    pub(super) fn apply(&mut self, changes: &[RowChange]) {
        for change in changes {
            let Some(table) = self.tables.get_mut(&change.table) else { continue };
            let rows = &mut Arc::make_mut(table).rows;
            match &change.new {
                Some(row) => rows.insert(change.uuid, row.clone()),
                None => rows.remove(&change.uuid),
            };
        }
    }
}

impl Table {
    /// The row with this UUID.
    pub fn row(&self, uuid: Uuid) -> Option<&Arc<Row>> {
        self.rows.get(&uuid)
    }

    /// All rows, in no particular order.
    pub fn rows(&self) -> impl Iterator<Item = (Uuid, &Arc<Row>)> {
        self.rows.iter().map(|(uuid, row)| (*uuid, row))
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn change(&self, table: &Arc<str>, update: RowUpdate) -> Result<RowChange, Fault> {
        let RowUpdate { uuid, existed, new } = update;
        let old = self.rows.get(&uuid).cloned();
        let reason = match (existed, old.is_some()) {
            (true, false) => "the row was not there",
            (false, true) => "the row was there already",
            _ => return Ok(RowChange { table: table.clone(), uuid, old, new }),
        };
        Err(Fault::Inconsistent { table: table.to_string(), uuid, reason })
    }
}

/// A `<row-update>`: `new` is the whole row as far as it is monitored. Of `old` only its presence matters.
struct RowUpdate {
    uuid: Uuid,
    existed: bool,
    new: Option<Arc<Row>>,
}

impl RowUpdate {
    fn decode(table: &Arc<str>, uuid: &str, json: Json) -> Result<Self, String> {
        let uuid = parse_uuid(uuid)?;
        let Json::Object(mut members) = json else {
            return Err(unexpected("a row update", &json));
        };
        let existed = members.contains_key("old");
        let new = members.remove("new").map(|row| Row::decode(table, row)).transpose()?;
        if !existed && new.is_none() {
            return Err(format!("an update of row {uuid} of table {table} without a row"));
        }
        let new = new.map(|mut row| {
            row.insert("_uuid", Value::from(uuid));
            Arc::new(row)
        });
        Ok(Self { uuid, existed, new })
    }
}

fn object(expected: &str, json: Json) -> Result<serde_json::Map<String, Json>, Fault> {
    match json {
        Json::Object(members) => Ok(members),
        other => Err(Fault::Malformed(unexpected(expected, &other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const FIRST: Uuid = Uuid::from_u128(1);
    const SECOND: Uuid = Uuid::from_u128(2);

    fn view() -> View {
        let mut view = View::new(&Monitor::new().table("Port", ["name", "tag"]));
        let initial = json!({ "Port": {
            FIRST.to_string(): { "new": { "name": "a", "tag": ["set", []] } },
            SECOND.to_string(): { "new": { "name": "b", "tag": 5 } },
        } });
        view.apply(&view.changes(initial).unwrap());
        view
    }

    #[test]
    fn updates_insert_modify_and_delete() {
        let mut view = view();
        let before = view.clone();
        assert_eq!(view.table("Port").unwrap().len(), 2);
        assert_eq!(view.find("Port", "name", "b").unwrap().0, SECOND);
        assert_eq!(view.row("Port", FIRST).unwrap().uuid("_uuid").unwrap(), FIRST);

        let changes = view
            .changes(json!({ "Port": {
                FIRST.to_string(): { "old": { "tag": ["set", []] }, "new": { "name": "a", "tag": 7 } },
                SECOND.to_string(): { "old": { "name": "b", "tag": 5 } },
                Uuid::from_u128(3).to_string(): { "new": { "name": "c", "tag": 9 } },
            } }))
            .unwrap();
        assert_eq!(view, before);
        view.apply(&changes);
        let kinds: Vec<_> = changes.iter().map(RowChange::kind).collect();
        assert_eq!(kinds, [ChangeKind::Modified, ChangeKind::Deleted, ChangeKind::Inserted]);
        assert_eq!(changes[0].old.as_ref().unwrap().optional_integer("tag").unwrap(), None);
        assert_eq!(view.row("Port", FIRST).unwrap().integer("tag").unwrap(), 7);
        assert!(view.row("Port", SECOND).is_none());
        assert!(before.row("Port", SECOND).is_some(), "a view that somebody keeps does not change");
        assert!(view.table("Bridge").is_none());
        assert_eq!(view.rows("Bridge").count(), 0);
    }

    #[test]
    fn updates_that_do_not_fit_are_refused() {
        let third = Uuid::from_u128(3).to_string();
        for update in [
            json!({ FIRST.to_string(): { "new": { "name": "a" } } }),
            json!({ &third: { "old": {} } }),
            json!({ &third: { "old": {}, "new": {} } }),
        ] {
            let error = view().changes(json!({ "Port": update })).unwrap_err();
            assert!(matches!(error, Fault::Inconsistent { .. }), "{error}");
        }
        for updates in [
            json!(null),
            json!({ "Bridge": {} }),
            json!({ "Port": [] }),
            json!({ "Port": { "x": { "new": {} } } }),
            json!({ "Port": { &third: {} } }),
            json!({ "Port": { &third: { "new": null } } }),
            json!({ "Port": { &third: { "new": { "name": {} } } } }),
        ] {
            let error = view().changes(updates).unwrap_err();
            assert!(matches!(error, Fault::Malformed(_)), "{error}");
        }
    }

    proptest! {
        #[test]
        fn mutated_updates_are_read_or_refused_without_panic(
            at in any::<prop::sample::Index>(), bytes in proptest::collection::vec(any::<u8>(), 1..4),
        ) {
            let mut text = json!({ "Port": {
                FIRST.to_string(): { "old": { "tag": ["set", []] }, "new": { "name": "a", "tag": ["set", [1, 2]] } },
                SECOND.to_string(): { "old": { "name": "b", "tag": 5 } },
            } }).to_string().into_bytes();
            let at = at.index(text.len());
            text.splice(at..(at + 1), bytes);
            if let Ok(json) = serde_json::from_slice::<Json>(&text)
                && let Err(fault) = view().changes(json)
            {
                let refused = matches!(fault, Fault::Malformed(_) | Fault::Inconsistent { .. });
                prop_assert!(refused, "{}", fault);
            }
        }
    }
}
