//! What may be true when: the yardstick for every answer.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Who may answer a request with a developer's key: a set, as a change is in effect at some moment between its
/// beginning and the first answer that shows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct May(u8);

impl May {
    /// No divert: the shared copy answers.
    pub(crate) const SHARED: Self = Self(1);
    /// The developer's service has no ready endpoint: the agent answers 503.
    pub(crate) const UNAVAILABLE: Self = Self(2);
    /// Nobody who may ever answer.
    pub(crate) const NOBODY: Self = Self(0);

    /// One of the developer's endpoints, by its number.
    pub(crate) fn endpoint(number: usize) -> Self {
        Self(4 << number)
    }

    /// Any of these endpoints, and the agent where there is none.
    pub(crate) fn endpoints(numbers: impl IntoIterator<Item = usize>) -> Self {
        let any = numbers.into_iter().map(Self::endpoint).fold(Self::NOBODY, Self::or);
        if any == Self::NOBODY { Self::UNAVAILABLE } else { any }
    }

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
        let names = ["shared", "503", "endpoint 0", "endpoint 1", "endpoint 2"];
        f.debug_list().entries((0..5).filter(|bit| self.0 & (1 << bit) != 0).map(|bit| names[bit])).finish()
    }
}

/// Whether something is so: one of the two, or either.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Whether {
    pub(crate) yes: bool,
    pub(crate) no: bool,
}

impl From<bool> for Whether {
    fn from(yes: bool) -> Self {
        Self { yes, no: !yes }
    }
}

impl Whether {
    fn or(self, other: Self) -> Self {
        Self { yes: self.yes || other.yes, no: self.no || other.no }
    }
}

/// How things are for a developer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Developer {
    /// Who answers requests with the key.
    pub(crate) web: May,
    /// Whether requests of the developer's own pods get it.
    pub(crate) from_pods: Whether,
    /// Whether requests for the developer's host get it.
    pub(crate) host: Whether,
}

impl Developer {
    fn or(self, other: Self) -> Self {
        Self {
            web: self.web.or(other.web),
            from_pods: self.from_pods.or(other.from_pods),
            host: self.host.or(other.host),
        }
    }
}

/// How things are from some moment on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct State {
    /// alice and bob.
    pub(crate) developers: [Developer; 2],
    /// Connections made now may pass the agent by.
    pub(crate) gap: bool,
    /// Connections that exist may break: an agent is ending, in whatever way.
    pub(crate) ending: bool,
}

impl State {
    /// Either.
    pub(crate) fn or(self, other: Self) -> Self {
        let [alice, bob] = self.developers;
        Self {
            developers: [alice.or(other.developers[0]), bob.or(other.developers[1])],
            gap: self.gap || other.gap,
            ending: self.ending || other.ending,
        }
    }

    /// Whether nobody may be diverting, so that nothing is captured.
    pub(crate) fn nobody_diverts(self) -> bool {
        self.developers.iter().all(|developer| developer.web.be(May::SHARED))
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
