//! The routing table: what each label stands for right now.
//!
//! Written by apply alone, read by every worker. A worker looks a label up once per connection and
//! then holds its [`Slot`]; a change of routing swaps the slot's target, so the next request on a
//! connection that is long open sees it. Readers never wait: both levels are atomic swaps.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use divert_common::label::Label;
use divert_core::plan::{Declared, Hosts, Target};

/// A label in use.
#[derive(Debug)]
pub struct Slot {
    /// The label.
    pub label: Label,
    /// The destination that the application asked for.
    pub original: SocketAddr,
    /// Captured for pods of developers, not for everyone.
    pub from_pods: bool,
    /// A bit for each [`Version`] that a connection to it was seen to speak.
    heard: AtomicU8,
    target: ArcSwap<Target>,
    connections: AtomicUsize,
}

impl Slot {
    /// A slot without connections.
    pub fn new(label: Label, original: SocketAddr, from_pods: bool, target: Arc<Target>) -> Self {
        Self {
            label,
            original,
            from_pods,
            heard: AtomicU8::new(0),
            target: ArcSwap::new(target),
            connections: AtomicUsize::new(0),
        }
    }

    /// Why connections to it are led through the agent from the start, and not left alone until a request on them is
    /// diverted. `None` where they are left alone. These hosts are given keys. Where nothing is declared, the `eager` do not
    /// wait for a response of HTTP/1.
    pub fn spliced(&self, hosts: &Hosts, eager: bool) -> Option<Spliced> {
        let target = self.target.load();
        let namespaces = || target.services.iter().map(|it| &*it.service.namespace);
        let granted =
            || hosts.iter().any(|(_, grant)| namespaces().any(|namespace| grant.extends_to(namespace)));
        let heard = |version: Version| self.heard.load(Ordering::Relaxed) & version as u8 != 0;
        if self.from_pods || granted() {
            return Some(Spliced::GivenKeys);
        }
        if target.declared == Declared::Http2 || heard(Version::Http2) {
            return Some(Spliced::Http2);
        }
        if target.declared == Declared::Nothing && !eager && !heard(Version::Http1) {
            return Some(Spliced::Unheard);
        }
        (!target.answered).then_some(Spliced::Unanswered)
    }

    /// Who takes requests to this destination now.
    pub fn target(&self) -> arc_swap::Guard<Arc<Target>> {
        self.target.load()
    }

    /// Changes who takes requests, from the next request on.
    pub fn set_target(&self, target: Arc<Target>) {
        self.target.store(target);
    }

    /// Connections accepted on the label and still held.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }
}

/// What a connection was seen to speak; a bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Version {
    /// The original destination has answered a request of HTTP/1.
    Http1 = 1,
    /// A client speaks HTTP/2.
    Http2 = 2,
}

/// Why connections to a destination are led through the agent from the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spliced {
    /// Requests to it are given a key.
    GivenKeys,
    /// It speaks HTTP/2, of which requests cannot be followed from outside.
    Http2,
    /// Its port declares nothing, and nothing was seen yet. A server of HTTP/2 may greet its clients, and then it is too late
    /// to take a connection over.
    Unheard,
    /// Nobody is there to answer: who is diverted is served all the same.
    Unanswered,
}

impl fmt::Display for Spliced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GivenKeys => "requests to it are given a key",
            Self::Http2 => "it speaks HTTP/2",
            Self::Unheard => "its port declares no protocol (appProtocol, or a name that begins with http), and no response \
                              of HTTP/1 has been seen from it",
            Self::Unanswered => "the shared service has no ready endpoint",
        })
    }
}

/// A connection's claim on its label: while one exists, the label is not given to another target.
#[derive(Debug)]
pub struct Claim(Arc<Slot>);

impl std::ops::Deref for Claim {
    type Target = Slot;
    fn deref(&self) -> &Slot {
        &self.0
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Release);
    }
}

/// All labels in use, and the granted hosts.
#[derive(Debug, Default)]
pub struct Table {
    slots: ArcSwap<imbl::HashMap<u32, Arc<Slot>>>,
    hosts: ArcSwap<Hosts>,
    /// How often something new was heard of a slot.
    heard: AtomicUsize,
}

impl Table {
    /// A connection to a destination was seen to speak this.
    pub fn hear(&self, slot: &Slot, version: Version) {
        // Once for each destination: what is only read stays in every processor's cache.
        if slot.heard.load(Ordering::Relaxed) & version as u8 == 0 {
            slot.heard.fetch_or(version as u8, Ordering::Relaxed);
            self.heard.fetch_add(1, Ordering::Release);
        }
    }

    /// A number that is another where something new was heard.
    pub fn heard(&self) -> usize {
        self.heard.load(Ordering::Acquire)
    }

    /// Claims the slot of a label for a connection; `None` when the label is not live.
    pub fn claim(&self, label: Label) -> Option<Claim> {
        let slot = self.slots.load().get(&label.index()).cloned()?;
        slot.connections.fetch_add(1, Ordering::AcqRel);
        Some(Claim(slot))
    }

    /// The slot of a label, without a claim.
    pub fn get(&self, label: Label) -> Option<Arc<Slot>> {
        self.slots.load().get(&label.index()).cloned()
    }

    /// Hosts whose requests get a key now.
    pub fn hosts(&self) -> arc_swap::Guard<Arc<Hosts>> {
        self.hosts.load()
    }

    /// Changes which hosts' requests get a key, from the next request on.
    pub fn set_hosts(&self, hosts: Arc<Hosts>) {
        self.hosts.store(hosts);
    }

    /// Adds and removes slots in one step. Only apply writes, so load and store need no loop.
    pub fn update(&self, add: impl IntoIterator<Item = Arc<Slot>>, remove: impl IntoIterator<Item = Label>) {
        let mut slots = imbl::HashMap::clone(&self.slots.load());
        for label in remove {
            slots.remove(&label.index());
        }
        for slot in add {
            slots.insert(slot.label.index(), slot);
        }
        self.slots.store(Arc::new(slots));
    }

    /// Number of labels in use.
    pub fn len(&self) -> usize {
        self.slots.load().len()
    }

    /// Whether no label is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
