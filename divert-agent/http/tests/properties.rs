//! Properties that hold for all input: splitting changes nothing, nothing panics, what was written is
//! read back, and the plain second implementations in `reference` agree.

use std::borrow::Cow;

use divert_http::{
    Asked, BodyLength, BodyReader, ClientBytes, ClientDetector, HeadScan, KeyNames, Method, Request,
    RequestHead, Response, ResponseHead, ResponseKind, detect_client, detect_server, find_key, inject_key,
    parse_request, parse_response, strip_h2c_offer,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

mod reference;
use reference::{baggage_key, decode_chunked, follow_requests, follow_responses, kinds_of_requests, parts};

/// Bytes that look like HTTP often enough to get somewhere.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        select(vec![
            "GET / HTTP/1.1\r\n",
            "GET /a b HTTP/1.1\r\n",
            "a b: c\r\n",
            "a=b: c\r\n",
            "junk\r\n",
            "POST /x HTTP/1.0\r\n",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.0 304\r\n",
            "\r\n",
            "\r\n\r\n",
            "Host: a\r\n",
            "Content-Length: 5\r\n",
            "Content-Length: 3, 3\r\n",
            "Transfer-Encoding: chunked\r\n",
            "transfer-encoding: gzip\r\n",
            "Connection: upgrade, HTTP2-Settings, close\r\n",
            "Upgrade: h2c, x\r\n",
            "HTTP2-Settings: AA\r\n",
            "baggage: okteto-divert=alice\r\n",
            "5\r\nhello\r\n",
            "0\r\n\r\n",
            "a;x\r\n",
            "hello",
            ":",
            " ",
            "\n",
            "\r",
            "\0",
            ";",
            "=",
            ",",
            "\t",
            "\u{e9}",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        vec(any::<u8>(), 1..4),
    ];
    vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// A name in some mixture of cases.
fn in_any_case(name: &'static str) -> impl Strategy<Value = String> {
    vec(any::<bool>(), name.len()).prop_map(move |upper| {
        let letters = name.chars().zip(upper);
        letters.map(|(letter, upper)| if upper { letter.to_ascii_uppercase() } else { letter }).collect()
    })
}

/// A field line: name, optional white space, value.
fn line(name: &'static str, value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (in_any_case(name), "[ \t]{0,2}", value, "[ \t]{0,2}")
        .prop_map(|(n, a, v, b)| format!("{n}:{a}{v}{b}\r\n"))
}

fn filler() -> impl Strategy<Value = Vec<String>> {
    vec("x-[a-z!#|~]{1,8}:[ -~\u{e9}\t]{0,20}\r\n", 0..80)
}

/// The body that framing fields announce, and those.
fn framing() -> impl Strategy<Value = (BodyLength, Vec<String>)> {
    prop_oneof![
        Just((BodyLength::None, Vec::new())),
        any::<u32>().prop_flat_map(|length| {
            let fields = vec(line("content-length", Just(length.to_string())), 1);
            (Just(BodyLength::Length(length.into())), fields)
        }),
        line("transfer-encoding", select(vec!["chunked", "gzip, CHUNKED"]).prop_map(String::from))
            .prop_map(|field| (BodyLength::Chunked, vec![field])),
    ]
}

/// A request and what is to be read from it.
fn request() -> impl Strategy<Value = (Vec<u8>, RequestHead<'static>)> {
    let start = (
        select(vec![0usize, 2, 4]),
        select(vec![
            ("GET", Method::Other, true),
            ("HEAD", Method::Head, true),
            ("POST", Method::Other, false),
            ("X-Y!", Method::Other, false),
        ]),
        "/[!-~\u{e9}]{0,40}",
    );
    let options = [
        "connection: close",
        "connection: upgrade",
        "upgrade: websocket",
        "upgrade: h2c",
        "http2-settings: AA",
        "expect: 100-continue",
        "x-divert-debug: 1",
        "host: a:80",
        "baggage: x=y,okteto-divert=alice;p",
        "baggage: divert=bob",
    ];
    (start, framing(), subsequence(options.to_vec(), 0..=options.len()), filler()).prop_flat_map(
        |((blank, (method, kind, idempotent), target), (body, framing), options, filler)| {
            let has = |option: &str| options.contains(&option);
            let key = [("baggage: x=y,okteto-divert=alice;p", "alice"), ("baggage: divert=bob", "bob")];
            let head = RequestHead {
                len: 0,
                method: kind,
                idempotent,
                version: 1,
                body,
                key: key.iter().find(|(field, _)| has(field)).map(|(_, key)| Cow::Borrowed(*key)),
                host: has("host: a:80").then_some("a:80"),
                expect_continue: has("expect: 100-continue"),
                may_go_on: body == BodyLength::None
                    && (has("expect: 100-continue") || matches!(method, "POST" | "X-Y!")),
                upgrade: has("connection: upgrade") && has("upgrade: websocket"),
                h2c_offer: has("upgrade: h2c") || has("http2-settings: AA"),
                close: has("connection: close"),
                debug: has("x-divert-debug: 1"),
                odd: false,
            };
            let options = options.into_iter().map(|option| format!("{option}\r\n"));
            let fields: Vec<String> = framing.into_iter().chain(options).chain(filler).collect();
            Just(fields).prop_shuffle().prop_map(move |fields| {
                let blank = &"\r\n\r\n"[..blank];
                let bytes =
                    format!("{blank}{method} {target} HTTP/1.1\r\n{}\r\n", fields.concat()).into_bytes();
                let len = bytes.len();
                (bytes, RequestHead { len, ..head.clone() })
            })
        },
    )
}

/// A response to a request that is neither HEAD nor CONNECT, and what is to be read from it.
fn response() -> impl Strategy<Value = (Vec<u8>, ResponseHead)> {
    let kinds = vec![
        (100, ResponseKind::Interim, false),
        (101, ResponseKind::SwitchingProtocols, false),
        (200, ResponseKind::Final, true),
        (204, ResponseKind::Final, false),
        (304, ResponseKind::Final, false),
        (599, ResponseKind::Final, true),
    ];
    (select(kinds), framing(), any::<bool>(), filler(), "( [ -~\u{e9}]{0,20})?").prop_flat_map(
        |((status, kind, has_body), (body, framing), close, filler, reason)| {
            let body = match body {
                _ if !has_body => BodyLength::None,
                BodyLength::None => BodyLength::UntilClose,
                body => body,
            };
            let close_field = close.then(|| "Connection: close\r\n".to_owned());
            let upgrade = (status == 101).then(|| "upgrade: WebSocket\r\n".to_owned());
            let fields: Vec<String> =
                framing.into_iter().chain(close_field).chain(upgrade).chain(filler).collect();
            Just(fields).prop_shuffle().prop_map(move |fields| {
                let bytes = format!("HTTP/1.1 {status}{reason}\r\n{}\r\n", fields.concat()).into_bytes();
                let len = bytes.len();
                (bytes, ResponseHead { len, status, version: 1, kind, body, close })
            })
        },
    )
}

/// A chunked body and its data.
fn chunked() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let chunk = (vec(any::<u8>(), 1..40), "0{0,3}", "([ \t]{0,2};[!-~]{0,8}|[ \t]{0,2})", any::<bool>());
    let trailers = vec("[a-z]{1,5}:[ -~\u{e9}]{0,9}\r\n", 0..3);
    (vec(chunk, 0..6), "0{1,3}(;x)?", trailers).prop_map(|(chunks, last, trailers)| {
        let (mut body, mut data) = (Vec::new(), Vec::new());
        for (bytes, zeros, extension, upper) in chunks {
            let size = if upper { format!("{:X}", bytes.len()) } else { format!("{:x}", bytes.len()) };
            body.extend_from_slice(format!("{zeros}{size}{extension}\r\n").as_bytes());
            body.extend_from_slice(&bytes);
            body.extend_from_slice(b"\r\n");
            data.extend_from_slice(&bytes);
        }
        body.extend_from_slice(format!("{last}\r\n{}\r\n", trailers.concat()).as_bytes());
        (body, data)
    })
}

/// A baggage member, or something like one.
fn member() -> impl Strategy<Value = String> {
    let key = select(vec!["okteto-divert", "divert", "Divert", "x", ""]);
    let value = select(vec![
        "alice",
        "bob",
        "",
        "a=b",
        "%61%C3%a9",
        "%6",
        "%61%zz",
        "%ff",
        "b%",
        "\u{e9}",
        "a b",
        "%2C%3B",
    ]);
    let member = (
        "[ \t]{0,2}",
        key,
        "[ \t]?=[ \t]?",
        value,
        "[ \t]?",
        select(vec!["", ";p", ";divert=eve", "; p=1;q "]),
    )
        .prop_map(|(before, key, equals, value, after, rest)| {
            format!("{before}{key}{equals}{value}{after}{rest}")
        });
    let few = "[ ;=]{0,3}(okteto-divert|divert)?[ ;=]{0,2}";
    // More members than are read.
    prop_oneof![6 => member, 2 => few, 1 => Just("a=b,".repeat(90)), 1 => Just(",".repeat(200))]
}

/// Field lines that are no grammar's and nobody's framing.
const ODD_LINES: [&str; 7] = [
    "a=b: x\r\n",
    "baggage.okteto-divert=alice: x\r\n",
    ": x\r\n",
    "(a): Content-Length: 5\r\n",
    "x: \u{1}y\r\n",
    "x: a\u{b}b\u{7f}\r\n",
    "\"Host\": z\r\n",
];

fn parse(bytes: &[u8]) -> Request<'_> {
    // Names live as long as the key, which borrows nothing of them.
    parse_request(bytes, &mut HeadScan::new(), &KeyNames::default())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_request_is_read_back((bytes, head) in request(), rest in pieces()) {
        let stream = [&bytes[..], &rest].concat();
        prop_assert_eq!(parse(&stream), Request::Head(head));
        prop_assert_eq!(detect_client(&stream), ClientBytes::Http1);
        prop_assert_eq!(parse(&bytes[..bytes.len() - 1]), Request::Partial);
    }

    #[test]
    fn a_response_is_read_back((bytes, head) in response(), rest in pieces()) {
        let stream = [&bytes[..], &rest].concat();
        let asked = Asked { method: Method::Other, version: 1, offered: b"websocket" };
        let read = |bytes: &[u8]| parse_response(bytes, &mut HeadScan::new(), &asked);
        prop_assert_eq!(read(&stream), Response::Head(head));
        prop_assert_eq!(read(&bytes[..bytes.len() - 1]), Response::Partial);
    }

    #[test]
    fn a_chunked_body_ends_where_it_ends((body, data) in chunked(), rest in pieces(), seed: u64) {
        prop_assert_eq!(decode_chunked(&body), Some((body.len(), data)));
        let stream = [&body[..], &rest].concat();
        let mut reader = BodyReader::new(BodyLength::Chunked);
        let mut at = 0;
        for end in parts(stream.len(), seed) {
            prop_assert!(at <= end);
            at += reader.advance(&stream[at..end]).unwrap().consumed;
            if reader.is_done() {
                break;
            }
        }
        prop_assert!(reader.is_done());
        prop_assert_eq!(at, body.len());
    }

    #[test]
    fn chunks_are_followed_as_the_reference_does(
        (mut body, _) in chunked(), at in any::<prop::sample::Index>(), byte in select(b"\r\n; 0fg\0\t".to_vec()), insert: bool,
    ) {
        let at = at.index(body.len());
        if insert { body.insert(at, byte) } else { body[at] = byte }
        let end = match BodyReader::new(BodyLength::Chunked).advance(&body) {
            Ok(advance) if advance.done => Some(advance.consumed),
            _ => None,
        };
        prop_assert_eq!(end, decode_chunked(&body).map(|(len, _)| len), "{}", body.escape_ascii());
    }

    #[test]
    fn requests_in_parts_are_requests_in_one(messages in vec((request(), chunked()), 1..4), junk in pieces(), seed: u64) {
        let mut stream = Vec::new();
        for ((bytes, head), (chunked, _)) in messages {
            stream.extend_from_slice(&bytes);
            match head.body {
                BodyLength::Length(length) => stream.resize(stream.len() + (length % 1000) as usize, b'x'),
                BodyLength::Chunked => stream.extend_from_slice(&chunked),
                _ => {}
            }
        }
        stream.extend_from_slice(&junk);
        prop_assert_eq!(follow_requests(&stream, &[stream.len()]), follow_requests(&stream, &parts(stream.len(), seed)));
    }

    #[test]
    fn responses_in_parts_are_responses_in_one(messages in vec((response(), chunked()), 1..4), junk in pieces(), seed: u64) {
        let mut stream = Vec::new();
        for ((bytes, head), (chunked, _)) in messages {
            stream.extend_from_slice(&bytes);
            if head.body == BodyLength::Chunked {
                stream.extend_from_slice(&chunked);
            }
        }
        stream.extend_from_slice(&junk);
        for asked in kinds_of_requests() {
            let whole = follow_responses(&stream, &[stream.len()], &asked);
            prop_assert_eq!(whole, follow_responses(&stream, &parts(stream.len(), seed), &asked));
        }
    }

    #[test]
    fn anything_in_parts_is_the_same_in_one(stream in pieces(), seed: u64) {
        let ends = parts(stream.len(), seed);
        prop_assert_eq!(follow_requests(&stream, &[stream.len()]), follow_requests(&stream, &ends));
        for asked in kinds_of_requests() {
            let whole = follow_responses(&stream, &[stream.len()], &asked);
            prop_assert_eq!(whole, follow_responses(&stream, &ends, &asked));
        }
        let mut detector = ClientDetector::new();
        let found = ends.iter().map(|end| detector.detect(&stream[..*end])).find(|found| *found != ClientBytes::Undecided);
        prop_assert_eq!(found.unwrap_or(ClientBytes::Undecided), detect_client(&stream));
    }

    #[test]
    fn random_bytes_do_not_panic(bytes in vec(any::<u8>(), 0..600)) {
        let _ = (detect_client(&bytes), detect_server(&bytes), follow_requests(&bytes, &[bytes.len()]));
        let _ = follow_responses(&[b"HTTP/1.", &bytes[..]].concat(), &[bytes.len() + 7], &kinds_of_requests()[1]);
        let _ = BodyReader::new(BodyLength::Chunked).advance(&bytes);
        strip_h2c_offer(&bytes, &mut Vec::new());
    }

    /// Fields that no reader can take for framing change nothing about what else is read, and what is read does not
    /// depend on how the bytes arrive.
    #[test]
    fn odd_fields_change_nothing_else(
        (bytes, head) in request(),
        lines in vec(select(ODD_LINES.to_vec()), 1..4),
        at in any::<prop::sample::Index>(),
        seed: u64,
    ) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let ends: Vec<usize> = text.match_indices("\r\n").map(|(at, _)| at + 2).collect();
        // Behind any line from the start line on.
        let first = ends.iter().position(|end| *end > 4).unwrap_or(0);
        let at = ends[first..ends.len() - 1][at.index(ends.len() - 1 - first)];
        let odd = [&text[..at], &lines.concat(), &text[at..]].concat().into_bytes();
        let Request::Head(read) = parse(&odd) else { panic!("{}", odd.escape_ascii()) };
        prop_assert_eq!(&read, &RequestHead { len: odd.len(), odd: true, ..head.clone() });
        let in_parts = follow_requests(&odd, &parts(odd.len(), seed));
        prop_assert_eq!(in_parts, follow_requests(&odd, &[odd.len()]));
        if head.key.is_none() {
            let mut out = Vec::new();
            inject_key(&odd, &KeyNames::default(), "carol", &mut out);
            let injected = RequestHead { len: out.len(), key: Some("carol".into()), ..read };
            prop_assert_eq!(parse(&out), Request::Head(injected));
        }
    }

    #[test]
    fn an_h2c_offer_is_removed_and_nothing_else((bytes, head) in request()) {
        let mut out = Vec::new();
        strip_h2c_offer(&bytes, &mut out);
        let Request::Head(stripped) = parse(&out) else { panic!("a head") };
        prop_assert_eq!(&stripped, &RequestHead { len: out.len(), h2c_offer: false, ..head.clone() });
        // Lines go or stay as they are: these requests offer one thing a line.
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        prop_assert!(out.split_inclusive(|byte| *byte == b'\n').all(|kept| lines.any(|line| line == kept)));
        if !head.h2c_offer && (head.upgrade || !bytes.windows(20).any(|w| w == b"connection: upgrade\r")) {
            prop_assert_eq!(out, bytes);
        }
    }

    #[test]
    fn a_key_is_the_one_the_reference_finds(
        fields in vec((
            select(vec!["baggage", "Baggage", "BAGGAGE.okteto-divert", "x"]),
            vec(member(), 0..6).prop_map(|members| members.join(",")),
        ), 0..5),
        padding in select(vec![0usize, 0, 0, 8000, 8150, 8192]),
    ) {
        let mut fields: Vec<(Vec<u8>, Vec<u8>)> =
            fields.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        if padding > 0 {
            fields.insert(0, (b"baggage".into(), vec![b'x'; padding]));
        }
        let found = find_key(&KeyNames::default(), fields.iter().map(|(name, value)| (&name[..], &value[..])));
        prop_assert_eq!(found.map(Cow::into_owned), baggage_key(&fields));
    }
}

/// Baggage fields and others, none of which carries a key.
fn keyless_fields() -> impl Strategy<Value = Vec<String>> {
    let member = prop_oneof![
        "[a-z]{1,4}=[!#-+--:<-\\[\\]-~]{0,6}(;[a-z]{1,3})?",
        select(vec!["okteto-divert=", " okteto-divert = ;p", "okteto-divert", "divert=", "", " "])
            .prop_map(str::to_owned),
    ];
    let baggage = vec(member, 0..200).prop_map(|members| members.join(","));
    let field = prop_oneof![
        2 => line("baggage", baggage),
        1 => line("baggage.okteto-divert", Just(String::new())),
        3 => "x-[a-z]{1,8}:[ -~]{0,20}\r\n",
    ];
    vec(field, 0..8)
}

proptest! {
    /// What is injected is read back, and taking it out again leaves the head as it was.
    #[test]
    fn an_injected_key_is_read_back_and_all_else_stays(
        fields in keyless_fields(),
        key in "[a-z0-9-]{1,12}|[ -~\u{e9}]{1,8}",
        blank in select(vec!["", "\r\n"]),
    ) {
        let names = KeyNames::default();
        let head = format!("{blank}GET /baggage:x HTTP/1.1\r\n{}\r\n", fields.concat()).into_bytes();
        let Request::Head(read) = parse_request(&head, &mut HeadScan::new(), &names) else {
            return Err(TestCaseError::reject("irregular"));
        };
        prop_assume!(read.key.is_none());
        let mut out = Vec::new();
        inject_key(&head, &names, &key, &mut out);
        let Request::Head(injected) = parse_request(&out, &mut HeadScan::new(), &names) else {
            panic!("still regular")
        };
        prop_assert_eq!(injected.len, out.len());
        prop_assert_eq!(injected.key.as_deref(), Some(&*key));
        // One run of bytes was put in, and nothing else changed.
        let added = out.len() - head.len();
        let same = head.iter().zip(&out).take_while(|(old, new)| old == new).count();
        let cut = (0..=same).find(|at| out[..*at] == head[..*at] && out[at + added..] == head[*at..]);
        prop_assert!(cut.is_some(), "{}", String::from_utf8_lossy(&out));
        // HTTP/2 has the same fields with the same key in the same place.
        let list = |head: &[u8]| {
            let mut fields = divert_http::h2::Fields::default();
            let text = String::from_utf8_lossy(head);
            for line in text.trim_start().split("\r\n").skip(1) {
                let Some((name, value)) = line.split_once(':') else { continue };
                let value = value.trim_matches([' ', '\t']);
                fields.push(name.to_ascii_lowercase().as_bytes(), value.as_bytes());
            }
            fields
        };
        let mut in_fields = list(&head);
        in_fields.inject(&names, &key);
        let trimmed = |fields: &divert_http::h2::Fields| -> Vec<(Vec<u8>, Vec<u8>)> {
            fields.iter().map(|(name, value, _)| (name.to_vec(), value.trim_ascii().to_vec())).collect()
        };
        prop_assert_eq!(trimmed(&in_fields), trimmed(&list(&out)));
        // No member more than that one, under its name with a value.
        let named = |bytes: &[u8]| bytes.windows(14).filter(|it| it == b"okteto-divert=").count();
        prop_assert!(named(&out) <= named(&head) + 1);
    }
}
