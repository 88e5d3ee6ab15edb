//! /healthz, /readyz and /metrics, and that README.md documents what /metrics tells.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, Fixture};
use divert_tests::lab::Family;
use divert_tests::wait;

/// Names of metrics in a text, as `/metrics` writes them: with `_total`, without labels.
fn named(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("divert_") && *word != "divert_")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_told() -> Result<()> {
    let town = Fixture::new()?;
    let agent = town.agent()?;
    let metrics = agent.get("/metrics")?.text();
    let told: BTreeSet<_> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
        .collect();
    assert!(told.len() > 10, "{metrics}");
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    let table = readme.split_once("| metric | meaning |").context("the table of metrics")?.1;
    let table = table.split_once("\n\n").context("its end")?.0;
    assert_eq!(told, named(table));
    Ok(())
}

#[test]
fn requests_are_counted_by_what_became_of_them() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = town.agent()?;
    let mut connection = town.connect()?;
    for key in [&[][..], &[ALICE], &[ALICE]] {
        connection.get("/", key)?;
    }
    // A request counts when its exchange has ended, which the client sees first.
    wait::until("three requests to be counted", || {
        agent.metric("divert_requests_total").is_ok_and(|requests| requests == 3.0)
    })?;
    let metrics = agent.get("/metrics")?.text();
    for line in [
        r#"divert_requests_total{result="shared"} 1"#,
        r#"divert_requests_total{result="diverted"} 2"#,
        r#"divert_requests_total{result="unavailable"} 0"#,
        "divert_connections_active{} 1",
        "divert_hook_captured_total{} 1",
        "divert_ready{} 1",
    ] {
        assert!(metrics.lines().any(|it| it == line), "no line {line} in\n{metrics}");
    }
    drop(connection);
    wait::until("no connection to be active", || {
        agent.metric("divert_connections_active").is_ok_and(|active| active == 0.0)
    })
}

#[test]
fn readiness_names_the_pods_that_are_left_direct() -> Result<()> {
    let town = Fixture::new()?;
    // An address that no namespace has: the pod is planned, and cannot be found.
    let mut objects = town.objects(&[divert_tests::fixture::PORT.into()]);
    let mut ghost = divert_tests::manifest::pod(&town.client());
    ghost["metadata"]["name"] = "ghost".into();
    let nowhere = match town.client().ip(Family::V4) {
        std::net::IpAddr::V4(ip) => std::net::Ipv4Addr::from_bits(ip.to_bits() | 0xff).to_string(),
        std::net::IpAddr::V6(_) => anyhow::bail!("asked for IPv4"),
    };
    ghost["status"]["podIPs"] = serde_json::json!([{"ip": nowhere}]);
    objects.push(ghost);
    town.manifests.put("town", &objects)?;
    let agent = Agent::start(&town.lab, &town.manifests, &Options::default())?;
    let ready = agent.get("/readyz")?;
    assert_eq!(ready.status, 200, "a pod that cannot be found does not make the agent unready");
    let text = ready.text();
    assert!(text.contains("staging/ghost is left direct: no network namespace"), "{text}");
    assert_eq!(agent.get("/healthz")?.status, 200);
    assert_eq!(agent.get("/nothing")?.status, 404);
    Ok(())
}
