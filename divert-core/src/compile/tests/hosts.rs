//! Hosts: who is granted which, what is captured for that, and what people are told.

use super::*;
use crate::world::WorldChange;

/// Granted hosts as `host key>shared,…`.
fn granted(planner: &Planner) -> Vec<String> {
    let line = |(host, grant): (&Arc<str>, &crate::plan::Grant)| {
        let shared: Vec<_> = grant.shared.iter().map(|shared| &**shared).collect();
        format!("{host} {}>{}", grant.key, shared.join(","))
    };
    planner.plan().hosts.iter().map(line).collect()
}

/// Rows of a Divert as `host reason`.
fn rows(planner: &Planner, divert: &str) -> Vec<String> {
    let statuses = planner.statuses();
    let status = statuses.iter().find(|status| status.divert.to_string() == divert).unwrap();
    for row in &status.hosts {
        assert_eq!(row.message.is_empty(), row.reason == HostReason::Ready, "{row:?}");
    }
    status.hosts.iter().map(|row| format!("{} {:?}", row.host, row.reason)).collect()
}

fn with_hosts(namespace: &str, hosts: &str) -> String {
    divert(namespace, "d", &format!("sharedNamespace: staging, hosts: [{hosts}]"))
}

fn town(more: &[String]) -> Planner {
    planner(&[staging_and_alice(), more.to_vec()].concat())
}

#[test]
fn a_host_is_a_namespaces_by_its_first_label() {
    for (host, allowed) in [
        ("alice.example.com", true),
        ("Alice-Movies.example.com.", true),
        ("movies-alice.example.com", true),
        ("movies.alice.example.com", false),
        ("moviesalice.example.com", false),
        ("movies-bob.example.com", false),
        ("movies-alice-2.example.com", false),
    ] {
        let planner = town(&[with_hosts("alice", host)]);
        assert_eq!(granted(&planner).len(), usize::from(allowed), "{host}");
        let reason = if allowed { "NoRoute" } else { "NotAllowed" };
        assert_eq!(rows(&planner, "alice/d"), [format!("{host} {reason}")]);
    }
}

#[test]
fn or_by_a_pattern_of_the_shared_namespace() {
    let annotated = |patterns: &str| {
        let metadata = format!(
            "name: staging, labels: {{divert.dev/shared: 'true'}}, annotations: {{divert.dev/hosts: '{patterns}'}}"
        );
        let mut documents = staging_and_alice();
        documents[0] = document("v1", "Namespace", &metadata, "");
        documents.push(with_hosts("alice", "movies.alice.example.com"));
        granted(&planner(&documents))
    };
    assert_eq!(
        annotated("{namespace}.x.com, Movies.{namespace}.example.com"),
        ["movies.alice.example.com alice>staging"]
    );
    assert_eq!(annotated("*.{namespace}.example.com"), ["movies.alice.example.com alice>staging"]);
    assert_eq!(annotated("{namespace}.example.com,movies.bob.example.com,,"), [""; 0]);
}

#[test]
fn some_names_are_nobodys() {
    let shared = ingress("staging", "web", "", &["alice.shop.example.com>catalog"]);
    for host in [
        "10.0.0.1",
        "alice",
        "alice.svc",
        "alice.staging.svc",
        "alice.staging.svc.cluster.local",
        "alice.staging",
        "alice.alice",
        "alice.catalog.staging",
        "Alice.Catalog.Staging.",
        "alice.shop.example.com",
        "'*.alice.com'",
        "'alice-[::1]'",
        "alice:80",
        "''",
        "alice..com",
    ] {
        let planner = town(&[shared.clone(), with_hosts("alice", host)]);
        assert_eq!(granted(&planner), [""; 0], "{host}");
        assert!(rows(&planner, "alice/d")[0].ends_with(" NotAllowed"), "{host}");
    }
    // A namespace that comes later takes its names back.
    let mut planner = town(&[with_hosts("alice", "alice.later")]);
    assert_eq!(granted(&planner), ["alice.later alice>staging"]);
    let change = planner.update(objects(&namespace("later")));
    assert_eq!(change.hosts.unwrap().iter().count(), 0);
}

#[test]
fn the_longer_name_has_it_then_the_older_divert() {
    let host = "movies-web-alice.example.com";
    let both = [
        namespace("web-alice"),
        divert_at(
            "alice",
            "d",
            "2026-01-01T00:00:00Z",
            &format!("sharedNamespace: staging, hosts: [{host}]"),
        ),
        divert_at(
            "web-alice",
            "d",
            "2026-02-01T00:00:00Z",
            &format!("sharedNamespace: staging, hosts: [{host}]"),
        ),
    ];
    let planner = town(&both);
    assert_eq!(granted(&planner), [format!("{host} web-alice>staging")]);
    assert_eq!(rows(&planner, "alice/d"), [format!("{host} TakenBy")]);
    assert_eq!(rows(&planner, "web-alice/d"), [format!("{host} NoRoute")]);

    for (first, second, winner) in
        [("2026-01-01", "2026-02-01", "alice"), ("2026-02-01", "2026-01-01", "movie")]
    {
        let host = "movie-alice.example.com";
        let divert = |namespace, day| {
            let spec = format!("sharedNamespace: staging, hosts: [{host}]");
            divert_at(namespace, "d", &format!("{day}T00:00:00Z"), &spec)
        };
        let planner = town(&[namespace("movie"), divert("alice", first), divert("movie", second)]);
        assert_eq!(granted(&planner), [format!("{host} {winner}>staging")]);
    }
}

#[test]
fn a_refused_divert_has_no_hosts_and_a_refused_host_leaves_the_divert() {
    let planner = town(&[with_hosts("alice", "eve.example.com")]);
    assert_eq!(accepted(&planner, "alice/d").0, "Accepted");
    assert_eq!(captures(&planner).len(), 2);
    let refused = planner_with(
        Settings { shared_namespaces: Some(["qa".into()].into()), ..Settings::default() },
        &[staging_and_alice(), vec![with_hosts("alice", "alice.example.com")]].concat(),
    );
    assert_eq!(granted(&refused), [""; 0]);
}

#[test]
fn backends_of_ingresses_for_a_granted_host_are_captured_for_everyone() {
    let more = [
        simple("staging", "web", "10.96.0.10", "10.0.0.10"),
        simple("staging", "fallback", "10.96.0.14", "10.0.0.14"),
        simple("staging", "other", "10.96.0.15", "10.0.0.15"),
        simple("alice", "front", "10.96.1.10", "10.0.1.10"),
        with_hosts("alice", "alice.example.com"),
        // In N, by wildcard, with a default backend; and one for another host.
        ingress("staging", "wild", "", &["*.example.com>web"])
            .replace("spec: {", "spec: {defaultBackend: {service: {name: fallback, port: {number: 80}}}, "),
        ingress("staging", "else", "", &["x.y.com>other"]),
        // In k, and resource backends, which are no Services.
        ingress("alice", "own", "", &["ALICE.example.com>front"]),
        ingress("alice", "resource", "", &["alice.example.com>x"])
            .replace("service: {name: x, port: {number: 80}}", "resource: {kind: Bucket, name: x}"),
        // In a namespace that has nothing to do with it.
        ingress("bob", "own", "", &["alice.example.com>front"]),
    ];
    let planner = town(&more);
    assert_eq!(granted(&planner), ["alice.example.com alice>staging"]);
    assert_eq!(rows(&planner, "alice/d"), ["alice.example.com Ready"]);
    let captures = captures(&planner);
    for service in ["staging/web", "staging/fallback", "alice/front"] {
        // To inject: no routes.
        assert_eq!(
            captures.iter().filter(|line| line.ends_with(&format!(" {service}"))).count(),
            2,
            "{captures:?}"
        );
    }
    assert_eq!(captures.len(), 2 * 4, "{captures:?}");
}

#[test]
fn an_ingress_without_a_host_serves_all() {
    let planner = town(&[
        simple("staging", "web", "10.96.0.10", "10.0.0.10"),
        with_hosts("alice", "alice.example.com"),
        ingress("staging", "any", "", &[">web"]),
    ]);
    assert_eq!(rows(&planner, "alice/d"), ["alice.example.com Ready"]);
    assert_eq!(capture_at(&planner, "10.96.0.10:8080").unwrap(), "10.96.0.10:8080 staging/web");
}

#[test]
fn aliases_are_followed_within_the_pair() {
    let alias =
        |name: &str, to: &str| service("alice", name, &format!("type: ExternalName, externalName: {to}"));
    let mut planner = town(&[
        simple("staging", "web", "10.96.0.10", "10.0.0.10"),
        shared_namespace("qa"),
        simple("qa", "web", "10.96.5.10", "10.0.5.10"),
        with_hosts("alice", "alice.example.com"),
        ingress(
            "alice",
            "own",
            "",
            &["alice.example.com>web", "alice.example.com>elsewhere", "alice.example.com>loop"],
        ),
        alias("web", "hop.alice.svc.cluster.local"),
        alias("hop", "Web.Staging.svc"),
        alias("elsewhere", "web.qa.svc.cluster.local"),
        alias("loop", "loop.alice.svc"),
    ]);
    assert_eq!(capture_at(&planner, "10.96.0.10:8080").unwrap(), "10.96.0.10:8080 staging/web");
    assert_eq!(capture_at(&planner, "10.96.5.10:8080"), None);
    // It comes to point elsewhere.
    planner.update(objects(&alias("hop", "example.com")));
    assert_eq!(capture_at(&planner, "10.96.0.10:8080"), None);
}

#[test]
fn names_that_are_made_to_resolve_lead_to_the_shared_service() {
    let mut planner = town(&[
        simple("staging", "web", "10.96.0.10", "10.0.0.10"),
        with_hosts("alice", "alice.example.com"),
        ingress("alice", "own", "", &["alice.example.com>web"]),
    ]);
    let captured = |planner: &Planner| capture_at(planner, "10.96.0.10:8080");
    assert_eq!(captured(&planner).unwrap(), "10.96.0.10:8080 staging/web");
    // Nothing is made where she has one herself, or wants none.
    planner.update(objects(&simple("alice", "web", "10.96.1.10", "10.0.1.10")));
    assert_eq!(captured(&planner).unwrap(), "10.96.0.10:8080 staging/web alice>10.0.1.10:8080");
    let alias = service("alice", "web", "type: ExternalName, externalName: example.com");
    planner.update(objects(&alias));
    assert_eq!(captured(&planner), None);
    planner.update(objects(&alias).into_iter().map(|change| match change {
        WorldChange::Upsert(object) => WorldChange::Delete(object.reference()),
        delete => delete,
    }));
    assert_eq!(captured(&planner).unwrap(), "10.96.0.10:8080 staging/web");
    let spec = "sharedNamespace: staging, hosts: [alice.example.com], names: None";
    planner.update(objects(&divert("alice", "d", spec)));
    assert_eq!(captured(&planner), None);
}

#[test]
fn an_annotated_ingress_without_a_host_is_refused() {
    let header = "divert.okteto.com/header: alice";
    let planner = town(&[
        ingress("alice", "web", header, &[">catalog"]),
        divert("alice", "d", "sharedNamespace: staging"),
    ]);
    let [status] = planner.ingresses() else { panic!("one") };
    assert!(status.refused.as_ref().unwrap().contains("it names no host"), "{status:?}");
    assert_eq!(granted(&planner), [""; 0]);
}

#[test]
fn annotated_ingresses_are_granted_their_hosts_where_a_divert_is_accepted() {
    let header = |namespace: &str| format!("divert.okteto.com/header: {namespace}");
    let own = ingress(
        "alice",
        "web",
        &header("alice"),
        &["movies-alice.example.com>catalog", "movies.example.com>catalog"],
    );
    let status = |planner: &Planner| {
        let [status] = planner.ingresses() else { panic!("one") };
        let hosts = status.hosts.iter().map(|row| format!("{} {:?}", row.host, row.reason));
        (status.refused.clone(), hosts.collect::<Vec<_>>())
    };
    // The shared namespace's own host is in the clone as well, which okteto leaves there.
    let planner = town(&[
        own.clone(),
        ingress("staging", "web", "", &["movies.example.com>catalog"]),
        okteto("alice", "catalog", "staging", "alice"),
    ]);
    assert_eq!(granted(&planner), ["movies-alice.example.com alice>staging"]);
    assert_eq!(
        status(&planner),
        (None, vec!["movies-alice.example.com Ready".into(), "movies.example.com NotAllowed".into()])
    );
    assert_eq!(capture_at(&planner, "10.96.1.12:8080").unwrap(), "10.96.1.12:8080 alice/catalog");

    let without = town(&[own]);
    assert_eq!(granted(&without), [""; 0]);
    assert!(status(&without).0.unwrap().contains("no Divert in alice is accepted"));

    let anothers = town(&[
        ingress("alice", "web", &header("bob"), &["movies-alice.example.com>catalog"]),
        divert("alice", "d", "sharedNamespace: staging"),
    ]);
    assert_eq!(granted(&anothers), [""; 0]);
    assert!(status(&anothers).0.unwrap().contains("nobody gives requests another's key"));
}

#[test]
fn a_host_of_two_diverts_extends_to_both_shared_namespaces() {
    let planner = town(&[
        shared_namespace("qa"),
        with_hosts("alice", "alice.example.com"),
        divert("alice", "q", "sharedNamespace: qa, hosts: [alice.example.com]"),
    ]);
    assert_eq!(granted(&planner), ["alice.example.com alice>qa,staging"]);
}

/// The namespace staging, sharing, with an annotation `divert.dev/hosts` or without.
fn staging_with_zone(zone: Option<&str>) -> String {
    let zone = zone.map(|zone| format!(", annotations: {{divert.dev/hosts: '{zone}'}}")).unwrap_or_default();
    document("v1", "Namespace", &format!("name: staging, labels: {{divert.dev/shared: 'true'}}{zone}"), "")
}

/// An Ingress of staging that serves a host otherwise than by a rule for it.
fn serving_without_a_rule(annotations: &str, spec: &str) -> String {
    let metadata = format!("name: films, namespace: staging, annotations: {{{annotations}}}");
    let rule = "http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: catalog, port: {number: 80}}}}]}";
    document("networking.k8s.io/v1", "Ingress", &metadata, &format!("spec: {{rules: [{{{rule}}}], {spec}}}"))
}

#[test]
fn a_host_that_the_shared_application_serves_without_a_rule_is_nobodys() {
    for (annotations, spec) in [
        ("", "tls: [{hosts: [alice.example.com]}]"),
        ("", "tls: [{hosts: [x.example.com]}, {hosts: [y.example.com, ALICE.example.com]}]"),
        ("nginx.ingress.kubernetes.io/server-alias: 'alice.example.com'", ""),
        ("nginx.ingress.kubernetes.io/server-alias: '*.x.com,Alice.example.com'", ""),
        ("nginx.ingress.kubernetes.io/server-alias: 'x.com alice.example.com.'", ""),
        ("haproxy-ingress.github.io/server-alias: alice.example.com", ""),
        ("nginx.ingress.kubernetes.io/server-alias: '~^(www|alice)\\.example\\.com$'", ""),
        ("external-dns.alpha.kubernetes.io/hostname: 'x.com, alice.example.com'", ""),
    ] {
        // Neither her name, nor a zone, nor a pattern, nor an Ingress of her own gives it to her.
        let mut documents = staging_and_alice();
        documents[0] = staging_with_zone(Some("*.example.com, {namespace}.example.com, alice.example.com"));
        documents.push(serving_without_a_rule(annotations, spec));
        documents.push(ingress("alice", "own", "", &["alice.example.com>catalog"]));
        documents.push(with_hosts("alice", "alice.example.com"));
        let planner = planner(&documents);
        assert_eq!(granted(&planner), [""; 0], "{annotations} {spec}");
        let statuses = planner.statuses();
        let [row] = &*statuses[0].hosts else { panic!("one row: {statuses:?}") };
        assert_eq!(row.reason, HostReason::NotAllowed);
        assert!(row.message.contains("(Ingress staging/films)"), "{}", row.message);
    }
}

#[test]
fn a_pattern_without_the_namespace_is_a_zone_for_hosts_that_bear_its_name() {
    for (zone, host, allowed) in [
        ("*.example.com", "films.example.com", false),
        ("films.example.com", "films.example.com", false),
        ("*.example.com", "alice.example.com", true),
        ("*.example.com", "films-alice.example.com", true),
        ("*.example.com", "films-alice.dev.example.com", false),
        ("*.*.example.com", "films-alice.dev.example.com", true),
        ("*.example.com", "films-alice.example.org", false),
        ("alice.example.com", "alice.example.com", true),
        ("films.{namespace}.example.com", "films.alice.example.com", true),
    ] {
        let mut documents = staging_and_alice();
        documents[0] = staging_with_zone(Some(zone));
        documents.push(serving_without_a_rule("", ""));
        documents.push(with_hosts("alice", host));
        let planner = planner(&documents);
        let is_allowed = !granted(&planner).is_empty();
        assert_eq!(is_allowed, allowed, "{zone} {host}");
        let reason = if allowed { "Ready" } else { "NotAllowed" };
        assert_eq!(rows(&planner, "alice/d"), [format!("{host} {reason}")]);
    }
}

#[test]
fn outside_of_a_zone_a_name_counts_with_an_ingress_of_ones_own_that_is_the_oldest_for_it() {
    let host = "films-alice.example.com";
    let at = |namespace: &str, day: &str, rule: &str| {
        let created = format!("metadata: {{creationTimestamp: '2026-01-{day}T00:00:00Z', ");
        ingress(namespace, "films", "", &[rule]).replace("metadata: {", &created)
    };
    let rule = format!("{host}>catalog");
    let wildcard = "*.example.com>catalog";
    let tls = serving_without_a_rule("", &format!("tls: [{{hosts: [{host}]}}]")).replace("staging", "bob");
    for (ingresses, refused_for) in [
        (vec![], Some("alice has no Ingress or route for it")),
        (vec![at("alice", "02", &rule)], None),
        (vec![at("alice", "02", wildcard)], Some("alice has no Ingress or route for it")),
        (vec![at("staging", "02", wildcard)], Some("alice has no Ingress or route for it")),
        // Who comes later takes nothing from her, nor does who serves all of a domain.
        (vec![at("alice", "02", &rule), at("bob", "03", &rule)], None),
        (vec![at("alice", "02", &rule), at("staging", "01", wildcard)], None),
        (vec![at("alice", "02", &rule), at("bob", "01", &rule)], Some("Ingress bob/films serves it")),
        (vec![at("alice", "02", &rule), tls.clone()], Some("Ingress bob/films serves it")),
        (vec![tls], Some("Ingress bob/films serves it")),
        (vec![at("alice", "01", &rule), at("staging", "02", &rule)], Some("(Ingress staging/films)")),
    ] {
        let mut documents = staging_and_alice();
        documents[0] = staging_with_zone(None);
        documents.extend(ingresses.iter().cloned());
        documents.push(with_hosts("alice", host));
        let planner = planner(&documents);
        assert_eq!(granted(&planner).is_empty(), refused_for.is_some(), "{ingresses:#?}");
        let statuses = planner.statuses();
        let row = &statuses[0].hosts[0];
        match refused_for {
            None => assert_eq!(row.reason, HostReason::Ready),
            Some(why) => {
                assert_eq!(row.reason, HostReason::NotAllowed);
                assert!(row.message.contains(why), "{}", row.message);
                let remedy = "`*.example.com` in the annotation divert.dev/hosts of Namespace staging";
                assert!(row.message.contains(remedy) || why.starts_with('('), "{}", row.message);
            }
        }
    }
}

#[test]
fn a_label_that_the_allow_list_does_not_let_share_protects_nothing() {
    let documents = [
        staging_and_alice(),
        vec![
            shared_namespace("mallory"),
            ingress("mallory", "squat", "", &["alice.example.com>x"]),
            namespace("prod"),
            ingress("prod", "web", "", &["shop-alice.example.com>x"]),
            with_hosts("alice", "alice.example.com, shop-alice.example.com"),
        ],
    ]
    .concat();
    let listing = |names: &[&str]| Settings {
        shared_namespaces: Some(names.iter().map(|&name| name.into()).collect()),
        ..Settings::default()
    };
    let granted = |settings| granted(&planner_with(settings, &documents));
    assert_eq!(granted(listing(&["staging"])).len(), 2);
    // What may be shared is protected before it is.
    assert_eq!(granted(listing(&["staging", "prod"])), ["alice.example.com alice>staging"]);
    assert_eq!(granted(Settings::default()), ["shop-alice.example.com alice>staging"]);
}

#[test]
fn a_namespace_called_like_a_domain_forbids_only_names_that_its_services_can_have() {
    let hosts = "alice.example.com, movies-alice.dev.example.com, alice.dev";
    let mut planner = town(&[namespace("com"), namespace("dev"), with_hosts("alice", hosts)]);
    let zone = staging_with_zone(Some("*.example.com, *.dev.example.com, *.dev"));
    planner.update(objects(&zone));
    assert_eq!(
        granted(&planner),
        ["alice.example.com alice>staging", "movies-alice.dev.example.com alice>staging"]
    );
    // An endpoint of this Service is called like that.
    let example = simple("com", "example", "10.96.7.1", "10.0.7.1");
    planner.update(objects(&example));
    assert_eq!(granted(&planner), ["movies-alice.dev.example.com alice>staging"]);
    planner.update(objects(&example).into_iter().map(|change| match change {
        WorldChange::Upsert(object) => WorldChange::Delete(object.reference()),
        delete => delete,
    }));
    assert_eq!(granted(&planner).len(), 2);
}
