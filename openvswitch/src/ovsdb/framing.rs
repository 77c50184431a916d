//! Finds the messages in a stream of JSON objects that follow one another without a separator.
//!
//! Every byte is looked at once, however the stream is cut into pieces, so a reply of many megabytes costs no
//! more than its length. What is between the braces is left to the JSON parser.

use super::Fault;

/// Far more than OVSDB's notation nests, far less than would trouble the JSON parser.
const DEPTH_LIMIT: usize = 32;

/// A buffer that has grown beyond this for one message is given back after it.
const KEPT_CAPACITY_BYTES: usize = 1 << 20;

/// The room made for each read.
const READ_BYTES: usize = 64 << 10;

/// Bytes that have come, and how far they have been looked at.
#[derive(Debug)]
pub(super) struct Framer {
    buffer: Vec<u8>,
    /// Where the current message begins.
    start: usize,
    /// Up to where the buffer has been looked at.
    scanned: usize,
    /// How many brackets and braces are open there.
    depth: usize,
    in_string: bool,
    after_backslash: bool,
    limit_bytes: usize,
}

impl Framer {
    /// A framer for messages up to this length.
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            depth: 0,
            in_string: false,
            after_backslash: false,
            limit_bytes,
        }
    }

    /// The buffer to append what was read to, with room for it.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_CAPACITY_BYTES {
            self.buffer = Vec::new();
        }
        self.buffer.reserve(READ_BYTES);
        &mut self.buffer
    }

    /// How many bytes of a message that is not complete have come.
    pub(super) fn unfinished_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// The next complete message, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, Fault> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            self.scanned += 1;
            if self.in_string {
                match byte {
                    _ if self.after_backslash => self.after_backslash = false,
                    b'\\' => self.after_backslash = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'{' | b'[' if self.depth > 0 || byte == b'{' => {
                    self.depth += 1;
                    if self.depth > DEPTH_LIMIT {
                        let reason = format!("a message nested more than {DEPTH_LIMIT} deep");
                        return Err(Fault::Malformed(reason));
                    }
                }
                b' ' | b'\t' | b'\r' | b'\n' if self.depth == 0 => self.start = self.scanned,
                _ if self.depth == 0 => {
                    let found = char::from(byte);
                    let reason = format!("{found:?} where a message should begin with '{{'");
                    return Err(Fault::Malformed(reason));
                }
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        let start = std::mem::replace(&mut self.start, self.scanned);
                        self.check_length(self.scanned - start)?;
                        return Ok(self.buffer.get(start..self.scanned));
                    }
                }
                b'"' => self.in_string = true,
                _ => {}
            }
        }
        self.check_length(self.unfinished_bytes())?;
        Ok(None)
    }

    fn check_length(&self, bytes: usize) -> Result<(), Fault> {
        if bytes > self.limit_bytes { Err(Fault::TooLong(self.limit_bytes)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(framer: &mut Framer) -> Result<Vec<String>, Fault> {
        let mut frames = Vec::new();
        while let Some(frame) = framer.next()? {
            frames.push(String::from_utf8_lossy(frame).into_owned());
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn messages_are_found_however_the_stream_is_cut(
            strings in proptest::collection::vec(".*", 0..6),
            space in "[ \t\r\n]{0,2}",
            piece_bytes in 1_usize..40,
        ) {
            let messages: Vec<_> =
                strings.iter().map(|string| serde_json::json!({ "a": [string, { string: 1 }] }).to_string()).collect();
            let stream: String = messages.iter().map(|message| format!("{message}{space}")).collect();
            let mut framer = Framer::new(1 << 20);
            let mut found = Vec::new();
            for piece in stream.as_bytes().chunks(piece_bytes) {
                framer.buffer().extend_from_slice(piece);
                found.extend(frames(&mut framer).unwrap());
            }
            prop_assert_eq!(found, messages);
            prop_assert_eq!(framer.unfinished_bytes(), 0);
        }

        #[test]
        fn any_bytes_are_framed_or_refused_without_panic(
            pieces in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![any::<u8>(), proptest::sample::select(b"{}[]\"\\ ".to_vec())], 0..40),
                0..8,
            ),
        ) {
            let mut framer = Framer::new(64);
            for piece in pieces {
                framer.buffer().extend_from_slice(&piece);
                if frames(&mut framer).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn braces_and_quotes_in_strings_do_not_count() {
        let mut framer = Framer::new(1 << 20);
        framer.buffer().extend_from_slice(br#"{"a":"}\"{\\"}{"#);
        assert_eq!(frames(&mut framer).unwrap(), [r#"{"a":"}\"{\\"}"#]);
        assert_eq!(framer.unfinished_bytes(), 1);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for stream in ["x", "[", "]", "\"", "}", "{}1", "\u{0}"] {
            let mut framer = Framer::new(1 << 20);
            framer.buffer().extend_from_slice(stream.as_bytes());
            assert!(matches!(frames(&mut framer), Err(Fault::Malformed(_))), "{stream}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_before_it_is_parsed() {
        let mut framer = Framer::new(1 << 30);
        framer.buffer().extend_from_slice(format!("{{\"a\":{}", "[".repeat(100_000)).as_bytes());
        assert!(matches!(framer.next(), Err(Fault::Malformed(_))));
    }

    #[test]
    fn length_is_limited_also_before_the_message_is_complete() {
        let message = r#"{"a":"0123456789"}"#;
        let mut framer = Framer::new(message.len());
        framer.buffer().extend_from_slice(message.as_bytes());
        assert_eq!(frames(&mut framer).unwrap(), [message]);

        let mut framer = Framer::new(message.len() - 1);
        framer.buffer().extend_from_slice(message.as_bytes());
        assert!(matches!(framer.next(), Err(Fault::TooLong(_))));

        let mut framer = Framer::new(10);
        framer.buffer().extend_from_slice(&message.as_bytes()[..11]);
        assert!(matches!(framer.next(), Err(Fault::TooLong(10))));
    }

    #[test]
    fn a_buffer_that_grew_for_one_message_is_given_back() {
        let mut framer = Framer::new(8 << 20);
        let message = format!(r#"{{"a":"{}"}}"#, "x".repeat(4 << 20));
        framer.buffer().extend_from_slice(message.as_bytes());
        assert_eq!(framer.next().unwrap().map(<[u8]>::len), Some(message.len()));
        assert!(framer.next().unwrap().is_none());
        assert!(framer.buffer().capacity() <= KEPT_CAPACITY_BYTES);
    }
}
