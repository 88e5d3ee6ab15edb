//! The API server away, in each of the ways in which it can be, under steady traffic: nobody notices, and
//! what has changed meanwhile takes effect when it is back.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use divert_tests::agent::{self, Agent};
use divert_tests::http::Http;
use divert_tests::kube::{ApiServer, Client, DIVERT, ENDPOINT_SLICE, Options, PORT, Town, install_accounts};
use divert_tests::lab::{Family, Pod};
use divert_tests::process::{Place, Process};
use divert_tests::server::Echo;
use divert_tests::steady::{Ask, Steady};
use divert_tests::{manifest, wait};
use serde_json::{Value, json};

/// As long as an API server that is back is sought, and some.
const BACK_OFF: Duration = Duration::from_secs(30);
/// As long as a connection is silent until it is probed, and probed until it is given up, and some. A server
/// that hangs would be noticed after two minutes.
const HALF_OPEN: Duration = Duration::from_secs(45);

/// A town with a second developer, bob, who does not divert yet. Alice does.
struct Stage {
    agent: Agent,
    traffic: Option<Steady>,
    _bob: Echo,
    town: Town,
    server: ApiServer,
}

impl Stage {
    fn new() -> Result<Self> {
        Self::on(ApiServer::start(Options { controllers: true, ..Options::default() })?)
    }

    fn on(server: ApiServer) -> Result<Self> {
        let admin = server.admin();
        let town =
            Town::with_pods(&server, "staging", "alice", &["bob/web", "staging/other", "staging/third"])?;
        let bob = town.lab.pod("bob/web");
        admin.create(&manifest::service("bob", "web", town.lab.cluster_ips(&bob)?, &[PORT.into()]))?;
        wait_ready(admin, "bob", true)?;
        let served = Echo::start(&bob, PORT)?;
        admin.create(&town.divert())?;
        let [account, _] = install_accounts(&server)?;
        let agent = town.agent(&account)?;
        let stage = Self { agent, traffic: None, _bob: served, town, server };
        stage.wait_answer("alice", "alice/web", wait::PATIENCE)?;
        stage.wait_answer("bob", "staging/web", wait::PATIENCE)?;
        Ok(stage)
    }

    /// Begins the traffic that is to notice nothing: everybody's but bob's.
    fn begin(&mut self) -> Result<()> {
        let pods: Vec<Arc<Pod>> =
            ["client", "other", "third"].map(|name| self.town.lab.pod(&format!("staging/{name}"))).into();
        let asks = [
            Ask::plain(&["staging/web"]),
            Ask::keyed("alice", &["alice/web"]),
            Ask::keyed("nobody", &["staging/web"]),
        ];
        let traffic = Steady::start(&pods, self.town.web.address(Family::V4, PORT), &asks);
        traffic.wait_for(100)?;
        self.traffic = Some(traffic);
        Ok(())
    }

    /// Lets so many requests pass.
    fn pass(&self, requests: usize) -> Result<()> {
        self.traffic
            .as_ref()
            .context("no traffic")?
            .wait_for(requests)
            .with_context(|| self.agent.process().output())
    }

    fn end(mut self) -> Result<()> {
        let (requests, slowest) = self
            .traffic
            .take()
            .context("no traffic")?
            .stop()
            .with_context(|| self.agent.process().output())?;
        eprintln!("{requests} requests, the slowest took {slowest:?}");
        Ok(())
    }

    /// Who answers a request with a key, on a new connection: a server, or the agent with a status.
    fn answer(&self, key: &str) -> Result<String> {
        let stream = self.town.client().connect(self.town.web.address(Family::V4, PORT))?;
        let response = Http::new(stream).get("/", &[("baggage", &format!("okteto-divert={key}"))])?;
        Ok(response.served_by().unwrap_or_else(|| response.status.to_string()))
    }

    fn wait_answer(&self, key: &str, by: &str, limit: Duration) -> Result<()> {
        let mut last = None;
        let answered = wait::until_within(limit, &format!("{key} to be answered by {by}"), || {
            let answer = self.answer(key);
            let is_so = answer.as_ref().is_ok_and(|answer| answer == by);
            last = Some(answer);
            is_so
        });
        answered.with_context(|| format!("last: {last:?}\n{}", self.agent.process().output()))
    }

    /// Whether /readyz says so, and that what is served is served.
    fn tells(&self, text: &str) -> bool {
        self.agent.get("/readyz").is_ok_and(|it| it.status == 200 && it.text().contains(text))
    }

    fn wait_told(&self, limit: Duration) -> Result<()> {
        wait::until_within(limit, "the agent to say that the API server is away", || {
            self.tells("what was last known stays")
        })
    }

    fn wait_well(&self) -> Result<()> {
        wait::until_within(BACK_OFF, "the agent to say that all is well", || {
            self.tells("ready") && !self.tells("last known")
        })
    }
}

/// Waits until the Service `web` has one endpoint of each family, ready or not, as the endpoint slice
/// controller says.
fn wait_ready(admin: &Client, namespace: &str, ready: bool) -> Result<()> {
    let is_so = |slices: &[Value]| {
        let so = |slice: &&Value| {
            slice["endpoints"]
                .as_array()
                .is_some_and(|all| all.iter().any(|it| it["conditions"]["ready"] == ready))
        };
        slices.iter().filter(so).count() == 2
    };
    admin.wait_for_list(ENDPOINT_SLICE, namespace, &format!("to have an endpoint, ready: {ready}"), is_so)?;
    Ok(())
}

#[test]
fn killed_and_restarted_in_mid_load() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.begin()?;
    for round in 0..3 {
        stage.server.kill();
        // Also killed again before everybody has found it.
        if round != 1 {
            stage.wait_told(BACK_OFF)?;
        }
        stage.pass(200)?;
        stage.server.restart()?;
    }
    stage.server.admin().create(&manifest::divert("bob", "staging"))?;
    stage.wait_answer("bob", "bob/web", BACK_OFF)?;
    stage.server.admin().delete(DIVERT, "bob", "staging")?;
    stage.wait_answer("bob", "staging/web", wait::PATIENCE)?;
    stage.wait_well()?;
    stage.end()
}

#[test]
fn paused_in_mid_load() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.begin()?;
    stage.server.pause()?;
    // Some seconds.
    stage.pass(1000)?;
    stage.server.resume()?;
    stage.server.admin().create(&manifest::divert("bob", "staging"))?;
    stage.wait_answer("bob", "bob/web", BACK_OFF)?;
    stage.wait_well()?;
    stage.end()
}

#[test]
fn cut_off_and_forgotten() -> Result<()> {
    let mut stage = Stage::new()?;
    let admin = stage.server.admin().clone();
    stage.begin()?;
    stage.server.cut(&stage.town.node)?;
    stage.wait_told(HALF_OPEN)?;
    stage.server.mend(&stage.town.node)?;
    stage.wait_well()?;

    // What the other side has forgotten, it does not close; what is lost, nobody sends again.
    stage.server.cut(&stage.town.node)?;
    stage.server.kill();
    stage.server.restart()?;
    admin.create(&manifest::divert("bob", "staging"))?;
    // By kube-controller-manager.
    stage.town.node.set_ready(&stage.town.lab.pod("bob/web"), false)?;
    wait_ready(&admin, "bob", false)?;
    stage.pass(100)?;
    assert_eq!(stage.answer("bob")?, "staging/web", "it cannot know yet");
    stage.server.mend(&stage.town.node)?;
    stage.wait_answer("bob", "503", HALF_OPEN)?;
    stage.town.node.set_ready(&stage.town.lab.pod("bob/web"), true)?;
    stage.wait_answer("bob", "bob/web", BACK_OFF)?;
    stage.wait_well()?;
    stage.end()
}

#[test]
fn what_is_deleted_while_the_agent_is_cut_off_is_gone_afterwards() -> Result<()> {
    // The watch cache remembers what has happened since it began; without it, etcd since it was compacted.
    for arguments in [vec![], vec!["--watch-cache=false".to_owned()]] {
        expired(arguments)?;
    }
    Ok(())
}

/// The API server cannot go on from where the agent was: it says so in the stream of the watch (410).
fn expired(arguments: Vec<String>) -> Result<()> {
    let options = Options { controllers: true, audit: true, arguments };
    let mut stage = Stage::on(ApiServer::start(options)?)?;
    let admin = stage.server.admin().clone();
    stage.server.kill();
    stage.wait_told(BACK_OFF)?;
    stage.server.cut(&stage.town.node)?;
    stage.server.restart()?;
    admin.delete(DIVERT, "alice", "staging")?;
    admin.create(&manifest::divert("bob", "staging"))?;
    stage.server.kill();
    stage.server.restart()?;
    stage.server.compact()?;
    let since = stage.server.audit()?.len();
    stage.server.mend(&stage.town.node)?;
    stage.wait_answer("alice", "staging/web", BACK_OFF)?;
    stage.wait_answer("bob", "bob/web", BACK_OFF)?;
    stage.wait_well()?;
    wait_relisted(&stage, since)
}

/// Sees that the agent was told that its version is gone, and that it has listed every kind again.
fn wait_relisted(stage: &Stage, since: usize) -> Result<()> {
    let output = stage.agent.process().output();
    assert!(output.contains("too old resource version") || output.contains("is too old"), "{output}");
    let audit = stage.server.audit()?;
    let asked = |verb: &str, resource: &str| {
        audit[since..].iter().any(|it| {
            it.user.ends_with(":divert-agent") && it.verb == verb && it.resource == resource && it.code == 200
        })
    };
    for resource in ["namespaces", "services", "endpointslices", "ingresses", "pods", "diverts"] {
        assert!(asked("list", resource), "no list of {resource}");
    }
    Ok(())
}

#[test]
fn up_waits_through_an_outage() -> Result<()> {
    let mut server = ApiServer::start(Options { controllers: true, ..Options::default() })?;
    let town = Town::new(&server, "staging", "alice")?;
    let file = town.lab.folder().join("okteto.yaml");
    fs::write(&file, "deploy:\n  divert:\n    driver: ebpf\n    namespace: staging\n")?;
    let mut command = Command::new(agent::program()?);
    command.arg("up").arg("-f").arg(&file).args(["-n", "alice", "--wait", "--timeout", "100"]);
    command.env("KUBECONFIG", server.admin().kubeconfig());
    let place = Place { netns: Some(town.lab.node().netns()), cgroup: Some(town.lab.agents_cgroup()) };
    let mut up = Process::spawn("up", command, place)?;
    up.wait_for_output("applied")?;
    server.kill();
    server.restart()?;
    assert!(up.exited().is_none(), "{}", up.output());
    let divert = server.admin().get(DIVERT, "alice", "staging")?;
    let condition = |kind: &str| {
        json!({
            "type": kind, "status": "True", "reason": kind, "message": "",
            "observedGeneration": divert["metadata"]["generation"], "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    let status = json!({
        "conditions": [condition("Accepted"), condition("Programmed")],
        "lastHandledRequest": divert["metadata"]["annotations"]["divert.dev/requested-at"],
    });
    server.admin().patch_status(DIVERT, "alice", "staging", &status)?;
    let said = up.finish(wait::PATIENCE)?;
    assert!(said.contains("is in effect"), "{said}");
    Ok(())
}
