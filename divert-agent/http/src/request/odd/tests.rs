use super::*;
use crate::framing::FramingError;
use crate::head::{HeadScan, MAX_FIELDS, MAX_HEAD};
use crate::request::parse_request;

fn parse(buf: &[u8]) -> Request<'_> {
    parse_request(buf, &mut HeadScan::new(), &KeyNames::default())
}

fn of(lines: &[&str]) -> Vec<u8> {
    (lines.join("\r\n") + "\r\n\r\n").into_bytes()
}

/// A head that is followed though it is odd. Its bytes are leaked, so that it can be returned.
#[track_caller]
fn odd(lines: &[&str]) -> RequestHead<'static> {
    match parse(of(lines).leak()) {
        Request::Head(head) if head.odd => head,
        other => panic!("{other:?} for {lines:?}"),
    }
}

#[track_caller]
fn irregular(buf: impl AsRef<[u8]>) -> (Option<String>, Irregularity) {
    match parse(buf.as_ref()) {
        Request::Irregular { key, reason, .. } => (key, reason),
        other => panic!("{other:?} for {}", buf.as_ref().escape_ascii()),
    }
}

const KEY: &str = "baggage: okteto-divert=alice";

#[test]
fn an_odd_field_changes_nothing_about_the_others() {
    for line in [
        "a=b: x",
        "baggage.okteto-divert=alice: x",
        "(a): b",
        "a: \u{b}b",
        "a: \u{7f}",
        "a: \u{1}",
        ": no name",
        "a b: c",
        "\u{1}a: b",
        "\u{e9}: b",
        "no colon",
    ] {
        for lines in
            [[line, "Host: h:80", KEY, "Connection: close"], ["Connection: close", KEY, "Host: h:80", line]]
        {
            let lines = [&["GET / HTTP/1.1"][..], &lines].concat();
            let head = odd(&lines);
            let expected = (of(&lines).len(), Some("alice"), Some("h:80"), BodyLength::None, true);
            assert_eq!(
                (head.len, head.key.as_deref(), head.host, head.body, head.close),
                expected,
                "{line:?}"
            );
        }
        // What frames is followed, ...
        let head = odd(&["POST / HTTP/1.1", "Content-Length: 5", line]);
        assert_eq!(head.body, BodyLength::Length(5), "{line:?}");
        // ... and what frames in two ways is refused.
        let both = of(&["POST / HTTP/1.1", "Content-Length: 5", "Content-Length: 5", line]);
        assert_eq!(parse(&both), Request::Ambiguous(FramingError::RepeatedLength), "{line:?}");
        let hosts = of(&["GET / HTTP/1.1", line, "Host: a", "Host: b"]);
        assert_eq!(parse(&hosts), Request::Ambiguous(FramingError::ManyHosts), "{line:?}");
    }
    // Not a carrier of a key: its name is another.
    assert_eq!(odd(&["GET / HTTP/1.1", "baggage.okteto-divert=alice: x"]).key, None);
    // A carrier whose value has a control character is still read.
    assert_eq!(
        odd(&["GET / HTTP/1.1", "baggage: a=\u{1},okteto-divert=alice"]).key.as_deref(),
        Some("alice")
    );
}

#[test]
fn a_line_that_hides_a_body_from_some_readers_is_irregular() {
    for line in ["a b: c", "\u{1}a: b", "\u{e9}: b", "no colon"] {
        for field in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            let head = of(&["POST / HTTP/1.1", line, field, KEY]);
            assert_eq!(irregular(&head), (Some("alice".into()), Irregularity::Field), "{line:?}");
        }
        // There is none to be hidden.
        assert_eq!(odd(&["POST / HTTP/1.1", line, "Content-Length: 0"]).body, BodyLength::Length(0));
    }
    for line in ["a=b: x", "(a): b", "a: \u{b}b", ": no name"] {
        assert_eq!(
            odd(&["POST / HTTP/1.1", line, "Content-Length: 5"]).body,
            BodyLength::Length(5),
            "{line:?}"
        );
    }
}

#[test]
fn fields_that_frame_have_no_other_characters() {
    for line in [
        "Content-Length: \u{b}5",
        "Content-Length: 5\u{1}",
        "Transfer-Encoding: \u{c}chunked",
        "Content-Length\u{b}: 5",
        "\u{1}content-length: 5",
        "(Transfer-Encoding): chunked",
        "Transfer Encoding\u{e9}-: x\u{b}Transfer-Encoding: chunked",
        "x: y\u{b}Content-Length: 5",
        "x: y\u{1c} content-length : 5",
    ] {
        let head = of(&["POST / HTTP/1.1", KEY, line]);
        assert_eq!(irregular(&head), (Some("alice".into()), Irregularity::FramingField), "{line:?}");
    }
    // These are regular, or no name of such a field to anybody.
    for line in ["Content_Length: 5", "X-Content-Length: 5"] {
        assert!(matches!(parse(&of(&["GET / HTTP/1.1", line])), Request::Head(head) if !head.odd), "{line}");
    }
}

#[test]
fn lines_that_end_in_two_ways_are_irregular_and_the_key_is_found() {
    let cases = [
        ("GET / HTTP/1.1\nHost: a\nbaggage: okteto-divert=alice\n\n", Irregularity::BareLf),
        ("GET / HTTP/1.1\r\nbaggage: okteto-divert=alice\r\n\n", Irregularity::BareLf),
        ("GET / HTTP/1.1\r\nbaggage: a=b,\r\n okteto-divert=alice\r\n\r\n", Irregularity::Folded),
        ("GET / HTTP/1.1\r\n X: y\r\nbaggage: okteto-divert=alice\r\n\r\n", Irregularity::Folded),
        ("GET / HTTP/1.1\r\nX: y\rz\r\nbaggage: okteto-divert=alice\r\n\r\n", Irregularity::ControlByte),
        ("GET / HTTP/1.1\r\nX: y\rbaggage: okteto-divert=alice\r\n\r\n", Irregularity::ControlByte),
        ("GET / HTTP/1.1\r\nX: y\r\r\nbaggage: okteto-divert=alice\r\n\r\n", Irregularity::ControlByte),
        ("GET / HTTP/1.1\r\nX\0: y\r\nbaggage: okteto-divert=alice\r\n\r\n", Irregularity::ControlByte),
        ("GET /\0 HTTP/1.1\r\nbaggage: okteto-divert=alice\r\n\r\n", Irregularity::ControlByte),
        ("\rGET / HTTP/1.1\r\nbaggage: okteto-divert=alice\r\n\r\n", Irregularity::ControlByte),
        (
            "POST / HTTP/1.1\r\nContent-Length : 5\r\nbaggage: okteto-divert=alice\r\n\r\n",
            Irregularity::SpaceBeforeColon,
        ),
        ("POST / HTTP/1.1\r\nbaggage\t: okteto-divert=alice\r\n\r\n", Irregularity::SpaceBeforeColon),
    ];
    for (head, reason) in cases {
        assert_eq!(irregular(head), (Some("alice".into()), reason), "{head:?}");
        assert_eq!(irregular(head.replace("okteto-divert", "x")), (None, reason), "{head:?}");
    }
}

#[test]
fn an_odd_request_line_is_read_by_its_words() {
    for (line, method) in [
        ("GET / HTTP/1.1 ", Method::Other),
        ("GET  / HTTP/1.1", Method::Other),
        ("HEAD\t/ HTTP/1.1", Method::Head),
        ("CONNECT a:1  HTTP/1.1", Method::Connect),
        ("GET /a b HTTP/1.1", Method::Other),
        ("GET /\u{1} HTTP/1.1", Method::Other),
        ("GET /\u{7f} HTTP/1.1", Method::Other),
        ("G(T / HTTP/1.1", Method::Other),
        ("baggage:okteto-divert= / HTTP/1.1", Method::Other),
        ("GET / HTTP/1.10", Method::Other),
        ("GET / HTTP/2.0", Method::Other),
        ("HEAD / http/1.1", Method::Head),
        ("GET / HTTP/", Method::Other),
    ] {
        let head = odd(&[line, "Host: h", KEY]);
        assert_eq!(
            (head.method, head.key.as_deref(), head.host),
            (
                method,
                Some("alice"),
                match method {
                    Method::Connect => Some("a:1"),
                    _ => Some("h"),
                }
            ),
            "{line:?}"
        );
    }
    assert_eq!(odd(&["POST /a b HTTP/1.0", "Content-Length: 5"]).version, 0);
    assert_eq!(odd(&["POST /a b HTTP/1.1", "Transfer-Encoding: chunked"]).body, BodyLength::Chunked);
    assert_eq!(odd(&["GET  http://a:1/x HTTP/1.1", "Host: b"]).host, Some("a:1"));
}

#[test]
fn a_request_line_that_is_not_certain_is_irregular() {
    for line in [
        " GET / HTTP/1.1",
        "\tGET / HTTP/1.1",
        "(HEAD) / HTTP/1.1",
        "\u{1}connect a:1 HTTP/1.1",
        "GET / HTTP/1.0 HTTP/1.1",
    ] {
        assert_eq!(irregular(of(&[line, KEY])), (Some("alice".into()), Irregularity::StartLine), "{line:?}");
    }
    // Whether the version has chunks is not known.
    let chunks = of(&["POST / HTTP/1.10", "Transfer-Encoding: chunked"]);
    assert_eq!(irregular(chunks), (None, Irregularity::StartLine));
}

#[test]
fn what_is_no_request_line_is_told_at_its_end_and_has_no_fields() {
    for line in [
        "GET /",
        "x",
        "GET / HTTP/1.1 x",
        "\0\u{1}\u{2}",
        "SOURCE /live ICE/1.0",
        "GET / RTSP/1.0",
        "HTTP/1.1",
        "$GPGGA,1",
        "{\"a\": 1}",
    ] {
        for rest in ["", KEY, "baggage: okteto-divert=alice\r\n\r\n"] {
            for end in ["\n", "\r\n"] {
                let buf = format!("\r\n{line}{end}{rest}");
                assert_eq!(irregular(&buf), (None, Irregularity::StartLine), "{buf:?}");
            }
        }
        assert_eq!(parse(line.as_bytes()), Request::Partial, "{line:?}");
        // However much comes behind it.
        let mut long = format!("{line}\r\nX: ").into_bytes();
        long.resize(MAX_HEAD, b'x');
        assert_eq!(irregular(&long), (None, Irregularity::StartLine), "{line:?}");
    }
}

#[test]
fn the_host_of_an_irregular_head_is_found() {
    let host = |head: &str| match parse(head.as_bytes()) {
        Request::Irregular { host, .. } => host,
        other => panic!("{other:?} for {head:?}"),
    };
    assert_eq!(host("GET / HTTP/1.1\nHost: a:1\n\n").as_deref(), Some("a:1"));
    assert_eq!(host("GET http://b/ HTTP/1.1\r\nHost : a\r\n\r\n").as_deref(), Some("b"));
    assert_eq!(host("GET / HTTP/1.1\n\n"), None);
}

#[test]
fn more_than_2048_lines_are_too_many() {
    let lines = |count: usize| of(&["GET / HTTP/1.1", &vec!["a b"; count].join("\r\n")]);
    assert!(matches!(parse(&lines(MAX_FIELDS)), Request::Head(_)));
    assert_eq!(parse(&lines(MAX_FIELDS + 1)), Request::TooLarge);
}
