//! Agents replaced, and killed, under load on real nodes; and what they take.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::cluster::app::{self, SHARED};
use divert_tests::cluster::load::{Load, Tally};
use divert_tests::cluster::{Cluster, installed};
use divert_tests::kube::POD;
use divert_tests::{chart, usage, wait};
use rustix::process::{Pid, Signal, kill_process};

const DIVERT: &str = "
apiVersion: divert.dev/v1alpha1
kind: Divert
metadata: {name: staging, namespace: alice}
spec: {sharedNamespace: staging}
";
/// No key, hers, and that of somebody who has no Divert.
const KEYS: [&str; 3] = ["-", "alice", "bob"];
/// Requests through each agent between two changes.
const A_WHILE: f64 = 1000.0;
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until each agent has decided so many requests more.
fn let_run(cluster: &Cluster) -> Result<()> {
    for agent in installed::agents(cluster)? {
        let requests = || installed::metric(cluster, &agent, "divert_requests_total");
        let before = requests()?;
        wait::until_within(PATIENCE, &format!("requests on {}", agent.node), || {
            requests().is_ok_and(|now| now >= before + A_WHILE)
        })?;
    }
    Ok(())
}

/// Every answer is by whom it ought to be; what is missed, and failed, is the caller's to judge.
fn nobody_else_answered(tally: &Tally) -> Result<()> {
    for mode in ["kept", "new"] {
        for key in ["-", "bob"] {
            let answered = tally.of(mode, key, "staging/catalog");
            ensure!(answered > 0, "{tally}");
            assert_eq!(tally.of(mode, key, ""), answered + tally.of(mode, key, "failed: "), "{tally}");
        }
        let (hers, missed) = (tally.of(mode, "alice", "alice/catalog"), tally.of(mode, "alice", "staging/"));
        ensure!(hers > 0, "{tally}");
        assert_eq!(
            tally.of(mode, "alice", ""),
            hers + missed + tally.of(mode, "alice", "failed: "),
            "{tally}"
        );
        assert_eq!(tally.of(mode, "", "failed: hung"), 0, "{tally}");
    }
    Ok(())
}

#[test]
fn a_new_version_under_load() -> Result<()> {
    let cluster = installed::town(DIVERT)?;
    installed::tag(&cluster, "0.1.0", "next")?;
    let clients = app::clients_of(&cluster, SHARED)?;
    let old = installed::agents(&cluster)?;
    let load = Load::start(&cluster, &clients, "catalog", &KEYS);
    let_run(&cluster)?;
    let began = Instant::now();
    installed::upgrade(&cluster, &["image.tag=next"])?;
    eprintln!("replaced on both nodes after {:.1?}", began.elapsed());
    let_run(&cluster)?;
    wait::until_within(PATIENCE, "the old agents to have drained", || {
        installed::all_agents(&cluster).is_ok_and(|number| number == cluster.nodes().len())
    })?;
    eprintln!("the old ones have gone after {:.1?}", began.elapsed());
    let_run(&cluster)?;
    let tally = load.stop()?;
    eprintln!("{tally}");

    let new = installed::agents(&cluster)?;
    ensure!(old.iter().all(|old| new.iter().all(|new| new.name != old.name)), "{new:?}");
    nobody_else_answered(&tally)?;
    assert_eq!(tally.of("", "alice", "staging/"), 0, "missed: {tally}");
    // A server that ends closes connections that rest: a request that is sent at that very moment is lost to a client
    // that does not repeat it.
    assert_eq!(tally.of("new", "", "failed: "), 0, "{tally}");
    let kept = tally.of("kept", "", "failed: ");
    ensure!(kept <= 2 * cluster.nodes().len(), "{kept} kept connections were lost: {tally}");
    Ok(())
}

#[test]
fn an_agent_that_is_killed() -> Result<()> {
    let cluster = installed::town(DIVERT)?;
    let clients = app::clients_of(&cluster, SHARED)?;
    let agent = installed::agents(&cluster)?.into_iter().next().context("no agent")?;
    let load = Load::start(&cluster, &clients, "catalog", &KEYS);
    let_run(&cluster)?;
    let pid = installed::process(&cluster, &agent)?;
    let killed = Instant::now();
    kill_process(Pid::from_raw(i32::try_from(pid)?).context("no process")?, Signal::KILL)?;
    // The kubelet starts it again in its pod.
    wait::until_within(PATIENCE, "the agent to be back", || {
        let Ok(pod) = cluster.client().get(POD, chart::NAMESPACE, &agent.name) else { return false };
        let container = &pod["status"]["containerStatuses"][0];
        container["restartCount"] == 1 && container["ready"] == true
    })?;
    let gap = killed.elapsed();
    let_run(&cluster)?;
    let tally = load.stop()?;
    eprintln!("ready again {gap:.1?} after it was killed; {tally}");

    nobody_else_answered(&tally)?;
    for mode in ["kept", "new"] {
        let missed = tally.between(mode, "alice", "staging/catalog");
        eprintln!("missed on {mode} connections: over {missed:.1?}");
        // A connection of the gap is kept for some requests more.
        ensure!(missed < gap + Duration::from_secs(2), "missed over {missed:?} of a gap of {gap:?}");
    }
    // Those that it held, and none of the other node's: each client has one at a time for each mode.
    let failed = tally.of("", "", "failed: ");
    ensure!(failed <= 2, "{failed} failed: {tally}");
    Ok(())
}

#[test]
fn what_an_agent_takes() -> Result<()> {
    let cluster = installed::town(DIVERT)?;
    let agents = installed::agents(&cluster)?;
    let pids = agents.iter().map(|agent| installed::process(&cluster, agent)).collect::<Result<Vec<_>>>()?;
    let look = |what: &str, requests: &[f64], over: Duration, before: &[Duration]| -> Result<u64> {
        let mut most = 0;
        for (((agent, &pid), before), requests) in agents.iter().zip(&pids).zip(before).zip(requests) {
            let (resident, own) = (usage::resident(pid)?, usage::anonymous(pid)?);
            let cpu = usage::cpu_time(pid)? - *before;
            eprintln!(
                "{what}, {}: {} MiB resident, {} its own; {:.0} requests in {over:.1?}, {:.1} % of a core",
                agent.node,
                resident >> 20,
                own >> 20,
                requests,
                100.0 * cpu.as_secs_f64() / over.as_secs_f64()
            );
            most = most.max(resident);
        }
        Ok(most)
    };
    let cpu = || pids.iter().map(|&pid| usage::cpu_time(pid)).collect::<Result<Vec<_>>>();
    let requests = || {
        let of = |agent| installed::metric(&cluster, agent, "divert_requests_total");
        agents.iter().map(of).collect::<Result<Vec<_>>>()
    };
    let (began, before) = (Instant::now(), cpu()?);
    let quiet = requests()?;
    // Rest is a stretch of time in which nothing happens.
    wait::until_within(Duration::from_secs(30), "five seconds", || began.elapsed() > Duration::from_secs(5))?;
    let resting = look("at rest", &[0.0, 0.0], began.elapsed(), &before)?;
    assert_eq!(requests()?, quiet);

    let load = Load::start(&cluster, &app::clients_of(&cluster, SHARED)?, "catalog", &KEYS);
    let (began, before, asked) = (Instant::now(), cpu()?, requests()?);
    let_run(&cluster)?;
    let_run(&cluster)?;
    let now = requests()?;
    let done: Vec<_> = now.iter().zip(&asked).map(|(now, before)| now - before).collect();
    let loaded = look("under load", &done, began.elapsed(), &before)?;
    load.stop()?;

    let object = cluster.kubectl(&[
        "--namespace",
        chart::NAMESPACE,
        "get",
        installed::AGENTS,
        "--output=jsonpath={.spec.template.spec.containers[0].resources.requests.memory}",
    ])?;
    let mebibytes: u64 = object.strip_suffix("Mi").and_then(|number| number.parse().ok()).context(object)?;
    ensure!(resting.max(loaded) < mebibytes << 20, "more than the {mebibytes} MiB that the chart asks for");
    Ok(())
}
