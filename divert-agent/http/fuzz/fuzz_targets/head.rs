//! Heads: the answer does not depend on how the bytes arrive, detection and parser agree, a second parser
//! agrees, and what is left after an h2c offer is removed is the same request without it.
#![no_main]

use divert_http::{
    ClientBytes, ClientDetector, HeadScan, KeyNames, MAX_HEAD, Request, RequestHead, Response, detect_client,
    inject_key, parse_request, parse_response, strip_h2c_offer,
};
use libfuzzer_sys::fuzz_target;

#[path = "../../tests/reference/mod.rs"]
mod reference;

fuzz_target!(|bytes: &[u8]| {
    let names = KeyNames::default();
    let ends = reference::parts(bytes.len(), reference::seed_of(bytes));

    let request = parse_request(bytes, &mut HeadScan::new(), &names);
    let mut scan = HeadScan::new();
    let in_parts = ends.iter().map(|end| parse_request(&bytes[..*end], &mut scan, &names));
    assert_eq!(
        in_parts.into_iter().find(|found| *found != Request::Partial).unwrap_or(Request::Partial),
        request
    );

    let mut detector = ClientDetector::new();
    let in_parts = ends.iter().map(|end| detector.detect(&bytes[..*end]));
    let detected = in_parts.into_iter().find(|found| *found != ClientBytes::Undecided);
    assert_eq!(detected.unwrap_or(ClientBytes::Undecided), detect_client(bytes));

    if let Request::Head(head) = &request {
        if !head.odd {
            assert_eq!(detect_client(bytes), ClientBytes::Http1);
            agrees_with_httparse(bytes, head);
        }
        let mut out = Vec::new();
        strip_h2c_offer(&bytes[..head.len], &mut out);
        let expected = RequestHead { len: out.len(), h2c_offer: false, ..head.clone() };
        inject(&out, head, &names);
        match parse_request(&out, &mut HeadScan::new(), &names) {
            Request::Head(stripped) => assert_eq!(stripped, without_offer(expected, head, &stripped)),
            other => panic!("{other:?} is left of {head:?}"),
        }
    }

    for asked in reference::kinds_of_requests() {
        let response = parse_response(bytes, &mut HeadScan::new(), &asked);
        let mut scan = HeadScan::new();
        let in_parts = ends.iter().map(|end| parse_response(&bytes[..*end], &mut scan, &asked));
        let in_parts = in_parts.into_iter().find(|found| *found != Response::Partial);
        assert_eq!(in_parts.unwrap_or(Response::Partial), response);
        if let Response::Head(head) = response {
            let mut fields = [httparse::EMPTY_HEADER; 128];
            let mut parsed = httparse::Response::new(&mut fields);
            match parsed.parse(bytes) {
                Ok(status) => {
                    assert_eq!(status, httparse::Status::Complete(head.len));
                    assert_eq!((parsed.version, parsed.code), (Some(head.version), Some(head.status)));
                }
                Err(httparse::Error::TooManyHeaders) => {}
                // What changes nothing about where the response ends is passed on.
                Err(httparse::Error::HeaderName | httparse::Error::HeaderValue)
                    if has_odd_line(&bytes[..head.len]) => {}
                Err(error) => assert!(head.version > 1, "{error} in {head:?}"),
            }
        }
    }
});

/// Whether a line of a head is no field by RFC 9110 5.1, or one that does not frame and has a control character (5.5).
fn has_odd_line(head: &[u8]) -> bool {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let is_control = |byte: &u8| byte.is_ascii_control() && !b"\t\r".contains(byte);
    let frames = |name: &[u8]| {
        [&b"content-length"[..], b"transfer-encoding"].iter().any(|it| it.eq_ignore_ascii_case(name))
    };
    let lines = head.split(|byte| *byte == b'\n').skip(1).filter(|line| !matches!(line, [] | [b'\r']));
    lines.into_iter().any(|line| match line.iter().position(|byte| *byte == b':') {
        Some(colon) => {
            let (name, value) = line.split_at(colon);
            name.is_empty() || !name.iter().all(is_token) || !frames(name) && value.iter().any(is_control)
        }
        None => true,
    })
}

/// What was odd may have been the offer.
fn without_offer<'a>(
    expected: RequestHead<'a>,
    head: &RequestHead<'_>,
    found: &RequestHead<'_>,
) -> RequestHead<'a> {
    let odd = if head.h2c_offer { found.odd } else { expected.odd };
    RequestHead { odd, ..expected }
}

/// What was injected is found, and everything else is read as before.
fn inject(bytes: &[u8], head: &RequestHead<'_>, names: &KeyNames) {
    if head.key.is_some() || bytes.len() + 64 > MAX_HEAD {
        return;
    }
    let mut out = Vec::new();
    inject_key(bytes, names, "alice", &mut out);
    let expected =
        RequestHead { len: out.len(), key: Some("alice".into()), h2c_offer: false, ..head.clone() };
    match parse_request(&out, &mut HeadScan::new(), names) {
        Request::Head(injected) => assert_eq!(injected, without_offer(expected, head, &injected)),
        Request::TooLarge => {}
        other => panic!("{other:?} is made of {head:?}"),
    }
}

/// What is regular to us is so to a parser that is known to be lenient, and ends at the same byte.
fn agrees_with_httparse(bytes: &[u8], head: &RequestHead<'_>) {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(bytes) {
        Ok(status) => {
            assert_eq!(status, httparse::Status::Complete(head.len));
            assert_eq!(parsed.version, Some(head.version));
        }
        Err(httparse::Error::TooManyHeaders) => {}
        // It wants targets to be UTF-8, and knows no later version.
        Err(httparse::Error::Token) => assert!(std::str::from_utf8(&bytes[..head.len]).is_err()),
        Err(error) => assert!(head.version > 1, "{error} in {head:?}"),
    }
}
