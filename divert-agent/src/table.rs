//! The routing table: what each label stands for right now.
//!
//! Written by apply alone, read by every worker. A worker looks a label up once per connection and
//! then holds its [`Slot`]; a change of routing swaps the slot's target, so the next request on a
//! connection that is long open sees it. Readers never wait: both levels are atomic swaps.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use divert_common::label::Label;
use divert_core::plan::{Hosts, Target};

/// A label in use.
#[derive(Debug)]
pub struct Slot {
    /// The label.
    pub label: Label,
    /// The destination that the application asked for.
    pub original: SocketAddr,
    /// Captured for pods of developers, not for everyone.
    pub from_pods: bool,
    /// Whether the kernel was told that connections to it may be watched instead of captured.
    watchable: AtomicBool,
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
            watchable: AtomicBool::new(false),
            target: ArcSwap::new(target),
            connections: AtomicUsize::new(0),
        }
    }

    /// Whether its connections may be watched: no request to it is given a key, by the pod that sends it or by one of these
    /// hosts, and none is of HTTP/2.
    pub fn may_be_watched(&self, hosts: &Hosts) -> bool {
        let target = self.target.load();
        let namespaces = || target.services.iter().map(|it| &*it.service.namespace);
        !self.from_pods
            && target.watchable
            && !hosts.iter().any(|(_, grant)| namespaces().any(|namespace| grant.extends_to(namespace)))
    }

    /// Whether the kernel was told so.
    pub fn is_watchable(&self) -> bool {
        self.watchable.load(Ordering::Relaxed)
    }

    /// It is told now.
    pub fn set_watchable(&self, watchable: bool) {
        self.watchable.store(watchable, Ordering::Relaxed);
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
}

impl Table {
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
