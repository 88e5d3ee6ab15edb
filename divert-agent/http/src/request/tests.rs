use super::*;
use crate::head::{MAX_FIELDS, MAX_HEAD};

fn parse(buf: &[u8]) -> Request<'_> {
    parse_request(buf, &mut HeadScan::new(), &KeyNames::default())
}

/// The head with these lines, which need no line ends.
fn of(lines: &[&str]) -> Vec<u8> {
    (lines.join("\r\n") + "\r\n\r\n").into_bytes()
}

#[track_caller]
fn regular(buf: &[u8]) -> RequestHead<'_> {
    match parse(buf) {
        Request::Head(head) => head,
        other => panic!("{other:?} for {}", buf.escape_ascii()),
    }
}

/// The head of a request with a Host and these fields. Its bytes are leaked, so that it can be returned.
#[track_caller]
fn head(fields: &[&str]) -> RequestHead<'static> {
    regular(of(&[&["GET / HTTP/1.1", "Host: a"], fields].concat()).leak())
}

#[track_caller]
fn ambiguous(lines: &[&str]) -> FramingError {
    match parse(&of(lines)) {
        Request::Ambiguous(error) => error,
        other => panic!("{other:?} for {lines:?}"),
    }
}

#[test]
fn a_plain_request() {
    let buf = b"GET /a?b HTTP/1.1\r\nHost: catalog:8080\r\nBaggage: okteto-divert=alice\r\n\r\nrest";
    assert_eq!(
        parse(buf),
        Request::Head(RequestHead {
            len: buf.len() - 4,
            method: Method::Other,
            idempotent: true,
            version: 1,
            body: BodyLength::None,
            key: Some("alice".into()),
            host: Some("catalog:8080"),
            may_go_on: false,
            expect_continue: false,
            upgrade: false,
            h2c_offer: false,
            close: false,
            debug: false,
            odd: false,
        })
    );
}

#[test]
fn a_head_is_partial_until_its_blank_line() {
    let buf = of(&["GET / HTTP/1.1", "Host: a", "Baggage: okteto-divert=alice"]);
    for len in 0..buf.len() {
        assert_eq!(parse(&buf[..len]), Request::Partial, "{len} bytes");
    }
}

#[test]
fn blank_lines_before_the_request_line_are_part_of_the_head() {
    let buf = b"\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let head = regular(buf);
    assert_eq!((head.len, head.body), (buf.len() - 3, BodyLength::Length(3)));
}

#[test]
fn methods() {
    let cases = [
        ("GET", Method::Other, true),
        ("HEAD", Method::Head, true),
        ("OPTIONS", Method::Other, true),
        ("TRACE", Method::Other, true),
        ("PUT", Method::Other, true),
        ("DELETE", Method::Other, true),
        ("CONNECT", Method::Connect, false),
        ("POST", Method::Other, false),
        ("PATCH", Method::Other, false),
        ("M-SEARCH", Method::Other, false),
        // Methods are case-sensitive (RFC 9110 9.1).
        ("head", Method::Other, false),
        ("get", Method::Other, false),
    ];
    for (method, kind, idempotent) in cases {
        let buf = of(&[&format!("{method} a:1 HTTP/1.1")]);
        let head = regular(&buf);
        assert_eq!((head.method, head.idempotent), (kind, idempotent), "{method}");
    }
}

#[test]
fn a_target_may_have_any_visible_byte() {
    let mut long = "GET /".to_owned();
    long.push_str(&"x".repeat(64 * 1024));
    regular(&of(&[&(long + " HTTP/1.1")]));
    regular(b"GET /{\"<>|\\^`}\xc3\xa9\xe9\xff HTTP/1.1\r\n\r\n");
}

#[test]
fn bytes_above_0x7f_in_values_pass() {
    let head = regular(b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe9\xff\x80\r\n\r\n");
    assert_eq!(head.host, Some("a"));
}

#[test]
fn versions_above_1_1_are_read_as_1_1() {
    let buf = of(&["GET / HTTP/1.2", "Transfer-Encoding: chunked"]);
    let head = regular(&buf);
    assert_eq!((head.version, head.body, head.close), (2, BodyLength::Chunked, false));
}

#[test]
fn more_than_one_host_is_refused() {
    assert_eq!(ambiguous(&["GET / HTTP/1.1", "Host: a", "Host: b"]), FramingError::ManyHosts);
    assert_eq!(ambiguous(&["GET / HTTP/1.1", "Host: a", "host: a"]), FramingError::ManyHosts);
    assert_eq!(ambiguous(&["GET http://a/ HTTP/1.1", "Host: a", "Host:"]), FramingError::ManyHosts);
}

#[test]
fn framing_by_two_rules_is_refused() {
    let both = ambiguous(&["POST / HTTP/1.1", "Content-Length: 5", "Transfer-Encoding: chunked"]);
    assert_eq!(both, FramingError::LengthAndCoding);
    let differing = ambiguous(&["POST / HTTP/1.1", "Content-Length: 5", "CONTENT-LENGTH: 6"]);
    assert_eq!(differing, FramingError::DifferingLengths);
    for lines in [
        &["POST / HTTP/1.1", "Content-Length: 5, 5"][..],
        &["POST / HTTP/1.1", "Content-Length: 5", "Content-Length: 05"],
    ] {
        assert_eq!(ambiguous(lines), FramingError::RepeatedLength, "{lines:?}");
    }
    let signed = ambiguous(&["GET / HTTP/1.1", "Content-Length: +0"]);
    assert_eq!(signed, FramingError::InvalidLength);
    let unknown = ambiguous(&["POST / HTTP/1.1", "Transfer-Encoding: xchunked"]);
    assert_eq!(unknown, FramingError::NotChunkedLast);
    let old = ambiguous(&["POST / HTTP/1.0", "Transfer-Encoding: chunked"]);
    assert_eq!(old, FramingError::CodingInHttp10);
}

#[test]
fn connect_has_no_body() {
    for field in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        assert_eq!(ambiguous(&["CONNECT a:1 HTTP/1.1", field]), FramingError::BodyOfConnect, "{field}");
    }
    // What some clients say of it, and nobody misunderstands.
    assert_eq!(regular(&of(&["CONNECT a:1 HTTP/1.1", "Content-Length: 0"])).body, BodyLength::Length(0));
}

#[test]
fn names_that_resemble_framing_fields_are_none() {
    let head = head(&[
        "Content_Length: 5",
        "X-Content-Length: 6",
        "Transfer-Encodings: chunked",
        "Content-Lengths: x",
    ]);
    assert_eq!(head.body, BodyLength::None);
}

#[test]
fn framing_fields_are_found_in_any_case() {
    assert_eq!(head(&["cOnTeNt-LeNgTh:5"]).body, BodyLength::Length(5));
    assert_eq!(head(&["TRANSFER-ENCODING:  CHUNKED \t"]).body, BodyLength::Chunked);
}

#[test]
fn the_host_of_the_target_overrides_host() {
    let host =
        |target: &str, fields: &[&str]| regular(&of(&[&[target], fields].concat())).host.map(str::to_owned);
    let cases = [
        ("GET / HTTP/1.1", Some("b:1")),
        ("OPTIONS * HTTP/1.1", Some("b:1")),
        ("GET /http://a/ HTTP/1.1", Some("b:1")),
        ("GET http://a:8080/x HTTP/1.1", Some("a:8080")),
        ("GET HTTP://u:p@a HTTP/1.1", Some("a")),
        ("GET http://a?x=@c HTTP/1.1", Some("a")),
        ("GET http://[::1]:80/ HTTP/1.1", Some("[::1]:80")),
        ("GET http:/// HTTP/1.1", None),
        ("GET a HTTP/1.1", Some("b:1")),
        ("CONNECT a:443 HTTP/1.1", Some("a:443")),
    ];
    for (line, expected) in cases {
        assert_eq!(host(line, &["Host: b:1"]).as_deref(), expected, "{line}");
    }
    assert_eq!(host("GET / HTTP/1.1", &[]), None);
    assert_eq!(host("GET / HTTP/1.1", &["Host:"]), None);
}

#[test]
fn a_host_that_is_not_utf8_names_nothing() {
    assert_eq!(regular(b"GET / HTTP/1.1\r\nHost: a\xe9\r\n\r\n").host, None);
}

#[test]
fn expect_continue_is_of_http_1_1() {
    assert!(head(&["Expect: 100-Continue"]).expect_continue);
    assert!(!head(&["Expect: 200-ok"]).expect_continue);
    assert!(!regular(&of(&["POST / HTTP/1.0", "Expect: 100-continue"])).expect_continue);
}

#[test]
fn content_that_is_not_announced_may_follow_a_go_ahead() {
    let may = |lines: &[&str]| regular(&of(lines)).may_go_on;
    for line in ["PUT / HTTP/1.1", "SOURCE /live HTTP/1.1", "POST / HTTP/1.1"] {
        assert!(may(&[line]), "{line}");
        assert!(!may(&[line, "Content-Length: 0"]), "{line}");
        assert!(!may(&[line, "Transfer-Encoding: chunked"]), "{line}");
    }
    assert!(may(&["GET / HTTP/1.1", "Expect: 100-continue"]));
    for line in ["GET / HTTP/1.1", "HEAD / HTTP/1.1", "CONNECT a:1 HTTP/1.1", "PUT / HTTP/1.0"] {
        assert!(!may(&[line]), "{line}");
    }
}

#[test]
fn an_upgrade_needs_connection_and_upgrade() {
    let offers = |head: RequestHead<'_>| (head.upgrade, head.h2c_offer);
    assert_eq!(offers(head(&["Connection: keep-alive, Upgrade", "Upgrade: websocket"])), (true, false));
    assert_eq!(offers(head(&["Upgrade: websocket"])), (false, false));
    assert_eq!(offers(head(&["Connection: upgrade"])), (false, false));
    assert_eq!(offers(head(&["Connection: upgrade", "Upgrade:"])), (false, false));
    // RFC 9110 7.8: to be ignored in HTTP/1.0.
    let old = of(&["GET / HTTP/1.0", "Connection: upgrade", "Upgrade: websocket"]);
    assert_eq!(offers(regular(&old)), (false, false));
}

#[test]
fn an_h2c_offer_is_no_upgrade() {
    let offers = |head: RequestHead<'_>| (head.upgrade, head.h2c_offer);
    let java = head(&["Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAEAAEAAAA", "Upgrade: h2c"]);
    assert_eq!(offers(java), (false, true));
    assert_eq!(offers(head(&["Connection: upgrade", "Upgrade: H2C, websocket"])), (true, true));
    // Servers differ in how much of it they ask for: each part counts.
    assert_eq!(offers(head(&["Upgrade: h2c"])), (false, true));
    assert_eq!(offers(head(&["HTTP2-Settings: AAEAAEAAAA"])), (false, true));
}

#[test]
fn a_connection_is_kept_by_version_and_option() {
    let close = |line: &str, fields: &[&str]| regular(&of(&[&[line], fields].concat())).close;
    assert!(!close("GET / HTTP/1.1", &[]));
    assert!(close("GET / HTTP/1.1", &["Connection: TE, Close"]));
    assert!(close("GET / HTTP/1.1", &["Connection: keep-alive", "Connection: close"]));
    assert!(close("GET / HTTP/1.0", &[]));
    assert!(!close("GET / HTTP/1.0", &["Connection: Keep-Alive"]));
    assert!(close("GET / HTTP/1.0", &["Connection: keep-alive, close"]));
}

#[test]
fn debug_is_asked_for_with_1() {
    assert!(head(&["X-Divert-Debug: 1"]).debug);
    assert!(!head(&["X-Divert-Debug: 0"]).debug);
    assert!(!head(&["X-Divert-Debug: 11"]).debug);
}

#[test]
fn keys_come_from_all_carriers() {
    let key = |fields: &[&str]| head(fields).key;
    assert_eq!(key(&["Baggage: a=b", "BAGGAGE: okteto-divert=alice"]).as_deref(), Some("alice"));
    assert_eq!(key(&["baggage.okteto-divert: carol", "baggage: divert=bob"]).as_deref(), Some("bob"));
    assert_eq!(key(&["baggage.okteto-divert: carol"]).as_deref(), Some("carol"));
    assert_eq!(key(&["x-baggage: okteto-divert=eve"]), None);
}

#[test]
fn a_head_over_128_kib_is_too_large() {
    let mut buf = b"GET / HTTP/1.1\r\nX: ".to_vec();
    buf.resize(MAX_HEAD - 4, b'x');
    buf.extend_from_slice(b"\r\n\r\n");
    assert_eq!(regular(&buf).len, MAX_HEAD);
    buf.insert(20, b'x');
    assert_eq!(parse(&buf), Request::TooLarge);
}

#[test]
fn more_than_2048_fields_are_too_many() {
    let buf = |n: usize| of(&["GET / HTTP/1.1", &vec!["a: b"; n].join("\r\n")]);
    regular(&buf(MAX_FIELDS));
    assert_eq!(parse(&buf(MAX_FIELDS + 1)), Request::TooLarge);
    // The key counts beyond the fields that fit the stack.
    let lines = [&["GET / HTTP/1.1"][..], &["a: b"; 100], &["baggage: okteto-divert=alice"]].concat();
    assert_eq!(regular(&of(&lines)).key.as_deref(), Some("alice"));
}

#[test]
fn a_scan_serves_one_head_after_another() {
    let (first, second) = (of(&["GET /1 HTTP/1.1"]), of(&["\r\nPOST /2 HTTP/1.1", "Content-Length: 7"]));
    let buf = [first.clone(), second.clone()].concat();
    let (mut scan, names) = (HeadScan::new(), KeyNames::default());
    assert_eq!(parse_request(&buf[..9], &mut scan, &names), Request::Partial);
    let Request::Head(head) = parse_request(&buf, &mut scan, &names) else { panic!("a head") };
    assert_eq!(head.len, first.len());
    assert_eq!(parse_request(&buf[head.len..head.len + 5], &mut scan, &names), Request::Partial);
    let Request::Head(head) = parse_request(&buf[head.len..], &mut scan, &names) else { panic!("a head") };
    assert_eq!((head.len, head.body), (second.len(), BodyLength::Length(7)));
}
