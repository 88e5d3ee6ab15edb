//! Ends of connections that are told, and what is on its way then. That the number of a GOAWAY never rises is checked
//! wherever one comes.

use divert_http::h2::Leg;

use super::town::{Town, get, request, response};

const MOST: u32 = 0x7fff_ffff;

fn town() -> Town {
    Town::of_common_windows()
}

/// Client and original have stream 1 open, of which the client is sending.
fn begun() -> Town {
    let mut town = town();
    town.client.headers(1, &request(None, &[]), false, 100);
    town.settle();
    town
}

#[test]
fn what_the_original_said_while_it_was_alone_holds() {
    let mut town = begun();
    town.original.leave_after(5);
    town.settle();
    assert!(town.mux.is_transparent());
    assert_eq!(town.client.goaway, Some((5, 0)));
    // These were on their way. The client may try the last two again, so nobody may have them.
    for (id, key) in [(3, Some("alice")), (5, None), (7, Some("alice")), (9, None)] {
        town.client.headers(id, &request(key, &[]), true, 100);
    }
    town.mux.drain();
    town.settle();
    assert_eq!(town.client.goaway, Some((5, 0)));
    let refused = [3, 5, 7, 9].map(|id| town.client.streams[&id].reset == Some(7));
    assert_eq!(refused, [false, false, true, true]);
    assert_eq!(town.original.streams.keys().copied().collect::<Vec<_>>(), [1, 5]);
    assert_eq!(town.ups(0).streams.keys().copied().collect::<Vec<_>>(), [3]);
    // Also of what would be the first that is diverted; nor is its block there for later ones to refer to.
    let mut town = begun();
    town.original.leave_after(5);
    town.settle();
    town.client.headers(7, &request(Some("alice"), &[("x-new", "entry")]), true, 100);
    town.settle();
    assert_eq!((town.client.streams[&7].reset, town.mux.upstreams()), (Some(7), 0));
    let trailers = vec![(b"x-new".to_vec(), b"entry".to_vec())];
    town.client.data(1, b"goes on", false, None);
    town.client.headers(1, &trailers, true, 100);
    town.settle();
    assert_eq!(town.original.streams[&1].data, b"goes on");
    assert_eq!(town.original.streams[&1].blocks[1], trailers);
}

#[test]
fn a_drain_raises_nothing_when_the_original_is_gone() {
    let mut town = begun();
    town.client.headers(3, &request(Some("alice"), &[]), true, 100);
    town.settle();
    town.original.leave_after(3);
    town.settle();
    town.mux.ended(Leg::Original, &mut town.decider);
    town.mux.drain();
    town.settle_without_original();
    assert_eq!(town.client.goaway, Some((3, 0)));
}

#[test]
fn the_original_raises_nothing_after_a_drain() {
    let mut town = begun();
    town.mux.drain();
    town.settle();
    assert_eq!(town.client.goaway, Some((1, 0)));
    town.original.leave_after(MOST);
    town.settle();
    town.original.leave_after(1);
    town.settle();
    assert_eq!(town.client.goaway, Some((1, 0)));
    // What is irregular then is told without a higher number either.
    town.client.headers(3, &request(None, &[]), true, 100);
    town.client.frame(6, 0, 0, b"seven..");
    town.settle();
    assert_eq!(town.client.goaway, Some((1, 6)));
}

#[test]
fn who_is_not_there_may_be_there_for_the_next_connection() {
    let mut town = Town::without_original();
    for (id, key) in [(1, Some("alice")), (3, None), (5, Some("alice")), (7, None)] {
        town.client.headers(id, &request(key, &[]), true, 100);
    }
    town.settle_without_original();
    assert_eq!(get(&town.client.streams[&3].blocks[0], ":status"), Some("502"));
    assert_eq!(town.client.goaway, Some((3, 0)));
    assert_eq!([5, 7].map(|id| town.client.streams[&id].reset), [Some(7); 2]);
    assert!(!town.mux.is_over());
    town.ups(0).headers(1, &response("200"), true, 100);
    town.settle_without_original();
    assert!(town.client.streams[&1].ended && town.mux.is_over());
}

/// Alice's response has taken the client's window for the connection, and the original answers 5 with what is held.
fn held() -> Town {
    let mut town = town();
    town.client.headers(1, &request(Some("alice"), &[]), true, 100);
    for id in [3, 5, 7] {
        town.client.headers(id, &request(None, &[]), false, 100);
    }
    town.settle();
    town.ups(0).headers(1, &response("200"), false, 100);
    for _ in 0..4 {
        town.ups(0).data(1, &[0; 16_384], false, None);
    }
    town.settle();
    town.original.headers(3, &response("200"), true, 100);
    town.original.headers(5, &response("200"), false, 100);
    town.original.data(5, b"whole", true, None);
    town.settle();
    assert_eq!((town.client.room(0), town.client.streams[&5].data.len()), (0, 0));
    town
}

#[test]
fn whole_responses_outlive_their_server_whatever_is_still_sent() {
    let mut town = held();
    town.mux.ended(Leg::Original, &mut town.decider);
    for id in [3, 5, 7] {
        town.client.data(id, b"more", id == 7, Some(3));
    }
    town.client.headers(5, &vec![(b"t".to_vec(), b"u".to_vec())], true, 100);
    town.client.credit(0, 1000);
    town.settle_without_original();
    let five = &town.client.streams[&5];
    assert_eq!((&*five.data, five.ended, five.reset), (&b"whole"[..], true, Some(0)));
    // This one had come whole before; and of the last nothing had.
    assert_eq!(town.client.streams[&3].reset, Some(0));
    assert_eq!(get(&town.client.streams[&7].blocks[0], ":status"), Some("502"));
    assert_eq!((town.mux.waiting(), town.mux.open_streams()), ((0, 0), 1));
}

/// It would stand in the middle of a frame.
#[test]
fn what_waits_for_the_end_of_a_frame_is_not_sent_when_frames_are_followed_no_more() {
    let mut town = begun();
    town.original.headers(1, &response("200"), false, 100);
    town.settle();
    assert_eq!(town.original.data(1, &[7; 1000], true, None), 1000);
    let sent: Vec<u8> = town.original.out.iter().copied().collect();
    town.carry_in(Leg::Original, 500);
    town.mux.drain();
    town.client.out.extend(b"\0\0\0\0\0\0\0\0\0");
    town.carry_in(Leg::Client, usize::MAX);
    assert!(town.mux.is_opaque());
    town.carry_in(Leg::Original, usize::MAX);
    assert_eq!(town.mux.out(Leg::Client).unwrap().bytes(), sent);
}
