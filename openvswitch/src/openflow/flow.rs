//! Flows, changes to them, and what the switch says about them.

use std::fmt;
use std::time::Duration;

use super::wire::{Reader, Writer};
use super::{Action, DecodeError, EncodeError, Match, PortNo};

/// What makes two flows the same flow: a switch holds one flow per key, and a second one replaces the first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowKey {
    /// The table, 0 to 254.
    pub table: u8,
    /// Among the flows that match a packet the one of the highest priority is taken.
    pub priority: u16,
    /// The packets it is for.
    pub match_: Match,
}

impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table={},priority={}", self.table, self.priority)?;
        write_match(&self.match_, f)
    }
}

/// A row of a flow table. Two are equal when the switch does the same with them; the counters are not part of it
/// ([`FlowStats`]).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Flow {
    /// The table, 0 to 254.
    pub table: u8,
    /// Among the flows that match a packet the one of the highest priority is taken.
    pub priority: u16,
    /// A number of the controller's own, to find its flows by.
    pub cookie: u64,
    /// The packets it is for.
    pub match_: Match,
    /// What is done with them, in order; nothing and no `goto` drops them.
    pub actions: Vec<Action>,
    /// The table to go on with after the actions; a later one than `table`.
    pub goto: Option<u8>,
    /// The meter that the packets pass before anything else.
    pub meter: Option<u32>,
    /// Seconds without a packet after which the switch removes the flow; 0: never.
    pub idle_timeout: u16,
    /// Seconds after which the switch removes the flow; 0: never.
    pub hard_timeout: u16,
    /// Instructions that this crate has no name for, as they were on the wire. Empty in flows that are made here.
    pub other_instructions: Vec<u8>,
}

impl Flow {
    /// A flow that drops what it matches; the methods below say what it does instead.
    pub const fn new(table: u8, priority: u16, match_: Match) -> Flow {
        Flow {
            table,
            priority,
            cookie: 0,
            match_,
            actions: Vec::new(),
            goto: None,
            meter: None,
            idle_timeout: 0,
            hard_timeout: 0,
            other_instructions: Vec::new(),
        }
    }

    /// This flow with this cookie.
    #[must_use]
    pub fn cookie(self, cookie: u64) -> Flow {
        Flow { cookie, ..self }
    }

    /// This flow with these actions more.
    #[must_use]
    pub fn actions(mut self, actions: impl IntoIterator<Item = Action>) -> Flow {
        self.actions.extend(actions);
        self
    }

    /// This flow, going on with that table.
    #[must_use]
    pub fn goto(self, table: u8) -> Flow {
        Flow { goto: Some(table), ..self }
    }

    /// This flow, through that meter.
    #[must_use]
    pub fn meter(self, meter: u32) -> Flow {
        Flow { meter: Some(meter), ..self }
    }

    /// What makes it this flow and no other.
    pub fn key(&self) -> FlowKey {
        FlowKey { table: self.table, priority: self.priority, match_: self.match_.clone() }
    }

    fn encode_instructions(&self, out: &mut Writer) -> Result<(), EncodeError> {
        if let Some(meter) = self.meter {
            out.u16(OFPIT_METER);
            out.u16(8);
            out.u32(meter);
        }
        if !self.actions.is_empty() {
            let start = out.len();
            out.u16(OFPIT_APPLY_ACTIONS);
            out.u16(0); // the length, filled in below
            out.zeros(4);
            for action in &self.actions {
                action.encode(out)?;
            }
            out.set_length(start + 2, start)?;
        }
        out.bytes(&self.other_instructions);
        if let Some(table) = self.goto {
            out.u16(OFPIT_GOTO_TABLE);
            out.u16(8);
            out.u8(table);
            out.zeros(3);
        }
        Ok(())
    }

    fn decode_instructions(&mut self, mut input: Reader<'_>) -> Result<(), DecodeError> {
        while !input.is_empty() {
            let instruction = input.structure("instruction", 2, 8)?;
            let mut body = instruction;
            let instruction_type = body.u16()?;
            body.skip(2)?;
            match instruction_type {
                OFPIT_GOTO_TABLE => self.goto = Some(body.u8()?),
                OFPIT_METER => self.meter = Some(body.u32()?),
                OFPIT_APPLY_ACTIONS => {
                    body.skip(4)?;
                    self.actions = Action::decode_list(body)?;
                }
                _ => self.other_instructions.extend_from_slice(instruction.rest()),
            }
        }
        Ok(())
    }
}

const OFPIT_GOTO_TABLE: u16 = 1;
const OFPIT_APPLY_ACTIONS: u16 = 4;
const OFPIT_METER: u16 = 6;

impl fmt::Display for Flow {
    /// In the syntax of ovs-ofctl(8), but for what is unknown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cookie={:#x},table={},", self.cookie, self.table)?;
        for (name, seconds) in [("idle_timeout", self.idle_timeout), ("hard_timeout", self.hard_timeout)] {
            if seconds != 0 {
                write!(f, "{name}={seconds},")?;
            }
        }
        write!(f, "priority={}", self.priority)?;
        write_match(&self.match_, f)?;
        f.write_str(",actions=")?;
        let mut separator = "";
        if let Some(meter) = self.meter {
            write!(f, "meter:{meter}")?;
            separator = ",";
        }
        for action in &self.actions {
            write!(f, "{separator}{action}")?;
            separator = ",";
        }
        if !self.other_instructions.is_empty() {
            write!(f, "{separator}unknown({} bytes)", self.other_instructions.len())?;
            separator = ",";
        }
        match self.goto {
            Some(table) => write!(f, "{separator}goto_table:{table}"),
            None if separator.is_empty() => f.write_str("drop"),
            None => Ok(()),
        }
    }
}

fn write_match(match_: &Match, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if *match_ == Match::new() {
        return Ok(());
    }
    write!(f, ",{match_}")
}

/// A flow as it stands in the switch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowStats {
    /// The flow.
    pub flow: Flow,
    /// Packets that it was taken for; `u64::MAX` when the switch does not count them.
    pub packets: u64,
    /// The bytes of those packets; `u64::MAX` when the switch does not count them.
    pub bytes: u64,
    /// How long the flow has been there.
    pub duration: Duration,
}

impl FlowStats {
    /// Reads one `ofp_flow_stats` (OpenFlow 1.4.1 §7.3.5.2).
    pub(crate) fn decode(mut input: Reader<'_>) -> Result<FlowStats, DecodeError> {
        input.skip(2)?; // the length
        let table = input.u8()?;
        input.skip(1)?;
        let duration = Duration::from_secs(input.u32()?.into()) + Duration::from_nanos(input.u32()?.into());
        let priority = input.u16()?;
        let idle_timeout = input.u16()?;
        let hard_timeout = input.u16()?;
        input.skip(6)?; // flags, importance, padding
        let cookie = input.u64()?;
        let packets = input.u64()?;
        let bytes = input.u64()?;
        let match_ = Match::decode(&mut input)?;
        let mut flow = Flow { cookie, idle_timeout, hard_timeout, ..Flow::new(table, priority, match_) };
        flow.decode_instructions(input)?;
        Ok(FlowStats { flow, packets, bytes, duration })
    }
}

/// A change to the flow tables.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum FlowMod {
    /// Put a flow in; it replaces the one with its key.
    Add(Flow),
    /// Take the flow with exactly this key out; that there is none is not an error.
    Delete(FlowKey),
    /// Take every flow out whose cookie has, in the bits of `cookie_mask`, those of `cookie`.
    DeleteAll {
        /// From this table only.
        table: Option<u8>,
        /// The cookie.
        cookie: u64,
        /// Which bits of it count; 0 is for any cookie.
        cookie_mask: u64,
    },
}

const OFPFC_ADD: u8 = 0;
const OFPFC_DELETE: u8 = 3;
const OFPFC_DELETE_STRICT: u8 = 4;
/// All tables, in a delete or a request for statistics.
pub(crate) const OFPTT_ALL: u8 = 0xff;
/// Any group.
pub(crate) const OFPG_ANY: u32 = 0xffff_ffff;
const OFP_NO_BUFFER: u32 = 0xffff_ffff;

impl FlowMod {
    /// Appends what follows the header of an `ofp_flow_mod` (OpenFlow 1.4.1 §7.3.4.2).
    pub(crate) fn encode(&self, out: &mut Writer) -> Result<(), EncodeError> {
        match self {
            FlowMod::Add(flow) => {
                out.u64(flow.cookie);
                out.u64(0);
                fixed_part(out, OFPFC_ADD, flow.table, flow.priority, [flow.idle_timeout, flow.hard_timeout]);
                flow.match_.encode(out)?;
                flow.encode_instructions(out)
            }
            FlowMod::Delete(key) => {
                out.u64(0);
                out.u64(0);
                fixed_part(out, OFPFC_DELETE_STRICT, key.table, key.priority, [0, 0]);
                key.match_.encode(out)
            }
            FlowMod::DeleteAll { table, cookie, cookie_mask } => {
                out.u64(*cookie);
                out.u64(*cookie_mask);
                fixed_part(out, OFPFC_DELETE, table.unwrap_or(OFPTT_ALL), 0, [0, 0]);
                Match::new().encode(out)
            }
        }
    }
}

/// What stands between the cookies and the match.
fn fixed_part(out: &mut Writer, command: u8, table: u8, priority: u16, timeouts: [u16; 2]) {
    out.u8(table);
    out.u8(command);
    for seconds in timeouts {
        out.u16(seconds);
    }
    out.u16(priority);
    out.u32(OFP_NO_BUFFER);
    out.u32(PortNo::ANY.0);
    out.u32(OFPG_ANY);
    out.zeros(4); // flags, importance
}
