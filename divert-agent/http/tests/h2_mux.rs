//! The mux between a client and servers that check every rule: whatever they do and however bytes arrive, each stream
//! gets its own bytes, in order, to the right server and back.

use divert_http::h2::Leg;

mod h2;

use h2::end::List;
use h2::town::{Town, get, request, response};

fn town() -> Town {
    Town::of_common_windows()
}

#[test]
fn without_a_key_every_byte_passes_as_it_came() {
    let mut town = town();
    town.client.headers(1, &request(None, &[]), false, 7);
    assert_eq!(town.client.data(1, b"hello", true, Some(9)), 5);
    let sent: Vec<u8> = town.client.out.iter().copied().collect();
    town.carry_in(Leg::Client, usize::MAX);
    assert_eq!(town.mux.out(Leg::Original).unwrap().bytes(), sent);
    town.settle();
    town.original.headers(1, &response("200"), false, 3);
    town.original.data(1, b"world", true, Some(0));
    let sent: Vec<u8> = town.original.out.iter().copied().collect();
    town.carry_in(Leg::Original, usize::MAX);
    assert_eq!(town.mux.out(Leg::Client).unwrap().bytes(), sent);
    assert!(town.mux.is_transparent());
    town.settle();
    assert_eq!(town.client.streams[&1].data, b"world");
    assert_eq!(town.mux.open_streams(), 0);
}

#[test]
fn streams_of_one_connection_go_to_their_servers() {
    let mut town = town();
    for (id, key) in [(1, None), (3, Some("alice")), (5, Some("bob")), (7, None), (9, Some("alice"))] {
        town.client.headers(id, &request(key, &[]), true, 16_384);
    }
    town.settle();
    assert_eq!(town.original.streams.keys().copied().collect::<Vec<_>>(), [1, 7]);
    assert_eq!(town.ups(0).streams.keys().copied().collect::<Vec<_>>(), [3, 9]);
    assert_eq!(town.ups(1).streams.keys().copied().collect::<Vec<_>>(), [5]);
    for (leg, id) in [
        (Leg::Upstream(0), 9),
        (Leg::Original, 7),
        (Leg::Upstream(1), 5),
        (Leg::Original, 1),
        (Leg::Upstream(0), 3),
    ] {
        town.end(leg).headers(id, &response("200"), false, 16_384);
        let name = town.end(leg).name;
        town.end(leg).data(id, name.as_bytes(), true, None);
    }
    town.settle();
    let who: Vec<&str> =
        town.client.streams.values().map(|it| std::str::from_utf8(&it.data).unwrap()).collect();
    assert_eq!(who, ["original", "alice", "bob", "original", "alice"]);
    assert_eq!(town.mux.open_streams(), 0);
    use divert_http::h2::Fate::{Diverted, Original};
    assert_eq!(town.decider.fates, [Original, Original, Diverted, Diverted, Diverted]);
}

#[test]
fn a_key_is_injected_at_the_end_or_into_what_is_there() {
    let mut town = town();
    let host = |list: &mut List| list[3].1 = b"alice.example".to_vec();
    let mut plain = request(None, &[("x", "y"), ("secret", "s")]);
    host(&mut plain);
    town.client.headers(1, &plain, true, 16_384);
    let mut with = request(None, &[("baggage", " c=d"), ("x", "y")]);
    host(&mut with);
    town.client.headers(3, &with, true, 16_384);
    town.settle();
    let mut expected = plain.clone();
    expected.push((b"baggage".to_vec(), b"okteto-divert=alice".to_vec()));
    assert_eq!(town.ups(0).streams[&1].blocks, [expected]);
    let mut expected = with.clone();
    expected[4].1 = b" okteto-divert=alice,c=d".to_vec();
    assert_eq!(town.ups(0).streams[&3].blocks, [expected]);
}

#[test]
fn who_asks_is_told_who_answered() {
    let mut town = town();
    let debug = [("x-divert-debug", "1")];
    town.client.headers(1, &request(None, &debug), true, 16_384);
    town.settle();
    assert!(town.mux.is_transparent());
    town.original.headers(1, &response("200"), false, 5);
    town.original.headers(1, &vec![(b"grpc-status".to_vec(), b"0".to_vec())], true, 16_384);
    town.client.headers(3, &request(Some("alice"), &debug), true, 16_384);
    town.client.headers(5, &request(None, &debug), true, 16_384);
    town.settle();
    town.ups(0).headers(3, &response("103"), false, 16_384);
    town.ups(0).headers(3, &response("200"), true, 16_384);
    town.original.headers(5, &response("204"), true, 16_384);
    town.settle();
    let told = |id: u32| -> Vec<Option<&str>> {
        town.client.streams[&id].blocks.iter().map(|block| get(block, "x-divert-target")).collect()
    };
    assert_eq!(told(1), [Some("nobody"), None]);
    assert_eq!(told(3), [None, Some("alice")]);
    assert_eq!(told(5), [Some("nobody")]);
}

#[test]
fn answers_of_ours_are_what_the_call_understands() {
    let mut town = town();
    town.client.headers(1, &request(Some("gone"), &[("content-type", "application/grpc+proto")]), false, 100);
    town.client.headers(3, &request(Some("gone"), &[]), false, 100);
    town.client.headers(5, &request(Some("late"), &[]), true, 100);
    town.client.data(3, &[7; 1000], false, None);
    town.settle();
    let block = &town.client.streams[&1].blocks[0];
    assert_eq!(get(block, "grpc-status"), Some("14"));
    assert_eq!(get(block, "grpc-message"), Some("Nobody is there."));
    assert_eq!(get(block, "x-divert-error"), Some("Test"));
    assert!(town.client.streams[&1].ended && town.client.streams[&1].reset == Some(0));
    for id in [3, 5] {
        let stream = &town.client.streams[&id];
        assert_eq!(get(&stream.blocks[0], ":status"), Some("503"));
        assert_eq!(stream.data, b"Nobody is there.\n");
        assert_eq!(stream.reset, (id == 3).then_some(0));
    }
    assert_eq!(town.mux.open_streams(), 0);
}

#[test]
fn what_goes_to_the_shared_copy_in_the_end_holds_up_nobody() {
    let mut town = town();
    town.client.headers(1, &request(Some("shared"), &[]), true, 100);
    town.client.headers(3, &request(None, &[]), true, 100);
    town.client.headers(5, &request(Some("shared"), &[]), false, 100);
    town.client.data(5, b"five", true, None);
    town.client.headers(7, &request(Some("shared"), &[]), true, 100);
    // Nobody has dialled yet.
    town.carry_in(Leg::Client, usize::MAX);
    town.carry_out(Leg::Original, usize::MAX);
    let streams = |town: &Town| town.original.streams.keys().copied().collect::<Vec<_>>();
    assert_eq!(streams(&town), [3]);
    town.settle();
    // Ids rise, so the first has to try again.
    assert_eq!(streams(&town), [3, 5, 7]);
    assert_eq!(town.original.streams[&5].data, b"five");
    assert_eq!(town.client.streams[&1].reset, Some(7));
    use divert_http::h2::Fate::Original;
    assert_eq!((&*town.decider.fates, town.mux.open_streams()), (&[Original; 3][..], 3));
}

#[test]
fn an_original_that_grants_nothing_does_not_stop_a_diverted_stream() {
    let mut town = Town::new(0, 65_535, 100, 65_535, [4096, 4096]);
    town.settle();
    town.client.headers(1, &request(Some("alice"), &[]), false, 100);
    town.settle();
    assert_eq!(town.client.data(1, b"hello", true, None), 5);
    town.settle();
    assert_eq!(town.ups(0).streams[&1].data, b"hello");
}

/// Not every client tries again what is refused.
#[test]
fn streams_over_the_limit_wait() {
    let mut town = Town::new(65_535, 65_535, 2, 65_535, [4096, 4096]);
    town.settle();
    for n in 0..300 {
        town.client.headers(2 * n + 1, &request(Some("alice"), &[]), true, 100);
    }
    town.settle();
    assert_eq!(town.ups(0).streams.len(), 2);
    assert!(town.client.streams.values().all(|it| it.reset.is_none()));
    for _ in 0..150 {
        let open: Vec<u32> =
            town.ups(0).streams.iter().filter(|(_, it)| !it.sent_end).map(|it| *it.0).collect();
        open.iter().for_each(|id| town.ups(0).headers(*id, &response("200"), true, 100));
        town.settle();
    }
    assert_eq!(town.ups(0).streams.len(), 300);
    assert!(town.client.streams.values().all(|it| it.ended));
    assert_eq!(town.mux.waiting(), (0, 0));
}

#[test]
fn when_a_server_dies_only_its_streams_end() {
    let mut town = town();
    for (id, key) in [(1, Some("alice")), (3, Some("alice")), (5, Some("bob")), (7, None)] {
        town.client.headers(id, &request(key, &[]), false, 100);
    }
    town.settle();
    town.ups(0).headers(3, &response("200"), false, 100);
    town.settle();
    town.mux.ended(Leg::Upstream(0), &mut town.decider);
    town.settle();
    assert_eq!(get(&town.client.streams[&1].blocks[0], ":status"), Some("502"));
    assert_eq!(town.client.streams[&3].reset, Some(2));
    town.mux.ended(Leg::Original, &mut town.decider);
    town.settle_without_original();
    assert_eq!(get(&town.client.streams[&7].blocks[0], ":status"), Some("502"));
    assert_eq!(town.client.goaway, Some((7, 0)));
    assert!(!town.mux.is_over());
    town.client.data(5, b"x", true, None);
    town.settle_without_original();
    town.ups(1).headers(5, &response("200"), true, 100);
    town.settle_without_original();
    assert!(town.client.streams[&5].ended && town.mux.is_over());
}

#[test]
fn a_drain_lets_streams_end() {
    let mut town = town();
    town.client.headers(1, &request(None, &[]), true, 100);
    town.settle();
    town.mux.drain();
    town.carry_out(Leg::Client, usize::MAX);
    assert_eq!(town.client.goaway, Some((0x7fff_ffff, 0)));
    // It was begun before that was read, though the PING has been answered.
    town.client.headers(3, &request(Some("bob"), &[]), true, 100);
    town.settle();
    assert_eq!(town.client.goaway, Some((3, 0)));
    assert!(!town.mux.is_over());
    town.client.headers(5, &request(None, &[]), true, 100);
    town.original.headers(1, &response("200"), true, 100);
    town.ups(1).headers(3, &response("200"), true, 100);
    town.settle();
    assert_eq!(town.client.streams[&5].reset, Some(7));
    assert_eq!(town.original.streams.len(), 1);
    assert!(town.client.streams[&3].ended && town.mux.is_over());
}

#[test]
fn frames_that_cannot_be_followed_make_it_opaque_byte_for_byte() {
    for bad in [
        &b"\0\0\x01\x09\0\0\0\0\x01x"[..],
        b"\0\0\x05\x01\x04\0\0\0\x01\xff\xff\xff\xff\xff",
        b"\0\0\0\0\0\0\0\0\0",
    ] {
        for cut in 1..40 {
            let mut town = town();
            town.client.headers(1, &request(None, &[]), true, 100);
            town.client.out.extend(bad);
            town.client.out.extend(b"anything");
            let sent: Vec<u8> = town.client.out.iter().copied().collect();
            while town.carry_in(Leg::Client, cut) {}
            assert!(town.mux.is_opaque());
            assert_eq!(town.mux.out(Leg::Original).unwrap().bytes(), sent);
        }
    }
}

#[test]
fn what_others_used_of_the_window_is_withheld_from_the_original() {
    let mut town = town();
    town.client.headers(1, &request(Some("alice"), &[]), true, 100);
    town.client.headers(3, &request(None, &[]), false, 100);
    town.settle();
    town.ups(0).headers(1, &response("200"), false, 100);
    town.ups(0).data(1, &[0; 1000], false, None);
    town.settle();
    let before = town.original.may_send(3);
    for (credit, more) in [(700, 0), (700, 400), (50, 50)] {
        let before = town.original.may_send(3);
        town.client.credit(0, credit);
        town.client.credit(3, 10_000);
        town.settle();
        assert_eq!(town.original.may_send(3) - before, more);
    }
    assert!(before > 0);
}

/// Its responses are written one upon the other: of one that is lost the client still needs the head.
#[test]
fn responses_that_are_held_survive_the_original() {
    let mut town = town();
    for (id, key) in [(1, Some("alice")), (3, None), (5, None), (7, None)] {
        town.client.headers(id, &request(key, &[]), true, 100);
    }
    town.settle();
    town.ups(0).headers(1, &response("200"), false, 100);
    for _ in 0..4 {
        town.ups(0).data(1, &[0; 16_384], false, None);
    }
    town.settle();
    assert_eq!(town.client.room(0), 0);
    let entry = |name: &str| vec![(b":status".to_vec(), b"200".to_vec()), (name.into(), b"entry".to_vec())];
    town.original.headers(3, &response("200"), false, 100);
    town.original.data(3, &[7; 100], false, None);
    town.original.headers(3, &vec![(b"t".to_vec(), b"u".to_vec())], true, 100);
    town.original.headers(5, &entry("x-new"), false, 100);
    town.original.headers(7, &entry("x-new"), true, 100);
    town.settle();
    assert!(town.client.streams[&7].blocks.is_empty() && town.mux.waiting().1 > 100);
    town.mux.ended(Leg::Original, &mut town.decider);
    town.client.credit(0, 1000);
    town.settle_without_original();
    assert_eq!(town.client.streams[&3].data, [7; 100]);
    assert!(town.client.streams[&3].ended);
    assert_eq!(town.client.streams[&5].reset, Some(2));
    assert_eq!(town.client.streams[&7].blocks, [entry("x-new")]);
    assert!(town.client.streams[&7].ended);
    assert_eq!((town.mux.waiting().1, town.mux.open_streams()), (0, 1));
}

#[test]
fn padding_that_is_not_passed_on_is_given_back() {
    let mut town = town();
    town.client.headers(1, &request(Some("alice"), &[]), true, 100);
    town.client.headers(3, &request(None, &[]), false, 100);
    town.client.headers(5, &request(Some("alice"), &[]), false, 100);
    town.settle();
    for id in [3, 5] {
        for _ in 0..100 {
            town.client.data(id, b"x", false, Some(255));
            town.settle();
        }
        let used = 65_535 - town.client.may_send_on(id);
        assert!(used <= 100, "{used}");
    }
    // That of the connection comes in pieces.
    assert!(town.client.may_send(3) > 65_535 - 16_384 - 200);
    town.original.headers(3, &response("200"), false, 100);
    for _ in 0..100 {
        town.original.data(3, b"x", false, Some(255));
        town.settle();
    }
    assert!(65_535 - town.original.may_send_on(3) <= 100);
}

/// A client that breaks the rules where nobody but us sees it.
#[test]
fn in_mixed_mode_rules_are_held() {
    use divert_http::h2::frame::{code, flag, kind};
    let cases: [(u8, u8, u32, &[u8], u32); 10] = [
        (kind::PING, 0, 0, b"seven..", code::FRAME_SIZE_ERROR),
        (kind::PING, 0, 1, b"12345678", code::PROTOCOL_ERROR),
        (kind::SETTINGS, flag::ACK, 0, b"123456", code::FRAME_SIZE_ERROR),
        (kind::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2], code::PROTOCOL_ERROR),
        (kind::GOAWAY, 0, 1, &[0; 8], code::PROTOCOL_ERROR),
        (kind::PRIORITY, 0, 1, &[0, 0, 0, 1, 0], code::PROTOCOL_ERROR),
        (kind::WINDOW_UPDATE, 0, 0, &[0; 4], code::PROTOCOL_ERROR),
        (kind::DATA, 0, 99, b"idle", code::PROTOCOL_ERROR),
        (kind::DATA, 0, 1, &[0; 16_385], code::FRAME_SIZE_ERROR),
        (kind::HEADERS, flag::END_HEADERS, 3, &[0xff; 8], code::COMPRESSION_ERROR),
    ];
    for (kind, flags, stream, payload, error) in cases {
        let mut town = town();
        town.client.headers(1, &request(Some("alice"), &[]), false, 100);
        town.settle();
        town.client.frame(kind, flags, stream, payload);
        town.settle();
        assert_eq!(town.client.goaway, Some((1, error)), "{kind} {stream}");
        assert!(town.mux.has_failed());
    }
}

#[test]
fn a_stream_that_has_ended_is_closed() {
    let mut town = town();
    town.client.headers(1, &request(Some("alice"), &[]), true, 100);
    town.client.headers(3, &request(Some("alice"), &[]), false, 100);
    town.settle();
    town.ups(0).headers(1, &response("200"), true, 100);
    town.settle();
    town.client.frame(0, 0, 1, b"late");
    town.client.frame(8, 0, 3, &[0; 4]);
    town.settle();
    assert_eq!(town.client.streams[&1].reset, Some(5));
    assert_eq!(town.client.streams[&3].reset, Some(1));
    assert_eq!(town.ups(0).streams[&3].reset, Some(1));
    assert_eq!((town.client.goaway, town.mux.open_streams()), (None, 0));
}

#[test]
fn more_streams_than_the_original_allows_are_refused() {
    let mut town = Town::new(65_535, 65_535, 100, 65_535, [4096, 4096]);
    town.original.settings(&[(3, 2)]);
    town.settle();
    for id in [1, 3, 5] {
        town.client.headers(id, &request(Some("alice"), &[]), true, 100);
    }
    town.settle();
    assert_eq!(town.client.streams[&5].reset, Some(7));
    assert_eq!(town.ups(0).streams.len(), 2);
}
