//! Slots of captures that have ended. Connections that are open on them go on, and the agent still decides
//! their requests.
//!
//! A set of its own ends with the last pod that injects, and Diverts go on without it. So a slot that was
//! captured for such a set follows everyone's capture of its address: a request with a key that diverts goes
//! where it would go on a new connection. Where everyone's is not captured either nobody diverts it, and it
//! goes to its original destination.

use std::net::SocketAddr;
use std::sync::Arc;

use divert_common::label::Label;
use divert_core::hash::HashMap;
use divert_core::plan::{SharedService, Target};

use crate::table::Slot;

/// Slots by label, which rests as long as they are here.
#[derive(Debug, Default)]
pub(super) struct Resting {
    slots: HashMap<Label, Arc<Slot>>,
    /// Those that were captured for a set of its own.
    own: HashMap<SocketAddr, Vec<Label>>,
}

impl Resting {
    /// Takes the slot of a capture that has ended; `everyone` is the target of everyone's capture of the same
    /// address.
    pub(super) fn insert(&mut self, slot: Arc<Slot>, everyone: Option<&Arc<Target>>) {
        if slot.from_pods {
            self.own.entry(slot.original).or_default().push(slot.label);
            follow(&slot, everyone);
        } else {
            follow(&slot, None);
            self.follow(slot.original, None);
        }
        self.slots.insert(slot.label, slot);
    }

    /// Everyone's capture of an address has begun, changed or ended.
    pub(super) fn follow(&self, address: SocketAddr, everyone: Option<&Arc<Target>>) {
        for slot in self.own.get(&address).into_iter().flatten().filter_map(|label| self.slots.get(label)) {
            follow(slot, everyone);
        }
    }

    /// Gives a slot back: it is captured again, or its label is free.
    pub(super) fn remove(&mut self, label: Label) -> Option<Arc<Slot>> {
        let slot = self.slots.remove(&label)?;
        if let Some(labels) = self.own.get_mut(&slot.original) {
            labels.retain(|it| *it != label);
            if labels.is_empty() {
                self.own.remove(&slot.original);
            }
        }
        Some(slot)
    }

    /// Whether connections are open on it.
    pub(super) fn is_held(&self, label: Label) -> bool {
        self.slots.get(&label).is_some_and(|slot| slot.connections() > 0)
    }

    /// Number of slots.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

fn follow(slot: &Slot, everyone: Option<&Arc<Target>>) {
    let unrouted = || Arc::new(without_routes(&slot.target()));
    slot.set_target(everyone.map_or_else(unrouted, Arc::clone));
}

/// The same services, all of whose requests go to the original destination.
fn without_routes(target: &Target) -> Target {
    let services = target.services.iter();
    let unrouted = |service: &SharedService| SharedService {
        service: service.service.clone(),
        routes: Default::default(),
    };
    Target {
        services: services.map(unrouted).collect(),
        reconnect: false,
        dual_stack: target.dual_stack,
        answered: target.answered,
        declared: target.declared,
    }
}
