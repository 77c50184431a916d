//! MAC addresses: those made from pod addresses, and those that people ask for.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use crate::spread::spread;

/// The MAC address of the interface that has this address: `0e:74`, then the four bytes of the address.
///
/// It is locally administered and unicast (IEEE 802: bit 1 of the first byte set, bit 0 clear), unique where the
/// address is, and the same on every node, so that a node can answer ARP for a pod that it has never seen.
pub const fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0e, 0x74, a, b, c, d]
}

/// The MAC address that comes with a lease of this address on this segment, unless the pod asks for another.
///
/// It begins with `02`: locally administered and unicast, in the part of that space which IEEE 802c leaves to the
/// network's administrator. The second byte is a hash of the segment's name, with its top bit telling IPv6 from IPv4;
/// then come the last four bytes of the address. So it is unique on a segment for IPv4, and for IPv6 within any 2^32
/// addresses in a row (beyond, the hash covers the rest of the address too, and
/// [`LeaseBook::choose`](crate::LeaseBook::choose) passes over an address whose MAC is in use).
pub fn mac_of_lease(segment: &str, ip: IpAddr) -> Mac {
    let (mark, high, [a, b, c, d]) = match ip {
        IpAddr::V4(v4) => (0, 0, v4.octets()),
        IpAddr::V6(v6) => {
            let [high @ .., a, b, c, d] = v6.octets();
            let high = high.iter().fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
            (0x80, high, [a, b, c, d])
        }
    };
    let hash = spread(&[segment.as_bytes(), &high.to_be_bytes()]) as u8;
    Mac([0x02, hash & 0x7f | mark, a, b, c, d])
}

/// The MAC address of an interface: a unicast one, not all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

/// Why something is no interface's MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six pairs of hexadecimal digits.
    #[error("not a MAC address such as 02:00:5e:10:00:01")]
    Malformed,
    /// The group bit is set (IEEE 802, 8.2), or all bytes are zero.
    #[error("a multicast or an all-zero MAC address, which no interface may have")]
    NotUnicast,
}

impl Mac {
    /// Takes the six bytes in the order in which they are written.
    ///
    /// # Errors
    /// No interface may have it.
    pub fn new(bytes: [u8; 6]) -> Result<Mac, MacError> {
        let [first, ..] = bytes;
        if first & 1 == 1 || bytes == [0; 6] { Err(MacError::NotUnicast) } else { Ok(Mac(bytes)) }
    }

    /// The six bytes in the order in which they are written.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    /// Reads six pairs of hexadecimal digits with colons between them.
    fn from_str(text: &str) -> Result<Mac, MacError> {
        let mut pairs = text.split(':');
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            let pair = pairs.next().filter(|pair| pair.len() == 2 && !pair.starts_with('+'));
            *byte = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or(MacError::Malformed)?;
        }
        if pairs.next().is_some() { Err(MacError::Malformed) } else { Mac::new(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn it_is_locally_administered_unicast_and_holds_the_address() {
        let mac = mac_of(Ipv4Addr::new(172, 11, 0, 255));
        assert_eq!(mac, [0x0e, 0x74, 172, 11, 0, 255]);
        assert_eq!(mac[0] & 0b11, 0b10);
    }

    #[test]
    fn a_lease_has_a_mac_of_its_own_that_never_changes() {
        // Golden: pods keep their MAC across versions of Tenon.
        for (segment, ip, mac) in [
            ("vlan100", "10.100.0.10", "02:25:0a:64:00:0a"),
            ("vlan200", "10.100.0.10", "02:46:0a:64:00:0a"),
            ("vlan100", "fd00::10", "02:e1:00:00:00:10"),
        ] {
            let found = mac_of_lease(segment, ip.parse().unwrap());
            assert_eq!(found.to_string(), mac, "{segment} {ip}");
            assert_eq!(Mac::new(found.bytes()), Ok(found));
            assert_eq!(found.bytes()[0] & 0b11, 0b10);
        }
        let v4 = (0..=u16::MAX).map(|low| IpAddr::from([10, 1, (low >> 8) as u8, low as u8]));
        let v6 = (0..=u16::MAX).map(|low| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0x0a01, low]));
        let macs: BTreeSet<Mac> = v4.chain(v6).map(|ip| mac_of_lease("s", ip)).collect();
        assert_eq!(macs.len(), 2 << 16);
    }

    #[test]
    fn macs_are_read_and_written() {
        assert_eq!(
            "0A:bc:00:00:00:ff".parse::<Mac>().map(|mac| mac.to_string()).unwrap(),
            "0a:bc:00:00:00:ff"
        );
        for text in ["", "0a:bc:00:00:00", "0a:bc:00:00:00:ff:00", "0a-bc-00-00-00-ff", "+a:00:00:00:00:00"] {
            assert_eq!(text.parse::<Mac>(), Err(MacError::Malformed), "{text:?}");
        }
        for text in ["00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff"] {
            assert_eq!(text.parse::<Mac>(), Err(MacError::NotUnicast), "{text:?}");
        }
    }
}
