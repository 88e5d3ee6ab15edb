//! Names and events that the API server refuses: what is told of them, how often they are asked for, and that others do not wait.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use divert_tests::kube::{
    ApiServer, Audited, Client, Control, DIVERT, EVENT, Kind, NAMESPACE, Options, SERVICE, is_ours, service,
};
use divert_tests::{manifest, wait};
use serde_json::{Value, json};

const RESOURCE_QUOTA: Kind = Kind::new("v1", "ResourceQuota");
const POLICY: Kind = Kind::new("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy");
const BINDING: Kind = Kind::new("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding");

fn start() -> Result<(Arc<ApiServer>, Control)> {
    let options = Options { controllers: true, audit: true, ..Options::default() };
    let server = Arc::new(ApiServer::start(options)?);
    let account = Control::install(&server)?;
    let control = Control::start(&server, &account, &[])?;
    Ok((server, control))
}

/// How often the controller has asked for a Service in a namespace and was refused.
fn refused(server: &ApiServer, namespace: &str) -> Result<usize> {
    let audit = server.audit()?;
    let refused = audit.iter().filter(|it| {
        (it.verb.as_str(), it.resource.as_str(), it.namespace.as_str()) == ("create", "services", namespace)
            && it.user.ends_with(":divert-controller")
            && [403, 422].contains(&it.code)
    });
    Ok(refused.count())
}

fn names(services: &[Value]) -> Vec<&str> {
    services.iter().filter_map(|it| it["metadata"]["name"].as_str()).collect()
}

/// What happened to a Divert for a reason.
fn events(admin: &Client, namespace: &str, reason: &str) -> Result<usize> {
    let events = admin.list(EVENT, namespace)?;
    let about = events.iter().filter(|it| it["reason"] == reason && it["involvedObject"]["kind"] == "Divert");
    Ok(about.map(|it| it["count"].as_u64().unwrap_or(1).max(1)).sum::<u64>() as usize)
}

/// Has objects of a kind, such as this one, refused in its namespace unless an expression holds, and waits until they are.
fn install_policy(admin: &Client, refused: &Value, expression: &str, message: &str) -> Result<()> {
    let namespace = refused["metadata"]["namespace"].as_str().unwrap_or_default();
    let group = refused["apiVersion"].as_str().and_then(|it| it.split_once('/')).map_or("", |it| it.0);
    let resources = format!("{}s", refused["kind"].as_str().unwrap_or_default().to_lowercase());
    admin.create(&json!({
        "apiVersion": POLICY.api_version, "kind": POLICY.kind, "metadata": {"name": namespace},
        "spec": {
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [resources],
            }]},
            "validations": [{"expression": expression, "message": message}],
        },
    }))?;
    admin.create(&json!({
        "apiVersion": BINDING.api_version, "kind": BINDING.kind, "metadata": {"name": namespace},
        "spec": {
            "policyName": namespace, "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}},
        },
    }))?;
    wait::until(&format!("the policy of {namespace} to act"), || admin.dry_run(refused).is_err())
}

fn alias(namespace: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "probe", "namespace": namespace},
        "spec": {"type": "ExternalName", "externalName": "example.com"},
    })
}

#[test]
fn a_quota_is_told_once_and_the_first_by_name_exist() -> Result<()> {
    let (server, control) = start()?;
    let admin = server.admin();
    let all: Vec<_> = (0..20).map(|number| format!("n{number:02}")).collect();
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    admin.create_pair("staging", "alice", &all)?;
    admin.create_namespace(&manifest::namespace("bob"))?;
    let quota = |hard: &str| {
        json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small", "namespace": "alice"},
            "spec": {"hard": {"count/services": hard}},
        })
    };
    admin.create(&quota("5"))?;
    admin
        .wait_for(RESOURCE_QUOTA, "alice", "small", "to be counted", |it| !it["status"]["hard"].is_null())?;

    let divert = admin.create(&manifest::divert("alice", "staging"))?;
    let says = "5 of 20 Services of staging that alice lacks resolve in it by their short names, and not n05, n06, n07, \
                n08, n09 and 10 more. The API server says: ";
    let seen =
        admin.wait_condition(&divert, "Names", "QuotaExceeded", says).with_context(|| control.output())?;
    admin.wait_event(&seen, "Warning", "QuotaExceeded", "exceeded quota: small")?;
    assert_eq!(names(&admin.list(SERVICE, "alice")?), all[..5], "the first by name, whoever was faster");

    // Others have all they want meanwhile.
    let other = admin.create(&manifest::divert("bob", "staging"))?;
    admin.wait_condition(&other, "Names", "Resolve", "every Service of staging resolves in bob")?;
    let tries = refused(&server, "alice")?;
    ensure!((1..=4).contains(&tries), "{tries} tries under a quota that is used up");

    // One that goes makes room for the next, at once.
    admin.delete(SERVICE, "alice", "n02")?;
    admin.wait_ours("alice", "n05")?;
    // And all come once there is room for all.
    admin.apply(&quota("50"))?;
    admin.wait_condition(&divert, "Names", "Resolve", "every Service of staging resolves in alice")?;
    admin.wait_ours("alice", "n19")?;
    assert_eq!(events(admin, "alice", "QuotaExceeded")?, 1, "told once");
    let warnings = control.output().lines().filter(|it| it.contains("WARN") && it.contains("alice/")).count();
    ensure!(warnings <= 2, "{warnings} warnings: {}", control.output());
    Ok(())
}

#[test]
fn a_policy_is_told_in_its_own_words_and_takes_no_writes_from_others() -> Result<()> {
    let (server, control) = start()?;
    let admin = server.admin();
    let all: Vec<_> = (0..200).map(|number| format!("n{number:03}")).collect();
    admin.create_pair("staging", "alice", &all.iter().map(String::as_str).collect::<Vec<_>>())?;
    admin.create_namespace(&manifest::namespace("bob"))?;
    install_policy(
        admin,
        &alias("alice"),
        "!has(object.spec.type) || object.spec.type != 'ExternalName' || has(namespaceObject.metadata.labels.aliases)",
        "no aliases in this namespace",
    )?;

    let divert = admin.create(&manifest::divert("alice", "staging"))?;
    let says = "0 of 200 Services of staging that alice lacks resolve in it by their short names, and not n000, n001, \
                n002, n003, n004 and 195 more. The API server says: ";
    let seen = admin.wait_condition(&divert, "Names", "Refused", says).with_context(|| control.output())?;
    admin.wait_event(&seen, "Warning", "Refused", "no aliases in this namespace")?;

    let before = refused(&server, "alice")?;
    ensure!(before <= 210, "{before} tries for 200 names");
    let other = admin.create(&manifest::divert("bob", "staging"))?;
    admin.wait_condition(&other, "Names", "Resolve", "")?;
    let tries = refused(&server, "alice")? - before;
    ensure!(tries <= 40, "{tries} refused tries while 200 names of another were made");
    assert_eq!(events(admin, "alice", "Refused")?, 1, "told once");
    let warnings = control.output().lines().filter(|it| it.contains("WARN") && it.contains("alice/")).count();
    ensure!(warnings <= 2, "{warnings} warnings: {}", control.output());

    // A namespace that has changed is asked at once, long before the pause is over.
    admin.patch(NAMESPACE, "", "alice", &json!({"metadata": {"labels": {"aliases": "true"}}}))?;
    admin.wait_condition(&divert, "Names", "Resolve", "every Service of staging resolves in alice")?;
    Ok(())
}

#[test]
fn an_alias_of_what_has_no_port_for_http_has_one_where_policies_want_ports() -> Result<()> {
    let (server, control) = start()?;
    let admin = server.admin();
    admin.create_pair("staging", "alice", &["web"])?;
    let headless = |name: &str, ports: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "staging"},
            "spec": {"clusterIP": "None", "selector": {"app": name}, "ports": ports},
        })
    };
    admin.create(&headless("bare", json!([])))?;
    admin.create(&headless("db", json!([{"name": "postgres", "port": 5432}])))?;
    let some = "has(object.spec.ports) && size(object.spec.ports) > 0";
    install_policy(admin, &alias("alice"), some, "no ports")?;
    let divert = admin.create(&manifest::divert("alice", "staging"))?;
    admin.wait_condition(&divert, "Names", "Resolve", "").with_context(|| control.output())?;
    for (name, port) in [("bare", 80), ("db", 5432), ("web", 80)] {
        let made = admin.wait_for(SERVICE, "alice", name, "to be made", is_ours)?;
        assert_eq!(made["spec"]["ports"][0]["port"], port, "{name}");
        assert_eq!(made["spec"]["ports"].as_array().map(Vec::len), Some(1), "{name}");
    }
    // Hers over it, by a client-side apply, which adds ports to those that are there.
    let mut hers = service("alice", "bare");
    hers["spec"]["ports"][0]["port"] = json!(8080);
    admin.kubectl(&["apply", "-f", "-"], &hers.to_string())?;
    admin.wait_for(SERVICE, "alice", "bare", "to be hers", |it| {
        !is_ours(it) && it["spec"]["type"] == "ClusterIP"
    })?;
    Ok(())
}

/// A status is written and the event about it is not taken: it is published when it can be, also where nothing else changes.
#[test]
fn an_event_that_was_refused_is_published_when_it_is_allowed() -> Result<()> {
    let (server, control) = start()?;
    let admin = server.admin();
    admin.create_namespace(&manifest::namespace("alice"))?;
    let probe = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "probe", "namespace": "alice"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "probe", "reportingInstance": "probe",
        "action": "Probe", "reason": "Probe", "type": "Normal", "regarding": {"kind": "Divert", "namespace": "alice"},
    });
    admin.dry_run(&probe)?;
    install_policy(admin, &probe, "false", "no events in this namespace")?;
    let divert = admin.create(&manifest::divert("alice", "nowhere"))?;
    let seen = admin.wait_condition(&divert, "Accepted", "SharedNamespaceNotFound", "nowhere")?;
    let denied =
        |it: &Audited| (it.verb.as_str(), it.resource.as_str(), it.code) == ("create", "events", 422);
    wait::until("an event to be refused", || server.audit().is_ok_and(|all| all.iter().any(denied)))?;
    assert_eq!(events(admin, "alice", "SharedNamespaceNotFound")?, 0);

    admin.delete(BINDING, "", "alice")?;
    admin
        .wait_event(&seen, "Warning", "SharedNamespaceNotFound", "nowhere")
        .with_context(|| control.output())?;
    assert_eq!(events(admin, "alice", "SharedNamespaceNotFound")?, 1);
    let now = admin.get(DIVERT, "alice", "nowhere")?;
    assert_eq!(
        now["metadata"]["resourceVersion"], seen["metadata"]["resourceVersion"],
        "nothing else has changed"
    );
    Ok(())
}
