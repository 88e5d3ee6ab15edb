//! The agents that run, and how they are asked: through the API server's proxy, or by an address.

use std::time::Duration;

use bytes::Bytes;
use divert_core::admin::agent::AgentStatus;
use divert_core::plan::PodRef;
use divert_kubernetes::{Cluster, ConnectError, describe};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use super::WhereArgs;

/// An agent answers at once, or something is in the way.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why an agent cannot be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// No cluster.
    #[error("{0}; or name an agent's admin address with --agent")]
    Connect(#[from] ConnectError),
    /// The API server does not say where they are.
    #[error("{doing}: {why}")]
    Api {
        /// What was asked for.
        doing: String,
        /// What it says.
        why: String,
    },
    /// There is none.
    #[error(
        "no Pod with labels {selector} runs in namespace {namespace}: is Divert installed there? \
         Else name it with --agents-namespace and --agents"
    )]
    None {
        /// Where.
        namespace: String,
        /// Of the agents.
        selector: String,
    },
    /// The pod has no agent.
    #[error("{pod} runs on node {node}, where no agent does: its connections go direct")]
    NoAgent {
        /// Whose.
        pod: PodRef,
        /// Its node.
        node: String,
    },
    /// It did not answer.
    #[error("asking {agent} for {path}: {why}")]
    Silent {
        /// Whom.
        agent: String,
        /// What for.
        path: String,
        /// What came instead.
        why: String,
    },
}

/// One agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Agent {
    /// Its pod, or its address.
    pub(super) name: String,
    node: Option<String>,
}

/// The agent that serves a pod.
#[derive(Debug)]
pub(super) struct Serving<'a> {
    /// It.
    pub(super) agent: &'a Agent,
    /// Why others of its node did not answer.
    pub(super) silent: Vec<AskError>,
}

/// All of them.
pub(super) struct Agents {
    found: Vec<Agent>,
    by: By,
}

enum By {
    /// That is their name.
    Address,
    Proxy {
        client: Client,
        namespace: String,
        port: u16,
    },
}

impl Agents {
    /// Finds them, without asking them anything.
    pub(super) async fn find(at: &WhereArgs) -> Result<Self, AskError> {
        if let Some(address) = &at.agent {
            return Ok(Self::at([address.clone()]));
        }
        let client = Cluster::find(&at.cluster).await?.client()?;
        let namespace = at.agents_namespace.clone();
        let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
        let pods = pods.list(&ListParams::default().labels(&at.agents)).await;
        let pods = pods.map_err(api(format!("listing the Pods of the agents in namespace {namespace}")))?;
        let mut found: Vec<_> = pods.items.into_iter().filter_map(running).collect();
        found.sort_by(|a, b| (&a.node, &a.name).cmp(&(&b.node, &b.name)));
        if found.is_empty() {
            return Err(AskError::None { namespace, selector: at.agents.clone() });
        }
        Ok(Self { found, by: By::Proxy { client, namespace, port: at.agents_port } })
    }

    /// Those at these addresses.
    pub(super) fn at(addresses: impl IntoIterator<Item = String>) -> Self {
        let found = addresses.into_iter().map(|name| Agent { name, node: None }).collect();
        Self { found, by: By::Address }
    }

    pub(super) fn all(&self) -> &[Agent] {
        &self.found
    }

    /// The agent that serves a pod; while one is being replaced, the one that has been there longer.
    pub(super) async fn of_pod(&self, pod: &PodRef) -> Result<Serving<'_>, AskError> {
        let By::Proxy { client, .. } = &self.by else {
            // By address there is one.
            return Ok(Serving { agent: &self.found[0], silent: Vec::new() });
        };
        let found = Api::<Pod>::namespaced(client.clone(), &pod.namespace).get(&pod.name).await;
        let found = found.map_err(api(format!("looking for the pod {pod}")))?;
        let node = found.spec.and_then(|spec| spec.node_name);
        let mut asked = Vec::new();
        for agent in self.found.iter().filter(|agent| agent.node == node) {
            let status = self.json::<AgentStatus>(agent, "/status").await;
            asked.push((agent, status.map(|status| status.standing_by)));
        }
        let node = node.unwrap_or_else(|| "(none yet)".to_owned());
        choose(asked)?.ok_or_else(|| AskError::NoAgent { pod: pod.clone(), node })
    }

    /// What an agent answers, as text.
    pub(super) async fn text(&self, agent: &Agent, path: &str) -> Result<String, AskError> {
        let silent = |why: String| AskError::Silent { agent: agent.name.clone(), path: path.to_owned(), why };
        let asking = async {
            match &self.by {
                By::Address => get(&agent.name, path).await,
                By::Proxy { client, namespace, port } => {
                    let name = &agent.name;
                    let url = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy{path}");
                    let request = Request::get(url).body(Vec::new()).map_err(|error| error.to_string())?;
                    client.request_text(request).await.map_err(|error| {
                        format!(
                            "{}; the API server must reach the agent's admin address and let you get pods/proxy in \
                             {namespace}, else ask by kubectl port-forward and --agent",
                            describe(&error)
                        )
                    })
                }
            }
        };
        let answered = tokio::time::timeout(PATIENCE, asking).await;
        answered.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}"))).map_err(silent)
    }

    /// What an agent answers, understood.
    pub(super) async fn json<T: DeserializeOwned>(&self, agent: &Agent, path: &str) -> Result<T, AskError> {
        let text = self.text(agent, path).await?;
        serde_json::from_str(&text).map_err(|error| AskError::Silent {
            agent: agent.name.clone(),
            path: path.to_owned(),
            why: format!("its answer is not understood ({error}); is it of another version?"),
        })
    }
}

/// Of a node's agents, and whether they stand by, the one to ask; none where there is none. One that does not answer
/// does not matter where another serves.
fn choose<'a>(asked: Vec<(&'a Agent, Result<bool, AskError>)>) -> Result<Option<Serving<'a>>, AskError> {
    let (mut serving, mut standing_by, mut silent) = (None, None, Vec::new());
    for (agent, answer) in asked {
        match answer {
            Ok(false) => serving = Some(agent),
            Ok(true) => standing_by = standing_by.or(Some(agent)),
            Err(error) => silent.push(error),
        }
    }
    match serving {
        Some(agent) => Ok(Some(Serving { agent, silent })),
        // What one that stands by knows is not what happens.
        None => match silent.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(standing_by.map(|agent| Serving { agent, silent: Vec::new() })),
        },
    }
}

fn api(doing: String) -> impl FnOnce(kube::Error) -> AskError {
    move |error| AskError::Api { doing, why: describe(&error) }
}

fn running(pod: Pod) -> Option<Agent> {
    let phase = pod.status.and_then(|status| status.phase);
    (phase.as_deref() == Some("Running")).then_some(())?;
    Some(Agent { name: pod.metadata.name?, node: pod.spec?.node_name })
}

async fn get(address: &str, path: &str) -> Result<String, String> {
    let words = |error: &dyn std::error::Error| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(|error| words(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| words(&error))?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header("host", address).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| words(&error))?;
    let response = sender.send_request(request).await.map_err(|error| words(&error))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| words(&error))?.to_bytes();
    connection.abort();
    let text = String::from_utf8_lossy(&body).into_owned();
    if status == StatusCode::OK { Ok(text) } else { Err(format!("{status}: {}", text.trim())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_that_serves_is_asked_whatever_others_of_its_node_do() {
        let agents = ["old", "new"].map(|name| Agent { name: name.into(), node: Some("n".into()) });
        let silent = |name: &str| AskError::Silent {
            agent: name.into(),
            path: "/status".into(),
            why: "no answer".into(),
        };
        let chosen = |answers: [Option<bool>; 2]| {
            let asked = agents.iter().zip(answers);
            let asked = asked.map(|(agent, answer)| (agent, answer.ok_or_else(|| silent(&agent.name))));
            let chosen = choose(asked.collect());
            chosen
                .map(|it| it.map(|it| (it.agent.name.clone(), it.silent.len())))
                .map_err(|it| it.to_string())
        };
        let asked = |name: &str, silent| Ok(Some((name.to_owned(), silent)));
        assert_eq!(chosen([Some(false), Some(true)]), asked("old", 0));
        assert_eq!(chosen([Some(true), Some(false)]), asked("new", 0));
        assert_eq!(chosen([Some(false), None]), asked("old", 1));
        assert_eq!(chosen([None, Some(false)]), asked("new", 1));
        assert_eq!(chosen([Some(true), Some(true)]), asked("old", 0));
        assert!(chosen([None, Some(true)]).unwrap_err().contains("asking old"));
        assert!(choose(Vec::new()).is_ok_and(|it| it.is_none()));
    }
}
