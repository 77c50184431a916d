//! Messages of the kernel's traffic control (linux/pkt_sched.h, linux/pkt_cls.h), as far as [shapers](crate::shaper)
//! and [link shapers](crate::link_shaper) need them.

use netlink_packet_core::{DecodeError, DefaultNla, Emitable, NlasIterator, parse_u32, parse_u64};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage};

use crate::limit::Shape;
use crate::socket::{Decoded, text};

/// The handle of the HTB that is a device's root.
pub(crate) const ROOT: TcHandle = TcHandle { major: 1, minor: 0 };
/// Where the filters of what a device receives are, in its `clsact`.
pub(crate) const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const NESTED: u16 = netlink_packet_core::NLA_F_NESTED;
/// `struct tcmsg`.
const HEADER_BYTES: usize = 20;

/// The class of this number of the HTB that is a device's root.
pub(crate) fn class_handle(class: u16) -> TcHandle {
    TcHandle { major: ROOT.major, minor: class }
}

/// A request about what has this handle and parent; either may be left open.
pub(crate) fn message(index: u32, handle: TcHandle, parent: TcHandle) -> TcMessage {
    // The kernel's device numbers are positive and signed.
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.handle = handle;
    message.header.parent = parent;
    message
}

/// An HTB as a device's root. What belongs to no class goes into the one of this number, and while there is none of
/// it, as there is never of 0, is sent unhindered.
pub(crate) fn htb_root(index: u32, default_class: u16) -> RouteNetlinkMessage {
    // struct tc_htb_glob: version, rate2quantum, default class, debug, direct packets.
    let init = words(&[3, 10, default_class.into(), 0, 0]);
    let message = message(index, ROOT, TcHandle::ROOT);
    RouteNetlinkMessage::NewQueueDiscipline(with_options(message, "htb", nest(&[attribute(htb::INIT, init)])))
}

/// The hooks for filters of what a device receives and sends.
pub(crate) fn clsact(index: u32) -> RouteNetlinkMessage {
    let mut message = message(index, TcHandle { major: 0xffff, minor: 0 }, TcHandle::CLSACT);
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    RouteNetlinkMessage::NewQueueDiscipline(message)
}

/// A class of the HTB that is a device's root: its rate and burst.
pub(crate) fn htb_class(index: u32, class: u16, shape: &Shape) -> RouteNetlinkMessage {
    /// How much a class may send before others have their turn. Only classes that share a parent's rate do; the
    /// kernel warns if it is left to guess.
    const QUANTUM_BYTES: u32 = 60_000;
    let rate = rate_specification(shape.bytes_per_second);
    let rest = words(&[shape.burst_ticks, shape.burst_ticks, QUANTUM_BYTES, 0, 0]);
    let rate64 = shape.bytes_per_second.to_ne_bytes().to_vec();
    let options = nest(&[
        attribute(htb::PARMS, [&rate[..], &rate[..], &rest].concat()),
        attribute(htb::RATE64, rate64.clone()),
        attribute(htb::CEIL64, rate64),
    ]);
    let message = message(index, class_handle(class), TcHandle::ROOT);
    RouteNetlinkMessage::NewTrafficClass(with_options(message, "htb", options))
}

mod htb {
    pub(super) const PARMS: u16 = 1;
    pub(super) const INIT: u16 = 2;
    pub(super) const RATE64: u16 = 6;
    pub(super) const CEIL64: u16 = 7;
}

/// `struct tc_ratespec`, for a link layer that adds nothing, so that the kernel wants no rate table.
fn rate_specification(bytes_per_second: u64) -> [u8; 12] {
    const TC_LINKLAYER_ETHERNET: u8 = 1;
    let mut bytes = [0; 12];
    bytes[1] = TC_LINKLAYER_ETHERNET;
    bytes[8..].copy_from_slice(&u32::try_from(bytes_per_second).unwrap_or(u32::MAX).to_ne_bytes());
    bytes
}

/// The queue of a class: a TBF, which cuts up segmented packets (GSO) that are too large, and is far too fast ever to
/// hold anything back.
pub(crate) fn class_queue(
    index: u32,
    class: u16,
    queue_bytes: u32,
    packet_bytes: u32,
) -> RouteNetlinkMessage {
    const BOUNDLESS: u64 = 1 << 60;
    // struct tc_tbf_qopt: rate, peak rate, length, and two times that the kernel works out from the burst.
    let rate = rate_specification(BOUNDLESS);
    let parameters = [&rate[..], &[0; 12], &words(&[queue_bytes, 0, 0])].concat();
    let options = nest(&[
        attribute(tbf::PARMS, parameters),
        attribute(tbf::RATE64, BOUNDLESS.to_ne_bytes().to_vec()),
        attribute(tbf::BURST, words(&[packet_bytes])),
    ]);
    let message = message(index, TcHandle::UNSPEC, class_handle(class));
    RouteNetlinkMessage::NewQueueDiscipline(with_options(message, "tbf", options))
}

mod tbf {
    pub(super) const PARMS: u16 = 1;
    pub(super) const RATE64: u16 = 4;
    pub(super) const BURST: u16 = 6;
}

/// An instruction of a classic BPF program (`struct sock_filter`), of those that have no jumps.
#[derive(Clone, Copy)]
pub(crate) enum Instruction {
    /// Loads two bytes of the packet, from this one on.
    LoadHalf(u32),
    /// Sets the bits that are set here.
    Or(u32),
    /// Ends with what was loaded.
    ReturnLoaded,
    /// Ends with this.
    Return(u32),
}

impl Instruction {
    fn bytes(self) -> [u8; 8] {
        // linux/bpf_common.h.
        let (code, constant) = match self {
            Self::LoadHalf(at) => (0x28_u16, at),
            Self::Or(bits) => (0x44, bits),
            Self::ReturnLoaded => (0x16, 0),
            Self::Return(value) => (0x06, value),
        };
        let [c0, c1] = code.to_ne_bytes();
        let [k0, k1, k2, k3] = constant.to_ne_bytes();
        [c0, c1, 0, 0, k0, k1, k2, k3]
    }
}

/// The only filter at `parent`: a program that says which class a packet is for (0: it does not know), and what is
/// done with the packets that it knows.
pub(crate) fn filter(
    index: u32,
    parent: TcHandle,
    program: &[Instruction],
    action: Option<Mirred>,
) -> RouteNetlinkMessage {
    const TCA_BPF_ACT: u16 = 1;
    const TCA_BPF_OPS_LEN: u16 = 4;
    const TCA_BPF_OPS: u16 = 5;
    const PRIORITY: u32 = 1;
    let all_protocols = u32::from(0x0003_u16.to_be());
    let mut message = message(index, TcHandle { major: 0, minor: 1 }, parent);
    message.header.info = PRIORITY << 16 | all_protocols;
    // The kernel takes at most 4096 instructions, and refuses a count that differs from theirs.
    let count = u16::try_from(program.len()).unwrap_or(u16::MAX);
    let mut options = vec![
        attribute(TCA_BPF_OPS_LEN, count.to_ne_bytes().to_vec()),
        attribute(TCA_BPF_OPS, program.iter().flat_map(|instruction| instruction.bytes()).collect()),
    ];
    if let Some(action) = action {
        const FIRST: u16 = 1;
        options.push(attribute(TCA_BPF_ACT | NESTED, nest(&[attribute(FIRST | NESTED, action.nest())])));
    }
    RouteNetlinkMessage::NewTrafficFilter(with_options(message, "bpf", nest(&options)))
}

/// Sends a packet by a device (tc-mirred(8)).
#[derive(Clone, Copy)]
pub(crate) struct Mirred {
    /// The packet itself goes (redirect), or a copy of it, and the packet ends (mirror).
    pub(crate) itself: bool,
    /// The index of the device.
    pub(crate) device: u32,
}

impl Mirred {
    fn nest(self) -> Vec<u8> {
        const TCA_ACT_KIND: u16 = 1;
        const TCA_ACT_OPTIONS: u16 = 2;
        const TCA_MIRRED_PARMS: u16 = 2;
        const TC_ACT_SHOT: u32 = 2;
        const TC_ACT_STOLEN: u32 = 4;
        const TCA_EGRESS_REDIR: u32 = 1;
        const TCA_EGRESS_MIRROR: u32 = 2;
        let (verdict, way) =
            if self.itself { (TC_ACT_STOLEN, TCA_EGRESS_REDIR) } else { (TC_ACT_SHOT, TCA_EGRESS_MIRROR) };
        // struct tc_mirred: index, capabilities, verdict, two reference counts; way, device.
        let parameters = words(&[0, 0, verdict, 0, 0, way, self.device]);
        nest(&[
            attribute(TCA_ACT_KIND, b"mirred\0".to_vec()),
            attribute(TCA_ACT_OPTIONS | NESTED, nest(&[attribute(TCA_MIRRED_PARMS, parameters)])),
        ])
    }
}

/// What the kernel says of a queueing discipline or class.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Description {
    /// The index of its device.
    pub(crate) index: u32,
    pub(crate) handle: TcHandle,
    pub(crate) parent: TcHandle,
    pub(crate) kind: String,
    /// Of an HTB's class: its rate.
    pub(crate) bytes_per_second: u64,
    /// Of an HTB's class: its burst.
    pub(crate) burst_ticks: u32,
    /// Of a TBF: the length of its queue.
    pub(crate) queue_bytes: Option<u32>,
    /// Of an HTB: the class for what belongs to no other.
    pub(crate) default_class: u32,
}

/// Reads the body of RTM_NEWQDISC and RTM_NEWTCLASS.
pub(crate) fn decode(body: &[u8]) -> Decoded<Description> {
    let header = TcHeader::parse(body)?;
    let mut found = Description {
        index: header.index.cast_unsigned(),
        handle: header.handle,
        parent: header.parent,
        ..Description::default()
    };
    for attribute in NlasIterator::new(body.get(HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind() {
            TCA_KIND => found.kind = text(attribute.value()),
            // The kind comes first.
            TCA_OPTIONS if found.kind == "htb" || found.kind == "tbf" => {
                options(&mut found, attribute.value())?;
            }
            _ => {}
        }
    }
    Ok(Some(found))
}

fn options(found: &mut Description, options: &[u8]) -> Result<(), DecodeError> {
    for option in NlasIterator::new(options) {
        let option = option?;
        let value = option.value();
        let word = |at: usize| parse_u32(value.get(at..at + 4).unwrap_or_default());
        match (found.kind.as_str(), option.kind()) {
            // struct tc_htb_opt: the rate ends the first tc_ratespec, the burst follows the second.
            ("htb", htb::PARMS) => {
                found.bytes_per_second = found.bytes_per_second.max(word(8)?.into());
                found.burst_ticks = word(24)?;
            }
            // struct tc_htb_glob.
            ("htb", htb::INIT) => found.default_class = word(8)?,
            ("htb", htb::RATE64) => found.bytes_per_second = parse_u64(value)?,
            // struct tc_tbf_qopt: the length follows two tc_ratespec.
            ("tbf", tbf::PARMS) => found.queue_bytes = Some(word(24)?),
            _ => {}
        }
    }
    Ok(())
}

fn with_options(mut message: TcMessage, kind: &str, options: Vec<u8>) -> TcMessage {
    let options = DefaultNla::new(TCA_OPTIONS | NESTED, options);
    message.attributes = vec![TcAttribute::Kind(kind.to_owned()), TcAttribute::Other(options)];
    message
}

fn attribute(kind: u16, value: Vec<u8>) -> DefaultNla {
    DefaultNla::new(kind, value)
}

fn nest(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(
            header in prop::collection::vec(any::<u8>(), 20),
            htb: bool,
            options in prop::collection::vec((0_u8..28, 0_u8..9, prop::collection::vec(any::<u8>(), 0..48)), 0..5),
            length in 0_usize..300,
        ) {
            let kind = if htb { &b"htb\0"[..] } else { &b"tbf\0"[..] };
            let mut nested = Vec::new();
            for (length, kind, value) in options {
                nested.extend([length, 0, kind, 0]);
                nested.extend(value);
            }
            let attributes = nest(&[attribute(TCA_KIND, kind.to_vec()), attribute(TCA_OPTIONS, nested)]);
            let mut body = [header, attributes].concat();
            body.truncate(length);
            let _ = decode(&body);
        }
    }
}
