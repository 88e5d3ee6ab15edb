//! A kernel on which sock_diag(7) answers nothing: pods are served all the same.

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, Fixture};
use divert_tests::lab::Family;
use divert_tests::{traces, wait};

fn agent(town: &Fixture, errno: i32) -> Result<Agent> {
    let options = Options { no_sock_diag: Some(errno), ..Options::default() };
    Agent::start(&town.lab, &town.manifests, &options)
}

/// Returns when the agent has looked thoroughly at a pod: only then does it find that a route is gone.
fn looked(town: &Fixture) -> Result<()> {
    town.client().named_netns().ip_batch("route del local 240.64.0.0/10 dev lo table local\n")?;
    wait::until("the label route to be there again", || {
        traces::of(&town.client()).is_ok_and(|found| found.label_routes == 2)
    })
}

#[test]
fn where_tcp_has_no_handler_a_pod_is_served_as_it_is_and_that_is_said_once() -> Result<()> {
    is_served(libc::ENOENT)
}

#[test]
fn where_there_are_no_such_sockets_a_pod_is_served_as_it_is_and_that_is_said_once() -> Result<()> {
    is_served(libc::EPROTONOSUPPORT)
}

fn is_served(errno: i32) -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = agent(&town, errno)?;
    let mut kept = town.connect_by(Family::V4)?;
    for (fields, by) in [(&[][..], "staging/web"), (&[ALICE], "alice/web")] {
        // The connection stays while the pod is looked at.
        looked(&town)?;
        let answer = kept.get("/", fields).with_context(|| agent.process().output())?;
        ensure!(answer.served_by().as_deref() == Some(by), "{}", answer.text());
    }
    let said = agent.process().output();
    let count = |what: &str| said.matches(what).count();
    ensure!(count("/proc/net/tcp is read instead") == 1, "{said}");
    ensure!(count("no longer serving the pod") == 0, "{said}");
    ensure!(count("serving the pod pod=staging/client") == 1, "{said}");
    Ok(())
}

#[test]
fn a_pod_with_rules_of_its_own_is_left_direct_as_nobody_knows_who_connects() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    town.client().named_netns().nft(
        "table inet wall { chain output { type filter hook output priority 0; oif lo accept; \
         meta l4proto tcp meta skuid != 0 reject with tcp reset; }; }\n",
    )?;
    let agent = agent(&town, libc::ENOENT)?;
    let metrics = agent.get("/metrics")?.text();
    ensure!(metrics.contains("divert_pods_direct{reason=\"owners_unknown\"} 1"), "{metrics}");
    let answer = town.connect()?.get("/", &[ALICE])?;
    ensure!(answer.served_by().as_deref() == Some("staging/web"), "{}", answer.text());
    Ok(())
}
