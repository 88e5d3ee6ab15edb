//! Several Diverts of one pair of namespaces.

use super::*;
use crate::api::OnUnavailable;

/// staging, alice and bob with the services api, catalog and web in each.
fn three_services() -> Vec<String> {
    let mut documents = vec![shared_namespace("staging"), namespace("alice"), namespace("bob")];
    for (i, namespace) in ["staging", "alice", "bob"].iter().enumerate() {
        for (j, name) in ["api", "catalog", "web"].iter().enumerate() {
            documents.push(simple(namespace, name, &format!("10.96.{i}.{j}"), &format!("10.0.{i}.{j}")));
        }
    }
    documents
}

/// Shared services captured at their cluster IPs, with their keys.
fn diverted(planner: &Planner) -> Vec<String> {
    let of_cluster_ip = |line: &String| line.starts_with("10.96.");
    let short = |line: String| {
        let words = line.split(' ').skip(1).map(|word| word.split('>').next().unwrap());
        words.collect::<Vec<_>>().join(" ")
    };
    captures(planner).into_iter().filter(of_cluster_ip).map(short).collect()
}

fn on_unavailable(planner: &Planner) -> Vec<OnUnavailable> {
    let targets = planner.plan().captures.values();
    let mut all: Vec<_> =
        targets.flat_map(|t| t.services[0].routes.values()).map(|route| route.on_unavailable).collect();
    all.dedup();
    all
}

fn with(diverts: &[String]) -> Planner {
    planner(&[three_services(), diverts.to_vec()].concat())
}

#[test]
fn the_key_is_the_namespace_of_the_divert() {
    let planner = with(&[divert("bob", "alice", "sharedNamespace: staging, services: [api]")]);
    assert_eq!(diverted(&planner), ["staging/api bob"]);
}

#[test]
fn omitted_services_are_all_that_both_have() {
    let all = with(&[divert("alice", "d", "sharedNamespace: staging")]);
    assert_eq!(diverted(&all), ["staging/api alice", "staging/catalog alice", "staging/web alice"]);
    // An empty list is an omitted one, as everywhere in Kubernetes.
    let empty = with(&[divert("alice", "d", "sharedNamespace: staging, services: []")]);
    assert_eq!(captures(&all), captures(&empty));
}

#[test]
fn services_add_up() {
    let planner = with(&[
        divert("alice", "one", "sharedNamespace: staging, services: [api]"),
        divert("alice", "two", "sharedNamespace: staging, services: [web, api]"),
        divert("bob", "one", "sharedNamespace: staging, services: [api]"),
    ]);
    assert_eq!(diverted(&planner), ["staging/api alice bob", "staging/web alice"]);
    // Omitted means all, whatever another lists.
    let planner = with(&[
        divert("alice", "one", "sharedNamespace: staging, services: [api]"),
        divert("alice", "two", "sharedNamespace: staging"),
    ]);
    assert_eq!(diverted(&planner).len(), 3);
}

#[test]
fn the_oldest_says_what_can_be_said_once() {
    let old = "2026-01-01T00:00:00Z";
    let new = "2026-01-02T00:00:00Z";
    let shared = "sharedNamespace: staging, services: [api], onUnavailable: Shared";
    let fail = "sharedNamespace: staging, services: [web], onUnavailable: Fail";
    for (shared_at, fail_at, expected) in [(old, new, OnUnavailable::Shared), (new, old, OnUnavailable::Fail)]
    {
        let planner = with(&[
            divert_at("alice", "shared", shared_at, shared),
            divert_at("alice", "fail", fail_at, fail),
        ]);
        let (winner, loser, service) = match expected {
            OnUnavailable::Shared => ("alice/shared", "alice/fail", "staging/api alice"),
            OnUnavailable::Fail => ("alice/fail", "alice/shared", "staging/web alice"),
        };
        assert_eq!(accepted(&planner, winner).0, "Accepted");
        let (reason, message) = accepted(&planner, loser);
        assert_eq!(reason, "Conflicts");
        assert!(message.contains(&format!("onUnavailable is {expected:?} by {winner}")), "{message}");
        // What is not accepted adds nothing.
        assert_eq!(diverted(&planner), [service]);
        assert_eq!(on_unavailable(&planner), [expected]);
    }
}

#[test]
fn without_timestamps_names_decide_and_missing_ones_are_oldest() {
    let planner = with(&[
        divert("alice", "b", "sharedNamespace: staging, inject: None"),
        divert("alice", "a", "sharedNamespace: staging, inject: FromPods"),
    ]);
    assert_eq!(accepted(&planner, "alice/a").0, "Accepted");
    assert_eq!(accepted(&planner, "alice/b").0, "Conflicts");
    let planner = with(&[
        divert("alice", "b", "sharedNamespace: staging, names: None"),
        divert_at("alice", "a", "2020-01-01T00:00:00Z", "sharedNamespace: staging, names: All"),
    ]);
    assert_eq!(accepted(&planner, "alice/b").0, "Accepted");
    assert_eq!(accepted(&planner, "alice/a").0, "Conflicts");
}

#[test]
fn what_is_left_out_says_nothing_otherwise() {
    let planner = with(&[
        divert("alice", "a", "sharedNamespace: staging, onUnavailable: Shared, inject: None"),
        divert("alice", "b", "sharedNamespace: staging, names: All"),
    ]);
    assert_eq!(accepted(&planner, "alice/b").0, "Accepted");
    assert_eq!(on_unavailable(&planner), [OnUnavailable::Shared]);
}

#[test]
fn what_the_first_leaves_out_is_said_by_default() {
    let planner = with(&[
        divert("alice", "a", "sharedNamespace: staging"),
        divert("alice", "b", "sharedNamespace: staging, onUnavailable: Shared"),
    ]);
    assert_eq!(accepted(&planner, "alice/b").0, "Conflicts");
    assert_eq!(on_unavailable(&planner), [OnUnavailable::Fail]);
}

#[test]
fn oktetos_objects_merge_and_take_the_groups_values() {
    let planner = with(&[
        okteto("alice", "api", "staging", "alice"),
        divert_at(
            "alice",
            "d",
            "2026-01-01T00:00:00Z",
            "sharedNamespace: staging, services: [web], onUnavailable: Shared",
        ),
    ]);
    assert_eq!(accepted(&planner, "alice/d").0, "Accepted");
    assert_eq!(accepted(&planner, "alice/api (okteto.com)").0, "Accepted");
    assert_eq!(diverted(&planner), ["staging/api alice", "staging/web alice"]);
    assert_eq!(on_unavailable(&planner), [OnUnavailable::Shared]);
    // Alone, they have the defaults.
    let alone = with(&[okteto("alice", "api", "staging", "alice")]);
    assert_eq!(diverted(&alone), ["staging/api alice"]);
    assert_eq!(on_unavailable(&alone), [OnUnavailable::Fail]);
}

#[test]
fn nobody_takes_anothers_key() {
    let planner = with(&[okteto("alice", "api", "staging", "bob")]);
    let (reason, message) = accepted(&planner, "alice/api (okteto.com)");
    assert_eq!(reason, "DivertKeyMismatch");
    assert!(message.contains("divertKey is bob but the namespace is alice"), "{message}");
    assert_eq!(diverted(&planner), [""; 0]);
}

#[test]
fn decisions_are_per_shared_namespace() {
    let mut documents = three_services();
    documents.push(shared_namespace("qa"));
    documents.push(simple("qa", "api", "10.96.9.0", "10.0.9.0"));
    documents.push(divert("alice", "one", "sharedNamespace: staging, services: [web]"));
    documents.push(divert("alice", "two", "sharedNamespace: qa, onUnavailable: Shared"));
    let planner = planner(&documents);
    assert_eq!(accepted(&planner, "alice/two").0, "Accepted");
    assert_eq!(diverted(&planner), ["staging/web alice", "qa/api alice"]);
}
