//! One test for each line of the semantics, on manifests as people write them.

mod capture;
mod consent;
mod endpoints;
mod from_pods;
mod hosts;
mod incremental;
mod merging;
mod pods;
mod ports;
mod published;
mod routes;
mod scale;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use divert_samples::*;

use super::*;
use crate::manifests::testing::{object, objects};
use crate::plan::{Backend, Capture, CaptureSet, Plan, Target};

/// A planner of these documents.
fn planner(documents: &[String]) -> Planner {
    planner_with(Settings::default(), documents)
}

fn planner_with(settings: Settings, documents: &[String]) -> Planner {
    let mut planner = Planner::new(settings);
    let change = planner.update(objects(&documents.concat()));
    let mut plan = Plan::default();
    plan.apply(change);
    assert_eq!(plan, *planner.plan());
    let mut whole = Plan::default();
    whole.apply(planner.whole_plan());
    assert_eq!(whole, plan, "who begins with the whole plan has the same");
    planner
}

/// staging and alice, each with a catalog.
fn staging_and_alice() -> Vec<String> {
    vec![
        shared_namespace("staging"),
        namespace("alice"),
        catalog("staging", "10.96.0.12", "10.0.0.12"),
        catalog("alice", "10.96.1.12", "10.0.1.12"),
    ]
}

/// A line for each address captured for everyone: `address service key>endpoints …`.
fn captures(planner: &Planner) -> Vec<String> {
    captures_for(planner, &[])
}

/// The same for the pods of developers of these namespaces.
fn captures_for(planner: &Planner, set: &[&str]) -> Vec<String> {
    let set: CaptureSet = set.iter().map(|it| Arc::from(*it)).collect();
    let line = |(capture, target): (&Capture, &Arc<Target>)| {
        let mut line = capture.address.to_string();
        for shared in &target.services {
            line += &format!(" {}", shared.service);
            for (key, route) in &shared.routes {
                assert_eq!(route.service.namespace, *key);
                assert_eq!(route.service.name, shared.service.name);
                line += &format!(" {key}>{}", backend(&route.backend));
            }
        }
        line
    };
    planner.plan().captures.iter().filter(|(capture, _)| capture.set == set).map(line).collect()
}

fn backend(backend: &Backend) -> String {
    let list = |list: &[SocketAddr]| list.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",");
    match backend {
        Backend::Endpoints { preferred, endpoints, fallback, .. } => {
            let preferred = if preferred.is_empty() { String::new() } else { list(preferred) + "|" };
            let fallback =
                if fallback.is_empty() { String::new() } else { " else ".to_owned() + &list(fallback) };
            preferred + &list(endpoints) + &fallback
        }
        Backend::Unavailable(why) => format!("{why:?}"),
    }
}

/// What is captured at an address.
fn capture_at(planner: &Planner, address: &str) -> Option<String> {
    let capture = Capture { set: CaptureSet::default(), address: address.parse().unwrap() };
    planner.plan().captures.contains_key(&capture).then(|| {
        let lines = captures(planner);
        lines.into_iter().find(|line| line.starts_with(&format!("{address} "))).unwrap()
    })
}

/// Reason and message of a condition of a Divert.
fn condition(planner: &Planner, divert: &str, kind: &str) -> Option<(&'static str, String)> {
    let statuses = planner.statuses();
    let status = statuses.iter().find(|status| status.divert.to_string() == divert);
    let status = status.unwrap_or_else(|| panic!("no Divert {divert}"));
    let condition = status.conditions.iter().find(|condition| condition.kind == kind)?;
    assert_eq!(condition.status, condition.reason == kind, "{condition:?}");
    Some((condition.reason, condition.message.clone()))
}

fn accepted(planner: &Planner, divert: &str) -> (&'static str, String) {
    condition(planner, divert, "Accepted").expect("every Divert is judged")
}
