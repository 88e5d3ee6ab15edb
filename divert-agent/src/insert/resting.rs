//! Connections that were taken over and have ended, until they are forgotten. Pure.
//!
//! What is left of one in the kernel is still led to where it belongs, and what its server still says is kept from a client
//! that may use the port again. The map that says so has room for many, and where they come fast the oldest make room.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use divert_common::insert::{Ends, SEVERED_COUNT};

/// How long one rests. What is left of it in the kernel is gone by then (TCP_TIMEWAIT_LEN is 60 s).
const REST: Duration = Duration::from_secs(70);
/// The most that rest, with those that have not ended: the map has room for some more, which are still to come.
const MOST: usize = SEVERED_COUNT as usize / 4 * 3;

/// Those that rest, in the order in which they ended, by their ends and the cookies of their clients' sockets.
#[derive(Debug, Default)]
pub(super) struct Resting(VecDeque<(Instant, Ends, u64)>);

impl Resting {
    /// One has ended.
    pub(super) fn add(&mut self, now: Instant, ends: Ends, cookie: u64) {
        self.0.push_back((now, ends, cookie));
    }

    /// The next to be forgotten, while so many have not ended.
    pub(super) fn next(&mut self, now: Instant, others: usize) -> Option<(Ends, u64)> {
        let crowded = self.0.len() + others > MOST;
        let (_, ends, cookie) = self.0.pop_front_if(|(since, ..)| crowded || *since + REST <= now)?;
        Some((ends, cookie))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: Ends = Ends { client: [1; 4], server: [2; 4], client_port: 3, server_port: 4 };

    #[test]
    fn one_rests_for_its_time() {
        let (mut resting, begin) = (Resting::default(), Instant::now());
        resting.add(begin, ENDS, 1);
        resting.add(begin + Duration::from_secs(1), ENDS, 2);
        assert_eq!(resting.next(begin + REST - Duration::from_millis(1), 0), None);
        assert_eq!(resting.next(begin + REST, 0), Some((ENDS, 1)));
        assert_eq!(resting.next(begin + REST, 0), None);
    }

    #[test]
    fn where_there_are_many_the_oldest_rest_for_less() {
        let (mut resting, now) = (Resting::default(), Instant::now());
        for cookie in 0..MOST as u64 {
            resting.add(now, ENDS, cookie);
        }
        assert_eq!(resting.next(now, 0), None);
        assert_eq!(resting.next(now, 2), Some((ENDS, 0)));
        assert_eq!(resting.next(now, 2), Some((ENDS, 1)));
        assert_eq!(resting.next(now, 2), None);
    }
}
