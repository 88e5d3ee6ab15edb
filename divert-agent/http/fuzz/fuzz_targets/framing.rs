//! Framing: a stream of messages falls into the same messages however it arrives, and chunked bodies end where
//! a plain decoder finds their end.
#![no_main]

use divert_http::{BodyLength, BodyReader};
use libfuzzer_sys::fuzz_target;

#[path = "../../tests/reference/mod.rs"]
mod reference;

fuzz_target!(|bytes: &[u8]| {
    let ends = reference::parts(bytes.len(), reference::seed_of(bytes));
    let whole = [bytes.len()];
    assert_eq!(reference::follow_requests(bytes, &whole), reference::follow_requests(bytes, &ends));
    for asked in reference::kinds_of_requests() {
        let in_one = reference::follow_responses(bytes, &whole, &asked);
        assert_eq!(in_one, reference::follow_responses(bytes, &ends, &asked));
    }

    let end = match BodyReader::new(BodyLength::Chunked).advance(bytes) {
        Ok(advance) if advance.done => Some(advance.consumed),
        _ => None,
    };
    assert_eq!(end, reference::decode_chunked(bytes).map(|(len, _)| len));
});
