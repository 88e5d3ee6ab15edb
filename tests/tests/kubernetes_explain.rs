//! What `explain` takes a name for, held against what a cluster's DNS makes of the Services that there are: those that the
//! controller has made among them.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use divert_tests::kube::{Control, SERVICE, SYSTEM, Town, resolve, service};
use divert_tests::process::{Place, Process};
use divert_tests::{agent, manifest, wait};
use serde_json::{Value, json};

/// For what goes through several programs, on a machine where everything else runs at the same time.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the agent takes a name for that a pod calls, in its own words.
fn destination(town: &Town, pod: &str, host: &str) -> Result<String> {
    let mut command = Command::new(agent::program()?);
    command.args(["explain", "--agent", "127.0.0.1:9464", "-o", "json", "--pod", pod, "--to"]);
    command.arg(format!("{host}:80"));
    let place = Place { netns: Some(town.lab.node().netns()), cgroup: None };
    let said = Process::spawn("explain", command, place)?.finish(wait::PATIENCE)?;
    let explanation: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let steps = explanation["steps"].as_array().into_iter().flatten();
    let says = steps.filter(|it| it["about"] == "destination").find_map(|it| it["says"].as_str());
    Ok(says.map_or_else(|| explanation.to_string(), str::to_owned))
}

#[test]
fn a_name_means_what_dns_makes_of_the_services_that_the_controller_keeps() -> Result<()> {
    let control = Control::shared()?;
    let admin = control.server.admin();
    let [staging, qa, alice] = ["means-staging", "means-qa", "means-alice"];
    let town = Town::new(&control.server, staging, alice)?;
    admin.create_namespace(&manifest::shared_namespace(qa))?;
    for (namespace, name) in
        [(staging, "both"), (staging, "kubernetes"), (qa, "both"), (qa, "only"), (alice, "own")]
    {
        admin.create(&service(namespace, name))?;
    }
    for (name, of) in [("chain", "only.means-qa.svc.cluster.local"), ("short", "own")] {
        admin.create(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": staging},
            "spec": {"type": "ExternalName", "externalName": of},
        }))?;
    }
    // By their age the one to staging comes first, or by its name.
    for (name, shared) in [("a", staging), ("b", qa)] {
        let mut divert = manifest::divert(alice, shared);
        divert["metadata"]["name"] = json!(name);
        admin.create(&divert)?;
    }
    for name in ["both", "only", "chain", "short"] {
        admin.wait_ours(alice, name)?;
    }
    let _agent = town.agent(&control.server.service_account(SYSTEM, "divert-agent")?)?;

    for (pod, host, namespace, name) in [
        ("means-alice/web", "own", alice, "own"),
        ("means-alice/web", "both", alice, "both"),
        ("means-alice/web", "only", alice, "only"),
        ("means-alice/web", "chain", alice, "chain"),
        ("means-alice/web", "kubernetes", alice, "kubernetes"),
        ("means-alice/web", "both.means-qa", qa, "both"),
        ("means-staging/client", "chain", staging, "chain"),
        ("means-staging/client", "only.means-alice", alice, "only"),
        ("means-staging/client", "both.means-alice.svc.cluster.local", alice, "both"),
        ("means-staging/client", "only", staging, "only"),
    ] {
        let expected = match resolve(admin, namespace, name)? {
            Some(address) => format!(" at {address}:80"),
            None => format!("{host} is no Service's name"),
        };
        let mut last = String::new();
        wait::until_within(PATIENCE, &format!("{pod} to be told of {host}: {expected}"), || {
            last = destination(&town, pod, host).unwrap_or_else(|error| format!("{error:#}"));
            last.contains(&expected)
        })
        .with_context(|| last.clone())?;
    }
    // DNS takes it for a whole name, which nobody has.
    let short = destination(&town, "means-alice/web", "short")?;
    assert!(short.contains("own is no Service's name"), "{short}");
    admin.get(SERVICE, alice, "short").map(drop)
}
