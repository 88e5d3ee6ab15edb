//! A developer's server that stalls, or is slow to be reached, is nobody else's business; and what waits for it is bounded.

use divert_http::h2::frame::{flag, kind};
use divert_http::h2::mux::{MAX_UPSTREAM, MAX_UPSTREAMS, SHARE, TIGHT};
use divert_http::h2::{Leg, Mux};

use super::town::{Town, get, repeatable, request, response};

/// Everything is carried but what goes to alice's first connection, and comes from it.
fn carry_on(town: &mut Town) {
    town.settle_legs(|leg| leg != Leg::Upstream(0));
}

/// Bob and the original answer a new stream each.
fn others_are_served(town: &mut Town, id: u32) {
    town.client.headers(id, &request(None, &[]), true, 100);
    town.client.headers(id + 2, &request(Some("bob"), &[]), true, 100);
    carry_on(town);
    town.original.headers(id, &response("200"), true, 100);
    town.ups(1).headers(id + 2, &response("200"), true, 100);
    carry_on(town);
    for id in [id, id + 2] {
        assert!(town.client.streams[&id].ended, "{id} is not answered");
    }
    assert!(town.mux.is_balanced());
}

/// The original lets the client send a lot at once.
fn generous() -> Town {
    let mut town = Town::new(64 << 20, 65_535, 100, 65_535, [4096, 4096]);
    town.settle();
    town.original.credit(0, 128 << 20);
    town.settle();
    town
}

#[test]
fn small_frames_for_a_server_that_does_not_read_stop_nobody() {
    let mut town = generous();
    for id in [1, 3] {
        town.client.headers(id, &request(Some("alice"), &[]), false, 100);
        town.settle();
    }
    for round in 0..200_000 {
        town.client.frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]);
        if round % 1000 == 0 {
            carry_on(&mut town);
        }
    }
    carry_on(&mut town);
    assert!(town.mux.held() < 256 * 1024, "{}", town.mux.held());
    others_are_served(&mut town, 5);
    // None of it is lost.
    town.settle();
    assert_eq!(town.ups(0).may_send_on(1), 65_535 + 200_000);
}

#[test]
fn an_upload_to_a_server_that_does_not_read_is_cut_off_at_the_limit() {
    let mut town = generous();
    for (id, key) in [(1, Some("alice")), (3, Some("alice")), (5, Some("bob"))] {
        town.client.headers(id, &request(key, &[]), false, 100);
        town.settle();
    }
    town.client.data(3, b"little", false, None);
    carry_on(&mut town);
    let mut sent = 0;
    while town.client.streams[&1].reset.is_none() {
        sent += town.client.data(1, &[7; 16_384], false, None);
        carry_on(&mut town);
        assert!(town.mux.held() <= MAX_UPSTREAM + SHARE, "{}", town.mux.held());
        assert!(sent < 2 * MAX_UPSTREAM, "it is never cut off");
    }
    assert!(sent > MAX_UPSTREAM - SHARE);
    assert_eq!(town.client.streams[&1].reset, Some(11));
    // The client's window for all is as it was.
    assert!(town.client.may_send(5) >= 32 << 20);
    others_are_served(&mut town, 7);
    town.settle();
    assert_eq!(town.ups(0).streams[&3].data, b"little");
    assert_eq!((town.ups(0).streams[&1].reset, town.client.streams[&3].reset), (Some(11), None));
}

#[test]
fn uploads_to_many_stop_at_the_limit_of_all() {
    let mut town = generous();
    // More connections than two of alice's and bob's: each time one says farewell there is another.
    let mut legs = Vec::new();
    for round in 0..6 {
        let id = 2 * round + 1;
        town.client.headers(id, &request(Some("alice"), &[]), false, 100);
        town.settle();
        legs.push(4 * round);
        town.end(Leg::Upstream(4 * round)).leave_after(id);
        town.carry_in(Leg::Upstream(4 * round), usize::MAX);
    }
    assert_eq!(town.mux.upstreams(), 6);
    let stalled = |leg| matches!(leg, Leg::Upstream(id) if id % 4 == 0);
    for _ in 0..200 {
        for round in 0..6 {
            let id = 2 * round + 1;
            if town.client.streams[&id].reset.is_none() {
                town.client.data(id, &[7; 16_384], false, None);
                town.settle_legs(|leg| !stalled(leg));
            }
            assert!(town.mux.held() <= MAX_UPSTREAMS + 2 * SHARE, "{}", town.mux.held());
        }
    }
    let reset = town.client.streams.values().filter(|it| it.reset == Some(11)).count();
    assert!((1..6).contains(&reset), "{reset}");
    town.client.headers(13, &request(None, &[]), true, 100);
    town.settle_legs(|leg| !stalled(leg));
    town.original.headers(13, &response("200"), true, 100);
    town.settle_legs(|leg| !stalled(leg));
    assert!(town.client.streams[&13].ended && town.mux.is_balanced());
}

/// A head of 100 KiB, by a reference of some bytes to what the client has sent once.
#[test]
fn heads_that_cost_nothing_to_send_are_counted_where_they_wait() {
    let mut town = Town::new(65_535, 65_535, 1, 65_535, [65_536, 65_536]);
    town.settle();
    town.client.headers(1, &request(None, &[]), true, 100);
    town.settle();
    let mut large = request(Some("alice"), &[]);
    for field in 0..30 {
        large.push((b"x-large".to_vec(), vec![b'a' + field % 20; 3_500]));
    }
    for n in 1..600 {
        town.client.headers(2 * n + 1, &large, true, 16_384);
    }
    // All at once, as one read of a socket may be.
    town.carry_in(Leg::Client, usize::MAX);
    assert!(town.mux.held() < MAX_UPSTREAM + 2 * SHARE, "{}", town.mux.held());
    town.carry_out(Leg::Client, usize::MAX);
    town.settle();
    assert!(town.mux.is_balanced());
    let refused = town.client.streams.values().filter(|it| it.reset == Some(7)).count();
    assert!((500..570).contains(&refused), "{refused}");
    for _ in 0..100 {
        let open: Vec<u32> =
            (town.ups(0).streams.iter()).filter(|it| !it.1.sent_end).map(|it| *it.0).collect();
        open.iter().for_each(|id| town.ups(0).headers(*id, &response("200"), true, 100));
        town.settle();
    }
    assert_eq!((town.mux.waiting(), town.mux.open_streams()), ((0, 0), 1));
}

#[test]
fn what_expands_is_read_no_faster_than_it_leaves() {
    let mut town = Town::new(65_535, 65_535, 1000, 65_535, [65_536, 65_536]);
    town.settle();
    town.client.headers(1, &request(Some("alice"), &[]), true, 100);
    town.settle();
    let mut large = request(None, &[]);
    large.push((b"x-large".to_vec(), vec![b'l'; 3_000]));
    for _ in 0..30 {
        large.push((b"x-large".to_vec(), vec![b'l'; 3_000]));
    }
    for n in 1..400 {
        town.client.headers(2 * n + 1, &large, true, 16_384);
    }
    town.carry_in(Leg::Client, usize::MAX);
    assert!(town.mux.held() < 1 << 20, "{}", town.mux.held());
    town.settle();
    assert_eq!(town.original.streams.len(), 399);
    assert_eq!(town.mux.held(), 0);
}

#[test]
fn trailers_that_wait_are_counted() {
    let mut town = generous();
    for n in 0..100 {
        town.client.headers(2 * n + 1, &request(Some("alice"), &[]), false, 100);
    }
    town.settle();
    // The server's window is full, so trailers wait behind the data.
    for n in 0..100 {
        town.client.data(2 * n + 1, &[0; 16_384], false, None);
    }
    let trailers: Vec<_> = (0..30).map(|_| (b"x-large".to_vec(), vec![b'l'; 3_500])).collect();
    for n in 0..100 {
        town.client.headers(2 * n + 1, &trailers, true, 16_384);
        carry_on(&mut town);
    }
    assert!(town.mux.held() < MAX_UPSTREAM + SHARE, "{}", town.mux.held());
    others_are_served(&mut town, 301);
}

#[test]
fn while_memory_is_short_little_is_held_and_nobody_stalls() {
    let mut town = generous();
    for (id, key) in [(1, Some("alice")), (3, Some("bob"))] {
        town.client.headers(id, &request(key, &[]), false, 100);
        town.settle();
    }
    town.mux.set_tight(true);
    while town.client.streams[&1].reset.is_none() {
        town.client.data(1, &[7; 16_384], false, None);
        carry_on(&mut town);
        assert!(town.mux.held() <= 3 * TIGHT);
    }
    // Who would have to wait is refused: there is no connection for this one yet.
    town.client.headers(5, &request(Some("late"), &[]), true, 100);
    carry_on(&mut town);
    assert_eq!(town.client.streams[&5].reset, Some(7));
    others_are_served(&mut town, 7);
    town.mux.set_tight(false);
    town.client.headers(11, &request(Some("alice"), &[]), true, 100);
    town.settle();
    assert!(town.ups(0).streams.contains_key(&11));
}

/// An original that is still being dialled.
fn dialling() -> Town {
    let mut town = Town::of_common_windows();
    town.mux = Mux::dialling();
    town
}

#[test]
fn who_is_diverted_does_not_wait_for_the_originals_dial() {
    let mut town = dialling();
    town.client.headers(1, &request(None, &[]), false, 100);
    town.client.data(1, b"waits", true, None);
    town.client.headers(3, &request(Some("alice"), &[]), false, 100);
    town.client.data(3, b"goes on", true, None);
    town.settle_without_original();
    assert_eq!(town.ups(0).streams[&3].data, b"goes on");
    town.ups(0).headers(3, &response("200"), true, 100);
    town.client.ping();
    town.settle_without_original();
    assert!(town.client.streams[&3].ended);
    assert_eq!((town.client.pongs, town.client.unacknowledged()), (1, 0));
    // Now it is there, and says its own.
    town.mux.original_opened(&mut town.decider);
    town.settle();
    assert_eq!(town.original.streams.keys().copied().collect::<Vec<_>>(), [1]);
    assert_eq!(town.original.streams[&1].data, b"waits");
    town.original.headers(1, &response("200"), true, 100);
    town.client.settings(&[(4, 70_000)]);
    town.settle();
    assert!(town.client.streams[&1].ended && town.client.goaway.is_none());
    assert_eq!((town.client.unacknowledged(), town.original.unacknowledged()), (0, 0));
}

#[test]
fn a_client_that_waits_for_a_word_gets_one_while_the_original_is_dialled() {
    let mut town = dialling();
    town.settle_without_original();
    assert_eq!(town.client.unacknowledged(), 1);
    town.mux.greet(&mut town.decider);
    town.settle_without_original();
    assert_eq!(town.client.unacknowledged(), 0);
    assert!(town.mux.is_transparent());
    town.client.headers(1, &request(Some("alice"), &[]), true, 100);
    town.settle_without_original();
    assert!(town.ups(0).streams.contains_key(&1));
    town.mux.original_opened(&mut town.decider);
    town.settle();
    town.client.headers(3, &request(None, &[]), true, 100);
    town.settle();
    assert!(town.original.streams.contains_key(&3));
    assert_eq!(town.client.unacknowledged(), 0);
}

#[test]
fn when_the_originals_dial_fails_others_go_on() {
    // Nothing was asked of it: the client may go on as if it had been known.
    let mut town = dialling();
    town.client.headers(1, &request(Some("alice"), &[]), true, 100);
    town.settle_without_original();
    town.mux.original_unreachable(&mut town.decider);
    town.client.headers(3, &request(Some("bob"), &[]), true, 100);
    town.settle_without_original();
    assert!(town.ups(1).streams.contains_key(&3));
    assert_eq!((town.client.goaway, town.client.unacknowledged()), (None, 0));
    town.client.headers(5, &request(None, &[]), true, 100);
    town.settle_without_original();
    assert_eq!(get(&town.client.streams[&5].blocks[0], ":status"), Some("502"));
    // Something was: it is as if it had ended.
    for key in [Some("alice"), None] {
        let mut town = dialling();
        town.client.headers(1, &request(None, &[]), true, 100);
        town.client.headers(3, &repeatable(key), true, 100);
        town.settle_without_original();
        town.mux.original_unreachable(&mut town.decider);
        town.settle_without_original();
        assert_eq!(get(&town.client.streams[&1].blocks[0], ":status"), Some("502"));
        assert_eq!(town.client.goaway, Some((3, 0)));
        if key.is_some() {
            town.ups(0).headers(3, &response("200"), true, 100);
            town.settle_without_original();
        }
        assert!(town.client.streams[&3].ended && town.mux.is_over());
    }
}

#[test]
fn what_waits_for_the_originals_dial_is_bounded_and_stops_nobody() {
    let mut town = dialling();
    let mut large = request(None, &[]);
    large.push((b"x-large".to_vec(), vec![b'l'; 10_000]));
    for n in 0..100 {
        large.last_mut().unwrap().1[0] = b'a' + n as u8 % 26;
        town.client.headers(2 * n + 1, &large, true, 16_384);
    }
    town.client.headers(301, &request(Some("alice"), &[]), true, 100);
    town.settle_without_original();
    assert!(town.ups(0).streams.contains_key(&301));
    assert!(town.mux.held() < 512 * 1024, "{}", town.mux.held());
    town.mux.original_opened(&mut town.decider);
    town.settle();
    let refused = town.client.streams.values().filter(|it| it.reset == Some(7)).count();
    assert_eq!(town.original.streams.len() + refused, 100);
    assert!(refused > 0);
}

#[test]
fn extended_connect_goes_only_to_who_takes_it() {
    let connect = |key| {
        let mut list = request(key, &[(":protocol", "websocket")]);
        list[0].1 = b"CONNECT".to_vec();
        list
    };
    let mut town = Town::of_common_windows();
    town.original.settings(&[(8, 1)]);
    town.settle();
    town.client.headers(1, &connect(Some("alice")), false, 100);
    town.client.headers(3, &request(Some("alice"), &[]), true, 100);
    town.client.headers(5, &connect(None), false, 100);
    town.settle();
    assert_eq!(town.ups(0).streams.keys().copied().collect::<Vec<_>>(), [3]);
    assert_eq!(get(&town.client.streams[&1].blocks[0], ":status"), Some("502"));
    assert_eq!(get(&town.client.streams[&1].blocks[0], "x-divert-error"), Some("NoExtendedConnect"));
    assert!(town.original.streams.contains_key(&5));
    // Bob takes it.
    town.ups(0).settings(&[(8, 1)]);
    town.settle();
    town.client.headers(7, &connect(Some("alice")), false, 100);
    town.settle();
    assert!(town.ups(0).streams.contains_key(&7));
}

/// Servers of gRPC close the connection at the third PING between which they have sent nothing.
#[test]
fn pings_for_what_a_developers_server_sends_are_not_the_originals() {
    let mut town = Town::of_common_windows();
    for (id, key) in [(1, None), (3, Some("alice"))] {
        town.client.headers(id, &request(key, &[]), true, 100);
    }
    town.settle();
    town.original.headers(1, &response("200"), false, 100);
    town.ups(0).headers(3, &response("200"), false, 100);
    town.settle();
    for n in 1..20 {
        town.ups(0).data(3, b"message", false, None);
        town.settle();
        town.client.ping();
        town.settle();
        assert_eq!((town.client.pongs, town.original.pinged <= 1), (n, true), "{n}");
        town.decider.now += std::time::Duration::from_secs(1);
    }
    // Keep-alive, while nothing comes from anybody.
    let before = town.original.pinged;
    town.decider.now += std::time::Duration::from_secs(20);
    town.client.ping();
    town.settle();
    assert_eq!(town.original.pinged, before + 1);
    // The flags of a frame are of no account to that.
    town.client.frame(kind::PING, flag::ACK, 0, &[0; 8]);
    town.settle();
}

/// Whatever alice has yet to say.
#[test]
fn larger_windows_are_acknowledged_at_once_where_there_is_no_original() {
    for fails_first in [false, true] {
        let mut town = Town::new(65_535, 65_535, 100, 100_000, [4096, 4096]);
        town.dial_late();
        town.client.headers(1, &request(Some("alice"), &[]), true, 100);
        if fails_first {
            town.carry_in(Leg::Client, usize::MAX);
            town.mux.original_unreachable(&mut town.decider);
        }
        carry_on(&mut town);
        if !fails_first {
            town.mux.original_unreachable(&mut town.decider);
        }
        carry_on(&mut town);
        assert_eq!(town.client.unacknowledged(), 0, "{fails_first}");
        town.client.settings(&[(4, 200_000)]);
        carry_on(&mut town);
        assert_eq!(town.client.unacknowledged(), 0, "{fails_first}");
    }
}
