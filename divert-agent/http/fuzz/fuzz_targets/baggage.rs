//! Baggage: the key is the one that a plain second implementation finds, given fields or a head.
#![no_main]

use std::borrow::Cow;

use divert_http::{HeadScan, KeyNames, Request, find_key, parse_request};
use libfuzzer_sys::fuzz_target;

#[path = "../../tests/reference/mod.rs"]
mod reference;

fuzz_target!(|bytes: &[u8]| {
    // Lines are values; the first byte of a line chooses its name.
    let names = ["baggage", "BAGGAGE", "baggage", "baggage.okteto-divert", "other"];
    let fields: Vec<(Vec<u8>, Vec<u8>)> = bytes
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split_first())
        .map(|(name, value)| (names[usize::from(*name) % names.len()].into(), value.to_vec()))
        .collect();
    let expected = reference::baggage_key(&fields);

    let key_names = KeyNames::default();
    let found = find_key(&key_names, fields.iter().map(|(name, value)| (&name[..], &value[..])));
    assert_eq!(found.map(Cow::into_owned), expected);

    let mut head = b"GET / HTTP/1.1\r\n".to_vec();
    for (name, value) in &fields {
        for part in [name, &b":"[..], value, b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    match parse_request(&head, &mut HeadScan::new(), &key_names) {
        // A head's values come without the white space around them, which shifts the limit.
        Request::Head(head) if bytes.len() < 8192 => assert_eq!(head.key.map(Cow::into_owned), expected),
        _ => {}
    }
});
