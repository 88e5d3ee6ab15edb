//! From what changes of the world made out of date to changes of the plan. Only what a change touches is compiled
//! again: one endpoint costs one service, a Divert or Namespace the services of its pairs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::hosts::IngressStatus;
use super::judge::{Judge, Judged};
use super::service::{self, ServicePlan, Variant};
use super::status::DivertStatus;
use super::{Settings, pods};
use crate::api::Inject;
use crate::hash::HashMap;
use crate::plan::{Capture, CaptureSet, Hosts, Plan, PlanChange, ServiceRef, Target};
use crate::world::{Pair, World, WorldChange};

/// The world and the plan that follows from it.
#[derive(Debug)]
pub struct Planner {
    judge: Judge,
    /// Services that are captured.
    services: HashMap<ServiceRef, ServicePlan>,
    /// Services at each address, by name; one, but for endpoints that several Services select.
    addresses: HashMap<SocketAddr, Vec<Share>>,
    /// Capture sets of registered pods, with the number of those. A node without developers' pods captures
    /// nothing for them.
    sets: BTreeMap<CaptureSet, usize>,
    everyone: CaptureSet,
    plan: Plan,
}

/// What a service contributes at an address.
#[derive(Debug)]
struct Share {
    service: ServiceRef,
    target: Arc<Target>,
    /// Not just for the pods of developers.
    everyone: bool,
}

impl Planner {
    /// An empty world.
    pub fn new(settings: Settings) -> Self {
        Self {
            judge: Judge::new(settings),
            services: HashMap::default(),
            addresses: HashMap::default(),
            sets: BTreeMap::new(),
            everyone: CaptureSet::default(),
            plan: Plan::default(),
        }
    }

    /// What is to be done now.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The step from nothing to what is to be done now.
    pub fn whole_plan(&self) -> PlanChange {
        PlanChange {
            captures: self.plan.captures.iter().map(|(it, target)| (it.clone(), target.clone())).collect(),
            pods: self.plan.pods.iter().map(|(it, pod)| (it.clone(), pod.clone())).collect(),
            hosts: Some(self.plan.hosts.clone()).filter(|hosts| **hosts != Hosts::default()),
            released: Vec::new(),
            pods_gone: Vec::new(),
        }
    }

    /// What is judged of it: consent, coverage, hosts.
    pub fn judge(&self) -> &Judge {
        &self.judge
    }

    /// What exists now.
    pub fn world(&self) -> &World {
        self.judge.world()
    }

    /// Whether nothing is kept: what an empty world must come to.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.services.is_empty() && self.addresses.is_empty() && self.sets.is_empty() && self.judge.is_idle()
    }

    /// What people are told about each Divert.
    pub fn statuses(&self) -> Vec<DivertStatus> {
        self.judge.statuses()
    }

    /// What people are told about each Ingress with the annotation of okteto.
    pub fn ingresses(&self) -> &[IngressStatus] {
        self.judge.ingresses()
    }

    /// Takes changes of the world and says what they change in the plan. From the empty world on, the
    /// steps add up to the plan of the world as it is, in whatever order the changes came.
    pub fn update(&mut self, changes: impl IntoIterator<Item = WorldChange>) -> PlanChange {
        let mut judged = self.judge.update(changes);
        let mut stale = std::mem::take(&mut judged.services);
        let mut change = PlanChange::default();
        if judged.granted {
            self.plan.hosts = self.judge.granted().hosts.clone();
            change.hosts = Some(self.plan.hosts.clone());
        }
        let sets: BTreeSet<CaptureSet> = self.sets.keys().cloned().collect();
        self.compile_pods(judged, &mut change);
        let mut dirty = BTreeSet::new();
        let retired = self.mark_sets(sets, &mut stale, &mut dirty);

        for service in stale {
            self.compile_service(service, &mut dirty);
        }
        for address in dirty {
            self.merge_address(address, &retired, &mut change);
        }
        change
    }

    /// Marks the services of shared namespaces for which the capture sets are not those of `before`, and gives
    /// the sets that are gone.
    fn mark_sets(
        &self,
        before: BTreeSet<CaptureSet>,
        stale: &mut BTreeSet<ServiceRef>,
        dirty: &mut BTreeSet<SocketAddr>,
    ) -> Vec<CaptureSet> {
        let new = self.sets.keys().filter(|set| !before.contains(set));
        let retired: Vec<_> = before.iter().filter(|set| !self.sets.contains_key(set)).cloned().collect();
        let namespaces: BTreeSet<_> = new.chain(&retired).flat_map(CaptureSet::namespaces).collect();
        for service in namespaces.iter().flat_map(|namespace| self.world().services(namespace)) {
            stale.insert(service.service.clone());
        }
        if !namespaces.is_empty() {
            let known = self.services.iter().filter(|(service, _)| namespaces.contains(&service.namespace));
            dirty.extend(known.flat_map(|(_, plan)| plan.addresses.keys()));
        }
        retired
    }

    /// Compiles a service again and notes addresses whose share of it changed.
    fn compile_service(&mut self, name: ServiceRef, dirty: &mut BTreeSet<SocketAddr>) {
        let old = self.services.remove(&name).unwrap_or_default();
        let variants = self.variants(&name);
        let everyone = !variants.is_empty() || self.judge.granted().backends.contains(&name);
        let captured = everyone || self.sets.keys().any(|set| set.contains(&name.namespace));
        let new = match self.world().service(&name.namespace, &name.name) {
            Some(service) if captured => {
                service::compile(self.world(), self.judge.settings(), service, &variants, everyone, &old)
            }
            _ => ServicePlan::default(),
        };
        for address in old.addresses.keys().filter(|address| !new.addresses.contains_key(address)) {
            self.share(*address, &name, None);
            dirty.insert(*address);
        }
        for (address, target) in &new.addresses {
            let same = |old: &Arc<Target>| Arc::ptr_eq(old, target);
            if old.everyone != new.everyone || !old.addresses.get(address).is_some_and(same) {
                let share = Share { service: name.clone(), target: target.clone(), everyone };
                self.share(*address, &name, Some(share));
                dirty.insert(*address);
            }
        }
        if !new.addresses.is_empty() {
            self.services.insert(name, new);
        }
    }

    /// Developers' services that stand in for a shared one.
    fn variants(&self, shared: &ServiceRef) -> Vec<Variant<'_>> {
        let developers = self.judge.developers_of(&shared.namespace);
        developers
            .filter_map(|k| {
                let pair = Pair { developer: k.clone(), shared: shared.namespace.clone() };
                let coverage = self.judge.group(&pair)?.coverage.as_ref()?;
                let service = self.world().service(k, &shared.name)?;
                (coverage.covers(&shared.name) && !service.is_external_name())
                    .then_some(Variant { service, on_unavailable: coverage.on_unavailable })
            })
            .collect()
    }

    /// Sets what a service contributes at an address.
    fn share(&mut self, address: SocketAddr, name: &ServiceRef, share: Option<Share>) {
        let shares = self.addresses.entry(address).or_default();
        let place = shares.binary_search_by(|share| share.service.cmp(name));
        match (place, share) {
            (Ok(place), Some(share)) => shares[place] = share,
            (Err(place), Some(share)) => shares.insert(place, share),
            (Ok(place), None) => drop(shares.remove(place)),
            (Err(_), None) => {}
        }
        if shares.is_empty() {
            self.addresses.remove(&address);
        }
    }

    /// Puts together what the services at an address contribute, for each set.
    fn merge_address(&mut self, address: SocketAddr, retired: &[CaptureSet], change: &mut PlanChange) {
        let shares = self.addresses.get(&address).map_or(&[][..], Vec::as_slice);
        for set in std::iter::once(&self.everyone).chain(self.sets.keys()).chain(retired) {
            let is_live = set.is_everyone() || self.sets.contains_key(set);
            let capture = Capture { set: set.clone(), address };
            match if is_live { merge(shares, set) } else { None } {
                None => {
                    if self.plan.captures.remove(&capture).is_some() {
                        change.released.push(capture);
                    }
                }
                Some(target) if self.plan.captures.get(&capture) != Some(&target) => {
                    self.plan.captures.insert(capture.clone(), target.clone());
                    change.captures.push((capture, target));
                }
                Some(_) => {}
            }
        }
    }

    fn compile_pods(&mut self, judged: Judged, change: &mut PlanChange) {
        let mut names = judged.touched.pods;
        for namespace in judged.touched.namespaces.union(&judged.developers) {
            names.extend(self.world().pods(namespace).map(|pod| pod.pod.clone()));
        }
        for name in names {
            let pod = self.world().pod(&name.namespace, &name.name);
            let new = pod.and_then(|pod| pods::compile(self.world(), pod, self.set_of(&name.namespace)));
            let old = match &new {
                Some(new) if self.plan.pods.get(&name) == Some(new) => continue,
                Some(new) => {
                    if !new.set.is_everyone() {
                        *self.sets.entry(new.set.clone()).or_default() += 1;
                    }
                    change.pods.push((name.clone(), new.clone()));
                    self.plan.pods.insert(name, new.clone())
                }
                None => {
                    let old = self.plan.pods.remove(&name);
                    change.pods_gone.extend(old.is_some().then_some(name));
                    old
                }
            };
            if let Some(old) = old
                && let Some(pods) = self.sets.get_mut(&old.set)
            {
                *pods -= 1;
                if *pods == 0 {
                    self.sets.remove(&old.set);
                }
            }
        }
    }

    /// The capture set of a namespace's pods: the shared namespaces towards which they inject.
    fn set_of(&self, namespace: &Arc<str>) -> CaptureSet {
        let injects = |pair: &&Pair| {
            let coverage = self.judge.group(pair).and_then(|group| group.coverage.as_ref());
            coverage.is_some_and(|coverage| coverage.inject == Inject::FromPods)
        };
        let set = self.judge.pairs_of(namespace).filter(injects).map(|pair| pair.shared.clone()).collect();
        // The one copy of it, which compares at once.
        self.sets.get_key_value(&set).map_or(set, |(known, _)| known.clone())
    }
}

/// What connections of a set's pods to an address mean; `None` when they are not captured. A set of its own
/// comes before everyone's, so it has all that everyone's has.
fn merge(shares: &[Share], set: &CaptureSet) -> Option<Arc<Target>> {
    let own = |share: &&Share| set.contains(&share.service.namespace);
    if !set.is_everyone() && !shares.iter().any(|share| own(&share)) {
        return None;
    }
    let mut counting = shares.iter().filter(|share| share.everyone || own(share));
    let first = counting.next()?;
    let mut rest = counting.peekable();
    if rest.peek().is_none() {
        return Some(first.target.clone());
    }
    let mut merged = Target {
        services: Vec::new(),
        reconnect: false,
        dual_stack: false,
        answered: true,
        declared: first.target.declared,
    };
    for share in std::iter::once(first).chain(rest) {
        merged.services.extend(share.target.services.iter().cloned());
        merged.reconnect |= share.target.reconnect;
        merged.dual_stack |= share.target.dual_stack;
        merged.answered &= share.target.answered;
        merged.declared = merged.declared.and(share.target.declared);
    }
    Some(Arc::new(merged))
}
