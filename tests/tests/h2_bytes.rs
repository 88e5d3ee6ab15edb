//! correctness.md: what is not diverted is the same with and without the agent. Frames of a connection where nothing is,
//! byte for byte, the wrong ones too; and whatever is said on streams, wherever each goes.

use anyhow::{Context, Result};
use divert_tests::fixture::{ALICE, BOB, Fixture, PORT};
use divert_tests::h2::conversation::Conversation;
use divert_tests::h2::frame::{PREFACE, encode};
use divert_tests::h2::{Frame, H2, Style, code, flag, kind, request, setting};
use divert_tests::lab::Family;
use divert_tests::peer::Peer;
use divert_tests::script::{Script, Step, bulk, compare};

use Step::{Await, Close, Finish, ReadEnd, Reset, Signal};

/// Header blocks as a client or server would write them, one after the other.
fn blocks(heads: &[Vec<(&str, &str)>]) -> Result<Vec<Vec<u8>>> {
    // The encoder is that of an end; nothing is sent.
    let (socket, _) = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| std::net::TcpStream::connect(listener.local_addr()?).map(|it| (it, listener)))?;
    let mut end = H2::new(Peer::new(socket));
    Ok(heads.iter().map(|fields| end.block(fields, Style::Indexed)).collect())
}

/// The client says all of it, and the server answers all of that; then the client goes.
fn exchange(client: &[u8], server: &[u8]) -> Script {
    Script::new(
        vec![Step::send(client), Step::expect(server), Close],
        vec![Step::expect(client), Step::send(server), ReadEnd],
    )
}

/// A client's greeting and frames.
fn client(frames: &[Frame]) -> Vec<u8> {
    [&PREFACE[..], &Frame::settings(&[]).encode(), &encode(frames)].concat()
}

fn server(frames: &[Frame]) -> Vec<u8> {
    [Frame::settings(&[]).encode(), Frame::settings_ack().encode(), encode(frames)].concat()
}

#[test]
fn frames_of_all_kinds_pass_as_they_are() -> Result<()> {
    let requests =
        blocks(&[request(&[("x", "y")], true), request(&[BOB], false), request(&[("x", "y")], true)])?;
    let responses = blocks(&[vec![(":status", "200"), ("x", "y")], vec![(":status", "200"), ("x", "y")]])?;
    let padded = [&[3, 0, 0, 0, 0, 200][..], &requests[0], &[0; 3]].concat();
    let up = [
        Frame::new(
            kind::HEADERS,
            flag::END_STREAM | flag::END_HEADERS | flag::PADDED | flag::PRIORITY,
            1,
            padded,
        ),
        Frame::new(kind::PRIORITY, 0, 9, [0, 0, 0, 1, 7]),
        Frame::new(0xbe, 0xef, 1, *b"nobody knows this type"),
        Frame::headers(3, requests[1].clone(), false),
        Frame::new(kind::DATA, flag::PADDED, 3, *b"\x02data\0\0"),
        Frame::data(3, [], false),
        Frame::data(3, bulk(16_384, 1), true),
        Frame::ping(b"12345678"),
        Frame::window_update(0, 1),
        Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 5), (0xaaaa, 1)]),
        Frame::reset(1, code::CANCEL),
    ];
    let pieces = Frame::headers_in_pieces(5, &requests[2], true, 3);
    let down = [
        Frame::pong(b"12345678"),
        Frame::headers(3, responses[0].clone(), false),
        Frame::new(kind::DATA, flag::PADDED, 3, *b"\x02data\0\0"),
        Frame::headers(3, responses[1].clone(), true),
        Frame::window_update(3, 5),
        Frame::new(0xbe, 0xef, 0, *b"nor this"),
    ];
    let up = client(&[&up[..], &pieces].concat());
    let mut farewell = Frame::goaway(5, code::NO_ERROR);
    farewell.payload.extend(b"too many pings");
    let down = server(&[&down[..], &[farewell]].concat());
    let trickled = Script::new(
        vec![Step::trickle(&up[..600]), Step::send(&up[600..]), Step::expect(&down), Close],
        vec![Step::expect(&up), Step::trickle(&down), ReadEnd],
    );
    let ends = |client: Step, server: Step| {
        let client = vec![Step::send(&up), Step::expect(&down), client];
        Script::new(client, vec![Step::expect(&up), Step::send(&down), server])
    };
    compare(&[
        ("at once", exchange(&up, &down)),
        ("byte by byte", trickled),
        ("the client resets", ends(Reset, ReadEnd)),
        ("the server resets", ends(ReadEnd, Reset)),
        ("the server ends", ends(ReadEnd, Close)),
        (
            "the server answers after the client's end",
            Script::new(
                vec![Step::send(&up), Finish, Step::expect(&down), ReadEnd],
                vec![Step::expect(&up), ReadEnd, Step::send(&down), Close],
            ),
        ),
        (
            "the server speaks first",
            Script::new(
                vec![Await("it spoke"), Step::send(&up), Step::expect(&down), Close],
                vec![
                    Step::send(&down[..9]),
                    Signal("it spoke"),
                    Step::expect(&up),
                    Step::send(&down[9..]),
                    ReadEnd,
                ],
            ),
        ),
    ])
}

#[test]
fn what_is_wrong_is_for_the_original_to_judge() -> Result<()> {
    let [good] = &blocks(&[request(&[], true)])?[..] else { unreachable!("one of one") };
    let large = bulk(300 << 10, 3);
    let mut endless = Frame::headers_in_pieces(1, &large, true, 16_384);
    endless.pop();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("no SETTINGS", [&PREFACE[..], &Frame::headers(1, good.clone(), true).encode()].concat()),
        ("no HPACK", client(&[Frame::headers(1, vec![0xff; 50], true), Frame::ping(b"12345678")])),
        ("an index of no table", client(&[Frame::headers(1, *b"\xbe", true), Frame::ping(b"12345678")])),
        ("a frame that is too large", client(&[Frame::data(1, bulk(20_000, 1), true)])),
        ("an even stream", client(&[Frame::headers(2, good.clone(), true)])),
        (
            "a stream again",
            client(&[Frame::headers(1, good.clone(), true), Frame::headers(1, good.clone(), true)]),
        ),
        ("DATA of no stream", client(&[Frame::data(0, "x", false), Frame::data(77, "x", false)])),
        ("a lone CONTINUATION", client(&[Frame::new(kind::CONTINUATION, 4, 1, good.clone())])),
        (
            "a head that is interrupted",
            client(&[Frame::new(kind::HEADERS, 0, 1, good.clone()), Frame::ping(b"12345678")]),
        ),
        ("a head without an end", client(&endless)),
        ("PING of 7 bytes", client(&[Frame::new(kind::PING, 0, 0, *b"1234567")])),
        ("SETTINGS of 5 bytes", client(&[Frame::new(kind::SETTINGS, 0, 0, *b"12345")])),
        ("padding beyond the frame", client(&[Frame::new(kind::DATA, flag::PADDED, 1, *b"\xffx")])),
        ("rubbish", [&PREFACE[..], &bulk(100_000, 5)].concat()),
    ];
    let answer = encode(&[Frame::settings(&[]), Frame::goaway(0, code::PROTOCOL_ERROR)]);
    let scripts: Vec<_> = cases.iter().map(|(name, bytes)| (*name, exchange(bytes, &answer))).collect();
    compare(&scripts)?;
    // And what servers say wrong is for the client.
    let fine = client(&[Frame::headers(1, good.clone(), true)]);
    let scripts: Vec<_> = cases.iter().map(|(name, bytes)| (*name, exchange(&fine, &bytes[24..]))).collect();
    compare(&scripts)
}

#[test]
fn conversations_are_the_same_wherever_their_streams_go() -> Result<()> {
    let town = Fixture::http2()?;
    let shared = town.server().listen(PORT)?;
    let alices = town.lab.pod("alice/web").listen(PORT)?;
    let connect = || Ok::<_, anyhow::Error>(Peer::new(town.client().connect(town.address(Family::V4))?));
    let conversations: Vec<_> = (0..60).map(Conversation::random).collect();
    let direct = conversations.iter().map(|it| it.play(connect()?, &[&shared]));
    let direct = direct.collect::<Result<Vec<_>>>().context("direct")?;
    let agent = town.agent()?;
    let mut hers = 0;
    for (seed, (conversation, direct)) in conversations.iter().zip(&direct).enumerate() {
        let both = [&shared, &alices];
        let servers = if conversation.has_hers() { &both[..] } else { &both[..1] };
        hers += usize::from(conversation.has_hers());
        let captured = conversation.play(connect()?, servers).with_context(|| format!("seed {seed}"))?;
        assert_eq!(&captured, direct, "seed {seed}");
    }
    assert!(hers > 40, "{ALICE:?} in {hers} of {}", conversations.len());
    assert_eq!(agent.metric("divert_connections_accepted_total")?, conversations.len() as f64);
    Ok(())
}
