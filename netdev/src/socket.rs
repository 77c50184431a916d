//! Netlink sockets: requests, acknowledgements and dumps (RFC 3549, the kernel's `Documentation/userspace-api/netlink`).

use std::fmt::Display;
use std::io;
use std::sync::{Mutex, PoisonError};

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NLMSG_ALIGNTO, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::SocketAddr;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::error::{Error, Result};
use crate::netns::NetNs;

/// The kernel answers while the request is sent, so an answer that is not there by then is lost.
const RECEIVE_DEADLINE_SECONDS: i64 = 5;

/// The kernel fills dumps into pieces of at most this size, and into smaller ones if less room was offered before.
const BUFFER_BYTES: usize = 32 * 1024;

/// How often a read is repeated that was cut short, or during which what it reads changed (NLM_F_DUMP_INTR).
const READ_TRIES: u32 = 16;

/// `NLMSGERR_ATTR_MSG` of linux/netlink.h: the kernel's words about an error.
const EXTENDED_ACK_MESSAGE: u16 = 1;

/// A handle on the links, addresses, routes and neighbours of one network namespace (rtnetlink(7)).
///
/// It stays in the namespace where it was opened, whichever thread uses it. Threads may share it; their requests
/// then run one after the other. Deleting a link takes the kernel some 20 ms: a handle of one's own for deletions
/// keeps that off everyone else's path.
#[derive(Debug)]
pub struct Netlink {
    socket: Mutex<Socket>,
}

impl Netlink {
    /// Opens a handle on the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let socket = Socket::open(netlink_sys::protocols::NETLINK_ROUTE)
            .map_err(|failure| failure.during("open", &"a netlink socket"))?;
        Ok(Self { socket: Mutex::new(socket) })
    }

    /// Opens a handle on another network namespace; no thread has to be in it to use the handle.
    pub fn open_in(netns: &NetNs) -> Result<Self> {
        netns.run(Self::open)?
    }

    /// Asks for a change and waits for its acknowledgement.
    pub(crate) fn change(
        &self,
        operation: &'static str,
        object: &dyn Display,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<()> {
        self.lock()
            .change([(message, flags | NLM_F_ACK)])
            .map_err(|failure| failure.during(operation, object))
    }

    /// Asks for one object, or for a change with NLM_F_ECHO, and returns what the kernel sent, decoded.
    pub(crate) fn request<T>(
        &self,
        operation: &'static str,
        object: &dyn Display,
        message: RouteNetlinkMessage,
        flags: u16,
        decode: impl FnMut(&[u8]) -> Decoded<T>,
    ) -> Result<Option<T>> {
        self.lock().request(message, flags, decode).map_err(|failure| failure.during(operation, object))
    }

    /// Lists objects; those for which `decode` returns `None` are left out.
    pub(crate) fn dump<T>(
        &self,
        operation: &'static str,
        object: &dyn Display,
        message: RouteNetlinkMessage,
        decode: impl FnMut(&[u8]) -> Decoded<T>,
    ) -> Result<Vec<T>> {
        self.lock().dump(message, decode).map_err(|failure| failure.during(operation, object))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Socket> {
        // A panic elsewhere leaves at most unread answers, which the next request skips by their sequence number.
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a decoder makes of a message's body: an object, nothing of interest, or an error.
pub(crate) type Decoded<T> = std::result::Result<Option<T>, DecodeError>;

/// Why an exchange failed; [`Failure::during`] adds what it was for.
#[derive(Debug)]
pub(crate) enum Failure {
    Socket { step: &'static str, source: io::Error },
    Refused { errno: Errno, message: String },
    Interrupted { tries: u32 },
    Malformed(String),
}

impl Failure {
    pub(crate) fn during(self, operation: &'static str, object: &dyn Display) -> Error {
        let object = object.to_string();
        match self {
            Self::Socket { step, source } => Error::Socket { operation, object, step, source },
            Self::Refused { errno, message } => Error::Refused { operation, object, errno, message },
            Self::Interrupted { tries } => Error::Interrupted { operation, object, tries },
            Self::Malformed(reason) => Error::Malformed { operation, object, reason },
        }
    }

    fn socket(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Socket { step, source }
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// A netlink socket of any protocol, for one exchange at a time.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// How an answer ends.
#[derive(Clone, Copy)]
enum End {
    /// With this many acknowledgements.
    Acknowledged(u32),
    /// With the end of a list.
    Listed,
}

/// Whether all of an answer was received, as of one moment.
#[derive(PartialEq, Eq)]
enum Answer {
    Whole,
    Torn,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> std::result::Result<Self, Failure> {
        let socket = netlink_sys::Socket::new(protocol).map_err(Failure::socket("create the socket"))?;
        // Once connected to the kernel (port 0), the socket takes nothing from other processes.
        socket.connect(&SocketAddr::new(0, 0)).map_err(Failure::socket("connect to the kernel"))?;
        socket.set_ext_ack(true).map_err(Failure::socket("set NETLINK_EXT_ACK"))?;
        socket.set_cap_ack(true).map_err(Failure::socket("set NETLINK_CAP_ACK"))?;
        socket.set_netlink_get_strict_chk(true).map_err(Failure::socket("set NETLINK_GET_STRICT_CHK"))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(RECEIVE_DEADLINE_SECONDS))
            .map_err(|errno| Failure::Socket { step: "set a receive deadline", source: errno.into() })?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER_BYTES) })
    }

    /// Changes; those with NLM_F_ACK among their flags are acknowledged one by one.
    pub(crate) fn change<I: NetlinkSerializable>(
        &mut self,
        messages: impl IntoIterator<Item = (I, u16)>,
    ) -> std::result::Result<(), Failure> {
        let (first, acknowledgements) = self.send(messages)?;
        // Whatever else may have been lost, the acknowledgements say it all.
        self.receive(first, End::Acknowledged(acknowledgements), |_| Ok(())).map(|_| ())
    }

    /// One request; returns what the kernel sent before its acknowledgement, decoded.
    pub(crate) fn request<I: NetlinkSerializable, T>(
        &mut self,
        message: I,
        flags: u16,
        mut decode: impl FnMut(&[u8]) -> Decoded<T>,
    ) -> std::result::Result<Option<T>, Failure> {
        let mut object = None;
        let (first, acknowledgements) = self.send([(message, flags | NLM_F_ACK)])?;
        let answer = self.receive(first, End::Acknowledged(acknowledgements), |body| {
            object = decode(body)?.or(object.take());
            Ok(())
        })?;
        if object.is_none() && answer == Answer::Torn {
            return Err(Failure::Interrupted { tries: 1 });
        }
        Ok(object)
    }

    /// A list, read again until it was not changed while being read.
    pub(crate) fn dump<I: NetlinkSerializable + Clone, T>(
        &mut self,
        message: I,
        mut decode: impl FnMut(&[u8]) -> Decoded<T>,
    ) -> std::result::Result<Vec<T>, Failure> {
        for _ in 0..READ_TRIES {
            let mut objects = Vec::new();
            let (first, _) = self.send([(message.clone(), NLM_F_DUMP)])?;
            let answer = self.receive(first, End::Listed, |body| {
                objects.extend(decode(body)?);
                Ok(())
            })?;
            if answer == Answer::Whole {
                return Ok(objects);
            }
        }
        Err(Failure::Interrupted { tries: READ_TRIES })
    }

    /// Sends messages in one piece. Returns the sequence number of the first and how many will be acknowledged.
    fn send<I: NetlinkSerializable>(
        &mut self,
        messages: impl IntoIterator<Item = (I, u16)>,
    ) -> std::result::Result<(u32, u32), Failure> {
        let first = self.sequence.wrapping_add(1);
        let mut acknowledgements = 0;
        let mut bytes = Vec::new();
        for (message, flags) in messages {
            self.sequence = self.sequence.wrapping_add(1);
            acknowledgements += u32::from(flags & NLM_F_ACK != 0);
            let mut header = NetlinkHeader::default();
            header.flags = flags | NLM_F_REQUEST;
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len(), 0);
            message.serialize(bytes.split_at_mut(start).1);
        }
        self.socket.send(&bytes, 0).map_err(Failure::socket("send the request"))?;
        Ok((first, acknowledgements))
    }

    /// Reads until the answer to the requests from `first` on has ended. Leftovers of earlier requests are skipped.
    fn receive(
        &mut self,
        first: u32,
        end: End,
        mut each: impl FnMut(&[u8]) -> std::result::Result<(), DecodeError>,
    ) -> std::result::Result<Answer, Failure> {
        let last = self.sequence;
        let mut answer = Answer::Whole;
        let mut acknowledged = 0;
        // A list goes on arriving after an entry that cannot be understood, and must be read to its end: until then
        // the kernel refuses the next one.
        let mut misunderstood = None;
        loop {
            if self.fill()? == Answer::Torn {
                answer = Answer::Torn;
            }
            let mut rest = self.buffer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest)?;
                let length = (message.length() as usize).next_multiple_of(NLMSG_ALIGNTO as usize);
                let body = message.payload();
                rest = rest.get(length..).unwrap_or_default();
                if message.sequence_number().wrapping_sub(first) > last.wrapping_sub(first) {
                    continue;
                }
                if message.flags() & NLM_F_DUMP_INTR != 0 {
                    answer = Answer::Torn;
                }
                match message.message_type() {
                    NLMSG_NOOP | NLMSG_OVERRUN => {}
                    NLMSG_ERROR => {
                        acknowledgement(body, message.flags())?;
                        acknowledged += 1;
                        if matches!(end, End::Acknowledged(wanted) if acknowledged == wanted) {
                            return misunderstood.map_or(Ok(answer), Err);
                        }
                    }
                    NLMSG_DONE => {
                        list_end(body, message.flags())?;
                        return misunderstood.map_or(Ok(answer), Err);
                    }
                    _ => {
                        if let Err(error) = each(body) {
                            misunderstood = Some(error.into());
                        }
                    }
                }
            }
        }
    }

    /// Reads the next datagram into the buffer. Torn: some of it, or of what came before it, was lost.
    fn fill(&mut self) -> std::result::Result<Answer, Failure> {
        loop {
            self.buffer.clear();
            let capacity = self.buffer.capacity();
            return match self.socket.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Ok(length) if length > capacity => {
                    self.buffer.clear();
                    self.buffer.reserve(length);
                    Ok(Answer::Torn)
                }
                Ok(_) => Ok(Answer::Whole),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EINTR) => continue,
                    Some(Errno::ENOBUFS) => Ok(Answer::Torn),
                    _ => Err(Failure::Socket { step: "receive the answer", source: error }),
                },
            };
        }
    }
}

/// The body of NLMSG_ERROR: an error number (0 is an acknowledgement), the request it is for, attributes.
fn acknowledgement(body: &[u8], flags: u16) -> std::result::Result<(), Failure> {
    let (number, rest) = error_number(body)?;
    if number == 0 {
        return Ok(());
    }
    let request = NetlinkBuffer::new(rest);
    // With NLM_F_CAPPED only the request's header is there, otherwise all of it.
    let request_bytes = match rest.len() {
        0..16 => rest.len(),
        _ if flags & NLM_F_CAPPED != 0 => 16,
        _ => (request.length() as usize).next_multiple_of(NLMSG_ALIGNTO as usize),
    };
    Err(refusal(number, rest.get(request_bytes..).unwrap_or_default(), flags))
}

/// The body of NLMSG_DONE: an error number, attributes. Older kernels send nothing.
fn list_end(body: &[u8], flags: u16) -> std::result::Result<(), Failure> {
    if body.is_empty() {
        return Ok(());
    }
    let (number, attributes) = error_number(body)?;
    if number < 0 { Err(refusal(number, attributes, flags)) } else { Ok(()) }
}

fn error_number(body: &[u8]) -> std::result::Result<(i32, &[u8]), Failure> {
    body.split_first_chunk::<4>()
        .map(|(number, rest)| (i32::from_ne_bytes(*number), rest))
        .ok_or_else(|| Failure::Malformed(format!("an acknowledgement of {} bytes", body.len())))
}

fn refusal(number: i32, attributes: &[u8], flags: u16) -> Failure {
    let message = NlasIterator::new(attributes)
        .take_while(|_| flags & NLM_F_ACK_TLVS != 0)
        .map_while(std::result::Result::ok)
        .find(|attribute| attribute.kind() == EXTENDED_ACK_MESSAGE)
        .map(|attribute| text(attribute.value()))
        .unwrap_or_default();
    Failure::Refused { errno: Errno::from_raw(number.saturating_abs()), message }
}

/// A string as the kernel sends it, with or without its closing NUL; names need not be UTF-8.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::LinkMessage;
    use proptest::prelude::*;

    fn links(socket: &mut Socket) -> Vec<Vec<u8>> {
        let everything = RouteNetlinkMessage::GetLink(LinkMessage::default());
        socket.dump(everything, |body| Ok(Some(body.to_vec()))).unwrap()
    }

    #[test]
    fn an_answer_that_does_not_fit_is_asked_for_again() {
        let mut socket = Socket::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
        socket.buffer = Vec::with_capacity(64);
        assert!(!links(&mut socket).is_empty());
        assert!(socket.buffer.capacity() > 64);
    }

    #[test]
    fn answers_that_nobody_read_are_skipped() {
        let mut socket = Socket::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
        for _ in 0..3 {
            let mut missing = LinkMessage::default();
            missing.header.index = u32::MAX >> 1;
            socket.send([(RouteNetlinkMessage::GetLink(missing), NLM_F_ACK)]).unwrap();
        }
        assert!(!links(&mut socket).is_empty());
    }

    #[test]
    fn a_list_is_read_to_its_end_after_an_entry_that_makes_no_sense() {
        let mut socket = Socket::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
        let everything = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let failure = socket.dump(everything, |_| Decoded::<()>::Err("no sense".into())).unwrap_err();
        assert!(matches!(failure, Failure::Malformed(reason) if reason == "no sense"));
        assert!(!links(&mut socket).is_empty());
    }

    #[test]
    fn a_missing_answer_ends_with_the_deadline() {
        let mut socket = Socket::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
        setsockopt(&socket.socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20)).unwrap();
        let failure = socket.receive(1, End::Listed, |_| Ok(())).map(|_| ()).unwrap_err();
        let error = failure.during("list", &"links").to_string();
        assert!(error.starts_with("cannot list links: cannot receive the answer: "), "{error}");
    }

    #[test]
    fn the_sequence_number_may_wrap_around() {
        let mut socket = Socket::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
        socket.sequence = u32::MAX - 1;
        for _ in 0..4 {
            assert!(!links(&mut socket).is_empty());
        }
        // Links elsewhere may come and go, and the list be read again for it.
        assert!(socket.sequence < 100, "{}", socket.sequence);
    }

    #[test]
    fn extended_acknowledgements_are_found_with_and_without_the_request() {
        let words = [&[11, 0, 1, 0][..], b"sorry!\0\0"].concat();
        let header = [&20_u32.to_ne_bytes()[..], &[0; 12]].concat();
        let capped = [&(-22_i32).to_ne_bytes()[..], &header, &words].concat();
        let whole = [&(-22_i32).to_ne_bytes()[..], &header, &[0; 4], &words].concat();
        for (body, flags) in [(capped, NLM_F_CAPPED | NLM_F_ACK_TLVS), (whole, NLM_F_ACK_TLVS)] {
            let Err(Failure::Refused { errno, message }) = acknowledgement(&body, flags) else { panic!() };
            assert_eq!((errno, message.as_str()), (Errno::EINVAL, "sorry!"));
            let Err(Failure::Refused { message, .. }) = acknowledgement(&body, flags & !NLM_F_ACK_TLVS)
            else {
                panic!()
            };
            assert_eq!(message, "");
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..80), flags: u16) {
            let _ = acknowledgement(&body, flags);
            let _ = list_end(&body, flags);
            let _ = text(&body);
        }
    }
}
