//! How a document travels over a stream socket: its length as four bytes, big-endian, and then the document.
//!
//! Pure functions on buffers, for blocking and asynchronous callers alike: read [`HEADER_BYTES`], ask
//! [`body_length`] how much follows, read that.

/// The length of what stands before a document.
pub const HEADER_BYTES: usize = 4;

/// The longest document that is sent or taken.
pub const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;

/// A document is too long to travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a document of {0} bytes is longer than the {MAX_BODY_BYTES} bytes that plugin and agent exchange")]
pub struct TooLong(pub usize);

/// The document with its length before it.
///
/// # Errors
/// [`TooLong`] beyond [`MAX_BODY_BYTES`].
pub fn encode(body: &[u8]) -> Result<Vec<u8>, TooLong> {
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_BODY_BYTES);
    let length = length.ok_or(TooLong(body.len()))?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + body.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(body);
    Ok(frame)
}

/// The length of the document that follows this header.
///
/// # Errors
/// [`TooLong`] beyond [`MAX_BODY_BYTES`]; the caller should close the connection.
pub fn body_length(header: [u8; HEADER_BYTES]) -> Result<usize, TooLong> {
    let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if length > MAX_BODY_BYTES { Err(TooLong(length)) } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_start_with_their_length() {
        assert_eq!(encode(b"").unwrap(), [0, 0, 0, 0]);
        assert_eq!(encode(b"{}").unwrap(), [0, 0, 0, 2, b'{', b'}']);
        let frame = encode(&vec![b' '; 258]).unwrap();
        assert_eq!(frame.len(), 262);
        assert_eq!(frame[..4], [0, 0, 1, 2]);
        assert_eq!(body_length([0, 0, 1, 2]).unwrap(), 258);
    }

    #[test]
    fn both_sides_have_the_same_bound() {
        let header = |length: usize| u32::try_from(length).unwrap().to_be_bytes();
        assert_eq!(body_length(header(MAX_BODY_BYTES)), Ok(MAX_BODY_BYTES));
        assert_eq!(body_length(header(MAX_BODY_BYTES + 1)), Err(TooLong(MAX_BODY_BYTES + 1)));
        assert_eq!(body_length([255; 4]), Err(TooLong(u32::MAX as usize)));
        let longest = vec![0; MAX_BODY_BYTES];
        assert_eq!(encode(&longest).unwrap().len(), MAX_BODY_BYTES + HEADER_BYTES);
        assert_eq!(encode(&vec![0; MAX_BODY_BYTES + 1]), Err(TooLong(MAX_BODY_BYTES + 1)));
    }
}
