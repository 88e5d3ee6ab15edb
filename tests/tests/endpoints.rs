//! semantics.md, Endpoints: which endpoint of a developer's service a client comes to.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result};
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::lab::Family;
use divert_tests::manifest;
use divert_tests::server::Echo;
use serde_json::json;

const CLIENTS: [&str; 4] = ["staging/client", "staging/client-2", "staging/client-3", "alice/client"];
const SERVERS: [&str; 3] = ["alice/web", "alice/web-2", "alice/web-3"];

/// Who answers on new connections of a client, one after the other.
fn served_by(town: &Fixture, client: &str, connections: usize) -> Result<BTreeSet<String>> {
    let connection = |_| {
        let stream = town.lab.pod(client).connect(town.address(Family::V4))?;
        let response = Http::new(stream).get("/", &[ALICE])?;
        response.served_by().with_context(|| format!("the agent answered: {}", response.text()))
    };
    (0..connections).map(connection).collect()
}

/// Makes `alice/web` have these endpoints, and waits until the agent knows.
fn put(town: &Fixture, agent: &divert_tests::agent::Agent, affinity: &str, servers: &[&str]) -> Result<()> {
    let mut objects = town.objects(&[PORT.into()]);
    let web = objects.iter_mut().find(|it| it["kind"] == "Service" && it["metadata"]["namespace"] == "alice");
    let spec = &mut web.context("alice/web")?["spec"];
    spec["sessionAffinity"] = json!(affinity);
    if affinity == "ClientIP" {
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 60}});
    }
    let ips: Vec<IpAddr> = servers.iter().map(|it| town.lab.pod(it).ip(Family::V4)).collect();
    let endpoints: Vec<_> = ips.iter().map(|ip| (*ip, true)).collect();
    objects.push(manifest::endpoint_slice("alice", "web", "4", &endpoints, PORT));
    town.manifests.put("town", &objects)?;
    let route = |plan: &serde_json::Value| {
        let captures = plan["captures"].as_array()?;
        let to = json!(town.address(Family::V4));
        let capture = captures.iter().find(|it| it["address"] == to && it["set"] == json!([]))?;
        Some(capture["routes"][0].clone())
    };
    let mut sorted = ips.clone();
    sorted.sort();
    let expected: Vec<_> = sorted.iter().map(|ip| format!("{ip}:{PORT}")).collect();
    divert_tests::wait::until("the agent to know the endpoints", || {
        let plan = agent.get("/plan?output=json").ok().and_then(|it| serde_json::from_str(&it.text()).ok());
        let route = plan.as_ref().and_then(route);
        route.is_some_and(|route| {
            route["endpoints"] == json!(expected) && route["byClient"] == json!(affinity == "ClientIP")
        })
    })
}

#[test]
fn with_session_affinity_all_connections_of_a_client_come_to_one_endpoint() -> Result<()> {
    let more: Vec<_> = CLIENTS[1..].iter().chain(&SERVERS[1..]).copied().collect();
    let town = Fixture::with_pods(&more)?;
    let _servers: Vec<_> =
        SERVERS.iter().map(|name| Echo::start(&town.lab.pod(name), PORT)).collect::<Result<_>>()?;
    let agent = town.agent()?;

    put(&town, &agent, "None", &SERVERS)?;
    for client in CLIENTS {
        assert_eq!(served_by(&town, client, 30)?.len(), SERVERS.len(), "{client}, without affinity");
    }

    put(&town, &agent, "ClientIP", &SERVERS)?;
    let mut first = Vec::new();
    for client in CLIENTS {
        let by = served_by(&town, client, 50)?;
        assert_eq!(by.len(), 1, "{client}: {by:?}");
        first.push(by);
    }

    // An endpoint that goes moves those that it had, and they come back with it.
    for gone in SERVERS {
        let rest: Vec<_> = SERVERS.into_iter().filter(|it| *it != gone).collect();
        put(&town, &agent, "ClientIP", &rest)?;
        for (client, before) in CLIENTS.into_iter().zip(&first) {
            let by = served_by(&town, client, 10)?;
            assert_eq!(by.len(), 1, "{client}: {by:?}");
            assert!(by == *before || before.contains(gone), "{client} moved without need: {by:?}");
        }
    }
    put(&town, &agent, "ClientIP", &SERVERS)?;
    for (client, before) in CLIENTS.into_iter().zip(&first) {
        assert_eq!(served_by(&town, client, 10)?, *before, "{client}");
    }
    Ok(())
}
