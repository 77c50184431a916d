//! What can go wrong, from a flow that cannot be written down to a switch that refuses it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{FieldKind, PortNo, Prerequisite, Subfield, SwitchError};

/// A flow, action or meter that OpenFlow 1.4 has no message for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A match on a field that only some packets have, without the match that selects those packets.
    #[error("a match on {field} needs {needs} as well")]
    Prerequisite {
        /// The field.
        field: FieldKind,
        /// What has to be matched before it.
        needs: Prerequisite,
    },
    /// Set-Field writes whole fields until OpenFlow 1.5.
    #[error("set_field writes all of {0} or nothing; write some of its bits with a load")]
    PartialSetField(FieldKind),
    /// A copy between parts of different sizes.
    #[error("cannot copy {src}, {} bits, to {dst}, {} bits", src.bits(), dst.bits())]
    UnequalParts {
        /// Where to copy from.
        src: Subfield,
        /// Where to copy to.
        dst: Subfield,
    },
    /// A load of more than the part has room for, or into a part of more than 64 bits.
    #[error("cannot load {value:#x} into {dst}: no more than {} bits", dst.bits().min(64))]
    Load {
        /// The part.
        dst: Subfield,
        /// The value.
        value: u64,
    },
    /// A resubmit carries a 16-bit port number.
    #[error("a resubmit cannot name port {0}: its port number has 16 bits")]
    ResubmitPort(PortNo),
    /// A message, or a part of one, that is longer than its 16-bit length can say.
    #[error("the encoding takes {length} bytes, more than the 65535 of an OpenFlow message")]
    TooLong {
        /// The bytes it would take.
        length: usize,
    },
}

/// Bytes that are not the OpenFlow message that they claim to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("the {what} ends {there} bytes before where {wanted} were to follow")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// The bytes that were to be read.
        wanted: usize,
        /// The bytes that were left.
        there: usize,
    },
    /// A length that is too small for what it measures or reaches beyond what holds it.
    #[error("the {what} says that it is {length} bytes long, which it cannot be")]
    BadLength {
        /// What was being read.
        what: &'static str,
        /// The length it claims.
        length: usize,
    },
    /// A version other than the negotiated one.
    #[error("a message of OpenFlow wire version {0:#04x} arrived on a connection of version 0x05")]
    Version(u8),
    /// A message of another type than the answer has to be.
    #[error("the switch answered a {request} with a message of type {message_type}, subtype {subtype}")]
    UnexpectedType {
        /// What was asked.
        request: &'static str,
        /// The type of the answer (`OFPT_*`).
        message_type: u8,
        /// Its multipart or bundle control type.
        subtype: u16,
    },
}

/// Why a request to the switch, or the connection to it, failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Nobody answers at the socket.
    #[error("cannot connect to {path}: {source}; is ovs-vswitchd running, and does the bridge exist?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: Arc<std::io::Error>,
    },
    /// Both sides have no version in common.
    #[error(
        "the switch offers OpenFlow up to wire version {offered:#04x} but not 0x05; \
         let the bridge's `protocols` be empty or hold OpenFlow14"
    )]
    Version {
        /// The highest version that the switch offers.
        offered: u8,
    },
    /// The connection has ended: the switch closed it, or every handle to it is gone.
    #[error("the connection to the switch has ended")]
    Closed,
    /// Reading from or writing to the socket failed.
    #[error("the connection to the switch broke: {0}")]
    Io(Arc<std::io::Error>),
    /// The switch sent what is not OpenFlow 1.4.
    #[error("the switch broke the protocol: {0}")]
    Protocol(#[from] DecodeError),
    /// The switch did not answer in time. Whether it has carried out the request is not known.
    #[error("the switch has not answered a {request} within {after:?}")]
    Timeout {
        /// What was asked.
        request: &'static str,
        /// How long the answer was waited for.
        after: Duration,
    },
    /// The request cannot be written down; nothing was sent.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A flow mod cannot be written down; nothing was sent.
    #[error("flow mod {index}: {error}")]
    EncodeMod {
        /// The mod's place in the list, from 0.
        index: usize,
        /// Why.
        error: EncodeError,
    },
    /// The switch refused the request as a whole.
    #[error("the switch refused a {request}: {error}")]
    Refused {
        /// What was asked.
        request: &'static str,
        /// The switch's reason.
        error: SwitchError,
    },
    /// The switch refused one flow mod and, as they go together, all of them: nothing has changed.
    #[error("the switch refused flow mod {index}, and with it all of them: {error}")]
    RefusedMod {
        /// The mod's place in the list, from 0.
        index: usize,
        /// The switch's reason.
        error: SwitchError,
    },
}
