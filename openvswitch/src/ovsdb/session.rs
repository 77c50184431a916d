//! The background task: connects, replicates, passes requests and replies, and connects again.

use super::framing::Framer;
use super::message::{self, Message};
use super::result::Outcome;
use super::state::{CallFault, Command, State};
use super::transaction::Expected;
use super::{Error, Fault, View};
use serde_json::Value as Json;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// The name of the one monitor that a connection has.
const MONITOR_ID: &str = "view";

/// How many requests may wait for the background task before callers wait.
const COMMANDS_QUEUED: usize = 64;

/// With more than this waiting to be written, no further request is taken on.
const OUTPUT_BYTES: usize = 1 << 20;

/// Keeps the client connected for as long as the task lives.
pub(super) async fn supervise(state: Arc<State>) {
    let settings = &state.settings;
    let mut delay = settings.reconnect_first;
    loop {
        let synced_at = run(&state).await;
        // A server that fails again at once after a good start is not pestered at the shortest delay.
        if synced_at.is_some_and(|instant| instant.elapsed() >= settings.reconnect_longest) {
            delay = settings.reconnect_first;
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(settings.reconnect_longest);
    }
}

/// One connection from its beginning to its end; returns since when it was in sync, if it came so far.
async fn run(state: &State) -> Option<Instant> {
    let endpoint = &state.settings.endpoint;
    let stream = match UnixStream::connect(endpoint.path()).await {
        Ok(stream) => stream,
        Err(error) => {
            debug!(%endpoint, %error, "cannot connect to the database");
            state.down(Arc::new(Fault::Connect(error)));
            return None;
        }
    };
    let (sender, mut commands) = mpsc::channel(COMMANDS_QUEUED);
    let mut session = Session {
        state,
        sender: Some(sender),
        synced_at: None,
        output: Output::default(),
        pending: HashMap::new(),
        echo_sent: false,
    };
    let fault = match session.exchange(stream, &mut commands).await {
        Ok(never) => match never {},
        Err(fault) => Arc::new(fault),
    };
    warn!(%endpoint, %fault, "lost the connection to the database");
    state.down(fault.clone());
    session.fail(&fault, &mut commands);
    session.synced_at
}

/// What a reply is awaited for.
enum Pending {
    Monitor,
    Echo,
    Transact { expected: Vec<Expected>, reply: oneshot::Sender<Result<Outcome, CallFault>> },
}

/// What is to be written, and how much of it has been.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    written: usize,
}

impl Output {
    fn unwritten(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    fn advance(&mut self, bytes: usize) {
        self.written += bytes;
        if self.written >= self.bytes.len() {
            self.bytes.clear();
            self.written = 0;
        }
    }
}

struct Session<'a> {
    state: &'a State,
    /// Handed out with the sync, so that no request comes before.
    sender: Option<mpsc::Sender<Command>>,
    synced_at: Option<Instant>,
    output: Output,
    pending: HashMap<u64, Pending>,
    echo_sent: bool,
}

impl Session<'_> {
    /// Reads and writes until something fails.
    async fn exchange(
        &mut self,
        mut stream: UnixStream,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<std::convert::Infallible, Fault> {
        let settings = &self.state.settings;
        let (mut reader, mut writer) = stream.split();
        let mut framer = Framer::new(settings.message_limit_bytes);
        let mut heard_at = Instant::now();
        let params = (&settings.database, MONITOR_ID, &settings.monitor);
        self.request("monitor", params, Pending::Monitor)?;
        loop {
            let unwritten = self.output.unwritten();
            let quiet_until =
                heard_at + if self.echo_sent { settings.dead_after } else { settings.echo_after };
            tokio::select! {
                read = reader.read_buf(framer.buffer()) => {
                    if read.map_err(Fault::Socket)? == 0 {
                        return Err(Fault::Closed { unfinished_bytes: framer.unfinished_bytes() });
                    }
                    heard_at = Instant::now();
                    self.echo_sent = false;
                    while let Some(text) = framer.next()? {
                        self.handle(Message::decode(text, MONITOR_ID)?)?;
                    }
                }
                written = writer.write(unwritten), if !unwritten.is_empty() => {
                    self.output.advance(written.map_err(Fault::Socket)?);
                }
                Some(command) = commands.recv(), if unwritten.len() < OUTPUT_BYTES => {
                    let Command { id, text, expected, reply } = command;
                    self.output.bytes.extend_from_slice(&text);
                    self.pending.insert(id, Pending::Transact { expected, reply });
                }
                () = tokio::time::sleep_until(quiet_until) => {
                    if heard_at.elapsed() >= settings.dead_after {
                        return Err(Fault::Silent(settings.dead_after));
                    }
                    self.request("echo", Json::Array(Vec::new()), Pending::Echo)?;
                    self.echo_sent = true;
                }
            }
        }
    }

    fn request(
        &mut self,
        method: &'static str,
        params: impl serde::Serialize,
        pending: Pending,
    ) -> Result<(), Fault> {
        let id = self.state.next_id();
        self.output.bytes.extend_from_slice(&message::request(method, params, id).map_err(unencodable)?);
        self.pending.insert(id, pending);
        Ok(())
    }

    fn handle(&mut self, message: Message) -> Result<(), Fault> {
        match message {
            Message::Reply { id, result } => match self.pending.remove(&id) {
                Some(Pending::Transact { expected, reply }) => self.answer(id, expected, reply, result),
                Some(Pending::Monitor) => self.sync(result.map_err(Fault::MonitorRefused)?),
                Some(Pending::Echo) => Ok(()),
                None => Err(Fault::Malformed(format!("a reply to request {id}, which was not made"))),
            },
            Message::Update { updates } if self.synced_at.is_some() => {
                let changes = self.state.view.borrow().changes(updates)?;
                self.state.updated(changes);
                Ok(())
            }
            Message::Update { .. } => Err(Fault::Malformed("an update before the initial state".to_owned())),
            Message::Echo { id, params } => {
                let reply = message::echo_reply(id, params).map_err(unencodable)?;
                self.output.bytes.extend_from_slice(&reply);
                Ok(())
            }
        }
    }

    fn answer(
        &mut self,
        id: u64,
        expected: Vec<Expected>,
        reply: oneshot::Sender<Result<Outcome, CallFault>>,
        result: Result<Json, String>,
    ) -> Result<(), Fault> {
        let answer = match result {
            Ok(json) => match Outcome::decode(&expected, json) {
                Ok(outcome) => Ok(outcome),
                Err(reason) => {
                    // Its caller is told with all others how the connection ended.
                    self.pending.insert(id, Pending::Transact { expected, reply });
                    return Err(Fault::Malformed(reason));
                }
            },
            Err(error) => Err(CallFault::Refused(error)),
        };
        // A caller that has gone away does not want its answer.
        let _ = reply.send(answer);
        Ok(())
    }

    fn sync(&mut self, initial: Json) -> Result<(), Fault> {
        let mut view = View::new(&self.state.settings.monitor);
        let changes = view.changes(initial)?;
        view.apply(&changes);
        self.synced_at = Some(Instant::now());
        info!(endpoint = %self.state.settings.endpoint, rows = changes.len(), "in sync with the database");
        if let Some(sender) = self.sender.take() {
            self.state.synced(view, sender);
        }
        Ok(())
    }

    /// Tells every caller that waits for a reply.
    fn fail(&mut self, fault: &Arc<Fault>, commands: &mut mpsc::Receiver<Command>) {
        commands.close();
        while let Ok(command) = commands.try_recv() {
            let _ = command.reply.send(Err(CallFault::Unsent(fault.clone())));
        }
        for pending in self.pending.drain().map(|(_, pending)| pending) {
            if let Pending::Transact { reply, .. } = pending {
                let _ = reply.send(Err(CallFault::Unanswered(fault.clone())));
            }
        }
    }
}

fn unencodable(error: Error) -> Fault {
    Fault::Malformed(error.to_string())
}
