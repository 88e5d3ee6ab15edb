//! From changes of the world to changes of the plan. Only what a change touches is compiled again: one
//! endpoint costs one service, a Divert or Namespace the services of its pairs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use super::acceptance::{self, Coverage, Group};
use super::service::{self, Rival, ServicePlan};
use super::status::{self, DivertStatus};
use super::{Settings, pods};
use crate::plan::{Capture, CaptureSet, Plan, PlanChange, ServiceRef, Target};
use crate::world::{Pair, Touched, World, WorldChange};

/// The world and the plan that follows from it.
#[derive(Debug)]
pub struct Planner {
    settings: Settings,
    world: World,
    groups: BTreeMap<Pair, Group>,
    /// The developers' namespaces of each shared one.
    developers: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Shared services that are captured.
    services: HashMap<ServiceRef, ServicePlan>,
    /// Services at each address, by name; one, but for endpoints that several Services select.
    addresses: HashMap<SocketAddr, Vec<(ServiceRef, Arc<Target>)>>,
    plan: Plan,
}

impl Planner {
    /// An empty world.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            world: World::default(),
            groups: BTreeMap::new(),
            developers: HashMap::new(),
            services: HashMap::new(),
            addresses: HashMap::new(),
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
            ..PlanChange::default()
        }
    }

    /// The pairs of namespaces that Diverts are about, judged.
    pub fn groups(&self) -> impl Iterator<Item = (&Pair, &Group)> {
        self.groups.iter()
    }

    /// What the operator decided.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What exists now.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Whether nothing is kept: what an empty world must come to.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.groups.is_empty()
            && self.developers.is_empty()
            && self.services.is_empty()
            && self.addresses.is_empty()
            && self.world.is_empty()
    }

    /// What people are told about each Divert.
    pub fn statuses(&self) -> Vec<DivertStatus> {
        let groups = self.groups.iter();
        groups.flat_map(|(pair, group)| status::of_group(&self.world, &self.settings, pair, group)).collect()
    }

    /// Takes changes of the world and says what they change in the plan. From the empty world on, the
    /// steps add up to the plan of the world as it is, in whatever order the changes came.
    pub fn update(&mut self, changes: impl IntoIterator<Item = WorldChange>) -> PlanChange {
        let mut touched = Touched::default();
        for change in changes {
            self.world.apply(change, &mut touched);
        }
        let mut stale = BTreeSet::new();
        // By the pairs of before and of after: one batch can hold a Service and the last Divert about it.
        self.mark_services(&touched, &mut stale);
        self.judge_pairs(&touched, &mut stale);
        self.mark_services(&touched, &mut stale);

        let mut change = PlanChange::default();
        let mut dirty = BTreeSet::new();
        for service in stale {
            self.compile_service(service, &mut dirty);
        }
        for address in dirty {
            self.merge_address(address, &mut change);
        }
        self.compile_pods(touched, &mut change);
        change
    }

    /// A service counts as the shared one, and as the developer's in each pair of its namespace.
    fn mark_services(&self, touched: &Touched, stale: &mut BTreeSet<ServiceRef>) {
        for service in &touched.services {
            if self.developers.contains_key(&service.namespace) {
                stale.insert(service.clone());
            }
            for pair in pairs_of(&self.groups, &service.namespace) {
                stale.insert(ServiceRef { namespace: pair.shared.clone(), name: service.name.clone() });
            }
        }
    }

    /// Judges touched pairs again, and marks the services of those that now say something else.
    fn judge_pairs(&mut self, touched: &Touched, stale: &mut BTreeSet<ServiceRef>) {
        let mut pairs = touched.pairs.clone();
        for namespace in &touched.namespaces {
            pairs.extend(pairs_of(&self.groups, namespace).cloned());
            let developers = self.developers.get(namespace).into_iter().flatten();
            pairs.extend(developers.map(|k| Pair { developer: k.clone(), shared: namespace.clone() }));
        }
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
            let coverage = new.as_ref().and_then(|group| group.coverage.clone());
            let old = match new {
                Some(group) => self.groups.insert(pair.clone(), group),
                None => self.groups.remove(&pair),
            };
            let old = old.and_then(|group| group.coverage);
            if old == coverage {
                continue;
            }
            let covered = |coverage: &Option<Coverage>, service: &str| {
                coverage.as_ref().is_some_and(|coverage| coverage.covers(service))
            };
            for service in self.world.services(&pair.developer) {
                let name = &service.service.name;
                if covered(&old, name) || covered(&coverage, name) {
                    stale.insert(ServiceRef { namespace: pair.shared.clone(), name: name.clone() });
                }
            }
        }
    }

    /// Compiles a shared service again and notes addresses whose share of it changed.
    fn compile_service(&mut self, name: ServiceRef, dirty: &mut BTreeSet<SocketAddr>) {
        let old = self.services.remove(&name).unwrap_or_default();
        let new = match self.world.service(&name.namespace, &name.name) {
            None => ServicePlan::default(),
            Some(shared) => {
                let rivals = self.rivals(&name);
                service::compile(&self.world, &self.settings, shared, &rivals, Some(&old))
            }
        };
        for address in old.addresses.keys().filter(|address| !new.addresses.contains_key(address)) {
            self.share(*address, &name, None);
            dirty.insert(*address);
        }
        for (address, target) in &new.addresses {
            if !old.addresses.get(address).is_some_and(|old| Arc::ptr_eq(old, target)) {
                self.share(*address, &name, Some(target.clone()));
                dirty.insert(*address);
            }
        }
        if !new.addresses.is_empty() {
            self.services.insert(name, new);
        }
    }

    /// Developers' services that stand in for a shared one.
    fn rivals(&self, shared: &ServiceRef) -> Vec<Rival<'_>> {
        let developers = self.developers.get(&shared.namespace).into_iter().flatten();
        developers
            .filter_map(|k| {
                let pair = Pair { developer: k.clone(), shared: shared.namespace.clone() };
                let coverage = self.groups.get(&pair)?.coverage.as_ref()?;
                let service = self.world.service(k, &shared.name)?;
                (coverage.covers(&shared.name) && !service.is_external_name())
                    .then_some(Rival { service, on_unavailable: coverage.on_unavailable })
            })
            .collect()
    }

    /// Sets what a service contributes at an address.
    fn share(&mut self, address: SocketAddr, name: &ServiceRef, target: Option<Arc<Target>>) {
        let services = self.addresses.entry(address).or_default();
        let place = services.binary_search_by(|(service, _)| service.cmp(name));
        match (place, target) {
            (Ok(place), Some(target)) => services[place].1 = target,
            (Err(place), Some(target)) => services.insert(place, (name.clone(), target)),
            (Ok(place), None) => drop(services.remove(place)),
            (Err(_), None) => {}
        }
        if services.is_empty() {
            self.addresses.remove(&address);
        }
    }

    /// Puts together what the services at an address contribute.
    fn merge_address(&mut self, address: SocketAddr, change: &mut PlanChange) {
        let capture = Capture { set: CaptureSet::default(), address };
        let target = match self.addresses.get(&address).map(Vec::as_slice) {
            None | Some([]) => {
                if self.plan.captures.remove(&capture).is_some() {
                    change.released.push(capture);
                }
                return;
            }
            Some([(_, target)]) => target.clone(),
            Some(several) => Arc::new(Target {
                services: several.iter().flat_map(|(_, target)| target.services.clone()).collect(),
            }),
        };
        if self.plan.captures.get(&capture) != Some(&target) {
            self.plan.captures.insert(capture.clone(), target.clone());
            change.captures.push((capture, target));
        }
    }

    fn compile_pods(&mut self, touched: Touched, change: &mut PlanChange) {
        let mut names = touched.pods;
        for namespace in &touched.namespaces {
            names.extend(self.world.pods(namespace).map(|pod| pod.pod.clone()));
        }
        for name in names {
            let pod = self.world.pod(&name.namespace, &name.name);
            match pod.and_then(|pod| pods::compile(&self.world, pod)) {
                Some(new) if self.plan.pods.get(&name) != Some(&new) => {
                    self.plan.pods.insert(name.clone(), new.clone());
                    change.pods.push((name, new));
                }
                Some(_) => {}
                None => {
                    if self.plan.pods.remove(&name).is_some() {
                        change.pods_gone.push(name);
                    }
                }
            }
        }
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
