//! Granted hosts: whose key the requests for a host get, and which services are captured for that.
//!
//! Which host may be whose, `host_rules` says.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::Settings;
use super::acceptance::Group;
use super::host_rules::{Allowed, Rules};
use super::names::{MAX_ALIASES, service_of_name, wants_names};
use super::served::{Backends, Served};
use crate::api;
use crate::plan::{Grant, Hosts, ServiceRef};
use crate::world::{Asks, Divert, DivertRef, Ingress, IngressRef, Pair, ServiceKind, World};

/// State of a host that a Divert or an annotated Ingress asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum HostReason {
    /// Requests for it get the key.
    Ready,
    /// Nothing says that the namespace may have it, or it is nobody's.
    NotAllowed,
    /// It is another namespace's.
    TakenBy,
    /// No Ingress names it: only services captured for other reasons see its requests.
    NoRoute,
}

impl HostReason {
    /// As it is written in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::NotAllowed => "NotAllowed",
            Self::TakenBy => "TakenBy",
            Self::NoRoute => "NoRoute",
        }
    }
}

impl fmt::Display for HostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A host that a Divert or an annotated Ingress asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct HostRow {
    /// As written.
    pub host: Arc<str>,
    /// In one word.
    pub reason: HostReason,
    /// A sentence that names the objects and says what to do; empty when ready.
    pub message: String,
}

/// What the author of an annotated Ingress is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct IngressStatus {
    /// Which.
    pub ingress: IngressRef,
    /// Why its annotation counts for nothing, and what to do about it.
    pub refused: Option<String>,
    /// In the order written; empty when it is refused.
    pub hosts: Vec<HostRow>,
}

/// All that follows from hosts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Granted {
    /// By host.
    pub(super) hosts: Arc<Hosts>,
    /// Services that are captured for everyone to give requests for these hosts their key.
    pub(super) backends: BTreeSet<ServiceRef>,
    /// Services that were looked at on the way there, aliases among them.
    pub(super) followed: BTreeSet<ServiceRef>,
    /// Rows of each accepted Divert that asks for hosts.
    pub(super) rows: BTreeMap<DivertRef, Vec<HostRow>>,
    /// Each annotated Ingress, by name.
    pub(super) ingresses: Vec<IngressStatus>,
}

/// Somebody's claim to a host.
struct Ask<'a> {
    source: Source<'a>,
    /// As written.
    host: Arc<str>,
    developer: &'a Arc<str>,
    /// Namespaces to whose services the grant would extend.
    shared: Vec<&'a Arc<str>>,
    /// The oldest Divert behind it.
    age: Age<'a>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source<'a> {
    Divert(&'a DivertRef),
    /// By its place among the annotated ones.
    Ingress(usize),
}

/// A missing timestamp, `None`, sorts first.
type Age<'a> = (Option<Timestamp>, &'a DivertRef);

/// An allowed claim.
struct Candidate<'a> {
    developer: &'a Arc<str>,
    shared: Vec<&'a Arc<str>>,
    age: Age<'a>,
}

impl Candidate<'_> {
    /// The longer name first: `movies-web-alice` is a host of `web-alice` before it is one of `alice`.
    fn rank(&self) -> impl Ord {
        (Reverse(self.developer.len()), self.age, self.developer)
    }
}

/// Grants hosts.
pub(super) fn grant(world: &World, settings: &Settings, groups: &BTreeMap<Pair, Group>) -> Granted {
    let mut ingresses = Vec::new();
    let mut asks = asks_of_diverts(world, groups);
    asks_of_ingresses(world, groups, &mut asks, &mut ingresses);
    if asks.is_empty() {
        return Granted { ingresses, ..Granted::default() };
    }
    let served = Served::new(world);
    let rules = Rules { world, settings, served: &served };
    let mut followed = BTreeSet::new();
    let verdicts: Vec<_> =
        asks.iter().map(|ask| rules.allow(ask.developer, &ask.shared, &ask.host, &mut followed)).collect();

    let mut candidates: BTreeMap<Arc<str>, Vec<Candidate<'_>>> = BTreeMap::new();
    for (ask, verdict) in asks.iter().zip(&verdicts) {
        if let Ok(Allowed { host, shared }) = verdict {
            let candidate = Candidate { developer: ask.developer, shared: shared.clone(), age: ask.age };
            candidates.entry(host.clone()).or_default().push(candidate);
        }
    }
    let hosts: Hosts = candidates
        .into_iter()
        .filter_map(|(host, candidates)| {
            let key = candidates.iter().min_by_key(|candidate| candidate.rank())?.developer;
            let own = candidates.iter().filter(|candidate| candidate.developer == key);
            let shared = own.flat_map(|candidate| candidate.shared.iter().copied().cloned()).collect();
            Some((host, Grant { key: key.clone(), shared }))
        })
        .collect();

    let mut routes = Routes { world, settings, groups, served: &served, backends: BTreeSet::new(), followed };
    let mut alike: HashMap<&Grant, Vec<&Arc<str>>> = HashMap::new();
    for (host, grant) in hosts.iter() {
        alike.entry(grant).or_default().push(host);
    }
    let mut routed = HashSet::new();
    for (grant, hosts) in alike {
        let mut followed = Followed::default();
        routed.extend(hosts.into_iter().filter(|host| routes.follow(host, grant, &mut followed)));
    }

    let mut rows: BTreeMap<DivertRef, Vec<HostRow>> = BTreeMap::new();
    for (ask, verdict) in asks.iter().zip(verdicts) {
        let (reason, message) = match verdict {
            Err(why) => (HostReason::NotAllowed, why),
            Ok(Allowed { host, .. }) => judge(ask.developer, &host, &hosts, routed.contains(&host)),
        };
        let row = HostRow { host: ask.host.clone(), reason, message };
        match ask.source {
            Source::Divert(divert) => rows.entry(divert.clone()).or_default().push(row),
            Source::Ingress(place) => ingresses[place].hosts.push(row),
        }
    }
    let Routes { backends, followed, .. } = routes;
    Granted { hosts: Arc::new(hosts), backends, followed, rows, ingresses }
}

/// What becomes of a host that its namespace may have.
fn judge(developer: &str, host: &str, hosts: &Hosts, routed: bool) -> (HostReason, String) {
    match hosts.get(host) {
        Some(grant) if *grant.key != *developer => {
            let message = format!(
                "{host} is given to {}, whose name is longer or whose Divert is older: choose another host",
                grant.key
            );
            (HostReason::TakenBy, message)
        }
        _ if routed => (HostReason::Ready, String::new()),
        _ => {
            let message = format!(
                "no Ingress of {developer} or of its shared namespace serves {host}, so its requests are seen \
                 only on the way to diverted services: add an Ingress for it"
            );
            (HostReason::NoRoute, message)
        }
    }
}

fn asks_of_diverts<'a>(world: &'a World, groups: &'a BTreeMap<Pair, Group>) -> Vec<Ask<'a>> {
    let mut asks = Vec::new();
    for (pair, group) in groups {
        let accepted = |divert: &&Divert| group.accepts(&divert.divert);
        for divert in world.diverts(pair).filter(accepted) {
            let Asks::Divert { hosts, .. } = &divert.asks else { continue };
            asks.extend(hosts.iter().map(|host| Ask {
                source: Source::Divert(&divert.divert),
                host: host.clone(),
                developer: &pair.developer,
                shared: vec![&pair.shared],
                age: (divert.created, &divert.divert),
            }));
        }
    }
    asks
}

/// Claims of Ingresses with the annotation of okteto, and a status for each of those.
fn asks_of_ingresses<'a>(
    world: &'a World,
    groups: &'a BTreeMap<Pair, Group>,
    asks: &mut Vec<Ask<'a>>,
    statuses: &mut Vec<IngressStatus>,
) {
    let mut annotated: Vec<(&Ingress, &Arc<str>)> =
        world.all_ingresses().filter_map(|ingress| Some((ingress, ingress.header.as_ref()?))).collect();
    annotated.sort_by_key(|(ingress, _)| &ingress.ingress);
    if annotated.is_empty() {
        return;
    }
    let mut of_developers: HashMap<&Arc<str>, Vec<(Age<'_>, &Arc<str>)>> = HashMap::new();
    for (pair, group) in groups {
        let accepted = world.diverts(pair).filter(|divert| group.accepts(&divert.divert));
        let diverts = accepted.map(|divert| ((divert.created, &divert.divert), &pair.shared));
        of_developers.entry(&pair.developer).or_default().extend(diverts);
    }
    of_developers.values_mut().for_each(|diverts| diverts.sort());
    for (place, (ingress, key)) in annotated.into_iter().enumerate() {
        let namespace = &ingress.ingress.namespace;
        let diverts = of_developers.get(namespace).map_or(&[][..], Vec::as_slice);
        let mut hosts: Vec<_> = ingress.rules.iter().filter_map(|rule| rule.host.as_ref()).collect();
        hosts.sort();
        hosts.dedup();
        let refused = match diverts.first() {
            _ if key != namespace => Some(format!(
                "its annotation {annotation} is {key}, but its namespace is {namespace}: nobody gives requests \
                 another's key; write {namespace} or take the annotation away",
                annotation = api::OKTETO_HEADER
            )),
            None => Some(format!(
                "its annotation {annotation} counts for nothing, as no Divert in {namespace} is accepted",
                annotation = api::OKTETO_HEADER
            )),
            Some(_) if hosts.is_empty() => Some(format!(
                "its annotation {annotation} counts for nothing, as it names no host by which to tell the requests \
                 of {namespace} from others': give its rules a host",
                annotation = api::OKTETO_HEADER
            )),
            Some(_) => None,
        };
        if let (None, Some((age, _))) = (&refused, diverts.first()) {
            let mut shared: Vec<_> = diverts.iter().map(|(_, shared)| *shared).collect();
            shared.sort();
            shared.dedup();
            asks.extend(hosts.into_iter().map(|host| Ask {
                source: Source::Ingress(place),
                host: host.clone(),
                developer: namespace,
                shared: shared.clone(),
                age: *age,
            }));
        }
        statuses.push(IngressStatus { ingress: ingress.ingress.clone(), refused, hosts: Vec::new() });
    }
}

/// Finds the services behind hosts.
struct Routes<'a> {
    world: &'a World,
    settings: &'a Settings,
    groups: &'a BTreeMap<Pair, Group>,
    served: &'a Served<'a>,
    backends: BTreeSet<ServiceRef>,
    followed: BTreeSet<ServiceRef>,
}

/// What has been followed for the hosts of one grant, which have most of it in common.
#[derive(Default)]
struct Followed<'a> {
    /// Lists of Services behind wildcards and rules without a host, by where they are.
    lists: HashSet<*const &'a Arc<str>>,
    services: HashSet<(&'a str, &'a str)>,
}

impl<'a> Routes<'a> {
    /// Notes what requests for a host may come to, and says whether any Ingress serves it.
    fn follow(&mut self, host: &str, grant: &'a Grant, followed: &mut Followed<'a>) -> bool {
        let mut is_served = false;
        let served = self.served;
        for namespace in std::iter::once(&grant.key).chain(&grant.shared) {
            let Backends { exact, shared } = served.backends(namespace, host);
            is_served |= exact.is_some() || shared.iter().any(Option::is_some);
            let unseen = shared.into_iter().flatten().filter(|list| followed.lists.insert(list.as_ptr()));
            let lists: Vec<_> = exact.into_iter().chain(unseen).collect();
            for name in lists.into_iter().flatten() {
                if followed.services.insert((namespace, name)) {
                    let service = ServiceRef { namespace: namespace.clone(), name: (*name).clone() };
                    for alias in self.made_aliases(&service, grant) {
                        self.follow_service(alias, grant);
                    }
                    self.follow_service(service, grant);
                }
            }
        }
        is_served
    }

    /// What a name that k lacks is made to stand for. The Services that the controller makes for that are not
    /// watched: they follow from what is.
    fn made_aliases(&self, service: &ServiceRef, grant: &Grant) -> Vec<ServiceRef> {
        if service.namespace != grant.key || self.world.service(&grant.key, &service.name).is_some() {
            return Vec::new();
        }
        let resolves = |shared: &&Arc<str>| {
            let pair = Pair { developer: grant.key.clone(), shared: (*shared).clone() };
            self.groups.get(&pair).is_some_and(wants_names)
        };
        let shared = grant.shared.iter().filter(resolves);
        shared
            .map(|namespace| ServiceRef { namespace: namespace.clone(), name: service.name.clone() })
            .collect()
    }

    /// A Service, or what it is an alias for, as long as that is of k or of a namespace that k diverts from.
    fn follow_service(&mut self, mut service: ServiceRef, grant: &Grant) {
        for _ in 0..MAX_ALIASES {
            self.followed.insert(service.clone());
            let Some(found) = self.world.service(&service.namespace, &service.name) else { return };
            let ServiceKind::ExternalName(alias) = &found.kind else {
                self.backends.insert(service);
                return;
            };
            match service_of_name(alias, &self.settings.cluster_domain) {
                Some(next) if grant.extends_to(&next.namespace) => service = next,
                _ => return,
            }
        }
    }
}
