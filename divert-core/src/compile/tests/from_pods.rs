//! Whose requests get a key because of the pod that sends them.

use super::*;

/// Pods as `name key>set`.
fn pods(planner: &Planner) -> Vec<String> {
    let line = |(name, plan): (&crate::plan::PodRef, &crate::plan::PodPlan)| {
        let set: Vec<_> = plan.set.namespaces().map(|name| &**name).collect();
        format!("{name} {}>{}", plan.key.as_deref().unwrap_or("-"), set.join(","))
    };
    planner.plan().pods.iter().map(line).collect()
}

fn town(spec: &str) -> Vec<String> {
    let more = vec![
        simple("staging", "api", "10.96.0.11", "10.0.0.11"),
        simple("alice", "lab", "10.96.1.1", "10.0.1.1"),
        pod("alice", "p", "10.0.1.9"),
        pod("staging", "p", "10.0.0.9"),
        divert("alice", "d", &format!("sharedNamespace: staging{spec}")),
    ];
    [staging_and_alice(), more].concat()
}

#[test]
fn for_a_developers_pods_all_services_of_the_shared_namespace_are_captured() {
    let planner = planner(&town(""));
    assert_eq!(pods(&planner), ["alice/p alice>staging", "staging/p ->"]);
    assert_eq!(
        captures(&planner),
        [
            "10.0.0.12:8080 staging/catalog alice>10.0.1.12:8080",
            "10.96.0.12:8080 staging/catalog alice>10.0.1.12:8080"
        ]
    );
    // What she does not run as well, and nothing of her own.
    assert_eq!(
        captures_for(&planner, &["staging"]),
        [
            "10.0.0.11:8080 staging/api",
            "10.0.0.12:8080 staging/catalog alice>10.0.1.12:8080",
            "10.96.0.11:8080 staging/api",
            "10.96.0.12:8080 staging/catalog alice>10.0.1.12:8080",
        ]
    );
}

#[test]
fn not_where_the_divert_says_none_or_is_not_accepted() {
    let none = planner(&town(", inject: None"));
    assert_eq!(pods(&none), ["alice/p ->", "staging/p ->"]);
    assert_eq!(none.plan().captures.len(), 2);
    let refused: Vec<_> = town("").into_iter().map(|it| it.replace("divert.dev/shared", "other")).collect();
    assert_eq!(pods(&planner(&refused)), ["alice/p ->", "staging/p ->"]);
}

#[test]
fn ports_that_are_not_http_are_left_alone_as_ever() {
    let db = service(
        "staging",
        "db",
        "clusterIP: 10.96.0.50, ports: [{name: postgres, port: 5432}, {name: http, port: 80}]",
    );
    let alias = service("staging", "alias", "type: ExternalName, externalName: x.y, ports: [{port: 80}]");
    let planner = planner(&[town(""), vec![db, alias]].concat());
    let of_db: Vec<_> =
        captures_for(&planner, &["staging"]).into_iter().filter(|line| line.contains("10.96.0.50")).collect();
    assert_eq!(of_db, ["10.96.0.50:80 staging/db"]);
}

#[test]
fn a_node_without_developers_pods_captures_nothing_for_them() {
    let without: Vec<_> = town("").into_iter().filter(|it| !it.contains("podIP: 10.0.1.9")).collect();
    let mut planner = planner(&without);
    assert_eq!(planner.plan().captures.len(), 2);
    // It comes, and goes.
    let change = planner.update(objects(&pod("alice", "p", "10.0.1.9")));
    assert_eq!((change.captures.len(), change.released.len()), (4, 0));
    let gone = crate::world::WorldChange::Delete(crate::world::ObjectRef {
        kind: crate::world::ObjectKind::Pod,
        namespace: "alice".into(),
        name: "p".into(),
    });
    let change = planner.update([gone]);
    assert_eq!((change.captures.len(), change.released.len()), (0, 4));
}

#[test]
fn two_shared_namespaces_make_a_set_of_both() {
    let more = [
        shared_namespace("qa"),
        simple("qa", "catalog", "10.96.5.12", "10.0.5.12"),
        divert("alice", "q", "sharedNamespace: qa"),
        namespace("bob"),
        divert("bob", "d", "sharedNamespace: staging"),
        pod("bob", "p", "10.0.2.9"),
    ];
    let planner = planner(&[town(""), more.to_vec()].concat());
    assert_eq!(pods(&planner), ["alice/p alice>qa,staging", "bob/p bob>staging", "staging/p ->"]);
    assert_eq!(captures_for(&planner, &["staging"]).len(), 4);
    let both = captures_for(&planner, &["qa", "staging"]);
    assert_eq!(both.len(), 6);
    assert!(both.contains(&"10.96.5.12:8080 qa/catalog alice>10.0.1.12:8080".to_owned()), "{both:?}");
}

#[test]
fn oktetos_objects_inject_by_default() {
    let mut documents = town("");
    documents.pop();
    documents.push(okteto("alice", "catalog", "staging", "alice"));
    assert_eq!(pods(&planner(&documents))[0], "alice/p alice>staging");
}
