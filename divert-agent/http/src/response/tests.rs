use super::*;
use crate::head::{MAX_FIELDS, MAX_HEAD};

fn parse(buf: &[u8], method: Method) -> Response {
    parse_response(buf, &mut HeadScan::new(), &Asked { method, version: 1, offered: b"" })
}

/// The answer to a GET of this version that offers these protocols.
fn answer(lines: &[&str], version: u8, offered: &str) -> Result<ResponseKind, ResponseFault> {
    let asked = Asked { method: Method::Other, version, offered: offered.as_bytes() };
    match parse_response(&of(lines), &mut HeadScan::new(), &asked) {
        Response::Head(head) => Ok(head.kind),
        Response::Irregular(fault) => Err(fault),
        Response::Partial => panic!("partial"),
    }
}

fn of(lines: &[&str]) -> Vec<u8> {
    (lines.join("\r\n") + "\r\n\r\n").into_bytes()
}

#[track_caller]
fn head(lines: &[&str], method: Method) -> ResponseHead {
    match parse(&of(lines), method) {
        Response::Head(head) => head,
        other => panic!("{other:?} for {lines:?}"),
    }
}

#[track_caller]
fn fault(lines: &[&str]) -> ResponseFault {
    match parse(&of(lines), Method::Other) {
        Response::Irregular(fault) => fault,
        other => panic!("{other:?} for {lines:?}"),
    }
}

#[test]
fn a_plain_response() {
    let buf = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    let expected = ResponseHead {
        len: buf.len() - 5,
        status: 200,
        version: 1,
        kind: ResponseKind::Final,
        body: BodyLength::Length(5),
        close: false,
    };
    assert_eq!(parse(buf, Method::Other), Response::Head(expected));
    for len in 0..expected.len {
        assert_eq!(parse(&buf[..len], Method::Other), Response::Partial, "{len} bytes");
    }
}

#[test]
fn a_reason_may_be_empty_absent_or_not_ascii() {
    for line in ["HTTP/1.1 200 ", "HTTP/1.1 200", "HTTP/1.1 200 tr\u{e8}s\tbien", "HTTP/1.1 200  x"] {
        assert_eq!(head(&[line], Method::Other).status, 200, "{line}");
    }
    assert!(matches!(parse(b"HTTP/1.0 599 \xe9\r\n\r\n", Method::Other), Response::Head(_)));
}

#[test]
fn another_status_line_is_irregular() {
    for line in [
        "HTTP/1.1  200 OK",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 099 OK",
        "HTTP/1.1 +20 OK",
        "HTTP/1.1 200OK",
        "HTTP/1.10 200 OK",
        "HTTP/1.x 200 OK",
        "HTTP/1.1",
        "HTTP/1.1 200 a\u{1}b",
        "HTTP/1.1 200 a\rb",
    ] {
        assert_eq!(fault(&[line]), Irregularity::StartLine.into(), "{line}");
    }
}

#[test]
fn what_is_no_response_is_told_at_its_first_byte() {
    let fault = Response::Irregular(Irregularity::StartLine.into());
    for buf in [&b"<"[..], b"\r", b"HTTP/2", b"ICY 200 OK", b"http/1.1 200 OK", b"HTTX"] {
        assert_eq!(parse(buf, Method::Other), fault, "{}", buf.escape_ascii());
    }
}

#[test]
fn irregular_heads() {
    assert_eq!(
        parse(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", Method::Other),
        Response::Irregular(Irregularity::BareLf.into())
    );
    assert_eq!(fault(&["HTTP/1.1 200 OK", "X: a", " b"]), Irregularity::Folded.into());
    for (line, fault_of_it) in [
        ("a : b", Irregularity::SpaceBeforeColon),
        ("X: a\0", Irregularity::ControlByte),
        ("X: a\rb", Irregularity::ControlByte),
        ("Content-Length: \u{b}5", Irregularity::FramingField),
        ("(Content-Length): 5", Irregularity::FramingField),
        ("X: a\u{b}Content-Length: 5", Irregularity::FramingField),
    ] {
        assert_eq!(fault(&["HTTP/1.1 200 OK", "Content-Length: 2", line]), fault_of_it.into(), "{line:?}");
    }
}

#[test]
fn an_odd_field_changes_nothing_about_the_others() {
    for line in ["no colon", "a b: c", "a=b: x", ": x", "X: \u{1}", "\u{e9}: b"] {
        let read = head(&["HTTP/1.1 200 OK", line, "Content-Length: 5", "Connection: close"], Method::Other);
        assert_eq!((read.body, read.close), (BodyLength::Length(5), true), "{line:?}");
        let both = fault(&["HTTP/1.1 200 OK", "Content-Length: 5", line, "Transfer-Encoding: chunked"]);
        assert_eq!(both, FramingError::LengthAndCoding.into(), "{line:?}");
    }
}

#[test]
fn ambiguous_framing() {
    let both = fault(&["HTTP/1.1 200 OK", "Content-Length: 5", "Transfer-Encoding: chunked"]);
    assert_eq!(both, FramingError::LengthAndCoding.into());
    let differing = fault(&["HTTP/1.1 200 OK", "Content-Length: 5, 6"]);
    assert_eq!(differing, FramingError::DifferingLengths.into());
    let junk = fault(&["HTTP/1.1 200 OK", "Content-Length: 5x"]);
    assert_eq!(junk, FramingError::InvalidLength.into());
    let old = fault(&["HTTP/1.0 200 OK", "Transfer-Encoding: chunked"]);
    assert_eq!(old, FramingError::CodingInHttp10.into());
    let last = fault(&["HTTP/1.1 200 OK", "Transfer-Encoding: chunked, gzip"]);
    assert_eq!(last, FramingError::NotChunkedLast.into());
}

#[test]
fn bodies() {
    let body = |fields: &[&str]| head(&[&["HTTP/1.1 200 OK"], fields].concat(), Method::Other).body;
    assert_eq!(body(&["Content-Length: 0"]), BodyLength::Length(0));
    assert_eq!(body(&["Content-Length: 7, 7", "content-length: 7"]), BodyLength::Length(7));
    assert_eq!(body(&["Transfer-Encoding: chunked"]), BodyLength::Chunked);
    assert_eq!(body(&["Transfer-Encoding: gzip"]), BodyLength::UntilClose);
    assert_eq!(body(&[]), BodyLength::UntilClose);
}

#[test]
fn some_responses_have_no_body_whatever_they_say() {
    let fields = ["Content-Length: 5", "Transfer-Encoding: chunked"];
    for (line, method, kind) in [
        ("HTTP/1.1 200 OK", Method::Head, ResponseKind::Final),
        ("HTTP/1.1 404 Not Found", Method::Head, ResponseKind::Final),
        ("HTTP/1.1 204 No Content", Method::Other, ResponseKind::Final),
        ("HTTP/1.1 304 Not Modified", Method::Other, ResponseKind::Final),
        ("HTTP/1.1 100 Continue", Method::Other, ResponseKind::Interim),
        ("HTTP/1.1 103 Early Hints", Method::Connect, ResponseKind::Interim),
        ("HTTP/1.1 200 OK", Method::Connect, ResponseKind::Tunnel),
        ("HTTP/1.1 299 x", Method::Connect, ResponseKind::Tunnel),
    ] {
        for fields in [&[][..], &fields[..1], &fields[1..], &fields] {
            let head = head(&[&[line], fields].concat(), method);
            assert_eq!((head.body, head.kind), (BodyLength::None, kind), "{line} {fields:?}");
        }
    }
}

#[test]
fn a_101_counts_where_it_names_what_was_offered() {
    let switched = Ok(ResponseKind::SwitchingProtocols);
    let to = |protocol: &str| ["HTTP/1.1 101 x".to_owned(), format!("Upgrade: {protocol}")];
    let answered = |protocol: &str, version, offered| {
        answer(&to(protocol).each_ref().map(|line| &**line), version, offered)
    };
    assert_eq!(answered("websocket", 1, "websocket"), switched);
    assert_eq!(answered("WebSocket", 1, "h3,websocket"), switched);
    assert_eq!(answer(&["HTTP/1.1 101 x", "Upgrade: a", "Content-Length: 5"], 1, "a"), switched);
    for (protocol, offered) in [("websocket", ""), ("h2c", "websocket"), ("", "websocket")] {
        assert_eq!(
            answered(protocol, 1, offered),
            Err(ResponseFault::UnaskedUpgrade),
            "{protocol} of {offered}"
        );
    }
    assert_eq!(answer(&["HTTP/1.1 101 x"], 1, "websocket"), Err(ResponseFault::UnaskedUpgrade));
    assert_eq!(answer(&["HTTP/1.1 101 x", "X-Upgrade: a"], 1, "a"), Err(ResponseFault::UnaskedUpgrade));
}

#[test]
fn http_1_0_has_no_interim_responses() {
    assert_eq!(answer(&["HTTP/1.1 100 x"], 1, ""), Ok(ResponseKind::Interim));
    for status in ["100", "103", "199"] {
        let line = format!("HTTP/1.1 {status} x");
        assert_eq!(answer(&[&line], 0, ""), Err(ResponseFault::InterimInHttp10), "{status}");
    }
    assert_eq!(answer(&["HTTP/1.0 200 x"], 0, ""), Ok(ResponseKind::Final));
}

#[test]
fn a_refused_tunnel_is_an_ordinary_response() {
    let head = head(&["HTTP/1.1 407 x", "Content-Length: 5"], Method::Connect);
    assert_eq!((head.kind, head.body), (ResponseKind::Final, BodyLength::Length(5)));
}

#[test]
fn a_connection_is_kept_by_version_and_option() {
    let close = |lines: &[&str]| head(lines, Method::Other).close;
    assert!(!close(&["HTTP/1.1 200 OK"]));
    assert!(close(&["HTTP/1.1 200 OK", "connection: close"]));
    assert!(close(&["HTTP/1.0 200 OK"]));
    assert!(!close(&["HTTP/1.0 200 OK", "Connection: keep-alive"]));
}

#[test]
fn limits() {
    let mut buf = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
    buf.resize(MAX_HEAD, b'x');
    assert_eq!(parse(&buf[..MAX_HEAD - 1], Method::Other), Response::Partial);
    assert_eq!(parse(&buf, Method::Other), Response::Irregular(ResponseFault::TooLarge));
    let fields = vec!["a: b"; MAX_FIELDS + 1].join("\r\n");
    assert_eq!(fault(&["HTTP/1.1 200 OK", &fields]), ResponseFault::TooLarge);
}
