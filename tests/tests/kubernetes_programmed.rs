//! Programmed is a proof: agents are asked what they serve, and after `up --wait` the next request is steered.
//!
//! `DIVERT_ROUNDS=1000` repeats the last so often.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{self, Agent};
use divert_tests::kube::{
    ApiServer, Client, Control, DAMPED, DIVERT, NODE, Options as Cluster, POD, SYSTEM, Town, balancer,
    condition, install_accounts,
};
use divert_tests::process::{Place, Process};
use divert_tests::{manifest, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Rounds of the test that is one of all.
const ROUNDS: usize = 20;
/// A program of another that is not waited for in vain, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster of one node with an agent, which finds the API server by a balancer, and a controller.
struct Stage {
    control: Option<Control>,
    agent: Agent,
    balancer: Process,
    account: Client,
    file: PathBuf,
    town: Town,
    server: Arc<ApiServer>,
}

impl Stage {
    fn new() -> Result<Self> {
        let server = Arc::new(ApiServer::start(Cluster { controllers: true, ..Cluster::default() })?);
        let [agents, account] = install_accounts(&server)?;
        let town = Town::new(&server, "staging", "alice")?;
        let balancer = balancer::start(&town.lab, "")?;
        let user = agents.at(&balancer::url())?;
        let options = agent::Options { admin_address: town.node.address, ..agent::Options::default() };
        let mut agent = Agent::launch_on(&town.lab, &town.node, &user, &options)?;
        agent.wait_ready()?;
        server.admin().create_pod_of_agent(&town.node.name, town.node.address)?;
        let file = town.lab.folder().join("okteto.yaml");
        fs::write(&file, "deploy:\n  divert:\n    driver: ebpf\n    namespace: staging\n")?;
        let mut stage = Self { control: None, agent, balancer, account, file, town, server };
        stage.start_control()?;
        Ok(stage)
    }

    fn admin(&self) -> &Client {
        self.server.admin()
    }

    fn start_control(&mut self) -> Result<()> {
        self.control = Some(Control::start(&self.server, &self.account, &["--damped", DAMPED])?);
        Ok(())
    }

    fn spawn(&self, words: &[&str]) -> Result<Process> {
        let mut command = Command::new(agent::program()?);
        command.args(&words[..1]).arg("-f").arg(&self.file).args(["-n", "alice"]).args(&words[1..]);
        command.env("KUBECONFIG", self.admin().kubeconfig());
        let lab = &self.town.lab;
        let place = Place { netns: Some(lab.node().netns()), cgroup: Some(lab.agents_cgroup()) };
        Process::spawn("up", command, place)
    }

    /// Whether the program did what it was asked for, and what it said.
    fn run(&self, words: &[&str]) -> Result<(bool, String)> {
        let mut process = self.spawn(words)?;
        let status = process.wait_exit(PATIENCE)?;
        Ok((status.success(), process.output()))
    }

    fn up(&self) -> Result<()> {
        let (done, said) = self.run(&["up", "--wait"])?;
        ensure!(done, "{said}\n{}", self.control.as_ref().map(Control::output).unwrap_or_default());
        Ok(())
    }

    /// The one request after `up`.
    fn is_steered(&self) -> Result<()> {
        let by = self.town.asks(true)?;
        ensure!(by == self.town.server("alice"), "answered by {by}:\n{}", self.agent.process().output());
        Ok(())
    }

    fn down(&self) -> Result<()> {
        let (done, said) = self.run(&["down"])?;
        ensure!(done, "{said}");
        wait::until("the key to lead to staging", || {
            self.town.asks(true).is_ok_and(|by| by == self.town.server("staging"))
        })
    }
}

fn rounds() -> usize {
    env::var("DIVERT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS)
}

fn transition(divert: &Value) -> Value {
    condition(divert, "Programmed")["lastTransitionTime"].clone()
}

#[test]
fn after_up_the_next_request_is_steered_each_time() -> Result<()> {
    let stage = Stage::new()?;
    for round in 0..rounds() {
        stage.up()?;
        stage.is_steered().with_context(|| format!("round {round}"))?;
        stage.down()?;
    }
    Ok(())
}

#[test]
fn up_waits_for_an_agent_that_is_slow_and_not_longer() -> Result<()> {
    let stage = Stage::new()?;
    for round in 0..rounds().div_ceil(5) {
        // Agents hear of nothing; the controller and the developer do.
        stage.balancer.signal(Signal::STOP)?;
        let mut up = stage.spawn(&["up", "--wait"])?;
        up.wait_for_output("applied")?;
        let divert = stage.admin().get(DIVERT, "alice", "staging")?;
        stage.admin().wait_condition(&divert, "Programmed", "Pending", &stage.town.node.name)?;
        ensure!(up.exited().is_none(), "{}", up.output());
        assert_eq!(stage.town.asks(true)?, stage.town.server("staging"), "nobody has heard of it");
        stage.balancer.signal(Signal::CONT)?;
        let said = up.finish(PATIENCE)?;
        ensure!(said.contains("is in effect"), "{said}");
        stage.is_steered().with_context(|| format!("round {round}"))?;
        // That it was about to be taken up was no news.
        let events = stage.admin().list(divert_tests::kube::EVENT, "alice")?;
        ensure!(!events.iter().any(|it| it["reason"] == "Pending"), "{events:#?}");
        stage.down()?;
    }
    Ok(())
}

#[test]
fn up_fails_where_nobody_keeps_the_status_and_where_the_agents_are_gone() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.up()?;
    // With the status that there was, and nobody to keep it.
    stage.control.take().context("it runs")?.kill();
    let (done, said) = stage.run(&["up", "--wait", "--timeout", "3"])?;
    ensure!(!done && said.contains("does the controller run"), "{said}");
    let divert = stage.admin().get(DIVERT, "alice", "staging")?;
    assert_eq!(condition(&divert, "Programmed")["status"], "True", "as it was");
    stage.start_control()?;
    stage.up()?;
    stage.is_steered()?;

    stage.agent.kill();
    let (done, said) = stage.run(&["up", "--wait", "--timeout", "8"])?;
    ensure!(!done && said.contains(&stage.town.node.name) && said.contains("refused"), "{said}");
    stage.admin().wait_condition(&divert, "Programmed", "AgentsNotReady", "refused")?;
    Ok(())
}

#[test]
fn a_pod_that_is_left_direct_is_named_until_it_is_labelled() -> Result<()> {
    let stage = Stage::new()?;
    stage.up()?;
    // Nothing on the node has that address.
    stage.admin().create_idle_pod("staging", "ghost", &stage.town.node.name, "10.77.9.9", true)?;
    let divert = stage.admin().get(DIVERT, "alice", "staging")?;
    let ghost = "staging/ghost-10-77-9-9 on";
    let seen = stage.admin().wait_condition(&divert, "Programmed", "PodsPodNote", ghost)?;
    let says = condition(&seen, "Programmed")["message"].as_str().unwrap_or_default();
    ensure!(says.contains("divert.dev/capture=false") && says.contains("holds its address"), "{says}");
    let (done, said) = stage.run(&["up", "--wait", "--timeout", "3"])?;
    ensure!(!done && said.contains(ghost), "{said}");
    // Of others it is none of hers.
    let label = json!({"metadata": {"labels": {"divert.dev/capture": "false"}}});
    stage.admin().patch(POD, "staging", "ghost-10-77-9-9", &label)?;
    stage.up()?;
    stage.admin().create_namespace(&manifest::namespace("elsewhere"))?;
    stage.admin().create_idle_pod("elsewhere", "ghost", &stage.town.node.name, "10.77.9.10", true)?;
    stage.up()
}

/// Nodes without processes, where agents are not, are late, or cannot do what they should.
#[test]
fn nodes_are_waited_for_where_agents_are_for_them() -> Result<()> {
    let server = Arc::new(ApiServer::start(Cluster { controllers: true, ..Cluster::default() })?);
    let admin = server.admin();
    let account = Control::install(&server)?;
    admin.create_namespace(&manifest::shared_namespace("staging"))?;
    for namespace in ["alice", "elsewhere"] {
        admin.create_namespace(&manifest::namespace(namespace))?;
    }
    admin.create_node("n1")?;
    admin.create_idle_pod("staging", "web", "n1", "10.77.1.1", true)?;
    // Of a kind that no agent is for.
    admin.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "windows"}}))?;
    admin.create_idle_pod("elsewhere", "iis", "windows", "10.77.1.2", true)?;
    // What was well for a while stays so for half a minute, by default.
    let control = Control::start(&server, &account, &[])?;
    let divert = admin.create(&manifest::divert("alice", "staging"))?;
    let told = |says: &str| {
        let seen = admin.wait_condition(&divert, "Programmed", "Programmed", says);
        seen.with_context(|| control.output())
    };
    let first = told("serves it")?;
    let message = condition(&first, "Programmed")["message"].as_str().unwrap_or_default();
    ensure!(!message.contains("windows"), "it has no pods of hers: {message}");
    admin.create_idle_pod("staging", "iis", "windows", "10.77.1.3", true)?;
    let named = told("windows")?;
    let message = condition(&named, "Programmed")["message"].as_str().unwrap_or_default();
    ensure!(message.contains("divert.dev/capture: \"false\""), "{message}");

    // A node that comes with a pod, and whose agent comes later, is news to nobody.
    admin.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "late"}}))?;
    admin.create_idle_pod("elsewhere", "web", "late", "10.77.1.4", true)?;
    admin.create_agent_pod("late")?;
    admin.set_agent_ready("late", false)?;
    // But a new Divert waits for it.
    let mut second = manifest::divert("alice", "staging");
    second["metadata"]["name"] = json!("second");
    let second = admin.create(&second)?;
    admin.wait_condition(&second, "Programmed", "AgentsNotReady", "late (agent-late")?;
    admin.set_agent_ready("late", true)?;
    admin.wait_condition(&second, "Programmed", "Programmed", "")?;
    let still = admin.get(DIVERT, "alice", "staging")?;
    assert_eq!(still["metadata"]["resourceVersion"], named["metadata"]["resourceVersion"], "{still:#}");
    assert_eq!(transition(&still), transition(&first));

    // What agents cannot do is told, when it stays so.
    drop(control);
    let _control = Control::start(&server, &account, &["--damped", DAMPED])?;
    type Change = fn(&mut Value);
    let cases: [(Change, &str, &str); 4] = [
        (|says| says["unsettled"] = json!(3), "CapturesRefused", "n1 (3)"),
        (|says| says["stale"] = json!(["watching Service: refused"]), "AgentsStale", "n1 (watching Service"),
        (|says| says["diverts"] = json!({}), "Pending", "n1"),
        (|says| *says = Value::Null, "AgentsNotReady", "n1 (agent-n1 does not answer"),
    ];
    for (change, reason, says) in cases {
        admin.agent_says("n1", change)?;
        // At the slow beat it would be seen as well.
        let touched = |value: &str| json!({"metadata": {"annotations": {"divert.dev/requested-at": value}}});
        admin.patch(DIVERT, "alice", "staging", &touched(reason))?;
        let seen = admin.wait_condition(&divert, "Programmed", reason, says)?;
        assert_eq!(condition(&seen, "Programmed")["status"], "False");
        assert_ne!(seen["status"]["lastHandledRequest"], reason, "it is not in effect");
        admin.agent_is_well("n1")?;
        let seen = admin.wait_condition(&divert, "Programmed", "Programmed", "")?;
        assert_eq!(seen["status"]["lastHandledRequest"], reason);
    }
    // No agent is left: by and by nobody is waited for, and nobody serves.
    for node in ["n1", "late"] {
        admin.delete(POD, SYSTEM, &format!("agent-{node}"))?;
        admin.delete(NODE, "", node)?;
    }
    admin.wait_condition(&divert, "Programmed", "AgentsNotReady", "none yet")?;
    admin.wait_condition(&divert, "Programmed", "NoAgents", "kubectl get pods")?;
    Ok(())
}

/// Two hundred Diverts, and an agent that is asked: seldom while nothing changes.
#[test]
fn agents_are_asked_where_something_changes() -> Result<()> {
    let server = Arc::new(ApiServer::start(Cluster { controllers: true, ..Cluster::default() })?);
    let admin = server.admin();
    let account = Control::install(&server)?;
    admin.create_namespace(&manifest::shared_namespace("staging"))?;
    admin.create_namespace(&manifest::namespace("alice"))?;
    admin.create_node("n1")?;
    admin.create_idle_pod("staging", "web", "n1", "10.77.1.1", true)?;
    let _control = Control::start(&server, &account, &[])?;
    let divert = admin.create(&manifest::divert("alice", "staging"))?;
    admin.wait_condition(&divert, "Programmed", "Programmed", "")?;
    let before = admin.agent_was_asked("n1")?;
    std::thread::sleep(Duration::from_secs(5));
    let asked = admin.agent_was_asked("n1")? - before;
    ensure!(asked <= 1, "asked {asked} times for nothing");
    Ok(())
}
