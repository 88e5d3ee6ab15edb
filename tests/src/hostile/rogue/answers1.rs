//! Answers of HTTP/1 as nobody ought to give them.

use super::{Line, Saying, too_much};

/// Looks like the answer to somebody's request, and is nobody's.
pub(super) const FORGED: &[u8] =
    b"HTTP/1.1 200 OK\r\nX-Served-By: staging/web\r\nX-Nonce: forged\r\nX-Got: 0\r\nContent-Length: 0\r\n\r\n";

pub(super) const LINES: &[Line] = &[
    Line { name: "server/h1/nothing", bytes: |_| Vec::new() },
    Line { name: "server/h1/an ordinary answer", bytes: |it| answer(it, "Content-Length: 2\r\n", b"ok") },
    Line {
        name: "server/h1/an answer that is the last",
        bytes: |it| answer(it, "Connection: close\r\nContent-Length: 2\r\n", b"ok"),
    },
    Line {
        name: "server/h1/two answers",
        bytes: |it| [&answer(it, "Content-Length: 2\r\n", b"ok")[..], FORGED].concat(),
    },
    Line {
        name: "server/h1/a length too short",
        bytes: |it| [&answer(it, "Content-Length: 2\r\n", b"okokok")[..], FORGED].concat(),
    },
    Line { name: "server/h1/a length too long", bytes: |it| answer(it, "Content-Length: 2000\r\n", b"ok") },
    Line {
        name: "server/h1/a huge length",
        bytes: |it| answer(it, "Content-Length: 9223372036854775807\r\n", &[b'x'; 70_000]),
    },
    Line {
        name: "server/h1/a length of 2^64",
        bytes: |it| answer(it, "Content-Length: 18446744073709551616\r\n", b"ok"),
    },
    Line {
        name: "server/h1/two lengths",
        bytes: |it| answer(it, "Content-Length: 2\r\nContent-Length: 200\r\n", b"ok"),
    },
    Line {
        name: "server/h1/one length twice",
        bytes: |it| answer(it, "Content-Length: 2\r\nContent-Length: 2\r\n", b"ok"),
    },
    Line { name: "server/h1/a list of lengths", bytes: |it| answer(it, "Content-Length: 2, 2\r\n", b"ok") },
    Line {
        name: "server/h1/no number for a length",
        bytes: |it| {
            let length = ["-2", "+2", "0x2", "2 ", "two", "", "2;", "2\t3"][it.random.usize(..8)];
            answer(it, &format!("Content-Length: {length}\r\n"), b"ok")
        },
    },
    Line {
        name: "server/h1/a length and chunks",
        bytes: |it| {
            let both = "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n";
            answer(it, both, b"2\r\nok\r\n0\r\n\r\n")
        },
    },
    Line {
        name: "server/h1/a bad chunk size",
        bytes: |it| {
            let size = ["g", "-2", "0x2", "", " 2", "2 3", "ffffffffffffffffff", "+2", "\x002"]
                [it.random.usize(..9)];
            answer(
                it,
                "Transfer-Encoding: chunked\r\n",
                format!("2\r\nok\r\n{size}\r\nok\r\n0\r\n\r\n").as_bytes(),
            )
        },
    },
    Line {
        name: "server/h1/a chunk without its end",
        bytes: |it| {
            [&answer(it, "Transfer-Encoding: chunked\r\n", b"2\r\nokok\r\n0\r\n\r\n")[..], FORGED].concat()
        },
    },
    Line {
        name: "server/h1/a chunk extension without end",
        bytes: |it| {
            let extension = vec![b'e'; too_much(it.random)];
            answer(it, "Transfer-Encoding: chunked\r\n", &[&b"2;"[..], &extension].concat())
        },
    },
    Line {
        name: "server/h1/trailers without end",
        bytes: |it| {
            let trailers = "T: t\r\n".repeat(too_much(it.random) / 6);
            answer(it, "Transfer-Encoding: chunked\r\n", &[b"0\r\n", trailers.as_bytes()].concat())
        },
    },
    Line {
        name: "server/h1/another coding",
        bytes: |it| {
            let coding =
                ["gzip", "chunked, gzip", "chunked, chunked", "identity", "xchunked"][it.random.usize(..5)];
            answer(it, &format!("Transfer-Encoding: {coding}\r\n"), b"2\r\nok\r\n0\r\n\r\n")
        },
    },
    Line {
        name: "server/h1/unasked 101",
        bytes: |_| b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n".to_vec(),
    },
    Line { name: "server/h1/unasked 101, short", bytes: |_| b"HTTP/1.1 101 x\r\n\r\n".to_vec() },
    Line {
        name: "server/h1/unasked 101 and an answer",
        bytes: |_| [b"HTTP/1.1 101 x\r\nContent-Length: 5\r\n\r\n", FORGED].concat(),
    },
    Line {
        name: "server/h1/interim answers",
        bytes: |it| {
            let interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(it.random.usize(1..500));
            [&interim[..], &answer(it, "Content-Length: 2\r\n", b"ok")].concat()
        },
    },
    Line {
        name: "server/h1/nothing but interim answers",
        bytes: |it| b"HTTP/1.1 100 Continue\r\n\r\n".repeat(it.random.usize(1..3000)),
    },
    Line {
        name: "server/h1/a body with 204",
        bytes: |_| [b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok", FORGED].concat(),
    },
    Line {
        name: "server/h1/a body with 304",
        bytes: |_| [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok", FORGED].concat(),
    },
    Line { name: "server/h1/no length", bytes: |it| answer(it, "", b"until I close") },
    Line { name: "server/h1/no length, and one more answer", bytes: |it| answer(it, "", FORGED) },
    Line {
        name: "server/h1/an odd status line",
        bytes: |it| {
            let line = [
                "HTTP/1.1 099 x",
                "HTTP/1.1 1000 x",
                "HTTP/1.1 abc x",
                "HTTP/2.0 200 OK",
                "HTTP/1.12 200 OK",
                "HTTP/0.9 200 OK",
                "HTTP/1.1\t200 OK",
                "HTTP/1.1  200 OK",
                "http/1.1 200 OK",
                "ICY 200 OK",
                "HTTP/1.1 200",
                " HTTP/1.1 200 OK",
                "HTTP/1.1 200 O\0K",
            ][it.random.usize(..13)];
            format!("{line}\r\nContent-Length: 2\r\n\r\nok").into_bytes()
        },
    },
    Line {
        name: "server/h1/an odd field",
        bytes: |it| {
            let field = [
                "a b: c\r\n",
                "a : c\r\n",
                "Content-Length : 2\r\n",
                ": c\r\n",
                "no colon\r\n",
                "a: b\0c\r\n",
                "a: b\r\n c\r\n",
                "a: b\rc\r\n",
                "\ta: b\r\n",
                "a=b: x\r\n",
                "a: b\n",
                "\u{e4}: b\r\n",
            ][it.random.usize(..12)];
            answer(it, &format!("{field}Content-Length: 2\r\n"), b"ok")
        },
    },
    Line { name: "server/h1/bare LF", bytes: |_| b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok".to_vec() },
    Line { name: "server/h1/no head", bytes: |_| b"<html>as of old</html>".to_vec() },
    Line {
        name: "server/h1/a giant head",
        bytes: |it| {
            let field = format!("X-Big: {}\r\nContent-Length: 2\r\n", "b".repeat(too_much(it.random)));
            answer(it, &field, b"ok")
        },
    },
    Line {
        name: "server/h1/a head without end",
        bytes: |it| {
            let fields = "X-Big: b\r\n".repeat(too_much(it.random) / 10);
            [b"HTTP/1.1 200 OK\r\n", fields.as_bytes()].concat()
        },
    },
    Line { name: "server/h1/many fields", bytes: |it| answer(it, &"a: b\r\n".repeat(5000), b"") },
    Line { name: "server/h1/HTTP/2", bytes: |_| vec![0, 0, 0, 4, 0, 0, 0, 0, 0] },
    Line {
        name: "server/h1/a farewell",
        bytes: |_| b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec(),
    },
    Line {
        name: "server/h1/noise",
        bytes: |it| std::iter::repeat_with(|| it.random.u8(..)).take(2000).collect(),
    },
    Line {
        name: "server/h1/much more than asked for",
        bytes: |it| answer(it, "Content-Length: 2\r\n", &vec![b'x'; 500_000]),
    },
];

fn answer(it: &Saying<'_>, fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nX-Served-By: bob\r\nX-Nonce: {}\r\n{fields}\r\n", it.nonce);
    [head.as_bytes(), body].concat()
}
