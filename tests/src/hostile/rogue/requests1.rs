//! Requests of HTTP/1 as nobody ought to make them.

use super::{Line, Saying, too_much};

pub(super) const LINES: &[Line] = &[
    Line { name: "client/h1/an ordinary request", bytes: |it| get(it, "") },
    Line { name: "client/h1/many requests at once", bytes: |it| get(it, "").repeat(it.random.usize(2..100)) },
    Line { name: "client/h1/a length too long", bytes: |it| post(it, "Content-Length: 2000\r\n", b"ok") },
    Line {
        name: "client/h1/a length too short",
        bytes: |it| {
            let body = [&b"ok"[..], &get(it, "")].concat();
            post(it, "Content-Length: 1\r\n", &body)
        },
    },
    Line {
        name: "client/h1/two lengths",
        bytes: |it| {
            let fields = [
                "Content-Length: 2\r\nContent-Length: 200\r\n",
                "Content-Length: 2\r\nContent-Length: 2\r\n",
                "Content-Length: 2, 2\r\n",
                "Content-Length: 2\r\nContent-Length: 02\r\n",
            ][it.random.usize(..4)];
            post(it, fields, b"ok")
        },
    },
    Line {
        name: "client/h1/no number for a length",
        bytes: |it| {
            let length = ["-2", "+2", "0x2", "two", "", "18446744073709551616", "2\t3"][it.random.usize(..7)];
            post(it, &format!("Content-Length: {length}\r\n"), b"ok")
        },
    },
    Line {
        name: "client/h1/a length and chunks",
        bytes: |it| {
            let smuggled = [&b"0\r\n\r\n"[..], &get(it, "")].concat();
            post(
                it,
                &format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", smuggled.len()),
                &smuggled,
            )
        },
    },
    Line {
        name: "client/h1/another coding",
        bytes: |it| {
            let coding = ["gzip", "chunked, gzip", "identity", " chunked", "chunked\r\nTransfer-Encoding: x"];
            let coding = coding[it.random.usize(..5)];
            post(it, &format!("Transfer-Encoding: {coding}\r\n"), b"2\r\nok\r\n0\r\n\r\n")
        },
    },
    Line {
        name: "client/h1/a bad chunk size",
        bytes: |it| {
            let size = ["g", "-2", "0x2", "", " 2", "ffffffffffffffffff", "2\n"][it.random.usize(..7)];
            post(
                it,
                "Transfer-Encoding: chunked\r\n",
                format!("2\r\nok\r\n{size}\r\nok\r\n0\r\n\r\n").as_bytes(),
            )
        },
    },
    Line {
        name: "client/h1/chunks without end",
        bytes: |it| post(it, "Transfer-Encoding: chunked\r\n", &b"3\r\nabc\r\n".repeat(20_000)),
    },
    Line {
        name: "client/h1/a chunk extension without end",
        bytes: |it| {
            let extension = vec![b'e'; too_much(it.random)];
            post(it, "Transfer-Encoding: chunked\r\n", &[&b"2;"[..], &extension].concat())
        },
    },
    Line {
        name: "client/h1/trailers without end",
        bytes: |it| {
            let trailers = "T: t\r\n".repeat(too_much(it.random) / 6);
            post(it, "Transfer-Encoding: chunked\r\n", &[b"0\r\n", trailers.as_bytes()].concat())
        },
    },
    Line {
        name: "client/h1/a large upload",
        bytes: |it| {
            let length = it.random.usize(100_000..1_000_000);
            post(it, &format!("Content-Length: {length}\r\n"), &vec![b'u'; length])
        },
    },
    Line {
        name: "client/h1/a giant head",
        bytes: |it| {
            let field = format!("X-Big: {}\r\n", "b".repeat(too_much(it.random)));
            get(it, &field)
        },
    },
    Line {
        name: "client/h1/a large head",
        bytes: |it| {
            let field = format!("X-Big: {}\r\n", "b".repeat(it.random.usize(8_000..120_000)));
            get(it, &field)
        },
    },
    Line { name: "client/h1/many fields", bytes: |it| get(it, &"a: b\r\n".repeat(3000)) },
    Line {
        name: "client/h1/an odd field",
        bytes: |it| {
            let field = [
                "a=b: x\r\n",
                "a b: c\r\n",
                "a : c\r\n",
                ": c\r\n",
                "no colon\r\n",
                "a: b\0c\r\n",
                "a: b\r\n c\r\n",
                "a: b\rc\r\n",
                "a: b\n",
                "baggage.okteto-divert=alice: x\r\n",
                "\u{e4}: b\r\n",
                "a: \u{1}\r\n",
                "Content-Length : 2\r\n",
            ][it.random.usize(..13)];
            [get(it, field), get(it, "")].concat()
        },
    },
    Line {
        name: "client/h1/an odd request line",
        bytes: |it| {
            let line = [
                "GET  / HTTP/1.1",
                "GET / HTTP/1.1 ",
                "GET /\tHTTP/1.1",
                "GET / HTTP/1.2",
                "GET / HTTP/2.0",
                "GET /",
                "get / http/1.1",
                "GET / x HTTP/1.1",
                "GE T / HTTP/1.1",
                " GET / HTTP/1.1",
                "GET http://web/ HTTP/1.1",
                "* / HTTP/1.1",
                "GET / HTTP/1.1\r",
            ][it.random.usize(..13)];
            let rest = String::from_utf8_lossy(&get(it, "")).into_owned();
            [line, rest.trim_start_matches("GET / HTTP/1.1")].concat().into_bytes()
        },
    },
    Line {
        name: "client/h1/odd baggage",
        bytes: |it| {
            let members = "a=b,".repeat(it.random.usize(1..3000));
            let value = [
                "okteto-divert=",
                "okteto-divert=bob;okteto-divert=alice",
                "=,;,=",
                "okteto-divert=%zz",
                &members,
            ];
            let field = format!("baggage: {}\r\n", value[it.random.usize(..5)]);
            get(it, &field)
        },
    },
    Line { name: "client/h1/no host", bytes: |_| b"GET / HTTP/1.1\r\n\r\n".to_vec() },
    Line { name: "client/h1/two hosts", bytes: |it| get(it, "Host: other\r\n") },
    Line {
        name: "client/h1/blank lines between",
        bytes: |it| {
            let lines = b"\r\n".repeat(it.random.usize(1..200));
            [&lines[..], &get(it, ""), &lines, &get(it, ""), &lines].concat()
        },
    },
    Line {
        name: "client/h1/CONNECT",
        bytes: |it| {
            let head = format!("CONNECT web:80 HTTP/1.1\r\nHost: web\r\n{}\r\n", baggage(it));
            [head.as_bytes(), &get(it, "")].concat()
        },
    },
    Line {
        name: "client/h1/an upgrade",
        bytes: |it| {
            let to = ["h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", "websocket", "x"][it.random.usize(..3)];
            let fields = format!("Connection: upgrade\r\nUpgrade: {to}\r\n");
            [get(it, &fields), get(it, "")].concat()
        },
    },
    Line {
        name: "client/h1/a body after a question",
        bytes: |it| post(it, "Expect: 100-continue\r\nContent-Length: 3\r\n", b""),
    },
    Line {
        name: "client/h1/HTTP/1.0",
        bytes: |it| format!("POST / HTTP/1.0\r\n{}\r\nraw and without a length", baggage(it)).into_bytes(),
    },
    Line { name: "client/h1/a beginning", bytes: |_| b"GET / HTTP/1.1\r\nHost: we".to_vec() },
];

fn get(it: &Saying<'_>, fields: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: web\r\n{}{fields}\r\n", baggage(it)).into_bytes()
}

fn post(it: &Saying<'_>, fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST / HTTP/1.1\r\nHost: web\r\n{}{fields}\r\n", baggage(it));
    [head.as_bytes(), body].concat()
}

fn baggage(it: &Saying<'_>) -> String {
    it.key.map(|key| format!("baggage: okteto-divert={key}\r\n")).unwrap_or_default()
}
