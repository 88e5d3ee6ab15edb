//! The lines of a head whose lines end in CRLF, for those who change one and leave the others as they are.

use memchr::memchr;

/// Lines with their ends.
pub(crate) fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split_inclusive(|byte| *byte == b'\n')
}

/// Lines with their ends: blank ones before the start line and that line itself, then the others.
pub(crate) fn split_start(head: &[u8]) -> (&[u8], &[u8]) {
    let mut end = 0;
    for line in lines(head) {
        end += line.len();
        if !matches!(line, b"\r\n" | b"\n") {
            break;
        }
    }
    head.split_at(end)
}

/// Name and value of each field line, the value without its line end.
pub(crate) fn fields(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    lines(split_start(head).1).filter_map(field)
}

/// Name and value of a field line, the value without its line end.
pub(crate) fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, value) = line.split_at(memchr(b':', line)?);
    let value = &value[1..];
    let value = value.strip_suffix(b"\n").unwrap_or(value);
    Some((name, value.strip_suffix(b"\r").unwrap_or(value)))
}
