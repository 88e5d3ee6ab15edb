//! `divert-agent status` and `divert-agent explain`: asks the agents that run, and prints what they say.

mod agents;

use std::io::{self, Write as _};

use clap::Args;
use divert_core::admin::agent::AgentStatus;
use divert_core::columns::Columns;
use divert_core::explain::{Destination, Explanation, Question, question};
use divert_core::plan::PodRef;
use divert_core::plan_view::Format;
use divert_kubernetes::ClusterArgs;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use self::agents::{Agent, Agents, AskError, Serving};

/// Where the agents are.
#[derive(Args, Clone, Debug)]
pub struct WhereArgs {
    /// Admin address of one agent, as of a `kubectl port-forward` or on this box. Without it, the agents of the
    /// cluster are asked through its API server, which takes the right to get pods/proxy in their namespace.
    #[arg(long, value_name = "HOST:PORT")]
    pub agent: Option<String>,
    /// Namespace of the agents.
    #[arg(long, value_name = "NAME", default_value = "divert-system")]
    pub agents_namespace: String,
    /// Label selector of the agents' Pods in that namespace.
    #[arg(long, value_name = "SELECTOR", default_value = "app.kubernetes.io/name=divert-agent")]
    pub agents: String,
    /// Port of the agents' admin address.
    #[arg(long, value_name = "PORT", default_value_t = 9464)]
    pub agents_port: u16,
    /// How to print it.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Format,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Options of `divert-agent status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Also the plan that each agent carries out.
    #[arg(long)]
    pub plan: bool,
    /// Where the agents are.
    #[command(flatten)]
    pub at: WhereArgs,
}

/// Options of `divert-agent explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The pod that sends the request.
    #[arg(long, value_name = "NAMESPACE/POD", value_parser = question::pod)]
    pub pod: PodRef,
    /// Where to, as the application would say: a name or an address.
    #[arg(long, value_name = "HOST:PORT")]
    pub to: Destination,
    /// A header field of the request; may be given several times.
    #[arg(long, short = 'H', value_name = "NAME: VALUE", value_parser = question::field)]
    pub header: Vec<(String, String)>,
    /// Where the agents are.
    #[command(flatten)]
    pub at: WhereArgs,
}

/// Why nothing, or not all, was printed.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// No agent can be asked.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// Some did not answer; the others were printed.
    #[error("{0} of the agents did not answer, or not all")]
    Silent(usize),
    /// The reader of standard output is gone.
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

fn run<T>(asking: impl Future<Output = Result<T, InspectError>>) -> Result<T, InspectError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(asking)
}

/// What agents said.
struct Asked {
    told: Vec<Told>,
    /// One for each agent that did not answer, or not all.
    silent: Vec<AskError>,
}

/// What one agent said.
#[derive(Serialize)]
struct Told {
    #[serde(flatten)]
    status: AgentStatus,
    /// Where it was asked for, and told: an object, or a string that is the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<serde_json::Value>,
    #[serde(skip)]
    agent: String,
}

/// So many agents are asked at once.
const AT_ONCE: usize = 32;

/// Asks all agents for their status, and for their plan; one that does not answer keeps nobody else's to itself, nor keeps
/// them waiting.
async fn ask(agents: &Agents, plan: Option<Format>) -> Asked {
    let asking = agents.all().iter().map(|agent| ask_one(agents, agent, plan));
    let answers: Vec<_> = stream::iter(asking).buffered(AT_ONCE).collect().await;
    let mut asked = Asked { told: Vec::new(), silent: Vec::new() };
    for (told, silent) in answers {
        asked.told.extend(told);
        asked.silent.extend(silent);
    }
    asked
}

async fn ask_one(agents: &Agents, agent: &Agent, plan: Option<Format>) -> (Option<Told>, Option<AskError>) {
    let status = match agents.json::<AgentStatus>(agent, "/status").await {
        Ok(status) => status,
        Err(error) => return (None, Some(error)),
    };
    let plan = match plan {
        None => Ok(None),
        Some(Format::Table) => agents.text(agent, "/plan").await.map(|table| Some(table.into())),
        Some(Format::Json) => agents.json(agent, "/plan?output=json").await.map(Some),
    };
    let told = |plan| Some(Told { status, plan, agent: agent.name.clone() });
    match plan {
        Ok(plan) => (told(plan), None),
        Err(error) => (told(None), Some(error)),
    }
}

/// Prints an overview of all agents.
///
/// # Errors
/// Also when some agent did not answer, so that the exit status says it.
pub fn status(args: StatusArgs) -> Result<(), InspectError> {
    run(async {
        let agents = Agents::find(&args.at).await?;
        let Asked { told, silent } = ask(&agents, args.plan.then_some(args.at.output)).await;
        let text = match args.at.output {
            Format::Json => serde_json::to_string_pretty(&told).map_err(io::Error::from)? + "\n",
            Format::Table => table(&told),
        };
        io::stdout().write_all(text.as_bytes())?;
        for problem in &silent {
            writeln!(io::stderr(), "{problem}")?;
        }
        if silent.is_empty() { Ok(()) } else { Err(InspectError::Silent(silent.len())) }
    })
}

/// Asks the agent of a pod's node where a request would go.
///
/// # Errors
/// When the pod or its agent cannot be found or asked.
pub fn explain(args: ExplainArgs) -> Result<(), InspectError> {
    run(async {
        let agents = Agents::find(&args.at).await?;
        let question = Question { pod: args.pod, to: args.to, fields: args.header };
        let Serving { agent, silent } = agents.of_pod(&question.pod).await?;
        let path = format!("/explain?{}", question.to_query());
        let explanation: Explanation = agents.json(agent, &path).await?;
        let text = match args.at.output {
            Format::Json => serde_json::to_string_pretty(&explanation).map_err(io::Error::from)? + "\n",
            Format::Table => told(&question, &agent.name, &explanation),
        };
        io::stdout().write_all(text.as_bytes())?;
        for problem in &silent {
            writeln!(io::stderr(), "{problem}")?;
        }
        Ok(())
    })
}

/// An overview, and behind it the plans that were asked for.
fn table(told: &[Told]) -> String {
    let statuses: Vec<_> = told.iter().map(|it| it.status.clone()).collect();
    let mut table = overview(&statuses);
    for (agent, plan) in told.iter().filter_map(|it| Some((&it.agent, it.plan.as_ref()?.as_str()?))) {
        table.push_str(&format!("\nPlan of {agent}\n\n{plan}"));
    }
    table
}

fn overview(statuses: &[AgentStatus]) -> String {
    let mut agents = Columns::new(
        "Agents",
        &["NODE", "AGENT", "VERSION", "STATE", "SERVED", "WATCHED", "DIRECT", "CAPTURES"],
    );
    let mut direct = Columns::new("Pods left direct", &["NODE", "POD", "REASON", "WHY"]);
    let mut spliced = Columns::new("Pods spliced, not watched", &["NODE", "POD", "REASON", "WHY"]);
    let mut troubles = String::new();
    for status in statuses {
        let node = status.node.clone().unwrap_or_else(|| "-".to_owned());
        let state = match (status.ready, status.standing_by) {
            (false, _) => "not ready",
            (true, true) => "standing by",
            (true, false) => "serving",
        };
        agents.row([
            node.clone(),
            status.identity.clone(),
            status.version.clone(),
            state.to_owned(),
            status.served.len().to_string(),
            status.watched.len().to_string(),
            status.direct.len().to_string(),
            status.captures.to_string(),
        ]);
        for pod in &status.direct {
            direct.row([node.clone(), pod.pod.clone(), pod.reason.clone(), pod.why.clone()]);
        }
        for pod in &status.spliced {
            spliced.row([node.clone(), pod.pod.clone(), pod.reason.clone(), pod.why.clone()]);
        }
        for pod in &status.full {
            let why = "it has as many connections as it may (--max-pod-connections): new ones go direct";
            direct.row([node.clone(), pod.clone(), "pod_full".to_owned(), why.to_owned()]);
        }
        if status.agent_full {
            let full = "the agent has as many connections as it can (--max-connections): new ones go direct";
            troubles.push_str(&format!("\n{node}: {full}\n"));
        }
        for trouble in status.left_out.iter().chain(&status.troubles) {
            troubles.push_str(&format!("\n{node}: {trouble}\n"));
        }
    }
    format!("{}\n{}\n{}{troubles}", agents.print(), direct.print(), spliced.print())
}

fn told(question: &Question, agent: &str, explanation: &Explanation) -> String {
    let mut text = format!("A request of {} to {}, as {agent} sees it\n\n", question.pod, question.to);
    for step in &explanation.steps {
        let mark = match step.holds {
            Some(true) => "yes",
            Some(false) => "no",
            None => "",
        };
        let about = format!("{:?}", step.about).to_lowercase();
        text.push_str(&format!("  {about:<12} {mark:<4} {}\n", step.says));
    }
    text.push_str(&format!("\n{}.\n", sentence(&explanation.verdict)));
    text
}

/// With a capital letter, unless it begins with a name (`alice/catalog`), which is as it is.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    match (text.split(' ').next(), chars.next()) {
        (Some(word), Some(first)) if !word.contains('/') => first.to_uppercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use divert_admin::{Answer, bind};
    use divert_core::admin::agent::PodNote;
    use divert_core::explain::{About, Step};
    use hyper::StatusCode;
    use tokio::sync::Barrier;

    use super::*;

    /// An agent that answers for its status, and for its plan or not.
    async fn agent(tells_plan: bool) -> String {
        serve(tells_plan, Arc::new(Barrier::new(1))).await
    }

    /// One that answers for its status once all are asked.
    async fn serve(tells_plan: bool, all: Arc<Barrier>) -> String {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(divert_admin::serve(listener, move |path, query| {
            let all = Arc::clone(&all);
            async move {
                match path.as_str() {
                    "/status" => {
                        all.wait().await;
                        Answer::json(&AgentStatus::default())
                    }
                    "/plan" if tells_plan && query == "output=json" => {
                        Answer::json(&serde_json::json!({ "shared": [] }))
                    }
                    "/plan" if tells_plan => Answer::text(StatusCode::OK, "as planned\n"),
                    _ => Answer::text(StatusCode::SERVICE_UNAVAILABLE, "in a moment\n"),
                }
            }
        }));
        address
    }

    #[tokio::test]
    async fn what_one_agent_does_not_tell_keeps_nothing_of_the_others_back() {
        let (busy, fine) = (agent(false).await, agent(true).await);
        // Nobody listens there.
        let gone = bind(([127, 0, 0, 1], 0).into()).await.unwrap().local_addr().unwrap().to_string();
        let agents = Agents::at([busy.clone(), gone.clone(), fine.clone()]);
        let asked = ask(&agents, Some(Format::Table)).await;
        assert_eq!(asked.told.len(), 2);
        assert!(table(&asked.told).ends_with(&format!("\nPlan of {fine}\n\nas planned\n")));
        let silent: Vec<_> = asked.silent.iter().map(ToString::to_string).collect();
        assert_eq!(silent.len(), 2, "{silent:?}");
        assert!(silent[0].contains(&format!("{busy} for /plan: 503")), "{silent:?}");
        assert!(silent[1].contains(&format!("{gone} for /status")), "{silent:?}");
    }

    #[tokio::test]
    async fn a_plan_is_part_of_what_is_printed_for_programs() {
        let agents = Agents::at([agent(true).await]);
        for (plan, expected) in
            [(None, None), (Some(Format::Json), Some(serde_json::json!({ "shared": [] })))]
        {
            let printed = serde_json::to_value(ask(&agents, plan).await.told).unwrap();
            assert_eq!(printed[0].get("plan"), expected.as_ref());
            assert_eq!(printed[0]["identity"], "");
        }
    }

    #[tokio::test]
    async fn all_agents_are_asked_at_once() {
        let all = Arc::new(Barrier::new(3));
        let mut addresses = Vec::new();
        for _ in 0..3 {
            addresses.push(serve(true, Arc::clone(&all)).await);
        }
        // One after the other, the first would not answer.
        let asked = ask(&Agents::at(addresses.clone()), Some(Format::Json)).await;
        let order: Vec<_> = asked.told.into_iter().map(|it| it.agent).collect();
        assert_eq!((order, asked.silent.len()), (addresses, 0));
    }

    #[test]
    fn the_overview_shows_each_agent_and_what_it_leaves() {
        let first = AgentStatus {
            identity: "divert-agent-x1".into(),
            node: Some("n1".into()),
            version: "0.1.0".into(),
            ready: true,
            served: vec!["staging/web".into(), "alice/web".into()],
            watched: vec!["staging/web".into()],
            spliced: vec![PodNote {
                pod: "alice/web".into(),
                reason: "packet_rules".into(),
                why: "it has packet rules of its own".into(),
            }],
            captures: 8,
            ..AgentStatus::default()
        };
        let second = AgentStatus {
            identity: "divert-agent-x2".into(),
            node: Some("n2".into()),
            version: "0.1.0".into(),
            direct: vec![PodNote {
                pod: "staging/db".into(),
                reason: "not_found".into(),
                why: "no network namespace on this node holds its address".into(),
            }],
            troubles: vec!["the API server is away".into()],
            ..AgentStatus::default()
        };
        assert_eq!(
            overview(&[first, second]),
            "\
Agents
  NODE  AGENT            VERSION  STATE      SERVED  WATCHED  DIRECT  CAPTURES
  n1    divert-agent-x1  0.1.0    serving    2       1        0       8
  n2    divert-agent-x2  0.1.0    not ready  0       0        1       0

Pods left direct
  NODE  POD         REASON     WHY
  n2    staging/db  not_found  no network namespace on this node holds its address

Pods spliced, not watched
  NODE  POD        REASON        WHY
  n1    alice/web  packet_rules  it has packet rules of its own

n2: the API server is away
"
        );
    }

    #[test]
    fn an_explanation_reads_from_top_to_bottom() {
        let question = Question {
            pod: question::pod("staging/web-1").unwrap(),
            to: "catalog:8080".parse().unwrap(),
            fields: Vec::new(),
        };
        let step = |about, holds, says: &str| Step { about, holds, says: says.into() };
        let explanation = Explanation {
            steps: vec![
                step(About::Registered, Some(true), "it is"),
                step(About::Key, None, "none"),
                step(About::Target, Some(false), "no"),
            ],
            verdict: "staging answers".into(),
        };
        assert_eq!(
            told(&question, "n1", &explanation),
            "A request of staging/web-1 to catalog:8080, as n1 sees it\n\n\
             \x20 registered   yes  it is\n\
             \x20 key               none\n\
             \x20 target       no   no\n\n\
             Staging answers.\n"
        );
    }
}
