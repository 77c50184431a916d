//! Reading and writing big-endian fields, with every bound checked.

use super::{DecodeError, EncodeError};

/// Reads a message front to back.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// What is being read, for the error.
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Reader { rest: bytes, what }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn truncated(&self, wanted: usize) -> DecodeError {
        DecodeError::Truncated { what: self.what, wanted, there: self.rest.len() }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.rest.split_at_checked(count).ok_or_else(|| self.truncated(count))?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.rest.split_first_chunk().ok_or_else(|| self.truncated(N))?;
        self.rest = tail;
        Ok(*head)
    }

    pub(crate) fn skip(&mut self, count: usize) -> Result<(), DecodeError> {
        self.bytes(count).map(drop)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn octets<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.array()
    }

    /// A number of up to 16 bytes.
    pub(crate) fn number(&mut self, bytes: u8) -> Result<u128, DecodeError> {
        let octets = self.bytes(bytes.into())?;
        Ok(octets.iter().fold(0, |number, octet| number << 8 | u128::from(*octet)))
    }

    /// A structure that says its own length in the 16 bits at `length_at`; the reader gets all of it.
    pub(crate) fn structure(
        &mut self,
        what: &'static str,
        length_at: usize,
        least: usize,
    ) -> Result<Reader<'a>, DecodeError> {
        let mut peek = *self;
        peek.skip(length_at)?;
        let length = usize::from(peek.u16()?);
        if length < least || length > self.rest.len() {
            return Err(DecodeError::BadLength { what, length });
        }
        Ok(Reader::new(what, self.bytes(length)?))
    }
}

/// Appends to a message.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Writer { bytes: Vec::with_capacity(bytes) }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    pub(crate) fn zeros(&mut self, count: usize) {
        self.bytes.resize(self.bytes.len() + count, 0);
    }

    /// The low `bytes` bytes of a number.
    pub(crate) fn number(&mut self, value: u128, bytes: u8) {
        let octets = value.to_be_bytes();
        let skipped = octets.len().saturating_sub(bytes.into());
        self.bytes.extend(octets.iter().skip(skipped));
    }

    /// Zeros up to a length that, counted from `start`, is a multiple of 8.
    pub(crate) fn pad(&mut self, start: usize) {
        let length = self.bytes.len() - start;
        self.zeros(length.next_multiple_of(8) - length);
    }

    /// Fills in the 16-bit length at `at` of the structure that reaches from `start` to the end.
    pub(crate) fn set_length(&mut self, at: usize, start: usize) -> Result<(), EncodeError> {
        let length = self.bytes.len() - start;
        let short = u16::try_from(length).map_err(|_| EncodeError::TooLong { length })?;
        if let Some(place) = self.bytes.get_mut(at..at + 2) {
            place.copy_from_slice(&short.to_be_bytes());
        }
        Ok(())
    }
}
