//! Frames of HTTP/2 as no client ought to send them.

use super::answers2::{bomb, literal, text};
use super::{Line, Saying};
use crate::h2::frame::{PREFACE, encode};
use crate::h2::{Frame, flag, kind, setting};

pub(super) const LINES: &[Line] = &[
    Line { name: "client/h2/half a preface", bytes: |it| PREFACE[..it.random.usize(1..24)].to_vec() },
    Line { name: "client/h2/a preface and nothing", bytes: |_| PREFACE.to_vec() },
    Line {
        name: "client/h2/an ordinary request",
        bytes: |it| {
            let frames = [head(it, 1, true)];
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/a request that does not end",
        bytes: |it| {
            let frames = [head(it, 1, false), Frame::data(1, "half", false)];
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/rapid resets",
        bytes: |it| {
            let frames: Vec<_> = ids(400).flat_map(|id| [head(it, id, true), Frame::reset(id, 8)]).collect();
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/many streams",
        bytes: |it| {
            let frames: Vec<_> = ids(300).map(|id| head(it, id, false)).collect();
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/many streams with small data",
        bytes: |it| {
            let mut frames: Vec<_> = ids(50).map(|id| head(it, id, false)).collect();
            for _ in 0..20 {
                frames.extend(ids(50).map(|id| Frame::data(id, "small", false)));
            }
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/a large upload",
        bytes: |it| {
            let mut frames = vec![head(it, 1, false)];
            frames.extend((0..50).map(|_| Frame::data(1, [b'u'; 16_000], false)));
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/uploads within the window",
        bytes: |it| {
            let mut frames = Vec::new();
            for id in ids(4) {
                frames.extend([head(it, id, false), Frame::data(id, [b'u'; 16_000], false)]);
            }
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/no window",
        bytes: |it| {
            let mut frames = vec![Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 0)])];
            frames.extend(ids(30).map(|id| head(it, id, true)));
            [&PREFACE[..], &encode(&frames)].concat()
        },
    },
    Line {
        name: "client/h2/PINGs",
        bytes: |it| {
            let end = it.random.bool();
            let first = [head(it, 1, end)];
            [after_preface(&first), Frame::ping(b"flooding").encode().repeat(3000)].concat()
        },
    },
    Line {
        name: "client/h2/SETTINGS",
        bytes: |it| {
            let end = it.random.bool();
            let first = [head(it, 1, end)];
            let size = it.random.u32(..1 << 17);
            let settings =
                Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, size), (setting::HEADER_TABLE_SIZE, size)]);
            [after_preface(&first), settings.encode().repeat(1000)].concat()
        },
    },
    Line {
        name: "client/h2/odd SETTINGS",
        bytes: |it| {
            let values = [
                (setting::INITIAL_WINDOW_SIZE, u32::MAX),
                (setting::MAX_FRAME_SIZE, 1),
                (setting::ENABLE_PUSH, 7),
                (setting::HEADER_TABLE_SIZE, u32::MAX),
                (setting::MAX_CONCURRENT_STREAMS, 0),
                (0xffff, 5),
            ];
            let frames = [Frame::settings(&[values[it.random.usize(..6)]]), head(it, 1, true)];
            [&PREFACE[..], &encode(&frames)].concat()
        },
    },
    Line {
        name: "client/h2/windows",
        bytes: |it| {
            let stream = [0, 1][it.random.usize(..2)];
            let more = [0, 1, 0x7fff_ffff][it.random.usize(..3)];
            let frames = [head(it, 1, false)];
            [after_preface(&frames), Frame::window_update(stream, more).encode().repeat(1000)].concat()
        },
    },
    Line {
        name: "client/h2/PRIORITY",
        bytes: |it| {
            let frames: Vec<_> = ids(2000)
                .map(|id| Frame::new(kind::PRIORITY, 0, id, [0, 0, 0, 0, 5]))
                .chain([head(it, 1, true)])
                .collect();
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/a head without end",
        bytes: |it| {
            let first = Frame::new(kind::HEADERS, 0, 1, block(it));
            let piece = Frame::new(kind::CONTINUATION, 0, 1, literal("a", &"b".repeat(100))).encode();
            [after_preface(&[first]), piece.repeat(3000)].concat()
        },
    },
    Line {
        name: "client/h2/empty CONTINUATIONs",
        bytes: |it| {
            let first = Frame::new(kind::HEADERS, 0, 1, block(it));
            let piece = Frame::new(kind::CONTINUATION, 0, 1, []).encode();
            [after_preface(&[first]), piece.repeat(3000)].concat()
        },
    },
    Line {
        name: "client/h2/a head that is interrupted",
        bytes: |it| {
            let frames = [Frame::new(kind::HEADERS, 0, 1, block(it)), Frame::ping(b"between.")];
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/CONTINUATION of nothing",
        bytes: |it| {
            let frames = [Frame::new(kind::CONTINUATION, flag::END_HEADERS, 1, block(it))];
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/a bomb of references",
        bytes: |it| {
            let frames = [Frame::headers(1, bomb(&block(it)), true)];
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/bombs of references",
        bytes: |it| {
            let entry = [&[0x40][..], &text("x-big"), &text(&"b".repeat(3900))].concat();
            let mut frames = vec![Frame::headers(1, [&block(it)[..], &entry].concat(), false)];
            let again = [&block(it)[..], &[0xbe; 30]].concat();
            frames.extend(ids(100).skip(1).map(|id| Frame::headers(id, again.clone(), false)));
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/bad HPACK",
        bytes: |it| {
            let block: &[u8] = [
                &[0x80][..],
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                &[0x3f, 0xff, 0xff, 0x7f],
                &[0x40, 0x85],
            ][it.random.usize(..4)];
            let frames = [Frame::headers(1, block, true)];
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/an odd head",
        bytes: |it| {
            let odd = [
                literal("Upper", "x"),
                literal("a b", "x"),
                literal("connection", "close"),
                literal(":status", "200"),
                literal("", ""),
                literal("x", "a\r\nb"),
                literal("content-length", "5"),
                literal(":path", "/again"),
                literal("te", "gzip"),
                literal("transfer-encoding", "chunked"),
            ];
            let block = [&block(it)[..], &odd[it.random.usize(..10)]].concat();
            let frames = [Frame::headers(1, block, it.random.bool()), head(it, 3, true)];
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/CONNECT",
        bytes: |it| {
            let baggage =
                it.key.map(|key| literal("baggage", &format!("okteto-divert={key}"))).unwrap_or_default();
            let extended = [literal(":protocol", "websocket"), vec![0x86, 0x84]].concat();
            let extended = if it.random.bool() { extended } else { Vec::new() };
            let block =
                [literal(":method", "CONNECT"), literal(":authority", "web"), extended, baggage].concat();
            let frames = [Frame::headers(1, block, false), Frame::data(1, "hello", false)];
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/odd streams",
        bytes: |it| {
            let id = [0, 2, 0x7fff_ffff, 0xffff_ffff, 1001][it.random.usize(..5)];
            let frames =
                [head(it, 5, true), head(it, id, true), head(it, 3, true), Frame::data(9, "x", true)];
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/data after the end",
        bytes: |it| {
            let frames = [head(it, 1, true), Frame::data(1, "x", false), head(it, 1, true)];
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/GOAWAY",
        bytes: |it| {
            let frames = [head(it, 1, false), Frame::goaway(0, 0), head(it, 3, true)];
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/PUSH_PROMISE",
        bytes: |it| {
            let promised = [&[0, 0, 0, 2][..], &block(it)].concat();
            let frames = [head(it, 1, false), Frame::new(kind::PUSH_PROMISE, flag::END_HEADERS, 1, promised)];
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/frames of a bad size",
        bytes: |it| {
            let kinds = [
                kind::PING,
                kind::SETTINGS,
                kind::RST_STREAM,
                kind::WINDOW_UPDATE,
                kind::PRIORITY,
                kind::GOAWAY,
            ];
            let kind = kinds[it.random.usize(..6)];
            let stream = if matches!(kind, kind::RST_STREAM | kind::PRIORITY) { 1 } else { 0 };
            let frames =
                [head(it, 1, false), Frame::new(kind, 0, stream, vec![0; it.random.usize(..8) * 2 + 1])];
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/a frame too large",
        bytes: |it| {
            let frames = [head(it, 1, false), Frame::data(1, vec![b'x'; 200_000], true)];
            after_preface(&frames)
        },
    },
    Line {
        name: "client/h2/empty data",
        bytes: |it| {
            let frames = [head(it, 1, false)];
            [after_preface(&frames), Frame::data(1, "", false).encode().repeat(3000)].concat()
        },
    },
    Line {
        name: "client/h2/noise after a request",
        bytes: |it| {
            let frames = [head(it, 1, false)];
            let noise: Vec<u8> = std::iter::repeat_with(|| it.random.u8(..)).take(2000).collect();
            [after_preface(&frames), noise].concat()
        },
    },
];

/// Streams of a client.
fn ids(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| number * 2 + 1)
}

fn after_preface(frames: &[Frame]) -> Vec<u8> {
    [&PREFACE[..], &Frame::settings(&[]).encode(), &encode(frames)].concat()
}

/// The head of a request. Where there are several of one connection, keys of all are among them.
fn head(it: &mut Saying<'_>, stream: u32, end: bool) -> Frame {
    if it.random.u8(..4) == 0 {
        it.key = [None, Some("alice"), Some("bob"), Some("carol")][it.random.usize(..4)];
    }
    Frame::headers(stream, block(it), end)
}

/// POST for `/` at `web`, with the key.
fn block(it: &Saying<'_>) -> Vec<u8> {
    let authority = [&[1][..], &text("web")].concat();
    let baggage = it.key.map(|key| literal("baggage", &format!("okteto-divert={key}"))).unwrap_or_default();
    [&[0x83, 0x86, 0x84][..], &authority, &baggage].concat()
}
