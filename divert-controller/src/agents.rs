//! The agents: their Pods, what each last said of what it serves, and when it is to be asked again. Pure, but for the
//! clock; `ask` asks.
//!
//! Agents write nothing; they are known by their Pods, in the controller's own namespace, where no tenant can make
//! one. They are asked where something can have changed, again soon while it has not, and at a slow beat.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use divert_core::admin::programmed::Programmed;
use kube::Resource;
use kube::runtime::watcher::Event;
use tokio::time::Instant;

use super::cache::{BriefPod, Cache, Key};

/// What the agents hear of, they hear of by watches of their own: after this they mostly have it.
const AT_FIRST: Duration = Duration::from_millis(20);
/// Before an agent that has not taken up what it should is asked once more; then twice as long, up to a limit.
const AGAIN: Duration = Duration::from_millis(50);
/// The limit while somebody waits for it,
const AGAIN_AT_LEAST: Duration = Duration::from_secs(1);
/// and while nobody does.
const AGAIN_AT_MOST: Duration = Duration::from_secs(5);
/// Where nothing is known to have changed.
const BEAT: Duration = Duration::from_secs(30);

/// What matters of the Pod of an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct AgentPod {
    /// The node that it runs on, or is to run on.
    node: Arc<str>,
    address: Option<IpAddr>,
    ready: bool,
    /// It is being deleted: what comes anew is its successor's.
    leaving: bool,
}

/// The node that a Pod is on, or will be: those of a DaemonSet are made for one, which their affinity names, and are
/// on it when they have been scheduled.
pub(super) fn agent_pod(pod: BriefPod) -> Option<AgentPod> {
    let ready = pod.status.conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
    let leaving = pod.meta().deletion_timestamp.is_some();
    let address = pod.status.pod_ip.as_ref().and_then(|ip| ip.parse().ok());
    let node = pod.spec.node().map(Arc::from)?;
    Some(AgentPod { node, address, ready, leaving })
}

/// What an agent says.
#[derive(Clone, Debug)]
pub(super) enum Says {
    /// It has not been asked yet.
    Nothing,
    /// Why it does not answer.
    Silent(String),
    /// What is in effect on its node.
    Report(Arc<Programmed>),
}

/// What is known of one agent beside its Pod.
#[derive(Debug)]
struct Asked {
    says: Says,
    /// When the question was asked that this is the answer to.
    at: Option<Instant>,
    /// When it was answered, or given up.
    ended: Option<Instant>,
    under_way: bool,
    due: Instant,
    pause: Duration,
}

impl Asked {
    fn new(now: Instant) -> Self {
        Self { says: Says::Nothing, at: None, ended: None, under_way: false, due: now, pause: AGAIN }
    }
}

/// A question to an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Question {
    /// Its Pod.
    pub(super) agent: Key,
    /// Where it answers.
    pub(super) address: SocketAddr,
    /// The revision of what it last said.
    pub(super) known: Option<String>,
    /// When it was asked.
    pub(super) at: Instant,
}

/// What an agent answers: that nothing is otherwise, what there is, or why there is no answer.
pub(super) type Reply = Result<Option<Programmed>, String>;

/// What is otherwise by a reply.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Changed {
    /// What counts for every Divert.
    pub(super) node: Option<Arc<str>>,
    /// UIDs of Diverts that it has taken up otherwise than before.
    pub(super) diverts: BTreeSet<String>,
}

/// The agents of the cluster.
#[derive(Debug)]
pub(super) struct Agents {
    pods: Cache<AgentPod>,
    by_node: BTreeMap<Arc<str>, BTreeSet<Key>>,
    /// Nodes whose last agent has gone, and when.
    gone: BTreeMap<Arc<str>, Instant>,
    asked: HashMap<Key, Asked>,
    port: u16,
}

/// One agent, as it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agent<'a> {
    pub(super) key: &'a Key,
    pub(super) says: &'a Says,
    /// When that was asked.
    pub(super) at: Option<Instant>,
    pub(super) has_address: bool,
}

impl<'a> Agent<'a> {
    /// What it says, once it has a plan.
    pub(super) fn plan(&self) -> Option<&'a Programmed> {
        match self.says {
            Says::Report(report) if report.planned => Some(report),
            _ => None,
        }
    }
}

impl Agents {
    /// Those that answer on this port.
    pub(super) fn new(port: u16) -> Self {
        Self {
            pods: Cache::default(),
            by_node: BTreeMap::new(),
            gone: BTreeMap::new(),
            asked: HashMap::new(),
            port,
        }
    }

    pub(super) fn is_synced(&self) -> bool {
        self.pods.is_synced()
    }

    /// Takes an event; gives the nodes whose agents are others now.
    pub(super) fn take(&mut self, event: Event<BriefPod>, now: Instant) -> BTreeSet<Arc<str>> {
        let mut nodes = BTreeSet::new();
        for (key, before) in self.pods.take(event, agent_pod) {
            let after = self.pods.get(&key).cloned();
            if before == after {
                continue;
            }
            for pod in before.iter().chain(&after) {
                nodes.insert(pod.node.clone());
            }
            if let Some(before) = &before
                && after.as_ref().is_none_or(|after| after.node != before.node)
                && let Some(others) = self.by_node.get_mut(&before.node)
            {
                others.remove(&key);
                if others.is_empty() {
                    self.by_node.remove(&before.node);
                    self.gone.insert(before.node.clone(), now);
                }
            }
            let Some(after) = after else {
                self.asked.remove(&key);
                continue;
            };
            self.by_node.entry(after.node.clone()).or_default().insert(key.clone());
            self.gone.remove(&after.node);
            let is_another = before.is_some_and(|before| before.address != after.address);
            let asked = self.asked.entry(key).or_insert_with(|| Asked::new(now));
            if is_another {
                *asked = Asked { under_way: asked.under_way, ..Asked::new(now) };
            }
            // Whatever has changed of it, it is asked: a kubelet says first that it is not ready.
            (asked.due, asked.pause) = (now, AGAIN);
        }
        nodes
    }

    /// Whether there is any that stays.
    pub(super) fn is_empty(&self) -> bool {
        !self.by_node.values().flatten().any(|key| self.pods.get(key).is_some_and(|pod| !pod.leaving))
    }

    /// When the last agent of a node has gone.
    pub(super) fn gone(&self, node: &str) -> Option<Instant> {
        self.gone.get(node).copied()
    }

    /// Whether a node has the Pod of an agent, be it one that is leaving.
    pub(super) fn is_on(&self, node: &str) -> bool {
        self.by_node.contains_key(node)
    }

    /// Those of a node that stay.
    pub(super) fn on(&self, node: &str) -> impl Iterator<Item = Agent<'_>> {
        self.by_node.get(node).into_iter().flatten().filter_map(|key| {
            let (pod, asked) = (self.pods.get(key)?, self.asked.get(key)?);
            let has_address = pod.address.is_some();
            (!pod.leaving).then_some(Agent { key, says: &asked.says, at: asked.at, has_address })
        })
    }

    /// What the agent says that serves a node: of two, the one that does not stand by.
    pub(super) fn serving(&self, node: &str) -> Option<&Programmed> {
        let plans = || self.on(node).filter_map(|agent| agent.plan());
        plans().find(|plan| !plan.standing_by).or_else(|| plans().next())
    }

    /// Forgets what they said, and asks all of them.
    pub(super) fn forget(&mut self, now: Instant) {
        for asked in self.asked.values_mut() {
            *asked = Asked { under_way: asked.under_way, ..Asked::new(now) };
        }
    }

    /// Something has changed that all of them are to take up.
    pub(super) fn urge(&mut self, now: Instant) {
        for asked in self.asked.values_mut() {
            asked.due = asked.due.min(now + AT_FIRST);
            asked.pause = AGAIN;
        }
    }

    /// An agent lacks something; `awaited` says whether somebody waits for it.
    pub(super) fn ask_again(&mut self, agent: &Key, awaited: bool) {
        let Some(asked) = self.asked.get_mut(agent) else { return };
        let Some(ended) = asked.ended else { return };
        let pause = if awaited { asked.pause.min(AGAIN_AT_LEAST) } else { asked.pause };
        asked.due = asked.due.min(ended + pause);
    }

    /// The next question, if one is due.
    pub(super) fn next(&mut self, now: Instant) -> Option<Question> {
        let due = |(_, asked): &(&Key, &mut Asked)| !asked.under_way && asked.due <= now;
        let mut due: Vec<_> = self.asked.iter_mut().filter(due).collect();
        due.sort_by_key(|(_, asked)| asked.due);
        for (key, asked) in due {
            let Some(address) = self.pods.get(key).filter(|pod| !pod.leaving).and_then(|pod| pod.address)
            else {
                // An address comes with an event.
                asked.due = now + BEAT;
                continue;
            };
            asked.under_way = true;
            // What is asked for from here on comes after the answer.
            asked.due = now + BEAT;
            let known = match &asked.says {
                Says::Report(report) => Some(report.revision.clone()),
                _ => None,
            };
            let address = SocketAddr::new(address, self.port);
            return Some(Question { agent: key.clone(), address, known, at: now });
        }
        None
    }

    /// When there is a question.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.asked.values().filter(|asked| !asked.under_way).map(|asked| asked.due).min()
    }

    /// Takes what came of a question.
    pub(super) fn answered(&mut self, question: &Question, reply: Reply, now: Instant) -> Changed {
        let mut news = Changed::default();
        let Some(asked) = self.asked.get_mut(&question.agent) else { return news };
        asked.under_way = false;
        let Some(pod) = self.pods.get(&question.agent) else { return news };
        if pod.address != Some(question.address.ip()) {
            // Somebody else's answer: it is asked anew already.
            return news;
        }
        let says = match reply {
            // It still has what was known when it was asked.
            Ok(None) => match &asked.says {
                Says::Report(report) if Some(&report.revision) == question.known.as_ref() => None,
                _ => Some(Says::Nothing),
            },
            Ok(Some(report)) => Some(Says::Report(Arc::new(report))),
            Err(why) => Some(Says::Silent(why)),
        };
        (asked.at, asked.ended) = (Some(question.at), Some(now));
        asked.pause = (asked.pause * 2).min(AGAIN_AT_MOST);
        if let Some(says) = says {
            let before = std::mem::replace(&mut asked.says, says);
            let (for_all, diverts) = differ(&before, &asked.says);
            news = Changed { node: for_all.then(|| pod.node.clone()), diverts };
        }
        news
    }
}

/// Whether something is otherwise that counts for every Divert, and for which something is that counts for them.
fn differ(before: &Says, after: &Says) -> (bool, BTreeSet<String>) {
    let (before, after) = match (before, after) {
        (Says::Report(before), Says::Report(after)) => (before, after),
        (Says::Silent(before), Says::Silent(after)) => return (before != after, BTreeSet::new()),
        (Says::Nothing, Says::Nothing) => return (false, BTreeSet::new()),
        _ => return (true, BTreeSet::new()),
    };
    fn rest(it: &Programmed) -> impl PartialEq + '_ {
        (it.standing_by, it.planned, it.unsettled, &it.served, &it.direct, &it.stale)
    }
    let uids: BTreeSet<&String> = before.diverts.keys().chain(after.diverts.keys()).collect();
    let changed = uids.into_iter().filter(|uid| before.diverts.get(*uid) != after.diverts.get(*uid));
    (rest(before) != rest(after), changed.cloned().collect())
}
