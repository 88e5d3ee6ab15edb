//! What becomes of streams whose server is lost: which go to another connection, and which are told.

use divert_http::h2::mux::MAX_RETRY;
use divert_http::h2::{Fate, Leg};

use super::town::{Town, get, repeatable, request, response};

/// A town where alice has answered a request, so that her connection is a kept one.
fn kept(streams: u32) -> Town {
    let mut town = Town::new(65_535, 65_535, streams, 65_535, [4096, 4096]);
    town.client.headers(1, &repeatable(Some("alice")), true, 100);
    town.settle();
    answer(&mut town, 0, 1);
    town
}

fn answer(town: &mut Town, up: u32, id: u32) {
    town.ups(up).headers(id, &response("200"), true, 100);
    town.settle();
    assert_eq!(status(town, id), Some("200"), "{id}");
}

fn status(town: &Town, id: u32) -> Option<&str> {
    get(town.client.streams[&id].blocks.last()?, ":status")
}

fn streams(town: &Town, up: u32) -> Vec<u32> {
    town.ups[&up].streams.keys().copied().collect()
}

fn kill(town: &mut Town, up: u32) {
    town.kill(up);
    town.settle();
}

#[test]
fn what_may_be_sent_twice_is_sent_once_more() {
    let mut town = kept(100);
    for (id, list, end) in [
        (3, repeatable(Some("alice")), true),
        (5, request(Some("alice"), &[]), true),
        (7, repeatable(Some("alice")), false),
        (9, repeatable(Some("alice")), true),
        (11, repeatable(Some("alice")), true),
    ] {
        town.client.headers(id, &list, end, 100);
    }
    town.settle();
    town.ups(0).headers(9, &response("103"), false, 100);
    town.settle();
    town.ups(0).headers(11, &response("200"), false, 100);
    // No more than the beginning arrives.
    town.carry_in(Leg::Upstream(0), 10);
    kill(&mut town, 0);
    assert_eq!(town.decider.reconnected, [(0, 1)]);
    assert_eq!(streams(&town, 4), [3]);
    assert_eq!(town.ups(4).streams[&3].blocks, [repeatable(Some("alice"))]);
    for id in [5, 7, 9, 11] {
        let told = status(&town, id) == Some("502") || town.client.streams[&id].reset == Some(2);
        assert!(told, "{id}: {:?}", town.client.streams[&id]);
    }
    // Later ones go there too, and the second time is the last.
    town.client.headers(13, &repeatable(Some("alice")), true, 100);
    town.settle();
    answer(&mut town, 4, 13);
    kill(&mut town, 4);
    assert_eq!(status(&town, 3), Some("502"));
    assert_eq!((town.decider.reconnected.len(), town.mux.open_streams()), (1, 0));
    assert_eq!(town.decider.fates, [Fate::Diverted; 7]);
}

#[test]
fn an_answer_comes_from_the_second_server() {
    let mut town = kept(100);
    town.client.headers(3, &repeatable(Some("alice")), true, 100);
    town.client.headers(5, &repeatable(Some("alice")), true, 100);
    town.settle();
    kill(&mut town, 0);
    for id in [5, 3] {
        town.ups(4).headers(id, &response("200"), false, 100);
        town.ups(4).data(id, b"again", true, None);
    }
    town.settle();
    for id in [3, 5] {
        assert_eq!(town.client.streams[&id].data, b"again");
        assert!(town.client.streams[&id].ended);
    }
    assert_eq!((town.mux.open_streams(), town.mux.load(4)), (0, 0));
}

#[test]
fn a_server_that_never_answered_is_not_asked_again() {
    let mut town = Town::new(65_535, 65_535, 1, 65_535, [4096, 4096]);
    town.settle();
    for id in [1, 3] {
        town.client.headers(id, &repeatable(Some("alice")), true, 100);
        town.settle();
    }
    kill(&mut town, 0);
    assert_eq!([status(&town, 1), status(&town, 3)], [Some("502"); 2]);
    assert_eq!(town.decider.reconnected, []);
    assert_eq!(town.decider.fates, [Fate::Diverted, Fate::Unavailable]);
}

#[test]
fn where_nobody_can_be_connected_to_the_client_is_told() {
    let mut town = kept(1);
    for id in [3, 5] {
        town.client.headers(id, &repeatable(Some("alice")), true, 100);
        town.settle();
    }
    town.decider.reconnects = false;
    kill(&mut town, 0);
    assert_eq!([status(&town, 3), status(&town, 5)], [Some("502"); 2]);
    use Fate::{Diverted, Unavailable};
    assert_eq!(town.decider.fates, [Diverted, Diverted, Unavailable]);
    assert_eq!(town.mux.open_streams(), 0);
}

#[test]
fn what_only_waited_goes_on_whatever_it_is() {
    let mut town = kept(1);
    town.client.headers(3, &request(Some("alice"), &[]), true, 100);
    town.client.headers(5, &request(Some("alice"), &[]), false, 100);
    town.client.data(5, &[7; 30_000], false, None);
    town.client.headers(7, &repeatable(Some("alice")), true, 100);
    town.settle();
    // The head that waits, and a frame's worth of the body.
    assert_eq!(streams(&town, 0), [1, 3]);
    assert!((16_384..24_000).contains(&town.mux.waiting().0), "{:?}", town.mux.waiting());
    kill(&mut town, 0);
    assert_eq!(status(&town, 3), Some("502"));
    assert_eq!(town.decider.reconnected, [(0, 0)]);
    // How many it takes is not known before it has said so.
    assert_eq!(streams(&town, 4), [5]);
    town.client.data(5, &[8; 10_000], true, None);
    town.settle();
    assert_eq!(town.ups(4).streams[&5].data, [&[7; 16_384][..], &[8; 10_000]].concat());
    answer(&mut town, 4, 5);
    assert_eq!(streams(&town, 4), [5, 7]);
    // It was sent for the first time there, so there is a second.
    kill(&mut town, 4);
    assert_eq!(streams(&town, 8), [7]);
    answer(&mut town, 8, 7);
    assert_eq!((town.mux.waiting(), town.mux.open_streams()), ((0, 0), 0));
    assert_eq!(town.decider.fates, [Fate::Diverted; 4]);
}

#[test]
fn who_says_farewell_gives_back_what_waits() {
    let mut town = kept(1);
    for id in [3, 5] {
        town.client.headers(id, &request(Some("alice"), &[]), true, 100);
    }
    town.settle();
    town.ups(0).leave();
    town.settle();
    assert_eq!((streams(&town, 0), streams(&town, 4)), (vec![1, 3], vec![5]));
    answer(&mut town, 4, 5);
    answer(&mut town, 0, 3);
    assert!(town.mux.is_finished(0) && !town.mux.is_finished(4));
    assert_eq!(town.mux.open_streams(), 0);
}

#[test]
fn credit_for_a_response_is_given_to_the_second_server_too() {
    let mut town = kept(100);
    town.client.headers(3, &repeatable(Some("alice")), true, 100);
    // Before and after it is opened.
    town.client.credit(3, 1000);
    town.settle();
    town.client.credit(3, 200);
    town.settle();
    let before = town.ups(0).may_send_on(3);
    kill(&mut town, 0);
    assert_eq!((before, town.ups(4).may_send_on(3)), (66_735, 66_735));
}

/// Ids rise on each connection, so what has lost its place with the original cannot have it back.
#[test]
fn what_has_moved_goes_to_the_original_no_more() {
    let mut town = Town::new(65_535, 65_535, 1, 65_535, [4096, 4096]);
    town.unreachable = vec![7];
    town.client.headers(1, &repeatable(Some("shared")), true, 100);
    town.settle();
    answer(&mut town, 3, 1);
    town.client.headers(3, &repeatable(Some("shared")), true, 100);
    town.client.headers(5, &request(Some("shared"), &[]), false, 100);
    town.client.data(5, &[7; 100], true, None);
    town.client.headers(7, &request(None, &[]), true, 100);
    town.settle();
    town.kill(3);
    // It is of no account to what comes to the original meanwhile.
    town.client.headers(9, &request(None, &[]), true, 100);
    town.carry_in(Leg::Client, usize::MAX);
    town.carry_out(Leg::Original, usize::MAX);
    let shared = |town: &Town| town.original.streams.keys().copied().collect::<Vec<_>>();
    assert_eq!(shared(&town), [7, 9]);
    town.settle();
    assert_eq!(shared(&town), [7, 9]);
    assert_eq!(status(&town, 3), Some("503"));
    assert_eq!(town.client.streams[&5].reset, Some(7));
    assert_eq!((town.mux.waiting(), town.mux.open_streams()), ((0, 0), 2));
}

#[test]
fn no_more_heads_are_kept_than_there_is_room_for() {
    const LARGE: usize = 100_000;
    let many = MAX_RETRY / LARGE + 1;
    let mut town = kept(100);
    let mut list = repeatable(Some("alice"));
    list.push((b"x-large".to_vec(), vec![b'l'; LARGE]));
    let mut id = 3;
    for round in 1..3 {
        let first = id;
        for _ in 0..many {
            town.client.headers(id, &list, true, 16_384);
            id += 2;
        }
        town.settle();
        let up = town.decider.current[0];
        kill(&mut town, up);
        // What went once more has left its room to others.
        assert_eq!(town.decider.reconnected.len(), round);
        assert_eq!(town.decider.reconnected[round - 1], (up, many - 1));
        assert_eq!(status(&town, id - 2), Some("502"));
        let next = town.decider.current[0];
        (first..id - 2).step_by(2).for_each(|id| answer(&mut town, next, id));
    }
    assert_eq!(town.mux.open_streams(), 0);
}
