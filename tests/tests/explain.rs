//! `divert-agent status` and `divert-agent explain`: what the agent that runs says, and that requests do as it says.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use divert_common::netns::NetNs;
use divert_tests::agent::{Agent, Options, program};
use divert_tests::fixture::{ALICE, BOB, Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::lab::{self, Family};
use divert_tests::manifest;
use divert_tests::process::{Place, Process};
use divert_tests::wait;
use serde_json::Value;

/// Runs the program where the agent's admin address is.
fn divert(town: &Fixture, arguments: &[&str]) -> Result<String> {
    let node = NetNs::open(&std::path::PathBuf::from("/run/netns").join(town.lab.node().name()))?;
    let mut command = Command::new(program()?);
    command.args(arguments);
    let place = Place { netns: Some(&node), cgroup: None };
    Process::spawn("divert-agent", command, place)?.finish(wait::PATIENCE)
}

fn explain(town: &Fixture, pod: &str, to: &str, fields: &[(&str, &str)]) -> Result<Value> {
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let mut arguments = vec!["explain", "--agent", "127.0.0.1:9464", "-o", "json", "--pod", pod, "--to", to];
    fields.iter().for_each(|field| arguments.extend(["-H", field]));
    let said = divert(town, &arguments)?;
    serde_json::from_str(&said).with_context(|| said.clone())
}

/// What is said of a step, and whether the path goes on.
fn step<'a>(explanation: &'a Value, about: &str) -> Option<(Option<bool>, &'a str)> {
    let steps = explanation["steps"].as_array()?;
    let step = steps.iter().find(|step| step["about"] == about)?;
    Some((step["holds"].as_bool(), step["says"].as_str()?))
}

fn says(explanation: &Value, about: &str, holds: Option<bool>, words: &str) -> Result<()> {
    let (held, said) = step(explanation, about).with_context(|| format!("no {about} in {explanation:#}"))?;
    ensure!(held == holds && said.contains(words), "wanted {holds:?} and {words:?}: {explanation:#}");
    Ok(())
}

fn verdict(explanation: &Value) -> &str {
    explanation["verdict"].as_str().unwrap_or_default()
}

#[test]
fn requests_go_where_it_says() -> Result<()> {
    let town = Fixture::with_pods(&["alice/client"])?;
    let _servers = town.servers()?;
    let _agent = town.agent()?;
    let web = town.address(Family::V4).to_string();
    let v6 = town.address(Family::V6).to_string();
    for (from, to, fields, key, answers) in [
        ("staging/client", "web:8080", &[][..], "none", "staging/web"),
        ("staging/client", "web:8080", &[ALICE][..], "alice, which the request carries", "alice/web"),
        ("staging/client", "web.staging.svc.cluster.local:8080", &[ALICE][..], "alice", "alice/web"),
        ("staging/client", &web, &[ALICE][..], "alice", "alice/web"),
        ("staging/client", &v6, &[("Baggage", "a=b,okteto-divert=alice;p=1")][..], "alice", "alice/web"),
        ("staging/client", "web:8080", &[BOB][..], "bob", "staging/web"),
        // One of her own pods.
        ("alice/client", "web.staging:8080", &[][..], "alice, as the pod is one of its own", "alice/web"),
        ("alice/client", "web.staging:8080", &[BOB][..], "bob", "staging/web"),
    ] {
        let said = explain(&town, from, to, fields)?;
        says(&said, "registered", Some(true), from)?;
        says(&said, "served", Some(true), "listens on port")?;
        says(&said, "destination", None, "Service staging/web")?;
        says(&said, "captured", Some(true), "are captured for")?;
        says(&said, "key", None, key)?;
        ensure!(verdict(&said).starts_with(&format!("{answers} answers it")), "{to} {fields:?}: {said:#}");

        let family = if to == v6 { Family::V6 } else { Family::V4 };
        let stream = town.lab.pod(from).connect(town.address(family))?;
        let answer = Http::new(lab::patient(stream)?).get("/", fields)?;
        assert_eq!(answer.served_by().as_deref(), Some(answers), "{from} {to} {fields:?}");
    }
    Ok(())
}

#[test]
fn what_is_in_the_way_is_named() -> Result<()> {
    let town = Fixture::new()?;
    town.manifests.put(
        "more",
        &[
            manifest::service("staging", "db", town.lab.cluster_ips(&town.server())?, &[5432.into()]),
            manifest::service("staging", "idle", town.lab.cluster_ips(&town.server())?, &[PORT.into()]),
        ],
    )?;
    let agent = town.agent()?;
    let client = "staging/client";

    let said = explain(&town, client, "idle:8080", &[ALICE])?;
    says(&said, "captured", Some(false), "Divert alice/staging does not cover idle")?;
    ensure!(verdict(&said).contains("directly, past the agent"), "{said:#}");

    let said = explain(&town, client, "db:5432", &[ALICE])?;
    says(&said, "captured", Some(false), "5432 is on the list of other ports")?;

    let said = explain(&town, client, "nowhere:80", &[])?;
    says(&said, "destination", None, "nowhere is no Service's name")?;

    let said = explain(&town, client, "web:81", &[])?;
    says(&said, "destination", None, "Service staging/web has no TCP port 81, but 8080")?;

    let said = explain(&town, client, "web:8080", &[BOB])?;
    says(&said, "target", Some(false), "no Divert in namespace bob is about staging")?;

    let said = explain(&town, "staging/absent", "web:8080", &[])?;
    says(&said, "registered", Some(false), "no pod staging/absent is known on this node")?;

    // Nobody serves alice's copy any more.
    let hers: Vec<Value> = town.objects(&[PORT.into()]);
    let without = hers.into_iter().filter(|it| it["kind"] != "Pod" || it["metadata"]["namespace"] != "alice");
    town.manifests.put("town", &without.collect::<Vec<_>>())?;
    wait::until("her copy to be unavailable", || {
        explain(&town, client, "web:8080", &[ALICE]).is_ok_and(|said| verdict(&said).contains("with 503"))
    })?;
    let said = explain(&town, client, "web:8080", &[ALICE])?;
    says(&said, "target", Some(true), "none of its endpoints is ready")?;

    // For people, and what they are told when they ask wrongly.
    let text = divert(&town, &["explain", "--agent", "127.0.0.1:9464", "--pod", client, "--to", "web:8080"])?;
    ensure!(text.contains("\n  key               none") && text.contains("staging/web answers it"), "{text}");
    let refused = agent.get("/explain?pod=x&to=web:80")?;
    assert_eq!((refused.status, refused.text().contains("names no pod")), (400, true));
    Ok(())
}

#[test]
fn status_tells_what_is_served_and_what_is_not() -> Result<()> {
    let town = Fixture::new()?;
    let gone = town.client();
    town.lab.remove_sandbox(&gone)?;
    let _agent = town.agent()?;
    let text = divert(&town, &["status", "--agent", "127.0.0.1:9464", "--plan"])?;
    for words in [
        "serving  3       0        1",
        "staging/client  not_found  no network namespace",
        "alice/staging  staging  yes",
    ] {
        ensure!(text.contains(words), "no {words:?} in\n{text}");
    }
    let nobody = divert(&town, &["status", "--agent", "127.0.0.1:1"]);
    let nobody = format!("{:#}", nobody.expect_err("nobody listens there"));
    ensure!(nobody.contains("127.0.0.1:1"), "{nobody}");
    Ok(())
}

#[test]
fn agents_of_a_node_agree_who_serves() -> Result<()> {
    let town = Fixture::new()?;
    let shared = town.lab.folder().join("run").display().to_string();
    let start = |name: &str, admin_port| {
        let arguments = ["--run-dir", &shared, "--identity", name].map(str::to_owned).to_vec();
        Agent::start(&town.lab, &town.manifests, &Options { admin_port, arguments, ..Options::default() })
    };
    let status = |agent: &Agent| -> Result<(String, bool)> {
        let status: Value = serde_json::from_str(&agent.get("/status")?.text())?;
        let standing_by = status["standingBy"].as_bool().context("standingBy")?;
        Ok((status["identity"].as_str().unwrap_or_default().to_owned(), standing_by))
    };
    let mut first = start("first", 9464)?;
    let mut second = start("second", 9465)?;
    assert_eq!(status(&first)?, ("first".into(), false));
    assert_eq!(status(&second)?, ("second".into(), true));
    ensure!(second.process().output().contains("standing by: first serves this node"));

    first.terminate()?;
    wait::until("the second to serve", || status(&second).is_ok_and(|(_, standing_by)| !standing_by))?;
    let mut third = start("third", 9464)?;
    second.kill();
    wait::until("the third to serve", || status(&third).is_ok_and(|(_, standing_by)| !standing_by))?;
    third.stop()?;
    ensure!(std::fs::read_dir(&shared)?.next().is_none(), "the lock is left");
    Ok(())
}
