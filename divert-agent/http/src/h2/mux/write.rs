//! Writing frames of our own.

use crate::h2::frame::{FRAME_SIZE, Frame, flag, kind};
use crate::h2::hpack::encode;
use crate::h2::queue::Queue;

/// Appends a frame.
pub(super) fn frame(out: &mut Queue, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let out = out.space();
    out.extend_from_slice(&Frame { len: payload.len(), kind, flags, stream }.bytes());
    out.extend_from_slice(payload);
}

/// Appends a WINDOW_UPDATE.
pub(super) fn window_update(out: &mut Queue, stream: u32, credit: u32) {
    frame(out, kind::WINDOW_UPDATE, 0, stream, &credit.to_be_bytes());
}

/// Appends an RST_STREAM.
pub(super) fn rst_stream(out: &mut Queue, stream: u32, code: u32) {
    frame(out, kind::RST_STREAM, 0, stream, &code.to_be_bytes());
}

/// Appends a GOAWAY.
pub(super) fn goaway(out: &mut Queue, last: u32, code: u32) {
    let mut payload = [0; 8];
    payload[..4].copy_from_slice(&last.to_be_bytes());
    payload[4..].copy_from_slice(&code.to_be_bytes());
    frame(out, kind::GOAWAY, 0, 0, &payload);
}

/// Appends a header block, in as many frames as it takes.
pub(super) fn headers(out: &mut Queue, stream: u32, block: &[u8], end_stream: bool) {
    let (first, mut rest) = block.split_at(block.len().min(FRAME_SIZE));
    let end = |rest: &[u8]| if rest.is_empty() { flag::END_HEADERS } else { 0 };
    let end_stream = if end_stream { flag::END_STREAM } else { 0 };
    frame(out, kind::HEADERS, end_stream | end(rest), stream, first);
    while !rest.is_empty() {
        let (part, more) = rest.split_at(rest.len().min(FRAME_SIZE));
        rest = more;
        frame(out, kind::CONTINUATION, end(rest), stream, part);
    }
}

/// Writes a change of a table at the beginning of a block: the least size, then the last.
pub(super) fn put_table(block: &mut Vec<u8>, update: Option<(usize, usize)>) {
    if let Some((least, last)) = update {
        encode::size_update(block, least);
        if last != least {
            encode::size_update(block, last);
        }
    }
}
