//! A connection to one bridge, and the requests that can be made over it.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc};

use super::message::{
    self, BundleControl, HEADER_BYTES, Header, OFPT_BARRIER_REPLY, OFPT_BARRIER_REQUEST, OFPT_BUNDLE_CONTROL,
    OFPT_ECHO_REPLY, OFPT_ECHO_REQUEST, OFPT_ERROR, OFPT_FEATURES_REPLY, OFPT_FEATURES_REQUEST, OFPT_HELLO,
    OFPT_MULTIPART_REPLY,
};
use super::transport::{self, Answer, Expectation, Shared};
use super::wire::{Reader, Writer};
use super::{DecodeError, Error, Features, FlowMod, FlowStats, MeterMod, Port, PortStatus, SwitchError};

/// How long an answer is waited for, unless [`Connection::with_deadline`] says otherwise.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Requests that wait for the socket before another one has to wait to join them.
const QUEUED_REQUESTS: usize = 64;
/// What a flow mod in a bundle takes at a guess, to size the buffer.
const MOD_BYTES: usize = 192;

/// A connection to one bridge. Clones share it, and any number of requests can be under way at once; it ends when
/// the last clone is dropped.
///
/// A request whose future is dropped is given up, though the switch may still carry it out.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Vec<u8>>,
    deadline: Duration,
}

impl Connection {
    /// Connects to the management socket of a bridge, `<rundir>/<bridge>.mgmt`, and agrees on OpenFlow 1.4. Echo
    /// requests are answered from then on by a task of the current tokio runtime.
    ///
    /// # Errors
    /// [`Error::Connect`] when nobody listens there, [`Error::Version`] when the bridge has OpenFlow 1.4 switched
    /// off, and what a broken connection gives.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Connection, Error> {
        let path = path.as_ref();
        let mut stream = UnixStream::connect(path)
            .await
            .map_err(|source| Error::Connect { path: path.to_owned(), source: Arc::new(source) })?;
        within(REQUEST_DEADLINE, "hello", shake_hands(&mut stream)).await?;
        let shared = Shared::new();
        let (requests, queue) = mpsc::channel(QUEUED_REQUESTS);
        tokio::spawn(transport::run(stream, queue, Arc::clone(&shared)));
        Ok(Connection { shared, requests, deadline: REQUEST_DEADLINE })
    }

    /// This connection, with requests that wait this long for their answer.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Connection {
        Connection { deadline, ..self }
    }

    /// Carries out all of the changes at one moment, in the order given, or none of them (OpenFlow 1.4.1 §6.8). No
    /// packet sees some of them without the others. Counters of a flow that is replaced go on.
    ///
    /// A future that is dropped before it is done has changed nothing or everything.
    ///
    /// # Errors
    /// After [`Error::EncodeMod`], [`Error::RefusedMod`] and [`Error::Refused`] nothing has changed. After any other
    /// error (the connection broke, no answer in time) it is not known whether the changes have been made; read the
    /// flows back.
    pub async fn flow_mods_atomically(&self, mods: &[FlowMod]) -> Result<(), Error> {
        if mods.is_empty() {
            return Ok(());
        }
        within(self.deadline, "bundle", self.bundle(mods)).await
    }

    /// The commit has to wait until every mod is known to be in the bundle: the switch leaves one out that it cannot
    /// read, says so, and would commit the rest.
    async fn bundle(&self, mods: &[FlowMod]) -> Result<(), Error> {
        // Ids, in order: open, one for each mod, barrier, commit or discard.
        let count = u32::try_from(mods.len()).unwrap_or(u32::MAX - 3);
        let mut expected = self.shared.expect(count.saturating_add(3));
        let bundle = expected.first;
        let index =
            |xid: u32| xid.checked_sub(bundle + 1).filter(|index| *index < count).map(|index| index as usize);

        let mut out = Writer::with_capacity(mods.len() * MOD_BYTES);
        message::bundle_control(&mut out, bundle, bundle, BundleControl::Open);
        let mut xid = bundle;
        for (index, flow_mod) in mods.iter().enumerate() {
            xid += 1;
            message::bundle_add(&mut out, xid, bundle, flow_mod)
                .map_err(|error| Error::EncodeMod { index, error })?;
        }
        message::empty_message(&mut out, OFPT_BARRIER_REQUEST, xid + 1);
        self.send(out).await?;

        let mut refused = None;
        loop {
            let answer = expected.next().await?;
            match answer.refusal()? {
                // The first refusal is the cause of those that follow.
                Some(error) => refused = refused.or(Some((answer.header.xid, error))),
                None if answer.header.message_type == OFPT_BARRIER_REPLY => break,
                None => bundle_reply(&answer, BundleControl::Open)?,
            }
        }
        let control = if refused.is_some() { BundleControl::Discard } else { BundleControl::Commit };
        let mut out = Writer::default();
        message::bundle_control(&mut out, xid + 2, bundle, control);
        self.send(out).await?;
        loop {
            let answer = expected.next().await?;
            match answer.refusal()? {
                Some(error) => {
                    refused = refused.or(Some((answer.header.xid, error)));
                    if answer.header.xid == xid + 2 {
                        break;
                    }
                }
                None => {
                    bundle_reply(&answer, control)?;
                    break;
                }
            }
        }
        match refused {
            None => Ok(()),
            Some((xid, error)) => Err(match index(xid) {
                Some(index) => Error::RefusedMod { index, error },
                None => Error::Refused { request: "bundle", error },
            }),
        }
    }

    /// Waits until the switch has carried out everything that was sent before.
    ///
    /// # Errors
    /// What a broken connection or a silent switch gives.
    pub async fn barrier(&self) -> Result<(), Error> {
        self.ask_empty("barrier request", OFPT_BARRIER_REQUEST, OFPT_BARRIER_REPLY).await.map(drop)
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// What a broken connection or a silent switch gives.
    pub async fn echo(&self) -> Result<(), Error> {
        self.ask_empty("echo request", OFPT_ECHO_REQUEST, OFPT_ECHO_REPLY).await.map(drop)
    }

    /// What the switch says about itself.
    ///
    /// # Errors
    /// What a broken connection or a silent switch gives.
    pub async fn features(&self) -> Result<Features, Error> {
        let answer = self.ask_empty("features request", OFPT_FEATURES_REQUEST, OFPT_FEATURES_REPLY).await?;
        Ok(Features::decode(answer.body())?)
    }

    /// The flows of one table, or of all, whose cookie has, in the bits of `cookie_mask`, those of `cookie`; a mask of
    /// 0 is for any cookie. What the switch hides (its in-band and fail-open flows) is not among them.
    ///
    /// # Errors
    /// What a broken connection or a silent switch gives.
    pub async fn flow_stats(
        &self,
        table: Option<u8>,
        cookie: u64,
        cookie_mask: u64,
    ) -> Result<Vec<FlowStats>, Error> {
        const REQUEST: &str = "flow statistics request";
        let mut expected = self.shared.expect(1);
        let mut out = Writer::default();
        message::flow_stats_request(&mut out, expected.first, table, cookie, cookie_mask)?;
        let mut flows = Vec::new();
        within(self.deadline, REQUEST, async {
            self.send(out).await?;
            while message::flow_stats_reply(
                expect_type(&mut expected, REQUEST, OFPT_MULTIPART_REPLY).await?.body(),
                &mut flows,
            )? {}
            Ok(())
        })
        .await?;
        Ok(flows)
    }

    /// The ports of the bridge, with its own ([`super::PortNo::LOCAL`]).
    ///
    /// # Errors
    /// What a broken connection or a silent switch gives.
    pub async fn port_desc(&self) -> Result<Vec<Port>, Error> {
        const REQUEST: &str = "port description request";
        let mut expected = self.shared.expect(1);
        let mut out = Writer::default();
        message::port_desc_request(&mut out, expected.first)?;
        let mut ports = Vec::new();
        within(self.deadline, REQUEST, async {
            self.send(out).await?;
            while message::port_desc_reply(
                expect_type(&mut expected, REQUEST, OFPT_MULTIPART_REPLY).await?.body(),
                &mut ports,
            )? {}
            Ok(())
        })
        .await?;
        Ok(ports)
    }

    /// Changes a meter. Meters cannot be part of a bundle: make one before the flows that go through it.
    ///
    /// # Errors
    /// [`Error::Refused`] when the switch cannot do it, and what a broken connection or a silent switch gives.
    pub async fn meter_mod(&self, meter_mod: &MeterMod) -> Result<(), Error> {
        let mut expected = self.shared.expect(2);
        let mut out = Writer::default();
        message::meter_mod(&mut out, expected.first, meter_mod)?;
        self.carry_out("meter mod", out, &mut expected).await
    }

    /// Port changes from now on. A subscriber that is too slow loses the oldest, and is told.
    ///
    /// # Errors
    /// What a broken connection or a silent switch gives.
    pub async fn port_changes(&self) -> Result<broadcast::Receiver<PortStatus>, Error> {
        let changes = self.shared.port_changes();
        let mut expected = self.shared.expect(2);
        let mut out = Writer::default();
        message::port_changes_on(&mut out, expected.first)?;
        self.carry_out("port change subscription", out, &mut expected).await?;
        Ok(changes)
    }

    /// Waits until the connection has ended, and says why.
    pub async fn closed(&self) -> Error {
        self.shared.ended().await
    }

    /// Sends a request without a body and waits for the answer.
    async fn ask_empty(&self, request: &'static str, ask: u8, answer: u8) -> Result<Answer, Error> {
        let mut expected = self.shared.expect(1);
        let mut out = Writer::default();
        message::empty_message(&mut out, ask, expected.first);
        within(self.deadline, request, async {
            self.send(out).await?;
            expect_type(&mut expected, request, answer).await
        })
        .await
    }

    /// Sends messages whose success has no answer of its own, with a barrier behind them, and waits for that. The
    /// barrier takes the second of two expected ids.
    async fn carry_out(
        &self,
        request: &'static str,
        mut out: Writer,
        expected: &mut Expectation,
    ) -> Result<(), Error> {
        message::empty_message(&mut out, OFPT_BARRIER_REQUEST, expected.first + 1);
        within(self.deadline, request, async {
            self.send(out).await?;
            expect_type(expected, request, OFPT_BARRIER_REPLY).await.map(drop)
        })
        .await
    }

    async fn send(&self, out: Writer) -> Result<(), Error> {
        if self.requests.send(out.into_bytes()).await.is_err() {
            return Err(self.shared.ended().await);
        }
        Ok(())
    }
}

/// Bounds the time that a request takes.
async fn within<T>(
    after: Duration,
    request: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(after, work).await.unwrap_or(Err(Error::Timeout { request, after }))
}

/// The next answer, which has to be of this type.
async fn expect_type(
    expected: &mut Expectation,
    request: &'static str,
    answer_type: u8,
) -> Result<Answer, Error> {
    let answer = expected.next().await?;
    if let Some(error) = answer.refusal()? {
        return Err(Error::Refused { request, error });
    }
    let message_type = answer.header.message_type;
    if message_type != answer_type {
        return Err(DecodeError::UnexpectedType { request, message_type, subtype: 0 }.into());
    }
    Ok(answer)
}

/// Checks that the answer is that to the bundle's step.
fn bundle_reply(answer: &Answer, control: BundleControl) -> Result<(), DecodeError> {
    let message_type = answer.header.message_type;
    let mut body = Reader::new("bundle control message", answer.body());
    body.skip(4)?; // the bundle
    let subtype = body.u16()?;
    if message_type != OFPT_BUNDLE_CONTROL || subtype != control.reply() {
        return Err(DecodeError::UnexpectedType { request: "bundle", message_type, subtype });
    }
    Ok(())
}

/// Exchanges hellos, and nothing beyond them.
async fn shake_hands(stream: &mut UnixStream) -> Result<(), Error> {
    let broken = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::Closed,
        _ => Error::Io(Arc::new(error)),
    };
    let mut out = Writer::default();
    message::hello(&mut out);
    stream.write_all(&out.into_bytes()).await.map_err(broken)?;

    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await.map_err(broken)?;
    let Some(header) = Header::peek(&header)? else { return Err(Error::Closed) };
    let mut body = vec![0; header.length - HEADER_BYTES];
    stream.read_exact(&mut body).await.map_err(broken)?;
    match header.message_type {
        OFPT_HELLO if message::hello_accepts_us(header.version, &body)? => Ok(()),
        OFPT_HELLO => Err(Error::Version { offered: header.version }),
        OFPT_ERROR => Err(Error::Refused {
            request: "hello",
            error: SwitchError::decode(Reader::new("error message", &body))?,
        }),
        message_type => {
            Err(DecodeError::UnexpectedType { request: "hello", message_type, subtype: 0 }.into())
        }
    }
}
