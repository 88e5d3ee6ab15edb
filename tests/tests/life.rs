//! correctness.md, Life: agents and pods that come, go and hang. No answer may ever be wrong
//! (semantics.md, Words); missed ones only in the gaps it names.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, BOB, Fixture, PORT};
use divert_tests::lab::FAMILIES;
use divert_tests::manifest::{self, Port};
use divert_tests::script::is_captured;
use divert_tests::server::Echo;
use divert_tests::wait;

const SHARED: &str = "staging/web";
const ALICES: &str = "alice/web";
const BOBS: &str = "bob/web";

/// Header fields of a request, and who may answer it.
type Kind = (&'static [(&'static str, &'static str)], &'static [&'static str]);

fn servers(town: &Fixture) -> Result<[Echo; 3]> {
    Ok([
        Echo::start(&town.lab.pod(SHARED), PORT)?,
        Echo::start(&town.lab.pod(ALICES), PORT)?,
        Echo::start(&town.lab.pod(BOBS), PORT)?,
    ])
}

/// Who answers one request on a connection of its own; an answer of the agent is an error.
fn ask(town: &Fixture, fields: &[(&str, &str)]) -> Result<String> {
    let response = town.connect()?.get("/", fields)?;
    response.served_by().with_context(|| format!("the agent answered: {}", response.text()))
}

/// Whether a new connection to the shared service is captured.
fn captured(town: &Fixture) -> Result<bool> {
    let http = town.connect()?;
    is_captured(http.stream(), &town.client())?.context("the connection ended at once")
}

#[test]
fn killed_then_direct_at_once_then_served_again() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let mut agent = town.agent()?;
    assert_eq!(ask(&town, &[ALICE])?, ALICES);
    agent.kill();
    for _ in 0..20 {
        assert_eq!(ask(&town, &[ALICE])?, SHARED);
        assert!(!captured(&town)?);
    }
    let mut agent = town.agent()?;
    assert_eq!(ask(&town, &[ALICE])?, ALICES);
    agent.stop()?;
    assert_eq!(ask(&town, &[ALICE])?, SHARED);
    Ok(())
}

#[test]
fn stopped_then_direct_within_two_seconds_then_served_again() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let agent = town.agent()?;
    assert!(captured(&town)?);
    agent.pause()?;
    let paused = Instant::now();
    wait::until("a connection to go direct", || captured(&town).is_ok_and(|captured| !captured))?;
    let took = paused.elapsed();
    // 2 s, as the hooks see it, and what a busy machine adds.
    assert!(took < Duration::from_millis(2500), "{took:?}");
    assert_eq!(ask(&town, &[ALICE])?, SHARED);
    agent.resume()?;
    wait::until("connections to be captured again", || captured(&town).unwrap_or(false))?;
    assert_eq!(ask(&town, &[ALICE])?, ALICES);
    Ok(())
}

#[test]
fn of_two_agents_the_first_serves_and_the_second_takes_over() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let mut first = town.agent()?;
    let options = Options { admin_port: 9465, ..Options::default() };
    let mut second = Agent::launch(&town.lab, &town.manifests, &options)?;
    wait::until("the second to answer at its admin address", || second.get("/healthz").is_ok())?;
    for _ in 0..20 {
        assert_eq!(ask(&town, &[ALICE])?, ALICES);
        assert_eq!(ask(&town, &[])?, SHARED);
    }
    first.kill();
    wait::until("the second to take over", || captured(&town).unwrap_or(false))?;
    for _ in 0..20 {
        assert_eq!(ask(&town, &[ALICE])?, ALICES);
        assert_eq!(ask(&town, &[])?, SHARED);
    }
    second.stop()?;
    assert_eq!(ask(&town, &[ALICE])?, SHARED);
    Ok(())
}

#[test]
fn what_nobody_diverts_is_not_captured() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let agent = town.agent()?;
    assert!(captured(&town)?);
    town.undivert("alice")?;
    wait::until("connections to go direct", || captured(&town).is_ok_and(|captured| !captured))?;
    assert_eq!(ask(&town, &[ALICE])?, SHARED);
    // Alice's own service is never captured.
    let alices = town.client().connect(town.developers[0].address(FAMILIES[0], PORT))?;
    assert_eq!(is_captured(&alices, &town.client())?, Some(false));
    drop(agent);
    Ok(())
}

#[test]
fn a_port_that_declares_another_protocol_is_not_captured() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let _agent = town.agent()?;
    assert!(captured(&town)?);
    for (port, expected) in [
        (Port::from(PORT).app_protocol("postgresql"), false),
        (Port::from(PORT).app_protocol("http"), true),
        (Port::from(PORT).named("tcp-web"), false),
        (Port::from(PORT).named("http-web"), true),
    ] {
        town.put_town(std::slice::from_ref(&port))?;
        let seen = || captured(&town).is_ok_and(|captured| captured == expected);
        wait::until(&format!("{port:?} to be captured: {expected}"), seen)?;
    }
    Ok(())
}

#[test]
fn a_removed_divert_takes_no_request_on_connections_that_are_open() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let _agent = town.agent()?;
    let mut kept = town.connect()?;
    let mut ask_kept = || -> Result<String> { kept.get("/", &[ALICE])?.served_by().context("an answer") };
    for _ in 0..3 {
        wait::until("alice to be asked", || ask_kept().is_ok_and(|by| by == ALICES))?;
        town.undivert("alice")?;
        wait::until("new connections to go direct", || captured(&town).is_ok_and(|captured| !captured))?;
        for _ in 0..10 {
            assert_eq!(ask_kept()?, SHARED);
        }
        town.divert("alice")?;
    }
    Ok(())
}

#[test]
fn diverts_come_and_go_under_load_and_no_answer_is_wrong() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let _agent = town.agent()?;
    let stop = AtomicBool::new(false);
    // What may answer: alice's Divert comes and goes, bob's too.
    let kinds: [Kind; 3] = [(&[], &[SHARED]), (&[ALICE], &[SHARED, ALICES]), (&[BOB], &[SHARED, BOBS])];
    std::thread::scope(|scope| {
        let threads: Vec<_> = kinds
            .into_iter()
            .map(|(fields, allowed)| scope.spawn(|| keep_asking(&town, fields, allowed, &stop)))
            .collect();
        let changed = (0..10).try_for_each(|_| {
            for (developer, fields, own) in [("alice", ALICE, ALICES), ("bob", BOB, BOBS)] {
                town.divert(developer)?;
                wait::until("a Divert to take effect", || {
                    ask(&town, &[fields]).is_ok_and(|answer| answer == own)
                })?;
            }
            for (developer, fields) in [("alice", ALICE), ("bob", BOB)] {
                town.undivert(developer)?;
                wait::until("a Divert to lose effect", || {
                    ask(&town, &[fields]).is_ok_and(|answer| answer == SHARED)
                })?;
            }
            Ok(())
        });
        stop.store(true, Ordering::Release);
        for thread in threads {
            let asked = thread.join().unwrap_or_else(|_| bail!("a thread panicked"))?;
            ensure!(asked > 20, "only {asked} requests ran meanwhile");
        }
        changed
    })
}

/// Asks on kept connections until told to stop; an answer of anybody else than `allowed` is an error, and
/// so is a failed request. Returns the number of requests.
fn keep_asking(
    town: &Fixture,
    fields: &[(&str, &str)],
    allowed: &[&str],
    stop: &AtomicBool,
) -> Result<usize> {
    let mut asked = 0;
    while !stop.load(Ordering::Acquire) {
        let mut http = town.connect()?;
        for _ in 0..10 {
            let response = http.get("/", fields).with_context(|| format!("request {asked}, {fields:?}"))?;
            let by =
                response.served_by().with_context(|| format!("the agent answered {}", response.text()))?;
            ensure!(allowed.contains(&by.as_str()), "WRONG: {fields:?} was answered by {by}");
            asked += 1;
        }
    }
    Ok(asked)
}

#[test]
fn a_killed_and_restarted_agent_under_load_gives_no_wrong_answer() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let stop = AtomicBool::new(false);
    let kinds: [Kind; 2] = [(&[], &[SHARED]), (&[ALICE], &[SHARED, ALICES])];
    std::thread::scope(|scope| {
        let threads: Vec<_> = kinds
            .into_iter()
            .map(|(fields, allowed)| scope.spawn(|| ask_through_resets(&town, fields, allowed, &stop)))
            .collect();
        let restarted = (0..3).try_for_each(|_| {
            let mut agent = town.agent()?;
            ensure!(ask(&town, &[ALICE])? == ALICES, "a ready agent missed a request");
            agent.kill();
            ensure!(ask(&town, &[ALICE])? == SHARED, "a dead agent serves");
            Ok(())
        });
        stop.store(true, Ordering::Release);
        for thread in threads {
            thread.join().unwrap_or_else(|_| bail!("a thread panicked"))?;
        }
        restarted
    })
}

/// As [`keep_asking`], but a connection may break: a kill resets what the agent carried.
fn ask_through_resets(
    town: &Fixture,
    fields: &[(&str, &str)],
    allowed: &[&str],
    stop: &AtomicBool,
) -> Result<()> {
    while !stop.load(Ordering::Acquire) {
        let Ok(mut http) = town.connect() else { continue };
        while let Ok(response) = http.get("/", fields) {
            let by =
                response.served_by().with_context(|| format!("the agent answered {}", response.text()))?;
            ensure!(allowed.contains(&by.as_str()), "WRONG: {fields:?} was answered by {by}");
            if stop.load(Ordering::Acquire) {
                break;
            }
        }
    }
    Ok(())
}

#[test]
fn sigterm_under_load_fails_no_request() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let mut agent = town.agent()?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| -> Result<usize> {
            let mut asked = 0;
            while !stop.load(Ordering::Acquire) {
                let response = town.connect()?.get("/", &[ALICE, ("Connection", "close")])?;
                let by = response.served_by().context("an answer of the agent")?;
                ensure!([SHARED, ALICES].contains(&by.as_str()), "WRONG: answered by {by}");
                asked += 1;
            }
            Ok(asked)
        });
        let stopped = wait::until("the agent to serve", || ask(&town, &[ALICE]).is_ok_and(|by| by == ALICES))
            .and_then(|()| agent.stop().map(drop));
        stop.store(true, Ordering::Release);
        let asked = asking.join().unwrap_or_else(|_| bail!("the thread panicked"))?;
        ensure!(asked > 0, "no request ran");
        stopped
    })
}

#[test]
fn a_pod_that_is_gone_frees_its_namespace_and_its_successor_is_served() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let agent = town.agent()?;
    assert_eq!(ask(&town, &[ALICE])?, ALICES);
    // The client's Pod object goes: its namespace is left alone, connections go direct.
    let others = |objects: Vec<serde_json::Value>| -> Vec<serde_json::Value> {
        let client =
            |object: &serde_json::Value| object["kind"] == "Pod" && object["metadata"]["name"] == "client";
        objects.into_iter().filter(|object| !client(object)).collect()
    };
    town.manifests.put("town", &others(town.objects(&[PORT.into()])))?;
    wait::until("the pod to be let go", || captured(&town).is_ok_and(|captured| !captured))?;
    assert_eq!(ask(&town, &[ALICE])?, SHARED);
    // It comes back under another name with the same address.
    let mut objects = others(town.objects(&[PORT.into()]));
    let client = town.client();
    objects.push(manifest::pod_with_ips("staging", "successor", &[client.v4.into(), client.v6.into()]));
    town.manifests.put("town", &objects)?;
    wait::until("its successor to be served", || ask(&town, &[ALICE]).is_ok_and(|by| by == ALICES))?;
    drop(agent);
    Ok(())
}

#[test]
fn a_bad_manifest_changes_nothing() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let agent = town.agent()?;
    assert_eq!(ask(&town, &[ALICE])?, ALICES);
    town.manifests
        .put_text("alice", "apiVersion: divert.dev/v1alpha1\nkind: Divert\nmetadata: {name: [}\n")?;
    agent.process().wait_for_output("alice.yaml")?;
    for _ in 0..10 {
        assert_eq!(ask(&town, &[ALICE])?, ALICES);
    }
    town.divert("alice")?;
    town.divert("bob")?;
    wait::until("good manifests to take effect again", || ask(&town, &[BOB]).is_ok_and(|by| by == BOBS))?;
    assert_eq!(ask(&town, &[ALICE])?, ALICES);
    Ok(())
}
