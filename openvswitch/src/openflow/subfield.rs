//! Parts of fields: registers with names, and what actions read and write.

use std::fmt;

use super::field_kind::{REGISTERS, low_bits};
use super::{Action, Field, FieldError, FieldKind};

/// Adjacent bits of a field: the destination or source of an action, or what a match is about.
///
/// A pipeline gives its register parts names:
/// ```
/// use openvswitch::openflow::{Match, Subfield};
/// const TENANT: Subfield = Subfield::register::<0, 0, 24>();
/// let actions = vec![TENANT.load(300_924)?];
/// let match_ = Match::new().with(TENANT.matching(300_924)?);
/// assert!(TENANT.load(1 << 24).is_err());
/// # Ok::<(), openvswitch::openflow::FieldError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Subfield {
    kind: FieldKind,
    first_bit: u8,
    bits: u8,
}

impl Subfield {
    /// `BITS` bits of register `REGISTER` from `FIRST_BIT` (0 is the lowest) on. Bits or a register that do not exist
    /// do not compile.
    pub const fn register<const REGISTER: usize, const FIRST_BIT: u8, const BITS: u8>() -> Subfield {
        const {
            assert!(REGISTER < 16, "there are registers 0 to 15");
            assert!(BITS > 0 && FIRST_BIT < 32 && BITS <= 32 - FIRST_BIT, "a register has bits 0 to 31");
            Subfield { kind: REGISTERS[REGISTER], first_bit: FIRST_BIT, bits: BITS }
        }
    }

    pub(crate) const fn whole(kind: FieldKind) -> Subfield {
        Subfield { kind, first_bit: 0, bits: kind.bits() }
    }

    /// `bits` bits of a field from `first_bit` (0 is the lowest) on.
    ///
    /// # Errors
    /// [`FieldError::NoSuchBits`].
    pub fn new(kind: FieldKind, first_bit: u8, bits: u8) -> Result<Subfield, FieldError> {
        let left = kind.bits().saturating_sub(first_bit);
        if bits == 0 || bits > left {
            return Err(FieldError::NoSuchBits { kind, first_bit, bits });
        }
        Ok(Subfield { kind, first_bit, bits })
    }

    /// The field.
    pub const fn kind(self) -> FieldKind {
        self.kind
    }
    /// The lowest bit; 0 is the field's lowest.
    pub const fn first_bit(self) -> u8 {
        self.first_bit
    }
    /// How many bits.
    pub const fn bits(self) -> u8 {
        self.bits
    }

    fn check(self, value: u128) -> Result<(), FieldError> {
        if value & !low_bits(self.bits) != 0 {
            return Err(FieldError::TooWide { kind: self.kind, bits: self.bits, value });
        }
        Ok(())
    }

    /// A match on these bits alone.
    ///
    /// # Errors
    /// [`FieldError::TooWide`], and [`FieldError::NotMaskable`] for a part of a field that is matched as a whole.
    pub fn matching(self, value: u64) -> Result<Field, FieldError> {
        let value = u128::from(value);
        self.check(value)?;
        Field::new(self.kind, value << self.first_bit, low_bits(self.bits) << self.first_bit)
    }

    /// The action that writes these bits and leaves the field's others as they are.
    ///
    /// # Errors
    /// [`FieldError::TooWide`].
    pub fn load(self, value: u64) -> Result<Action, FieldError> {
        self.check(value.into())?;
        Ok(Action::Load { dst: self, value })
    }

    /// The action that copies these bits to `dst`.
    ///
    /// # Errors
    /// [`FieldError::UnequalParts`].
    pub fn copy_to(self, dst: impl Into<Subfield>) -> Result<Action, FieldError> {
        let dst = dst.into();
        if self.bits != dst.bits {
            return Err(FieldError::UnequalParts { src: self, dst });
        }
        Ok(Action::Move { src: self, dst })
    }
}

impl From<FieldKind> for Subfield {
    fn from(kind: FieldKind) -> Self {
        kind.whole()
    }
}

impl fmt::Display for Subfield {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.first_bit.saturating_add(self.bits.saturating_sub(1));
        write!(f, "{}[{}..{last}]", self.kind, self.first_bit)
    }
}
