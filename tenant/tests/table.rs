//! Every state of a tenant, met by every kind of edit.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking, in its helpers too.

use serde_json::{Value, json};
use tenon_tenant::{Edit, MAX_EXTRA_BYTES, MAX_EXTRA_DEPTH, Plan, Settled, Snapshot, plan};

/// An enum with a list of all its variants: the table below then has to say something about a new one.
macro_rules! listed {
    (enum $name:ident { $($variant:ident),* $(,)? }) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum $name { $($variant),* }

        impl $name {
            const ALL: &[$name] = &[$($name::$variant),*];
        }
    };
}

listed! {
    enum State { Absent, Inert, Own, Shared, Global }
}

listed! {
    enum Kind {
        AsStored, WithoutNetId, NullNetId, OnlyANetId, FreeNetId, PeersNetId, ZeroNetId, ReservedNetId, NegativeNetId,
        TooBigNetId, HugeNetId, FractionNetId, TextNetId, NotJson, Empty, NotUtf8, NotObject, TooDeep, TooLong,
        OtherName, NumberName, NumberAction, UnknownAction, CapitalAction, NumberNamespace, LeftoverNamespace,
        NumberError, KeptError, FreeNetIdWithError, UnknownFields, JoinPeer, JoinGlobalTenant, JoinWithStaleNetId, JoinWithoutNamespace,
        JoinItself, JoinNobody, JoinInert, Isolate, IsolateWithStaleNetId, Global, GlobalWithError, Deleted,
    }
}

enum Outcome {
    Nothing,
    /// The tenant has this NetID afterwards.
    Settles(u32),
    /// The Error says this, among other things.
    Refuses(&'static str),
    Forgets,
}

const OWN: u32 = 5000;
const PEER: u32 = 6000;
const CURSOR: u32 = 5999;
/// The cursor's successor is the peer's.
const NEXT: u32 = 6001;

fn expected(state: State, kind: Kind) -> Outcome {
    use Outcome::{Forgets, Nothing, Refuses, Settles};
    let had = match state {
        State::Absent | State::Inert => None,
        State::Own => Some(OWN),
        State::Shared => Some(PEER),
        State::Global => Some(0),
    };
    let asks = Settles(had.unwrap_or(NEXT));
    let brings = |net_id: u32, change: &'static str| match had {
        None => Settles(net_id),
        // The edit has left out the field Team.
        Some(had) if had == net_id => Settles(had),
        Some(_) => Refuses(change),
    };
    match kind {
        Kind::AsStored => match state {
            State::Absent => Settles(NEXT),
            State::Inert | State::Own | State::Shared | State::Global => Nothing,
        },
        Kind::WithoutNetId | Kind::NullNetId | Kind::LeftoverNamespace | Kind::UnknownFields => asks,
        Kind::OnlyANetId => Settles(had.unwrap_or(7777)),
        Kind::FreeNetId | Kind::FreeNetIdWithError => brings(7777, "to 7777"),
        Kind::PeersNetId => brings(PEER, "to 6000"),
        Kind::ZeroNetId => brings(0, "to 0"),
        Kind::ReservedNetId => Refuses("NetID 5 is reserved"),
        Kind::NegativeNetId => Refuses("NetID is -5, not an integer from 0 to 16777215"),
        Kind::TooBigNetId => Refuses("NetID is 16777216"),
        Kind::HugeNetId => Refuses("NetID is 4294967306"),
        Kind::FractionNetId => Refuses("NetID is 5000.5"),
        Kind::TextNetId => Refuses("NetID is \"5000\""),
        Kind::NotJson | Kind::Empty | Kind::NotUtf8 => Refuses("not JSON"),
        Kind::NotObject => Refuses("the record is [5000], not a JSON object"),
        Kind::TooDeep => Refuses("nest deeper than"),
        Kind::TooLong => Refuses("unknown fields take"),
        Kind::OtherName => Refuses("NetName is \"u\", but the record's key says \"t\""),
        Kind::NumberName => Refuses("NetName is 7, not a string"),
        Kind::NumberAction => Refuses("Action is 7, not a string"),
        Kind::UnknownAction => Refuses("\"leave\" is not known: use \"join\", \"isolate\" or \"global\""),
        Kind::CapitalAction => Refuses("\"Join\" is not known"),
        Kind::NumberNamespace => Refuses("Namespace is 7, not a string"),
        Kind::NumberError => Refuses("Error is 7, not a string"),
        Kind::KeptError => match state {
            State::Absent | State::Inert => Nothing,
            State::Own | State::Shared | State::Global => asks,
        },
        Kind::JoinPeer | Kind::JoinWithStaleNetId => Settles(PEER),
        Kind::JoinGlobalTenant | Kind::Global | Kind::GlobalWithError => Settles(0),
        Kind::JoinWithoutNamespace => Refuses("needs the tenant to join in Namespace"),
        Kind::JoinItself => Refuses("\"t\" cannot join itself"),
        Kind::JoinNobody => Refuses("cannot join \"nobody\""),
        Kind::JoinInert => Refuses("cannot join \"inert\""),
        Kind::Isolate | Kind::IsolateWithStaleNetId => match state {
            State::Own => Settles(OWN),
            State::Absent | State::Inert | State::Shared | State::Global => Settles(NEXT),
        },
        Kind::Deleted => match state {
            State::Absent | State::Inert => Nothing,
            State::Own | State::Shared | State::Global => Forgets,
        },
    }
}

fn record(net_id: Value, action: &str, namespace: &str) -> Value {
    json!({"NetName": "t", "NetID": net_id, "Action": action, "Namespace": namespace})
}

/// The text of the edit; `None`: the record is deleted.
fn text(kind: Kind, had: Option<u32>, stored: &Option<Vec<u8>>) -> Option<Vec<u8>> {
    let quiet = |net_id: Value| record(net_id, "", "");
    let value = match kind {
        Kind::AsStored => return Some(stored.clone().unwrap_or_else(|| b"{}".to_vec())),
        Kind::Deleted => return None,
        Kind::NotJson => return Some(b"{\"NetName\":\"t\",".to_vec()),
        Kind::Empty => return Some(Vec::new()),
        Kind::NotUtf8 => return Some(b"{\"NetName\":\"\xff\"}".to_vec()),
        Kind::WithoutNetId => json!({"NetName": "t", "Action": "", "Namespace": ""}),
        Kind::NullNetId => quiet(Value::Null),
        Kind::OnlyANetId => json!({"NetID": had.unwrap_or(7777)}),
        Kind::FreeNetId => quiet(json!(7777)),
        Kind::FreeNetIdWithError => json!({"NetName": "t", "NetID": 7777, "Error": "old"}),
        Kind::PeersNetId => quiet(json!(PEER)),
        Kind::ZeroNetId => quiet(json!(0)),
        Kind::ReservedNetId => quiet(json!(5)),
        Kind::NegativeNetId => quiet(json!(-5)),
        Kind::TooBigNetId => quiet(json!(16_777_216)),
        Kind::HugeNetId => quiet(json!(4_294_967_306_u64)),
        Kind::FractionNetId => quiet(json!(5000.5)),
        Kind::TextNetId => quiet(json!("5000")),
        Kind::NotObject => json!([5000]),
        Kind::TooDeep => {
            let deep = (0..=MAX_EXTRA_DEPTH).fold(json!(0), |inner, _| json!([inner]));
            json!({"NetName": "t", "Deep": deep})
        }
        Kind::TooLong => json!({"NetName": "t", "Long": "x".repeat(MAX_EXTRA_BYTES)}),
        Kind::OtherName => json!({"NetName": "u"}),
        Kind::NumberName => json!({"NetName": 7}),
        Kind::NumberAction => json!({"NetName": "t", "Action": 7}),
        Kind::UnknownAction => record(json!(had), "leave", "peer"),
        Kind::CapitalAction => record(json!(had), "Join", "peer"),
        Kind::NumberNamespace => json!({"NetName": "t", "Action": "isolate", "Namespace": 7}),
        Kind::LeftoverNamespace => record(json!(had), "", "peer"),
        Kind::NumberError => json!({"NetName": "t", "Error": 7}),
        Kind::KeptError => json!({"NetName": "t", "Error": "kept"}),
        Kind::UnknownFields => json!({"NetName": "t", "Owner": {"mail": [1.1, "x", null]}}),
        Kind::JoinPeer => record(json!(had), "join", "peer"),
        Kind::JoinGlobalTenant => record(json!(had), "join", "world"),
        Kind::JoinWithStaleNetId => record(json!(-5), "join", "peer"),
        Kind::JoinWithoutNamespace => record(json!(had), "join", ""),
        Kind::JoinItself => record(json!(had), "join", "t"),
        Kind::JoinNobody => record(json!(had), "join", "nobody"),
        Kind::JoinInert => record(json!(had), "join", "inert"),
        Kind::Isolate => record(json!(had), "isolate", ""),
        Kind::IsolateWithStaleNetId => record(json!("gone"), "isolate", "peer"),
        Kind::Global => record(json!(had), "global", ""),
        Kind::GlobalWithError => {
            json!({"NetName": "t", "Action": "global", "Namespace": "", "Error": "old"})
        }
    };
    Some(serde_json::to_vec(&value).unwrap())
}

fn settled(name: &str, net_id: u32) -> (String, Settled) {
    let text = format!(
        r#"{{"NetID":{net_id},"Record":{{"NetName":"{name}","NetID":{net_id},"Action":"","Namespace":"","Team":"blue"}}}}"#
    );
    (name.to_owned(), Settled::parse(name, text.as_bytes()).unwrap())
}

/// The controller's memory, and the text of the record of the tenant `t`.
fn start(state: State) -> (Snapshot, Option<u32>, Option<Vec<u8>>) {
    let had = match state {
        State::Absent | State::Inert => None,
        State::Own => Some(OWN),
        State::Shared => Some(PEER),
        State::Global => Some(0),
    };
    let others = [settled("peer", PEER), settled("world", 0)];
    let tenants = others.into_iter().chain(had.map(|net_id| settled("t", net_id)));
    let snapshot = Snapshot::load(tenants, Some(CURSOR.try_into().unwrap()));
    let stored = match state {
        State::Absent => None,
        State::Inert => Some(br#"{"NetName":"t","Action":"","Namespace":"","Error":"why"}"#.to_vec()),
        State::Own | State::Shared | State::Global => {
            snapshot.settled("t").map(|settled| settled.record().to_json())
        }
    };
    (snapshot, had, stored)
}

fn edit(text: &Option<Vec<u8>>) -> Edit<'_> {
    text.as_deref().map_or(Edit::Deleted, Edit::Put)
}

#[test]
fn every_state_meets_every_edit() {
    for &state in State::ALL {
        for &kind in Kind::ALL {
            check(state, kind);
        }
    }
}

fn check(state: State, kind: Kind) {
    let (mut snapshot, had, stored) = start(state);
    let before: Vec<_> = snapshot.iter().map(|(name, copy)| (name.to_owned(), copy.clone())).collect();
    let mut text = text(kind, had, &stored);
    let answer = plan(&snapshot, "t", edit(&text));
    snapshot.apply("t", &answer);
    let case = format!("{state:?} meets {kind:?}: {answer:?}");

    match (expected(state, kind), &answer) {
        (Outcome::Nothing, Plan::Nothing) => assert_eq!(snapshot.iter().count(), before.len(), "{case}"),
        (Outcome::Forgets, Plan::Forget) => assert!(snapshot.settled("t").is_none(), "{case}"),
        (Outcome::Settles(net_id), Plan::Settle { record, settled, cursor }) => {
            assert_eq!(settled.net_id().get(), net_id, "{case}");
            assert_eq!(*cursor, (net_id == NEXT).then(|| NEXT.try_into().unwrap()), "{case}");
            text = record.clone().or(text);
            let stored: Value = serde_json::from_slice(text.as_deref().unwrap()).unwrap();
            assert_eq!(stored["NetName"], "t", "{case}");
            assert_eq!(stored["NetID"], net_id, "{case}");
            assert_eq!(stored["Action"], "", "{case}");
            assert_eq!(stored["Namespace"], "", "{case}");
            let error = if kind == Kind::KeptError { json!("kept") } else { Value::Null };
            assert_eq!(stored["Error"], error, "{case}");
            if kind == Kind::UnknownFields {
                assert_eq!(stored["Owner"], json!({"mail": [1.1, "x", null]}), "{case}");
            }
        }
        (Outcome::Refuses(reason), Plan::PutBack { record, refusal }) => {
            assert!(refusal.to_string().contains(reason), "{case}");
            let after: Vec<_> = snapshot.iter().map(|(name, copy)| (name.to_owned(), copy.clone())).collect();
            assert_eq!(after, before, "{case}");
            let stored: Value = serde_json::from_slice(record).unwrap();
            assert!(stored["Error"].as_str().unwrap().contains(reason), "{case}");
            assert_eq!(stored["Action"], "", "{case}");
            assert_eq!(stored["Namespace"], "", "{case}");
            assert_eq!(stored["NetID"], had.map_or(Value::Null, Value::from), "{case}");
            assert_eq!(stored["Team"], had.map_or(Value::Null, |_| "blue".into()), "{case}");
            text = Some(record.clone());
        }
        (Outcome::Nothing | Outcome::Settles(_) | Outcome::Refuses(_) | Outcome::Forgets, _) => {
            panic!("{case}")
        }
    }
    // What the controller wrote is at rest, also for the next controller.
    let again = Snapshot::load(
        snapshot.iter().map(|(name, copy)| (name.to_owned(), Settled::parse(name, &copy.to_json()).unwrap())),
        snapshot.cursor(),
    );
    assert_eq!(plan(&again, "t", edit(&text)), Plan::Nothing, "{case}");
}

#[test]
fn the_next_good_action_clears_the_error() {
    let (mut snapshot, ..) = start(State::Own);
    let refused = plan(&snapshot, "t", Edit::Put(b"oops"));
    let Plan::PutBack { record, .. } = refused else { panic!("{refused:?}") };
    let edited = String::from_utf8(record).unwrap().replace(r#""Action":"""#, r#""Action":"isolate""#);
    let answer = plan(&snapshot, "t", Edit::Put(edited.as_bytes()));
    let Plan::Settle { record: Some(record), settled, .. } = &answer else { panic!("{answer:?}") };
    assert_eq!(settled.net_id().get(), OWN);
    let stored: Value = serde_json::from_slice(record).unwrap();
    assert_eq!(stored, json!({"NetName": "t", "NetID": OWN, "Action": "", "Namespace": "", "Team": "blue"}));
    snapshot.apply("t", &answer);
    assert_eq!(plan(&snapshot, "t", Edit::Put(record)), Plan::Nothing);
}

#[test]
fn unknown_fields_of_a_refused_new_record_are_saved() {
    let answer = plan(&Snapshot::default(), "t", Edit::Put(br#"{"NetName":"t","NetID":-1,"Team":"blue"}"#));
    let Plan::PutBack { record, .. } = answer else { panic!("{answer:?}") };
    let stored: Value = serde_json::from_slice(&record).unwrap();
    assert_eq!(stored["Team"], "blue");
    assert_eq!(stored.get("NetID"), None);
}

#[test]
fn the_only_global_tenant_is_isolated_too() {
    let snapshot = Snapshot::load([settled("t", 0)], None);
    let answer = plan(&snapshot, "t", Edit::Put(br#"{"Action":"isolate"}"#));
    assert!(matches!(&answer, Plan::Settle { settled, .. } if settled.net_id().get() == 10), "{answer:?}");
}

#[test]
fn a_freed_netid_waits_until_the_others_had_their_turn() {
    let mut snapshot = Snapshot::default();
    for (name, net_id) in [("a", 10), ("b", 11), ("c", 12)] {
        let answer = plan(&snapshot, name, Edit::Put(b"{}"));
        snapshot.apply(name, &answer);
        assert_eq!(snapshot.settled(name).unwrap().net_id().get(), net_id);
    }
    snapshot.apply("b", &plan(&snapshot, "b", Edit::Deleted));
    assert_eq!(snapshot.next_free().map(|vni| vni.get()), Some(13));
}
