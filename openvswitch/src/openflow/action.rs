//! What a flow does with a packet: OpenFlow 1.4.1 §7.2.5 and, for what Open vSwitch adds, ovs-actions(7).

use std::fmt;

use super::matching::{decode_field, encode_field};
use super::wire::{Reader, Writer};
use super::{DecodeError, EncodeError, Field, FieldError, FieldKind, Subfield};

/// A port of the bridge, by number; numbers from 0xffffff00 on are reserved for the meanings below
/// (OpenFlow 1.4.1 §7.2.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortNo(pub u32);

impl PortNo {
    /// The port that the packet came in by. A packet leaves by it only when an output says so.
    pub const IN_PORT: PortNo = PortNo(0xffff_fff8);
    /// Through the flow tables (packet-out only).
    pub const TABLE: PortNo = PortNo(0xffff_fff9);
    /// As a learning switch without OpenFlow would.
    pub const NORMAL: PortNo = PortNo(0xffff_fffa);
    /// By every port of the VLAN except the one it came in by.
    pub const FLOOD: PortNo = PortNo(0xffff_fffb);
    /// By every port except the one it came in by.
    pub const ALL: PortNo = PortNo(0xffff_fffc);
    /// To the controllers, whole.
    pub const CONTROLLER: PortNo = PortNo(0xffff_fffd);
    /// The bridge's own interface on the host.
    pub const LOCAL: PortNo = PortNo(0xffff_fffe);
    /// No port, or in a request any.
    pub const ANY: PortNo = PortNo(0xffff_ffff);

    /// The number in the 16 bits that OpenFlow 1.0 and Nicira's actions have for it.
    fn short(self) -> Option<u16> {
        match self.0 {
            0..0xff00 | 0xffff_ff00.. => Some(self.0 as u16),
            _ => None,
        }
    }

    fn from_short(number: u16) -> PortNo {
        PortNo(if number < 0xff00 { number.into() } else { 0xffff_0000 | u32::from(number) })
    }
}

impl From<u32> for PortNo {
    fn from(number: u32) -> Self {
        PortNo(number)
    }
}

impl fmt::Display for PortNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            PortNo::IN_PORT => f.write_str("IN_PORT"),
            PortNo::TABLE => f.write_str("TABLE"),
            PortNo::NORMAL => f.write_str("NORMAL"),
            PortNo::FLOOD => f.write_str("FLOOD"),
            PortNo::ALL => f.write_str("ALL"),
            PortNo::CONTROLLER => f.write_str("CONTROLLER"),
            PortNo::LOCAL => f.write_str("LOCAL"),
            PortNo::ANY => f.write_str("ANY"),
            PortNo(number) => write!(f, "{number}"),
        }
    }
}

impl fmt::Debug for PortNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One step in what a flow does. A flow without any drops the packet.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// Send the packet out.
    Output(PortNo),
    /// Send the packet out by the port whose number is in this part of a field.
    OutputReg(Subfield),
    /// Write all of a field.
    SetField(Field),
    /// Write part of a field of at most 64 bits.
    Load {
        /// The part.
        dst: Subfield,
        /// The value.
        value: u64,
    },
    /// Copy between parts of the same size.
    Move {
        /// Where to copy from.
        src: Subfield,
        /// Where to copy to.
        dst: Subfield,
    },
    /// Decrement the IPv4 TTL or IPv6 hop limit; a packet at the end of its life goes to the controllers instead.
    DecTtl,
    /// Carry out another table's flow for the packet as it is now, then go on with this list.
    Resubmit {
        /// Look the packet up as if it had come in by this port; [`PortNo::IN_PORT`] leaves it as it is.
        in_port: PortNo,
        /// The table; 255 is the one that the flow is in.
        table: u8,
    },
    /// Send by this QoS queue from here on.
    SetQueue(u32),
    /// Process by this group.
    Group(u32),
    /// An action that this crate has no name for, as it was on the wire, header included.
    Unknown(Vec<u8>),
}

const OFPAT_OUTPUT: u16 = 0;
const OFPAT_SET_QUEUE: u16 = 21;
const OFPAT_GROUP: u16 = 22;
const OFPAT_DEC_NW_TTL: u16 = 24;
const OFPAT_SET_FIELD: u16 = 25;
const OFPAT_EXPERIMENTER: u16 = 0xffff;
const NICIRA: u32 = 0x0000_2320;
const NXAST_REG_MOVE: u16 = 6;
const NXAST_REG_LOAD: u16 = 7;
const NXAST_RESUBMIT_TABLE: u16 = 14;
const NXAST_OUTPUT_REG: u16 = 15;
/// To a controller goes the whole packet, never a buffer's number.
const OFPCML_NO_BUFFER: u16 = 0xffff;

impl Action {
    /// The copy of all of one field, or part of it, to another.
    ///
    /// # Errors
    /// [`FieldError::UnequalParts`].
    pub fn copy(src: impl Into<Subfield>, dst: impl Into<Subfield>) -> Result<Action, FieldError> {
        src.into().copy_to(dst)
    }

    /// Appends the action as an `ofp_action_header` and what follows.
    pub(crate) fn encode(&self, out: &mut Writer) -> Result<(), EncodeError> {
        let start = out.len();
        match self {
            Action::Output(port) => {
                header(out, OFPAT_OUTPUT, 16);
                out.u32(port.0);
                out.u16(OFPCML_NO_BUFFER);
                out.zeros(6);
            }
            Action::OutputReg(src) => {
                nicira_header(out, NXAST_OUTPUT_REG, 24);
                out.u16(place_and_size(*src));
                out.u32(src.kind().header(false));
                out.u16(OFPCML_NO_BUFFER);
                out.zeros(6);
            }
            Action::SetField(field) => {
                if !field.is_exact() {
                    return Err(EncodeError::PartialSetField(field.kind()));
                }
                header(out, OFPAT_SET_FIELD, 0);
                encode_field(field, out);
                out.pad(start);
                out.set_length(start + 2, start)?;
            }
            Action::Load { dst, value } => {
                if dst.bits() > 64 || value.checked_shr(dst.bits().into()).is_some_and(|excess| excess != 0) {
                    return Err(EncodeError::Load { dst: *dst, value: *value });
                }
                nicira_header(out, NXAST_REG_LOAD, 24);
                out.u16(place_and_size(*dst));
                out.u32(dst.kind().header(false));
                out.u64(*value);
            }
            Action::Move { src, dst } => {
                if src.bits() != dst.bits() {
                    return Err(EncodeError::UnequalParts { src: *src, dst: *dst });
                }
                nicira_header(out, NXAST_REG_MOVE, 24);
                out.u16(src.bits().into());
                out.u16(src.first_bit().into());
                out.u16(dst.first_bit().into());
                out.u32(src.kind().header(false));
                out.u32(dst.kind().header(false));
            }
            Action::DecTtl => {
                header(out, OFPAT_DEC_NW_TTL, 8);
                out.zeros(4);
            }
            Action::Resubmit { in_port, table } => {
                let port = in_port.short().ok_or(EncodeError::ResubmitPort(*in_port))?;
                nicira_header(out, NXAST_RESUBMIT_TABLE, 16);
                out.u16(port);
                out.u8(*table);
                out.zeros(3);
            }
            Action::SetQueue(queue) => {
                header(out, OFPAT_SET_QUEUE, 8);
                out.u32(*queue);
            }
            Action::Group(group) => {
                header(out, OFPAT_GROUP, 8);
                out.u32(*group);
            }
            Action::Unknown(bytes) => out.bytes(bytes),
        }
        Ok(())
    }

    /// Reads actions to the end of the input.
    pub(crate) fn decode_list(mut input: Reader<'_>) -> Result<Vec<Action>, DecodeError> {
        let mut actions = Vec::new();
        while !input.is_empty() {
            let action = input.structure("action", 2, 8)?;
            actions.push(match Action::decode(action) {
                Ok(Some(known)) => known,
                Ok(None) | Err(_) => Action::Unknown(action.rest().to_vec()),
            });
        }
        Ok(actions)
    }

    /// Reads one action; `None` when it says more than this crate has words for.
    fn decode(mut input: Reader<'_>) -> Result<Option<Action>, DecodeError> {
        let action_type = input.u16()?;
        input.skip(2)?;
        Ok(match action_type {
            OFPAT_OUTPUT => {
                let port = PortNo(input.u32()?);
                let max_len = input.u16()?;
                // Elsewhere than to the controllers the length has no meaning.
                let whole = port != PortNo::CONTROLLER || max_len == OFPCML_NO_BUFFER;
                whole.then_some(Action::Output(port))
            }
            OFPAT_SET_QUEUE => Some(Action::SetQueue(input.u32()?)),
            OFPAT_GROUP => Some(Action::Group(input.u32()?)),
            OFPAT_DEC_NW_TTL => Some(Action::DecTtl),
            OFPAT_SET_FIELD => {
                let header = input.u32()?;
                let body = input.bytes((header & 0xff) as usize)?;
                decode_field(header, body).filter(Field::is_exact).map(Action::SetField)
            }
            OFPAT_EXPERIMENTER if input.u32()? == NICIRA => Action::decode_nicira(input)?,
            _ => None,
        })
    }

    fn decode_nicira(mut input: Reader<'_>) -> Result<Option<Action>, DecodeError> {
        Ok(match input.u16()? {
            NXAST_REG_MOVE => {
                let bits = input.u16()?;
                let (src_bit, dst_bit) = (input.u16()?, input.u16()?);
                let src = subfield(input.u32()?, src_bit, bits);
                let dst = subfield(input.u32()?, dst_bit, bits);
                src.zip(dst).map(|(src, dst)| Action::Move { src, dst })
            }
            NXAST_REG_LOAD => {
                let place = input.u16()?;
                let dst = subfield(input.u32()?, place >> 6, (place & 0x3f) + 1);
                let value = input.u64()?;
                dst.and_then(|dst| dst.load(value).ok())
            }
            NXAST_RESUBMIT_TABLE => {
                Some(Action::Resubmit { in_port: PortNo::from_short(input.u16()?), table: input.u8()? })
            }
            NXAST_OUTPUT_REG => {
                let place = input.u16()?;
                let src = subfield(input.u32()?, place >> 6, (place & 0x3f) + 1);
                let whole = input.u16()? == OFPCML_NO_BUFFER;
                src.filter(|_| whole).map(Action::OutputReg)
            }
            _ => None,
        })
    }
}

fn header(out: &mut Writer, action_type: u16, length: u16) {
    out.u16(action_type);
    out.u16(length);
}

fn nicira_header(out: &mut Writer, subtype: u16, length: u16) {
    header(out, OFPAT_EXPERIMENTER, length);
    out.u32(NICIRA);
    out.u16(subtype);
}

/// Nicira's `ofs_nbits`: the first bit, and in the low 6 bits the number of bits less one.
fn place_and_size(part: Subfield) -> u16 {
    u16::from(part.first_bit()) << 6 | u16::from(part.bits() - 1) & 0x3f
}

fn subfield(header: u32, first_bit: u16, bits: u16) -> Option<Subfield> {
    let (kind, masked) = FieldKind::from_header(header)?;
    if masked {
        return None;
    }
    Subfield::new(kind, u8::try_from(first_bit).ok()?, u8::try_from(bits).ok()?).ok()
}

impl fmt::Display for Action {
    /// In the syntax of ovs-actions(7), but for unknown actions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Output(PortNo::CONTROLLER) => write!(f, "CONTROLLER:{OFPCML_NO_BUFFER}"),
            Action::Output(port) => write!(f, "output:{port}"),
            Action::OutputReg(src) => write!(f, "output:{src}"),
            Action::SetField(field) => {
                f.write_str("set_field:")?;
                field.write_value(f)?;
                write!(f, "->{}", field.kind())
            }
            Action::Load { dst, value } => write!(f, "load:{value:#x}->{dst}"),
            Action::Move { src, dst } => write!(f, "move:{src}->{dst}"),
            Action::DecTtl => f.write_str("dec_ttl"),
            Action::Resubmit { in_port: PortNo::IN_PORT, table } => write!(f, "resubmit(,{table})"),
            Action::Resubmit { in_port, table } => write!(f, "resubmit({in_port},{table})"),
            Action::SetQueue(queue) => write!(f, "set_queue:{queue}"),
            Action::Group(group) => write!(f, "group:{group}"),
            Action::Unknown(bytes) => {
                f.write_str("unknown(")?;
                for octet in bytes {
                    write!(f, "{octet:02x}")?;
                }
                f.write_str(")")
            }
        }
    }
}
