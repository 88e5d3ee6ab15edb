//! Writing header blocks that leave the reader's dynamic table as it is (RFC 7541 6): static indices, and literals
//! that are not indexed. So a block can be put among those of another encoder.

use super::static_table;
use crate::h2::fields::Fields;

/// RFC 7541 5.1: an integer behind `prefix` bits of its first byte, whose others are given.
pub(crate) fn integer(out: &mut Vec<u8>, first: u8, prefix: u8, value: usize) {
    let most = (1 << prefix) - 1;
    if value < most {
        out.push(first | value as u8);
        return;
    }
    out.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    integer(out, 0, 7, bytes.len());
    out.extend_from_slice(bytes);
}

/// Appends one field. A sensitive one stays a literal that is never indexed (RFC 7541 6.2.3).
pub fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8], sensitive: bool) {
    let found = static_table::find(name, value);
    if let (Some((index, true)), false) = (found, sensitive) {
        return integer(out, 0x80, 7, index);
    }
    let first = if sensitive { 0x10 } else { 0 };
    match found {
        Some((index, _)) => integer(out, first, 4, index),
        None => {
            out.push(first);
            string(out, name);
        }
    }
    string(out, value);
}

/// Appends all fields.
pub fn fields(out: &mut Vec<u8>, fields: &Fields) {
    for (name, value, sensitive) in fields.iter() {
        field(out, name, value, sensitive);
    }
}

/// Appends a change of the table's size, which may only stand at the beginning of a block (RFC 7541 4.2).
pub fn size_update(out: &mut Vec<u8>, size: usize) {
    integer(out, 0x20, 5, size);
}
