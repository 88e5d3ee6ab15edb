//! Field lines that are not by the grammar, one by one: which of them change nobody's reading of where a message ends.
//!
//! Which readers differ on what is not guessed but known of some: of white space before a colon (RFC 9112 5.1), of
//! fields that frame with foreign characters in them, and of lines that end at control characters other than CR and LF
//! (CPython's http.client until 3.9).

use memchr::memchr;

use crate::field::{is, is_tchar, is_token, trim_ows};
use crate::irregular::Irregularity;

/// A line that nobody takes for other framing.
pub(crate) enum Line<'a> {
    /// A field: its name is a token. Only the value of one that does not frame may have control characters.
    Field(&'a [u8], &'a [u8]),
    /// None that anybody reads.
    Odd {
        /// Some readers pass over all fields behind it: CPython's http.server and http.client do, where a name has a
        /// space, a control character or a byte above 0x7e, or there is no colon.
        hides: bool,
    },
}

/// Reads a line without its end.
pub(crate) fn read(line: &[u8]) -> Result<Line<'_>, Irregularity> {
    let Some(colon) = memchr(b':', line) else { return Ok(Line::Odd { hides: true }) };
    let (name, value) = (&line[..colon], trim_ows(&line[colon + 1..]));
    let framed = |part: &[u8]| memchr(b':', part).is_some_and(|colon| frames(trim_ows(&part[..colon])));
    if line.split(|byte| is_control(*byte)).skip(1).any(framed) {
        return Err(Irregularity::FramingField);
    }
    if is_token(name) {
        let odd = frames(name) && value.iter().any(|byte| is_control(*byte));
        return if odd { Err(Irregularity::FramingField) } else { Ok(Line::Field(name, value)) };
    }
    if let [.., b' ' | b'\t'] = name {
        return Err(Irregularity::SpaceBeforeColon);
    }
    let letters: Vec<u8> = name.iter().copied().filter(|byte| is_tchar(*byte)).collect();
    if frames(&letters) {
        return Err(Irregularity::FramingField);
    }
    Ok(Line::Odd { hides: name.iter().any(|byte| !matches!(byte, 0x21..=0x7e)) })
}

/// The lines of a head behind its first, without their ends; all end in CRLF.
pub(crate) fn lines(fields: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = fields.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.filter(|line| !line.is_empty())
}

/// Whether the end of a message depends on the field of this name.
pub(crate) fn frames(name: &[u8]) -> bool {
    is(name, "content-length") || is(name, "transfer-encoding")
}

/// Control characters but HTAB.
fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\t'
}
