//! What is kept of a connection is bounded, whatever its ends do.

use divert_http::h2::Leg;
use divert_http::h2::frame::{flag, kind};
use divert_http::h2::mux::MAX_UPSTREAM_DOWN;

use super::town::{Town, repeatable, request, response};

fn town() -> Town {
    Town::of_common_windows()
}

/// Else memory would grow with each that ever was, and the client's settings wait for one that is not there.
#[test]
fn a_connection_that_is_closed_is_forgotten() {
    let mut town = town();
    for round in 0..3 {
        let (id, up) = (2 * round + 1, 4 * round);
        town.client.headers(id, &repeatable(Some("alice")), true, 100);
        town.settle();
        town.ups(up).headers(id, &response("200"), true, 100);
        // Of these it never says that it has them.
        town.client.settings(&[(4, 60_000 - round)]);
        town.carry_in(Leg::Client, usize::MAX);
        town.ups(up).leave();
        town.carry_in(Leg::Upstream(up), usize::MAX);
        town.carry_out(Leg::Upstream(up), usize::MAX);
        assert_eq!(town.mux.upstreams(), 0, "{round}");
        town.settle();
        assert_eq!(town.client.unacknowledged(), 0, "{round}");
    }
}

/// Alice's response to stream 1 fills the client's window for the connection, and some is held.
fn full() -> Town {
    let mut town = town();
    for id in [1, 3] {
        town.client.headers(id, &request(Some("alice"), &[]), true, 100);
    }
    town.settle();
    town.client.credit(1, 100_000);
    town.settle();
    town.ups(0).headers(1, &response("200"), false, 100);
    for _ in 0..5 {
        town.ups(0).data(1, &[0; 16_384], false, None);
    }
    town.settle();
    assert_eq!(town.client.room(0), 0);
    assert!(town.mux.waiting().1 > 0);
    town
}

/// Type, flags and payload of a frame.
type Piece = (u8, u8, &'static [u8]);

#[test]
fn what_is_held_is_bounded_however_small_its_pieces() {
    let head = (kind::HEADERS, flag::END_HEADERS, &[0x88][..]);
    let pieces: [&[Piece]; 4] = [
        &[(kind::DATA, 0, b"x")],
        &[(kind::DATA, 0, b"")],
        // A second head is malformed: it ends the stream, and what follows is nobody's.
        &[head],
        &[head, (kind::DATA, 0, b"x")],
    ];
    for pieces in pieces {
        let mut town = full();
        let before = town.mux.waiting().1;
        for _ in 0..20_000 {
            for (kind, flags, payload) in pieces {
                town.ups(0).frame(*kind, *flags, 1, payload);
            }
            town.carry_in(Leg::Upstream(0), usize::MAX);
        }
        // One byte at most each time, and what a queue reserves: a frame costs nothing of its own.
        let held = town.mux.waiting().1;
        assert!(held <= MAX_UPSTREAM_DOWN && held <= before + 20_000 + 8192, "{held} after {before}");
        // What others hold is none of the original's business, and it goes on when there is room.
        assert!(town.mux.wants(Leg::Original));
        town.client.credit(0, 1 << 20);
        town.settle();
        assert!(town.mux.wants(Leg::Upstream(0)));
        assert_eq!(town.mux.waiting().1, 0);
    }
}

#[test]
fn a_malformed_response_ends_its_stream_alone() {
    let mut town = town();
    let literal = |name: &[u8], value: &[u8]| {
        let mut block = vec![0x88, 0, name.len() as u8];
        block.extend_from_slice(name);
        block.push(value.len() as u8);
        block.extend_from_slice(value);
        block
    };
    // 0x88 is `:status: 200`, 0x84 is `:path: /` (RFC 7541 appendix A).
    let blocks = [
        literal(b"Upper", b"x"),
        literal(b"", b"x"),
        literal(b"a b", b"x"),
        literal(b"a", b"x\r\ny"),
        literal(b"connection", b"close"),
        vec![0x88, 0x88],
        vec![0x84, 0x88],
        vec![],
    ];
    town.client.headers(1, &request(None, &[]), true, 100);
    for (id, block) in (3..).step_by(2).zip(&blocks) {
        town.client.headers(id, &request(Some("alice"), &[]), true, 100);
        town.settle();
        town.ups(0).frame(kind::HEADERS, flag::END_HEADERS, id, block);
        town.settle();
        assert!(town.client.streams[&id].reset.is_some(), "{block:?}");
    }
    // Data before a head.
    town.client.headers(31, &request(Some("alice"), &[]), true, 100);
    town.settle();
    town.ups(0).data(31, b"x", true, None);
    town.settle();
    assert!(town.client.streams[&31].reset.is_some() && town.client.streams[&31].data.is_empty());
    // Hers and everybody's go on.
    town.client.headers(33, &request(Some("alice"), &[]), true, 100);
    town.settle();
    town.ups(0).headers(33, &response("200"), true, 100);
    town.original.headers(1, &response("200"), true, 100);
    town.settle();
    assert!(town.client.streams[&33].ended && town.client.streams[&1].ended);
    assert!(town.mux.is_balanced());
}

#[test]
fn a_server_resets_a_response_once() {
    let mut town = full();
    town.ups(0).headers(3, &response("200"), true, 100);
    town.ups(0).frame(kind::RST_STREAM, 0, 3, &[0; 4]);
    town.client.headers(5, &request(Some("alice"), &[]), false, 100);
    town.settle();
    town.ups(0).headers(5, &response("200"), false, 100);
    town.ups(0).data(5, b"whole", true, None);
    town.settle();
    let before = town.mux.waiting().1;
    for code in 0..100 {
        town.ups(0).frame(kind::RST_STREAM, 0, 5, &[0, 0, 0, code]);
        town.settle();
    }
    assert!(town.mux.waiting().1 < before + 1000);
    town.client.credit(0, 1 << 20);
    town.settle();
    assert_eq!((&*town.client.streams[&5].data, town.client.streams[&5].reset), (&b"whole"[..], Some(0)));
    assert_eq!((town.mux.waiting().1, town.mux.open_streams()), (0, 1));
}

#[test]
fn settings_whose_acknowledgement_is_held_are_counted() {
    for table in [false, true] {
        let mut town = full();
        town.client.headers(5, &request(None, &[]), true, 100);
        town.client.headers(7, &request(None, &[]), true, 100);
        town.settle();
        town.original.headers(5, &response("200"), false, 100);
        town.original.data(5, b"waits", false, None);
        town.original.headers(5, &response("trailers"), true, 100);
        town.original.headers(7, &response("200"), true, 100);
        town.settle();
        for n in 0..1001 {
            assert_eq!(town.client.goaway, None, "{table} {n}");
            town.client.settings(&[if table { (1, 4000) } else { (4, 60_000 - n) }]);
            town.settle();
            assert_eq!(town.client.unacknowledged() as u32, n + 1, "{table}");
        }
        assert_eq!(town.client.goaway, Some((7, 11)), "{table}");
    }
}

#[test]
fn trailers_are_not_cut_short() {
    let mut town = town();
    for (id, key) in [(1, Some("alice")), (3, None), (5, Some("alice"))] {
        town.client.headers(id, &request(key, &[]), false, 100);
    }
    town.settle();
    for id in [1, 3] {
        town.client.headers(id, &vec![(b"t".to_vec(), vec![b'v'; 140_000])], true, 16_384);
    }
    town.client.headers(5, &vec![(b"t".to_vec(), vec![b'v'; 100_000])], true, 16_384);
    town.settle();
    for (id, leg) in [(1, Leg::Upstream(0)), (3, Leg::Original)] {
        assert_eq!(town.client.streams[&id].reset, Some(11));
        assert_eq!(
            (town.end(leg).streams[&id].reset, town.end(leg).streams[&id].blocks.len()),
            (Some(11), 1)
        );
    }
    assert!(town.ups(0).streams[&5].ended);
    assert_eq!(town.mux.open_streams(), 1);
}

/// The client would end the whole connection.
#[test]
fn a_server_that_breaks_the_rules_of_a_stream_loses_the_stream() {
    let mut town = town();
    for id in [1, 3, 5] {
        town.client.headers(id, &request(Some("alice"), &[]), true, 100);
    }
    town.settle();
    town.ups(0).frame(kind::DATA, 0, 1, b"no head");
    town.ups(0).headers(5, &response("103"), false, 100);
    town.ups(0).frame(kind::DATA, flag::END_STREAM, 5, b"no more than an interim one");
    town.settle();
    for id in [1, 5] {
        assert_eq!((town.ups(0).streams[&id].reset, town.client.streams[&id].reset), (Some(1), Some(2)));
    }
    // The client has room for more, but not on this stream. What it gives is good.
    town.client.credit(0, 500_000);
    town.client.credit(3, 10_000);
    town.settle();
    town.ups(0).headers(3, &response("200"), false, 100);
    let all = [16_384; 4].into_iter().chain([65_535 + 10_000 - 4 * 16_384]);
    for len in all {
        town.ups(0).frame(kind::DATA, 0, 3, &vec![7; len]);
        town.settle();
    }
    assert_eq!((town.client.streams[&3].data.len(), town.client.streams[&3].reset), (75_535, None));
    town.ups(0).frame(kind::DATA, 0, 3, b"!");
    town.settle();
    assert_eq!((town.ups(0).streams[&3].reset, town.client.streams[&3].reset), (Some(3), Some(2)));
    assert_eq!((town.client.goaway, town.mux.open_streams()), (None, 0));
}
