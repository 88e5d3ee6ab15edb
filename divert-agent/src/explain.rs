//! Where a request of a pod goes, and why: answered by the agent that serves the pod, from the kernel's maps
//! and the routing table as they are.
//!
//! The answer follows the path of a connection: registered, served, captured, whose key, to where. It ends at
//! the first no, which is what the person who asks came for.

use divert_core::api::OnUnavailable;
use divert_core::decide::{self, Decision, decide};
use divert_core::explain::resolve::{self, Meaning};
use divert_core::explain::{About, Explanation, Question, Step};
use divert_core::plan::{Backend, Hosts, Route, Target, Unavailable};
use divert_http::KeyNames;
use divert_http::baggage::find_key;

use crate::apply::driver;
use crate::apply::live::{Found, Live, Served};
use crate::apply::watching::Watching;
use crate::control;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The agent is ending.
    #[error("the agent is ending: ask the one that follows it")]
    Ending,
    /// A map of the hooks cannot be read.
    #[error("reading the maps of the hooks: {0}")]
    Kernel(#[from] crate::kernel::hooks::HookError),
}

/// Whom to ask.
#[derive(Clone, Debug)]
pub struct Sources {
    /// What is wanted.
    pub control: control::Inquiry,
    /// What is.
    pub apply: driver::Inquiry,
    /// Where a request carries its key.
    pub names: KeyNames,
}

/// Answers a question.
///
/// # Errors
/// When the agent is ending, or the kernel refuses to be read.
pub async fn explain(sources: &Sources, question: Question) -> Result<Explanation, ExplainError> {
    let asked = question.clone();
    let looked = sources.control.ask(move |planner| {
        let meaning = resolve::resolve(planner, &asked.pod.namespace, &asked.to);
        (resolve::not_registered(planner, &asked.pod), meaning)
    });
    let (not_registered, meaning) = looked.await.ok_or(ExplainError::Ending)?;
    let (pod, addresses) = (question.pod.clone(), meaning.addresses.clone());
    let live = sources.apply.ask(move |applier| applier.look_up(&pod, &addresses));
    let live = live.await.ok_or(ExplainError::Ending)??;
    let mut path = Path { question: &question, meaning: &meaning, explanation: Explanation::default() };
    let unanswered = path.follow(not_registered, &live, &sources.names);
    let mut explanation = path.explanation;
    // Why nobody takes it is known to the planner alone, and only worth asking now.
    if let (Some(unanswered), Some(service)) = (unanswered, meaning.service) {
        let (port, key) = (question.to.port, unanswered.key);
        let why =
            sources.control.ask(move |planner| resolve::why_not(planner, &service, port, key.as_deref()));
        let why = why.await.ok_or(ExplainError::Ending)?;
        if let Some(step) = explanation.steps.iter_mut().find(|step| step.about == unanswered.about) {
            step.says =
                std::iter::once(&step.says).chain(&why).map(String::as_str).collect::<Vec<_>>().join("; ");
        }
    }
    Ok(explanation)
}

/// A step whose why is still to be asked.
struct Unanswered {
    about: About,
    key: Option<String>,
}

struct Path<'a> {
    question: &'a Question,
    meaning: &'a Meaning,
    explanation: Explanation,
}

impl Path<'_> {
    fn step(&mut self, about: About, holds: impl Into<Option<bool>>, says: impl Into<String>) {
        self.explanation.steps.push(Step { about, holds: holds.into(), says: says.into() });
    }

    fn verdict(&mut self, verdict: impl Into<String>) {
        self.explanation.verdict = verdict.into();
    }

    fn direct(&mut self) {
        let to = &self.question.to;
        self.explanation.verdict = format!("it goes to {to} directly, past the agent");
    }

    fn follow(
        &mut self,
        not_registered: Option<String>,
        live: &Live,
        names: &KeyNames,
    ) -> Option<Unanswered> {
        let pod = &self.question.pod;
        if let Some(why) = not_registered {
            self.step(About::Registered, false, why);
            self.direct();
            return None;
        }
        self.step(About::Registered, true, format!("{pod} is one whose connections are captured"));
        match &live.pod {
            None => {
                self.step(About::Served, false, "its plan is not carried out yet: ask again");
                self.direct();
                return None;
            }
            Some(Served::No(why)) => {
                self.step(About::Served, false, format!("it is left direct: {why}"));
                self.direct();
                return None;
            }
            Some(Served::Yes { registered: false, .. }) => {
                self.step(About::Served, false, "the hooks do not know its network namespace");
                self.direct();
                return None;
            }
            Some(Served::Yes { full: Some(connections), .. }) => {
                let says = format!(
                    "it has {connections} captured connections, as many as it may (--max-pod-connections): new ones go \
                     direct until some have ended"
                );
                self.step(About::Served, false, says);
                self.direct();
                return None;
            }
            Some(Served::Yes { .. }) if live.agent_full => {
                let says = "the agent has as many connections as it can (--max-connections, and its limit of open \
                            files): new ones go direct until some have ended";
                self.step(About::Served, false, says);
                self.direct();
                return None;
            }
            Some(Served::Yes { port, .. }) => {
                self.step(About::Served, true, format!("the agent listens on port {port} of its loopback"));
            }
        }
        self.step(About::Destination, None, self.meaning.says.clone());
        let Some(found) = &live.found else {
            self.step(About::Captured, false, "the hooks let connections there pass");
            self.direct();
            return Some(Unanswered { about: About::Captured, key: None });
        };
        self.step(About::Captured, true, captured(found, pod));
        if let Some(Served::Yes { watching, .. }) = &live.pod {
            self.step(About::Path, None, path(watching, found));
        }
        self.decide(found, live, names)
    }

    fn decide(&mut self, found: &Found, live: &Live, names: &KeyNames) -> Option<Unanswered> {
        let fields = self.question.fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let own = find_key(names, fields);
        let mut given = self.question.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("host"));
        let host = given.next().map_or_else(|| self.question.to.to_string(), |(_, host)| host.clone());
        let sender = match &live.pod {
            Some(Served::Yes { sender, .. }) => sender.as_ref(),
            _ => None,
        };
        let request = decide::Request { key: own.as_deref(), host: Some(&host), sender };
        let target = found.slot.target();
        let decision = decide(&target, &live.hosts, &request);
        self.step(About::Key, None, whose(&decision, &request, &live.hosts));
        let left_alone = own.is_none() && is_left_alone(live, found);
        self.target(found, &target, &decision, left_alone)
    }

    fn target(
        &mut self,
        found: &Found,
        target: &Target,
        decision: &Decision<'_>,
        left_alone: bool,
    ) -> Option<Unanswered> {
        if let Some(route) = decision.route {
            let (says, verdict) = to_route(route, found);
            self.step(About::Target, true, says);
            self.verdict(verdict);
            return None;
        }
        let original = found.slot.original;
        let service = decision.service.or(target.services.first());
        let service = service.map_or_else(|| original.to_string(), |it| it.service.to_string());
        let (says, unanswered) = match decision.key {
            None => ("a request without a key goes where it was sent".to_owned(), None),
            Some(key) => {
                let key = key.to_owned();
                let says = format!("{key} does not divert {service}");
                (says, Some(Unanswered { about: About::Target, key: Some(key) }))
            }
        };
        self.step(About::Target, false, says);
        let with = decision
            .key
            .filter(|_| decision.inject)
            .map_or(String::new(), |key| format!(", with the key {key}"));
        let way = if left_alone { "on the pod's own connection" } else { "through the agent" };
        self.verdict(format!("{service} answers it, at {original}, {way}{with}"));
        unanswered
    }
}

fn captured(found: &Found, pod: &divert_core::plan::PodRef) -> String {
    let address = found.address;
    if found.slot.from_pods {
        format!(
            "connections to {address} are captured for the pods of {}, to give their requests its key",
            pod.namespace
        )
    } else {
        format!("connections to {address} are captured for everyone")
    }
}

/// Whether a new connection of the pod to the destination is.
fn is_left_alone(live: &Live, found: &Found) -> bool {
    matches!(live.pod, Some(Served::Yes { watching: Watching::Yes, .. })) && found.spliced.is_none()
}

/// Which of the two data paths a new connection takes, and why.
fn path(watching: &Watching, found: &Found) -> String {
    match (watching, found.spliced) {
        (Watching::Yes, None) => {
            "insertion: a new connection is left alone until a request on it is to be diverted".into()
        }
        (Watching::Yes, Some(why)) => {
            format!("splicing: a new connection goes through the agent from the start, as {why}")
        }
        (Watching::No(why), _) => {
            format!("splicing: a new connection of this pod goes through the agent from the start: {why}")
        }
        (Watching::NotAsked, _) => {
            "splicing: a new connection goes through the agent from the start (--path splice)".into()
        }
    }
}

fn whose(decision: &Decision<'_>, request: &decide::Request<'_>, hosts: &Hosts) -> String {
    match (request.key, decision.key) {
        (Some(key), _) => format!("{key}, which the request carries"),
        (None, None) => {
            "none: the request carries no key, its host is nobody's, and its pod gives none".into()
        }
        (None, Some(key)) => {
            let host = request.host.unwrap_or_default();
            if hosts.get(host).is_some_and(|grant| *grant.key == *key) {
                format!("{key}, to whom the host {host} is granted; the request is forwarded with it")
            } else {
                format!("{key}, as the pod is one of its own; the request is forwarded with it")
            }
        }
    }
}

/// What is said of a route, and where a request on it goes.
fn to_route(route: &Route, found: &Found) -> (String, String) {
    let (service, original) = (&route.service, found.slot.original);
    match (&route.backend, route.on_unavailable) {
        (Backend::Endpoints { preferred, endpoints, by_client, .. }, _) => {
            let all: Vec<_> = preferred.iter().chain(endpoints).map(ToString::to_string).collect();
            let says = match by_client {
                true => {
                    format!("{service} takes it, by one endpoint for each client (sessionAffinity: ClientIP)")
                }
                false => format!("{service} takes it"),
            };
            (says, format!("{service} answers it, at {}", all.join(" or ")))
        }
        (Backend::Unavailable(why), OnUnavailable::Fail) => {
            let says = format!("{service} is to take it, but {}", unavailable(why));
            (says, format!("the agent answers it with 503 (onUnavailable: Fail), as {service} cannot"))
        }
        (Backend::Unavailable(why), OnUnavailable::Shared) => {
            let says = format!("{service} is to take it, but {}", unavailable(why));
            (says, format!("the shared copy answers it, at {original} (onUnavailable: Shared)"))
        }
    }
}

fn unavailable(why: &Unavailable) -> String {
    match why {
        Unavailable::NoReadyEndpoints => "none of its endpoints is ready".into(),
        Unavailable::PortMismatch { port } => format!("it has no port that corresponds to {port}"),
        Unavailable::EndpointsNotPods => "its endpoints are not pods of its namespace".into(),
        Unavailable::NoLocalEndpoints => {
            "none of its endpoints on this node is ready, and its internalTrafficPolicy is Local".into()
        }
        Unavailable::AddressInLabelRange { address } => {
            format!("its endpoint {address} lies in the label range, so that no pod reaches it")
        }
    }
}
