//! Programmed: whether each agent that counts has a Divert in the plan that it has applied. Pure, but for the clock.
//!
//! What counts is what agents say, by UID and generation of the Divert, and what they serve: the pods of the developer's
//! namespace and of the shared one. A node that no agent is for is not waited for.
//!
//! It becomes True when all is well, and what was True becomes False when something has not been well for a while: a node
//! that starts, an agent that is replaced and a pod that comes are no news for the author of a Divert. Who waits (`up
//! --wait`) asks by an annotation, and is answered when every agent was asked after that.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use divert_core::admin::programmed::{Programmed, TakenUp};
use divert_core::compile::Condition;
use divert_core::world::{ObjectRef, Pair};
use tokio::time::Instant;

use super::agents::{Agent, Says};
use super::cache::Key;
use super::nodes::Nodes;

/// The type of the condition.
pub(super) const KIND: &str = "Programmed";
/// The reason while agents are taking it up, which is no news.
pub(super) const PENDING: &str = "Pending";
/// A sentence of the same condition is another so often at most: there may be one for each node that comes and goes.
const SENTENCES: Duration = Duration::from_secs(10);
/// After a controller begins to lead, agents are given this time to say what they have, before anything is told.
const FIRST_ANSWERS: Duration = Duration::from_secs(2);
/// Nodes and pods named in a message.
const NAMED: usize = 5;

/// What agents are to have of a Divert.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    pub(super) uid: &'a str,
    pub(super) generation: i64,
    pub(super) pair: &'a Pair,
    /// Services that the developer's namespace answers for.
    pub(super) services: Vec<&'a str>,
    /// Hosts that are granted.
    pub(super) hosts: Vec<&'a str>,
    /// When somebody asked for an answer, and has none yet.
    pub(super) asked: Option<Instant>,
}

/// What is to be said, as far as it is known.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) said: Condition,
    /// Whether all agents were asked since somebody asked.
    is_fresh: bool,
    /// Agents that are to be asked again.
    lacking: Vec<Key>,
    /// When it may be otherwise though nothing happens.
    again: Option<Instant>,
}

/// Something that is wrong, and where.
#[derive(Debug, Default)]
struct Wrong<'a> {
    without: Vec<String>,
    stale: Vec<String>,
    pending: Vec<String>,
    unsettled: Vec<String>,
    pods: Vec<String>,
    /// Nodes that no agent is for, with pods of this Divert.
    unattended: Vec<&'a str>,
}

/// Judges what agents say.
pub(super) fn verdict(nodes: &Nodes, see: &str, subject: &Subject<'_>, now: Instant) -> Verdict {
    let mut wrong = Wrong::default();
    let mut verdict =
        Verdict { said: said(true, KIND, String::new()), is_fresh: true, lacking: Vec::new(), again: None };
    let mut attended = false;
    for node in nodes.names() {
        if !nodes.agents.is_on(node) {
            match nodes.may_get_an_agent_until(node, now) {
                Some(until) => {
                    verdict.again = Some(verdict.again.map_or(until, |other| other.min(until)));
                    wrong.without.push(format!("{node} (none yet)"));
                }
                None if nodes.has_pods_of(node, subject.pair) => wrong.unattended.push(node),
                None => {}
            }
            continue;
        }
        attended = true;
        judge_node(nodes, node, subject, &mut wrong, &mut verdict);
    }
    for namespace in [&subject.pair.developer, &subject.pair.shared] {
        for (name, unserved) in nodes.unserved(namespace) {
            let why = unserved.why.as_deref().unwrap_or("its agent does not know it yet");
            wrong.pods.push(format!("{namespace}/{name} on {} ({why})", unserved.node));
            verdict.lacking.extend(nodes.agents.on(&unserved.node).map(|agent| agent.key.clone()));
        }
    }
    let nobody = wrong.without.is_empty()
        && (nodes.agents.is_empty()
            || (!attended && nodes.names().next().is_some())
            || (!wrong.unattended.is_empty() && !has_an_attended_pod(nodes, subject.pair)));
    verdict.said = wrong.said(nobody, subject.pair, see);
    verdict
}

fn judge_node(
    nodes: &Nodes,
    node: &Arc<str>,
    subject: &Subject<'_>,
    wrong: &mut Wrong<'_>,
    verdict: &mut Verdict,
) {
    let agents = || nodes.agents.on(node);
    let lacking = |agent: Agent<'_>| agent.key.clone();
    let is_fresh =
        |agent: Agent<'_>| subject.asked.is_none_or(|asked| agent.at.is_some_and(|at| at >= asked));
    if nodes.agents.serving(node).is_none() {
        wrong.without.push(format!("{node} ({})", why_none(agents())));
        verdict.is_fresh &= agents().all(is_fresh);
        verdict.lacking.extend(agents().map(lacking));
        return;
    }
    // One that stands by as well: it may take over at any moment.
    for agent in agents() {
        let Some(plan) = agent.plan() else { continue };
        let mut lacks = true;
        if !is_taken_up(plan, subject) {
            wrong.pending.push(node.to_string());
        } else if let Some(first) = plan.stale.first() {
            wrong.stale.push(format!("{node} ({first})"));
        } else if plan.unsettled > 0 {
            wrong.unsettled.push(format!("{node} ({})", plan.unsettled));
        } else {
            lacks = false;
        }
        if !is_fresh(agent) {
            (verdict.is_fresh, lacks) = (false, true);
        }
        if lacks {
            verdict.lacking.push(lacking(agent));
        }
    }
}

/// Whether an agent has a Divert in its plan as it is, and knows what is behind it.
fn is_taken_up(plan: &Programmed, subject: &Subject<'_>) -> bool {
    let Some(TakenUp { generation, accepted, services, hosts }) = plan.diverts.get(subject.uid) else {
        return false;
    };
    // It may be ahead of us.
    *generation >= subject.generation
        && *accepted
        && subject.services.iter().all(|name| services.contains(*name))
        && subject.hosts.iter().all(|host| hosts.contains(*host))
}

/// Why no agent of a node serves.
fn why_none<'a>(agents: impl Iterator<Item = Agent<'a>>) -> String {
    let mut why = None;
    for agent in agents {
        let says = match agent.says {
            Says::Silent(error) => format!("{} does not answer: {error}", agent.key.1),
            Says::Report(_) => format!("{} has not listed the cluster yet", agent.key.1),
            Says::Nothing if agent.has_address => format!("{} is being asked", agent.key.1),
            Says::Nothing => format!("{} has no address yet", agent.key.1),
        };
        why = why.or(Some(says));
    }
    why.unwrap_or_else(|| "it is ending, and the next one has not begun".to_owned())
}

fn has_an_attended_pod(nodes: &Nodes, pair: &Pair) -> bool {
    let mut pods = nodes.pods(&pair.developer).chain(nodes.pods(&pair.shared));
    pods.any(|(_, node)| nodes.agents.is_on(node))
}

fn said(status: bool, reason: &'static str, message: String) -> Condition {
    Condition { kind: KIND, status, reason, message }
}

fn named(all: &[String]) -> String {
    let named = all[..all.len().min(NAMED)].join(", ");
    if all.len() > NAMED { format!("{named} and {} more", all.len() - NAMED) } else { named }
}

impl Wrong<'_> {
    /// The condition: the worst as its reason, and a sentence for each.
    fn said(self, nobody: bool, pair: &Pair, see: &str) -> Condition {
        let mut reason = None;
        let mut sentences = Vec::new();
        let mut add = |which: &'static str, is_so: bool, sentence: String| {
            if is_so {
                reason = reason.or(Some(which));
                sentences.push(sentence);
            }
        };
        let (k, n) = (&pair.developer, &pair.shared);
        let nowhere = format!(
            "no agent runs where pods of {n} and {k} do, so they reach the shared copies: see `{see}`"
        );
        add("NoAgents", nobody, nowhere);
        let without = format!(
            "no agent serves on {}, so pods there reach the shared copies: see `{see}`",
            named(&self.without)
        );
        add("AgentsNotReady", !self.without.is_empty(), without);
        let stale = format!("agents do not follow the cluster on {}", named(&self.stale));
        add("AgentsStale", !self.stale.is_empty(), stale);
        add(
            PENDING,
            !self.pending.is_empty(),
            format!("agents have not taken it up on {}", named(&self.pending)),
        );
        let unsettled = format!(
            "the kernel has refused destinations on {}: see `divert-agent status`, the agents' logs and --max-captures",
            named(&self.unsettled)
        );
        add("CapturesRefused", !self.unsettled.is_empty(), unsettled);
        let pods = format!(
            "pods reach the shared copies past the agent: {}; label those that need not be served {}=false",
            named(&self.pods),
            divert_core::api::CAPTURE
        );
        add("PodsPodNote", !self.pods.is_empty(), pods);
        let unattended: Vec<_> = self.unattended.iter().map(|node| (*node).to_owned()).collect();
        if reason.is_none() {
            sentences.push("the agent of every node serves it".to_owned());
        }
        if !unattended.is_empty() && !nobody {
            sentences.push(format!(
                "no agent is for {}, where pods of {n} or {k} reach the shared copies: let the agents run there, or \
                 label those pods {}: \"false\"",
                named(&unattended),
                divert_core::api::CAPTURE
            ));
        }
        said(reason.is_none(), reason.unwrap_or(KIND), sentences.join("; "))
    }
}

/// What was told of a Divert, as far as it matters for what is told next.
#[derive(Debug, Default)]
struct Reported {
    /// Since when it is not well, though it is said to be.
    since: Option<Instant>,
    /// When the sentence was another than before.
    said: Option<Instant>,
    /// Which request is being answered, and when it was seen.
    request: Option<(String, Instant)>,
    /// When it is to be looked at again.
    due: Option<Instant>,
    /// Whether it waits for what agents say.
    waits: bool,
}

/// The nodes, and what is told about them.
#[derive(Debug)]
pub(super) struct Programming {
    pub(super) nodes: Nodes,
    /// What shows the agents.
    see: String,
    /// Something that is not well for less than this does not turn what was well.
    damped: Duration,
    reported: HashMap<ObjectRef, Reported>,
    /// Since when we lead.
    leading: Option<Instant>,
}

/// What the status of a Divert says of it now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before<'a> {
    /// Whether Programmed is True, for the generation that there is.
    pub(super) is_programmed: bool,
    /// The reason, for the generation that there is.
    pub(super) reason: Option<&'a str>,
    pub(super) message: &'a str,
    /// What its author waits for an answer to, unless it was answered.
    pub(super) request: Option<&'a str>,
}

/// What is to be told of a Divert.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// Nothing at all yet.
    Later,
    /// This, and whether it answers the request.
    Now(Condition, bool),
}

impl Programming {
    pub(super) fn new(see: String, agents_port: u16, damped: Duration) -> Self {
        Self { nodes: Nodes::new(agents_port), see, damped, reported: HashMap::new(), leading: None }
    }

    /// Begins to lead: what agents said before is long ago.
    pub(super) fn begin(&mut self, now: Instant) {
        self.nodes.forget(now);
        self.reported.clear();
        self.leading = Some(now);
    }

    /// A Divert that is another, or a request: it is looked at as soon as agents can have heard of it.
    pub(super) fn urge(&mut self, now: Instant) {
        self.nodes.agents.urge(now);
    }

    /// A Divert is gone.
    pub(super) fn remove(&mut self, divert: &ObjectRef) {
        self.reported.remove(divert);
    }

    /// When a Divert is to be looked at again though nothing has changed; once.
    pub(super) fn due(&mut self, divert: &ObjectRef) -> Option<Instant> {
        self.reported.get_mut(divert)?.due.take()
    }

    /// Diverts that wait for what agents say.
    pub(super) fn waiting(&self) -> BTreeSet<ObjectRef> {
        self.reported.iter().filter(|(_, it)| it.waits).map(|(divert, _)| divert.clone()).collect()
    }

    /// Whether an agent has not said anything yet since we lead, and may in a moment.
    fn is_beginning(&self, now: Instant) -> bool {
        self.leading.is_some_and(|leading| now < leading + FIRST_ANSWERS)
            && self.nodes.names().any(|node| {
                self.nodes.agents.on(node).any(|it| it.has_address && matches!(it.says, Says::Nothing))
            })
    }

    /// What is to be told of an accepted Divert.
    pub(super) fn tell(
        &mut self,
        divert: &ObjectRef,
        mut subject: Subject<'_>,
        before: Before<'_>,
        now: Instant,
    ) -> Report {
        let reported = self.reported.entry(divert.clone()).or_default();
        reported.request = before.request.map(|request| match reported.request.take() {
            Some((known, at)) if known == request => (known, at),
            _ => (request.to_owned(), now),
        });
        subject.asked = reported.request.as_ref().map(|(_, at)| *at);
        if self.is_beginning(now) {
            let until = self.leading.map_or(now, |leading| leading + FIRST_ANSWERS);
            let reported = self.reported.entry(divert.clone()).or_default();
            (reported.due, reported.waits) = (Some(until), true);
            return Report::Later;
        }
        let verdict = verdict(&self.nodes, &self.see, &subject, now);
        let awaited = before.request.is_some() || before.reason.is_none_or(|reason| reason == PENDING);
        for agent in &verdict.lacking {
            self.nodes.agents.ask_again(agent, awaited);
        }
        let damped = self.damped;
        self.reported.entry(divert.clone()).or_default().next(verdict, before, damped, now)
    }
}

impl Reported {
    fn next(&mut self, verdict: Verdict, before: Before<'_>, damped: Duration, now: Instant) -> Report {
        let Verdict { said, is_fresh, again, .. } = verdict;
        (self.due, self.waits) = (again, !said.status || !is_fresh);
        if said.status {
            self.since = None;
        } else if before.is_programmed && (before.request.is_none() || !is_fresh) {
            let since = *self.since.get_or_insert(now);
            let until = since + damped;
            if now < until {
                self.due = Some(self.due.map_or(until, |due| due.min(until)));
                return Report::Now(self::said(true, KIND, before.message.to_owned()), false);
            }
        }
        // The same, in other words, is for people who look.
        if before.reason == Some(said.reason) && before.message != said.message {
            let until = self.said.map_or(now, |last| last + SENTENCES);
            if now < until {
                self.due = Some(self.due.map_or(until, |due| due.min(until)));
                let message = before.message.to_owned();
                let answers = said.status && is_fresh;
                return Report::Now(Condition { message, ..said }, answers);
            }
        }
        if before.message != said.message {
            self.said = Some(now);
        }
        let answers = said.status && is_fresh;
        Report::Now(said, answers)
    }
}

#[cfg(test)]
mod tests;
