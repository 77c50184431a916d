//! The program itself, as a runtime starts it: what it prints, how it exits, and how it takes an agent that is absent,
//! closes the connection, or answers nonsense. The listener in these tests speaks the real framing; what an agent does
//! with a request is tested elsewhere, with the real one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tenon_cni::{Error, Request, Response, Success, Verb, code, frame};

/// A call with the variables of an ordinary pod.
struct Call {
    command: Command,
    input: Vec<u8>,
}

impl Call {
    fn new(verb: &str, conf: &Value) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "c0ffee")
            .env("CNI_NETNS", "/run/netns/pod")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=p1")
            .env("CNI_PATH", "/opt/cni/bin");
        Self { command, input: conf.to_string().into_bytes() }
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    fn input(mut self, bytes: &[u8]) -> Self {
        self.input = bytes.to_vec();
        self
    }

    fn run(mut self) -> Output {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        // The plugin may answer before it has read everything; then the pipe is closed.
        let _ = child.stdin.take().unwrap().write_all(&self.input);
        child.wait_with_output().unwrap()
    }

    /// Runs the call and hands back the error that it printed.
    fn error(self) -> Value {
        let output = self.run();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(error["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{error}");
        error
    }
}

fn conf(socket: &Path) -> Value {
    json!({"cniVersion": "1.1.0", "name": "tenon", "type": "tenon", "agentSocket": socket,
        "prevResult": {}, "cni.dev/valid-attachments": []})
}

fn nowhere() -> PathBuf {
    PathBuf::from("/nonexistent/agent.sock")
}

fn code_of(error: &Value) -> u32 {
    u32::try_from(error["code"].as_u64().unwrap()).unwrap()
}

/// A socket on which one connection is served as the test wants.
struct Listener {
    socket: PathBuf,
    served: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Listener {
    fn serving(serve: impl FnOnce(UnixStream) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let served = thread::spawn(move || serve(listener.accept().unwrap().0));
        Self { socket, served, _directory: directory }
    }

    /// Answers a request, and checks it first.
    fn answering(check: impl FnOnce(&Request) + Send + 'static, response: Response) -> Self {
        Self::serving(move |mut stream| {
            check(&Request::decode(&receive(&mut stream)).unwrap());
            stream.write_all(&response.encode().unwrap()).unwrap();
        })
    }

    /// Reads a request and sends these bytes, whatever they are, before it closes the connection.
    fn sending(bytes: Vec<u8>) -> Self {
        Self::serving(move |mut stream| {
            receive(&mut stream);
            stream.write_all(&bytes).unwrap();
        })
    }

    fn error(self, verb: &str) -> Value {
        let error = Call::new(verb, &conf(&self.socket)).error();
        self.served.join().unwrap();
        error
    }
}

fn receive(stream: &mut UnixStream) -> Vec<u8> {
    let mut header = [0; frame::HEADER_BYTES];
    stream.read_exact(&mut header).unwrap();
    let mut body = vec![0; frame::body_length(header).unwrap()];
    stream.read_exact(&mut body).unwrap();
    body
}

#[test]
fn without_a_verb_it_says_what_it_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_tenon")).env_clear().output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty());
    let about = String::from_utf8(output.stderr).unwrap();
    assert!(about.starts_with("CNI plugin tenon v"), "{about}");
    assert!(about.ends_with("0.3.1, 0.4.0, 1.0.0, 1.1.0\n") && about.lines().count() == 1, "{about}");
}

#[test]
fn version_is_answered_without_an_agent() {
    for (input, version) in [
        (&br#"{"cniVersion":"0.4.0"}"#[..], "0.4.0"),
        (br#"{"cniVersion":"1.1.0"}"#, "1.1.0"),
        (br#"{"cniVersion":"9.0.0"}"#, "1.1.0"),
        (b"", "1.1.0"),
        (b"x", "1.1.0"),
    ] {
        let output = Call::new("VERSION", &json!({})).input(input).run();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let supported = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        assert_eq!(answer, json!({"cniVersion": version, "supportedVersions": supported}));
    }
}

/// A runtime that keeps its end of standard input open gets its answer all the same.
#[test]
fn version_does_not_wait_for_the_end_of_its_input() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tenon"))
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let held_open = child.stdin.take();
    let start = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(start.elapsed() < Duration::from_secs(10));
    drop(held_open);
}

#[test]
fn add_prints_the_result_in_the_configurations_version() {
    let success = Success::parse(json!({
        "interfaces": [{"name": "eth0", "mtu": 1450, "sandbox": "/run/netns/pod"}],
        "ips": [{"address": "172.11.0.5/22", "interface": 0}]
    }))
    .unwrap();
    for (version, ip_version, mtu) in
        [("0.4.0", json!("4"), Value::Null), ("1.1.0", Value::Null, json!(1450))]
    {
        let check = |request: &Request| {
            assert_eq!(request.arguments.verb, Verb::Add);
            assert_eq!(request.arguments.container_id, "c0ffee");
            assert_eq!(request.arguments.tenant(), "a");
            assert_eq!(request.conf.raw.fields()["foreign"], "kept");
        };
        let listener = Listener::answering(check, Response::Added(success.clone()));
        let mut conf = conf(&listener.socket);
        conf["cniVersion"] = json!(version);
        conf["foreign"] = json!("kept");
        let output = Call::new("ADD", &conf).run();
        listener.served.join().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["version"], ip_version);
        assert_eq!(result["interfaces"][0]["mtu"], mtu);
    }
}

#[test]
fn other_verbs_print_nothing_when_done() {
    for (name, verb) in
        [("DEL", Verb::Del), ("CHECK", Verb::Check), ("GC", Verb::Gc), ("STATUS", Verb::Status)]
    {
        let listener =
            Listener::answering(move |request| assert_eq!(request.arguments.verb, verb), Response::Done);
        let output = Call::new(name, &conf(&listener.socket)).run();
        listener.served.join().unwrap();
        assert!(
            output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
}

#[test]
fn the_agents_error_is_passed_on() {
    let response = Response::Failed(Error::try_again("no node subnet yet").with_details("wait"));
    let listener = Listener::answering(|_| {}, response);
    assert_eq!(
        listener.error("ADD"),
        json!({"cniVersion": "1.1.0", "code": 11, "msg": "no node subnet yet", "details": "wait"})
    );
}

/// DEL too: a plugin that pretends to have deleted leaves the pod's address and port behind for ever.
#[test]
fn an_absent_agent_makes_the_runtime_try_again() {
    let directory = tempfile::tempdir().unwrap();
    let abandoned = directory.path().join("agent.sock");
    drop(UnixListener::bind(&abandoned).unwrap());
    for socket in [nowhere(), abandoned] {
        for (verb, code) in [
            ("ADD", code::TRY_AGAIN),
            ("DEL", code::TRY_AGAIN),
            ("CHECK", code::TRY_AGAIN),
            ("GC", code::TRY_AGAIN),
            ("STATUS", code::NOT_AVAILABLE),
        ] {
            let error = Call::new(verb, &conf(&socket)).error();
            assert_eq!(code_of(&error), code, "{verb}: {error}");
            assert!(error["msg"].as_str().unwrap().contains(socket.to_str().unwrap()), "{error}");
            assert!(error["details"].as_str().unwrap().contains("start tenon-agent"), "{error}");
        }
    }
}

#[test]
fn an_agent_that_hangs_fails_the_health_check_in_seconds() {
    let (ended, end) = std::sync::mpsc::channel::<()>();
    let listener = Listener::serving(move |mut stream| {
        receive(&mut stream);
        let _ = end.recv();
    });
    let start = Instant::now();
    let error = Call::new("STATUS", &conf(&listener.socket)).error();
    assert_eq!(code_of(&error), code::NOT_AVAILABLE);
    assert!(error["msg"].as_str().unwrap().contains("did not answer in time"), "{error}");
    assert!((4..30).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    drop(ended);
    listener.served.join().unwrap();
}

/// The agent is restarted in the middle of a call: at once, within the header, within the body.
#[test]
fn an_agent_that_goes_away_makes_the_runtime_try_again() {
    let reply = Response::Added(Success::default()).encode().unwrap();
    for length in [0, 2, frame::HEADER_BYTES, reply.len() - 1] {
        let error = Listener::sending(reply[..length].to_vec()).error("ADD");
        assert_eq!(code_of(&error), code::TRY_AGAIN, "{error}");
        assert!(error["msg"].as_str().unwrap().contains("closed the connection"), "{error}");
    }
    let error = Listener::serving(drop).error("DEL");
    assert_eq!(code_of(&error), code::TRY_AGAIN, "{error}");
}

#[test]
fn nonsense_is_an_error_of_the_protocol() {
    let framed = |document: &str| frame::encode(document.as_bytes()).unwrap();
    let replies = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        framed(""),
        framed("null"),
        framed("{\"protocol\":1,\"result\":5}"),
        framed("{\"protocol\":1,\"result\":{},\"error\":{\"code\":1,\"msg\":\"\"}}"),
        Response::Done.encode().unwrap(),
    ];
    for reply in replies {
        let error = Listener::sending(reply.clone()).error("ADD");
        assert_eq!(code_of(&error), code::PROTOCOL, "{}: {error}", String::from_utf8_lossy(&reply));
    }
    let error = Listener::sending(Response::Added(Success::default()).encode().unwrap()).error("DEL");
    assert_eq!(code_of(&error), code::PROTOCOL, "{error}");
}

#[test]
fn an_agent_of_another_release_is_named_as_such() {
    let reply = frame::encode(b"{\"protocol\":7,\"outcome\":\"other\"}").unwrap();
    let error = Listener::sending(reply).error("ADD");
    assert_eq!(code_of(&error), code::PROTOCOL);
    assert!(error["details"].as_str().unwrap().contains("protocol 7, this program protocol 1"), "{error}");
}

/// What is wrong with the call itself is found without an agent.
#[test]
fn faults_of_the_call() {
    let good = conf(&nowhere());
    let with = |key: &str, value: Value| {
        let mut conf = good.clone();
        conf[key] = value;
        conf
    };
    let table = [
        (Call::new("ADD", &good).env("CNI_COMMAND", "add"), code::INVALID_ENVIRONMENT, "CNI_COMMAND"),
        (Call::new("ADD", &good).env("CNI_CONTAINERID", ""), code::INVALID_ENVIRONMENT, "CNI_CONTAINERID"),
        (Call::new("ADD", &good).env("CNI_NETNS", ""), code::INVALID_ENVIRONMENT, "CNI_NETNS"),
        (Call::new("DEL", &good).env("CNI_IFNAME", "a/b"), code::INVALID_ENVIRONMENT, "CNI_IFNAME"),
        (Call::new("ADD", &good).env("CNI_ARGS", "FOO=1"), code::INVALID_ENVIRONMENT, "CNI_ARGS"),
        (Call::new("GC", &good).env("CNI_PATH", ""), code::INVALID_ENVIRONMENT, "CNI_PATH"),
        (Call::new("ADD", &good).input(b""), code::DECODING_FAILURE, "not JSON"),
        (Call::new("ADD", &good).input(b"[]"), code::DECODING_FAILURE, "not a JSON object"),
        (Call::new("ADD", &good).input(&[b' '; 2_000_000]), code::INVALID_CONFIG, "longer than"),
        (Call::new("ADD", &with("name", json!(""))), code::INVALID_CONFIG, "name"),
        (Call::new("ADD", &with("mode", json!("ipvlan"))), code::INVALID_CONFIG, "ipvlan"),
        (
            Call::new("ADD", &with("bandwidth", json!({"ingressRate": -1}))),
            code::INVALID_CONFIG,
            "ingressRate: -1",
        ),
        (Call::new("ADD", &with("cniVersion", json!("0.2.0"))), code::INCOMPATIBLE_VERSION, "incompatible"),
        (Call::new("GC", &with("cniVersion", json!("1.0.0"))), code::INCOMPATIBLE_VERSION, "incompatible"),
        (Call::new("CHECK", &with("prevResult", json!(null))), code::INVALID_CONFIG, "prevResult"),
    ];
    for (call, code, message) in table {
        let error = call.error();
        assert_eq!(code_of(&error), code, "{error}");
        assert!(error["msg"].as_str().unwrap().contains(message), "{error}");
    }
}

#[test]
fn errors_are_in_the_configurations_version() {
    for (given, answered) in [("0.3.1", "0.3.1"), ("1.0.0", "1.0.0"), ("0.1.0", "1.1.0")] {
        let mut conf = conf(&nowhere());
        conf["cniVersion"] = json!(given);
        assert_eq!(Call::new("ADD", &conf).error()["cniVersion"], answered);
    }
}

#[test]
fn variables_must_be_text() {
    use std::os::unix::ffi::OsStrExt;
    let mut call = Call::new("ADD", &conf(&nowhere()));
    call.command.env("CNI_NETNS", std::ffi::OsStr::from_bytes(b"/run/\xff"));
    let error = call.error();
    assert_eq!(code_of(&error), code::INVALID_ENVIRONMENT);
    assert!(error["msg"].as_str().unwrap().starts_with("CNI_NETNS: "), "{error}");
}

/// An answer that nobody reads is no success, and no reason to crash.
#[test]
fn a_closed_standard_output_is_a_failure() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.env("CNI_COMMAND", "VERSION").stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.is_empty(), "{output:?}");
}
