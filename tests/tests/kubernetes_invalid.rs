//! Diverts that say what they may not, as an older definition may have let them be: what their authors are told.

use std::sync::Arc;

use anyhow::{Context, Result};
use divert_tests::kube::{
    ApiServer, CUSTOM_RESOURCE_DEFINITION, Client, Control, DIVERT, Kind, Options, condition, service,
};
use divert_tests::{manifest, wait};
use serde_json::{Value, json};

const DEFINITION: &str = "diverts.divert.dev";

/// Has the definition take whatever is written.
fn loosen(admin: &Client) -> Result<()> {
    let mut definition = admin.get(CUSTOM_RESOURCE_DEFINITION, "", DEFINITION)?;
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = schema;
    admin.replace(&definition)?;
    wait::until("the API server to take anything", || admin.dry_run(&divert("probe", "Never")).is_ok())
}

fn divert(name: &str, inject: &str) -> Value {
    let mut divert = manifest::divert("alice", "staging");
    divert["metadata"]["name"] = json!(name);
    divert["spec"]["inject"] = json!(inject);
    divert
}

/// Waits until a Divert is refused, and nothing else is said of it.
fn wait_invalid(admin: &Client, name: &str, says: &str) -> Result<Value> {
    admin.wait_for(DIVERT, "alice", name, "to be told that it is invalid, and nothing else", |it| {
        let accepted = condition(it, "Accepted");
        it["status"]["conditions"].as_array().map(Vec::len) == Some(1)
            && (&accepted["reason"], &accepted["status"]) == (&json!("Invalid"), &json!("False"))
            && accepted["message"].as_str().is_some_and(|it| it.contains(says))
            && accepted["observedGeneration"] == it["metadata"]["generation"]
            && it["status"]["services"].is_null()
    })
}

#[test]
fn an_invalid_divert_is_told_and_so_it_is_after_a_restart() -> Result<()> {
    let server = Arc::new(ApiServer::start(Options { controllers: true, ..Options::default() })?);
    let admin = server.admin();
    let account = Control::install(&server)?;
    admin.create_pair("staging", "alice", &["web"])?;
    loosen(admin)?;
    let control = Control::start(&server, &account, &[])?;
    admin.create(&service("alice", "own"))?;

    // One that was accepted, and becomes invalid.
    let good = admin.create(&divert("first", "FromPods"))?;
    admin.wait_condition(&good, "Accepted", "Accepted", "").with_context(|| control.output())?;
    admin.wait_ours("alice", "web")?;
    admin.patch(DIVERT, "alice", "first", &json!({"spec": {"inject": "Always"}}))?;
    let seen = wait_invalid(admin, "first", "spec.inject")?;
    admin.wait_event(&seen, "Warning", "Invalid", "spec.inject")?;
    admin.wait_gone(Kind::new("v1", "Service"), "alice", "web")?;
    // And back again.
    admin.patch(DIVERT, "alice", "first", &json!({"spec": {"inject": "None"}}))?;
    admin.wait_condition(&good, "Accepted", "Accepted", "")?;

    // One that was there before the controller.
    drop(control);
    admin.create(&divert("second", "Never"))?;
    let control = Control::start(&server, &account, &[])?;
    let seen = wait_invalid(admin, "second", "spec.inject").with_context(|| control.output())?;
    admin.wait_event(&seen, "Warning", "Invalid", "spec.inject")
}
