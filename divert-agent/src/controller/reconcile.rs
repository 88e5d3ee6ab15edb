//! From the world to what is to be written: pure, but for the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use tokio::time::Instant;

use super::Known;
use super::conditions::{self, Said};
use super::names::{self, Wanted};
use super::nodes::programmed;
use crate::api::{self, DivertStatus, Names};
use crate::compile::acceptance::Group;
use crate::compile::{HostReason, may_be_http};
use crate::kubernetes::Invalid;
use crate::world::{DivertApi, DivertRef, ObjectKind, ObjectRef, Pair, ServiceKind};

/// What the operator decides.
pub(super) struct Options {
    pub(super) max_names: usize,
    /// What shows the agents.
    pub(super) see: String,
}

/// A status to be written.
pub(super) struct StatusUpdate {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: Option<String>,
    /// Of the Divert that it was made for.
    pub(super) resource_version: Option<String>,
    pub(super) status: DivertStatus,
}

/// An event to be told, once.
pub(super) struct News {
    pub(super) about: ObjectReference,
    pub(super) said: Said,
}

/// Everything to be written.
#[derive(Default)]
pub(super) struct Todo {
    pub(super) statuses: Vec<(StatusUpdate, Vec<News>)>,
    /// About objects that have no status. Told again and again, by UID and generation.
    pub(super) news: Vec<News>,
    /// By namespace.
    pub(super) names: Vec<(String, Vec<names::Action>)>,
}

/// What each developer's namespace is to have, and what each Divert is to be told about it.
struct NamesPlan {
    actions: Vec<(String, Vec<names::Action>)>,
    said: BTreeMap<Pair, Said>,
}

pub(super) fn plan(known: &mut Known, invalid: &BTreeMap<ObjectRef, Invalid>, options: &Options) -> Todo {
    let now = Instant::now();
    known.left_free.retain(|_, until| *until > now);
    let served: BTreeSet<Arc<str>> = known.pods.iter().map(|(_, node)| node.clone()).collect();
    let ready: BTreeSet<Arc<str>> = known.agents.iter().filter_map(|(_, node)| node.clone()).collect();
    let programmed = programmed(&served, &ready, &options.see);
    let names = plan_names(known, options);
    let mut todo = Todo { names: names.actions, ..Todo::default() };
    for status in known.planner.statuses() {
        let reference = reference(&status.divert);
        let Some(original) = known.diverts.get(&reference) else { continue };
        let mut said: Vec<Said> = status.conditions.iter().map(Said::from).collect();
        if status.divert.api == DivertApi::Okteto {
            said.retain(|it| !it.status && it.kind == "Accepted");
            let about = about(&status.divert.api, original);
            todo.news.extend(said.into_iter().map(|said| News { about: about.clone(), said }));
            continue;
        }
        if status.accepted() {
            said.push(programmed.clone());
            let pair =
                Pair { developer: status.divert.namespace.clone(), shared: status.shared_namespace.clone() };
            said.extend(names.said.get(&pair).cloned());
        }
        let old = original.data.get("status").cloned().unwrap_or_default();
        // Whoever spoilt it, it is written anew.
        let old: DivertStatus = serde_json::from_value(old).unwrap_or_default();
        let generation = original.metadata.generation;
        let next = conditions::next(&old, generation, &said, &status, Timestamp::now());
        let Some((new, news)) = next else { continue };
        let about = about(&status.divert.api, original);
        let news = news.into_iter().map(|said| News { about: about.clone(), said }).collect();
        let update = StatusUpdate {
            namespace: status.divert.namespace.to_string(),
            name: status.divert.name.to_string(),
            uid: original.metadata.uid.clone(),
            resource_version: original.metadata.resource_version.clone(),
            status: new,
        };
        todo.statuses.push((update, news));
    }
    for ingress in known.planner.ingresses() {
        let found = known.planner.world().ingresses(&ingress.ingress.namespace);
        let uid = found.filter(|it| it.ingress == ingress.ingress).find_map(|it| it.uid.as_deref());
        let about = ObjectReference {
            api_version: Some("networking.k8s.io/v1".to_owned()),
            kind: Some("Ingress".to_owned()),
            namespace: Some(ingress.ingress.namespace.to_string()),
            name: Some(ingress.ingress.name.to_string()),
            // By which kubectl describe finds events.
            uid: uid.map(str::to_owned),
            ..ObjectReference::default()
        };
        let said = |reason, message: &str| Said {
            kind: "Hosts",
            status: false,
            reason,
            message: message.to_owned(),
        };
        let refused = ingress.refused.iter().map(|why| said("NotAllowed", why));
        let hosts = ingress.hosts.iter().filter(|row| row.reason != HostReason::Ready);
        let hosts = hosts.map(|row| said(conditions::host_reason(row.reason), &row.message));
        todo.news.extend(refused.chain(hosts).map(|said| News { about: about.clone(), said }));
    }
    for (reference, Invalid { uid, problem }) in invalid {
        let ObjectKind::Divert(api) = reference.kind else { continue };
        let kind = "Accepted";
        let said = Said { kind, status: false, reason: "Invalid", message: problem.clone() };
        let (api_version, _) = api_of(api);
        let about = ObjectReference {
            api_version: Some(api_version.to_owned()),
            kind: Some("Divert".to_owned()),
            namespace: Some(reference.namespace.to_string()),
            name: Some(reference.name.to_string()),
            uid: uid.clone(),
            ..ObjectReference::default()
        };
        todo.news.push(News { about, said });
    }
    // Where nothing can be created any more, an Event cannot, either.
    let takes_events = |news: &News| {
        let namespace =
            news.about.namespace.as_deref().and_then(|name| known.planner.world().namespace(name));
        namespace.is_some_and(|namespace| !namespace.terminating)
    };
    todo.news.retain(takes_events);
    todo.statuses.iter_mut().for_each(|(_, news)| news.retain(takes_events));
    todo
}

fn api_of(api: DivertApi) -> (&'static str, &'static str) {
    match api {
        DivertApi::Divert => (api::DIVERT_API, "divert.dev"),
        DivertApi::Okteto => (api::OKTETO_API, "okteto.com"),
    }
}

fn reference(divert: &DivertRef) -> ObjectRef {
    ObjectRef {
        kind: ObjectKind::Divert(divert.api),
        namespace: divert.namespace.clone(),
        name: divert.name.clone(),
    }
}

fn about(api: &DivertApi, original: &DynamicObject) -> ObjectReference {
    ObjectReference {
        api_version: Some(api_of(*api).0.to_owned()),
        kind: Some("Divert".to_owned()),
        namespace: original.metadata.namespace.clone(),
        name: original.metadata.name.clone(),
        uid: original.metadata.uid.clone(),
        resource_version: original.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

fn plan_names(known: &Known, options: &Options) -> NamesPlan {
    let world = known.planner.world();
    // The pairs of each developer that want names, the oldest first.
    let mut pairs: BTreeMap<Arc<str>, Vec<(&Pair, &Group)>> = BTreeMap::new();
    for (pair, group) in known.planner.groups() {
        if group.coverage.as_ref().is_some_and(|it| it.names == Names::All) {
            pairs.entry(pair.developer.clone()).or_default().push((pair, group));
        }
    }
    let mut existing: BTreeMap<Arc<str>, BTreeMap<String, Service>> = BTreeMap::new();
    for ((namespace, name), service) in known.names.iter() {
        existing.entry(namespace.as_str().into()).or_default().insert(name.clone(), service.clone());
    }
    let mut plan = NamesPlan { actions: Vec::new(), said: BTreeMap::new() };
    let developers: BTreeSet<Arc<str>> = pairs.keys().chain(existing.keys()).cloned().collect();
    for k in developers {
        if world.namespace(&k).is_none_or(|namespace| namespace.terminating) {
            continue;
        }
        let mut groups = pairs.remove(&k).unwrap_or_default();
        groups.sort_by_key(|(pair, _)| {
            let oldest = world.diverts(pair).map(|it| (it.created, it.divert.clone())).min();
            (oldest, pair.shared.clone())
        });
        let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
        for (pair, group) in groups.iter().copied() {
            let elsewhere = want(known, pair, group, &mut wanted);
            plan.said.insert(pair.clone(), said(pair, &elsewhere));
        }
        let own = existing.remove(&k).unwrap_or_default();
        let is_left_free = |name: &str| known.left_free.contains_key(&(k.to_string(), name.to_owned()));
        let mut taken: BTreeSet<String> = world.services(&k).map(|it| it.service.name.to_string()).collect();
        taken.extend(wanted.keys().filter(|name| is_left_free(name)).cloned());
        let todo = names::plan(wanted, &own, &taken, options.max_names);
        if let Some(count) = todo.too_many {
            let message = format!(
                "{count} names of shared namespaces would have to resolve in {k}, and at most {} are made: \
                 use full names such as NAME.NAMESPACE, or set names: None",
                options.max_names
            );
            let said = Said { kind: "Names", status: false, reason: "TooMany", message };
            plan.said.extend(groups.iter().map(|(pair, _)| ((*pair).clone(), said.clone())));
        }
        if !todo.actions.is_empty() {
            plan.actions.push((k.to_string(), todo.actions));
        }
    }
    plan
}

/// Adds what a group wants; gives the names that an older group has already, with its shared namespace.
fn want(
    known: &Known,
    pair: &Pair,
    group: &Group,
    wanted: &mut BTreeMap<String, Wanted>,
) -> Vec<(String, String)> {
    let world = known.planner.world();
    let owners = owners(known, group);
    let mut elsewhere = Vec::new();
    if owners.is_empty() {
        return elsewhere;
    }
    for shared in world.services(&pair.shared) {
        let name = &shared.service.name;
        if world.service(&pair.developer, name).is_some() {
            continue;
        }
        if let Some(older) = wanted.get(&**name) {
            elsewhere.push((name.to_string(), older.shared.clone()));
            continue;
        }
        let external_name = match &shared.kind {
            ServiceKind::ExternalName(target) => target.to_string(),
            _ => format!("{name}.{}.svc.{}", pair.shared, known.planner.settings().cluster_domain),
        };
        let http = shared.ports.iter().filter(|port| may_be_http(known.planner.settings(), port));
        let ports = http.map(|port| (port.number, port.name.to_string())).collect();
        let shared = pair.shared.to_string();
        wanted.insert(name.to_string(), Wanted { external_name, shared, ports, owners: owners.clone() });
    }
    elsewhere
}

fn owners(known: &Known, group: &Group) -> Vec<OwnerReference> {
    let accepted = group.verdicts.iter().filter(|(_, verdict)| verdict.is_ok());
    let owner = |(divert, _): &(DivertRef, _)| {
        let original = known.diverts.get(&reference(divert))?;
        Some(OwnerReference {
            api_version: api_of(divert.api).0.to_owned(),
            kind: "Divert".to_owned(),
            name: divert.name.to_string(),
            uid: original.metadata.uid.clone()?,
            ..OwnerReference::default()
        })
    };
    accepted.filter_map(owner).collect()
}

fn said(pair: &Pair, elsewhere: &[(String, String)]) -> Said {
    let Pair { developer: k, shared: n } = pair;
    match elsewhere.first() {
        None => {
            let message = format!("every Service of {n} resolves in {k} by its short name");
            Said { kind: "Names", status: true, reason: "Resolve", message }
        }
        Some((name, older)) => {
            let more = match elsewhere.len() {
                1 => String::new(),
                count => format!(" (and {} more)", count - 1),
            };
            let message = format!(
                "{name}{more} resolves to {older} in {k}, whose Divert is older: use {name}.{n} for the other"
            );
            Said { kind: "Names", status: false, reason: "ResolvedElsewhere", message }
        }
    }
}
