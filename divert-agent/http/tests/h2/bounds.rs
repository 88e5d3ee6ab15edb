//! What is kept of a connection is bounded, whatever its ends do.

use divert_http::h2::Leg;

use super::town::{Town, repeatable, response};

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
        town.carry_in(Leg::Up(up), usize::MAX);
        town.carry_out(Leg::Up(up), usize::MAX);
        assert_eq!(town.mux.upstreams(), 0, "{round}");
        town.settle();
        assert_eq!(town.client.unacknowledged(), 0, "{round}");
    }
}
