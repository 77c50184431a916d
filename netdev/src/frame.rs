//! Ethernet frames, as far as address probes and announcements need them (IEEE 802.3).

use std::fmt;

pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum EtherType {
    Arp = 0x0806,
    Ipv6 = 0x86dd,
}

/// A hardware address as people write it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MacText(pub(crate) [u8; 6]);

impl fmt::Display for MacText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ethernet {
    pub(crate) destination: [u8; 6],
    pub(crate) source: [u8; 6],
}

impl Ethernet {
    pub(crate) fn frame(&self, ether_type: EtherType, payload: &[u8]) -> Vec<u8> {
        [&self.destination[..], &self.source, &(ether_type as u16).to_be_bytes(), payload].concat()
    }

    /// The header and what follows it, if the frame carries that.
    pub(crate) fn parse(mut frame: &[u8], ether_type: EtherType) -> Option<(Self, &[u8])> {
        let rest = &mut frame;
        let header = Self { destination: take(rest)?, source: take(rest)? };
        (u16::from_be_bytes(take(rest)?) == ether_type as u16).then_some((header, frame))
    }
}

/// The next bytes, if there are that many.
pub(crate) fn take<const BYTES: usize>(rest: &mut &[u8]) -> Option<[u8; BYTES]> {
    let (head, tail) = rest.split_first_chunk::<BYTES>()?;
    *rest = tail;
    Some(*head)
}
