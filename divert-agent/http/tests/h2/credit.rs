//! What goes nowhere costs nobody a window.

use divert_http::h2::Leg;

use super::town::{Town, request};

/// Stream 1 is the original's and 3 alice's; the client has all but 5,535 bytes of its window under way to the
/// original, of which some are held, as the original's socket takes no more.
fn uploading() -> Town {
    let mut town = Town::of_common_windows();
    town.client.headers(1, &request(None, &[]), false, 100);
    town.client.headers(3, &request(Some("alice"), &[]), false, 100);
    town.settle();
    town.original.credit(0, 50_000);
    town.original.credit(1, 50_000);
    town.settle();
    for _ in 0..11 {
        assert_eq!(town.client.data(1, &[0; 10_000], false, None), 10_000);
    }
    while town.carry_in(Leg::Client, 10_000) {}
    assert!(town.mux.waiting().0 > 40_000);
    assert_eq!(town.client.may_send(3), 5_535);
    town
}

#[test]
fn what_is_held_for_a_stream_that_is_reset_is_given_back() {
    let mut town = uploading();
    town.client.reset(1);
    town.settle();
    assert_eq!(town.mux.waiting().0, 0);
    // But for less than is worth a frame.
    assert!(town.client.may_send(3) > 5_535 + 40_000 - 16_384, "{}", town.client.may_send(3));
}

#[test]
fn what_the_original_took_with_it_is_given_back() {
    let mut town = uploading();
    town.mux.ended(Leg::Original, &mut town.decider);
    town.settle_without_original();
    assert!(town.client.may_send(3) > 65_535 - 16_384, "{}", town.client.may_send(3));
    // What it had received as well.
    let mut town = Town::of_common_windows();
    town.client.headers(1, &request(None, &[]), false, 100);
    town.settle();
    for (at, round) in (0..6).enumerate() {
        if at == 3 {
            town.client.headers(3, &request(Some("alice"), &[]), false, 100);
        }
        assert_eq!(town.client.data(1, &[round; 10_000], false, None), 10_000);
        town.settle();
    }
    assert_eq!(town.client.may_send(3), 5_535);
    town.mux.ended(Leg::Original, &mut town.decider);
    town.settle_without_original();
    assert_eq!(town.client.may_send(3), 65_535);
}
