//! Frames of HTTP/2 as no server ought to send them.

use super::Line;
use crate::h2::frame::encode;
use crate::h2::{Frame, code, flag, kind, setting};

/// `:status: 200` of the static table (RFC 7541 A).
const OK: u8 = 0x88;

pub(super) const LINES: &[Line] = &[
    Line { name: "server/h2/nothing", bytes: |_| Vec::new() },
    Line { name: "server/h2/a head and no more", bytes: |it| one(Frame::headers(it.stream, [OK], false)) },
    Line {
        name: "server/h2/half a body",
        bytes: |it| encode(&[Frame::headers(it.stream, [OK], false), Frame::data(it.stream, "half", false)]),
    },
    Line {
        name: "server/h2/more than the window",
        bytes: |it| {
            let mut frames = vec![Frame::headers(it.stream, [OK], false)];
            frames.extend((0..20).map(|_| Frame::data(it.stream, [b'x'; 16_000], false)));
            encode(&frames)
        },
    },
    Line {
        name: "server/h2/a frame too large",
        bytes: |it| one(Frame::data(it.stream, vec![b'x'; 100_000], true)),
    },
    Line {
        name: "server/h2/GOAWAY",
        bytes: |it| {
            let last = [0, it.stream, it.stream + 2, 0x7fff_ffff, 2, u32::MAX][it.random.usize(..6)];
            one(Frame::goaway(last, [code::NO_ERROR, code::ENHANCE_YOUR_CALM, 0xffff][it.random.usize(..3)]))
        },
    },
    Line {
        name: "server/h2/GOAWAY twice",
        bytes: |it| {
            encode(&[
                Frame::goaway(it.stream, 0),
                Frame::goaway(it.stream + 100, 0),
                Frame::headers(it.stream, [OK], true),
            ])
        },
    },
    Line { name: "server/h2/a short GOAWAY", bytes: |_| one(Frame::new(kind::GOAWAY, 0, 0, [0, 0, 0])) },
    Line {
        name: "server/h2/resets",
        bytes: |it| {
            let resets =
                (0..1000).map(|number| Frame::reset(if number % 2 == 0 { it.stream } else { number }, 8));
            encode(&resets.collect::<Vec<_>>())
        },
    },
    Line { name: "server/h2/refused", bytes: |it| one(Frame::reset(it.stream, code::REFUSED_STREAM)) },
    Line { name: "server/h2/PINGs", bytes: |_| one(Frame::ping(b"flooding")).repeat(3000) },
    Line { name: "server/h2/answers to no PING", bytes: |_| one(Frame::pong(b"flooding")).repeat(500) },
    Line {
        name: "server/h2/SETTINGS",
        bytes: |it| {
            let value = it.random.u32(..1 << 20);
            one(Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, value)])).repeat(2000)
        },
    },
    Line { name: "server/h2/acknowledgements", bytes: |_| one(Frame::settings_ack()).repeat(500) },
    Line { name: "server/h2/odd SETTINGS", bytes: |it| one(odd_settings(it.random)) },
    Line {
        name: "server/h2/no window any more",
        bytes: |_| one(Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 0)])),
    },
    Line {
        name: "server/h2/a window of 0 more",
        bytes: |it| {
            one(Frame::window_update([0, it.stream][it.random.usize(..2)], 0))
                .repeat(it.random.usize(1..1000))
        },
    },
    Line {
        name: "server/h2/a window too large",
        bytes: |it| one(Frame::window_update([0, it.stream][it.random.usize(..2)], 0x7fff_ffff)).repeat(2),
    },
    Line {
        name: "server/h2/windows byte by byte",
        bytes: |it| one(Frame::window_update(it.stream, 1)).repeat(2000),
    },
    Line {
        name: "server/h2/a frame of another stream",
        bytes: |it| {
            let stream =
                [0, 2, it.stream + 2, it.stream + 1000, 0x7fff_ffff, 0xffff_ffff][it.random.usize(..6)];
            [
                Frame::data(stream, "x", false),
                Frame::headers(stream, [OK], true),
                Frame::window_update(stream, 5),
            ][it.random.usize(..3)]
            .encode()
        },
    },
    Line {
        name: "server/h2/PUSH_PROMISE",
        bytes: |it| {
            let promised = [&[0, 0, 0, 2][..], &[0x82, 0x84, 0x86]].concat();
            one(Frame::new(kind::PUSH_PROMISE, flag::END_HEADERS, it.stream, promised))
        },
    },
    Line {
        name: "server/h2/CONTINUATION of nothing",
        bytes: |it| one(Frame::new(kind::CONTINUATION, flag::END_HEADERS, it.stream, [OK])),
    },
    Line {
        name: "server/h2/a head that is interrupted",
        bytes: |it| encode(&[Frame::new(kind::HEADERS, 0, it.stream, [OK]), Frame::ping(b"between.")]),
    },
    Line {
        name: "server/h2/a head without end",
        bytes: |it| {
            let piece = one(Frame::new(kind::CONTINUATION, 0, it.stream, literal("a", &"b".repeat(100))));
            [one(Frame::new(kind::HEADERS, 0, it.stream, [OK])), piece.repeat(3000)].concat()
        },
    },
    Line {
        name: "server/h2/empty CONTINUATIONs",
        bytes: |it| {
            let piece = one(Frame::new(kind::CONTINUATION, 0, it.stream, []));
            [one(Frame::new(kind::HEADERS, 0, it.stream, [OK])), piece.repeat(3000)].concat()
        },
    },
    Line {
        name: "server/h2/a bomb of references",
        bytes: |it| one(Frame::headers(it.stream, bomb(&[OK]), true)),
    },
    Line {
        name: "server/h2/bombs of references",
        bytes: |it| {
            let again = vec![0xbe; 30];
            let rest = (0..200).map(|_| Frame::headers(it.stream, [&[OK][..], &again].concat(), false));
            [one(Frame::headers(it.stream, bomb(&[OK]), false)), encode(&rest.collect::<Vec<_>>())].concat()
        },
    },
    Line {
        name: "server/h2/bad HPACK",
        bytes: |it| {
            let block: &[u8] = [
                &[0x80][..],
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                &[0x3f, 0xff, 0xff, 0x7f],
                &[0x40, 0x85],
            ][it.random.usize(..4)];
            one(Frame::headers(it.stream, block, true))
        },
    },
    Line {
        name: "server/h2/a head without a status",
        bytes: |it| one(Frame::headers(it.stream, literal("a", "b"), true)),
    },
    Line {
        name: "server/h2/an odd head",
        bytes: |it| {
            let block = [
                [&[OK, OK][..], &[]].concat(),
                literal(":status", "101"),
                literal(":status", "2x0"),
                literal(":status", ""),
                [&[OK][..], &literal("Upper", "x")].concat(),
                [&[OK][..], &literal("a b", "x\r\ny")].concat(),
                [&[OK][..], &literal("connection", "close")].concat(),
                [&[OK][..], &literal(":path", "/")].concat(),
                [&[OK][..], &literal("content-length", "5")].concat(),
                [&[OK][..], &literal("", "")].concat(),
            ];
            one(Frame::headers(it.stream, block[it.random.usize(..10)].clone(), it.random.bool()))
        },
    },
    Line {
        name: "server/h2/interim heads",
        bytes: |it| one(Frame::headers(it.stream, literal(":status", "103"), false)).repeat(1000),
    },
    Line { name: "server/h2/two heads", bytes: |it| one(Frame::headers(it.stream, [OK], false)).repeat(2) },
    Line {
        name: "server/h2/data after the end",
        bytes: |it| {
            encode(&[
                Frame::headers(it.stream, [OK], true),
                Frame::data(it.stream, "x", false),
                Frame::data(it.stream, "x", true),
            ])
        },
    },
    Line {
        name: "server/h2/empty data",
        bytes: |it| {
            [one(Frame::headers(it.stream, [OK], false)), one(Frame::data(it.stream, "", false)).repeat(3000)]
                .concat()
        },
    },
    Line {
        name: "server/h2/bad padding",
        bytes: |it| one(Frame::new(kind::DATA, flag::PADDED, it.stream, [200, 1, 2])),
    },
    Line {
        name: "server/h2/frames of a bad size",
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
            let stream = if matches!(kind, kind::RST_STREAM | kind::PRIORITY) { it.stream } else { 0 };
            one(Frame::new(kind, 0, stream, vec![0; it.random.usize(..8) * 2 + 1]))
        },
    },
    Line {
        name: "server/h2/unknown frames",
        bytes: |it| one(Frame::new(0xfa, 0xff, it.stream, vec![0; 100])).repeat(300),
    },
    Line {
        name: "server/h2/HTTP/1",
        bytes: |_| b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
    },
    Line {
        name: "server/h2/noise",
        bytes: |it| std::iter::repeat_with(|| it.random.u8(..)).take(2000).collect(),
    },
];

/// What a server says first: ordinary, or not quite.
pub(super) fn opening(random: &mut fastrand::Rng, ordinary: bool) -> Vec<u8> {
    if ordinary {
        return one(Frame::settings(&[]));
    }
    match random.u8(..10) {
        0 => Vec::new(),
        1 => one(Frame::settings(&[(setting::MAX_CONCURRENT_STREAMS, 0)])),
        2 => one(Frame::settings(&[(setting::MAX_CONCURRENT_STREAMS, 1)])),
        3 => one(Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 0)])),
        4 => one(Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 1)])),
        5 => one(odd_settings(random)),
        _ => one(Frame::settings(&[])),
    }
}

fn odd_settings(random: &mut fastrand::Rng) -> Frame {
    let values = [
        (setting::INITIAL_WINDOW_SIZE, u32::MAX),
        (setting::MAX_FRAME_SIZE, 1),
        (setting::MAX_FRAME_SIZE, u32::MAX),
        (setting::ENABLE_PUSH, 1),
        (setting::ENABLE_PUSH, 7),
        (setting::HEADER_TABLE_SIZE, u32::MAX),
        (setting::HEADER_TABLE_SIZE, 0),
        (setting::MAX_HEADER_LIST_SIZE, 0),
        (setting::ENABLE_CONNECT_PROTOCOL, 9),
        (0xffff, 5),
    ];
    let times = if random.u8(..4) == 0 { 500 } else { 1 };
    Frame::settings(&vec![values[random.usize(..values.len())]; times])
}

fn one(frame: Frame) -> Vec<u8> {
    frame.encode()
}

/// A field in a literal that is not indexed (RFC 7541 6.2.2), as it is.
pub(super) fn literal(name: &str, value: &str) -> Vec<u8> {
    [&[0][..], &text(name), &text(value)].concat()
}

/// A block that puts a long field into the table and then refers to it again and again.
pub(super) fn bomb(first: &[u8]) -> Vec<u8> {
    let entry = [&[0x40][..], &text("x-big"), &text(&"b".repeat(3900))].concat();
    [first, &entry, &vec![0xbe; 12_000]].concat()
}

/// A string without Huffman's code (RFC 7541 5.2).
pub(super) fn text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut length = text.len();
    if length < 127 {
        bytes.extend(u8::try_from(length));
    } else {
        bytes.push(127);
        length -= 127;
        while length >= 128 {
            bytes.extend(u8::try_from(length % 128 + 128));
            length /= 128;
        }
        bytes.extend(u8::try_from(length));
    }
    bytes.extend(text.as_bytes());
    bytes
}
