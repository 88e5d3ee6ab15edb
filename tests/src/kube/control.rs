//! The controller beside the API server, with the rights that it is installed with; and what it tells.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::client::Client;
use super::kind::{DIVERT, EVENT, NODE, POD};
use super::server::ApiServer;
use super::town::{install_accounts, install_definition};
use crate::process::{Place, Process};
use crate::{agent, manifest};

/// The controller's namespace, and that of the agents it looks for.
pub const SYSTEM: &str = "divert-system";

/// Less than by default, so that tests are short: seconds until what was well is told to be so no longer.
pub const DAMPED: &str = "1";

/// A running controller. Dropped, it gives up its lease and ends.
#[derive(Debug)]
pub struct Control {
    process: Process,
    /// The cluster that it controls.
    pub server: Arc<ApiServer>,
}

/// What the tests of this process share: its account, and the controller while anybody has it.
static SHARED: Mutex<(Option<Client>, Weak<Control>)> = Mutex::new((None, Weak::new()));

impl Control {
    /// The controller that the tests of this process share, of [`ApiServer::shared`]. Its lease is one, so
    /// that two would never write at the same time, but they would differ about agents.
    ///
    /// # Errors
    /// When server or controller cannot be started.
    pub fn shared() -> Result<Arc<Self>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(control) = shared.1.upgrade() {
            return Ok(control);
        }
        let server = ApiServer::shared()?;
        let account = match &shared.0 {
            Some(account) => account.clone(),
            None => shared.0.insert(Self::install(&server)?).clone(),
        };
        let control = Arc::new(Self::start(&server, &account, &["--damped", DAMPED])?);
        shared.1 = Arc::downgrade(&control);
        Ok(control)
    }

    /// Installs the definition and the accounts, and gives the controller's.
    ///
    /// # Errors
    /// When the API server refuses a part of it.
    pub fn install(server: &ApiServer) -> Result<Client> {
        install_definition(server.admin())?;
        let [_, account] = install_accounts(server)?;
        Ok(account)
    }

    /// Starts a controller with further arguments.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(server: &Arc<ApiServer>, account: &Client, arguments: &[&str]) -> Result<Self> {
        Self::spawn(server, account, arguments, Command::new(agent::program()?))
    }

    /// [`Self::start`], with a log other than the usual.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_logging(
        server: &Arc<ApiServer>,
        account: &Client,
        arguments: &[&str],
        log: &str,
    ) -> Result<Self> {
        let mut command = Command::new(agent::program()?);
        command.env("DIVERT_LOG", log);
        Self::spawn(server, account, arguments, command)
    }

    fn spawn(
        server: &Arc<ApiServer>,
        account: &Client,
        arguments: &[&str],
        mut command: Command,
    ) -> Result<Self> {
        command.arg("controller").args(arguments).env("KUBECONFIG", account.kubeconfig());
        command.env("POD_NAMESPACE", SYSTEM).env("POD_NAME", "controller");
        let place = Place { netns: Some(server.netns().netns()), cgroup: None };
        let process = Process::spawn("controller", command, place)?;
        Ok(Self { process, server: Arc::clone(server) })
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has printed.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// SIGKILL: it is gone, and does nothing more.
    pub fn kill(mut self) {
        self.process.kill();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // So that the next one leads at once. If it has ended already there is no lease to give up.
        if self.process.signal(Signal::TERM).is_ok() {
            self.process.wait_exit(Duration::from_secs(10)).ok();
        }
    }
}

/// The condition of a Divert, null when it has none of that type.
pub fn condition<'a>(divert: &'a Value, kind: &str) -> &'a Value {
    let conditions = divert["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|it| it["type"] == kind)).unwrap_or(&Value::Null)
}

impl Client {
    /// Waits until a condition of a Divert has a reason and a message that contains `says`, for the spec
    /// as it is now. Gives the Divert.
    ///
    /// # Errors
    /// When it has not in good time, with the Divert as it was last.
    pub fn wait_condition(&self, divert: &Value, kind: &str, reason: &str, says: &str) -> Result<Value> {
        let text = |field: &str| divert["metadata"][field].as_str().unwrap_or_default();
        let what = format!("to have {kind}: {reason}, saying {says:?}");
        self.wait_for(DIVERT, text("namespace"), text("name"), &what, |it| {
            let condition = condition(it, kind);
            let generation = &it["metadata"]["generation"];
            condition["reason"] == reason
                && condition["message"].as_str().is_some_and(|message| message.contains(says))
                && condition["observedGeneration"] == *generation
                && it["status"]["observedGeneration"] == *generation
        })
    }

    /// Waits for an Event about an object: with this type and reason, and a note that contains `says`.
    ///
    /// # Errors
    /// When there is none in good time, with those that there are.
    pub fn wait_event(&self, about: &Value, kind: &str, reason: &str, says: &str) -> Result<()> {
        let metadata = &about["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        let what = format!("to have {kind} {reason} about {}, saying {says:?}", metadata["name"]);
        self.wait_for_list(EVENT, namespace, &what, |events| {
            events.iter().any(|event| {
                event["reason"] == reason
                    && event["type"] == kind
                    && event["involvedObject"]["kind"] == about["kind"]
                    && event["involvedObject"]["name"] == metadata["name"]
                    && event["message"].as_str().is_some_and(|note| note.contains(says))
            })
        })?;
        Ok(())
    }

    /// A node without any process, with an agent's Pod on it, ready.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn create_node(&self, name: &str) -> Result<()> {
        self.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}))?;
        let status = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        self.patch_status(NODE, "", name, &status)?;
        self.create_agent_pod(name)
    }

    /// The Pod of an agent that runs on a node and answers at this address.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn create_pod_of_agent(&self, node: &str, ip: Ipv4Addr) -> Result<()> {
        let name = format!("agent-{node}");
        let mut pod = manifest::pod_with_ips(SYSTEM, &name, &[]);
        pod["metadata"]["labels"] =
            json!({"app.kubernetes.io/name": "divert-agent", "divert.dev/capture": "false"});
        self.create(&placed(pod, node))?;
        let status = json!({
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [ready_condition(true)],
        });
        self.patch_status(POD, SYSTEM, &name, &status)?;
        Ok(())
    }

    /// An agent's Pod on a node, ready, and somebody who answers for it that all is well.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn create_agent_pod(&self, name: &str) -> Result<()> {
        let ip = self.start_stand_in(name)?;
        self.create_pod_of_agent(name, ip)
    }

    /// Whether the agent's Pod on such a node is ready. One that is not has no plan yet.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn set_agent_ready(&self, node: &str, ready: bool) -> Result<()> {
        let ip = self.start_stand_in(node)?;
        match ready {
            true => self.agent_is_well(node)?,
            false => self.agent_says(node, |says| says["planned"] = json!(false))?,
        }
        let status = json!({
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [ready_condition(ready)],
        });
        self.patch_status(POD, SYSTEM, &format!("agent-{node}"), &status)?;
        Ok(())
    }

    /// A Pod on such a node that nobody runs, labelled `app: APP`.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn create_idle_pod(
        &self,
        namespace: &str,
        app: &str,
        node: &str,
        ip: &str,
        ready: bool,
    ) -> Result<()> {
        let name = format!("{app}-{}", ip.replace('.', "-"));
        let mut pod = manifest::pod_with_ips(namespace, &name, &[]);
        pod["metadata"]["labels"] = json!({"app": app});
        self.create(&placed(pod, node)).context("creating a Pod")?;
        let status = json!({
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [ready_condition(ready)],
        });
        self.patch_status(POD, namespace, &name, &status)?;
        Ok(())
    }
}

fn placed(mut pod: Value, node: &str) -> Value {
    pod["spec"]["nodeName"] = json!(node);
    pod["spec"]["containers"][0]["image"] = json!("none");
    if let Some(pod) = pod.as_object_mut() {
        pod.remove("status");
    }
    pod
}

fn ready_condition(ready: bool) -> Value {
    json!({"type": "Ready", "status": if ready { "True" } else { "False" }})
}
