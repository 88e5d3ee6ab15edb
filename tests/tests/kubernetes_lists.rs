//! A controller that does not know all yet writes nothing, whatever the rest looks like; and what it has told is told
//! again, as the API server forgets.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use divert_tests::kube::{
    ApiServer, CLUSTER_ROLE, Client, Control, DIVERT, EVENT, LEASE, Options, SERVICE, SYSTEM, service,
};
use divert_tests::{manifest, wait};
use serde_json::{Value, json};

/// A watch that failed is tried again within ten seconds.
const TRIED_AGAIN: Duration = Duration::from_secs(60);

fn server() -> Result<(Arc<ApiServer>, Client)> {
    let server = Arc::new(ApiServer::start(Options { controllers: true, ..Options::default() })?);
    let account = Control::install(&server)?;
    Ok((server, account))
}

/// The role without the right to list a resource.
fn without(role: &Value, resource: &str) -> Value {
    let mut less = role.clone();
    for rule in less["rules"].as_array_mut().into_iter().flatten() {
        if let Some(resources) = rule["resources"].as_array_mut() {
            resources.retain(|it| it != resource);
        }
    }
    let rules = less["rules"].as_array_mut();
    rules.into_iter().for_each(|rules| rules.retain(|rule| rule["resources"] != json!([])));
    json!({"rules": less["rules"]})
}

#[test]
fn nothing_is_written_while_a_list_is_missing() -> Result<()> {
    let (server, account) = server()?;
    let admin = server.admin();
    let control = Control::start(&server, &account, &[])?;
    admin.create_pair("staging", "alice", &["web"])?;
    let divert = admin.create(&manifest::divert("alice", "staging"))?;
    let made = admin.wait_ours("alice", "web").with_context(|| control.output())?;
    admin.wait_condition(&divert, "Names", "Resolve", "")?;
    drop(control);

    let role = admin.get(CLUSTER_ROLE, "", "divert-agent")?;
    // Without any of them each name would look as if nobody needed it, or its namespace were not there.
    for (round, resource) in ["diverts", "namespaces", "services", "endpointslices"].iter().enumerate() {
        admin.patch(CLUSTER_ROLE, "", "divert-agent", &without(&role, resource))?;
        let can_list = |account: &Client| {
            account.kubectl(&["auth", "can-i", "--quiet", "list", resource, "--all-namespaces"], "").is_ok()
        };
        wait::until(&format!("the right to list {resource} to be gone"), || !can_list(&account))?;
        let before = admin.get(DIVERT, "alice", "staging")?;
        let control = Control::start_logging(&server, &account, &[], "info,kube_runtime=warn")?;
        admin.wait_for(LEASE, SYSTEM, "divert-controller", "to be the new controller's", |lease| {
            lease["spec"]["holderIdentity"] == "controller"
        })?;
        // It has looked at all else by the time that it has asked twice for what is missing.
        let asked = || control.output().matches("watch list error with 403").count();
        wait::until_within(TRIED_AGAIN, "the list to be asked for again", || asked() >= 3)
            .with_context(|| control.output())?;
        // Once, not each time; and by who follows the cluster, not by each who watches it.
        let output = control.output();
        let told = output.lines().filter(|line| line.contains("troubles: listing "));
        let [told] = told.collect::<Vec<_>>()[..] else { bail!("told otherwise than once:\n{output}") };
        ensure!(told.contains(&format!("cannot list resource \"{resource}\"")), "{told}");
        let after = admin.get(SERVICE, "alice", "web")?;
        assert_eq!(after["metadata"], made["metadata"], "without {resource}:\n{}", control.output());
        assert_eq!(admin.get(DIVERT, "alice", "staging")?["metadata"], before["metadata"]);

        admin.patch(CLUSTER_ROLE, "", "divert-agent", &json!({"rules": role["rules"]}))?;
        wait::until(&format!("the right to list {resource} to be back"), || can_list(&account))?;
        let name = format!("later-{round}");
        admin.create(&service("staging", &name))?;
        admin.wait_ours("alice", &name).with_context(|| control.output())?;
        assert_eq!(admin.get(SERVICE, "alice", "web")?["metadata"]["uid"], made["metadata"]["uid"]);
    }
    Ok(())
}

#[test]
fn what_has_no_status_is_told_of_again() -> Result<()> {
    let (server, account) = server()?;
    let admin = server.admin();
    let control = Control::start(&server, &account, &["--tell-again", "2"])?;
    admin.create_pair("staging", "alice", &["web"])?;
    admin.create(&manifest::divert("alice", "staging"))?;
    let mut bank = manifest::ingress("alice", "bank", "bank.example.com", "web");
    bank["metadata"]["annotations"] = json!({"divert.okteto.com/header": "alice"});
    let bank = admin.create(&bank)?;
    let says = "bank.example.com may not be alice's";
    for _ in 0..3 {
        admin.wait_event(&bank, "Warning", "NotAllowed", says).with_context(|| control.output())?;
        // As the API server does after an hour.
        for event in admin.list(EVENT, "alice")? {
            if event["involvedObject"]["name"] == "bank" {
                let name = event["metadata"]["name"].as_str().context("a name")?;
                admin.delete(EVENT, "alice", name)?;
            }
        }
    }
    Ok(())
}
