//! What an agent answers on its admin address.

use std::sync::Arc;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use super::{Answer, OPENMETRICS};
use crate::apply::Status;
use crate::explain::{self, ExplainError, Question};
use crate::metrics::{self, Sources};
use crate::node_lock::Place;
use crate::plan_view::View;

const PATHS: &str =
    "here are /healthz, /readyz, /metrics, /status, /plan and /explain?pod=NAMESPACE/POD&to=HOST:PORT\n";

/// Everything that an agent can be asked about.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Its name among the agents of the cluster.
    pub identity: Arc<str>,
    /// The node it serves; none without a cluster.
    pub node: Option<Arc<str>>,
    /// Its place among the agents of the node.
    pub place: Option<Arc<Place>>,
    /// Of metrics and readiness.
    pub metrics: Sources,
    /// Of plan and explanations.
    pub explain: explain::Sources,
}

/// `/status`: one agent, for `divert-agent status`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentStatus {
    /// Its name.
    pub identity: String,
    /// Its node.
    pub node: Option<String>,
    /// Of the program.
    pub version: String,
    /// Whether another agent of the node serves, and this one follows it.
    pub standing_by: bool,
    /// As /readyz.
    pub ready: bool,
    /// Served pods.
    pub served: Vec<String>,
    /// Pods that are left direct.
    pub direct: Vec<LeftDirect>,
    /// Captured destinations.
    pub captures: usize,
    /// Captures that are not yet as they should be.
    pub unsettled: usize,
    /// Connections made before their capture that are in use.
    pub old_connections: usize,
    /// What keeps it from following its source.
    pub troubles: Vec<String>,
}

/// A pod whose connections are not captured though they should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeftDirect {
    /// Namespace and name.
    pub pod: String,
    /// In one word.
    pub reason: String,
    /// In a sentence.
    pub why: String,
}

impl Agent {
    /// Answers one request.
    pub async fn answer(self, path: String, query: String) -> Answer {
        match path.as_str() {
            "/healthz" => Answer::text(StatusCode::OK, "ok\n"),
            "/readyz" => ready(&self.metrics.apply.borrow(), &self.metrics.control.troubles.load()),
            "/metrics" => match metrics::render(&self.metrics) {
                Ok(body) => Answer { status: StatusCode::OK, kind: OPENMETRICS, body },
                Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            "/status" => Answer::json(&self.status()),
            "/plan" => self.plan(&query).await,
            "/explain" => self.explain(&query).await,
            _ => Answer::text(StatusCode::NOT_FOUND, PATHS),
        }
    }

    fn status(&self) -> AgentStatus {
        let status = self.metrics.apply.borrow();
        let direct = status.direct.iter().map(|(pod, why)| LeftDirect {
            pod: pod.to_string(),
            reason: why.reason().to_owned(),
            why: why.to_string(),
        });
        AgentStatus {
            identity: self.identity.to_string(),
            node: self.node.as_deref().map(str::to_owned),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            standing_by: self.place.as_ref().is_some_and(|place| !place.is_serving()),
            ready: status.ready,
            served: status.served.keys().map(ToString::to_string).collect(),
            direct: direct.collect(),
            captures: status.captures,
            unsettled: status.unsettled,
            old_connections: status.old_connections,
            troubles: self.metrics.control.troubles.load().to_vec(),
        }
    }

    async fn plan(&self, query: &str) -> Answer {
        let report = self.metrics.control.report.load_full();
        let json = query == "output=json";
        let asked = self.explain.control.ask(move |planner| {
            let view = View::new(planner, &report.problems);
            if json { Answer::json(&view) } else { Answer::text(StatusCode::OK, view.table()) }
        });
        asked.await.unwrap_or_else(|| ending(&ExplainError::Ending))
    }

    async fn explain(&self, query: &str) -> Answer {
        let question = match Question::from_query(query) {
            Ok(question) => question,
            Err(error) => return Answer::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
        match explain::explain(&self.explain, question).await {
            Ok(explanation) => Answer::json(&explanation),
            Err(error) => ending(&error),
        }
    }
}

fn ending(error: &ExplainError) -> Answer {
    Answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))
}

/// 200 once every pod that can be found is served. The body says which are not, and why; and what keeps the
/// agent from following its source, which it goes on serving without.
fn ready(status: &Status, troubles: &[String]) -> Answer {
    let mut body = format!(
        "{}: {} pods served, {} destinations captured\n",
        if status.ready { "ready" } else { "not ready" },
        status.served.len(),
        status.captures
    );
    for (pod, why) in &status.direct {
        body.push_str(&format!("{pod} is left direct: {why}\n"));
    }
    for trouble in troubles {
        body.push_str(&format!("{trouble}\n"));
    }
    Answer::text(if status.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}
