//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// An Ethernet (MAC) address, in transmission order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address that every station listens to.
    pub const BROADCAST: Mac = Mac([0xff; 6]);
    /// All bits zero: the unknown target of an ARP request.
    pub const ZERO: Mac = Mac([0; 6]);

    /// The address as the low 48 bits of a number, first octet highest.
    pub(crate) const fn bits(self) -> u128 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f]) as u128
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not six colon-separated pairs of hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address; write it as 02:00:5e:10:00:01")]
pub struct MacError(String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let wrong = || MacError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(wrong)?;
            // from_str_radix alone would take "+1" and "001" as well.
            if part.len() != 2 || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Mac(octets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let mac: Mac = "02:AB:cd:00:0f:10".parse().unwrap();
        assert_eq!(mac, Mac([2, 0xab, 0xcd, 0, 0x0f, 0x10]));
        assert_eq!(mac.to_string(), "02:ab:cd:00:0f:10");
        assert_eq!(mac.bits(), 0x02ab_cd00_0f10);
    }

    #[test]
    fn refuses_what_is_no_address() {
        for text in [
            "",
            "02:ab:cd:00:0f",
            "02:ab:cd:00:0f:10:11",
            "2:ab:cd:00:0f:10",
            "+2:ab:cd:00:0f:10",
            "02-ab-cd-00-0f-10",
            "0g:ab:cd:00:0f:10",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text:?}");
        }
    }
}
