//! Heads that cannot be read by the grammar: what is wrong with them, and which key they carry anyway.
//!
//! A server may be more lenient than we are, so a key is looked for as the most lenient one would:
//! what names a developer's namespace must not reach the shared copy for the sake of a stray LF.

use std::borrow::Cow;

use memchr::memchr;

use crate::baggage::{KeyNames, find_key};
use crate::field::trim_ows;
use crate::framing::FramingError;

/// In what way a head is not as RFC 9112 has it, though not open to two readings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Irregularity {
    /// RFC 9112 2.2: a recipient may take it for the end of a line.
    #[error("reading the head: a line ends in LF alone; end lines in CRLF")]
    BareLf,
    /// obs-fold, or white space before the first field: RFC 9112 5.2 and 2.2.
    #[error("reading the head: a line begins with white space; send each field on one line")]
    Folded,
    /// Not `method SP target SP HTTP/1.x`, or not `HTTP/1.x SP status [SP reason]` (RFC 9112 3 and 4).
    #[error("reading the head: its first line is not one of HTTP/1; send HTTP/1.1")]
    StartLine,
    /// Not `token ":" value`, or a control character in a value (RFC 9112 5, RFC 9110 5.5).
    #[error("reading the head: a field line is malformed; send `name: value` without control characters")]
    Field,
}

/// What makes an irregular head ambiguous after all: bytes that some readers take for the end of a line, or
/// of a name, and others do not.
pub(crate) fn ambiguity(head: &[u8]) -> Option<FramingError> {
    let lone_cr = |(at, byte): (usize, &u8)| *byte == b'\r' && head.get(at + 1) != Some(&b'\n');
    if memchr(0, head).is_some() || head.iter().enumerate().any(lone_cr) {
        return Some(FramingError::ControlByte);
    }
    let spaced = |line: &[u8]| {
        let name = memchr(b':', line).map_or(&[][..], |colon| &line[..colon]);
        matches!(name, [first, .., b' ' | b'\t'] if !matches!(first, b' ' | b'\t'))
    };
    lines(head).skip(1).any(spaced).then_some(FramingError::SpaceBeforeColon)
}

/// The key of an irregular head: lines end in LF, folded ones are joined (RFC 9112 5.2).
pub(crate) fn key(head: &[u8], names: &KeyNames) -> Option<Cow<'static, str>> {
    let unfolded = unfold(head);
    let fields = lines(&unfolded).skip(1).filter_map(|line| {
        let colon = memchr(b':', line)?;
        Some((trim_ows(&line[..colon]), trim_ows(&line[colon + 1..])))
    });
    find_key(names, fields).map(|key| Cow::Owned(key.into_owned()))
}

fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// The head with a space in place of each line end that is followed by white space.
fn unfold(head: &[u8]) -> Vec<u8> {
    let mut unfolded = Vec::with_capacity(head.len());
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        if let [b' ' | b'\t', ..] = line {
            while let Some(b'\r' | b'\n') = unfolded.last() {
                unfolded.pop();
            }
        }
        unfolded.extend_from_slice(line);
    }
    unfolded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(head: &str) -> Option<String> {
        key(head.as_bytes(), &KeyNames::default()).map(Cow::into_owned)
    }

    #[test]
    fn a_key_is_found_however_lines_end() {
        let heads = [
            "GET / HTTP/1.1\nbaggage: okteto-divert=alice\n\n",
            "GET / HTTP/1.1\r\nbaggage: a=b,\r\n okteto-divert=alice\r\n\r\n",
            "GET / HTTP/1.1\nbaggage:\n\tokteto-divert\n =alice\n\n",
            "GET / HTTP/1.1\r\n baggage: okteto-divert=eve\r\nbaggage: okteto-divert=alice\r\n\r\n",
            "G\u{1} junk\r\njunk\r\nx y: z\r\nbaggage: okteto-divert=alice\r\n\r\n",
        ];
        for head in heads {
            assert_eq!(key_of(head).as_deref(), Some("alice"), "{head}");
        }
        assert_eq!(key_of("GET /?baggage:okteto-divert=eve HTTP/1.1\n\n"), None);
    }

    #[test]
    fn what_readers_differ_on_is_ambiguous() {
        let cases = [
            ("G\r\na\r: b\r\n\r\n", Some(FramingError::ControlByte)),
            ("G\r\na: b\r\rc\r\n\r\n", Some(FramingError::ControlByte)),
            ("G\r\na: b\0\r\n\r\n", Some(FramingError::ControlByte)),
            ("G\r\na : b\r\n\r\n", Some(FramingError::SpaceBeforeColon)),
            ("G\na\t: b\n\n", Some(FramingError::SpaceBeforeColon)),
            ("G\r\na: b : c\r\n d : e\r\n\r\n", None),
            ("G / a : b\r\n: c\r\n\r\n", None),
        ];
        for (head, expected) in cases {
            assert_eq!(ambiguity(head.as_bytes()), expected, "{head:?}");
        }
    }
}
