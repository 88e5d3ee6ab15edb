//! Programmed: whether every node with a pod to serve has a ready agent. Pure.
//!
//! Agents write nothing; they are known by their Pods, in the controller's own namespace, where no tenant
//! can make one. An agent's readiness probe asks its /readyz, which says that a plan is in effect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

use super::cache::{BriefPod, Cache};
use super::conditions::Said;
use crate::api;

/// Nodes named in a message.
const NAMED: usize = 5;

/// The nodes that matter.
#[derive(Debug)]
pub(super) struct Nodes {
    /// Nodes of pods that are to be served, as far as their namespaces are.
    pods: Cache<Arc<str>>,
    /// Namespaces whose pods are not to be captured.
    left_alone: BTreeSet<Arc<str>>,
    /// Nodes of agents' pods, if ready.
    agents: Cache<Option<Arc<str>>>,
    served: Count,
    ready: Count,
    /// What shows the agents.
    see: String,
    said: Said,
}

/// How much a change changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Turn {
    /// Nothing.
    Same,
    /// The sentence: for people who look, and nobody waits for it.
    Sentence,
    /// The condition.
    Condition,
}

/// How many pods each node has.
#[derive(Debug, Default)]
struct Count(BTreeMap<Arc<str>, usize>);

impl Count {
    /// Whether the nodes are others now.
    fn step(&mut self, from: Option<Arc<str>>, to: Option<Arc<str>>) -> bool {
        if from == to {
            return false;
        }
        let mut changed = false;
        if let Some(node) = from
            && let Some(count) = self.0.get_mut(&node)
        {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&node);
                changed = true;
            }
        }
        if let Some(node) = to {
            let count = self.0.entry(node).or_default();
            changed |= *count == 0;
            *count += 1;
        }
        changed
    }

    fn nodes(&self) -> BTreeSet<Arc<str>> {
        self.0.keys().cloned().collect()
    }
}

impl Nodes {
    pub(super) fn new(see: String) -> Self {
        let said = programmed(&BTreeSet::new(), &BTreeSet::new(), &see);
        Self {
            pods: Cache::default(),
            left_alone: BTreeSet::new(),
            agents: Cache::default(),
            served: Count::default(),
            ready: Count::default(),
            see,
            said,
        }
    }

    pub(super) fn is_synced(&self) -> bool {
        self.pods.is_synced() && self.agents.is_synced()
    }

    /// The condition.
    pub(super) fn said(&self) -> &Said {
        &self.said
    }

    pub(super) fn take_pod(&mut self, event: Event<BriefPod>) -> Turn {
        let mut changed = false;
        for (key, before) in self.pods.take(event, served_on) {
            if !self.left_alone.contains(&key.0) {
                changed |= self.served.step(before, self.pods.get(&key).cloned());
            }
        }
        self.turn(changed)
    }

    /// Takes whether the pods of a namespace are to be captured at all.
    pub(super) fn take_namespace(&mut self, namespace: &Arc<str>, allows_capture: bool) -> Turn {
        let turned = match allows_capture {
            true => self.left_alone.remove(namespace),
            false => self.left_alone.insert(namespace.clone()),
        };
        if !turned {
            return Turn::Same;
        }
        let mut changed = false;
        for (_, node) in self.pods.of(namespace) {
            let node = Some(node.clone());
            let (before, after) = if allows_capture { (None, node) } else { (node, None) };
            changed |= self.served.step(before, after);
        }
        self.turn(changed)
    }

    pub(super) fn take_agent(&mut self, event: Event<BriefPod>) -> Turn {
        let mut changed = false;
        for (key, before) in self.agents.take(event, |pod| Some(ready_on(pod))) {
            changed |= self.ready.step(before.flatten(), self.agents.get(&key).cloned().flatten());
        }
        self.turn(changed)
    }

    fn turn(&mut self, changed: bool) -> Turn {
        if !changed {
            return Turn::Same;
        }
        let said = programmed(&self.served.nodes(), &self.ready.nodes(), &self.see);
        let before = std::mem::replace(&mut self.said, said);
        match &self.said {
            said if *said == before => Turn::Same,
            said if said.reason == before.reason => Turn::Sentence,
            _ => Turn::Condition,
        }
    }
}

/// The node of a pod that an agent is to serve if its namespace is; what agents go by is in `compile/pods.rs`.
fn served_on(pod: BriefPod) -> Option<Arc<str>> {
    let labels = pod.labels();
    let left_alone = labels.get(api::CAPTURE).is_some_and(|value| value == "false");
    let has_address = pod.status.pod_ip.is_some_and(|ip| !ip.is_empty());
    let served = !pod.spec.host_network && !left_alone && has_address;
    pod.spec.node_name.filter(|_| served).map(Arc::from)
}

/// The node of an agent's pod that is ready.
fn ready_on(pod: BriefPod) -> Option<Arc<str>> {
    let mut conditions = pod.status.conditions.iter();
    let ready = conditions.any(|it| it.type_ == "Ready" && it.status == "True");
    let leaving = pod.meta().deletion_timestamp.is_some();
    pod.spec.node_name.filter(|_| ready && !leaving).map(Arc::from)
}

/// The condition, from the nodes that have pods to serve and those that have a ready agent.
fn programmed(served: &BTreeSet<Arc<str>>, ready: &BTreeSet<Arc<str>>, see: &str) -> Said {
    let without: Vec<_> = served.difference(ready).map(|node| &**node).collect();
    let (status, reason, message) = match without.len() {
        0 => {
            let message = match served.len() {
                1 => "the agent of 1 node serves it".to_owned(),
                count => format!("the agents of {count} nodes serve it"),
            };
            (true, "Programmed", message)
        }
        count => {
            let named = without[..count.min(NAMED)].join(", ");
            let more = if count > NAMED { format!(" and {} more", count - NAMED) } else { String::new() };
            let message = format!(
                "no agent is ready on {named}{more}, so pods there reach the shared copies: see `{see}`"
            );
            (false, "AgentsNotReady", message)
        }
    };
    Said { kind: "Programmed", status, reason, message }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, ready: bool) -> BriefPod {
        let condition = json!({"type": "Ready", "status": if ready { "True" } else { "False" }});
        let pod = json!({
            "metadata": {"name": name, "namespace": "a"}, "spec": {"nodeName": node},
            "status": {"podIP": "10.0.0.1", "conditions": [condition]},
        });
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn only_a_node_that_comes_or_goes_turns_the_condition() {
        let mut nodes = Nodes::new(String::new());
        assert_eq!(nodes.take_pod(Event::Apply(pod("p", "n1", false))), Turn::Condition);
        assert_eq!(nodes.take_pod(Event::Apply(pod("q", "n1", true))), Turn::Same);
        assert_eq!(nodes.take_pod(Event::Apply(pod("r", "n2", true))), Turn::Sentence);
        assert_eq!(nodes.said().reason, "AgentsNotReady");
        assert_eq!(nodes.take_agent(Event::Apply(pod("a1", "n1", false))), Turn::Same);
        assert_eq!(nodes.take_agent(Event::Apply(pod("a1", "n1", true))), Turn::Sentence);
        assert_eq!(nodes.take_pod(Event::Delete(pod("q", "n1", true))), Turn::Same);
        assert_eq!(nodes.take_pod(Event::Delete(pod("r", "n2", true))), Turn::Condition);
        assert_eq!(nodes.said().reason, "Programmed");
    }

    #[test]
    fn pods_of_a_namespace_that_is_left_alone_need_no_agent() {
        let mut nodes = Nodes::new(String::new());
        let namespace = Arc::from("a");
        assert_eq!(nodes.take_pod(Event::Apply(pod("p", "n1", true))), Turn::Condition);
        assert_eq!(nodes.take_namespace(&namespace, true), Turn::Same);
        assert_eq!(nodes.take_namespace(&"b".into(), false), Turn::Same);
        assert_eq!(nodes.said().reason, "AgentsNotReady");
        assert_eq!(nodes.take_namespace(&namespace, false), Turn::Condition);
        assert_eq!(nodes.said().reason, "Programmed");
        // What comes and goes meanwhile counts once the namespace is captured again.
        assert_eq!(nodes.take_pod(Event::Apply(pod("q", "n2", true))), Turn::Same);
        assert_eq!(nodes.take_pod(Event::Delete(pod("p", "n1", true))), Turn::Same);
        assert_eq!(nodes.take_namespace(&namespace, false), Turn::Same);
        assert_eq!(nodes.take_namespace(&namespace, true), Turn::Condition);
        assert!(nodes.said().message.contains("on n2,"), "{}", nodes.said().message);
        assert_eq!(nodes.take_pod(Event::Delete(pod("q", "n2", true))), Turn::Condition);
    }

    #[test]
    fn nodes_without_a_ready_agent_are_named() {
        let nodes = |names: &[&str]| names.iter().map(|it| Arc::from(*it)).collect();
        assert!(programmed(&nodes(&["a", "b"]), &nodes(&["a", "b", "c"]), "").status);
        assert!(programmed(&nodes(&[]), &nodes(&[]), "").status);
        let said = programmed(&nodes(&["a", "b"]), &nodes(&["a"]), "kubectl get pods");
        assert_eq!((said.status, said.reason), (false, "AgentsNotReady"));
        assert!(
            said.message.contains("on b,") && said.message.contains("kubectl get pods"),
            "{}",
            said.message
        );
        let many = programmed(&nodes(&["1", "2", "3", "4", "5", "6", "7"]), &nodes(&[]), "");
        assert!(many.message.contains("5 and 2 more"), "{}", many.message);
    }
}
