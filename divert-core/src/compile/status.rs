//! What people are told: conditions of each Divert, and a row for each service it asks for.
//! Nothing here gates anything.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::Settings;
use super::acceptance::Group;
use super::endpoints::available;
use super::hosts::HostRow;
use super::judge::Judge;
use super::ports::may_be_http;
use crate::plan::Unavailable;
use crate::world::{Asks, Divert, DivertRef, Pair, Service, ServiceKind, World};

/// A condition as in the status of a Divert.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Condition {
    /// `Accepted` or `Ready`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// True or False.
    pub status: bool,
    /// In one word.
    pub reason: &'static str,
    /// A sentence that names the objects and says what to do.
    pub message: String,
}

/// A service that a Divert asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ServiceRow {
    /// Name.
    pub name: Arc<str>,
    /// Endpoints in the developer's namespace that take requests.
    pub ready: usize,
    /// In one word.
    pub reason: RowReason,
    /// A sentence that names the objects and says what to do; empty when ready.
    pub message: String,
}

/// State of a service that a Divert asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum RowReason {
    /// Requests with the key reach it.
    Ready,
    /// Asked for, but not in the developer's namespace.
    ServiceMissing,
    /// Asked for, but not in the shared namespace.
    NotInShared,
    /// None takes requests.
    NoReadyEndpoints,
    /// A port of the shared service has no counterpart.
    PortMismatch,
    /// No port of the shared service may speak HTTP.
    NotHTTP,
    /// One of the two is an alias.
    ExternalName,
    /// Its endpoints do not count.
    EndpointsNotPods,
    /// Those that take requests are on other nodes than the one that this is about.
    NoLocalEndpoints,
    /// Agents leave addresses of one of the two out.
    AddressInLabelRange,
}

impl RowReason {
    /// As it is written in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::ServiceMissing => "ServiceMissing",
            Self::NotInShared => "NotInShared",
            Self::NoReadyEndpoints => "NoReadyEndpoints",
            Self::PortMismatch => "PortMismatch",
            Self::NotHTTP => "NotHTTP",
            Self::ExternalName => "ExternalName",
            Self::EndpointsNotPods => "EndpointsNotPods",
            Self::NoLocalEndpoints => "NoLocalEndpoints",
            Self::AddressInLabelRange => "AddressInLabelRange",
        }
    }
}

impl fmt::Display for RowReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What its author sees of a Divert.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DivertStatus {
    /// Which.
    pub divert: DivertRef,
    /// N.
    pub shared_namespace: Arc<str>,
    /// Accepted, and Ready when it is.
    pub conditions: Vec<Condition>,
    /// By name; empty when it is not accepted.
    pub services: Vec<ServiceRow>,
    /// In the order written; empty when it is not accepted.
    pub hosts: Vec<HostRow>,
}

impl DivertStatus {
    /// Whether it is accepted.
    pub fn accepted(&self) -> bool {
        self.conditions.iter().any(|condition| condition.kind == "Accepted" && condition.status)
    }
}

/// The status of each Divert of a pair, in the order in which they merge.
pub(super) fn of_group(judge: &Judge, pair: &Pair, group: &Group) -> Vec<DivertStatus> {
    let known = |name| judge.world().divert(name);
    let diverts = group.verdicts.iter().filter_map(|(name, _)| known(name));
    diverts.filter_map(|divert| of_divert(judge, pair, group, divert)).collect()
}

/// The status of a Divert of a pair.
pub(super) fn of_divert(judge: &Judge, pair: &Pair, group: &Group, divert: &Divert) -> Option<DivertStatus> {
    let name = &divert.divert;
    let (_, verdict) = group.verdicts.iter().find(|(known, _)| known == name)?;
    let mut status = DivertStatus {
        divert: name.clone(),
        shared_namespace: pair.shared.clone(),
        conditions: Vec::new(),
        services: Vec::new(),
        hosts: judge.host_rows(name).to_vec(),
    };
    match verdict {
        Ok(()) => {
            status.conditions.push(Condition {
                kind: "Accepted",
                status: true,
                reason: "Accepted",
                message: format!(
                    "requests to {} with `baggage: {}={}` go to {2} where it runs the service",
                    pair.shared,
                    judge.settings().key,
                    pair.developer
                ),
            });
            status.services = rows(judge.world(), judge.settings(), pair, divert);
            status.conditions.push(readiness(pair, &status.services));
        }
        Err(refusal) => status.conditions.push(Condition {
            kind: "Accepted",
            status: false,
            reason: refusal.reason(),
            message: refusal.to_string(),
        }),
    }
    Some(status)
}

fn readiness(pair: &Pair, rows: &[ServiceRow]) -> Condition {
    // What does not speak HTTP is nothing that could be diverted: okteto writes a Divert for each service, also for queues
    // and databases.
    let left_alone = |row: &&ServiceRow| row.reason == RowReason::NotHTTP;
    let waiting: Vec<_> =
        rows.iter().filter(|row| row.reason != RowReason::Ready && !left_alone(row)).collect();
    let (status, reason, message) = if rows.is_empty() {
        let message = format!(
            "{} and {} have no Service in common: deploy one into {0} under the name it has in {1}",
            pair.developer, pair.shared
        );
        (false, "NoServices", message)
    } else if let Some(first) = waiting.first() {
        let others = match waiting.len() {
            1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        (false, "ServicesNotReady", format!("{}{others}", first.message))
    } else {
        let names = |wanted: bool| {
            let names = rows.iter().filter(|row| left_alone(row) == wanted).map(|row| &*row.name);
            names.collect::<Vec<_>>().join(", ")
        };
        let message = match (names(false), names(true)) {
            (running, alone) if alone.is_empty() => format!("{running} run in {}", pair.developer),
            (running, alone) if running.is_empty() => format!("no HTTP, left alone: {alone}"),
            (running, alone) => format!("{running} run in {}; no HTTP, left alone: {alone}", pair.developer),
        };
        (true, "Ready", message)
    };
    Condition { kind: "Ready", status, reason, message }
}

/// The services that a Divert asks for: those it names, else those that both namespaces have.
fn rows(world: &World, settings: &Settings, pair: &Pair, divert: &Divert) -> Vec<ServiceRow> {
    let mut names: Vec<Arc<str>> = match &divert.asks {
        Asks::Okteto { service, .. } => vec![service.clone()],
        Asks::Divert { services: Some(services), .. } => services.clone(),
        Asks::Divert { services: None, .. } => world
            .services(&pair.developer)
            .filter(|service| !service.is_external_name())
            .map(|service| service.service.name.clone())
            .filter(|name| world.service(&pair.shared, name).is_some())
            .collect(),
    };
    names.sort();
    names.dedup();
    names.into_iter().map(|name| row(world, settings, pair, name)).collect()
}

fn row(world: &World, settings: &Settings, pair: &Pair, name: Arc<str>) -> ServiceRow {
    let Pair { developer: k, shared: n } = pair;
    let own = world.service(k, &name);
    let shared = world.service(n, &name);
    let (ready, reason, message) = match (own, shared) {
        (None, _) => {
            let message = format!("{k} has no Service {name}: deploy it, or take it out of the Divert");
            (0, RowReason::ServiceMissing, message)
        }
        (Some(own), _) if own.is_external_name() => {
            let message = format!("{k}/{name} is of type ExternalName, an alias and no service of {k}");
            (0, RowReason::ExternalName, message)
        }
        (_, None) => {
            let message = format!("{n} has no Service {name}, so there is nothing to divert");
            (0, RowReason::NotInShared, message)
        }
        (_, Some(shared)) if shared.is_external_name() => {
            let message = format!("{n}/{name} is of type ExternalName, which is never diverted");
            (0, RowReason::ExternalName, message)
        }
        (Some(own), Some(shared)) => availability(world, settings, shared, own),
    };
    ServiceRow { name, ready, reason, message }
}

fn availability(
    world: &World,
    settings: &Settings,
    shared: &Service,
    own: &Service,
) -> (usize, RowReason, String) {
    let http: Vec<_> = shared.ports.iter().filter(|port| may_be_http(settings, port)).collect();
    if http.is_empty() {
        let message = format!(
            "no port of {} may speak HTTP, so it is left alone: if one does, say so with `appProtocol: http`",
            shared.service
        );
        return (0, RowReason::NotHTTP, message);
    }
    if let ServiceKind::ClusterIps(ips) = &shared.kind
        && let Some(address) = ips.iter().find(|ip| settings.label_ranges.contains(**ip))
    {
        let message = format!(
            "connections to {address} of {} are not captured, as it lies in the label range of the agents: choose \
             another range with --label-range-v4 or --label-range-v6 (agent.labelRangeV4 and V6 of the chart)",
            shared.service
        );
        return (0, RowReason::AddressInLabelRange, message);
    }
    let mut ready = 0;
    let mut trouble = None;
    for port in http {
        match available(world, settings, shared, port, own) {
            Ok(available) => ready = available.count().max(ready),
            Err(unavailable) => trouble = trouble.or(Some(unavailable)),
        }
    }
    let (reason, message) = match trouble {
        None => (RowReason::Ready, String::new()),
        Some(Unavailable::PortMismatch { port }) => {
            let message = format!(
                "{} has no port for {port} of {}: give it that number or the same port name",
                own.service, shared.service
            );
            (RowReason::PortMismatch, message)
        }
        Some(Unavailable::NoReadyEndpoints) => {
            let message = format!(
                "no endpoint of {} is ready: see whether its pods run and pass their probes",
                own.service
            );
            (RowReason::NoReadyEndpoints, message)
        }
        Some(Unavailable::EndpointsNotPods) => {
            let message = format!(
                "endpoints of {} are not pods that it selects: give it a selector and no EndpointSlices of its own",
                own.service
            );
            (RowReason::EndpointsNotPods, message)
        }
        Some(Unavailable::NoLocalEndpoints) => {
            let message = format!(
                "no endpoint of {} on this node is ready, and its internalTrafficPolicy is Local: set that to Cluster, or \
                 run a pod of it here",
                own.service
            );
            (RowReason::NoLocalEndpoints, message)
        }
        Some(Unavailable::AddressInLabelRange { address }) => {
            let message = format!(
                "the endpoint {address} of {} lies in the label range of the agents, so that no pod reaches it: choose \
                 another range with --label-range-v4 or --label-range-v6 (agent.labelRangeV4 and V6 of the chart)",
                own.service
            );
            (RowReason::AddressInLabelRange, message)
        }
    };
    (ready, reason, message)
}
