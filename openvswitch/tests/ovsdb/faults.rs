//! A peer that breaks the protocol in every way: the client says what was wrong, connects again, and its view
//! is never half changed.

use crate::switch::{DATABASE, SOON};
use openvswitch::ovsdb::{Client, Columns, Condition, Error, Event, Fault, Monitor, Settings, Transaction};
use serde_json::{Value as Json, json};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

const ROW: &str = "36bef046-7da7-43a5-905a-c17899216fcb";
const OTHER_ROW: &str = "00000000-0000-0000-0000-000000000001";
const LIMIT_BYTES: usize = 1 << 20;

struct Peer {
    listener: UnixListener,
    directory: TempDir,
}

struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Peer {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("tenon-peer-").tempdir().unwrap();
        Self { listener: UnixListener::bind(directory.path().join("db.sock")).unwrap(), directory }
    }

    fn settings(&self) -> Settings {
        let endpoint = format!("unix:{}", self.directory.path().join("db.sock").display()).parse().unwrap();
        let mut settings = Settings::new(endpoint, DATABASE, Monitor::new().table("Port", ["name"]));
        settings.message_limit_bytes = LIMIT_BYTES;
        settings.reconnect_first = Duration::from_millis(1);
        settings.reconnect_longest = Duration::from_millis(5);
        settings
    }

    async fn accept(&self) -> Connection {
        let (stream, _) = tokio::time::timeout(SOON, self.listener.accept()).await.unwrap().unwrap();
        Connection { stream, received: Vec::new() }
    }

    /// Accepts a connection and answers its monitor request with one port.
    async fn accept_and_sync(&self) -> Connection {
        let mut connection = self.accept().await;
        let request = connection.receive().await;
        assert_eq!(request["method"], "monitor");
        assert_eq!(request["params"], json!([DATABASE, "view", { "Port": { "columns": ["name"] } }]));
        let initial = json!({ "Port": { ROW: { "new": { "name": "p1" } } } });
        connection.send(&json!({ "id": request["id"], "result": initial, "error": null }).to_string()).await;
        connection
    }
}

impl Connection {
    async fn receive(&mut self) -> Json {
        loop {
            let mut messages = serde_json::Deserializer::from_slice(&self.received).into_iter();
            if let Some(Ok(message)) = messages.next() {
                self.received.drain(..messages.byte_offset());
                return message;
            }
            let read = tokio::time::timeout(SOON, self.stream.read_buf(&mut self.received)).await;
            assert_ne!(read.unwrap().unwrap(), 0, "the client went away");
        }
    }

    async fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes()).await;
    }

    /// Sends as much of this as the client takes before it goes away.
    async fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// The client closes the connection.
    async fn closed(mut self) {
        let closed =
            async { while self.stream.read_buf(&mut self.received).await.is_ok_and(|read| read > 0) {} };
        tokio::time::timeout(SOON, closed).await.unwrap();
    }
}

async fn next(changes: &mut openvswitch::ovsdb::Changes) -> Event {
    tokio::time::timeout(SOON, changes.next()).await.unwrap().unwrap()
}

fn update(monitor: &str, updates: &Json) -> Vec<u8> {
    json!({ "id": null, "method": "update", "params": [monitor, updates] }).to_string().into_bytes()
}

#[tokio::test]
async fn every_malformed_message_ends_in_a_new_connection_and_an_unharmed_view() {
    let good = json!({ "new": { "name": "p2" } });
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"garbage".to_vec(), "where a message should begin"),
        (b"\0\xff\xfe".to_vec(), "where a message should begin"),
        (b"{\"id\":1,}".to_vec(), "trailing comma"),
        (b"{\"method\":\"\xff\xfe\"}".to_vec(), "invalid unicode"),
        (b"{}".to_vec(), "the id of a reply"),
        (b"[]".to_vec(), "where a message should begin"),
        (br#"{"id":4711,"result":[],"error":null}"#.to_vec(), "request 4711, which was not made"),
        (br#"{"id":"x","result":[],"error":null}"#.to_vec(), "the id of a reply"),
        (br#"{"id":null,"method":"stolen","params":["lock"]}"#.to_vec(), "stolen"),
        (format!("{{\"id\":{}", "[".repeat(1 << 16)).into_bytes(), "nested more than"),
        (format!("{{\"id\":\"{}", "x".repeat(2 * LIMIT_BYTES)).into_bytes(), "more than 1048576 bytes"),
        (update("other", &json!({})), "the id of the monitor"),
        (update("view", &json!([])), "table updates"),
        (update("view", &json!({ "Bridge": {} })), "Bridge, which is not monitored"),
        (update("view", &json!({ "Port": { OTHER_ROW: good, "x": good } })), "a UUID"),
        (
            update("view", &json!({ "Port": { OTHER_ROW: good, ROW: { "new": { "name": null } } } })),
            "column name of table Port",
        ),
        (update("view", &json!({ "Port": { OTHER_ROW: good, ROW: good } })), "was there already"),
        (update("view", &json!({ "Port": { OTHER_ROW: { "old": { "name": "p2" } } } })), "was not there"),
    ];
    let peer = Peer::new();
    let client = Client::start(peer.settings());
    let mut changes = client.changes();
    for (bytes, expected) in cases {
        let shown = String::from_utf8_lossy(bytes.get(..60).unwrap_or(&bytes)).into_owned();
        let mut connection = peer.accept_and_sync().await;
        assert!(matches!(next(&mut changes).await, Event::Synced), "{shown}");
        let view = client.view();
        assert_eq!(view.rows("Port").count(), 1);
        connection.send_bytes(&bytes).await;
        connection.closed().await;
        let Event::Disconnected(fault) = next(&mut changes).await else { panic!("{shown}") };
        assert!(fault.to_string().contains(expected), "{shown}: {fault}");
        assert_eq!(client.view(), view, "{shown}");
    }
}

#[tokio::test]
async fn a_malformed_initial_state_is_refused() {
    let peer = Peer::new();
    for (result, expected) in [
        (json!(7), "table updates"),
        (json!({ "Port": { ROW: { "old": {} } } }), "was not there"),
        (json!({ "Nowhere": {} }), "Nowhere"),
    ] {
        let (client, ()) = tokio::join!(Client::connect(peer.settings()), async {
            let mut connection = peer.accept().await;
            let id = connection.receive().await["id"].clone();
            connection.send(&json!({ "id": id, "result": result, "error": null }).to_string()).await;
            connection.closed().await;
        });
        let error = client.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn an_update_before_the_initial_state_is_refused() {
    let peer = Peer::new();
    let (client, ()) = tokio::join!(Client::connect(peer.settings()), async {
        let mut connection = peer.accept().await;
        connection.receive().await;
        connection.send_bytes(&update("view", &json!({}))).await;
        connection.closed().await;
    });
    assert!(client.unwrap_err().to_string().contains("before the initial state"));
}

#[tokio::test]
async fn a_connection_closed_in_the_middle_of_a_reply_interrupts_the_transaction() {
    let peer = Peer::new();
    let (client, mut connection) = tokio::join!(Client::connect(peer.settings()), peer.accept_and_sync());
    let client = client.unwrap();
    let mut transaction = Transaction::new(DATABASE);
    transaction.update("Port", [Condition::equal("name", "p1")], Columns::new().set("tag", 1));
    let (result, sent_bytes) = tokio::join!(client.transact(&transaction), async {
        let id = connection.receive().await["id"].clone();
        let reply = json!({ "id": id, "result": [{ "count": 1 }], "error": null }).to_string();
        let part = &reply[..reply.len() - 5];
        connection.send(part).await;
        drop(connection);
        part.len()
    });
    let error = result.unwrap_err();
    let Error::Interrupted { cause, .. } = &error else { panic!("{error}") };
    let Fault::Closed { unfinished_bytes } = cause.as_ref() else { panic!("{cause}") };
    assert_eq!(*unfinished_bytes, sent_bytes);
    let error = client.transact(&transaction).await.unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }), "{error}");
}

#[tokio::test]
async fn a_reply_that_does_not_fit_the_transaction_interrupts_it() {
    let peer = Peer::new();
    let client = Client::start(peer.settings());
    let mut transaction = Transaction::new(DATABASE);
    transaction.insert("Port", Columns::new());
    for result in [json!(null), json!([]), json!([{ "uuid": 1 }]), json!([{}, {}, {}]), json!({ "uuid": [] })]
    {
        let mut connection = peer.accept_and_sync().await;
        client.wait_connected(SOON).await.unwrap();
        let (outcome, ()) = tokio::join!(client.transact(&transaction), async {
            let id = connection.receive().await["id"].clone();
            connection.send(&json!({ "id": id, "result": result, "error": null }).to_string()).await;
            connection.closed().await;
        });
        assert!(matches!(outcome, Err(Error::Interrupted { .. })), "{outcome:?}");
    }
}

#[tokio::test]
async fn pieces_of_messages_and_many_at_once_are_read() {
    let peer = Peer::new();
    let (client, mut connection) = tokio::join!(Client::connect(peer.settings()), peer.accept_and_sync());
    let client = client.unwrap();
    let mut changes = client.changes();
    let rename = |name: &str| {
        let row = json!({ ROW: { "old": { "name": "" }, "new": { "name": name } } });
        update("view", &json!({ "Port": row }))
    };
    for byte in rename("ü{\"") {
        connection.send_bytes(&[byte]).await;
        tokio::task::yield_now().await;
    }
    let many: Vec<u8> = (0..100).flat_map(|index| rename(&index.to_string())).collect();
    connection.send_bytes(&many).await;
    for _ in 0..=100 {
        assert!(matches!(next(&mut changes).await, Event::Updated(_)));
    }
    assert!(client.view().find("Port", "name", "99").is_some());
}

#[tokio::test]
async fn an_echo_is_answered_with_its_id_and_params() {
    let peer = Peer::new();
    let (_client, mut connection) = tokio::join!(Client::connect(peer.settings()), peer.accept_and_sync());
    connection.send(r#"{"id":"echo","method":"echo","params":["a",1]}"#).await;
    assert_eq!(connection.receive().await, json!({ "id": "echo", "result": ["a", 1], "error": null }));
}

#[tokio::test]
async fn a_silent_server_is_asked_for_an_echo_and_then_given_up() {
    let peer = Peer::new();
    let mut settings = peer.settings();
    settings.echo_after = Duration::from_millis(50);
    settings.dead_after = Duration::from_millis(150);
    let (client, mut connection) = tokio::join!(Client::connect(settings), peer.accept_and_sync());
    let client = client.unwrap();
    let mut changes = client.changes();
    let echo = connection.receive().await;
    assert_eq!((&echo["method"], &echo["params"]), (&json!("echo"), &json!([])));
    connection.send(&json!({ "id": echo["id"], "result": [], "error": null }).to_string()).await;
    let answered = Instant::now();
    assert_eq!(connection.receive().await["method"], "echo");
    let Event::Disconnected(fault) = next(&mut changes).await else { panic!("no loss of the connection") };
    assert!(matches!(fault.as_ref(), Fault::Silent(_)), "{fault}");
    assert!(answered.elapsed() >= Duration::from_millis(150));
    connection.closed().await;
}

#[tokio::test]
async fn a_server_that_never_does_better_is_tried_less_and_less() {
    let peer = Peer::new();
    let mut settings = peer.settings();
    settings.reconnect_first = Duration::from_millis(50);
    settings.reconnect_longest = Duration::from_secs(2);
    let _client = Client::start(settings);
    let mut attempts = 0;
    let failing = async {
        loop {
            peer.accept_and_sync().await.send("garbage").await;
            attempts += 1;
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(700), failing).await.is_err());
    // At 0, 50, 150 and 350 ms; the next would come at 750 ms.
    assert!((3..=4).contains(&attempts), "{attempts} attempts");
}

#[tokio::test]
async fn a_client_that_is_dropped_closes_its_connection() {
    let peer = Peer::new();
    let (client, connection) = tokio::join!(Client::connect(peer.settings()), peer.accept_and_sync());
    let client = client.unwrap();
    let (clone, mut changes) = (client.clone(), client.changes());
    drop(client);
    assert!(clone.connected());
    drop(clone);
    connection.closed().await;
    assert!(changes.next().await.is_none());
}
