//! The nodes: which pods are to be served where, and which of those their agents do not serve. Pure, but for the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use divert_core::api;
use divert_core::compile::PodFacts;
use divert_core::world::Pair;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use tokio::time::Instant;

use super::agents::{Agents, Changed, Question, Reply};
use super::cache::{BriefPod, Cache, Key};

/// A node that has no agent's Pod for so long gets none: a DaemonSet makes them at once, and needs no longer for the
/// next one where one has gone. No right to read the DaemonSet is needed for this, nor to understand what
/// decides about its nodes.
const WITHOUT: Duration = Duration::from_secs(10);

/// The nodes that matter.
#[derive(Debug)]
pub(super) struct Nodes {
    pub(super) agents: Agents,
    /// Nodes of pods that are to be served, as far as their namespaces are.
    pods: Cache<Arc<str>>,
    /// Namespaces whose pods are not to be captured.
    left_alone: BTreeSet<Arc<str>>,
    nodes: BTreeMap<Arc<str>, Node>,
    /// Pods to be served that the agent of their node does not serve, by namespace and name, and why.
    unserved: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Unserved>>,
}

/// A node with pods to be served.
#[derive(Debug)]
struct Node {
    pods: BTreeSet<Key>,
    since: Instant,
}

/// A pod that an agent does not serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Unserved {
    pub(super) node: Arc<str>,
    /// As the agent says; it may not know the pod yet.
    pub(super) why: Option<String>,
}

/// What a change can have affected.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Affected {
    /// For every Divert.
    pub(super) all: bool,
    /// For Diverts of these namespaces.
    pub(super) namespaces: BTreeSet<Arc<str>>,
    /// For the Diverts with these UIDs.
    pub(super) diverts: BTreeSet<String>,
}

impl Nodes {
    pub(super) fn new(agents_port: u16) -> Self {
        Self {
            agents: Agents::new(agents_port),
            pods: Cache::default(),
            left_alone: BTreeSet::new(),
            nodes: BTreeMap::new(),
            unserved: BTreeMap::new(),
        }
    }

    pub(super) fn is_synced(&self) -> bool {
        self.pods.is_synced() && self.agents.is_synced()
    }

    /// Nodes with pods to be served, by name.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.keys()
    }

    /// Whether the pods of a namespace are to be served at all.
    fn is_captured(&self, namespace: &Arc<str>) -> bool {
        !self.left_alone.contains(namespace)
    }

    /// Pods of a namespace that are to be served, and their nodes.
    pub(super) fn pods(&self, namespace: &Arc<str>) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        let captured = self.is_captured(namespace);
        self.pods.of(namespace).filter(move |_| captured)
    }

    /// Whether a node has pods of a pair of namespaces that are to be served.
    pub(super) fn has_pods_of(&self, node: &str, pair: &Pair) -> bool {
        let Some(node) = self.nodes.get(node) else { return false };
        [&pair.developer, &pair.shared].into_iter().any(|namespace| {
            let first = node.pods.range((namespace.clone(), "".into())..).next();
            first.is_some_and(|(its, _)| its == namespace)
        })
    }

    /// Pods of a namespace that the agent of their node does not serve.
    pub(super) fn unserved(&self, namespace: &Arc<str>) -> impl Iterator<Item = (&Arc<str>, &Unserved)> {
        self.unserved.get(namespace).into_iter().flatten()
    }

    /// Until when a node without any agent's Pod may still get one; `None` when it gets none.
    pub(super) fn may_get_an_agent_until(&self, node: &str, now: Instant) -> Option<Instant> {
        let since = self.nodes.get(node)?.since;
        let until = self.agents.gone(node).map_or(since, |gone| gone.max(since)) + WITHOUT;
        (now < until).then_some(until)
    }

    pub(super) fn take_pod(&mut self, event: Event<BriefPod>, now: Instant) -> Affected {
        let mut affected = Affected::default();
        for (key, before) in self.pods.take(event, served_on) {
            let after = self.pods.get(&key).cloned();
            if before == after || !self.is_captured(&key.0) {
                continue;
            }
            affected.all |= self.place(&key, before, after, now);
            self.check(&key, &mut affected);
        }
        affected
    }

    /// Takes whether the pods of a namespace are to be captured at all.
    pub(super) fn take_namespace(
        &mut self,
        namespace: &Arc<str>,
        allows_capture: bool,
        now: Instant,
    ) -> Affected {
        let is_another = match allows_capture {
            true => self.left_alone.remove(namespace),
            false => self.left_alone.insert(namespace.clone()),
        };
        let mut affected = Affected::default();
        if !is_another {
            return affected;
        }
        let pods: Vec<_> = self.pods.of(namespace).map(|(name, node)| (name.clone(), node.clone())).collect();
        for (name, node) in pods {
            let key = (namespace.clone(), name);
            let (before, after) = if allows_capture { (None, Some(node)) } else { (Some(node), None) };
            affected.all |= self.place(&key, before, after, now);
            self.check(&key, &mut affected);
        }
        affected
    }

    pub(super) fn take_agent(&mut self, event: Event<BriefPod>, now: Instant) -> Affected {
        let mut affected = Affected::default();
        for node in self.agents.take(event, now) {
            affected.all |= self.nodes.contains_key(&node);
            self.check_all_on(&node, &mut affected);
        }
        affected
    }

    /// Takes what came of a question to an agent.
    pub(super) fn answered(&mut self, question: &Question, reply: Reply, now: Instant) -> Affected {
        let Changed { node, diverts } = self.agents.answered(question, reply, now);
        let mut affected = Affected { all: node.is_some(), diverts, ..Affected::default() };
        if let Some(node) = node {
            self.check_all_on(&node, &mut affected);
        }
        affected
    }

    /// Forgets what agents said, and has them asked.
    pub(super) fn forget(&mut self, now: Instant) {
        self.agents.forget(now);
        self.unserved.clear();
    }

    /// Whether there is a node more, or one less.
    fn place(&mut self, key: &Key, before: Option<Arc<str>>, after: Option<Arc<str>>, now: Instant) -> bool {
        let mut changed = false;
        if let Some(node) = before
            && let Some(known) = self.nodes.get_mut(&node)
        {
            known.pods.remove(key);
            if known.pods.is_empty() {
                self.nodes.remove(&node);
                changed = true;
            }
        }
        if let Some(node) = after {
            let known = self.nodes.entry(node).or_insert_with(|| Node { pods: BTreeSet::new(), since: now });
            changed |= known.pods.is_empty();
            known.pods.insert(key.clone());
        }
        changed
    }

    fn check_all_on(&mut self, node: &str, affected: &mut Affected) {
        let pods: Vec<_> =
            self.nodes.get(node).into_iter().flat_map(|node| node.pods.iter().cloned()).collect();
        for key in pods {
            self.check(&key, affected);
        }
    }

    /// Whether the agent of its node serves a pod.
    fn check(&mut self, key: &Key, affected: &mut Affected) {
        let node = self.pods.get(key).filter(|_| self.is_captured(&key.0));
        let unserved = node.and_then(|node| {
            // Without one, that is what is to be said.
            let plan = self.agents.serving(node)?;
            let serves = plan.served.get(&*key.0).is_some_and(|pods| pods.contains(&*key.1));
            let name = || format!("{}/{}", key.0, key.1);
            let why = || plan.direct.iter().find(|direct| direct.pod == name()).map(|it| it.why.clone());
            (!serves).then(|| Unserved { node: node.clone(), why: why() })
        });
        let same = match unserved {
            Some(unserved) => {
                let pods = self.unserved.entry(key.0.clone()).or_default();
                let same = pods.get(&key.1) == Some(&unserved);
                pods.insert(key.1.clone(), unserved);
                same
            }
            None => {
                let Some(pods) = self.unserved.get_mut(&key.0) else { return };
                let same = pods.remove(&key.1).is_none();
                if pods.is_empty() {
                    self.unserved.remove(&key.0);
                }
                same
            }
        };
        if !same {
            affected.namespaces.insert(key.0.clone());
        }
    }
}

/// The node of a pod that an agent is to serve if its namespace is. One that is being deleted may be gone already, which
/// is nobody's fault.
fn served_on(pod: BriefPod) -> Option<Arc<str>> {
    let facts = PodFacts {
        host_network: pod.spec.host_network,
        // Those are not watched.
        finished: false,
        has_address: pod.status.pod_ip.as_ref().is_some_and(|ip| !ip.is_empty()),
        label: pod.labels().get(api::CAPTURE).map(String::as_str),
    };
    let served = facts.left_alone().is_none() && pod.meta().deletion_timestamp.is_none();
    pod.spec.node_name.filter(|_| served).map(Arc::from)
}
