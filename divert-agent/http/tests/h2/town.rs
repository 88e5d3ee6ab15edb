//! A client, the mux, and three servers, in memory: bytes are carried in pieces of any size, and everything that
//! anybody sends is remembered.

use std::collections::BTreeMap;

use divert_http::h2::{Leg, Mux};

use super::decider::{Decider, answer};
use super::end::{End, List};

/// All of it.
pub(crate) struct Town {
    pub(crate) mux: Mux<u32>,
    pub(crate) decider: Decider,
    pub(crate) client: End,
    pub(crate) original: End,
    /// By connection: alice's have even numbers, bob's odd ones.
    pub(crate) ups: BTreeMap<u32, End>,
    /// Those that are open, and those that never will be.
    pub(crate) opened: Vec<u32>,
    pub(crate) unreachable: Vec<u32>,
    settings: [u32; 2],
    /// The original is still being dialled.
    pub(crate) dialling: bool,
}

impl Town {
    /// The servers' windows for new streams, how many streams they take, and the client's window.
    pub(crate) fn new(original: u32, ups: u32, streams: u32, client: u32, tables: [u32; 2]) -> Self {
        Self {
            mux: Mux::new(),
            decider: Decider::new(true),
            client: End::new("client", true, Some(client), 0, tables[0]),
            original: End::new("original", false, Some(original), u32::MAX, tables[1]),
            ups: BTreeMap::new(),
            opened: Vec::new(),
            unreachable: vec![2, 3],
            settings: [ups, streams],
            dialling: false,
        }
    }

    pub(crate) fn of_common_windows() -> Self {
        Self::new(65_535, 65_535, 100, 65_535, [4096, 4096])
    }

    /// One whose original cannot be connected to.
    pub(crate) fn without_original() -> Self {
        Self { mux: Mux::without_original(), ..Self::of_common_windows() }
    }

    pub(crate) fn end(&mut self, leg: Leg) -> &mut End {
        match leg {
            Leg::Client => &mut self.client,
            Leg::Original => &mut self.original,
            Leg::Upstream(id) => self.ups.get_mut(&id).unwrap(),
        }
    }

    /// Alice's first connection is 0, bob's 1.
    pub(crate) fn ups(&mut self, id: u32) -> &mut End {
        self.end(Leg::Upstream(id))
    }

    pub(crate) fn legs(&self) -> Vec<Leg> {
        let ups = self.opened.iter().map(|id| Leg::Upstream(*id));
        [Leg::Client, Leg::Original].into_iter().chain(ups).collect()
    }

    /// Connects, or does not.
    pub(crate) fn dial(&mut self) -> bool {
        let Some(id) = self.decider.dialled.first().copied() else {
            return false;
        };
        self.decider.dialled.retain(|it| *it != id);
        if self.unreachable.contains(&id) {
            self.decider.asked.retain(|it| *it != id);
            self.mux.unreachable(id, &answer(), &mut self.decider);
        } else {
            self.opened.push(id);
            let [initial, streams] = self.settings;
            let name = if id % 2 == 0 { "alice" } else { "bob" };
            self.ups.insert(id, End::new(name, false, Some(initial), streams, 4096));
            self.mux.opened(id, &mut self.decider);
        }
        true
    }

    /// The original is being dialled from the start, until [`Self::open_original`].
    pub(crate) fn dial_late(&mut self) {
        self.mux = Mux::dialling();
        self.dialling = true;
    }

    pub(crate) fn open_original(&mut self) {
        if std::mem::take(&mut self.dialling) {
            self.mux.original_opened(&mut self.decider);
        }
    }

    /// Carries up to `limit` bytes from a leg to the mux.
    pub(crate) fn carry_in(&mut self, leg: Leg, limit: usize) -> bool {
        if !self.mux.wants(leg) || leg == Leg::Original && self.dialling {
            return false;
        }
        let out = &mut self.end(leg).out;
        let bytes: Vec<u8> = out.drain(..out.len().min(limit)).collect();
        if bytes.is_empty() {
            return false;
        }
        self.mux.receive(leg, &bytes, &mut self.decider);
        assert!(self.mux.is_balanced(), "the account is not what is held");
        self.renew();
        true
    }

    /// What takes no more streams gets no more, and is closed once it has none.
    fn renew(&mut self) {
        for at in 0..2 {
            let current = self.decider.current[at];
            if self.opened.contains(&current) && self.mux.is_retired(current) {
                self.decider.current[at] = self.decider.fresh(current);
            }
        }
        let Self { mux, decider, opened, .. } = self;
        opened.retain(|id| {
            let unsent = mux.out(Leg::Upstream(*id)).is_some_and(|out| !out.is_empty());
            let keep = !mux.is_finished(*id) || unsent;
            if !keep {
                mux.closed(*id, decider);
            }
            keep
        });
    }

    /// A connection breaks.
    pub(crate) fn kill(&mut self, id: u32) {
        self.mux.ended(Leg::Upstream(id), &mut self.decider);
        self.renew();
        self.opened.retain(|it| *it != id);
    }

    /// Alice's connection, or bob's, that a stream was sent on last.
    pub(crate) fn server_of(&self, id: u32, name: &str) -> Option<&End> {
        self.ups.values().rfind(|end| end.name == name && end.streams.contains_key(&id))
    }

    /// ... and from the mux to a leg.
    pub(crate) fn carry_out(&mut self, leg: Leg, limit: usize) -> bool {
        if leg == Leg::Original && self.dialling {
            return false;
        }
        let Some(out) = self.mux.out(leg) else { return false };
        let bytes = out.bytes()[..out.len().min(limit)].to_vec();
        if bytes.is_empty() {
            return false;
        }
        out.consume(bytes.len());
        self.end(leg).receive(&bytes);
        self.mux.sent(&mut self.decider);
        self.renew();
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

    /// ... between some of the legs.
    pub(crate) fn settle_legs(&mut self, which: impl Fn(Leg) -> bool) {
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

/// ... of one that may be sent twice.
pub(crate) fn repeatable(key: Option<&str>) -> List {
    let mut list = request(key, &[]);
    list[0].1 = b"GET".to_vec();
    list
}

/// The value of a field.
pub(crate) fn get<'a>(list: &'a List, name: &str) -> Option<&'a str> {
    let found = list.iter().find(|(it, _)| it == name.as_bytes());
    found.map(|(_, value)| std::str::from_utf8(value).unwrap())
}

/// A response's fields.
pub(crate) fn response(status: &str) -> List {
    vec![(":status".into(), status.into()), ("server".into(), "town".into())]
}
