//! The API server behind a load balancer, a real nginx, which answers in its place: that nobody is there
//! (503), and that what a watch was to go on from is gone (410).

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use divert_tests::agent::{Agent, Options};
use divert_tests::kube::{
    ApiServer, DIVERT, Options as Cluster, Town, balancer, condition, install_accounts,
};
use divert_tests::process::{Place, Process};
use divert_tests::{agent, wait};

/// As long as an API server that is back is sought, and some.
const BACK_OFF: Duration = Duration::from_secs(30);

/// A cluster whose agent finds the API server through the balancer.
struct Stage {
    agent: Agent,
    controller: Process,
    balancer: Process,
    town: Town,
    server: ApiServer,
}

/// What the balancer answers by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    Nothing,
    /// Each request: 503.
    Away,
    /// Each request that begins a watch: 410.
    Gone,
}

impl Stage {
    fn new() -> Result<Self> {
        let server = ApiServer::start(Cluster { controllers: true, ..Cluster::default() })?;
        let town = Town::new(&server, "staging", "alice")?;
        let balancer = balance(&town, Answers::Nothing)?;
        let [agents, controllers] = install_accounts(&server)?;
        let through = balancer::url();
        let mut agent = Agent::launch_on(&town.lab, &town.node, &agents.at(&through)?, &Options::default())?;
        agent.wait_ready()?;
        let mut command = Command::new(agent::program()?);
        command.arg("controller").env("KUBECONFIG", controllers.at(&through)?.kubeconfig());
        command.env("POD_NAMESPACE", "divert-system").env("POD_NAME", "controller");
        let place = Place { netns: Some(town.lab.node().netns()), cgroup: Some(town.lab.agents_cgroup()) };
        let controller = Process::spawn("controller", command, place)?;
        let stage = Self { agent, controller, balancer, town, server };
        server_told(&stage)?;
        Ok(stage)
    }

    /// Restarts the balancer: every connection ends.
    fn restart(&mut self, answers: Answers) -> Result<()> {
        self.balancer.kill();
        self.balancer = balance(&self.town, answers)?;
        Ok(())
    }

    fn wait_key_leads_to(&self, namespace: &str) -> Result<()> {
        wait::until_within(BACK_OFF, &format!("the key to lead to {namespace}"), || {
            self.town.asks(true).is_ok_and(|by| by == self.town.server(namespace))
        })
        .with_context(|| self.agent.process().output())
    }

    fn tells(&self, text: &str) -> bool {
        self.agent.get("/readyz").is_ok_and(|it| it.status == 200 && it.text().contains(text))
    }

    fn wait_well(&self) -> Result<()> {
        wait::until_within(BACK_OFF, "the agent to say that all is well", || {
            self.tells("ready") && !self.tells("last known")
        })
    }
}

/// A Divert that comes takes effect, and is told so by the controller.
fn server_told(stage: &Stage) -> Result<()> {
    let admin = stage.server.admin();
    let divert = admin.create(&stage.town.divert())?;
    stage.wait_key_leads_to("alice")?;
    let accepted = |it: &serde_json::Value| condition(it, "Accepted")["status"] == "True";
    admin
        .wait_for(DIVERT, "alice", "staging", "to be accepted", accepted)
        .with_context(|| stage.controller.output())?;
    drop(divert);
    Ok(())
}

fn balance(town: &Town, answers: Answers) -> Result<Process> {
    let answer = match answers {
        Answers::Nothing => "",
        Answers::Away => "return 503;",
        Answers::Gone => "if ($arg_watch) { return 410; }",
    };
    balancer::start(&town.lab, answer)
}

#[test]
fn a_balancer_without_a_backend_is_told_and_tried_again_soon() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.restart(Answers::Away)?;
    let told = || stage.tells("what was last known stays") && stage.tells("503");
    wait::until("the agent to say that nobody is there", told)?;
    stage.server.admin().delete(DIVERT, "alice", "staging")?;
    assert_eq!(stage.town.asks(true)?, "alice/web", "what was last known stays");
    stage.restart(Answers::Nothing)?;
    stage.wait_key_leads_to("staging")?;
    stage.wait_well()?;
    server_told(&stage)
}

#[test]
fn a_watch_that_is_refused_as_too_old_begins_with_a_list() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.restart(Answers::Gone)?;
    wait::until("the agent to say so", || stage.tells("410"))?;
    stage.server.admin().delete(DIVERT, "alice", "staging")?;
    // By lists alone.
    stage.wait_key_leads_to("staging")?;
    server_told(&stage)?;
    stage.restart(Answers::Nothing)?;
    stage.wait_well()?;
    stage.server.admin().delete(DIVERT, "alice", "staging")?;
    stage.wait_key_leads_to("staging")
}
