//! What the data plane counts. Each worker has counters of its own, so that counting is one
//! uncontended add; whoever reads sums them up.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Count {
    /// Captured connections accepted.
    Accepted,
    /// ... that have ended.
    Ended,
    /// Connections relayed without being read, from their start or from some request on.
    Opaque,
    /// Requests sent to the original destination.
    RequestsOriginal,
    /// Requests sent to a developer's service.
    RequestsDiverted,
    /// Requests answered 502, 503 or 504 because a developer's service was not available.
    RequestsUnavailable,
    /// Requests answered 400 or 431.
    RequestsRefused,
    /// Requests tried once more on a new connection.
    Retried,
    /// Clients reset because the original destination could not be connected to.
    OriginalFailed,
    /// Clients reset because a descriptor or a port was lacking.
    Exhausted,
    /// Connections reset because their address was no live label.
    NoLabel,
    /// Connections reset because a head took too long to arrive.
    HeadTimeout,
    /// Responses with ambiguous framing, relayed to their end of stream.
    ResponseIrregular,
    /// Upstreams closed because they sent something while no request was outstanding.
    Unsolicited,
    /// Watched connections that were to be taken over, could not be, and were reset.
    NotTakenOver,
}

const LEN: usize = Count::NotTakenOver as usize + 1;

/// The counters of one worker, on cache lines that no other worker writes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counts([AtomicU64; LEN]);

impl Counts {
    /// Adds one.
    pub fn add(&self, count: Count) {
        self.add_many(count, 1);
    }

    /// Adds some.
    pub fn add_many(&self, count: Count, number: u64) {
        self.0[count as usize].fetch_add(number, Ordering::Relaxed);
    }

    /// The present value.
    pub fn get(&self, count: Count) -> u64 {
        self.0[count as usize].load(Ordering::Relaxed)
    }
}
