//! Bandwidth limits, and what they are for the kernel's HTB (tc-htb(8)). Pure.

use std::fmt;
use std::num::NonZeroU64;

/// What an Ethernet header adds to a packet in a queue's count.
const ETHERNET_BYTES: u64 = 14;
/// A VLAN's tag, which the MTU does not count either (IEEE 802.1Q).
const VLAN_BYTES: u64 = 4;
/// An IPv4 header without options (RFC 791).
const IPV4_BYTES: u64 = 20;

/// How much may leave at once after a pause. The kernel must come round again within this time or the rest of the
/// rate is lost, and the first second has this much more than the others: so much that a busy node keeps the rate,
/// so little that it stays within the limit's tolerance.
const BURST_MS: u64 = 20;
/// The least burst: a queue that may send one packet only stands still whenever a larger one comes.
const LEAST_BURST_FRAMES: u64 = 2;
/// How long a full queue holds a packet. With it a single TCP connection keeps the rate over paths of up to twice
/// this round trip time: it waits for less than half its window after a loss (RFC 9438 section 4.6). What comes after
/// a lost packet reaches the program when that has come again, one queue's length later: a longer queue is a longer
/// gap.
const QUEUE_MS: u64 = 30;
/// The same of a slow limit, until its queue has [`SLOW_QUEUE_FRAMES`]: with fewer, too little is left of a TCP
/// connection's first loss to tell it soon what was lost, and it waits for its timer, 200 ms and more (measured, see
/// `docs/bandwidth.md`).
const SLOW_QUEUE_MS: u64 = 50;
const SLOW_QUEUE_FRAMES: u64 = 20;
/// The least queue: with the burst it takes the 10 packets that a TCP connection begins with (RFC 6928).
const LEAST_QUEUE_FRAMES: u64 = 8;
/// A packet that takes longer than this is cut up into frames: TCP makes packets of up to 64 KiB (GSO), half a second
/// at 1 Mbit/s. Above 100 Mbit/s they stay whole, which is what saves time.
const PACKET_MS: u64 = 5;
/// The kernel counts a burst by the time that it takes at the class's rate, in units of 64 ns.
const TICK_NS: u128 = 64;

/// How much a pod may send or receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit {
    /// What the pod's packets carry above IP, in bits per second, when they are as large as the MTU lets them be.
    /// A program then measures 98 to 99 % of it over TCP and UDP; Ethernet and IPv4 headers, 1 to 3 %, come on top.
    pub bits_per_second: NonZeroU64,
    /// What may be sent at once after a pause, in bits; `None` for 20 ms at the limit's rate. More than that is
    /// what the first second has too much.
    pub burst_bits: Option<NonZeroU64>,
    /// The MTU of the pod's interface, in bytes. Larger packets, but for those that can be cut up, do not pass.
    pub mtu: u32,
}

/// A limit as the kernel keeps it; equal if it is the same limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// The rate in bytes of Ethernet frames per second.
    pub bytes_per_second: u64,
    /// The burst as the time that it takes at this rate, in units of 64 ns.
    pub burst_ticks: u32,
    /// The length of the queue, in bytes of Ethernet frames.
    pub queue_bytes: u32,
}

impl Limit {
    /// The limit as the kernel is told it.
    pub fn shape(&self) -> Shape {
        let frame = self.frame();
        // An MTU without room for anything is counted as it is.
        let payload = u64::from(self.mtu).checked_sub(IPV4_BYTES).filter(|bytes| *bytes > 0).unwrap_or(frame);
        let on_the_wire =
            |bits: u64| saturate(u128::from(bits) * u128::from(frame) / u128::from(payload) / 8).max(1);
        let bytes_per_second = on_the_wire(self.bits_per_second.get());
        let burst = self
            .burst_bits
            .map_or_else(|| lasting(bytes_per_second, BURST_MS), |bits| on_the_wire(bits.get()))
            .max(LEAST_BURST_FRAMES * frame);
        let slow = lasting(bytes_per_second, SLOW_QUEUE_MS).min(SLOW_QUEUE_FRAMES * frame);
        let queue = lasting(bytes_per_second, QUEUE_MS).max(slow).max(LEAST_QUEUE_FRAMES * frame);
        let burst_ns = u128::from(burst) * 1_000_000_000 / u128::from(bytes_per_second);
        Shape {
            bytes_per_second,
            burst_ticks: u32::try_from(burst_ns / TICK_NS).unwrap_or(u32::MAX),
            queue_bytes: u32::try_from(queue).unwrap_or(u32::MAX),
        }
    }
}

impl Limit {
    /// The largest packet that is not cut up, in bytes of an Ethernet frame.
    pub(crate) fn packet_bytes(&self) -> u32 {
        let largest = lasting(self.shape().bytes_per_second, PACKET_MS).max(self.frame() + VLAN_BYTES);
        u32::try_from(largest).unwrap_or(u32::MAX)
    }

    fn frame(&self) -> u64 {
        u64::from(self.mtu) + ETHERNET_BYTES
    }
}

impl Shape {
    /// Lets everything through at once.
    pub(crate) const OPEN: Self =
        Self { bytes_per_second: u64::MAX, burst_ticks: u32::MAX, queue_bytes: u32::MAX };
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let burst_us = u128::from(self.burst_ticks) * TICK_NS / 1000;
        write!(
            f,
            "{} bytes/s with a burst of {burst_us} us and a queue of {} bytes",
            self.bytes_per_second, self.queue_bytes
        )
    }
}

fn lasting(bytes_per_second: u64, ms: u64) -> u64 {
    saturate(u128::from(bytes_per_second) * u128::from(ms) / 1000)
}

fn saturate(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limit(bits_per_second: u64, burst_bits: u64) -> Limit {
        Limit {
            bits_per_second: NonZeroU64::new(bits_per_second).unwrap(),
            burst_bits: NonZeroU64::new(burst_bits),
            mtu: 1450,
        }
    }

    #[test]
    fn headers_come_on_top() {
        // 10 Mbit/s in 1430 bytes of each frame of 1464.
        let shape = limit(10_000_000, 0).shape();
        assert_eq!(shape.bytes_per_second, 1_279_720);
        // 20 ms in units of 64 ns, and whole bytes.
        assert_eq!(shape.burst_ticks, 312_495);
        assert_eq!(shape.queue_bytes, 38_391);
        assert_eq!(shape.to_string(), "1279720 bytes/s with a burst of 19999 us and a queue of 38391 bytes");
    }

    #[test]
    fn slow_limits_let_whole_packets_pass() {
        let shape = limit(1000, 0).shape();
        assert_eq!(shape.bytes_per_second, 127);
        // 2 frames of 1464 bytes take 23 s.
        assert_eq!(u128::from(shape.burst_ticks) * 64 / 1_000_000_000, 23);
        assert_eq!(shape.queue_bytes, 8 * 1464);
        assert_eq!(limit(1, 0).shape().bytes_per_second, 1);
    }

    #[test]
    fn queues_are_long_enough_for_tcp_and_no_longer() {
        let queue = |bits_per_second| limit(bits_per_second, 0).shape().queue_bytes;
        // In frames: the least, 50 ms, the 20 that end this, 30 ms.
        assert_eq!(queue(1_000_000), 8 * 1464);
        assert_eq!(queue(4_000_000), 25_594);
        assert_eq!(queue(6_000_000), 20 * 1464);
        assert_eq!(queue(100_000_000), 383_916);
    }

    #[test]
    fn a_burst_that_is_asked_for_is_given() {
        let shape = limit(8_000_000, 8_000_000).shape();
        assert_eq!(u128::from(shape.burst_ticks) * 64 / 1_000_000, 1000);
    }

    #[test]
    fn the_largest_limits_fit() {
        let shape = limit(1_000_000_000_000_000, 0).shape();
        assert_eq!(shape.bytes_per_second, 127_972_027_972_027);
        assert_eq!(shape.queue_bytes, u32::MAX);
        limit(u64::MAX, u64::MAX).shape();
    }

    #[test]
    fn only_large_packets_on_slow_limits_are_cut_up() {
        assert_eq!(limit(1_000_000, 0).packet_bytes(), 1468);
        assert_eq!(limit(10_000_000, 0).packet_bytes(), 6398);
        assert!(limit(110_000_000, 0).packet_bytes() > 65536);
    }

    proptest! {
        #[test]
        fn more_is_never_less(a in 1_u64.., b in 1_u64.., mtu: u32) {
            let shape = |bits| Limit { mtu, ..limit(bits, 0) }.shape();
            let (low, high) = (shape(a.min(b)), shape(a.max(b)));
            prop_assert!(low.bytes_per_second <= high.bytes_per_second);
            prop_assert!(low.queue_bytes <= high.queue_bytes);
            prop_assert!(low.burst_ticks > 0 || low.bytes_per_second > 1 << 40);
        }
    }
}
