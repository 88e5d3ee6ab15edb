//! Field lines: reading them, and the lists that their values hold.

use httparse::{EMPTY_HEADER, Error, Header, Status};

use crate::head::MAX_FIELDS;

/// Fields for which there is room on the stack. Browsers send 15 to 20, a request behind two proxies with
/// tracing 30.
const FEW_FIELDS: usize = 64;

/// Why the fields of a head cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FieldsError {
    /// More than [`MAX_FIELDS`].
    TooMany,
    /// A line is not `token ":" OWS field-value OWS` (RFC 9112 5).
    Malformed,
}

/// Reads all of `bytes`, which must be field lines and the blank line after them, and gives the fields
/// to `read`.
pub(crate) fn with_fields<'a, T>(
    bytes: &'a [u8],
    read: impl FnOnce(&[Header<'a>]) -> T,
) -> Result<T, FieldsError> {
    let mut few = [EMPTY_HEADER; FEW_FIELDS];
    match parse(bytes, &mut few) {
        Ok(fields) => Ok(read(fields)),
        Err(FieldsError::TooMany) => {
            let mut many = vec![EMPTY_HEADER; MAX_FIELDS];
            parse(bytes, &mut many).map(read)
        }
        Err(error) => Err(error),
    }
}

fn parse<'a, 'b>(bytes: &'a [u8], room: &'b mut [Header<'a>]) -> Result<&'b [Header<'a>], FieldsError> {
    match httparse::parse_headers(bytes, room) {
        Ok(Status::Complete((len, fields))) if len == bytes.len() => Ok(fields),
        Err(Error::TooManyHeaders) => Err(FieldsError::TooMany),
        Ok(_) | Err(_) => Err(FieldsError::Malformed),
    }
}

/// Whether a field has this name, which is given in lower case or any other (RFC 9110 5.1).
pub(crate) fn is(field: &[u8], name: &str) -> bool {
    field.eq_ignore_ascii_case(name.as_bytes())
}

/// Without the optional white space around it (RFC 9110 5.6.3): SP and HTAB, nothing else.
pub(crate) fn trim_ows(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The elements of a comma-separated list (RFC 9110 5.6.1), empty ones included.
pub(crate) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim_ows)
}

/// Whether a list holds this token, in any case.
pub(crate) fn has_token(value: &[u8], token: &str) -> bool {
    elements(value).any(|element| is(element, token))
}

/// A character of a token (RFC 9110 5.6.2).
pub(crate) const fn is_tchar(byte: u8) -> bool {
    matches!(byte,
        b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z')
}

/// Whether these bytes are a token: at least one character.
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| is_tchar(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(bytes: &[u8]) -> Result<usize, FieldsError> {
        with_fields(bytes, |fields| fields.len())
    }

    #[test]
    fn fields_beyond_the_stack_and_up_to_the_limit_are_read() {
        for n in [0, 1, FEW_FIELDS, FEW_FIELDS + 1, MAX_FIELDS] {
            assert_eq!(count(("a: b\r\n".repeat(n) + "\r\n").as_bytes()), Ok(n));
        }
        assert_eq!(count(("a: b\r\n".repeat(MAX_FIELDS + 1) + "\r\n").as_bytes()), Err(FieldsError::TooMany));
    }

    #[test]
    fn bytes_after_the_blank_line_are_not_fields() {
        assert_eq!(count(b"a: b\r\n\r\nc: d\r\n\r\n"), Err(FieldsError::Malformed));
        assert_eq!(count(b"a: b\r\n"), Err(FieldsError::Malformed));
    }

    #[test]
    fn only_space_and_tab_are_optional_white_space() {
        assert_eq!(trim_ows(b" \t a b\t "), b"a b");
        assert_eq!(trim_ows(b"\x0ba\x0c"), b"\x0ba\x0c");
        assert_eq!(trim_ows(b"  "), b"");
    }

    #[test]
    fn tokens_of_a_list_are_found_in_any_case() {
        assert!(has_token(b"keep-alive, Upgrade", "upgrade"));
        assert!(has_token(b",,close", "close"));
        assert!(!has_token(b"closed", "close"));
        assert!(!has_token(b"", "close"));
    }
}
