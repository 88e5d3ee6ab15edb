//! Who may divert from where.

use super::*;

const DIVERT: &str = "sharedNamespace: staging";

/// The reason for `alice/d`, with what exists beside the two catalogs.
fn judged(settings: Settings, namespaces: &[String]) -> (&'static str, String) {
    let mut documents = staging_and_alice().split_off(2);
    documents.extend_from_slice(namespaces);
    documents.push(divert("alice", "d", DIVERT));
    let planner = planner_with(settings, &documents);
    let (reason, message) = accepted(&planner, "alice/d");
    // Accepted gates routing.
    assert_eq!(reason == "Accepted", !planner.plan().captures.is_empty(), "{message}");
    (reason, message)
}

fn reason(namespaces: &[String]) -> &'static str {
    judged(Settings::default(), namespaces).0
}

fn annotated(selector: &str) -> String {
    let metadata = format!(
        "name: staging, labels: {{divert.dev/shared: 'true'}}, \
         annotations: {{divert.dev/allowed-namespaces: '{selector}'}}"
    );
    document("v1", "Namespace", &metadata, "")
}

#[test]
fn a_shared_namespace_consents_to_all() {
    assert_eq!(reason(&[shared_namespace("staging"), namespace("alice")]), "Accepted");
}

#[test]
fn a_namespace_that_does_not_exist_is_named() {
    let (reason, message) = judged(Settings::default(), &[namespace("alice")]);
    assert_eq!(reason, "SharedNamespaceNotFound");
    assert!(message.starts_with("namespace staging does not exist"), "{message}");
}

#[test]
fn both_namespaces_must_be_documents() {
    let (reason, message) = judged(Settings::default(), &[shared_namespace("staging")]);
    assert_eq!(reason, "NamespaceNotFound");
    assert!(message.contains("namespace alice"), "{message}");
}

#[test]
fn without_the_label_there_is_no_consent() {
    let (reason, message) = judged(Settings::default(), &[namespace("staging"), namespace("alice")]);
    assert_eq!(reason, "SharedNamespaceNotShared");
    assert!(message.contains("kubectl label namespace staging divert.dev/shared=true"), "{message}");
    let other = document("v1", "Namespace", "name: staging, labels: {divert.dev/shared: 'false'}", "");
    assert_eq!(judged(Settings::default(), &[other, namespace("alice")]).0, "SharedNamespaceNotShared");
}

#[test]
fn consent_can_be_limited_by_a_selector() {
    let movies = document("v1", "Namespace", "name: alice, labels: {team: movies}", "");
    for (selector, expected) in [
        ("team=movies", "Accepted"),
        ("team=music", "SharedNamespaceNotShared"),
        ("kubernetes.io/metadata.name in (alice)", "Accepted"),
        ("kubernetes.io/metadata.name in (alic, alice-feature)", "SharedNamespaceNotShared"),
        // What cannot be read allows nobody.
        ("team = = movies", "SharedNamespaceNotShared"),
        ("", "SharedNamespaceNotShared"),
    ] {
        assert_eq!(reason(&[annotated(selector), movies.clone()]), expected, "{selector}");
    }
    let (_, message) = judged(Settings::default(), &[annotated("team=music"), movies.clone()]);
    assert!(message.contains("alice do not match its annotation divert.dev/allowed-namespaces"), "{message}");
    let (_, message) = judged(Settings::default(), &[annotated("team in movies"), movies]);
    assert!(message.contains("cannot read `team in movies`"), "{message}");
}

#[test]
fn the_operators_allow_list_limits_labels() {
    let namespaces = [shared_namespace("staging"), namespace("alice")];
    let allow = |names: &[&str]| Settings {
        shared_namespaces: Some(names.iter().map(|&name| name.into()).collect()),
        ..Settings::default()
    };
    assert_eq!(judged(allow(&["staging", "qa"]), &namespaces).0, "Accepted");
    let (reason, message) = judged(allow(&["qa"]), &namespaces);
    assert_eq!(reason, "SharedNamespaceNotShared");
    assert!(message.contains("sharedNamespaces"), "{message}");
    // The list replaces no label.
    assert_eq!(
        judged(allow(&["staging"]), &[namespace("staging"), namespace("alice")]).0,
        "SharedNamespaceNotShared"
    );
}

#[test]
fn a_namespace_cannot_divert_from_itself() {
    let mut documents = staging_and_alice();
    documents.push(divert("alice", "d", "sharedNamespace: alice"));
    documents.push(divert("staging", "d", DIVERT));
    let planner = planner(&documents);
    assert_eq!(accepted(&planner, "alice/d").0, "SharedNamespaceIsOwn");
    assert_eq!(accepted(&planner, "staging/d").0, "SharedNamespaceIsOwn");
    assert_eq!(captures(&planner), [""; 0]);
}

#[test]
fn shared_namespaces_do_not_chain() {
    let (reason, message) =
        judged(Settings::default(), &[shared_namespace("staging"), shared_namespace("alice")]);
    assert_eq!(reason, "NamespaceIsShared");
    assert!(message.starts_with("namespace alice is shared itself"), "{message}");
}

#[test]
fn a_terminating_namespace_takes_nothing() {
    let deleted = |name: &str, labels: &str| {
        let metadata =
            format!("name: {name}, labels: {{{labels}}}, deletionTimestamp: '2026-01-01T00:00:00Z'");
        document("v1", "Namespace", &metadata, "")
    };
    assert_eq!(reason(&[shared_namespace("staging"), deleted("alice", "")]), "NamespaceTerminating");
    assert_eq!(
        reason(&[deleted("staging", "divert.dev/shared: 'true'"), namespace("alice")]),
        "NamespaceTerminating"
    );
    let phase = document("v1", "Namespace", "name: alice", "status: {phase: Terminating}");
    assert_eq!(reason(&[shared_namespace("staging"), phase]), "NamespaceTerminating");
}
