//! Values of columns and their JSON notation (RFC 7047 section 5.1).

use super::Uuid;
use serde::ser::{Error as _, Serialize, SerializeSeq, Serializer};
use serde_json::Value as Json;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One scalar: RFC 7047's `<atom>`, or in a request a reference to a row that the same transaction inserts.
#[derive(Clone, Debug)]
pub enum Atom {
    /// A 64-bit integer.
    Integer(i64),
    /// A real number; one that is not finite cannot be sent.
    Real(f64),
    /// A boolean.
    Boolean(bool),
    /// A string.
    String(String),
    /// The UUID of a row.
    Uuid(Uuid),
    /// The `<named-uuid>` of a row inserted by the same transaction; a server never sends one.
    NamedUuid(String),
}

/// The value of a column: RFC 7047's `<value>`.
///
/// A server writes a set of exactly one atom as that atom, so [`Value::Atom`] stands for such a set as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A scalar, or a set of one.
    Atom(Atom),
    /// A set; an optional column without a value is an empty one.
    Set(BTreeSet<Atom>),
    /// A map.
    Map(BTreeMap<Atom, Atom>),
}

/// Columns with their values, for a row to be written or compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct Columns(pub BTreeMap<String, Value>);

impl Columns {
    /// No column yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// With `column` set to `value`.
    #[must_use]
    pub fn set(mut self, column: impl Into<String>, value: impl Into<Value>) -> Self {
        self.0.insert(column.into(), value.into());
        self
    }
}

impl Value {
    /// The set of these atoms.
    pub fn set<A: Into<Atom>>(atoms: impl IntoIterator<Item = A>) -> Self {
        Self::Set(atoms.into_iter().map(Into::into).collect())
    }

    /// The map of these pairs.
    pub fn map<K: Into<Atom>, V: Into<Atom>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self::Map(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }

    /// The empty set: no value in an optional column.
    pub fn empty() -> Self {
        Self::Set(BTreeSet::new())
    }

    /// Reads the JSON notation of a value; the error says what is wrong with it.
    pub(super) fn decode(json: Json) -> Result<Self, String> {
        let Json::Array(parts) = json else { return Atom::decode(json).map(Self::Atom) };
        let (kind, content) = pair(parts)?;
        match (kind.as_str(), content) {
            (Some("set"), Json::Array(atoms)) => {
                atoms.into_iter().map(Atom::decode).collect::<Result<_, _>>().map(Self::Set)
            }
            (Some("map"), Json::Array(pairs)) => {
                let decode = |entry| {
                    let Json::Array(parts) = entry else { return Err(unexpected("a pair", &entry)) };
                    let (key, value) = pair(parts)?;
                    Ok((Atom::decode(key)?, Atom::decode(value)?))
                };
                pairs.into_iter().map(decode).collect::<Result<_, _>>().map(Self::Map)
            }
            (_, content) => Atom::tagged(kind, content).map(Self::Atom),
        }
    }
}

impl Atom {
    /// Reads the JSON notation of an atom; the error says what is wrong with it.
    pub(super) fn decode(json: Json) -> Result<Self, String> {
        match json {
            Json::Bool(boolean) => Ok(Self::Boolean(boolean)),
            Json::String(string) => Ok(Self::String(string)),
            Json::Number(number) => match (number.as_i64(), number.is_u64(), number.as_f64()) {
                (Some(integer), _, _) => Ok(Self::Integer(integer)),
                (None, false, Some(real)) => Ok(Self::Real(real)),
                _ => Err(format!("{number} is beyond a 64-bit signed integer")),
            },
            Json::Array(parts) => {
                let (kind, content) = pair(parts)?;
                Self::tagged(kind, content)
            }
            other => Err(unexpected("a value", &other)),
        }
    }

    fn tagged(kind: Json, content: Json) -> Result<Self, String> {
        match (kind.as_str(), content) {
            (Some("uuid"), Json::String(text)) => parse_uuid(&text).map(Self::Uuid),
            (Some("named-uuid"), Json::String(name)) => Ok(Self::NamedUuid(name)),
            (_, content) => Err(unexpected("a value", &Json::Array(vec![kind, content]))),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Integer(_) => 0,
            Self::Real(_) => 1,
            Self::Boolean(_) => 2,
            Self::String(_) => 3,
            Self::Uuid(_) => 4,
            Self::NamedUuid(_) => 5,
        }
    }
}

/// Reads a UUID in the one form that OVSDB knows: 36 characters with hyphens.
pub(super) fn parse_uuid(text: &str) -> Result<Uuid, String> {
    text.parse::<uuid::fmt::Hyphenated>()
        .map(Uuid::from)
        .map_err(|_| unexpected("a UUID", &Json::String(text.to_owned())))
}

fn pair(parts: Vec<Json>) -> Result<(Json, Json), String> {
    <[Json; 2]>::try_from(parts)
        .map(|[first, second]| (first, second))
        .map_err(|parts| unexpected("a pair", &Json::Array(parts)))
}

/// Says that `found` is not what it should be, without repeating all of it.
pub(super) fn unexpected(expected: &str, found: &Json) -> String {
    format!("expected {expected}, found {}", shortened(&found.to_string()))
}

/// The text, cut to a length that fits an error message.
pub(super) fn shortened(text: &str) -> String {
    const LIMIT_CHARS: usize = 120;
    match text.char_indices().nth(LIMIT_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or(text)),
        None => text.to_owned(),
    }
}

// Reals have a total order here, so that atoms can be members of sets and keys of maps.
impl Ord for Atom {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (Self::Real(a), Self::Real(b)) => a.total_cmp(b),
            (Self::Boolean(a), Self::Boolean(b)) => a.cmp(b),
            (Self::String(a), Self::String(b)) => a.cmp(b),
            (Self::Uuid(a), Self::Uuid(b)) => a.cmp(b),
            (Self::NamedUuid(a), Self::NamedUuid(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Atom {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Atom {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Atom {}

impl Serialize for Atom {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Integer(integer) => serializer.serialize_i64(*integer),
            // JSON has no notation for the others, and serde_json would write null.
            Self::Real(real) if !real.is_finite() => Err(S::Error::custom(format!("{real} is not finite"))),
            Self::Real(real) => serializer.serialize_f64(*real),
            Self::Boolean(boolean) => serializer.serialize_bool(*boolean),
            Self::String(string) => serializer.serialize_str(string),
            Self::Uuid(uuid) => ("uuid", uuid.to_string()).serialize(serializer),
            Self::NamedUuid(name) => ("named-uuid", name).serialize(serializer),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Atom(atom) => atom.serialize(serializer),
            Self::Set(atoms) => ("set", atoms).serialize(serializer),
            Self::Map(pairs) => ("map", Pairs(pairs)).serialize(serializer),
        }
    }
}

/// A map in OVSDB's notation, an array of pairs.
struct Pairs<'a>(&'a BTreeMap<Atom, Atom>);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(Some(self.0.len()))?;
        for pair in self.0 {
            sequence.serialize_element(&pair)?;
        }
        sequence.end()
    }
}

/// The JSON notation.
impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match serde_json::to_string(self) {
            Ok(text) => formatter.write_str(&text),
            Err(_) => write!(formatter, "{self:?}"),
        }
    }
}

impl From<i64> for Atom {
    fn from(integer: i64) -> Self {
        Self::Integer(integer)
    }
}

impl From<u32> for Atom {
    fn from(integer: u32) -> Self {
        Self::Integer(i64::from(integer))
    }
}

impl From<u16> for Atom {
    fn from(integer: u16) -> Self {
        Self::Integer(i64::from(integer))
    }
}

impl From<i32> for Atom {
    fn from(integer: i32) -> Self {
        Self::Integer(i64::from(integer))
    }
}

impl From<f64> for Atom {
    fn from(real: f64) -> Self {
        Self::Real(real)
    }
}

impl From<bool> for Atom {
    fn from(boolean: bool) -> Self {
        Self::Boolean(boolean)
    }
}

impl From<&str> for Atom {
    fn from(string: &str) -> Self {
        Self::String(string.to_owned())
    }
}

impl From<String> for Atom {
    fn from(string: String) -> Self {
        Self::String(string)
    }
}

impl From<&String> for Atom {
    fn from(string: &String) -> Self {
        Self::String(string.clone())
    }
}

impl From<Uuid> for Atom {
    fn from(uuid: Uuid) -> Self {
        Self::Uuid(uuid)
    }
}

impl<A: Into<Atom>> From<A> for Value {
    fn from(atom: A) -> Self {
        Self::Atom(atom.into())
    }
}

impl<A: Into<Atom>> From<Option<A>> for Value {
    fn from(atom: Option<A>) -> Self {
        atom.map_or_else(Self::empty, |atom| Self::Atom(atom.into()))
    }
}

impl<A: Into<Atom>> From<Vec<A>> for Value {
    fn from(atoms: Vec<A>) -> Self {
        Self::set(atoms)
    }
}

impl<A: Into<Atom>> From<BTreeSet<A>> for Value {
    fn from(atoms: BTreeSet<A>) -> Self {
        Self::set(atoms)
    }
}

impl<A: Into<Atom>, const N: usize> From<[A; N]> for Value {
    fn from(atoms: [A; N]) -> Self {
        Self::set(atoms)
    }
}

impl<K: Into<Atom>, V: Into<Atom>> From<BTreeMap<K, V>> for Value {
    fn from(pairs: BTreeMap<K, V>) -> Self {
        Self::map(pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn atom() -> impl Strategy<Value = Atom> {
        prop_oneof![
            any::<i64>().prop_map(Atom::Integer),
            proptest::num::f64::NORMAL.prop_map(Atom::Real),
            any::<bool>().prop_map(Atom::Boolean),
            ".*".prop_map(Atom::String),
            any::<u128>().prop_map(|bits| Atom::Uuid(Uuid::from_u128(bits))),
            "[a-zA-Z_][a-zA-Z0-9_]*".prop_map(Atom::NamedUuid),
        ]
    }

    pub(crate) fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            atom().prop_map(Value::Atom),
            proptest::collection::btree_set(atom(), 0..8).prop_map(Value::Set),
            proptest::collection::btree_map(atom(), atom(), 0..8).prop_map(Value::Map),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in value()) {
            let text = serde_json::to_string(&value).unwrap();
            prop_assert_eq!(Value::decode(serde_json::from_str(&text).unwrap()).unwrap(), value);
        }

        #[test]
        fn mutated_notation_is_read_or_refused_without_panic(
            value in value(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut text = serde_json::to_vec(&value).unwrap();
            let at = at.index(text.len());
            text[at] = byte;
            if let Ok(json) = serde_json::from_slice::<Json>(&text)
                && let Err(message) = Value::decode(json)
            {
                prop_assert!(!message.is_empty());
            }
        }
    }

    #[test]
    fn notation_is_that_of_the_rfc() {
        let uuid = Uuid::from_u128(0x36bef046_7da7_43a5_905a_c17899216fcb);
        for (value, text) in [
            (Value::from("br0"), r#""br0""#),
            (Value::from(7), "7"),
            (Value::from(2.5), "2.5"),
            (Value::from(true), "true"),
            (Value::from(uuid), r#"["uuid","36bef046-7da7-43a5-905a-c17899216fcb"]"#),
            (Value::Atom(Atom::NamedUuid("row0".into())), r#"["named-uuid","row0"]"#),
            (Value::from(None::<i64>), r#"["set",[]]"#),
            (Value::from(vec![2, 1]), r#"["set",[1,2]]"#),
            (Value::map([("a", "b")]), r#"["map",[["a","b"]]]"#),
        ] {
            assert_eq!(value.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for text in [
            "null",
            "{}",
            "[]",
            r#"["set"]"#,
            r#"["set",1]"#,
            r#"["set",[["set",[]]]]"#,
            r#"["map",[["a"]]]"#,
            r#"["map",[1]]"#,
            r#"["uuid",1]"#,
            r#"["uuid","36bef046"]"#,
            r#"["uuid","{36bef046-7da7-43a5-905a-c17899216fcb}"]"#,
            r#"["bag",[]]"#,
            "9223372036854775808",
        ] {
            let decoded = Value::decode(serde_json::from_str(text).unwrap());
            assert!(decoded.is_err(), "{text} was read as {decoded:?}");
        }
    }

    #[test]
    fn a_real_that_is_not_finite_cannot_be_written() {
        assert!(serde_json::to_string(&Value::from(f64::NAN)).is_err());
        assert!(serde_json::to_string(&Value::set([f64::INFINITY])).is_err());
    }

    #[test]
    fn a_long_value_is_shortened_at_a_character() {
        assert_eq!(shortened(&"ä".repeat(200)).chars().count(), 121);
        assert_eq!(shortened("ä"), "ä");
    }
}
