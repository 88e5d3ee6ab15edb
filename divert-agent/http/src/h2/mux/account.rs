//! What is held of a connection, in one account, and how much that may be.
//!
//! Whatever waits is counted with the leg that it waits for, or came from: heads of requests that have not been opened,
//! DATA and trailers of the client (**up**); DATA, header blocks and resets for the client (**down**); heads that are kept
//! to be sent once more (**retry**). A [`Stream`] knows what it costs, and the account what it has counted of it, so the sum
//! over the streams is always the account. What waits in the queues of sockets is counted by their lengths.
//!
//! Who has to wait when the account is full differs:
//!
//! - What waits for a **developer's service** never makes its client wait, as that would be everybody's. A new stream is
//!   refused, and what overflows costs the stream that holds most.
//! - What waits for the **original** makes its client wait, as it would without us.
//! - What waits for the **client** makes the server wait that sent it, and no other.

use super::Leg;
use super::stream::Stream;

/// Most bytes that wait for one developer's service, the queue of its socket included.
pub const MAX_UPSTREAM: usize = 4 << 20;
/// ... and for all of them; past it only what waits for a service that holds less than [`SHARE`] is added.
pub const MAX_UPSTREAMS: usize = 8 << 20;
/// What any developer's service may have waiting, however much others have.
pub const SHARE: usize = 256 * 1024;
/// Most bytes of streams that wait for the original destination, before its client is not read.
pub const MAX_ORIGINAL_UP: usize = 1 << 20;
/// Most bytes of one developer's service that wait for the client, before the service is not read.
pub const MAX_UPSTREAM_DOWN: usize = 512 * 1024;
/// ... and of all of them.
pub const MAX_UPSTREAMS_DOWN: usize = 4 << 20;
/// Most bytes of the original that wait for the client, before it is not read.
pub const MAX_ORIGINAL_DOWN: usize = 2 << 20;
/// Most bytes of heads that are kept, to be sent once more.
pub const MAX_RETRY: usize = 256 * 1024;
/// While memory is short, each of the bounds is no more than this.
pub const TIGHT: usize = 64 * 1024;

/// What one stream holds, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Cost {
    pub(super) up: usize,
    pub(super) down: usize,
    pub(super) retry: usize,
}

/// What has been counted of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counted {
    leg: Leg,
    cost: Cost,
}

impl Counted {
    pub(super) fn nothing(leg: Leg) -> Self {
        Self { leg, cost: Cost::default() }
    }
}

/// Everything that the streams of one connection hold.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// Legs of which something is held up or down, which are few, in no order. A list keeps its memory where a tree would
    /// give it back and ask for it anew with each request that waits for a moment.
    legs: Vec<(Leg, Cost)>,
    retry: usize,
    tight: bool,
}

impl Account {
    /// Counts a stream as it is now.
    pub(super) fn update<T>(&mut self, stream: &mut Stream<T>) {
        let now = Counted { leg: stream.leg, cost: stream.cost() };
        if now != stream.counted {
            self.replace(stream.counted, now);
            stream.counted = now;
        }
    }

    /// A stream is no more.
    pub(super) fn remove<T>(&mut self, stream: &mut Stream<T>) {
        let nothing = Counted::nothing(stream.leg);
        self.replace(stream.counted, nothing);
        stream.counted = nothing;
    }

    fn replace(&mut self, before: Counted, now: Counted) {
        self.retry = self.retry + now.cost.retry - before.cost.retry;
        self.add(now);
        self.take(before);
    }

    fn add(&mut self, Counted { leg, cost: Cost { up, down, .. } }: Counted) {
        if up + down == 0 {
            return;
        }
        match self.legs.iter_mut().find(|(it, _)| *it == leg) {
            Some((_, sum)) => (sum.up, sum.down) = (sum.up + up, sum.down + down),
            None => self.legs.push((leg, Cost { up, down, retry: 0 })),
        }
    }

    /// Takes away what was added before.
    fn take(&mut self, Counted { leg, cost: Cost { up, down, .. } }: Counted) {
        let Some(at) = self.legs.iter().position(|(it, _)| *it == leg) else {
            debug_assert_eq!(up + down, 0, "what is taken away was added before");
            return;
        };
        let sum = &mut self.legs[at].1;
        (sum.up, sum.down) = (sum.up - up, sum.down - down);
        if *sum == Cost::default() {
            self.legs.swap_remove(at);
        }
    }

    fn of(&self, leg: Leg) -> Cost {
        self.legs.iter().find(|(it, _)| *it == leg).map_or(Cost::default(), |(_, sum)| *sum)
    }

    /// Memory is short, or is not any more.
    pub(super) fn set_tight(&mut self, tight: bool) {
        self.tight = tight;
    }

    /// Memory is short.
    pub(super) fn is_tight(&self) -> bool {
        self.tight
    }

    /// A bound as it is now.
    pub(super) fn bound(&self, bound: usize) -> usize {
        if self.tight { bound.min(TIGHT) } else { bound }
    }

    /// What waits for a leg.
    pub(super) fn up(&self, leg: Leg) -> usize {
        self.of(leg).up
    }

    /// What of a leg waits for the client.
    pub(super) fn down(&self, leg: Leg) -> usize {
        self.of(leg).down
    }

    /// Whether a leg may go on to send, by what of it waits for the client.
    pub(super) fn may_send(&self, leg: Leg) -> bool {
        // Most connections hold nothing.
        self.legs.is_empty()
            || match leg {
                Leg::Client => self.up(Leg::Original) <= self.bound(MAX_ORIGINAL_UP),
                Leg::Original => self.down(leg) <= self.bound(MAX_ORIGINAL_DOWN),
                Leg::Upstream(_) => {
                    self.down(leg) <= self.bound(MAX_UPSTREAM_DOWN)
                        && self.upstreams_down() <= MAX_UPSTREAMS_DOWN
                }
            }
    }

    fn upstreams_down(&self) -> usize {
        self.legs.iter().filter(|(leg, _)| matches!(leg, Leg::Upstream(_))).map(|(_, sum)| sum.down).sum()
    }

    /// Whether a head of this size may be kept.
    pub(super) fn may_keep(&self, len: usize) -> bool {
        self.retry + len <= self.bound(MAX_RETRY)
    }

    /// Something of a server waits for the client.
    pub(super) fn holds_down(&self) -> bool {
        self.legs.iter().any(|(_, sum)| sum.down > 0)
    }

    /// Everything, up and down.
    pub(super) fn sums(&self) -> (usize, usize) {
        let up: usize = self.legs.iter().map(|(_, sum)| sum.up).sum();
        (up + self.retry, self.legs.iter().map(|(_, sum)| sum.down).sum())
    }

    /// Whether it is the sum over these streams, and each was counted as it is.
    pub(super) fn is_sum<'a, T: 'a>(&self, streams: impl Iterator<Item = &'a Stream<T>>) -> bool {
        let mut sum = Self::default();
        let mut exact = true;
        for stream in streams {
            let now = Counted { leg: stream.leg, cost: stream.cost() };
            exact &= stream.counted == now || now.cost == Cost::default() && stream.counted.cost == now.cost;
            sum.replace(Counted::nothing(stream.leg), now);
        }
        let alike = sum.legs.len() == self.legs.len() && sum.legs.iter().all(|it| self.legs.contains(it));
        exact && alike && sum.retry == self.retry
    }
}
