//! Programmed: whether every node with a pod to serve has a ready agent. Pure.
//!
//! Agents write nothing; they are known by their Pods, in the controller's own namespace, where no tenant
//! can make one. An agent's readiness probe asks its /readyz, which says that a plan is in effect.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::conditions::Said;

/// Nodes named in a message.
const NAMED: usize = 5;

/// The condition, from the nodes that have pods to serve and those that have a ready agent.
pub(super) fn programmed(served: &BTreeSet<Arc<str>>, ready: &BTreeSet<Arc<str>>, see: &str) -> Said {
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
    use super::*;

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
