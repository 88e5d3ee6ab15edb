//! What is known, and what of it a change makes worth another look: pure, but for the clock.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use divert_core::api::{self, DivertStatus};
use divert_core::compile::names::wants_names;
use divert_core::compile::{Judge, Judged, Settings, namespace_allows_capture};
use divert_core::world::{Asks, DivertApi, DivertRef, IngressRef, ObjectKind, ObjectRef, Pair, WorldChange};
use divert_kubernetes::source::Batch;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::DynamicObject;
use kube::runtime::watcher::Event;
use tokio::time::Instant;

use super::agents::{Question, Reply};
use super::cache::{BriefPod, Cache, Key};
use super::desired_names::{DesiredNames, Updated};
use super::existing::Existing;
use super::nodes::Affected;
use super::own_names::OwnNames;
use super::programmed::Programming;
use super::reconcile::Job;
use super::retries::{Refusal, Retries};
use super::workqueue::Item;

/// Names that are made or refused are told of together.
const TELL_OF_NAMES: Duration = Duration::from_millis(500);
/// Before a name that is to resolve is told to be on its way: mostly it is there by then.
const PENDING: Duration = Duration::from_secs(2);

/// What the watches beside the world's say.
pub(super) enum Change {
    Name(Box<Event<Service>>),
    Pod(Event<BriefPod>),
    Agent(Event<BriefPod>),
}

/// What is to be looked at, and how much later than at once.
pub(super) type Items = Vec<(Item, Duration)>;

/// A Divert as it is in the cluster.
#[derive(Debug)]
pub(super) struct Original {
    pub(super) uid: Option<String>,
    pub(super) resource_version: Option<String>,
    pub(super) generation: Option<i64>,
    is_going: bool,
    /// What somebody waits for an answer to.
    pub(super) request: Option<String>,
    pub(super) status: DivertStatus,
}

impl Original {
    pub(super) fn new(object: DynamicObject) -> Self {
        let status = object.data.get("status").cloned().unwrap_or_default();
        let mut annotations = object.metadata.annotations.unwrap_or_default();
        Self {
            uid: object.metadata.uid,
            resource_version: object.metadata.resource_version,
            generation: object.metadata.generation,
            is_going: object.metadata.deletion_timestamp.is_some(),
            request: annotations.remove(api::REQUESTED_AT),
            // Whoever spoilt it, it is written anew.
            status: serde_json::from_value(status).unwrap_or_default(),
        }
    }
}

/// What is known.
pub(super) struct Known {
    pub(super) judge: Judge,
    pub(super) diverts: HashMap<ObjectRef, Original>,
    /// Services that bear our label.
    pub(super) names: Cache<Existing>,
    pub(super) programming: Programming,
    /// While we lead.
    pub(super) desired_names: Option<DesiredNames>,
    /// What the API server did not take.
    pub(super) retries: Retries,
    /// UIDs of Services that we delete or release: who else takes one away wants its name.
    pub(super) let_go: HashSet<String>,
    /// Names that somebody else took away, and until when they are left free.
    left_free: HashMap<Key, Instant>,
    /// For how long.
    free_for: Duration,
    /// Names that are left free for good.
    pub(super) own_names: OwnNames,
}

impl Known {
    pub(super) fn new(settings: Settings, programming: Programming, free_for: Duration) -> Self {
        Self {
            judge: Judge::new(settings),
            diverts: HashMap::new(),
            names: Cache::default(),
            programming,
            desired_names: None,
            retries: Retries::default(),
            let_go: HashSet::new(),
            left_free: HashMap::new(),
            free_for,
            own_names: OwnNames::default(),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.names.is_synced() && self.programming.nodes.is_synced()
    }

    /// Begins to lead: everything is to be looked at.
    pub(super) fn begin(&mut self, max_names: usize) -> Items {
        self.desired_names = Some(DesiredNames::new(max_names));
        self.programming.begin(Instant::now());
        self.retries = Retries::default();
        let mut items: Items =
            self.diverts.keys().map(|it| (Item::Object(it.clone()), Duration::ZERO)).collect();
        self.add_ingresses(&mut items);
        let wanting = self.judge.groups().map(|(pair, _)| pair.developer.clone());
        let having = self.names.keys().map(|(namespace, _)| namespace.clone());
        let namespaces: BTreeSet<_> = wanting.chain(having).collect();
        for namespace in namespaces {
            self.rebuild(&namespace, &mut items);
        }
        items
    }

    /// Takes what the world's watches say.
    pub(super) fn take_world(&mut self, batch: Batch) -> Items {
        let mut items = Items::new();
        let mut add = |object| items.push((Item::Object(object), Duration::ZERO));
        let mut gone = Vec::new();
        for change in &batch.changes {
            let WorldChange::Delete(object) = change else { continue };
            match object.kind {
                ObjectKind::Divert(_) => {
                    self.diverts.remove(object);
                    self.programming.remove(object);
                    // One that only became invalid comes again below, with what its status says.
                    if !self.diverts.keys().any(|other| other.namespace == object.namespace) {
                        self.own_names.forget(&object.namespace);
                    }
                    add(object.clone());
                }
                ObjectKind::Service => {
                    let is_there = self.judge.world().service(&object.namespace, &object.name).is_some();
                    gone.extend(is_there.then(|| (object.namespace.clone(), object.name.clone())));
                }
                _ => {}
            }
        }
        for (object, original) in batch.originals {
            add(object.clone());
            let original = Original::new(*original);
            let before = self.diverts.get(&object);
            let is_same = |before: &Original| {
                (&before.uid, before.generation, &before.request)
                    == (&original.uid, original.generation, &original.request)
            };
            if !before.is_some_and(is_same) {
                self.programming.urge(Instant::now());
            }
            self.own_names.recall(&object.namespace, &original.status.left_free);
            self.diverts.insert(object, original);
        }
        let judged = self.judge.update(batch.changes);
        for key in gone {
            self.make_room(&key.0, &mut items);
            self.leave_free(key);
        }
        for namespace in &judged.touched.namespaces {
            self.retries.forget(namespace);
        }
        for namespace in &judged.touched.namespaces {
            let known = self.judge.world().namespace(namespace);
            let allows_capture = known.is_none_or(namespace_allows_capture);
            let nodes = &mut self.programming.nodes;
            let affected = nodes.take_namespace(namespace, allows_capture, Instant::now());
            self.add_affected(&affected, &mut items);
        }
        self.add_judged(&judged, &mut items);
        items
    }

    /// Takes what another watch says.
    pub(super) fn take(&mut self, change: Change) -> Items {
        let mut items = Items::new();
        let now = Instant::now();
        let affected = match change {
            Change::Pod(event) => self.programming.nodes.take_pod(event, now),
            Change::Agent(event) => self.programming.nodes.take_agent(event, now),
            Change::Name(event) => {
                for (key, before) in self.names.take(*event, |it| Some(Existing::new(it))) {
                    self.take_name(&key, before.as_ref(), &mut items);
                }
                Affected::default()
            }
        };
        self.add_affected(&affected, &mut items);
        items
    }

    /// A Service that bears our label came, went or changed.
    fn take_name(&mut self, key: &Key, before: Option<&Existing>, items: &mut Items) {
        let after = self.names.get(key);
        if Existing::is_told_alike(before, after) {
            self.look(&key.0, &key.1, items);
            return;
        }
        if let (Some(before), None) = (before, after) {
            self.make_room(&key.0, items);
            if !self.let_go.remove(before.uid())
                // Not by the garbage collector either, after the Divert that it was for.
                && before.diverts().any(|owner| self.is_live(&key.0, owner))
            {
                self.leave_free(key.clone());
            }
        }
        self.look(&key.0, &key.1, items);
        self.add_names(&key.0, TELL_OF_NAMES, items);
    }

    /// What is said of names in a namespace may be something else.
    fn add_names(&self, namespace: &Arc<str>, delay: Duration, items: &mut Items) {
        let diverts = self.judge.pairs_of(namespace).flat_map(|pair| self.judge.world().diverts(pair));
        items.extend(diverts.map(|it| (Item::Object((&it.divert).into()), delay)));
    }

    /// A write came to nothing. Gives when it is tried again, whether that is worth a line in the log, and what is to
    /// be looked at.
    pub(super) fn take_failure(
        &mut self,
        item: &Item,
        job: &Job,
        refusal: Option<Refusal>,
        now: Instant,
    ) -> (Instant, bool, Items) {
        let mut items = Items::new();
        let (again, is_news) = self.retries.failed(item, job, refusal, now);
        if let Item::Name { namespace, .. } = item {
            self.add_names(namespace, TELL_OF_NAMES, &mut items);
        }
        (again, is_news, items)
    }

    /// Where a quota let nothing more be made, there may be room again.
    fn make_room(&mut self, namespace: &Arc<str>, items: &mut Items) {
        let Some(delay) = self.retries.make_room(namespace, Instant::now()) else { return };
        let names = self.desired_names.iter().flat_map(|desired_names| desired_names.names(namespace));
        let item = |name: &Arc<str>| Item::Name { namespace: namespace.clone(), name: name.clone() };
        items.extend(names.map(|name| (item(name), delay)));
    }

    /// Takes what came of a question to an agent.
    pub(super) fn answered(&mut self, question: &Question, reply: Reply) -> Items {
        let mut items = Items::new();
        let affected = self.programming.nodes.answered(question, reply, Instant::now());
        self.add_affected(&affected, &mut items);
        // Also that it has nothing new is an answer.
        let waiting = self.programming.waiting().into_iter();
        items.extend(waiting.map(|it| (Item::Object(it), Duration::ZERO)));
        items
    }

    fn add_affected(&self, affected: &Affected, items: &mut Items) {
        if *affected == Affected::default() {
            return;
        }
        let is_turned = |(object, original): &(&ObjectRef, &Original)| {
            affected.all
                || original.uid.as_ref().is_some_and(|uid| affected.diverts.contains(uid))
                || affected.namespaces.contains(&object.namespace)
                || self.shared_of(object).is_some_and(|shared| affected.namespaces.contains(shared))
        };
        let diverts = self.diverts.iter().filter(is_turned);
        items.extend(diverts.map(|(object, _)| (Item::Object(object.clone()), Duration::ZERO)));
    }

    /// The namespace that a Divert names as shared.
    fn shared_of(&self, object: &ObjectRef) -> Option<&Arc<str>> {
        let ObjectKind::Divert(api) = object.kind else { return None };
        let (namespace, name) = (object.namespace.clone(), object.name.clone());
        let divert = self.judge.world().divert(&DivertRef { api, namespace, name })?;
        Some(&divert.shared)
    }

    /// Ends the time of names that were left free.
    pub(super) fn take_time(&mut self, now: Instant) -> Items {
        let mut over = Vec::new();
        self.left_free.retain(|key, until| {
            let stays = *until > now;
            over.extend((!stays).then(|| key.clone()));
            stays
        });
        let mut items = Items::new();
        for (namespace, name) in over {
            self.look(&namespace, &name, &mut items);
        }
        items
    }

    /// When there is something for [`Self::take_time`].
    pub(super) fn wake(&self) -> Option<Instant> {
        self.left_free.values().min().copied()
    }

    fn leave_free(&mut self, key: Key) {
        let wants = |pair| self.judge.group(pair).is_some_and(wants_names);
        let desired = self.judge.pairs_of(&key.0).any(wants);
        if desired {
            self.left_free.insert(key, Instant::now() + self.free_for);
        }
    }

    fn is_live(&self, namespace: &Arc<str>, owner: &OwnerReference) -> bool {
        let api = if owner.api_version == api::DIVERT_API { DivertApi::Divert } else { DivertApi::Okteto };
        let name = owner.name.as_str().into();
        let object = ObjectRef { kind: ObjectKind::Divert(api), namespace: namespace.clone(), name };
        self.diverts.get(&object).is_some_and(|it| !it.is_going && it.uid.as_ref() == Some(&owner.uid))
    }

    fn add_judged(&mut self, judged: &Judged, items: &mut Items) {
        for divert in &judged.hosts {
            items.push((Item::Object(divert.into()), Duration::ZERO));
        }
        if judged.ingresses {
            self.add_ingresses(items);
        }
        items.extend(judged.touched.ingresses.iter().map(tell_ingress));
        let mut namespaces: BTreeSet<Arc<str>> = judged.touched.namespaces.clone();
        for pair in &judged.pairs {
            self.add_pair(pair, items);
            namespaces.insert(pair.developer.clone());
        }
        for namespace in &namespaces {
            self.rebuild(namespace, items);
        }
        // Endpoints matter where they are a developer's own: of the shared Service, only what it declares is told.
        for service in &judged.touched.services {
            for pair in self.judge.pairs_of(&service.namespace) {
                self.add_pair(pair, items);
            }
        }
        let mut names = BTreeSet::new();
        for service in &judged.touched.declared {
            for pair in self.judge.pairs_of(&service.namespace) {
                names.insert((pair.developer.clone(), &service.name));
            }
            for k in self.judge.developers_of(&service.namespace) {
                let pair = Pair { developer: k.clone(), shared: service.namespace.clone() };
                if self.is_row(&pair, &service.name) {
                    self.add_pair(&pair, items);
                }
                names.insert((k.clone(), &service.name));
            }
        }
        for (namespace, name) in names {
            self.look(&namespace, name, items);
        }
    }

    /// Whether a Service of a shared namespace has a row in the status of a Divert of the pair.
    fn is_row(&self, pair: &Pair, service: &str) -> bool {
        let world = self.judge.world();
        world.service(&pair.developer, service).is_some()
            || world.diverts(pair).any(|divert| match &divert.asks {
                Asks::Divert { services, .. } => services.iter().flatten().any(|it| **it == *service),
                Asks::Okteto { .. } => false,
            })
    }

    fn add_pair(&self, pair: &Pair, items: &mut Items) {
        let diverts = self.judge.world().diverts(pair);
        items.extend(diverts.map(|it| (Item::Object((&it.divert).into()), Duration::ZERO)));
    }

    fn add_ingresses(&self, items: &mut Items) {
        items.extend(self.judge.ingresses().iter().map(|it| tell_ingress(&it.ingress)));
    }

    /// What is desired in a namespace may be altogether different.
    fn rebuild(&mut self, namespace: &Arc<str>, items: &mut Items) {
        let Some(desired_names) = &mut self.desired_names else { return };
        self.own_names.look_at_all(&self.judge, namespace);
        let (free, own) = (&self.left_free, self.own_names.of(&self.judge, namespace));
        let is_free =
            |namespace: &Arc<str>, name: &Arc<str>| own.contains(name) || is_left_free(free, namespace, name);
        let mut names = desired_names.rebuild(&self.judge, namespace, is_free);
        if !desired_names.has(namespace) {
            self.left_free.retain(|(its, _), _| its != namespace);
            self.retries.forget(namespace);
        }
        names.extend(self.names.of(namespace).map(|(name, _)| name.clone()));
        let item = |name| (Item::Name { namespace: namespace.clone(), name }, Duration::ZERO);
        items.extend(names.into_iter().map(item));
        for pair in self.judge.pairs_of(namespace) {
            self.add_pair(pair, items);
        }
    }

    /// Somebody did something about a name.
    fn look(&mut self, namespace: &Arc<str>, name: &Arc<str>, items: &mut Items) {
        let Some(desired_names) = &mut self.desired_names else { return };
        self.own_names.look(&self.judge, namespace, name);
        let (free, is_own) = (&self.left_free, self.own_names.has(&self.judge, namespace, name));
        let is_free = |namespace: &Arc<str>, name: &Arc<str>| is_own || is_left_free(free, namespace, name);
        let Updated { names, told, changed } = desired_names.look(&self.judge, namespace, name, is_free);
        let item = |name| (Item::Name { namespace: namespace.clone(), name }, Duration::ZERO);
        items.extend(names.into_iter().map(item));
        if told || changed || is_own {
            self.add_names(namespace, if told { Duration::ZERO } else { PENDING }, items);
        }
    }
}

fn tell_ingress(ingress: &IngressRef) -> (Item, Duration) {
    let IngressRef { namespace, name } = ingress.clone();
    (Item::Object(ObjectRef { kind: ObjectKind::Ingress, namespace, name }), Duration::ZERO)
}

fn is_left_free(free: &HashMap<Key, Instant>, namespace: &Arc<str>, name: &Arc<str>) -> bool {
    !free.is_empty() && free.contains_key(&(namespace.clone(), name.clone()))
}
