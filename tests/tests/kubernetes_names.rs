//! Names that resolve: whose they are, who gets them, and that nothing of them stays behind.

use anyhow::{Result, ensure};
use divert_tests::kube::{
    CONFIG_MAP, Client, Control, DIVERT, NAMESPACE, Refusal, SERVICE, is_ours, service,
};
use divert_tests::manifest;
use serde_json::{Value, json};

fn divert(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": DIVERT.api_version, "kind": "Divert",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

/// Waits until the controller has written names once more: what it has not done by then it does not mean to.
fn wait_for_another_round(admin: &Client, shared: &str, developer: &str, name: &str) -> Result<()> {
    admin.create(&service(shared, name))?;
    admin.wait_ours(developer, name).map(drop)
}

#[test]
fn each_divert_that_needs_a_name_owns_it() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    admin.create_pair("owners-staging", "owners-alice", &["web"])?;
    let spec = json!({"sharedNamespace": "owners-staging"});
    let first = admin.create(&divert("owners-alice", "a", &spec))?;
    let made = admin.wait_ours("owners-alice", "web")?;
    assert_eq!(made["metadata"]["finalizers"], Value::Null);
    let owner = json!({
        "apiVersion": DIVERT.api_version, "kind": "Divert", "name": "a", "uid": first["metadata"]["uid"],
    });
    assert_eq!(made["metadata"]["ownerReferences"], json!([owner]), "without blockOwnerDeletion");

    let second = admin.create(&divert("owners-alice", "b", &spec))?;
    let owners = |count: usize| {
        move |it: &Value| it["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len) == count
    };
    let both = admin.wait_for(SERVICE, "owners-alice", "web", "to have two owners", owners(2))?;
    let managers = both["metadata"]["managedFields"].as_array();
    let managers: Vec<_> =
        managers.into_iter().flatten().map(|it| (&it["manager"], &it["operation"])).collect();
    assert_eq!(managers, [(&json!("divert-controller"), &json!("Apply"))], "one manager, which applies");
    admin.delete(DIVERT, "owners-alice", "a")?;
    let one = admin.wait_for(SERVICE, "owners-alice", "web", "to have one owner", owners(1))?;
    assert_eq!(one["metadata"]["uid"], made["metadata"]["uid"], "it was never away");
    assert_eq!(one["metadata"]["ownerReferences"][0]["uid"], second["metadata"]["uid"]);
    // Who wants no names any more.
    admin.patch(DIVERT, "owners-alice", "b", &json!({"spec": {"names": "None"}}))?;
    admin.wait_gone(SERVICE, "owners-alice", "web")
}

#[test]
fn what_is_there_is_theirs_and_what_is_deleted_is_left_free() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    admin.create_pair("free-staging", "free-alice", &["theirs", "deleted", "labelled"])?;
    let theirs = admin.create(&service("free-alice", "theirs"))?;
    // Our label alone makes nothing ours.
    let mut labelled = service("free-alice", "labelled");
    labelled["metadata"]["labels"] = json!({"divert.dev/external-name": "true"});
    let labelled = admin.create(&labelled)?;
    admin.create(&manifest::divert("free-alice", "free-staging"))?;
    admin.wait_ours("free-alice", "deleted")?;
    admin.delete(SERVICE, "free-alice", "deleted")?;
    wait_for_another_round(admin, "free-staging", "free-alice", "later")?;
    assert_eq!(Refusal::of(admin.get(SERVICE, "free-alice", "deleted"))?.code, 404);
    let again = admin.create(&service("free-alice", "deleted"))?;
    admin.delete(SERVICE, "free-staging", "later")?;
    admin.wait_gone(SERVICE, "free-alice", "later")?;
    for (name, before) in [("theirs", &theirs), ("labelled", &labelled), ("deleted", &again)] {
        let after = admin.get(SERVICE, "free-alice", name)?;
        assert_eq!(after["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"], "{name}");
    }
    Ok(())
}

#[test]
fn metadata_of_others_does_not_matter_and_a_field_of_the_spec_does() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    admin.create_pair("writers-staging", "writers-alice", &["noted", "node-port", "alias"])?;
    admin.create(&manifest::divert("writers-alice", "writers-staging"))?;
    for name in ["noted", "node-port", "alias"] {
        admin.wait_ours("writers-alice", name)?;
    }
    let note = json!({"metadata": {"labels": {"team": "a"}}});
    admin.patch(SERVICE, "writers-alice", "noted", &note)?;
    let ports = json!({"spec": {"ports": [{"name": "http", "port": 81}]}});
    admin.patch(SERVICE, "writers-staging", "noted", &ports)?;
    let followed = admin.wait_for(SERVICE, "writers-alice", "noted", "to follow", |it| {
        is_ours(it) && it["spec"]["ports"][0]["port"] == 81
    })?;
    assert_eq!(followed["metadata"]["labels"]["team"], "a");

    let mut node_port = service("writers-alice", "node-port");
    node_port["spec"]["type"] = json!("NodePort");
    admin.kubectl(&["apply", "-f", "-"], &node_port.to_string())?;
    let alias = json!({"spec": {"externalName": "elsewhere.example.com", "type": "ExternalName"}});
    admin.patch(SERVICE, "writers-alice", "alias", &alias)?;
    for (name, kind) in [("node-port", "NodePort"), ("alias", "ExternalName")] {
        let released = |it: &Value| !is_ours(it) && it["metadata"]["ownerReferences"].is_null();
        let theirs = admin.wait_for(SERVICE, "writers-alice", name, "to be theirs", released)?;
        assert_eq!(theirs["spec"]["type"], kind);
        if name == "node-port" {
            assert_eq!(theirs["spec"]["externalName"], Value::Null);
        } else {
            assert_eq!(theirs["spec"]["externalName"], "elsewhere.example.com", "their value is kept");
        }
        admin.wait_event(&theirs, "Normal", "Released", "it is theirs now")?;
    }
    Ok(())
}

#[test]
fn a_namespace_that_is_deleted_while_diverted_ends() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    admin.create_pair("ends-staging", "ends-alice", &["web"])?;
    admin.create_namespace(&manifest::namespace("ends-bob"))?;
    for developer in ["ends-alice", "ends-bob"] {
        admin.create(&manifest::divert(developer, "ends-staging"))?;
        admin.wait_ours(developer, "web")?;
    }
    // Keeps the namespace Terminating.
    let metadata =
        json!({"name": "hold", "namespace": "ends-alice", "finalizers": ["tests.divert.dev/hold"]});
    admin.create(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}))?;
    admin.delete(NAMESPACE, "", "ends-alice")?;
    admin.wait_gone(SERVICE, "ends-alice", "web")?;
    wait_for_another_round(admin, "ends-staging", "ends-bob", "later")?;
    assert_eq!(admin.list(SERVICE, "ends-alice")?, [] as [Value; 0]);
    let output = control.output();
    ensure!(!output.contains("Service ends-alice/"), "it tried to write there:\n{output}");
    admin.patch(CONFIG_MAP, "ends-alice", "hold", &json!({"metadata": {"finalizers": null}}))?;
    admin.wait_gone(NAMESPACE, "", "ends-alice")?;
    // And the shared one: the names go, what is the developer's stays.
    admin.delete_namespace("ends-staging")?;
    admin.wait_gone(SERVICE, "ends-bob", "web")?;
    admin.delete_namespace("ends-bob")
}

#[test]
fn an_older_divert_has_the_name_that_two_shared_namespaces_have() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    admin.create_pair("both-a", "both-alice", &["web", "kubernetes"])?;
    admin.create_namespace(&manifest::shared_namespace("both-b"))?;
    admin.create(&service("both-b", "web"))?;
    // Of the same second or not: the first by name as well.
    admin.create(&manifest::divert("both-alice", "both-a"))?;
    admin.wait_ours("both-alice", "web")?;
    let later = admin.create(&manifest::divert("both-alice", "both-b"))?;
    let says = "web resolves to both-a in both-alice";
    let seen = admin.wait_condition(&later, "Names", "ResolvedElsewhere", says)?;
    admin.wait_event(&seen, "Warning", "ResolvedElsewhere", says)?;
    let web = admin.get(SERVICE, "both-alice", "web")?;
    assert_eq!(web["spec"]["externalName"], "web.both-a.svc.cluster.local");
    assert_eq!(Refusal::of(admin.get(SERVICE, "both-alice", "kubernetes"))?.code, 404);
    admin.delete(DIVERT, "both-alice", "both-a")?;
    let moved = |it: &Value| it["spec"]["externalName"] == "web.both-b.svc.cluster.local";
    admin.wait_for(SERVICE, "both-alice", "web", "to move to the other", moved)?;
    Ok(())
}

/// Every version of a Service since one, as far as the API server has come.
fn versions_since(admin: &Client, namespace: &str, name: &str, version: &Value) -> Result<Vec<Value>> {
    let version = version["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let path = format!(
        "{}?watch=1&fieldSelector=metadata.name={name}&resourceVersion={version}&timeoutSeconds=1",
        SERVICE.collection(namespace)
    );
    let events = admin.request("GET", &path, "application/json", None)?;
    let events = match &events {
        Value::String(lines) => {
            serde_json::Deserializer::from_str(lines).into_iter().collect::<Result<_, _>>()?
        }
        one => vec![one.clone()],
    };
    Ok(events.into_iter().map(|mut event: Value| event["object"].take()).collect())
}

#[test]
fn a_service_is_handed_over_in_one_write() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    let names = ["client-side", "server-side", "helm", "moved"];
    admin.create_pair("one-staging", "one-alice", &names)?;
    admin.create(&manifest::divert("one-alice", "one-staging"))?;
    for name in names {
        admin.wait_ours("one-alice", name)?;
        let wanted = service("one-alice", name).to_string();
        let helm = json!({"metadata": {"annotations": {"meta.helm.sh/release-name": "app"}}});
        let elsewhere = json!({"spec": {"externalName": "elsewhere.example.com"}});
        let theirs = match name {
            "client-side" => {
                serde_json::from_str(&admin.kubectl(&["apply", "-o", "json", "-f", "-"], &wanted)?)?
            }
            "server-side" => serde_json::from_str(
                &admin.kubectl(&["apply", "--server-side", "-o", "json", "-f", "-"], &wanted)?,
            )?,
            "helm" => admin.patch(SERVICE, "one-alice", name, &helm)?,
            _ => admin.patch(SERVICE, "one-alice", name, &elsewhere)?,
        };
        let released = |it: &Value| !is_ours(it);
        let released = admin.wait_for(SERVICE, "one-alice", name, "to be theirs", released)?;
        let versions = versions_since(admin, "one-alice", name, &theirs)?;
        assert_eq!(versions, [released], "{name}: one write after theirs");
        let after = &versions[0];
        assert_eq!(after["metadata"]["ownerReferences"], Value::Null, "{name}");
        assert_eq!(after["metadata"]["annotations"]["divert.okteto.com/namespace"], Value::Null, "{name}");
        let alias = if name == "moved" { json!("elsewhere.example.com") } else { Value::Null };
        assert_eq!(after["spec"]["externalName"], alias, "{name}");
    }
    Ok(())
}

/// What the controller makes, without an owner, as a backup that was restored is.
fn orphan(namespace: &str, name: &str, shared: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": namespace, "labels": {"divert.dev/external-name": "true"},
            "annotations": {"divert.okteto.com/namespace": shared},
        },
        "spec": {
            "type": "ExternalName", "externalName": format!("{name}.{shared}.svc.cluster.local"),
            "ports": [{"name": "http", "port": 80}],
        },
    })
}

#[test]
fn what_a_backup_brought_back_is_adopted_or_named() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    admin.create_pair("backup-qa", "backup-alice", &["web", "kept"])?;
    let divert = admin.create(&manifest::divert("backup-alice", "backup-qa"))?;
    let web = admin.wait_ours("backup-alice", "web")?;
    let as_controller = |method: &str, path: &str, kind: &str, body: &Value| {
        admin.request(method, &format!("{path}?fieldManager=divert-controller"), kind, Some(body))
    };

    // As it was made, but for its owner, and leading to where it led when it was saved.
    let elsewhere = json!({
        "metadata": {"ownerReferences": null, "annotations": {"divert.okteto.com/namespace": "backup-staging"}},
        "spec": {"externalName": "web.backup-staging.svc.cluster.local"},
    });
    let path = SERVICE.path("backup-alice", "web");
    as_controller("PATCH", &path, "application/merge-patch+json", &elsewhere)?;
    let adopted = admin.wait_for(SERVICE, "backup-alice", "web", "to be adopted", |it| {
        it["metadata"]["ownerReferences"][0]["uid"] == divert["metadata"]["uid"]
            && it["spec"]["externalName"] == "web.backup-qa.svc.cluster.local"
    })?;
    assert_eq!(adopted["metadata"]["uid"], web["metadata"]["uid"], "it was never away");
    // What nobody wants there is not left behind.
    let stray = orphan("backup-alice", "stray", "backup-staging");
    as_controller("POST", &SERVICE.collection("backup-alice"), "application/json", &stray)?;
    admin.wait_gone(SERVICE, "backup-alice", "stray")?;

    // Where somebody else wrote it, it is theirs until they say otherwise, and the author of the Divert is told.
    let theirs = admin.create(&orphan("backup-alice", "catalog", "backup-staging"))?;
    admin.create(&service("backup-qa", "catalog"))?;
    let says = "2 of 3 Services of backup-qa that backup-alice lacks resolve in it by their short names, and not catalog: \
                the Service there bears the label divert.dev/external-name";
    let seen = admin.wait_condition(&divert, "Names", "NotOurs", says)?;
    admin.wait_event(&seen, "Warning", "NotOurs", "kubectl delete service catalog -n backup-alice")?;
    let still = admin.get(SERVICE, "backup-alice", "catalog")?;
    assert_eq!(still["metadata"], theirs["metadata"]);
    admin.delete(SERVICE, "backup-alice", "catalog")?;
    let made = admin.wait_ours("backup-alice", "catalog")?;
    assert_eq!(made["spec"]["externalName"], "catalog.backup-qa.svc.cluster.local");
    admin.wait_condition(&divert, "Names", "Resolve", "")?;

    admin.delete(DIVERT, "backup-alice", "backup-qa")?;
    for name in ["web", "kept", "catalog"] {
        admin.wait_gone(SERVICE, "backup-alice", name)?;
    }
    Ok(())
}

#[test]
fn an_alias_of_pods_names_the_port_that_they_listen_on() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    admin.create_pair("target-staging", "target-alice", &["clustered"])?;
    admin.patch(
        SERVICE,
        "target-staging",
        "clustered",
        &json!({"spec": {"ports": [{"port": 80, "name": "http", "targetPort": 8080}]}}),
    )?;
    let mut headless = service("target-staging", "headless");
    headless["spec"]["clusterIP"] = json!("None");
    headless["spec"]["ports"] = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
    admin.create(&headless)?;
    admin.create(&manifest::divert("target-alice", "target-staging"))?;
    for (name, target) in [("headless", 8080), ("clustered", 80)] {
        let made = admin.wait_ours("target-alice", name)?;
        let port = &made["spec"]["ports"][0];
        assert_eq!((&port["port"], &port["targetPort"]), (&json!(80), &json!(target)), "{name}");
    }
    let ports = json!({"spec": {"ports": [{"port": 80, "name": "http", "targetPort": 9090}]}});
    let headless = admin.get(SERVICE, "target-alice", "headless")?;
    admin.patch(SERVICE, "target-staging", "headless", &ports)?;
    let followed = admin.wait_for(SERVICE, "target-alice", "headless", "to follow", |it| {
        it["spec"]["ports"][0]["targetPort"] == 9090
    })?;
    assert_eq!(followed["metadata"]["uid"], headless["metadata"]["uid"]);
    Ok(())
}
