//! How an agent stands, as `divert-agent status` tells it.

use serde::{Deserialize, Serialize};

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
    /// Of these, pods whose connections are left alone until a request on them is diverted.
    #[serde(default)]
    pub watched: Vec<String>,
    /// Of these, pods of which that was asked and whose connections are captured all the same.
    #[serde(default)]
    pub spliced: Vec<PodNote>,
    /// Of these, pods whose new connections go direct, as they have as many as they may.
    pub full: Vec<String>,
    /// Whether new connections of all pods go direct, as the agent has as many as it can.
    pub agent_full: bool,
    /// Pods that are left direct.
    pub direct: Vec<PodNote>,
    /// Captured destinations.
    pub captures: usize,
    /// Captures that are not yet as they should be.
    pub unsettled: usize,
    /// Connections made before their capture that are in use.
    pub old_connections: usize,
    /// Destinations that are not captured, as the agent needs their addresses itself; in sentences.
    pub left_out: Vec<String>,
    /// What keeps it from following its source.
    pub troubles: Vec<String>,
}

/// A pod whose connections are not served as they should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PodNote {
    /// Namespace and name.
    pub pod: String,
    /// In one word.
    pub reason: String,
    /// In a sentence.
    pub why: String,
}
