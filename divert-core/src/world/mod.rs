//! What exists: the objects that decide who goes where, reduced to the fields that matter for it.
//!
//! A source (files, or watches of a cluster) feeds changes of one object each, in any order: an
//! EndpointSlice may come before its Service, a Divert before both Namespaces. The world checks nothing
//! and decides nothing; it answers questions of [`compile`](crate::compile) and says what a change touches.

mod convert;
mod holders;
mod intern;
mod matchers;
mod object;
mod route;
mod selector;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use convert::{Convert, ConvertError};
pub use object::{
    Asks, ContainerPort, Divert, DivertApi, DivertRef, Endpoint, EndpointSlice, Ingress, IngressRef,
    IngressRule, Labels, Namespace, Object, ObjectKind, ObjectRef, Pod, Published, Service, ServiceKind,
    ServicePort, SlicePort, TargetPort,
};
pub use route::{Parent, Route, RouteHost, RouteKind, RouteObject};
pub use selector::{Selector, SelectorError};

use crate::plan::{PodRef, ServiceRef};
use holders::Holders;
use intern::Interner;

/// One object came, changed or went.
#[derive(Clone, PartialEq, Debug)]
pub enum WorldChange {
    /// It exists and looks like this now.
    Upsert(Object),
    /// It is gone.
    Delete(ObjectRef),
}

/// A developer's namespace and a shared one that a Divert in it names.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Pair {
    /// k, which is the key as well.
    pub developer: Arc<str>,
    /// N.
    pub shared: Arc<str>,
}

/// What some changes may have made out of date.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Touched {
    /// Namespaces that came, went or changed labels or annotations.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Services that did, or whose endpoints did.
    pub services: BTreeSet<ServiceRef>,
    /// Of them, those that came, went or changed themselves.
    pub declared: BTreeSet<ServiceRef>,
    /// Pods that did, or whose ports did.
    pub pods: BTreeSet<PodRef>,
    /// Pairs whose Diverts did.
    pub pairs: BTreeSet<Pair>,
    /// Ingresses that came, went or changed.
    pub ingresses: BTreeSet<IngressRef>,
    /// Whether routes or gateways did, or hosts that Services publish.
    pub routes: bool,
    /// Addresses that are another Pod's than before; which services that touches, [`World::touch_endpoints`] finds out.
    addresses: HashSet<IpAddr>,
    /// Pods that have other addresses than before; likewise.
    moved: BTreeSet<PodRef>,
}

/// All objects, by namespace.
#[derive(Debug, Default)]
pub struct World {
    contents: HashMap<Arc<str>, Contents>,
    /// Diverts by the pair they are about.
    pairs: BTreeMap<Pair, BTreeSet<DivertRef>>,
    holders: Holders,
    strings: Interner,
}

/// What one namespace holds. It may hold objects before the Namespace itself is known.
#[derive(Debug, Default)]
struct Contents {
    namespace: Option<Namespace>,
    services: BTreeMap<Arc<str>, Service>,
    /// By Service, then by name of the slice.
    slices: BTreeMap<Arc<str>, BTreeMap<Arc<str>, EndpointSlice>>,
    /// The Service of each slice, by name of the slice.
    slice_service: HashMap<Arc<str>, Arc<str>>,
    pods: BTreeMap<Arc<str>, Pod>,
    ingresses: BTreeMap<Arc<str>, Ingress>,
    routes: BTreeMap<(RouteKind, Arc<str>), Route>,
    diverts: BTreeMap<DivertRef, Divert>,
}

impl Contents {
    fn is_empty(&self) -> bool {
        self.namespace.is_none()
            && self.services.is_empty()
            && self.slices.is_empty()
            && self.pods.is_empty()
            && self.ingresses.is_empty()
            && self.routes.is_empty()
            && self.diverts.is_empty()
    }
}

impl World {
    /// Takes one change and notes in `touched` what it makes out of date. A change that changes nothing
    /// touches nothing.
    pub fn apply(&mut self, change: WorldChange, touched: &mut Touched) {
        match change {
            WorldChange::Upsert(mut object) => {
                object.intern(&mut self.strings);
                match object {
                    Object::Namespace(namespace) => self.set_namespace(namespace, touched),
                    Object::Service(service) => self.set_service(service, touched),
                    Object::EndpointSlice(slice) => self.set_slice(slice, touched),
                    Object::Pod(pod) => self.set_pod(pod, touched),
                    Object::Ingress(ingress) => self.set_ingress(ingress, touched),
                    Object::Route(route) => self.set_route(route, touched),
                    Object::Divert(divert) => self.set_divert(divert, touched),
                }
            }
            WorldChange::Delete(object) => {
                self.delete(&object, touched);
                if self.contents.get(object.home()).is_some_and(Contents::is_empty) {
                    self.contents.remove(object.home());
                }
            }
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.contents.is_empty() && self.pairs.is_empty() && self.holders.is_empty()
    }

    /// The Namespace of that name.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.contents.get(name)?.namespace.as_ref()
    }

    /// The Service of that name.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.contents.get(namespace)?.services.get(name)
    }

    /// All Services of a namespace, by name.
    pub fn services(&self, namespace: &str) -> impl Iterator<Item = &Service> {
        self.contents.get(namespace).into_iter().flat_map(|contents| contents.services.values())
    }

    /// Services that publish hosts, of all namespaces, in no order.
    pub fn all_published(&self) -> impl Iterator<Item = (&Service, &Published)> {
        let services = self.contents.values().flat_map(|contents| contents.services.values());
        services.filter_map(|service| Some((service, service.published.as_deref()?)))
    }

    /// The EndpointSlices of a Service, by name.
    pub fn slices(&self, namespace: &str, service: &str) -> impl Iterator<Item = &EndpointSlice> {
        self.contents
            .get(namespace)
            .and_then(|contents| contents.slices.get(service))
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    /// The Pod of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.contents.get(namespace)?.pods.get(name)
    }

    /// All Pods of a namespace, by name.
    pub fn pods(&self, namespace: &str) -> impl Iterator<Item = &Pod> {
        self.contents.get(namespace).into_iter().flat_map(|contents| contents.pods.values())
    }

    /// The Ingresses of a namespace, by name.
    pub fn ingresses(&self, namespace: &str) -> impl Iterator<Item = &Ingress> {
        self.contents.get(namespace).into_iter().flat_map(|contents| contents.ingresses.values())
    }

    /// The Ingresses of all namespaces, in no order.
    pub fn all_ingresses(&self) -> impl Iterator<Item = &Ingress> {
        self.contents.values().flat_map(|contents| contents.ingresses.values())
    }

    /// Routes and gateways of all namespaces, in no order.
    pub fn all_routes(&self) -> impl Iterator<Item = &Route> {
        self.contents.values().flat_map(|contents| contents.routes.values())
    }

    /// A route or gateway by its kind and name.
    pub fn route(&self, kind: RouteKind, namespace: &str, name: &Arc<str>) -> Option<&Route> {
        self.contents.get(namespace)?.routes.get(&(kind, name.clone()))
    }

    /// The Divert of that name.
    pub fn divert(&self, divert: &DivertRef) -> Option<&Divert> {
        self.contents.get(&divert.namespace)?.diverts.get(divert)
    }

    /// The Diverts of a pair of namespaces, in no meaningful order.
    pub fn diverts(&self, pair: &Pair) -> impl Iterator<Item = &Divert> {
        let contents = self.contents.get(&pair.developer);
        self.pairs
            .get(pair)
            .into_iter()
            .flatten()
            .filter_map(move |divert| contents.and_then(|contents| contents.diverts.get(divert)))
    }

    /// Every object of a kind.
    pub fn references(&self, kind: ObjectKind) -> Vec<ObjectRef> {
        let mut found = Vec::new();
        for (home, contents) in &self.contents {
            let mut add = |name: &Arc<str>| {
                let namespace = if kind == ObjectKind::Namespace { "".into() } else { home.clone() };
                found.push(ObjectRef { kind, namespace, name: name.clone() });
            };
            match kind {
                ObjectKind::Namespace => contents.namespace.iter().for_each(|it| add(&it.name)),
                ObjectKind::Service => contents.services.keys().for_each(add),
                ObjectKind::EndpointSlice => contents.slice_service.keys().for_each(add),
                ObjectKind::Pod => contents.pods.keys().for_each(add),
                ObjectKind::Ingress => contents.ingresses.keys().for_each(add),
                ObjectKind::Route(kind) => {
                    let of_kind = contents.routes.keys().filter(|(it, _)| *it == kind);
                    of_kind.for_each(|(_, name)| add(name));
                }
                ObjectKind::Divert(api) => {
                    let of_api = contents.diverts.keys().filter(|it| it.api == api);
                    of_api.for_each(|it| add(&it.name));
                }
            }
        }
        found.sort();
        found
    }

    fn set_namespace(&mut self, namespace: Namespace, touched: &mut Touched) {
        let contents = self.contents.entry(namespace.name.clone()).or_default();
        if contents.namespace.as_ref() == Some(&namespace) {
            return;
        }
        touched.namespaces.insert(namespace.name.clone());
        contents.namespace = Some(namespace);
    }

    fn set_service(&mut self, service: Service, touched: &mut Touched) {
        let contents = self.contents.entry(service.service.namespace.clone()).or_default();
        let old = contents.services.get(&service.service.name);
        if old == Some(&service) {
            return;
        }
        touched.routes |= old.and_then(|old| old.published.as_ref()) != service.published.as_ref();
        if let Some(old) = old {
            touch_selected(contents, old, touched);
        }
        touch_selected(contents, &service, touched);
        touched.services.insert(service.service.clone());
        touched.declared.insert(service.service.clone());
        contents.services.insert(service.service.name.clone(), service);
    }

    fn set_slice(&mut self, slice: EndpointSlice, touched: &mut Touched) {
        let contents = self.contents.entry(slice.service.namespace.clone()).or_default();
        let service = &slice.service.name;
        if contents.slices.get(service).and_then(|slices| slices.get(&slice.name)) == Some(&slice) {
            return;
        }
        // Its label may have moved it to another Service.
        remove_slice(contents, &slice.service.namespace, &slice.name, &mut self.holders, touched);
        self.holders.set_slice(&slice, true, touched);
        touched.services.insert(slice.service.clone());
        contents.slice_service.insert(slice.name.clone(), service.clone());
        contents.slices.entry(service.clone()).or_default().insert(slice.name.clone(), slice);
    }

    fn set_pod(&mut self, pod: Pod, touched: &mut Touched) {
        let contents = self.contents.entry(pod.pod.namespace.clone()).or_default();
        if contents.pods.get(&pod.pod.name) == Some(&pod) {
            return;
        }
        touched.pods.insert(pod.pod.clone());
        self.holders.set_pod(contents.pods.get(&pod.pod.name), Some(&pod), touched);
        contents.pods.insert(pod.pod.name.clone(), pod);
    }

    fn set_ingress(&mut self, ingress: Ingress, touched: &mut Touched) {
        let contents = self.contents.entry(ingress.ingress.namespace.clone()).or_default();
        if contents.ingresses.get(&ingress.ingress.name) == Some(&ingress) {
            return;
        }
        touched.ingresses.insert(ingress.ingress.clone());
        contents.ingresses.insert(ingress.ingress.name.clone(), ingress);
    }

    fn set_route(&mut self, route: Route, touched: &mut Touched) {
        let contents = self.contents.entry(route.namespace.clone()).or_default();
        let key = (route.kind, route.name.clone());
        if contents.routes.get(&key) != Some(&route) {
            touched.routes = true;
            contents.routes.insert(key, route);
        }
    }

    fn set_divert(&mut self, divert: Divert, touched: &mut Touched) {
        let contents = self.contents.entry(divert.divert.namespace.clone()).or_default();
        if contents.diverts.get(&divert.divert) == Some(&divert) {
            return;
        }
        self.remove_divert(&divert.divert, touched);
        let pair = divert.pair();
        touched.pairs.insert(pair.clone());
        self.pairs.entry(pair).or_default().insert(divert.divert.clone());
        let contents = self.contents.entry(divert.divert.namespace.clone()).or_default();
        contents.diverts.insert(divert.divert.clone(), divert);
    }

    fn delete(&mut self, object: &ObjectRef, touched: &mut Touched) {
        let Some(contents) = self.contents.get_mut(object.home()) else { return };
        match object.kind {
            ObjectKind::Namespace => {
                if contents.namespace.take().is_some() {
                    touched.namespaces.insert(object.name.clone());
                }
            }
            ObjectKind::Service => {
                if let Some(old) = contents.services.remove(&object.name) {
                    touched.routes |= old.published.is_some();
                    touch_selected(contents, &old, touched);
                    touched.services.insert(old.service.clone());
                    touched.declared.insert(old.service);
                }
            }
            ObjectKind::EndpointSlice => {
                remove_slice(contents, &object.namespace, &object.name, &mut self.holders, touched);
            }
            ObjectKind::Pod => {
                if let Some(old) = contents.pods.remove(&object.name) {
                    self.holders.set_pod(Some(&old), None, touched);
                    touched.pods.insert(old.pod);
                }
            }
            ObjectKind::Ingress => {
                if let Some(old) = contents.ingresses.remove(&object.name) {
                    touched.ingresses.insert(old.ingress);
                }
            }
            ObjectKind::Route(kind) => {
                touched.routes |= contents.routes.remove(&(kind, object.name.clone())).is_some();
            }
            ObjectKind::Divert(api) => {
                let divert =
                    DivertRef { api, namespace: object.namespace.clone(), name: object.name.clone() };
                self.remove_divert(&divert, touched);
            }
        }
    }

    fn remove_divert(&mut self, divert: &DivertRef, touched: &mut Touched) {
        let Some(contents) = self.contents.get_mut(&divert.namespace) else { return };
        let Some(old) = contents.diverts.remove(divert) else { return };
        let pair = old.pair();
        if let Some(diverts) = self.pairs.get_mut(&pair) {
            diverts.remove(divert);
            if diverts.is_empty() {
                self.pairs.remove(&pair);
            }
        }
        touched.pairs.insert(pair);
    }
}

/// The ports that a Service targets are ports of the pods it selects.
fn touch_selected(contents: &Contents, service: &Service, touched: &mut Touched) {
    let selected = contents.pods.values().filter(|pod| service.selects(&pod.labels));
    touched.pods.extend(selected.map(|pod| pod.pod.clone()));
}

fn remove_slice(
    contents: &mut Contents,
    namespace: &Arc<str>,
    slice: &Arc<str>,
    holders: &mut Holders,
    touched: &mut Touched,
) {
    let Some(service) = contents.slice_service.remove(slice) else { return };
    if let Some(slices) = contents.slices.get_mut(&service) {
        if let Some(old) = slices.remove(slice) {
            holders.set_slice(&old, false, touched);
        }
        if slices.is_empty() {
            contents.slices.remove(&service);
        }
    }
    touched.services.insert(ServiceRef { namespace: namespace.clone(), name: service });
}
