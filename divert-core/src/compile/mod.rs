//! Who goes where: every rule of it is in here, as functions of the world without effects.
//!
//! | part | decides |
//! |---|---|
//! | `acceptance` | which Diverts count, and what those of one pair of namespaces say together |
//! | `hosts` | which hosts are granted to whom, and which services are captured to give their requests a key |
//! | `host_rules` | which host may be whose |
//! | `served` | which Ingresses serve a host |
//! | `names` | which names of Services are lent to a developer's namespace, and what a DNS name means |
//! | `ports` | which ports may speak HTTP, and which port of a developer's service takes whose place |
//! | `endpoints` | which endpoints of a developer's service take requests |
//! | `service` | the captured addresses of one shared service and the routes at each |
//! | `pods` | which pods are registered, and whose key their requests get |
//! | `status` | what people are told |
//! | `judge` | the world with what follows from it for people; what to judge again after a change |
//! | `planner` | the plan; what to compile again after a change |

pub mod acceptance;
mod endpoints;
mod host_rules;
mod hosts;
mod judge;
pub mod names;
mod planner;
mod pods;
mod ports;
mod served;
mod service;
mod settings;
mod status;
#[cfg(test)]
mod tests;

pub use hosts::{HostReason, HostRow, IngressStatus};
pub use judge::{Judge, Judged};
pub use planner::Planner;
pub use pods::{Facts as PodFacts, LeftAlone, left_alone, namespace_allows_capture};
pub use ports::may_be_http;
pub use settings::{EndpointTrust, Settings, SettingsArgs};
pub use status::{Condition, DivertStatus, RowReason, ServiceRow};
