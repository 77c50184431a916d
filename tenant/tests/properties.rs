//! What holds after any sequence of edits, however odd.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking, in its helpers too.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Map, Value};
use tenon_tenant::{Edit, Plan, Settled, Snapshot, Vni, plan};

/// The store as the controller sees it.
#[derive(Default)]
struct Store {
    records: BTreeMap<String, Vec<u8>>,
    settled: BTreeMap<String, Vec<u8>>,
    cursor: Option<Vni>,
}

impl Store {
    fn successor(&self) -> Snapshot {
        let copies =
            self.settled.iter().map(|(name, text)| (name.clone(), Settled::parse(name, text).unwrap()));
        Snapshot::load(copies, self.cursor)
    }

    fn edit(&self, name: &str) -> Edit<'_> {
        self.records.get(name).map_or(Edit::Deleted, |text| Edit::Put(text))
    }

    fn write(&mut self, name: &str, answer: &Plan) {
        match answer {
            Plan::Nothing => {}
            Plan::Settle { record, settled, cursor } => {
                if let Some(record) = record {
                    self.records.insert(name.to_owned(), record.clone());
                }
                self.settled.insert(name.to_owned(), settled.to_json());
                self.cursor = cursor.or(self.cursor);
            }
            Plan::PutBack { record, .. } => {
                self.records.insert(name.to_owned(), record.clone());
            }
            Plan::Forget => {
                self.settled.remove(name);
            }
        }
    }
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "d", "e"]).prop_map(str::to_owned)
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(any::<String>(), inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Values for the known fields: mostly such as people write, now and then anything.
fn net_id() -> impl Strategy<Value = Value> {
    prop_oneof![4 => (0_u32..24).prop_map(Value::from), 1 => any_json()]
}

fn action() -> impl Strategy<Value = Value> {
    let known = prop::sample::select(vec!["", "", "join", "join", "isolate", "global", "leave"]);
    prop_oneof![8 => known.prop_map(Value::from), 1 => any_json()]
}

fn object() -> impl Strategy<Value = Vec<u8>> {
    let extra = btree_map("[A-Za-z]{1,3}", any_json(), 0..3);
    let known = (
        prop::option::of(net_id()),
        prop::option::of(action()),
        prop::option::of(prop_oneof![8 => name().prop_map(Value::from), 1 => any_json()]),
        prop::option::weighted(0.2, any::<String>().prop_map(Value::from)),
        prop::option::weighted(0.05, any_json()),
    );
    (extra, known).prop_map(|(extra, (net_id, action, namespace, error, net_name))| {
        let mut fields: Map<String, Value> = extra.into_iter().collect();
        let known = [
            ("NetID", net_id),
            ("Action", action),
            ("Namespace", namespace),
            ("Error", error),
            ("NetName", net_name),
        ];
        fields.extend(known.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))));
        serde_json::to_vec(&fields).unwrap()
    })
}

fn text() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        1 => Just(None),
        12 => object().prop_map(Some),
        1 => any_json().prop_map(|value| serde_json::to_vec(&value).ok()),
        1 => vec(any::<u8>(), 0..40).prop_map(Some),
    ]
}

fn extra(fields: &Value) -> Map<String, Value> {
    let mut fields = fields.as_object().unwrap().clone();
    fields.retain(|name, _| !["NetName", "NetID", "Action", "Namespace", "Error"].contains(&name.as_str()));
    fields
}

fn value(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_edits_leave_the_store_in_order(edits in vec((name(), text()), 1..40)) {
        let mut store = Store::default();
        let mut snapshot = Snapshot::default();
        for (name, text) in edits {
            match &text {
                Some(text) => store.records.insert(name.clone(), text.clone()),
                None => store.records.remove(&name),
            };
            let before = snapshot.clone();
            let had = before.settled(&name).map(Settled::net_id);
            let answer = plan(&snapshot, &name, store.edit(&name));
            // A controller that has just been elected decides the same.
            prop_assert_eq!(&answer, &plan(&store.successor(), &name, store.edit(&name)));
            store.write(&name, &answer);
            snapshot.apply(&name, &answer);

            match &answer {
                Plan::Nothing | Plan::PutBack { .. } => {
                    // A refusal, or an edit that asks for nothing, changes no grant.
                    prop_assert!(before.iter().eq(snapshot.iter()));
                    prop_assert_eq!(before.cursor(), snapshot.cursor());
                }
                Plan::Forget => prop_assert!(text.is_none() && snapshot.settled(&name).is_none()),
                Plan::Settle { settled, cursor, .. } => {
                    let edited = value(text.as_deref().unwrap());
                    let vni = settled.net_id();
                    prop_assert!(vni == Vni::GLOBAL || vni >= Vni::FIRST);
                    match cursor {
                        // Nobody else has what is given out.
                        Some(given) => {
                            prop_assert_eq!(*given, vni);
                            prop_assert_eq!(before.tenants_with(vni), 0);
                        }
                        // Else it is the tenant's own, another's by request, or an import.
                        None if Some(vni) == had => {}
                        None => match edited["Action"].as_str().unwrap_or("") {
                            "join" => {
                                let other = edited["Namespace"].as_str().unwrap();
                                prop_assert_eq!(before.settled(other).map(Settled::net_id), Some(vni));
                            }
                            "global" => prop_assert_eq!(vni, Vni::GLOBAL),
                            "" => prop_assert!(had.is_none() && edited["NetID"] == vni.get()),
                            other => prop_assert!(false, "{} gave {}", other, vni),
                        },
                    }
                    // What people keep in fields of their own stays, in the record and for the next refusal.
                    prop_assert_eq!(extra(&edited), extra(&value(&store.records[&name])));
                    prop_assert_eq!(&extra(&edited), settled.record().extra());
                    // Only this tenant's grant has changed.
                    let others = |snapshot: &Snapshot| -> Vec<(String, Settled)> {
                        let all = snapshot.iter().map(|(other, copy)| (other.to_owned(), copy.clone()));
                        all.filter(|(other, _)| *other != name).collect()
                    };
                    prop_assert_eq!(others(&before), others(&snapshot));
                }
            }

            // The record says what was granted, and the controller's own writes are at rest.
            prop_assert_eq!(plan(&snapshot, &name, store.edit(&name)), Plan::Nothing);
            for (name, settled) in snapshot.iter() {
                let stored = value(&store.records[name]);
                prop_assert_eq!(&stored["NetID"], settled.net_id().get());
                prop_assert_eq!(&stored["Action"], "");
                prop_assert_eq!(&store.settled[name], &settled.to_json());
            }
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in vec(any::<u8>(), 0..200), name in ".{0,20}") {
        let mut snapshot = Snapshot::default();
        let answer = plan(&snapshot, &name, Edit::Put(&bytes));
        snapshot.apply(&name, &answer);
        if let Plan::PutBack { record, .. } = &answer {
            prop_assert_eq!(plan(&snapshot, &name, Edit::Put(record)), Plan::Nothing);
        }
    }

    #[test]
    fn the_next_free_vni_is_the_first_after_the_cursor(
        used in vec(10_u32..40, 0..30),
        cursor in prop::option::of(prop_oneof![10_u32..40, Just(0xff_ffff)]),
    ) {
        let copies = used.iter().enumerate().map(|(place, net_id)| {
            let text = format!(r#"{{"NetID":{net_id},"Record":{{}}}}"#);
            (place.to_string(), Settled::parse(&place.to_string(), text.as_bytes()).unwrap())
        });
        let snapshot = Snapshot::load(copies, cursor.map(|cursor| cursor.try_into().unwrap()));
        let start = cursor.map_or(10, |cursor| cursor + 1);
        let free = (start..=0xff_ffff).chain(10..start).find(|number| !used.contains(number));
        prop_assert_eq!(snapshot.next_free().map(|vni| vni.get()), free);
    }
}
