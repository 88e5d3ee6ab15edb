//! What the author of a Divert is told: every reason of every condition, every row, and the event of each.

use anyhow::Result;
use divert_tests::kube::{CONFIG_MAP, Client, Control, DIVERT, INGRESS, NAMESPACE, SERVICE, condition};
use divert_tests::manifest;
use serde_json::{Value, json};

fn divert(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": DIVERT.api_version, "kind": "Divert",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

fn service(namespace: &str, name: &str, port: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [port]},
    })
}

fn http() -> Value {
    json!({"name": "http", "port": 80})
}

/// Waits for a refusal, and sees that nothing else is said and that the event says the same.
fn wait_refused(admin: &Client, divert: &Value, reason: &str, says: &str) -> Result<Value> {
    let seen = wait_still_refused(admin, divert, reason, says)?;
    admin.wait_event(&seen, "Warning", reason, says)?;
    Ok(seen)
}

/// The same where only the sentence is another, which is no event.
fn wait_still_refused(admin: &Client, divert: &Value, reason: &str, says: &str) -> Result<Value> {
    let seen = admin.wait_condition(divert, "Accepted", reason, says)?;
    let conditions: Vec<_> = seen["status"]["conditions"].as_array().into_iter().flatten().collect();
    assert_eq!(conditions.len(), 1, "only Accepted: {conditions:?}");
    assert_eq!(conditions[0]["status"], "False");
    for rows in ["services", "hosts"] {
        assert!(seen["status"][rows].as_array().is_none_or(Vec::is_empty), "{rows} of {seen}");
    }
    Ok(seen)
}

fn wait_accepted(admin: &Client, divert: &Value, says: &str) -> Result<Value> {
    let seen = admin.wait_condition(divert, "Accepted", "Accepted", says)?;
    assert_eq!(condition(&seen, "Accepted")["status"], "True");
    admin.wait_event(&seen, "Normal", "Accepted", says)?;
    Ok(seen)
}

#[test]
fn consent_and_each_way_to_withhold_it() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    admin.create_namespace(&manifest::namespace("consent-alice"))?;
    let lonely = admin.create(&manifest::divert("consent-alice", "consent-staging"))?;
    let first = wait_refused(admin, &lonely, "SharedNamespaceNotFound", "consent-staging does not exist")?;

    admin.create_namespace(&manifest::namespace("consent-staging"))?;
    let second = wait_refused(admin, &lonely, "SharedNamespaceNotShared", "divert.dev/shared=true")?;
    let since = |divert: &Value| condition(divert, "Accepted")["lastTransitionTime"].clone();
    assert_eq!(since(&first), since(&second), "it was False all the time");
    let namespace = |metadata: Value| {
        admin.patch(NAMESPACE, "", "consent-staging", &json!({"metadata": metadata})).map(drop)
    };
    let allowed = |selector: &str| json!({"annotations": {"divert.dev/allowed-namespaces": selector}});
    namespace(allowed("team=a"))?;
    namespace(json!({"labels": {"divert.dev/shared": "true"}}))?;
    wait_still_refused(admin, &lonely, "SharedNamespaceNotShared", "shared, but not with consent-alice")?;
    namespace(allowed("team=(a"))?;
    wait_still_refused(admin, &lonely, "SharedNamespaceNotShared", "shared with nobody")?;
    namespace(allowed("team=a"))?;
    let label = |labels: Value| {
        admin.patch(NAMESPACE, "", "consent-alice", &json!({"metadata": {"labels": labels}})).map(drop)
    };
    label(json!({"team": "a"}))?;
    wait_accepted(admin, &lonely, "go to consent-alice")?;

    // No chains, from either side.
    label(json!({"divert.dev/shared": "true"}))?;
    wait_refused(admin, &lonely, "NamespaceIsShared", "consent-alice is shared itself")?;
    label(json!({"divert.dev/shared": null}))?;
    wait_accepted(admin, &lonely, "go to consent-alice")?;
    let spec = json!({"spec": {"sharedNamespace": "consent-alice"}});
    let turned = admin.patch(DIVERT, "consent-alice", "consent-staging", &spec)?;
    assert_eq!(turned["metadata"]["generation"], 2);
    let seen = wait_refused(admin, &turned, "SharedNamespaceIsOwn", "own namespace")?;
    assert_eq!(seen["status"]["observedGeneration"], 2);
    Ok(())
}

#[test]
fn a_shared_namespace_that_is_on_its_way_out() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    admin.create_namespace(&manifest::shared_namespace("leaving-staging"))?;
    admin.create_namespace(&manifest::namespace("leaving-alice"))?;
    let divert = admin.create(&manifest::divert("leaving-alice", "leaving-staging"))?;
    wait_accepted(admin, &divert, "go to leaving-alice")?;
    // Keeps the namespace in this state.
    let metadata =
        json!({"name": "hold", "namespace": "leaving-staging", "finalizers": ["tests.divert.dev/hold"]});
    admin.create(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}))?;
    admin.delete(NAMESPACE, "", "leaving-staging")?;
    wait_refused(admin, &divert, "NamespaceTerminating", "leaving-staging is being deleted")?;
    let free = json!({"metadata": {"finalizers": null}});
    admin.patch(CONFIG_MAP, "leaving-staging", "hold", &free)?;
    wait_refused(admin, &divert, "SharedNamespaceNotFound", "leaving-staging does not exist")?;
    admin.wait_gone(NAMESPACE, "", "leaving-staging")
}

#[test]
fn a_later_divert_that_says_otherwise_conflicts_until_the_older_is_gone() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    admin.create_namespace(&manifest::shared_namespace("conflict-staging"))?;
    admin.create_namespace(&manifest::namespace("conflict-alice"))?;
    // Of the same second or not: the first by name as well.
    let older =
        admin.create(&divert("conflict-alice", "a", &json!({"sharedNamespace": "conflict-staging"})))?;
    wait_accepted(admin, &older, "")?;
    let mut later = Vec::new();
    for (name, field, value) in
        [("b", "inject", "None"), ("c", "onUnavailable", "Shared"), ("d", "names", "None")]
    {
        let spec = json!({"sharedNamespace": "conflict-staging", field: value});
        let other = admin.create(&divert("conflict-alice", name, &spec))?;
        wait_refused(admin, &other, "Conflicts", &format!("{field} is "))?;
        let seen = admin.wait_condition(&other, "Accepted", "Conflicts", "conflict-alice/a")?;
        later.push(seen);
    }
    admin.wait_condition(&older, "Accepted", "Accepted", "")?;
    admin.delete(DIVERT, "conflict-alice", "a")?;
    // Now b decides, which says nothing of the other two fields: their defaults hold.
    wait_accepted(admin, &later[0], "")?;
    wait_still_refused(admin, &later[1], "Conflicts", "conflict-alice/b")?;
    admin.delete(DIVERT, "conflict-alice", "b")?;
    wait_accepted(admin, &later[1], "")?;
    Ok(())
}

#[test]
fn each_service_has_a_row_that_says_what_to_do() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    let (n, k) = ("rows-staging", "rows-alice");
    admin.create_namespace(&manifest::shared_namespace(n))?;
    admin.create_namespace(&manifest::namespace(k))?;
    admin.create_node("rows-node")?;
    let tcp = json!({"name": "tcp", "port": 80});
    let alias = |namespace: &str, name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"type": "ExternalName", "externalName": "elsewhere.example.com"},
        })
    };
    for name in ["by-hand", "fine", "missing", "own-alias", "unready"] {
        admin.create(&service(n, name, &http()))?;
    }
    admin.create(&service(n, "ports", &json!({"name": "http", "port": 8081})))?;
    admin.create(&service(n, "database", &tcp))?;
    admin.create(&alias(n, "their-alias"))?;
    for name in ["alone", "fine", "their-alias", "unready"] {
        admin.create(&service(k, name, &http()))?;
    }
    admin.create(&alias(k, "own-alias"))?;
    admin.create(&service(k, "database", &tcp))?;
    let mut two = service(k, "ports", &Value::Null);
    two["spec"]["ports"] = json!([{"name": "http-a", "port": 80}, {"name": "http-b", "port": 82}]);
    admin.create(&two)?;
    let mut by_hand = service(k, "by-hand", &http());
    by_hand["spec"]["selector"] = Value::Null;
    admin.create(&by_hand)?;
    let ip = "10.77.0.9".parse()?;
    admin.create(&{
        let mut slice = manifest::endpoint_slice(k, "by-hand", "mine", &[(ip, true)], 80);
        slice["ports"][0]["name"] = json!("http");
        slice
    })?;
    admin.create_idle_pod(k, "fine", "rows-node", "10.77.0.1", true)?;
    admin.create_idle_pod(k, "fine", "rows-node", "10.77.0.2", true)?;
    admin.create_idle_pod(k, "ports", "rows-node", "10.77.0.3", true)?;
    admin.create_idle_pod(k, "unready", "rows-node", "10.77.0.4", false)?;

    let names =
        ["alone", "by-hand", "database", "fine", "missing", "own-alias", "ports", "their-alias", "unready"];
    let spec = json!({"sharedNamespace": n, "services": names});
    let divert = admin.create(&divert(k, "all", &spec))?;
    let expected = [
        ("alone", 0, "NotInShared", "rows-staging has no Service alone"),
        ("by-hand", 0, "EndpointsNotPods", "rows-alice/by-hand are not pods that it selects"),
        ("database", 0, "NotHTTP", "no port of rows-staging/database may speak HTTP"),
        ("fine", 2, "Ready", ""),
        ("missing", 0, "ServiceMissing", "rows-alice has no Service missing: deploy it"),
        ("own-alias", 0, "ExternalName", "rows-alice/own-alias is of type ExternalName"),
        ("ports", 0, "PortMismatch", "rows-alice/ports has no port for 8081 of rows-staging/ports"),
        ("their-alias", 0, "ExternalName", "rows-staging/their-alias is of type ExternalName"),
        ("unready", 0, "NoReadyEndpoints", "no endpoint of rows-alice/unready is ready"),
    ];
    let holds = |divert: &Value| {
        let rows = divert["status"]["services"].as_array();
        rows.is_some_and(|rows| {
            rows.len() == expected.len()
                && rows.iter().zip(expected).all(|(row, (name, ready, reason, says))| {
                    let message = row["message"].as_str().unwrap_or_default();
                    (&row["name"], &row["readyEndpoints"], &row["reason"])
                        == (&json!(name), &json!(ready), &json!(reason))
                        && (message.contains(says) && message.is_empty() == says.is_empty())
                })
        })
    };
    admin.wait_for(DIVERT, k, "all", "to have each row", holds)?;
    let waiting = "alone, so there is nothing to divert (and 6 more)";
    let seen = admin.wait_condition(&divert, "Ready", "ServicesNotReady", waiting)?;
    assert_eq!(condition(&seen, "Ready")["status"], "False");
    assert_eq!(condition(&seen, "Accepted")["status"], "True", "Ready gates nothing");
    admin.wait_event(&seen, "Warning", "ServicesNotReady", "rows-staging has no Service alone")?;

    // Readiness is followed, and what was asked for first is told anew with each spec.
    let only = |names: Value| admin.patch(DIVERT, k, "all", &json!({"spec": {"services": names}}));
    let unready = only(json!(["fine", "unready"]))?;
    admin.wait_condition(&unready, "Ready", "ServicesNotReady", "rows-alice/unready is ready: see")?;
    admin.create_idle_pod(k, "unready", "rows-node", "10.77.0.5", true)?;
    let ready = admin.wait_condition(&unready, "Ready", "Ready", "fine, unready run in rows-alice")?;
    assert_eq!(
        ready["status"]["services"],
        json!([
            {"name": "fine", "readyEndpoints": 2, "reason": "Ready"},
            {"name": "unready", "readyEndpoints": 1, "reason": "Ready"},
        ])
    );
    admin.wait_event(&ready, "Normal", "Ready", "run in rows-alice")?;
    for name in names {
        if name != "alone" && name != "missing" {
            admin.delete(SERVICE, k, name)?;
        }
    }
    let all = only(Value::Null)?;
    let none = admin.wait_condition(&all, "Ready", "NoServices", "have no Service in common")?;
    assert_eq!(condition(&none, "Ready")["status"], "False");
    admin.wait_event(&none, "Warning", "NoServices", "have no Service in common")
}

#[test]
fn nodes_without_a_ready_agent_are_named() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    admin.create_namespace(&manifest::shared_namespace("nodes-staging"))?;
    admin.create_namespace(&manifest::namespace("nodes-alice"))?;
    admin.create_node("nodes-node")?;
    admin.create_idle_pod("nodes-staging", "web", "nodes-node", "10.77.1.1", true)?;
    let divert = admin.create(&manifest::divert("nodes-alice", "nodes-staging"))?;
    let seen = admin.wait_condition(&divert, "Programmed", "Programmed", "serve")?;
    assert_eq!(condition(&seen, "Programmed")["status"], "True");
    admin.wait_event(&seen, "Normal", "Programmed", "serve")?;

    admin.set_agent_ready("nodes-node", false)?;
    let seen = admin.wait_condition(&divert, "Programmed", "AgentsNotReady", "nodes-node")?;
    assert_eq!(condition(&seen, "Programmed")["status"], "False");
    assert_eq!(condition(&seen, "Accepted")["status"], "True", "it gates nothing");
    admin.wait_event(&seen, "Warning", "AgentsNotReady", "nodes-node")?;
    // Agents leave alone what is labelled so: nobody waits for one.
    let capture = |value: Value| json!({"metadata": {"labels": {"divert.dev/capture": value}}});
    admin.patch(NAMESPACE, "", "nodes-staging", &capture(json!("false")))?;
    admin.wait_condition(&divert, "Programmed", "Programmed", "serve")?;
    admin.patch(NAMESPACE, "", "nodes-staging", &capture(Value::Null))?;
    admin.wait_condition(&divert, "Programmed", "AgentsNotReady", "nodes-node")?;
    admin.set_agent_ready("nodes-node", true)?;
    admin.wait_condition(&divert, "Programmed", "Programmed", "serve")?;
    Ok(())
}

#[test]
fn each_host_has_a_row_and_the_rest_of_the_divert_stays() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    let mut shared = manifest::shared_namespace("hosts-staging");
    shared["metadata"]["annotations"] =
        json!({"divert.dev/hosts": "*.{namespace}.example.com, *.example.com"});
    admin.create_namespace(&shared)?;
    for name in ["hosts-alice", "web-hosts-alice"] {
        admin.create_namespace(&manifest::namespace(name))?;
    }
    admin.create(&manifest::ingress("hosts-staging", "app", "shop-hosts-alice.example.com", "web"))?;
    let mine = admin.create(&manifest::ingress("hosts-alice", "mine", "x.hosts-alice.example.com", "web"))?;
    let hosts = [
        ("app-hosts-alice.example.com", "NoRoute", "add an Ingress for it"),
        ("bank.example.com", "NotAllowed", "may not be hosts-alice's"),
        ("hosts-alice.hosts-staging", "NotAllowed", "may name a Service"),
        ("hosts-alice.x.svc", "NotAllowed", "may name a Service"),
        ("shop-hosts-alice.example.com", "NotAllowed", "a host of the shared application"),
        ("x-web-hosts-alice.example.com", "TakenBy", "is given to web-hosts-alice"),
        ("x.hosts-alice.example.com", "Ready", ""),
    ];
    let theirs = json!({"sharedNamespace": "hosts-staging", "hosts": ["x-web-hosts-alice.example.com"]});
    admin.create(&divert("web-hosts-alice", "theirs", &theirs))?;
    let spec = json!({"sharedNamespace": "hosts-staging", "hosts": hosts.map(|(host, ..)| host)});
    let divert = admin.create(&divert("hosts-alice", "mine", &spec))?;
    let holds = |divert: &Value| {
        hosts.iter().all(|(host, reason, says)| {
            let rows = divert["status"]["hosts"].as_array();
            let row = rows.and_then(|rows| rows.iter().find(|row| row["name"] == *host));
            row.is_some_and(|row| {
                let message = row["message"].as_str().unwrap_or_default();
                row["reason"] == *reason && message.contains(says) && message.is_empty() == says.is_empty()
            })
        })
    };
    let seen = admin.wait_for(DIVERT, "hosts-alice", "mine", "to have each row", holds)?;
    assert_eq!(seen["status"]["hosts"].as_array().map(Vec::len), Some(hosts.len()));
    for (host, reason, _) in hosts.iter().filter(|(_, reason, _)| *reason != "Ready") {
        admin.wait_event(&seen, "Warning", reason, host)?;
    }
    wait_accepted(admin, &divert, "")?;

    // Annotated Ingresses have no status: what is wrong with them is an event.
    let annotate = |namespace: &str, name: &str, value: &str| {
        let patch = json!({"metadata": {"annotations": {"divert.okteto.com/header": value}}});
        admin.patch(INGRESS, namespace, name, &patch)
    };
    annotate("hosts-alice", "mine", "hosts-bob")?;
    admin.wait_event(&mine, "Warning", "NotAllowed", "nobody gives requests another's key")?;
    let bank = admin.create(&manifest::ingress("hosts-alice", "bank", "bank.example.com", "web"))?;
    annotate("hosts-alice", "bank", "hosts-alice")?;
    admin.wait_event(&bank, "Warning", "NotAllowed", "bank.example.com may not be hosts-alice's")?;
    admin.delete(DIVERT, "hosts-alice", "mine")?;
    admin.wait_event(&bank, "Warning", "NotAllowed", "no Divert in hosts-alice is accepted")
}

/// Claims by merge patch, as somebody with the right to, that all is well.
fn claim(admin: &Client, namespace: &str, name: &str) -> Result<()> {
    let condition = |kind: &str| {
        json!({
            "type": kind, "status": "True", "reason": "Trust", "message": "me", "observedGeneration": 1,
            "lastTransitionTime": "2020-01-01T00:00:00Z",
        })
    };
    let conditions: Vec<_> = ["Accepted", "Ready", "Programmed", "Names"].map(condition).into();
    let rows = json!([{"name": "ghost", "readyEndpoints": 3, "reason": "Ready"}]);
    let status = json!({"status": {"conditions": conditions, "services": rows}});
    let path = format!("{}/status?fieldManager=x", DIVERT.path(namespace, name));
    admin.request("PATCH", &path, "application/merge-patch+json", Some(&status)).map(drop)
}

#[test]
fn conditions_are_the_controllers_whoever_wrote_there() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    admin.create_namespace(&manifest::namespace("claim-staging"))?;
    admin.create_namespace(&manifest::namespace("claim-alice"))?;
    let divert = admin.create(&manifest::divert("claim-alice", "claim-staging"))?;
    let label = |value: Value| {
        let labels = json!({"metadata": {"labels": {"divert.dev/shared": value}}});
        admin.patch(NAMESPACE, "", "claim-staging", &labels).map(drop)
    };
    let refused = || -> Result<()> {
        let is_refused = |it: &Value| {
            it["status"]["conditions"].as_array().map(Vec::len) == Some(1)
                && condition(it, "Accepted")["reason"] == "SharedNamespaceNotShared"
                && it["status"]["services"].is_null()
        };
        admin.wait_for(
            DIVERT,
            "claim-alice",
            "claim-staging",
            "to be refused and nothing else",
            is_refused,
        )?;
        Ok(())
    };
    refused()?;
    claim(admin, "claim-alice", "claim-staging")?;
    refused()?;
    // Fields that are partly theirs are in nobody's way, whatever comes and goes.
    label(json!("true"))?;
    wait_accepted(admin, &divert, "go to claim-alice")?;
    claim(admin, "claim-alice", "claim-staging")?;
    admin.wait_condition(&divert, "Accepted", "Accepted", "go to claim-alice")?;
    let flip = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Trust", "message": "me",
        "lastTransitionTime": "2020-01-01T00:00:00Z"}]}});
    let path = format!("{}/status?fieldManager=y&force=true", DIVERT.path("claim-alice", "claim-staging"));
    let mut apply = flip;
    apply["apiVersion"] = json!(DIVERT.api_version);
    apply["kind"] = json!("Divert");
    admin.request("PATCH", &path, "application/apply-patch+yaml", Some(&apply))?;
    admin.wait_condition(&divert, "Ready", "NoServices", "")?;
    label(Value::Null)?;
    refused()
}
