//! Namespaces that are deleted while they are diverted, under traffic; and that nothing is stranded when
//! neither controller nor agent is there any more.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{self, Agent};
use divert_tests::kube::{
    ApiServer, CONFIG_MAP, Client, DIVERT, NAMESPACE, Options, POD, PORT, SERVICE, SYSTEM, Town, condition,
    install_accounts,
};
use divert_tests::lab::{Family, Pod};
use divert_tests::process::{Place, Process};
use divert_tests::steady::{Ask, Steady};
use divert_tests::wait;
use serde_json::{Value, json};

/// The namespace controller empties a namespace in several rounds, with pauses.
const EMPTIED: Duration = Duration::from_secs(90);
/// Keeps an object, and the namespace with it, while a test looks.
const HOLD: &str = "tests.divert.dev/hold";

/// Alice diverts, an agent serves, a controller controls, and `db` is a name that alice lacks.
struct Stage {
    // Dropped in this order: the agent before the pods that it serves.
    agent: Agent,
    controller: Process,
    town: Town,
    server: ApiServer,
}

impl Stage {
    fn new() -> Result<Self> {
        let server = ApiServer::start(Options { controllers: true, audit: true, ..Options::default() })?;
        let admin = server.admin();
        let town = Town::with_pods(&server, "staging", "alice", &["staging/other"])?;
        admin.create(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "namespace": "staging"},
            "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80}]},
        }))?;
        let [agents, controllers] = install_accounts(&server)?;
        let agent = town.agent(&agents)?;
        let mut command = Command::new(agent::program()?);
        command.arg("controller").env("KUBECONFIG", controllers.kubeconfig());
        command.env("POD_NAMESPACE", SYSTEM).env("POD_NAME", "controller");
        let place = Place { netns: Some(town.lab.node().netns()), cgroup: Some(town.lab.agents_cgroup()) };
        let controller = Process::spawn("controller", command, place)?;
        admin.create(&town.divert())?;
        let stage = Self { agent, controller, town, server };
        stage.wait_key_leads_to("alice")?;
        stage
            .admin()
            .wait_for(SERVICE, "alice", "db", "to be made", |it| it["spec"]["type"] == "ExternalName")?;
        Ok(stage)
    }

    fn admin(&self) -> &Client {
        self.server.admin()
    }

    /// Traffic for which the shared copy may answer with the key as well as alice's.
    fn traffic(&self) -> Result<Steady> {
        let pods: Vec<Arc<Pod>> = vec![self.town.client(), self.town.lab.pod("staging/other")];
        let asks = [Ask::plain(&["staging/web"]), Ask::keyed("alice", &["alice/web", "staging/web"])];
        let traffic = Steady::start(&pods, self.town.web.address(Family::V4, PORT), &asks);
        traffic.wait_for(50)?;
        Ok(traffic)
    }

    fn end(&self, traffic: Steady) -> Result<()> {
        traffic.wait_for(50)?;
        let (requests, slowest) = traffic.stop().with_context(|| self.agent.process().output())?;
        eprintln!("{requests} requests, the slowest took {slowest:?}");
        Ok(())
    }

    fn wait_key_leads_to(&self, namespace: &str) -> Result<()> {
        wait::until_within(wait::PATIENCE * 2, &format!("the key to lead to {namespace}"), || {
            self.town.asks(true).is_ok_and(|by| by == self.town.server(namespace))
        })
        .with_context(|| self.agent.process().output())
    }

    /// As the kubelets do.
    fn end_pods(&self, namespace: &str) -> Result<()> {
        for pod in self.town.lab.pods().filter(|pod| pod.namespace() == namespace) {
            self.admin().delete(POD, namespace, pod.short_name())?;
        }
        Ok(())
    }

    fn wait_gone(&self, namespace: &str) -> Result<()> {
        let admin = self.admin();
        wait::until_within(EMPTIED, &format!("namespace {namespace} to be gone"), || {
            admin
                .list(NAMESPACE, "")
                .is_ok_and(|all| all.iter().all(|it| it["metadata"]["name"] != namespace))
        })
        .with_context(|| format!("{:?}", admin.get(NAMESPACE, "", namespace)))
    }

    /// Sees that the controller has written nothing into a namespace since it was deleted but the status of
    /// what was there, and has not tried to.
    fn left_alone(&self, namespace: &str) -> Result<()> {
        let audit = self.server.audit()?;
        let deleted = |it: &divert_tests::kube::Audited| {
            it.verb == "delete" && it.resource == "namespaces" && it.name == namespace && it.has_written()
        };
        let deleted = audit.iter().position(deleted).context("it was not deleted")?;
        let wrote: Vec<_> = audit[deleted..]
            .iter()
            .filter(|it| it.user.starts_with("system:serviceaccount:divert-system:"))
            .filter(|it| it.namespace == namespace && it.is_write() && it.resource != "diverts/status")
            .collect();
        ensure!(wrote.is_empty(), "in {namespace}, which is on its way out: {wrote:#?}");
        Ok(())
    }
}

fn hold(namespace: &str) -> Value {
    let metadata = json!({"name": "hold", "namespace": namespace, "finalizers": [HOLD]});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
}

fn free() -> Value {
    json!({"metadata": {"finalizers": null}})
}

#[test]
fn the_developers_own_namespace_goes() -> Result<()> {
    let stage = Stage::new()?;
    let admin = stage.admin();
    let traffic = stage.traffic()?;
    // Held, so that it can be read what it was told.
    admin.patch(DIVERT, "alice", "staging", &json!({"metadata": {"finalizers": [HOLD]}}))?;
    admin.delete(NAMESPACE, "", "alice")?;
    stage.wait_key_leads_to("staging")?;
    let told = |it: &Value| {
        let accepted = condition(it, "Accepted");
        accepted["reason"] == "NamespaceTerminating" && accepted["status"] == "False"
    };
    let divert = admin.wait_for(DIVERT, "alice", "staging", "to be told", told)?;
    ensure!(
        condition(&divert, "Accepted")["message"]
            .as_str()
            .is_some_and(|it| it.contains("alice is being deleted"))
    );
    stage.end_pods("alice")?;
    admin.wait_gone(SERVICE, "alice", "db")?;
    admin.patch(DIVERT, "alice", "staging", &free())?;
    stage.wait_gone("alice")?;
    stage.left_alone("alice")?;
    stage.end(traffic)
}

#[test]
fn the_shared_namespace_goes() -> Result<()> {
    let stage = Stage::new()?;
    let admin = stage.admin();
    admin.create(&hold("staging"))?;
    let traffic = stage.traffic()?;
    admin.delete(NAMESPACE, "", "staging")?;
    stage.wait_key_leads_to("staging")?;
    let told = |reason: &'static str| move |it: &Value| condition(it, "Accepted")["reason"] == reason;
    admin.wait_for(DIVERT, "alice", "staging", "to be told", told("NamespaceTerminating"))?;
    admin.wait_gone(SERVICE, "alice", "db")?;
    // The pods go on, as long as their grace period lasts.
    stage.end(traffic)?;
    stage.end_pods("staging")?;
    admin.patch(CONFIG_MAP, "staging", "hold", &free())?;
    stage.wait_gone("staging")?;
    admin.wait_for(DIVERT, "alice", "staging", "to be told", told("SharedNamespaceNotFound"))?;
    stage.left_alone("staging")?;
    let services: Vec<_> =
        admin.list(SERVICE, "alice")?.iter().map(|it| it["metadata"]["name"].clone()).collect();
    assert_eq!(services, ["web"], "hers stays");
    Ok(())
}

#[test]
fn with_controller_and_agent_away_for_good_nothing_is_stranded() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.agent.kill();
    stage.controller.kill();
    let admin = stage.admin();
    let divert = admin.get(DIVERT, "alice", "staging")?;
    assert_eq!(divert["metadata"]["finalizers"], Value::Null);
    // With the Divert go its names, as kubectl waits for.
    admin.kubectl(&["delete", "divert", "-n", "alice", "staging", "--timeout=30s"], "")?;
    admin.wait_gone(SERVICE, "alice", "db")?;
    admin.create(&stage.town.divert())?;
    for namespace in ["alice", "staging"] {
        stage.end_pods(namespace)?;
        admin.kubectl(&["delete", "namespace", namespace, "--wait=false"], "")?;
        stage.wait_gone(namespace)?;
    }
    // The servers themselves are still there, and nobody is between.
    assert_eq!(stage.town.asks(true)?, "staging/web");
    assert_eq!(stage.town.asks(false)?, "staging/web");
    Ok(())
}
