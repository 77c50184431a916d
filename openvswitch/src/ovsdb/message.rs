//! JSON-RPC 1.0 messages as OVSDB uses them (RFC 7047 section 4).

use super::value::{shortened, unexpected};
use super::{Error, Fault};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// A message from the server.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    /// The answer to the request with this id: its result, or the error in the server's words.
    Reply { id: u64, result: Result<Json, String> },
    /// `update`: changes of monitored rows.
    Update { updates: Json },
    /// `echo`: to be answered with the same id and params.
    Echo { id: Json, params: Json },
}

/// All members that any kind of message has.
#[derive(Deserialize)]
struct Members {
    method: Option<String>,
    #[serde(default)]
    params: Json,
    #[serde(default)]
    id: Json,
    #[serde(default)]
    result: Json,
    #[serde(default)]
    error: Json,
}

impl Message {
    /// Reads one message.
    pub(super) fn decode(text: &[u8], monitor_id: &str) -> Result<Self, Fault> {
        let members: Members = serde_json::from_slice(text).map_err(|error| {
            let text = String::from_utf8_lossy(text.get(..200).unwrap_or(text));
            Fault::Malformed(format!("{error} in {}", shortened(&text)))
        })?;
        let Members { method, params, id, result, error } = members;
        match method.as_deref() {
            None => {
                let id = id.as_u64().ok_or_else(|| Fault::Malformed(unexpected("the id of a reply", &id)))?;
                let result = match error {
                    Json::Null => Ok(result),
                    error => Err(describe(&error)),
                };
                Ok(Self::Reply { id, result })
            }
            Some("echo") => Ok(Self::Echo { id, params }),
            Some("update") => match params {
                Json::Array(params) => match <[Json; 2]>::try_from(params) {
                    Ok([id, updates]) if id.as_str() == Some(monitor_id) => Ok(Self::Update { updates }),
                    Ok([id, _]) => Err(Fault::Malformed(unexpected("the id of the monitor", &id))),
                    Err(params) => Err(Fault::Malformed(unexpected("an update", &Json::Array(params)))),
                },
                other => Err(Fault::Malformed(unexpected("an update", &other))),
            },
            // Locks, other kinds of monitors and the rest are answers to requests that are never made here.
            Some(method) => Err(Fault::Malformed(format!("the method {method:?}, which was not asked for"))),
        }
    }
}

/// A JSON-RPC `error` member in words: the RFC's `<error>` object, or whatever else was sent.
fn describe(error: &Json) -> String {
    let member = |name: &str| error.get(name).and_then(Json::as_str);
    match (error.as_str(), member("error"), member("details")) {
        (Some(text), _, _) => shortened(text),
        (None, Some(error), Some(details)) => format!("{error} ({details})"),
        (None, Some(error), None) => error.to_owned(),
        _ => shortened(&error.to_string()),
    }
}

/// A request to the server.
#[derive(Serialize)]
struct Request<'a, P> {
    method: &'a str,
    params: P,
    id: u64,
}

/// An answer to a request of the server.
#[derive(Serialize)]
struct Reply {
    id: Json,
    result: Json,
    error: Json,
}

/// A request as it goes over the socket.
pub(super) fn request(method: &str, params: impl Serialize, id: u64) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(&Request { method, params, id })
        .map_err(|error| Error::Unencodable { reason: error.to_string() })
}

/// The answer to an echo as it goes over the socket.
pub(super) fn echo_reply(id: Json, params: Json) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(&Reply { id, result: params, error: Json::Null })
        .map_err(|error| Error::Unencodable { reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn decode(text: &str) -> Result<Message, Fault> {
        Message::decode(text.as_bytes(), "tenants")
    }

    #[test]
    fn messages_are_told_apart() {
        assert_eq!(
            decode(r#"{"id":7,"result":[1],"error":null}"#).unwrap(),
            Message::Reply { id: 7, result: Ok(json!([1])) }
        );
        assert_eq!(
            decode(r#"{"id":7,"result":null,"error":{"error":"unknown database","details":"x"}}"#).unwrap(),
            Message::Reply { id: 7, result: Err("unknown database (x)".into()) }
        );
        assert_eq!(
            decode(r#"{"id":7,"result":null,"error":"canceled"}"#).unwrap(),
            Message::Reply { id: 7, result: Err("canceled".into()) }
        );
        assert_eq!(
            decode(r#"{"id":null,"method":"update","params":["tenants",{"Port":{}}]}"#).unwrap(),
            Message::Update { updates: json!({ "Port": {} }) }
        );
        assert_eq!(
            decode(r#"{"id":"echo","method":"echo","params":[]}"#).unwrap(),
            Message::Echo { id: json!("echo"), params: json!([]) }
        );
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for text in [
            "{}",
            "{",
            r#"{"id":"7","result":1}"#,
            r#"{"id":-1,"result":1}"#,
            r#"{"method":7}"#,
            r#"{"method":"update","params":["other",{}]}"#,
            r#"{"method":"update","params":["tenants"]}"#,
            r#"{"method":"update","params":{}}"#,
            r#"{"method":"update","method":"echo"}"#,
            r#"{"method":"monitor_canceled","params":["tenants"]}"#,
            "{\"method\":\"\u{0}\"}",
        ] {
            assert!(matches!(decode(text), Err(Fault::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn requests_and_replies_are_those_of_the_rfc() {
        let echo = request("echo", json!([]), 3).unwrap();
        assert_eq!(echo, br#"{"method":"echo","params":[],"id":3}"#);
        let reply = echo_reply(json!("echo"), json!([1])).unwrap();
        assert_eq!(reply, br#"{"id":"echo","result":[1],"error":null}"#);
    }

    proptest! {
        #[test]
        fn mutated_messages_are_read_or_refused_without_panic(
            at in any::<prop::sample::Index>(), bytes in proptest::collection::vec(any::<u8>(), 0..4),
        ) {
            let mut text = br#"{"id":7,"method":"update","params":["tenants",{"Port":{}}],"error":null}"#.to_vec();
            let at = at.index(text.len());
            text.splice(at..(at + 1), bytes);
            if let Err(fault) = Message::decode(&text, "tenants") {
                prop_assert!(matches!(fault, Fault::Malformed(_)));
            }
        }
    }
}
