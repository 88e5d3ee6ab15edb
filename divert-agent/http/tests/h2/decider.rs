//! Who decides, where HTTP/2 is played in memory. Shared by the property tests and the fuzz targets.

use std::time::Duration;

use divert_http::KeyNames;
use divert_http::h2::{Dispatch, Fate, Handler, Leg, LocalReply, RequestView, Verdict};

/// Decides by the key: alice and bob have servers, gone has none, late cannot be connected to, shared neither, but
/// goes to the original then.
pub(crate) struct Decider {
    names: KeyNames,
    /// A host gets a key.
    injects: bool,
    /// Connections that are to be opened, and all that ever were to be.
    pub(crate) dialled: Vec<u32>,
    pub(crate) asked: Vec<u32>,
    /// The connections that alice's and bob's requests take.
    pub(crate) current: [u32; 2],
    #[allow(dead_code, reason = "each user takes what it needs")]
    pub(crate) fates: Vec<Fate>,
    /// Connections in whose place another was wanted, and for how many requests that were sent.
    pub(crate) reconnected: Vec<(u32, usize)>,
    /// What the clock says.
    #[allow(dead_code, reason = "each user takes what it needs")]
    pub(crate) now: Duration,
    /// ... and whether there is one to be had.
    pub(crate) reconnects: bool,
}

impl Decider {
    pub(crate) fn new(injects: bool) -> Self {
        Self {
            names: KeyNames::default(),
            injects,
            dialled: Vec::new(),
            asked: Vec::new(),
            current: [0, 1],
            fates: Vec::new(),
            reconnected: Vec::new(),
            now: Duration::from_secs(1000),
            reconnects: true,
        }
    }

    /// A connection to the same server that nobody has taken yet.
    pub(crate) fn fresh(&self, like: u32) -> u32 {
        let alike = self.asked.iter().chain(&self.current).filter(|id| **id % 4 == like % 4);
        alike.max().map_or(like, |last| last + 4)
    }
}

impl Handler for Decider {
    type Token = u32;

    fn names(&self) -> &KeyNames {
        &self.names
    }

    fn decide(&mut self, request: &RequestView<'_>) -> Verdict<u32> {
        let granted = self.injects && request.key.is_none() && request.host == Some("alice.example");
        let inject = granted.then_some("alice");
        let key = request.key.as_deref().or(inject);
        let [alice, bob] = self.current;
        let mut up = |id: u32, shared| {
            if !self.asked.contains(&id) {
                self.asked.push(id);
                self.dialled.push(id);
            }
            Dispatch::Upstream { id, shared }
        };
        let dispatch = match key {
            Some("alice") => up(alice, false),
            Some("bob") => up(bob, false),
            Some("late") => up(2, false),
            Some("shared") => up(3, true),
            Some("gone") => Dispatch::Reply(answer()),
            _ => Dispatch::Original,
        };
        let target = request.debug.then(|| key.unwrap_or("nobody").into());
        Verdict { dispatch, inject: inject.map(Into::into), target, token: 0 }
    }

    fn settle(&mut self, _: u32, fate: Fate) {
        self.fates.push(fate);
    }

    fn too_large(&mut self) -> LocalReply {
        LocalReply { status: 431, ..answer() }
    }

    fn reconnect(&mut self, id: u32, sent: usize) -> Option<u32> {
        self.reconnected.push((id, sent));
        if !self.reconnects {
            return None;
        }
        let next = self.fresh(id);
        if let Some(current) = self.current.iter_mut().find(|it| **it == id) {
            *current = next;
        }
        self.asked.push(next);
        self.dialled.push(next);
        Some(next)
    }

    fn no_connect(&mut self, _: u32) -> LocalReply {
        LocalReply { status: 502, reason: "NoExtendedConnect", ..answer() }
    }

    fn now(&mut self) -> Duration {
        self.now
    }

    fn lost(&mut self, _: Leg) -> LocalReply {
        LocalReply { status: 502, ..answer() }
    }
}

pub(crate) fn answer() -> LocalReply {
    LocalReply { status: 503, reason: "Test", sentence: "Nobody is there.".into() }
}
