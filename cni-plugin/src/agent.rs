//! One call to the node's agent.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::TimeVal;
use tenon_cni::{Error, Request, Response, Verb, WireError, frame};

use crate::deadline::Deadline;

/// Why a call came to nothing.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The agent cannot be reached, or went away before it had answered.
    Unreachable { socket: PathBuf, source: io::Error },
    /// The socket is there, but not for this user, or its path is none.
    Unusable { socket: PathBuf, source: io::Error },
    /// The agent did not answer by the deadline.
    Late { socket: PathBuf },
    /// The agent's answer makes no sense.
    Garbled { socket: PathBuf, source: WireError },
    /// The configuration does not fit into a request.
    TooLong(frame::TooLong),
}

impl CallError {
    /// The error that tells the runtime. Without the agent nothing is known about what a pod holds, so no verb may
    /// pretend to have succeeded: code 11 makes the runtime call again. STATUS has a code of its own for this.
    pub(crate) fn answer(self, verb: Verb) -> Error {
        let error = match self {
            Self::Unreachable { socket, source } => {
                Error::try_again(format!("the Tenon agent does not answer at {}: {source}", socket.display()))
                    .with_details(
                        "start tenon-agent on this node, or set agentSocket in the network configuration to its socket",
                    )
            }
            Self::Late { socket } => {
                Error::try_again(format!("the Tenon agent at {} did not answer in time", socket.display()))
                    .with_details("see the log of tenon-agent on this node for what it waits for")
            }
            Self::Unusable { socket, source } => {
                Error::io_failure(format!("cannot use the Tenon agent's socket {}: {source}", socket.display()))
                    .with_details("run the plugin as root, and let agentSocket name a socket with a path below 108 bytes")
            }
            Self::Garbled { socket, source } => {
                Error::protocol(format!("the Tenon agent at {} answered nonsense", socket.display()))
                    .with_details(source.to_string())
            }
            Self::TooLong(source) => Error::invalid_config("the network configuration is too long")
                .with_details(source.to_string()),
        };
        match verb {
            Verb::Status => Error::not_available(error.msg).with_details(error.details),
            _ => error,
        }
    }
}

/// Sends the request to the agent and waits for its response.
pub(crate) fn call(request: &Request, deadline: Deadline) -> Result<Response, CallError> {
    let frame = request.encode().map_err(CallError::TooLong)?;
    let socket = &request.conf.agent_socket;
    let failed = |source| failure(socket, source);
    let body = exchange(socket, &frame, deadline).map_err(failed)?;
    Response::decode(&body).map_err(|source| CallError::Garbled { socket: socket.clone(), source })
}

fn failure(socket: &Path, source: io::Error) -> CallError {
    let socket = socket.to_owned();
    match source.kind() {
        ErrorKind::TimedOut => CallError::Late { socket },
        ErrorKind::PermissionDenied | ErrorKind::InvalidInput | ErrorKind::InvalidFilename => {
            CallError::Unusable { socket, source }
        }
        ErrorKind::InvalidData => {
            CallError::Garbled { socket, source: WireError::Malformed(source.to_string()) }
        }
        _ => CallError::Unreachable { socket, source },
    }
}

fn exchange(socket: &Path, frame: &[u8], deadline: Deadline) -> io::Result<Vec<u8>> {
    let mut stream = connect(socket, deadline)?;
    write_all(&mut stream, frame, deadline)?;
    let mut header = [0; frame::HEADER_BYTES];
    read_exact(&mut stream, &mut header, deadline)?;
    let length =
        frame::body_length(header).map_err(|too_long| io::Error::new(ErrorKind::InvalidData, too_long))?;
    let mut body = vec![0; length];
    read_exact(&mut stream, &mut body, deadline)?;
    Ok(body)
}

/// Connects by the deadline. The standard library has no such call for Unix sockets, and a plain connect waits for ever
/// when an agent that hangs has a full backlog; the kernel bounds it by the send timeout (socket(7)).
fn connect(path: &Path, deadline: Deadline) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    loop {
        set_send_timeout(&socket, remaining(deadline)?)?;
        match socket::connect(socket.as_raw_fd(), &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn set_send_timeout(socket: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let microseconds = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX).max(1);
    let (seconds, rest) = (microseconds / 1_000_000, microseconds % 1_000_000);
    Ok(socket::setsockopt(socket, sockopt::SendTimeout, &TimeVal::new(seconds, rest))?)
}

fn remaining(deadline: Deadline) -> io::Result<Duration> {
    deadline.remaining().ok_or_else(|| ErrorKind::TimedOut.into())
}

fn write_all(stream: &mut UnixStream, mut bytes: &[u8], deadline: Deadline) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(remaining(deadline)?))?;
        match stream.write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) => interrupted_or(error)?,
        }
    }
    Ok(())
}

fn read_exact(stream: &mut UnixStream, mut buffer: &mut [u8], deadline: Deadline) -> io::Result<()> {
    while !buffer.is_empty() {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        match stream.read(buffer) {
            Ok(0) => {
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    "it closed the connection before it had answered",
                ));
            }
            Ok(count) => buffer = buffer.get_mut(count..).unwrap_or_default(),
            Err(error) => interrupted_or(error)?,
        }
    }
    Ok(())
}

/// An interrupted call is repeated; one whose timeout has passed fails by the next look at the deadline.
fn interrupted_or(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
