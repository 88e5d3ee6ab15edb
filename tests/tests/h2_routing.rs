//! correctness.md, HTTP/2: every stream of a connection is routed by itself, and HPACK's state belongs to one hop.

use anyhow::Result;
use divert_tests::fixture::{ALICE, BOB};
use divert_tests::h2::frame::{PREFACE, encode};
use divert_tests::h2::stage::{alice, answer, expect_answer, open, open_with};
use divert_tests::h2::{Frame, H2, Style, flag, kind, owned, request, setting};
use divert_tests::lab::Family;
use divert_tests::peer::Peer;
use divert_tests::stage::Stage;

#[test]
fn streams_of_one_connection_go_to_their_own_namespaces_at_once() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    let own = ("x-number", "1");
    // All are open before any is answered; bob diverts nothing.
    client.request(1, &[own], false);
    client.request(3, &[own, ALICE], false);
    client.request(5, &[BOB, own], true);
    client.request(7, &[ALICE, own], true);
    client.request(9, &[own], true);
    let (mut alice, _) = alice(&stage, &[])?;
    for (hers, stream, fields, end) in [
        (false, 1, &[own][..], false),
        (true, 3, &[own, ALICE], false),
        (false, 5, &[BOB, own], true),
        (true, 7, &[ALICE, own], true),
        (false, 9, &[own], true),
    ] {
        let server = if hers { &mut alice } else { &mut shared };
        let head = server.head(stream);
        assert_eq!(head.fields, owned(&request(fields, end)), "all fields, in their order");
        assert_eq!(head.end, end);
    }
    // Bodies, in pieces and crosswise, answered backwards.
    for piece in ["a", "b", "c"] {
        client.data(3, format!("alice's {piece}"), piece == "c");
        client.data(1, format!("shared {piece}"), piece == "c");
    }
    alice.expect_data(3, "alice's aalice's balice's c", true);
    shared.expect_data(1, "shared ashared bshared c", true);
    let names = [(1, "staging"), (3, "alice"), (5, "staging"), (7, "alice"), (9, "staging")];
    for (stream, name) in names.into_iter().rev() {
        let server = if name == "alice" { &mut alice } else { &mut shared };
        server.respond(stream, &[("x-served-by", name)], false);
        server.data(stream, format!("{name} answers {stream}"), true);
    }
    for (stream, name) in names {
        let head = expect_answer(&mut client, stream, &format!("{name} answers {stream}"));
        assert_eq!(head.fields, owned(&[(":status", "200"), ("x-served-by", name)]));
    }
    assert!(client.nothing_kept() && shared.nothing_kept() && alice.nothing_kept());
    stage.expect_no_alice()?;
    drop(client);
    shared.expect_end();
    alice.expect_end();
    Ok(())
}

/// A server may handle one connection at a time.
#[test]
fn an_original_that_is_asked_for_nothing_is_not_connected_to() -> Result<()> {
    let stage = Stage::http2()?;
    let peer = Peer::new(stage.town.client().connect(stage.town.address(Family::V4))?);
    let mut client = H2::new(peer);
    let head = client.block(&request(&[ALICE], true), Style::Indexed);
    let first = [Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 100_000)]), Frame::headers(1, head, true)];
    client.peer().send([&PREFACE[..], &encode(&first)].concat());
    let (mut alice, _) = alice(&stage, &[])?;
    alice.head(1);
    // As a client that waits for the server's part of the preface, and for the acknowledgement of its own, before anything
    // has answered.
    client.expect_settings();
    client.wait_acknowledged(1);
    client.send(&[Frame::settings_ack()]);
    alice.respond(1, &[], true);
    client.head(1);
    // Where the connection was accepted before the request was there, somebody was connected to, and given up.
    if let Some(mut given_up) = stage.try_shared() {
        given_up.expect_gone();
    }
    client.request(3, &[ALICE], true);
    answer(&mut alice, 3, "hers");
    expect_answer(&mut client, 3, "hers");
    assert!(stage.try_shared().is_none(), "nobody has asked for it");
    client.request(5, &[], true);
    client.request(7, &[ALICE], true);
    let (mut shared, settings) =
        H2::server(Peer::accept(&stage.shared)?, &[(setting::MAX_CONCURRENT_STREAMS, 7)]);
    assert_eq!(settings, [(setting::INITIAL_WINDOW_SIZE, 100_000)]);
    answer(&mut shared, 5, "shared");
    answer(&mut alice, 7, "hers");
    assert_eq!(client.expect_settings(), [(setting::MAX_CONCURRENT_STREAMS, 7)]);
    expect_answer(&mut client, 5, "shared");
    expect_answer(&mut client, 7, "hers");
    Ok(())
}

#[test]
fn a_stream_is_diverted_however_its_key_is_carried_and_encoded() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    let carriers: [&[(&str, &str)]; 8] = [
        &[ALICE],
        &[("baggage", "a=b , okteto-divert=alice;p=1, c=d")],
        &[("baggage", "a=b"), ("x", "y"), ("baggage", "okteto-divert=alice")],
        &[("baggage", "okteto-divert=%61lice")],
        &[("baggage", "divert=alice")],
        &[("baggage.okteto-divert", "alice")],
        &[("baggage", "okteto-divert="), ("baggage.okteto-divert", "alice")],
        &[("cookie", "a=b"), ("cookie", "c=d"), ALICE, ("x-empty", "")],
    ];
    let mut alices = None;
    let mut stream = 1;
    for fields in carriers {
        for style in [Style::Indexed, Style::Plain, Style::Never] {
            // In one frame, byte by byte, and padded, with the priority that old clients send.
            for form in 0..3 {
                let block = client.block(&request(fields, true), style);
                let frames = match form {
                    0 => vec![Frame::headers(stream, block, true)],
                    1 => Frame::headers_in_pieces(stream, &block, true, 1),
                    _ => vec![padded(stream, &block)],
                };
                client.send(&frames);
                if alices.is_none() {
                    alices = Some(alice(&stage, &[])?.0);
                }
                let server = alices.as_mut().expect("just made");
                let head = answer(server, stream, "hers");
                assert_eq!((&head.fields, head.end), (&owned(&request(fields, true)), true));
                if style == Style::Never {
                    assert!(head.never_indexed.contains(&fields[0].0.to_owned()), "{head:?}");
                }
                expect_answer(&mut client, stream, "hers");
                stream += 2;
            }
        }
    }
    // And these are not hers.
    for fields in [
        &[("baggage", "okteto-divert=alice-feature")][..],
        &[("baggage", "Okteto-Divert=alice")],
        &[("baggage", "x=okteto-divert=alice")],
        &[("baggage", "okteto-divert=bob,okteto-divert=alice")],
        &[("x-baggage", "okteto-divert=alice")],
    ] {
        client.request(stream, fields, true);
        assert_eq!(answer(&mut shared, stream, "shared").fields, owned(&request(fields, true)));
        expect_answer(&mut client, stream, "shared");
        stream += 2;
    }
    Ok(())
}

/// HEADERS that end their stream, with padding and a priority.
fn padded(stream: u32, block: &[u8]) -> Frame {
    let payload = [&[3, 0, 0, 0, 0, 200][..], block, &[0; 3]].concat();
    let flags = flag::END_STREAM | flag::END_HEADERS | flag::PADDED | flag::PRIORITY;
    Frame::new(kind::HEADERS, flags, stream, payload)
}

#[test]
fn hpack_tables_of_all_sides_stay_right_whoever_takes_a_stream() -> Result<()> {
    let stage = Stage::http2()?;
    for seed in 0..4 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut client, mut shared) = open(&stage)?;
        let mut alices = None;
        let words: Vec<String> = (0..40).map(|it| format!("word-{it}-{}", "w".repeat(it))).collect();
        for number in 0..150 {
            let stream = number * 2 + 1;
            // From few words, so that the same come again, and of much length, so that tables overflow.
            let pick = |random: &mut fastrand::Rng| words[random.usize(..words.len())].as_str();
            let mut fields: Vec<(&str, &str)> = vec![("x-first", "1")];
            fields.extend((0..random.usize(..6)).map(|_| ("x-word", pick(&mut random))));
            let hers = random.bool();
            if hers {
                fields.insert(random.usize(..fields.len()), ALICE);
            }
            let style = [Style::Indexed, Style::Indexed, Style::Plain][random.usize(..3)];
            let block = client.block(&request(&fields, true), style);
            let size = 1 + random.usize(..block.len());
            client.send(&Frame::headers_in_pieces(stream, &block, true, size));
            if hers && alices.is_none() {
                alices = Some(alice(&stage, &[])?.0);
            }
            let server = if hers { alices.as_mut().expect("made above") } else { &mut shared };
            assert_eq!(server.head(stream).fields, owned(&request(&fields, true)), "{seed} {number}");
            let answer: Vec<_> = (0..random.usize(..6)).map(|_| ("x-answer", pick(&mut random))).collect();
            server.respond(stream, &answer, false);
            server.send_head(stream, &[("x-trailer", pick(&mut random))], true);
            let head = client.head(stream);
            assert_eq!(head.fields[1..], owned(&answer), "{seed} {number}");
            let trailers = client.head(stream);
            assert_eq!((trailers.fields.len(), trailers.end), (1, true), "{trailers:?}");
        }
    }
    Ok(())
}

#[test]
fn table_sizes_of_each_hop_are_kept_to() -> Result<()> {
    let stage = Stage::http2()?;
    // The client lets nobody refer to more than 100 bytes of table, the server to none.
    let client_says = [(setting::HEADER_TABLE_SIZE, 100)];
    let (mut client, mut shared) = open_with(&stage, &client_says, &[(setting::HEADER_TABLE_SIZE, 0)])?;
    client.limit_their_table(100);
    shared.limit_their_table(0);
    // RFC 7541 4.2: the next block begins with the change, whoever is asked.
    let mut block = client.table_size(0);
    block.extend(client.block(&request(&[ALICE, ("x", "y")], true), Style::Indexed));
    client.send(&[Frame::headers(1, block, true)]);
    let (mut alice, _) = alice(&stage, &[])?;
    // The agent's own encoder toward alice may use what she allows, which is the default.
    assert_eq!(alice.head(1).fields, owned(&request(&[ALICE, ("x", "y")], true)));
    alice.respond(1, &[("x-answer", "hers")], true);
    let head = client.head(1);
    assert_eq!(head.fields, owned(&[(":status", "200"), ("x-answer", "hers")]));
    client.request(3, &[("x", "y")], true);
    assert_eq!(shared.head(3).fields, owned(&request(&[("x", "y")], true)));
    let mut block = shared.table_size(100);
    block.extend(shared.block(&[(":status", "200"), ("x-answer", "shared")], Style::Indexed));
    shared.send(&[Frame::headers(3, block, true)]);
    assert_eq!(client.head(3).get("x-answer"), Some("shared"));
    // Once more each, from tables that are in use.
    for (stream, hers) in [(5, true), (7, false), (9, true), (11, false)] {
        client.request(stream, &[("x", "y"), if hers { ALICE } else { BOB }], true);
        let server = if hers { &mut alice } else { &mut shared };
        server.head(stream);
        server.respond(stream, &[("x-answer", "again")], true);
        assert_eq!(client.head(stream).get("x-answer"), Some("again"));
    }
    Ok(())
}

#[test]
fn connections_to_a_developer_belong_to_one_client_connection() -> Result<()> {
    let stage = Stage::http2()?;
    let mut ends = Vec::new();
    for _ in 0..3 {
        let (mut client, shared) = open(&stage)?;
        client.request(1, &[ALICE], true);
        client.request(3, &[ALICE], true);
        let (mut alice, _) = alice(&stage, &[])?;
        answer(&mut alice, 1, "one");
        answer(&mut alice, 3, "two");
        expect_answer(&mut client, 1, "one");
        expect_answer(&mut client, 3, "two");
        ends.push((client, shared, alice));
    }
    stage.expect_no_alice()?;
    // One goes, and takes its own along only.
    let (client, mut shared, mut alice) = ends.remove(0);
    drop(client);
    shared.expect_end();
    alice.expect_end();
    for (client, _, alice) in &mut ends {
        client.request(5, &[ALICE], true);
        answer(alice, 5, "three");
        expect_answer(client, 5, "three");
    }
    Ok(())
}
