//! correctness.md, Connection: what an application sees of a connection that is not diverted.

use std::time::Duration;

use anyhow::Result;
use divert_tests::script::{Script, ServerSide, Step, compare, random};

use Step::{Await, Close, Finish, Quiet, ReadBulk, ReadEnd, Reset, SendBulk, SendUntilError, Signal};

fn send(bytes: &str) -> Step {
    Step::send(bytes)
}

fn expect(bytes: &str) -> Step {
    Step::expect(bytes)
}

#[test]
fn half_close_and_close_in_either_direction() -> Result<()> {
    compare(&[
        (
            "client finishes, server answers after",
            Script::new(vec![send("\0question"), Finish, ReadEnd], vec![ReadEnd, send("answer"), Close]),
        ),
        (
            "server finishes first, client goes on",
            Script::new(vec![ReadEnd, send("\0late"), Finish], vec![send("banner\n"), Finish, ReadEnd]),
        ),
        (
            "server finishes without a word, client goes on",
            Script::new(vec![ReadEnd, send("\0late"), Finish, Close], vec![Finish, ReadEnd]),
        ),
        (
            "client finishes without a word, server talks",
            Script::new(vec![Finish, ReadEnd], vec![ReadEnd, send("all of it"), Close]),
        ),
        (
            "client closes, server writes into the void",
            Script::new(
                vec![send("\0x"), Signal("sent"), Await("read"), Close],
                vec![expect("\0x"), Signal("read"), ReadEnd, SendUntilError],
            ),
        ),
        (
            "server closes, client writes into the void",
            Script::new(vec![send("\0x"), ReadEnd, SendUntilError], vec![expect("\0x"), Close]),
        ),
        ("client closes at once", Script::new(vec![Close], vec![ReadEnd, SendUntilError])),
        ("server closes at once", Script::new(vec![ReadEnd], vec![Close])),
    ])
}

#[test]
fn a_reset_is_a_reset_on_the_other_side() -> Result<()> {
    compare(&[
        (
            "client resets in the middle",
            Script::new(
                vec![send("\0x"), Await("read"), Reset],
                vec![expect("\0x"), Signal("read"), ReadEnd],
            ),
        ),
        ("server resets in the middle", Script::new(vec![send("\0x"), ReadEnd], vec![expect("\0x"), Reset])),
        (
            "server resets after an answer that was read",
            Script::new(
                vec![send("\0x"), expect("yz"), Signal("read"), ReadEnd],
                vec![expect("\0x"), send("yz"), Await("read"), Reset],
            ),
        ),
        (
            "client resets after it has finished",
            Script::new(
                vec![send("\0x"), Finish, Await("read"), Reset],
                vec![ReadEnd, Signal("read"), SendUntilError],
            ),
        ),
        (
            "server resets after it has finished",
            Script::new(
                vec![send("\0x"), ReadEnd, Signal("read"), SendUntilError],
                vec![expect("\0x"), Finish, Await("read"), Reset],
            ),
        ),
        (
            "server closes with bytes unread, which is a reset",
            Script::new(
                vec![send("\0xyz"), Signal("sent"), ReadEnd],
                vec![expect("\0"), Await("sent"), Close],
            ),
        ),
    ])
}

#[test]
fn who_speaks_first_and_how_slowly_does_not_matter() -> Result<()> {
    let silence = Duration::from_millis(50);
    compare(&[
        (
            "server speaks first",
            Script::new(
                vec![expect("220 ready\r\n"), send("QUIT\r\n"), ReadEnd],
                vec![send("220 ready\r\n"), expect("QUIT\r\n"), send("221 bye\r\n"), Close],
            ),
        ),
        (
            "server's banner byte by byte",
            Script::new(
                vec![expect("220 ready\r\n"), send("NOOP\r\n"), ReadEnd],
                vec![Step::trickle("220 ready\r\n"), expect("NOOP\r\n"), Close],
            ),
        ),
        (
            "client is silent, server speaks late",
            Script::new(
                vec![Quiet(silence), Signal("heard nothing"), expect("hello"), Close],
                vec![Await("heard nothing"), send("hello"), ReadEnd],
            ),
        ),
        (
            "both are silent",
            Script::new(
                vec![Quiet(silence), Signal("client"), Await("server"), Finish, ReadEnd],
                vec![Quiet(silence), Signal("server"), Await("client"), Finish, ReadEnd],
            ),
        ),
        (
            "client writes one byte at a time",
            Script::new(
                vec![Step::trickle("\0one byte at a time"), Finish, ReadEnd],
                vec![ReadEnd, send("got it"), Close],
            ),
        ),
        (
            "client's first byte could begin HTTP, its second cannot",
            Script::new(
                vec![send("G"), Quiet(silence), send("\0"), expect("ok"), Close],
                vec![expect("G\0"), send("ok"), ReadEnd],
            ),
        ),
        (
            "client's whole speech could begin HTTP and never becomes it",
            Script::new(vec![send("GE"), Finish, ReadEnd], vec![ReadEnd, send("what?"), Close]),
        ),
    ])
}

#[test]
fn bulk_goes_through_whole_in_both_directions_at_once() -> Result<()> {
    const MUCH: usize = 8 << 20;
    compare(&[
        (
            "both ways, one after the other",
            Script::new(
                vec![send("\0"), SendBulk(MUCH, 1), ReadBulk(MUCH, 1 << 16), Finish, ReadEnd],
                vec![expect("\0"), ReadBulk(MUCH, 1 << 16), SendBulk(MUCH, 2), ReadEnd, Close],
            ),
        ),
        (
            "a reader that takes small pieces",
            Script::new(
                vec![send("\0"), SendBulk(MUCH, 3), Finish, ReadEnd],
                vec![expect("\0"), ReadBulk(MUCH, 777), ReadEnd, Close],
            ),
        ),
        (
            "a reader that begins when the writer can write no more",
            Script::new(
                vec![send("\0go"), Await("late"), ReadBulk(MUCH, 1 << 14), Close],
                vec![expect("\0go"), Signal("late"), SendBulk(MUCH, 4), ReadEnd],
            ),
        ),
    ])
}

#[test]
fn a_refused_connection_ends_in_an_error() -> Result<()> {
    // A proxy must accept before it knows; what it can do is to reset. So this is no comparison.
    let town = divert_tests::fixture::Fixture::new()?;
    let refused = Script { client: vec![ReadEnd], server: ServerSide::Refuses };
    let (client, server) = (town.client(), town.server());
    let to = town.address(divert_tests::lab::Family::V4);
    let (record, _) = divert_tests::script::run(&refused, &client, &server, to, 8080)?;
    let refusal = divert_tests::script::Event::Connected(Err(std::io::ErrorKind::ConnectionRefused));
    assert_eq!(record.client, [refusal]);
    Ok(())
}

#[test]
fn random_conversations_look_the_same() -> Result<()> {
    let scripts: Vec<_> = (0..60).map(|seed| (format!("seed {seed}"), random(seed))).collect();
    let scripts: Vec<_> = scripts.iter().map(|(name, script)| (name.as_str(), script.clone())).collect();
    compare(&scripts)
}
