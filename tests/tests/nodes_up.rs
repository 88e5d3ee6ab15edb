//! `up --wait` on real nodes, and then one request from each, while their agents are replaced.
//!
//! `DIVERT_ROUNDS=200` repeats it so often.

use std::env;
use std::fs;

use anyhow::{Context, Result, ensure};
use divert_tests::cluster::app::{self, Running, SEEN, SHARED};
use divert_tests::cluster::{Cluster, installed};
use divert_tests::{chart, wait};

const ROUNDS: usize = 10;
/// Rounds from one replacement of all agents to the next, which takes longer than a round.
const REPLACED: usize = 5;
const DIVERT: &str = "
apiVersion: divert.dev/v1alpha1
kind: Divert
metadata: {name: staging, namespace: alice}
spec: {sharedNamespace: staging}
";

/// Who answers one request with her key.
fn answers(cluster: &Cluster, client: &Running) -> Result<String> {
    let fields = ["baggage: okteto-divert=alice"];
    let way = app::way(cluster, client, &fields, &format!("http://catalog:{}/", app::PORT))?;
    way.into_iter().next().context("an answer that says nothing")
}

#[test]
fn after_up_the_next_request_of_each_node_is_steered_while_agents_are_replaced() -> Result<()> {
    let rounds = env::var("DIVERT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    let cluster = installed::town(DIVERT)?;
    // It is to be `up`'s.
    cluster.kubectl(&["--namespace=alice", "delete", "divert", "staging"])?;
    let file = cluster.folder().join("okteto.yaml");
    fs::write(&file, "deploy:\n  divert:\n    driver: ebpf\n    namespace: staging\n")?;
    let file = file.to_str().context("a path in UTF-8")?;
    let clients = app::clients_of(&cluster, SHARED)?;
    for round in 0..rounds {
        if round % REPLACED == 0 {
            cluster.kubectl(&["--namespace", chart::NAMESPACE, "rollout", "restart", installed::AGENTS])?;
        }
        let said = installed::inspect(&cluster, &["up", "-f", file, "-n", "alice", "--wait"])?;
        ensure!(said.contains("is in effect"), "{said}");
        for client in &clients {
            let by = answers(&cluster, client)?;
            ensure!(by == "alice/catalog", "round {round}: {by} answered to {}", client.node);
        }
        installed::inspect(&cluster, &["down", "-f", file, "-n", "alice"])?;
        for client in &clients {
            wait::until_within(SEEN, &format!("staging to answer to {}", client.node), || {
                answers(&cluster, client).is_ok_and(|by| by == "staging/catalog")
            })?;
        }
    }
    Ok(())
}
