//! A client, the mux, and three servers, in memory: bytes are carried in pieces of any size, and everything that
//! anybody sends is remembered.

use divert_http::h2::{Leg, Mux};

use super::decider::{Decider, answer};
use super::end::{End, List};

/// All of it.
pub(crate) struct Town {
    pub(crate) mux: Mux<u32>,
    pub(crate) decider: Decider,
    pub(crate) client: End,
    pub(crate) original: End,
    pub(crate) ups: [End; 2],
    pub(crate) opened: Vec<u32>,
}

impl Town {
    /// The servers' windows for new streams, how many streams they take, and the client's window.
    pub(crate) fn new(original: u32, ups: u32, streams: u32, client: u32, tables: [u32; 2]) -> Self {
        Self {
            mux: Mux::new(),
            decider: Decider::new(true),
            client: End::new("client", true, Some(client), 0, tables[0]),
            original: End::new("original", false, Some(original), u32::MAX, tables[1]),
            ups: [
                End::new("alice", false, Some(ups), streams, 4096),
                End::new("bob", false, Some(ups), streams, 4096),
            ],
            opened: Vec::new(),
        }
    }

    pub(crate) fn end(&mut self, leg: Leg) -> &mut End {
        match leg {
            Leg::Client => &mut self.client,
            Leg::Original => &mut self.original,
            Leg::Up(id) => &mut self.ups[id as usize],
        }
    }

    pub(crate) fn legs(&self) -> Vec<Leg> {
        let ups = self.opened.iter().filter(|id| **id < 2).map(|id| Leg::Up(*id));
        [Leg::Client, Leg::Original].into_iter().chain(ups).collect()
    }

    /// Connects, or does not.
    pub(crate) fn dial(&mut self) -> bool {
        let Some(id) = self.decider.dialled.iter().copied().find(|id| !self.opened.contains(id)) else {
            return false;
        };
        if id < 2 {
            self.opened.push(id);
            self.mux.opened(id, &mut self.decider);
        } else {
            self.decider.dialled.retain(|it| *it != id);
            self.mux.unreachable(id, &answer(), &mut self.decider);
        }
        true
    }

    /// Carries up to `limit` bytes from a leg to the mux.
    pub(crate) fn carry_in(&mut self, leg: Leg, limit: usize) -> bool {
        if !self.mux.wants(leg) {
            return false;
        }
        let out = &mut self.end(leg).out;
        let bytes: Vec<u8> = out.drain(..out.len().min(limit)).collect();
        if bytes.is_empty() {
            return false;
        }
        self.mux.receive(leg, &bytes, &mut self.decider);
        true
    }

    /// ... and from the mux to a leg.
    pub(crate) fn carry_out(&mut self, leg: Leg, limit: usize) -> bool {
        let Some(out) = self.mux.out(leg) else { return false };
        let bytes = out.bytes()[..out.len().min(limit)].to_vec();
        if bytes.is_empty() {
            return false;
        }
        out.consume(bytes.len());
        self.end(leg).receive(&bytes);
        self.mux.sent(&mut self.decider);
        true
    }

    /// Until nothing moves.
    pub(crate) fn settle(&mut self) {
        self.settle_legs(|_| true);
    }

    /// ... where the original is gone.
    pub(crate) fn settle_without_original(&mut self) {
        self.settle_legs(|leg| leg != Leg::Original);
    }

    fn settle_legs(&mut self, which: impl Fn(Leg) -> bool) {
        loop {
            let mut moved = self.dial();
            for leg in self.legs().into_iter().filter(|leg| which(*leg)) {
                moved |= self.carry_in(leg, usize::MAX);
                moved |= self.carry_out(leg, usize::MAX);
            }
            if !moved {
                return;
            }
        }
    }
}

/// A request's fields.
pub(crate) fn request(key: Option<&str>, more: &[(&str, &str)]) -> List {
    let mut list = vec![
        (":method".into(), "POST".into()),
        (":scheme".into(), "http".into()),
        (":path".into(), "/x".into()),
        (":authority".into(), "catalog".into()),
    ];
    if let Some(key) = key {
        list.push(("baggage".into(), format!("a=b,okteto-divert={key}").into()));
    }
    list.extend(more.iter().map(|(name, value)| ((*name).into(), (*value).into())));
    list
}

/// A response's fields.
pub(crate) fn response(status: &str) -> List {
    vec![(":status".into(), status.into()), ("server".into(), "town".into())]
}
