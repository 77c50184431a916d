//! Addresses as CNI documents write them.

use std::fmt;
use std::net::{AddrParseError, IpAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The part before the slash is no IPv4 or IPv6 address.
    #[error("{0:?} is not an IP address")]
    Ip(String, #[source] AddrParseError),
    /// The part after the slash is missing, not a number, or more than the address has bits.
    #[error("{0:?} does not end in a prefix length from /0 to /{1}")]
    Prefix(String, u8),
    /// Not six pairs of hexadecimal digits.
    #[error("{0:?} is not a MAC address such as 02:00:5e:10:00:01")]
    Mac(String),
    /// An address that no interface may have.
    #[error("{0} is a multicast or an all-zero MAC address: an interface needs a unicast one")]
    NotUnicast(Mac),
}

/// An IP address with the length of its network's prefix, such as `172.11.0.5/22`. The host bits are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// An address in a network whose prefix has this many bits; `None` if the address has fewer.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= bits(address)).then_some(Self { address, prefix })
    }

    /// The address, host bits included.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// The length of the prefix in bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let requested = RequestedIp::from_str(text)?;
        let prefix =
            requested.prefix.ok_or_else(|| AddressError::Prefix(text.to_owned(), bits(requested.address)))?;
        Ok(Self { address: requested.address, prefix })
    }
}

impl TryFrom<String> for Cidr {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

/// An address that a pod asks for; runtimes write it with or without a prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestedIp {
    /// The address.
    pub address: IpAddr,
    /// The length of the prefix in bits, if one was written; never more than the address has bits.
    pub prefix: Option<u8>,
}

impl FromStr for RequestedIp {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|source| AddressError::Ip(text.to_owned(), source))?;
        let prefix = prefix.map(|prefix| prefix_length(prefix, address, text)).transpose()?;
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for RequestedIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix {
            Some(prefix) => write!(f, "{}/{prefix}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

fn prefix_length(digits: &str, address: IpAddr, text: &str) -> Result<u8, AddressError> {
    // u8's own parser also takes a sign, which no prefix length has.
    let only_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse::<u8>() {
        Ok(prefix) if only_digits && prefix <= bits(address) => Ok(prefix),
        _ => Err(AddressError::Prefix(text.to_owned(), bits(address))),
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The MAC address of an Ethernet interface; always a unicast one, and not all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Takes the six bytes in the order in which they are written.
    ///
    /// # Errors
    /// [`AddressError::NotUnicast`] if the group bit is set (IEEE 802, 8.2) or all bytes are zero.
    pub fn new(bytes: [u8; 6]) -> Result<Self, AddressError> {
        let mac = Self(bytes);
        if bytes[0] & 1 == 1 || bytes == [0; 6] { Err(AddressError::NotUnicast(mac)) } else { Ok(mac) }
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
    type Err = AddressError;

    /// Reads six pairs of hexadecimal digits with colons or with hyphens between them.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let malformed = || AddressError::Mac(text.to_owned());
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut pairs = text.split(separator);
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            let pair = pairs.next().ok_or_else(malformed)?;
            if pair.len() != 2 || !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| malformed())?;
        }
        if pairs.next().is_some() {
            return Err(malformed());
        }
        Self::new(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidrs_keep_their_host_bits() {
        for text in ["172.11.0.5/22", "10.0.0.0/0", "10.0.0.1/32", "fd00::1/64", "::/0", "fd00::1/128"] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        }
        assert!(Cidr::new(IpAddr::from([10, 0, 0, 1]), 33).is_none());
        assert!(Cidr::new(IpAddr::from([10, 0, 0, 1]), 32).is_some());
    }

    #[test]
    fn malformed_cidrs_are_refused() {
        for text in ["", "/", "/24", "10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/+8", "10.0.0/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text:?}");
        }
        for text in ["fd00::1/129", "10.0.0.1/8/8", "10.0.0.1/256", " 10.0.0.1/8", "10.0.0.01/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn requested_addresses_may_lack_a_prefix() {
        assert_eq!("10.0.0.1".parse::<RequestedIp>().unwrap().prefix, None);
        assert_eq!("10.0.0.1/24".parse::<RequestedIp>().unwrap().prefix, Some(24));
        assert_eq!("fd00::1".parse::<RequestedIp>().unwrap().to_string(), "fd00::1");
        assert!("10.0.0.1/".parse::<RequestedIp>().is_err());
    }

    #[test]
    fn macs_in_both_spellings() {
        assert_eq!("02:00:5E:10:00:01".parse::<Mac>().unwrap().to_string(), "02:00:5e:10:00:01");
        assert_eq!("02-00-5e-10-00-01".parse::<Mac>().unwrap().bytes(), [2, 0, 0x5e, 0x10, 0, 1]);
        for text in ["", "02:00:5e:10:00", "02:00:5e:10:00:01:02", "2:0:5e:10:0:1", "02:00:5e:10:00:0g"] {
            assert!(matches!(text.parse::<Mac>(), Err(AddressError::Mac(_))), "{text:?}");
        }
        for text in ["+2:00:5e:10:00:01", "0200.5e10.0001", "02:00-5e:10:00:01"] {
            assert!(matches!(text.parse::<Mac>(), Err(AddressError::Mac(_))), "{text:?}");
        }
        for text in ["00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff"] {
            assert!(matches!(text.parse::<Mac>(), Err(AddressError::NotUnicast(_))), "{text:?}");
        }
    }
}
