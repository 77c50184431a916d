//! The task that owns the socket: it writes requests, hands answers to who waits for them, and answers echoes.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, watch};

use super::message::{
    HEADER_BYTES, Header, OFPT_ECHO_REQUEST, OFPT_ERROR, OFPT_HELLO, OFPT_PORT_STATUS, VERSION, echo_reply,
};
use super::wire::Reader;
use super::{DecodeError, Error, PortStatus, SwitchError};

/// How much is read from the socket at once.
const READ_BYTES: usize = 32 * 1024;
/// A switch that asks for echoes without reading the answers gets no more of them than this.
const MAX_ECHO_BYTES: usize = 64 * 1024;
/// Port changes that a slow subscriber may lag behind.
const PORT_CHANGES: usize = 256;

/// A message that answers a request.
pub(crate) struct Answer {
    pub(crate) header: Header,
    message: Vec<u8>,
}

impl Answer {
    /// What follows the header.
    pub(crate) fn body(&self) -> &[u8] {
        self.message.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// The switch's refusal, if the message is one.
    pub(crate) fn refusal(&self) -> Result<Option<SwitchError>, DecodeError> {
        if self.header.message_type != OFPT_ERROR {
            return Ok(None);
        }
        SwitchError::decode(Reader::new("error message", self.body())).map(Some)
    }
}

/// Who waits for the answers to which transaction ids.
#[derive(Default)]
struct Waiting {
    /// By the first of a range of ids: the last one, and where its answers go.
    ranges: BTreeMap<u32, (u32, mpsc::UnboundedSender<Answer>)>,
    last_xid: u32,
    ended: bool,
}

/// What the task and the handles of a connection share.
pub(crate) struct Shared {
    waiting: Mutex<Waiting>,
    port_changes: broadcast::Sender<PortStatus>,
    /// Why the connection has ended, once it has.
    end: watch::Sender<Option<Error>>,
}

impl Shared {
    pub(crate) fn new() -> Arc<Shared> {
        Arc::new(Shared {
            waiting: Mutex::default(),
            port_changes: broadcast::Sender::new(PORT_CHANGES),
            end: watch::Sender::new(None),
        })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Whoever panicked while holding the lock left a map that is still a map.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn port_changes(&self) -> broadcast::Receiver<PortStatus> {
        self.port_changes.subscribe()
    }

    /// Why the connection has ended, once it has.
    pub(crate) async fn ended(&self) -> Error {
        let mut end = self.end.subscribe();
        // The sender lives as long as self, so that waiting cannot fail.
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(Error::Closed),
            Err(_) => Error::Closed,
        }
    }

    /// Takes `count` transaction ids and waits for the answers to them.
    pub(crate) fn expect(self: &Arc<Self>, count: u32) -> Expectation {
        let (sender, answers) = mpsc::unbounded_channel();
        let mut waiting = self.waiting();
        // Id 0 is for messages that nobody asked for.
        let first = match waiting.last_xid.checked_add(count) {
            Some(_) => waiting.last_xid + 1,
            None => 1,
        };
        let last = first.saturating_add(count - 1);
        waiting.last_xid = last;
        if !waiting.ended {
            waiting.ranges.insert(first, (last, sender));
        }
        drop(waiting);
        Expectation { first, answers, shared: Arc::clone(self) }
    }

    fn answer(&self, answer: Answer) {
        let xid = answer.header.xid;
        let waiting = self.waiting();
        match waiting.ranges.range(..=xid).next_back() {
            // Who stopped waiting has taken its range out; a send fails only in the moment before.
            Some((_, (last, sender))) if xid <= *last => drop(sender.send(answer)),
            _ => {
                drop(waiting);
                tracing::debug!(
                    xid,
                    message_type = answer.header.message_type,
                    "unexpected OpenFlow message"
                );
            }
        }
    }

    fn end(&self, reason: Error) {
        let mut waiting = self.waiting();
        waiting.ended = true;
        waiting.ranges.clear();
        drop(waiting);
        self.end.send_replace(Some(reason));
    }
}

/// The answers to a range of transaction ids.
pub(crate) struct Expectation {
    /// The first id.
    pub(crate) first: u32,
    answers: mpsc::UnboundedReceiver<Answer>,
    shared: Arc<Shared>,
}

impl Expectation {
    /// The next answer, in the order of arrival.
    pub(crate) async fn next(&mut self) -> Result<Answer, Error> {
        match self.answers.recv().await {
            Some(answer) => Ok(answer),
            None => Err(self.shared.ended().await),
        }
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        self.shared.waiting().ranges.remove(&self.first);
    }
}

/// Runs the connection until it breaks or the last handle is gone.
pub(crate) async fn run(stream: UnixStream, requests: mpsc::Receiver<Vec<u8>>, shared: Arc<Shared>) {
    let mut transport =
        Transport { stream, shared, read: Vec::new(), out: Vec::new(), written: 0, echoes: Vec::new() };
    let reason = match transport.serve(requests).await {
        Ok(()) => Error::Closed,
        Err(reason) => reason,
    };
    transport.shared.end(reason);
}

struct Transport {
    stream: UnixStream,
    shared: Arc<Shared>,
    /// What has been read and is not yet a whole message.
    read: Vec<u8>,
    /// What is being written, and how much of it has been.
    out: Vec<u8>,
    written: usize,
    /// Answers to echoes, written when `out` is done.
    echoes: Vec<u8>,
}

impl Transport {
    /// Reading never waits for writing: the switch stops reading while it has many answers to write.
    async fn serve(&mut self, mut requests: mpsc::Receiver<Vec<u8>>) -> Result<(), Error> {
        loop {
            self.write()?;
            let writing = !self.out.is_empty();
            tokio::select! {
                ready = self.stream.readable() => {
                    ready.map_err(broken)?;
                    self.read()?;
                }
                ready = self.stream.writable(), if writing => ready.map_err(broken)?,
                request = requests.recv(), if !writing => match request {
                    Some(request) => self.out = request,
                    None => return Ok(()),
                },
            }
        }
    }

    /// Writes as much as the socket takes.
    fn write(&mut self) -> Result<(), Error> {
        loop {
            let rest = self.out.get(self.written..).unwrap_or_default();
            if rest.is_empty() {
                self.written = 0;
                self.out = std::mem::take(&mut self.echoes);
                if self.out.is_empty() {
                    return Ok(());
                }
                continue;
            }
            match self.stream.try_write(rest) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(broken(error)),
            }
        }
    }

    /// Reads what is there, once, and handles the messages that are complete by it.
    fn read(&mut self) -> Result<(), Error> {
        self.read.reserve(READ_BYTES);
        match self.stream.try_read_buf(&mut self.read) {
            Ok(0) => return Err(Error::Closed),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(broken(error)),
        }
        let mut done = 0;
        loop {
            let rest = self.read.get(done..).unwrap_or_default();
            let Some(header) = Header::peek(rest)? else { break };
            if header.version != VERSION {
                return Err(DecodeError::Version(header.version).into());
            }
            let Some(message) = rest.get(..header.length) else { break };
            let message = message.to_vec();
            done += header.length;
            self.handle(header, message)?;
        }
        self.read.drain(..done);
        Ok(())
    }

    fn handle(&mut self, header: Header, message: Vec<u8>) -> Result<(), Error> {
        let answer = Answer { header, message };
        match header.message_type {
            OFPT_ECHO_REQUEST => {
                if self.echoes.len() + header.length <= MAX_ECHO_BYTES {
                    self.echoes.extend(echo_reply(answer.message));
                }
            }
            OFPT_PORT_STATUS => {
                if let Some(status) = PortStatus::decode(answer.body())? {
                    // Without a subscriber nobody wants to know.
                    drop(self.shared.port_changes.send(status));
                }
            }
            OFPT_HELLO => {}
            _ => self.shared.answer(answer),
        }
        Ok(())
    }
}

fn broken(error: io::Error) -> Error {
    Error::Io(Arc::new(error))
}
