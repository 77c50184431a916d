//! The VXLAN network identifier of a tenant.

use serde::{Deserialize, Serialize};

/// A tenant's VXLAN network identifier (RFC 7348 section 4: 24 bits), called NetID in the records.
///
/// 0 is the global tenant, which talks to every other; 1 to 9 are reserved and never a `Vni`; 10 to 16777215 are
/// given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

/// Why a number is no [`Vni`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VniError {
    /// 1 to 9.
    #[error("NetID {0} is reserved: use 0 (global), or 10 to 16777215")]
    Reserved(u32),
    /// More than 24 bits.
    #[error("NetID {0} does not fit in the 24 bits of a VNI: use 0 (global), or 10 to 16777215")]
    TooBig(u32),
}

impl Vni {
    /// The tenant that talks to every other.
    pub const GLOBAL: Vni = Vni(0);
    /// The lowest that is given out.
    pub const FIRST: Vni = Vni(10);
    /// The highest that is given out.
    pub const LAST: Vni = Vni(0xff_ffff);

    /// Checks a number.
    ///
    /// # Errors
    /// The number is reserved or too big.
    pub const fn new(number: u32) -> Result<Vni, VniError> {
        match number {
            0 | 10..=0xff_ffff => Ok(Vni(number)),
            1..=9 => Err(VniError::Reserved(number)),
            _ => Err(VniError::TooBig(number)),
        }
    }

    /// The number, as it goes into a VXLAN header.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whether this is [`Vni::GLOBAL`].
    pub const fn is_global(self) -> bool {
        self.0 == 0
    }
}

impl TryFrom<u32> for Vni {
    type Error = VniError;

    fn try_from(number: u32) -> Result<Vni, VniError> {
        Vni::new(number)
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> u32 {
        vni.0
    }
}

impl std::fmt::Display for Vni {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zero_and_ten_upwards_are_vnis() {
        assert_eq!(Vni::new(0), Ok(Vni::GLOBAL));
        for reserved in 1..=9 {
            assert_eq!(Vni::new(reserved), Err(VniError::Reserved(reserved)));
        }
        assert_eq!(Vni::new(10), Ok(Vni::FIRST));
        assert_eq!(Vni::new(16_777_215), Ok(Vni::LAST));
        assert_eq!(Vni::new(16_777_216), Err(VniError::TooBig(16_777_216)));
        assert_eq!(Vni::new(u32::MAX), Err(VniError::TooBig(u32::MAX)));
    }

    #[test]
    fn json_holds_the_bare_number_and_is_checked() {
        assert_eq!(serde_json::to_string(&Vni::FIRST).unwrap(), "10");
        assert_eq!(serde_json::from_str::<Vni>("16777215").unwrap(), Vni::LAST);
        assert!(serde_json::from_str::<Vni>("7").unwrap_err().to_string().contains("NetID 7 is reserved"));
    }
}
