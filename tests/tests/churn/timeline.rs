//! What may be true when: the yardstick for every answer.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What a request with a developer's key may meet: a set, as a change is in effect at some moment between its
/// beginning and the first answer that shows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct May(u8);

impl May {
    /// No divert: the shared copy answers.
    pub(crate) const SHARED: Self = Self(1);
    /// The developer's copy answers.
    pub(crate) const DIVERTED: Self = Self(2);
    /// The developer's service has no ready endpoint: the agent answers 503.
    pub(crate) const UNAVAILABLE: Self = Self(4);

    /// Either.
    pub(crate) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether it may be so.
    pub(crate) fn be(self, one: Self) -> bool {
        self.0 & one.0 != 0
    }
}

impl fmt::Debug for May {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(Self::SHARED, "shared"), (Self::DIVERTED, "diverted"), (Self::UNAVAILABLE, "503")];
        f.debug_list().entries(names.iter().filter(|(one, _)| self.be(*one)).map(|(_, name)| name)).finish()
    }
}

/// How things are from some moment on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct State {
    /// For alice and for bob.
    pub(crate) keys: [May; 2],
    /// Connections made now may pass the agent by.
    pub(crate) gap: bool,
    /// Connections that exist may break: an agent is ending, in whatever way.
    pub(crate) ending: bool,
}

impl State {
    fn or(self, other: Self) -> Self {
        Self {
            keys: [self.keys[0].or(other.keys[0]), self.keys[1].or(other.keys[1])],
            gap: self.gap || other.gap,
            ending: self.ending || other.ending,
        }
    }

    /// Whether nobody may be diverting, so that nothing is captured.
    pub(crate) fn nobody_diverts(self) -> bool {
        self.keys.iter().all(|key| key.be(May::SHARED))
    }
}

/// All states, in order of their beginning.
#[derive(Debug)]
pub(crate) struct Timeline(Mutex<Vec<(Instant, State)>>);

impl Timeline {
    pub(crate) fn new(state: State) -> Self {
        Self(Mutex::new(vec![(Instant::now(), state)]))
    }

    /// The state now.
    pub(crate) fn now(&self) -> State {
        self.with(|states| states.last().map(|(_, state)| *state)).expect("it begins with one")
    }

    /// From now on.
    pub(crate) fn set(&self, state: State) {
        self.with(|states| states.push((Instant::now(), state)));
    }

    /// Whatever was so at some time between two moments.
    pub(crate) fn between(&self, from: Instant, to: Instant) -> State {
        self.with(|states| {
            let first = states.partition_point(|(since, _)| *since <= from).saturating_sub(1);
            let during = states[first..].iter().take_while(|(since, _)| *since <= to);
            during.map(|(_, state)| *state).reduce(State::or).expect("the first is there")
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Vec<(Instant, State)>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
