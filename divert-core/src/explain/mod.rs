//! Where a request of a pod goes, and why: the question, the answer, and what of it follows from the objects alone. The
//! agent that serves the pod puts it together, as it knows what its kernel does.

pub mod question;
pub mod resolve;

use serde::{Deserialize, Serialize};

pub use self::question::{Destination, Question, QuestionError};

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Explanation {
    /// What was looked at, in the order of a connection's path.
    pub steps: Vec<Step>,
    /// Where the request goes, in a sentence.
    pub verdict: String,
}

/// One look.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// At what.
    pub about: About,
    /// Whether the path goes on through the agent; `None` where there is nothing to hold.
    pub holds: Option<bool>,
    /// What was seen.
    pub says: String,
}

/// What is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum About {
    /// Whether the pod is one whose connections are captured.
    Registered,
    /// Whether they are.
    Served,
    /// What the destination means.
    Destination,
    /// Whether the hooks lead it to the agent.
    Captured,
    /// By which data path.
    Path,
    /// Whose request it is.
    Key,
    /// To where.
    Target,
}
