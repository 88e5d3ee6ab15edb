//! The world and what follows from it for people: whose Diverts count, and which hosts are granted. Only what a
//! change touches is judged again. The plan of an agent is made from it (`planner`), and so is what the
//! controller writes, which captures nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Settings;
use super::acceptance::{self, Coverage, Group};
use super::hosts::{self, Granted, HostRow, IngressStatus};
use super::status::{self, DivertStatus};
use crate::plan::ServiceRef;
use crate::world::{DivertRef, Pair, Touched, World, WorldChange};

/// The world, judged.
#[derive(Debug)]
pub struct Judge {
    settings: Settings,
    world: World,
    groups: BTreeMap<Pair, Group>,
    /// The developers' namespaces of each shared one.
    developers: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    granted: Granted,
}

/// What changes of the world have made out of date.
#[derive(Debug, Default)]
pub struct Judged {
    /// Objects.
    pub touched: Touched,
    /// Pairs whose Diverts were touched, or are judged otherwise than before.
    pub pairs: BTreeSet<Pair>,
    /// Diverts whose hosts fare otherwise than before.
    pub hosts: BTreeSet<DivertRef>,
    /// Whether annotated Ingresses fare otherwise than before.
    pub ingresses: bool,
    /// Whether hosts were granted otherwise than before.
    pub(super) granted: bool,
    /// Developers whose Diverts say something else together.
    pub(super) developers: BTreeSet<Arc<str>>,
    /// Services of shared namespaces that may be captured otherwise.
    pub(super) services: BTreeSet<ServiceRef>,
}

impl Judge {
    /// An empty world.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            world: World::default(),
            groups: BTreeMap::new(),
            developers: HashMap::new(),
            granted: Granted::default(),
        }
    }

    /// What the operator decided.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What exists now.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The pairs of namespaces that Diverts are about, judged.
    pub fn groups(&self) -> impl Iterator<Item = (&Pair, &Group)> {
        self.groups.iter()
    }

    /// A pair, judged; `None` when no Divert is about it.
    pub fn group(&self, pair: &Pair) -> Option<&Group> {
        self.groups.get(pair)
    }

    /// The pairs whose developer is that namespace.
    pub fn pairs_of<'a>(&'a self, developer: &'a Arc<str>) -> impl Iterator<Item = &'a Pair> {
        pairs_of(&self.groups, developer)
    }

    /// The namespaces whose Diverts name that one as shared.
    pub fn developers_of(&self, shared: &str) -> impl Iterator<Item = &Arc<str>> {
        self.developers.get(shared).into_iter().flatten()
    }

    /// What people are told about each Divert.
    pub fn statuses(&self) -> Vec<DivertStatus> {
        let groups = self.groups.iter();
        groups.flat_map(|(pair, group)| status::of_group(self, pair, group)).collect()
    }

    /// What people are told about a Divert; `None` when there is none.
    pub fn status(&self, divert: &DivertRef) -> Option<DivertStatus> {
        let divert = self.world.divert(divert)?;
        let pair = divert.pair();
        status::of_divert(self, &pair, self.groups.get(&pair)?, divert)
    }

    /// What people are told about each Ingress with the annotation of okteto.
    pub fn ingresses(&self) -> &[IngressStatus] {
        &self.granted.ingresses
    }

    /// The rows of a Divert that asks for hosts.
    pub(super) fn host_rows(&self, divert: &DivertRef) -> &[HostRow] {
        self.granted.rows.get(divert).map_or(&[], Vec::as_slice)
    }

    /// All that follows from hosts.
    pub(super) fn granted(&self) -> &Granted {
        &self.granted
    }

    /// Whether nothing is kept: what an empty world must come to.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.groups.is_empty()
            && self.developers.is_empty()
            && self.granted == Granted::default()
            && self.world.is_empty()
    }

    /// Takes changes of the world.
    pub fn update(&mut self, changes: impl IntoIterator<Item = WorldChange>) -> Judged {
        let mut judged = Judged::default();
        for change in changes {
            self.world.apply(change, &mut judged.touched);
        }
        self.world.touch_endpoints(&mut judged.touched);
        // By the pairs of before and of after: one batch can hold a Service and the last Divert about it.
        self.mark_services(&mut judged);
        self.judge_pairs(&mut judged);
        self.grant_hosts(&mut judged);
        self.mark_services(&mut judged);
        judged
    }

    /// A service counts as the shared one, and as the developer's in each pair of its namespace.
    fn mark_services(&self, judged: &mut Judged) {
        for service in &judged.touched.services {
            if self.developers.contains_key(&service.namespace) || self.granted.backends.contains(service) {
                judged.services.insert(service.clone());
            }
            for pair in self.pairs_of(&service.namespace) {
                let shared = ServiceRef { namespace: pair.shared.clone(), name: service.name.clone() };
                judged.services.insert(shared);
            }
        }
    }

    /// Judges touched pairs again, and marks the services of those that now say something else.
    fn judge_pairs(&mut self, judged: &mut Judged) {
        let mut pairs = judged.touched.pairs.clone();
        for namespace in &judged.touched.namespaces {
            pairs.extend(self.pairs_of(namespace).cloned());
            let developers = self.developers_of(namespace);
            pairs.extend(developers.map(|k| Pair { developer: k.clone(), shared: namespace.clone() }));
        }
        judged.pairs.clone_from(&judged.touched.pairs);
        for pair in pairs {
            let new = acceptance::judge(&self.world, &self.settings, &pair);
            let developers = self.developers.entry(pair.shared.clone()).or_default();
            match new {
                Some(_) => developers.insert(pair.developer.clone()),
                None => developers.remove(&pair.developer),
            };
            if developers.is_empty() {
                self.developers.remove(&pair.shared);
            }
            let old = self.groups.remove(&pair);
            let is_same = old == new;
            let old = old.and_then(|group| group.coverage);
            if let Some(group) = &new {
                self.groups.insert(pair.clone(), group.clone());
            }
            if is_same {
                continue;
            }
            judged.pairs.insert(pair.clone());
            let coverage = new.and_then(|group| group.coverage);
            if old == coverage {
                continue;
            }
            judged.developers.insert(pair.developer.clone());
            let covered = |coverage: &Option<Coverage>, service: &str| {
                coverage.as_ref().is_some_and(|coverage| coverage.covers(service))
            };
            for service in self.world.services(&pair.developer) {
                let name = &service.service.name;
                if covered(&old, name) || covered(&coverage, name) {
                    let shared = ServiceRef { namespace: pair.shared.clone(), name: name.clone() };
                    judged.services.insert(shared);
                }
            }
        }
    }

    /// Grants hosts again where something they depend on was touched, and marks services that are captured
    /// for them, or no longer.
    fn grant_hosts(&mut self, judged: &mut Judged) {
        let touched = &judged.touched;
        let affected = !touched.pairs.is_empty()
            || !touched.namespaces.is_empty()
            || !touched.ingresses.is_empty()
            || touched.routes
            || touched.services.iter().any(|service| self.granted.followed.contains(service));
        if !affected {
            return;
        }
        let new = hosts::grant(&self.world, &self.settings, &self.groups);
        let old = std::mem::replace(&mut self.granted, new);
        let new = &self.granted;
        judged.services.extend(new.backends.symmetric_difference(&old.backends).cloned());
        judged.granted = new.hosts != old.hosts;
        judged.ingresses = new.ingresses != old.ingresses;
        let rows = new.rows.iter().filter(|(divert, rows)| old.rows.get(divert) != Some(rows));
        let gone = old.rows.keys().filter(|divert| !new.rows.contains_key(divert));
        judged.hosts.extend(rows.map(|(divert, _)| divert).chain(gone).cloned());
    }
}

/// The pairs whose developer is that namespace.
fn pairs_of<'a>(
    groups: &'a BTreeMap<Pair, Group>,
    developer: &'a Arc<str>,
) -> impl Iterator<Item = &'a Pair> {
    let first = Pair { developer: developer.clone(), shared: "".into() };
    groups.range(first..).map(|(pair, _)| pair).take_while(move |pair| pair.developer == *developer)
}
