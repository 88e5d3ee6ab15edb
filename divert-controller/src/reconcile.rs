//! From what is known to what is to be written about one thing: pure, but for the clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use divert_core::api::{self, DivertStatus};
use divert_core::compile::acceptance::Group;
use divert_core::compile::{self, Condition, HostReason, RowReason, may_be_http};
use divert_core::plan::ServiceRef;
use divert_core::world::{
    DivertApi, DivertRef, ObjectKind, ObjectRef, Pair, Service, ServiceKind, ServicePort, TargetPort,
};
use divert_kubernetes::Invalid;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::conditions;
use super::events::{Event, Events};
use super::known::{Known, Original};
use super::name_status;
use super::names::{self, Action, DesiredService, Port};
use super::programmed::{self, Before, Report, Subject};

/// The port of an alias for what has none. Of a name that nobody uses: where somebody writes the Service by a client-side
/// apply, its ports are added to this one.
const NO_PORT: (u16, &str) = (80, "placeholder");

/// The reason of a Divert that says what it may not.
const INVALID: &str = "Invalid";

/// Something to be written.
#[derive(Debug)]
pub(super) enum Job {
    /// A status, and the events about what is news of it.
    Status(Box<StatusUpdate>, Vec<Event>),
    /// About an object that has no status.
    Events(Vec<Event>),
    /// In a developer's namespace.
    Name(Arc<str>, Action),
}

impl Job {
    /// What is to be published with it.
    pub(super) fn events(&self) -> Vec<Event> {
        match self {
            Self::Status(_, events) | Self::Events(events) => events.clone(),
            Self::Name(namespace, Action::Release { name, uid, .. }) => {
                vec![released(namespace, name, uid)]
            }
            Self::Name(..) => Vec::new(),
        }
    }
}

/// Says that a Service is no longer ours.
fn released(namespace: &Arc<str>, name: &str, uid: &str) -> Event {
    let about = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        namespace: Some(namespace.to_string()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    };
    let message = format!(
        "somebody else writes {namespace}/{name}, which was made so that the name resolves: it is theirs now"
    );
    Event { about, condition: Condition { kind: "Names", status: true, reason: "Released", message } }
}

/// A status to be written.
#[derive(Debug)]
pub(super) struct StatusUpdate {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    /// Of the Divert that it was made for: one by that name that was made anew has another.
    pub(super) resource_version: Option<String>,
    pub(super) status: DivertStatus,
}

/// What its author is to be told about an object.
pub(super) fn object(
    known: &mut Known,
    invalid: &BTreeMap<ObjectRef, Invalid>,
    object: &ObjectRef,
    events: &mut Events,
) -> Option<Job> {
    if object.kind == ObjectKind::Divert(DivertApi::Divert) {
        return status(known, invalid.get(object), object);
    }
    let mut about = about(object, known.diverts.get(object));
    // By which kubectl describe finds events.
    let uid = about.uid.take().or_else(|| uid(known, invalid, object));
    let news = events.untold(object, uid.as_ref(), said(known, invalid, object), Instant::now());
    about.uid = uid;
    let news: Vec<_> = news.into_iter().map(|condition| Event { about: about.clone(), condition }).collect();
    (!news.is_empty() && takes_events(known, object)).then_some(Job::Events(news))
}

fn status(known: &mut Known, invalid: Option<&Invalid>, object: &ObjectRef) -> Option<Job> {
    let divert =
        DivertRef { api: DivertApi::Divert, namespace: object.namespace.clone(), name: object.name.clone() };
    let status = match invalid {
        Some(Invalid { problem, .. }) => refused(divert, problem),
        None => known.judge.status(&divert)?,
    };
    let mut said: Vec<Condition> = status.conditions.clone();
    let mut answers = true;
    if status.accepted() {
        match programmed_condition(known, object, &status)? {
            Report::Later => return None,
            Report::Now(programmed, answered) => {
                said.push(programmed);
                answers = answered;
            }
        }
        said.extend(names_condition(known, &status));
    } else {
        known.programming.remove(object);
    }
    let original = known.diverts.get(object)?;
    let answered = original.request.as_ref().filter(|_| answers);
    let left_free = known.own_names.left_free(&object.namespace);
    let (generation, now) = (original.generation, Timestamp::now());
    let (new, news) =
        conditions::next(&original.status, generation, answered, &said, &status, left_free, now)?;
    let about = about(object, Some(original));
    let news = news.into_iter().filter(|it| takes_events(known, object) && it.reason != name_status::PENDING);
    let news = news.map(|condition| Event { about: about.clone(), condition }).collect();
    let update = StatusUpdate {
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        resource_version: original.resource_version.clone(),
        status: new,
    };
    Some(Job::Status(Box::new(update), news))
}

/// What the author of an accepted Divert is told about agents.
fn programmed_condition(
    known: &mut Known,
    object: &ObjectRef,
    status: &compile::DivertStatus,
) -> Option<Report> {
    let original = known.diverts.get(object)?;
    let pair = Pair { developer: status.divert.namespace.clone(), shared: status.shared_namespace.clone() };
    let services = status.services.iter().filter(|row| row.reason == RowReason::Ready);
    let hosts = status.hosts.iter().filter(|row| row.reason == HostReason::Ready);
    let subject = Subject {
        uid: original.uid.as_deref()?,
        generation: original.generation.unwrap_or_default(),
        pair: &pair,
        services: services.map(|row| &*row.name).collect(),
        hosts: hosts.map(|row| &*row.host).collect(),
        asked: None,
    };
    let mut conditions = original.status.conditions.iter();
    let condition = conditions.find(|it| it.type_ == programmed::KIND);
    let current = condition.filter(|it| it.observed_generation == original.generation);
    let handled = original.status.last_handled_request.as_ref();
    let before = Before {
        is_programmed: current.is_some_and(|it| it.status == "True"),
        reason: current.map(|it| it.reason.as_str()),
        message: current.map(|it| it.message.as_str()).unwrap_or_default(),
        request: original.request.as_ref().filter(|request| handled != Some(request)).map(String::as_str),
    };
    Some(known.programming.tell(object, subject, before, Instant::now()))
}

/// Of a Divert that says what it may not: nothing else is to be said.
fn refused(divert: DivertRef, problem: &str) -> compile::DivertStatus {
    let accepted =
        Condition { kind: "Accepted", status: false, reason: INVALID, message: problem.to_owned() };
    compile::DivertStatus {
        divert,
        shared_namespace: "".into(),
        conditions: vec![accepted],
        services: Vec::new(),
        hosts: Vec::new(),
    }
}

/// What the author of an accepted Divert is told about names.
pub(super) fn names_condition(known: &Known, status: &compile::DivertStatus) -> Option<Condition> {
    let pair = Pair { developer: status.divert.namespace.clone(), shared: status.shared_namespace.clone() };
    name_status::condition(known, &pair)
}

/// What is to be said about an object that has no status; nothing when all is well.
fn said(known: &Known, invalid: &BTreeMap<ObjectRef, Invalid>, object: &ObjectRef) -> Vec<Condition> {
    let no =
        |kind, reason, message: &str| Condition { kind, status: false, reason, message: message.to_owned() };
    if let Some(Invalid { problem, .. }) = invalid.get(object) {
        return vec![no("Accepted", INVALID, problem)];
    }
    match object.kind {
        ObjectKind::Divert(api) => {
            let divert = DivertRef { api, namespace: object.namespace.clone(), name: object.name.clone() };
            let status = known.judge.status(&divert);
            let said = status.iter().flat_map(|status| status.conditions.clone());
            said.filter(|it| !it.status && it.kind == "Accepted").collect()
        }
        ObjectKind::Ingress => {
            let ingresses = known.judge.ingresses();
            let ingress = ingresses
                .iter()
                .find(|it| it.ingress.namespace == object.namespace && it.ingress.name == object.name);
            let refused = ingress.iter().filter_map(|it| it.refused.as_ref());
            let refused = refused.map(|why| no("Hosts", "NotAllowed", why));
            let hosts = ingress.iter().flat_map(|it| &it.hosts).filter(|it| it.reason != HostReason::Ready);
            let hosts = hosts.map(|it| no("Hosts", conditions::host_reason(it.reason), &it.message));
            refused.chain(hosts).collect()
        }
        _ => Vec::new(),
    }
}

/// Where nothing can be created any more, an Event cannot, either.
fn takes_events(known: &Known, object: &ObjectRef) -> bool {
    known.judge.world().namespace(&object.namespace).is_some_and(|namespace| !namespace.terminating)
}

/// Of what is not a Divert that counts.
fn uid(known: &Known, invalid: &BTreeMap<ObjectRef, Invalid>, object: &ObjectRef) -> Option<String> {
    let ingresses = known.judge.world().ingresses(&object.namespace);
    let mut ingress =
        ingresses.filter(|it| object.kind == ObjectKind::Ingress && it.ingress.name == object.name);
    match invalid.get(object) {
        Some(invalid) => invalid.uid.clone(),
        None => ingress.next()?.uid.as_deref().map(str::to_owned),
    }
}

fn about(object: &ObjectRef, original: Option<&Original>) -> ObjectReference {
    let (api_version, kind) = match object.kind {
        ObjectKind::Divert(api) => (api_version(api), "Divert"),
        _ => ("networking.k8s.io/v1", "Ingress"),
    };
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(object.namespace.to_string()),
        name: Some(object.name.to_string()),
        uid: original.and_then(|it| it.uid.clone()),
        resource_version: original.and_then(|it| it.resource_version.clone()),
        ..ObjectReference::default()
    }
}

fn api_version(api: DivertApi) -> &'static str {
    match api {
        DivertApi::Divert => api::DIVERT_API,
        DivertApi::Okteto => api::OKTETO_API,
    }
}

/// What is to be done about a name in a developer's namespace.
pub(super) fn name(known: &Known, namespace: &Arc<str>, name: &Arc<str>) -> Option<Job> {
    let world = known.judge.world();
    // In one that is on its way out nothing is written.
    world.namespace(namespace).filter(|it| !it.terminating)?;
    let desired = desired(known, namespace, name);
    let existing = known.names.get(&(namespace.clone(), name.clone()));
    let action = names::action(name, desired.as_ref(), existing)?;
    Some(Job::Name(namespace.clone(), action))
}

/// What a name in a developer's namespace is to resolve to, if at all.
pub(super) fn desired(known: &Known, namespace: &Arc<str>, name: &Arc<str>) -> Option<DesiredService> {
    let pair = known.desired_names.as_ref()?.pair(&known.judge, namespace, name)?;
    let shared = known.judge.world().service(&pair.shared, name)?;
    let owners = owners(known, known.judge.group(pair)?);
    if owners.is_empty() {
        return None;
    }
    let settings = known.judge.settings();
    let (http, others): (Vec<_>, Vec<_>) = shared.ports.iter().partition(|port| may_be_http(settings, port));
    let ports = if http.is_empty() { others } else { http };
    let mut ports: Vec<_> = ports.into_iter().map(|port| alias_port(shared, port)).collect();
    // There are policies that want every Service to have a port.
    if ports.is_empty() {
        let (number, name) = NO_PORT;
        ports.push(Port { number, name: name.to_owned(), target: number });
    }
    let external_name = external_name(known, shared);
    Some(DesiredService { external_name, shared: pair.shared.to_string(), ports, owners })
}

/// A port of what a name is to stand for. One that leads to a cluster IP is connected to as it is. Which number a named
/// port of pods has, each pod says for itself.
fn alias_port(shared: &Service, port: &ServicePort) -> Port {
    let number = port.number;
    let target = match (&shared.kind, &port.target) {
        (ServiceKind::Headless | ServiceKind::ExternalName(_), TargetPort::Number(target)) => *target,
        _ => number,
    };
    Port { number, name: port.name.to_string(), target }
}

/// What a name is to stand for.
pub(super) fn external_name(known: &Known, shared: &Service) -> String {
    let ServiceRef { namespace, name } = &shared.service;
    match &shared.kind {
        ServiceKind::ExternalName(target) => target.to_string(),
        _ => format!("{name}.{namespace}.svc.{}", known.judge.settings().cluster_domain),
    }
}

fn owners(known: &Known, group: &Group) -> Vec<OwnerReference> {
    let accepted = group.verdicts.iter().filter(|(_, verdict)| verdict.is_ok());
    let owner = |(divert, _): &(DivertRef, _)| {
        let original = known.diverts.get(&divert.into())?;
        Some(OwnerReference {
            api_version: api_version(divert.api).to_owned(),
            kind: "Divert".to_owned(),
            name: divert.name.to_string(),
            uid: original.uid.clone()?,
            ..OwnerReference::default()
        })
    };
    accepted.filter_map(owner).collect()
}
