//! The messages around flows: their header, and the requests and answers that the connection needs.

use super::flow::{OFPG_ANY, OFPTT_ALL};
use super::wire::{Reader, Writer};
use super::{DecodeError, EncodeError, FlowMod, FlowStats, Mac, PortNo};

/// The wire version of OpenFlow 1.4.
pub(crate) const VERSION: u8 = 0x05;
/// The length of the header that every message starts with.
pub(crate) const HEADER_BYTES: usize = 8;

pub(crate) const OFPT_HELLO: u8 = 0;
pub(crate) const OFPT_ERROR: u8 = 1;
pub(crate) const OFPT_ECHO_REQUEST: u8 = 2;
pub(crate) const OFPT_ECHO_REPLY: u8 = 3;
pub(crate) const OFPT_FEATURES_REQUEST: u8 = 5;
pub(crate) const OFPT_FEATURES_REPLY: u8 = 6;
const OFPT_SET_CONFIG: u8 = 9;
pub(crate) const OFPT_PORT_STATUS: u8 = 12;
const OFPT_FLOW_MOD: u8 = 14;
const OFPT_MULTIPART_REQUEST: u8 = 18;
pub(crate) const OFPT_MULTIPART_REPLY: u8 = 19;
pub(crate) const OFPT_BARRIER_REQUEST: u8 = 20;
pub(crate) const OFPT_BARRIER_REPLY: u8 = 21;
const OFPT_SET_ASYNC: u8 = 28;
const OFPT_METER_MOD: u8 = 29;
pub(crate) const OFPT_BUNDLE_CONTROL: u8 = 33;
const OFPT_BUNDLE_ADD_MESSAGE: u8 = 34;

/// The header of a message (OpenFlow 1.4.1 §7.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) version: u8,
    pub(crate) message_type: u8,
    /// The length of the message, header included; never less than that.
    pub(crate) length: usize,
    pub(crate) xid: u32,
}

impl Header {
    /// Reads the header; `None` while its bytes have not all come.
    pub(crate) fn peek(bytes: &[u8]) -> Result<Option<Header>, DecodeError> {
        if bytes.len() < HEADER_BYTES {
            return Ok(None);
        }
        let mut input = Reader::new("header", bytes);
        let (version, message_type) = (input.u8()?, input.u8()?);
        let (length, xid) = (usize::from(input.u16()?), input.u32()?);
        if length < HEADER_BYTES {
            return Err(DecodeError::BadLength { what: "message", length });
        }
        Ok(Some(Header { version, message_type, length, xid }))
    }
}

/// Appends a message: its header, what `body` writes, and then its length.
fn message(
    out: &mut Writer,
    message_type: u8,
    xid: u32,
    body: impl FnOnce(&mut Writer) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    let start = out.len();
    out.u8(VERSION);
    out.u8(message_type);
    out.u16(0); // the length, filled in below
    out.u32(xid);
    body(out)?;
    out.set_length(start + 2, start)
}

/// Appends a message without a body.
pub(crate) fn empty_message(out: &mut Writer, message_type: u8, xid: u32) {
    out.u8(VERSION);
    out.u8(message_type);
    out.u16(HEADER_BYTES as u16);
    out.u32(xid);
}

/// Appends a hello that offers our version alone (OpenFlow 1.4.1 §7.5.1).
pub(crate) fn hello(out: &mut Writer) {
    out.u8(VERSION);
    out.u8(OFPT_HELLO);
    out.u16(16);
    out.u32(0);
    out.u16(1); // OFPHET_VERSIONBITMAP
    out.u16(8);
    out.u32(1 << VERSION);
}

/// Whether the other side's hello offers our version (OpenFlow 1.4.1 §6.3.1).
pub(crate) fn hello_accepts_us(version: u8, body: &[u8]) -> Result<bool, DecodeError> {
    let mut input = Reader::new("hello", body);
    while !input.is_empty() {
        let before = input.rest().len();
        let mut element = input.structure("hello element", 2, 4)?;
        let length = before - input.rest().len();
        // The padding of the last element may be missing.
        let padding = length.next_multiple_of(8) - length;
        input.skip(padding.min(input.rest().len()))?;
        let element_type = element.u16()?;
        element.skip(2)?;
        if element_type == 1 {
            return Ok(element.u32()? & 1 << VERSION != 0);
        }
    }
    Ok(version >= VERSION)
}

/// The steps of a bundle's life (`OFPBCT_*`, OpenFlow 1.4.1 §7.3.9.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BundleControl {
    Open = 0,
    Commit = 4,
    Discard = 6,
}

impl BundleControl {
    /// The type of the answer.
    pub(crate) fn reply(self) -> u16 {
        self as u16 + 1
    }
}

/// OFPBF_ATOMIC and OFPBF_ORDERED.
const BUNDLE_FLAGS: u16 = 0b11;

pub(crate) fn bundle_control(out: &mut Writer, xid: u32, bundle: u32, control: BundleControl) {
    out.u8(VERSION);
    out.u8(OFPT_BUNDLE_CONTROL);
    out.u16(16);
    out.u32(xid);
    out.u32(bundle);
    out.u16(control as u16);
    out.u16(BUNDLE_FLAGS);
}

/// Appends the message that puts a flow mod into a bundle. Both carry the same number, by which an error names it.
pub(crate) fn bundle_add(
    out: &mut Writer,
    xid: u32,
    bundle: u32,
    flow_mod: &FlowMod,
) -> Result<(), EncodeError> {
    message(out, OFPT_BUNDLE_ADD_MESSAGE, xid, |out| {
        out.u32(bundle);
        out.zeros(2);
        out.u16(BUNDLE_FLAGS);
        message(out, OFPT_FLOW_MOD, xid, |out| flow_mod.encode(out))
    })
}

const OFPMP_FLOW: u16 = 1;
const OFPMP_PORT_DESC: u16 = 13;
/// OFPMPF_REPLY_MORE: another part of the answer follows.
const MORE: u16 = 1;

fn multipart_header(out: &mut Writer, multipart_type: u16) {
    out.u16(multipart_type);
    out.zeros(6); // flags and padding
}

/// Appends the request for flows and their counters (OpenFlow 1.4.1 §7.3.5.2).
pub(crate) fn flow_stats_request(
    out: &mut Writer,
    xid: u32,
    table: Option<u8>,
    cookie: u64,
    cookie_mask: u64,
) -> Result<(), EncodeError> {
    message(out, OFPT_MULTIPART_REQUEST, xid, |out| {
        multipart_header(out, OFPMP_FLOW);
        out.u8(table.unwrap_or(OFPTT_ALL));
        out.zeros(3);
        out.u32(PortNo::ANY.0);
        out.u32(OFPG_ANY);
        out.zeros(4);
        out.u64(cookie);
        out.u64(cookie_mask);
        super::Match::new().encode(out)
    })
}

/// Appends the request for the bridge's ports (OpenFlow 1.4.1 §7.3.5.7).
pub(crate) fn port_desc_request(out: &mut Writer, xid: u32) -> Result<(), EncodeError> {
    message(out, OFPT_MULTIPART_REQUEST, xid, |out| {
        multipart_header(out, OFPMP_PORT_DESC);
        Ok(())
    })
}

/// Checks that an answer's part is about what was asked; says whether another one follows.
fn multipart_reply(
    input: &mut Reader<'_>,
    request: &'static str,
    multipart_type: u16,
) -> Result<bool, DecodeError> {
    let subtype = input.u16()?;
    let flags = input.u16()?;
    input.skip(4)?;
    if subtype != multipart_type {
        return Err(DecodeError::UnexpectedType { request, message_type: OFPT_MULTIPART_REPLY, subtype });
    }
    Ok(flags & MORE != 0)
}

/// Adds the flows of one part of the answer to `flows`; says whether another part follows.
pub(crate) fn flow_stats_reply(body: &[u8], flows: &mut Vec<FlowStats>) -> Result<bool, DecodeError> {
    let mut input = Reader::new("flow statistics", body);
    let more = multipart_reply(&mut input, "flow statistics request", OFPMP_FLOW)?;
    while !input.is_empty() {
        flows.push(FlowStats::decode(input.structure("flow statistics entry", 0, 56)?)?);
    }
    Ok(more)
}

/// Adds the ports of one part of the answer to `ports`; says whether another part follows.
pub(crate) fn port_desc_reply(body: &[u8], ports: &mut Vec<Port>) -> Result<bool, DecodeError> {
    let mut input = Reader::new("port description", body);
    let more = multipart_reply(&mut input, "port description request", OFPMP_PORT_DESC)?;
    while !input.is_empty() {
        ports.push(Port::decode(&mut input)?);
    }
    Ok(more)
}

/// A port of the bridge (OpenFlow 1.4.1 §7.2.1).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Port {
    /// Its number.
    pub no: PortNo,
    /// Its name, the network interface's.
    pub name: String,
    /// Its Ethernet address.
    pub mac: Mac,
}

impl Port {
    fn decode(input: &mut Reader<'_>) -> Result<Port, DecodeError> {
        let mut port = input.structure("port", 4, 40)?;
        let no = PortNo(port.u32()?);
        port.skip(4)?;
        let mac = Mac(port.octets()?);
        port.skip(2)?;
        let name: [u8; 16] = port.octets()?;
        let name = name.split(|octet| *octet == 0).next().unwrap_or_default();
        Ok(Port { no, mac, name: String::from_utf8_lossy(name).into_owned() })
    }
}

/// What has happened to a port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PortChange {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// Something about it is different.
    Modified,
}

/// The switch's message that a port has come, gone or changed (OpenFlow 1.4.1 §7.4.3).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PortStatus {
    /// What has happened.
    pub change: PortChange,
    /// The port as it is now, or was last.
    pub port: Port,
}

impl PortStatus {
    /// Reads what follows the header; `None` for a change that the standard does not know.
    pub(crate) fn decode(body: &[u8]) -> Result<Option<PortStatus>, DecodeError> {
        let mut input = Reader::new("port status", body);
        let reason = input.u8()?;
        input.skip(7)?;
        let port = Port::decode(&mut input)?;
        let change = match reason {
            0 => PortChange::Added,
            1 => PortChange::Removed,
            2 => PortChange::Modified,
            _ => return Ok(None),
        };
        Ok(Some(PortStatus { change, port }))
    }
}

/// What the switch says about itself (OpenFlow 1.4.1 §7.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Features {
    /// The bridge's identity.
    pub datapath_id: u64,
    /// How many tables flows can be in.
    pub tables: u8,
    /// What it can do, as `OFPC_*` bits.
    pub capabilities: u32,
}

impl Features {
    pub(crate) fn decode(body: &[u8]) -> Result<Features, DecodeError> {
        let mut input = Reader::new("features reply", body);
        let datapath_id = input.u64()?;
        input.skip(4)?; // packet buffers
        let tables = input.u8()?;
        input.skip(3)?; // auxiliary connection and padding
        Ok(Features { datapath_id, tables, capabilities: input.u32()? })
    }
}

/// A limit that flows send packets through; what goes beyond it is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Meter {
    /// Its number, from 1.
    pub id: u32,
    /// The limit in kilobits (1000 bits) per second.
    pub rate_kbps: u32,
    /// What may pass at once after a pause, in kilobits.
    pub burst_kbit: u32,
}

/// A change to the meters (OpenFlow 1.4.1 §7.3.4.4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MeterMod {
    /// Make a meter.
    Add(Meter),
    /// Give the meter of this number new limits.
    Modify(Meter),
    /// Take the meter of this number away, and the flows that go through it.
    Delete(u32),
}

pub(crate) fn meter_mod(out: &mut Writer, xid: u32, meter_mod: &MeterMod) -> Result<(), EncodeError> {
    /// OFPMF_KBPS and OFPMF_BURST.
    const FLAGS: u16 = 0b101;
    const OFPMBT_DROP: u16 = 1;
    let (command, id, limits) = match meter_mod {
        MeterMod::Add(meter) => (0, meter.id, Some(meter)),
        MeterMod::Modify(meter) => (1, meter.id, Some(meter)),
        MeterMod::Delete(id) => (2, *id, None),
    };
    message(out, OFPT_METER_MOD, xid, |out| {
        out.u16(command);
        out.u16(FLAGS);
        out.u32(id);
        if let Some(meter) = limits {
            out.u16(OFPMBT_DROP);
            out.u16(16);
            out.u32(meter.rate_kbps);
            out.u32(meter.burst_kbit);
            out.zeros(4);
        }
        Ok(())
    })
}

/// Appends the two messages by which the switch tells a management connection of port changes, and of nothing else.
///
/// Open vSwitch sends such a connection no message that it has not asked for, until a miss send length is set; then
/// it would send packets as well.
pub(crate) fn port_changes_on(out: &mut Writer, xid: u32) -> Result<(), EncodeError> {
    /// `OFPACPT_*` for packets, ports and removed flows (OpenFlow 1.4.1 §7.3.10), and which reasons to tell.
    const WANTED: [(u16, u32); 3] = [(1, 0), (3, 0b111), (5, 0)];
    message(out, OFPT_SET_ASYNC, xid, |out| {
        for (property, reasons) in WANTED {
            out.u16(property);
            out.u16(8);
            out.u32(reasons);
        }
        Ok(())
    })?;
    message(out, OFPT_SET_CONFIG, xid, |out| {
        out.u16(0); // no handling of fragments
        out.u16(1); // the miss send length
        Ok(())
    })
}

/// Turns an echo request, whole, into the answer to it: the same but for the type (OpenFlow 1.4.1 §7.5.3).
pub(crate) fn echo_reply(mut request: Vec<u8>) -> Vec<u8> {
    if let Some(message_type) = request.get_mut(1) {
        *message_type = OFPT_ECHO_REPLY;
    }
    request
}
