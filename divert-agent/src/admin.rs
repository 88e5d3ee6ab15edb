//! What an agent answers on its admin address.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use divert_admin::Answer;
use divert_core::admin::agent::{AgentStatus, PodNote};
use divert_core::admin::programmed::{self, Programmed, TakenUp};
use divert_core::explain::Question;
use divert_core::plan::PodRef;
use divert_core::plan_view::View;
use hyper::StatusCode;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::apply::watching::Unwatchable;
use crate::apply::{Direct, Status};
use crate::explain::{self, ExplainError};
use crate::metrics::{self, Sources};
use crate::node_lock::Place;

const PATHS: &str = "here are /healthz, /readyz, /metrics, /status, /programmed, /plan and /explain?pod=NAMESPACE/POD&to=HOST:PORT\n";

/// As long as an answer that takes time is waited for while another is being given. Less than who asks waits.
const TURN: Duration = Duration::from_secs(5);

/// As long as the steps of the plan are waited for that were handed over before the question.
const CARRIED_OUT: Duration = Duration::from_secs(2);

/// The Diverts in the plan, after so many updates of the planner, of which so many steps came.
#[derive(Clone, Debug)]
pub struct TakenUpSoFar {
    updates: u64,
    steps: u64,
    diverts: Arc<BTreeMap<String, TakenUp>>,
}

/// Everything that an agent can be asked about.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Its name among the agents of the cluster.
    pub identity: Arc<str>,
    /// The node it serves; none without a cluster.
    pub node: Option<Arc<str>>,
    /// Why it is about to end with an error, once it is.
    pub health: Arc<OnceLock<String>>,
    /// Its place among the agents of the node.
    pub place: Option<Arc<Place>>,
    /// Of metrics and readiness.
    pub metrics: Sources,
    /// Of plan and explanations.
    pub explain: explain::Sources,
    /// Of which one is given at a time: they take time of whoever makes plans, and memory.
    pub turn: Arc<Semaphore>,
    /// What was last told of Diverts.
    pub taken_up: Arc<Mutex<Option<TakenUpSoFar>>>,
}

impl Agent {
    /// Answers one request.
    pub async fn answer(self, path: String, query: String) -> Answer {
        match path.as_str() {
            "/healthz" => match self.health.get() {
                None => Answer::text(StatusCode::OK, "ok\n"),
                Some(error) => Answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
            },
            "/readyz" => ready(&self.metrics.apply.borrow(), &self.metrics.control.troubles.load()),
            "/metrics" => match metrics::render(&self.metrics) {
                Ok(body) => Answer::metrics(body),
                Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            "/status" => Answer::json(&self.status()),
            programmed::PATH => self.programmed(&query).await,
            "/plan" => alone(&self.turn.clone(), TURN, async move { self.plan(&query).await }).await,
            "/explain" => alone(&self.turn.clone(), TURN, async move { self.explain(&query).await }).await,
            _ => Answer::text(StatusCode::NOT_FOUND, PATHS),
        }
    }

    fn is_standing_by(&self) -> bool {
        self.place.as_ref().is_some_and(|place| !place.is_serving())
    }

    /// What is in effect. `known=REVISION` says what of it is known.
    async fn programmed(&self, query: &str) -> Answer {
        let Some(TakenUpSoFar { steps, diverts, .. }) = self.taken_up().await else {
            return ending(&ExplainError::Ending);
        };
        let mut apply = self.metrics.apply.clone();
        let carried_out = timeout(CARRIED_OUT, apply.wait_for(|status| status.steps >= steps)).await;
        let Ok(Ok(status)) = carried_out.map(|it| it.map(|status| status.clone())) else {
            return Answer::text(StatusCode::SERVICE_UNAVAILABLE, "the plan is still being carried out\n");
        };
        let stale = self.metrics.control.stale.load().to_vec();
        let diverts = diverts.as_ref().clone();
        let programmed = in_effect(self.is_standing_by(), steps > 0, diverts, &status, stale);
        if query.strip_prefix("known=").is_some_and(|known| known == programmed.revision) {
            return Answer::text(StatusCode::NOT_MODIFIED, "");
        }
        Answer::json(&programmed)
    }

    /// Looked up once for each update of the planner, however often it is asked for.
    async fn taken_up(&self) -> Option<TakenUpSoFar> {
        let control = &self.metrics.control;
        let now = control.updates.load(Ordering::Relaxed);
        let last = self.taken_up.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(last) = last.filter(|last| last.updates == now) {
            return Some(last);
        }
        let control = Arc::clone(control);
        let asked = self.explain.control.ask(move |planner| {
            // Between two updates, as nobody else has the planner meanwhile.
            let (updates, steps) =
                (control.updates.load(Ordering::Relaxed), control.steps.load(Ordering::Relaxed));
            // What is known before the first is not all.
            let taken_up = if steps > 0 { programmed::taken_up(planner) } else { BTreeMap::new() };
            TakenUpSoFar { updates, steps, diverts: Arc::new(taken_up) }
        });
        let taken_up = asked.await?;
        *self.taken_up.lock().unwrap_or_else(PoisonError::into_inner) = Some(taken_up.clone());
        Some(taken_up)
    }

    fn status(&self) -> AgentStatus {
        let status = self.metrics.apply.borrow();
        AgentStatus {
            identity: self.identity.to_string(),
            node: self.node.as_deref().map(str::to_owned),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            standing_by: self.is_standing_by(),
            ready: status.ready,
            served: status.served.keys().map(ToString::to_string).collect(),
            watched: status.watched.iter().map(ToString::to_string).collect(),
            spliced: notes(&status.spliced, Unwatchable::reason),
            full: status.full.iter().map(ToString::to_string).collect(),
            agent_full: status.agent_full,
            direct: notes(&status.direct, Direct::reason),
            captures: status.captures,
            left_out: status.left_out.iter().map(ToString::to_string).collect(),
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

/// What the controller is told.
fn in_effect(
    standing_by: bool,
    planned: bool,
    diverts: BTreeMap<String, TakenUp>,
    status: &Status,
    stale: Vec<String>,
) -> Programmed {
    let mut served: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for pod in status.served.keys() {
        served.entry(pod.namespace.to_string()).or_default().insert(pod.name.to_string());
    }
    let (direct, unsettled) = (notes(&status.direct, Direct::reason), status.unsettled);
    let revision = String::new();
    Programmed { revision, standing_by, planned, diverts, served, direct, unsettled, stale }.revised()
}

/// Pods and what is to be said of them, the reason in one word as well.
fn notes<T: Display>(pods: &BTreeMap<PodRef, T>, reason: impl Fn(&T) -> &'static str) -> Vec<PodNote> {
    let note = |(pod, why): (&PodRef, &T)| PodNote {
        pod: pod.to_string(),
        reason: reason(why).to_owned(),
        why: why.to_string(),
    };
    pods.iter().map(note).collect()
}

/// Gives an answer while no other is given. It is made to its end also if whoever asked has gone: what it asks of
/// other threads is on its way, and the next is to come after it.
async fn alone(
    turn: &Arc<Semaphore>,
    patience: Duration,
    answer: impl Future<Output = Answer> + Send + 'static,
) -> Answer {
    // It is never closed.
    let Ok(Ok(permit)) = timeout(patience, Arc::clone(turn).acquire_owned()).await else {
        let busy = "another question is being answered: ask again in a moment\n";
        return Answer::text(StatusCode::SERVICE_UNAVAILABLE, busy);
    };
    let made = tokio::spawn(async move { answer.await.holding(permit) });
    made.await.unwrap_or_else(|error| Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")))
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
    if status.agent_full {
        body.push_str("the agent has as many connections as it can: new ones go direct\n");
    }
    for pod in &status.full {
        body.push_str(&format!("{pod} has as many connections as it may: new ones go direct\n"));
    }
    for (pod, why) in &status.direct {
        body.push_str(&format!("{pod} is left direct: {why}\n"));
    }
    for left_out in &status.left_out {
        body.push_str(&format!("{left_out}\n"));
    }
    for trouble in troubles {
        body.push_str(&format!("{trouble}\n"));
    }
    Answer::text(if status.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

#[cfg(test)]
mod tests {
    use divert_core::plan::PodRef;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn one_answer_is_given_at_a_time_and_made_to_its_end() {
        let turn = Arc::new(Semaphore::new(1));
        let answer = || Answer::text(StatusCode::OK, "");
        let (finish, finished) = oneshot::channel();
        let (begun, beginning) = oneshot::channel();
        let slow = async move {
            begun.send(()).unwrap();
            let answered = finished.await;
            answered.map_or_else(|_| ending(&ExplainError::Ending), |()| answer())
        };
        let asking = tokio::spawn({
            let turn = turn.clone();
            async move { alone(&turn, TURN, slow).await }
        });
        beginning.await.unwrap();
        // Its client goes.
        asking.abort();
        assert!(asking.await.is_err());
        let other = alone(&turn, Duration::from_millis(50), async move { answer() }).await;
        assert_eq!(other.status(), StatusCode::SERVICE_UNAVAILABLE);
        finish.send(()).unwrap();
        let other = alone(&turn, 10 * TURN, async move { answer() }).await;
        assert_eq!(other.status(), StatusCode::OK);
        assert_eq!(turn.available_permits(), 0, "until it is written");
        drop(other);
        assert_eq!(turn.available_permits(), 1);
    }

    #[test]
    fn what_is_in_effect_has_a_revision_of_its_own() {
        let with = |planned, status: &Status| in_effect(false, planned, BTreeMap::new(), status, Vec::new());
        let status = Status::default();
        let first = with(true, &status);
        assert_eq!(first, with(true, &status));
        assert_ne!(first.revision, with(false, &status).revision);
        let pod = PodRef { namespace: "staging".into(), name: "web".into() };
        let served = Status { served: [(pod, 15000)].into(), ..status };
        assert_ne!(first.revision, with(true, &served).revision);
        // Counters that nobody asks for here change nothing.
        let counted = Status { reconnects: 7, steps: 9, ..served.clone() };
        assert_eq!(with(true, &served), with(true, &counted));
    }
}
