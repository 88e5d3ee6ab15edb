//! Who goes where: every rule of it is in here, as functions of the world without effects.
//!
//! | part | decides |
//! |---|---|
//! | [`acceptance`] | which Diverts count, and what those of one pair of namespaces say together |
//! | [`ports`] | which ports may speak HTTP, and which port of a developer's service takes whose place |
//! | [`endpoints`] | which endpoints of a developer's service take requests |
//! | [`service`] | the captured addresses of one shared service and the routes at each |
//! | [`pods`] | which pods are registered |
//! | [`status`] | what people are told |
//! | [`planner`] | what to compute again after a change |

pub mod acceptance;
mod endpoints;
mod planner;
mod pods;
mod ports;
mod service;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

pub use planner::Planner;
pub use status::{Condition, DivertStatus, RowReason, ServiceRow};

/// What the operator of the agent decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The only namespaces that may be shared, where labels are not proof enough; `None` is no limit.
    pub shared_namespaces: Option<BTreeSet<Arc<str>>>,
    /// Service ports that are not captured when neither appProtocol nor name says what they speak.
    pub opaque_ports: Vec<RangeInclusive<u16>>,
    /// Whose word counts for endpoints.
    pub endpoint_trust: EndpointTrust,
}

/// Which EndpointSlices count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EndpointTrust {
    /// All: who writes the manifests owns the machine.
    #[default]
    All,
    /// Those of the endpoint slice controller, for a Service with a selector, and of them the endpoints
    /// that are Pods of the Service's namespace: else who may write EndpointSlices in one namespace could
    /// send requests of others anywhere.
    PodsOfController,
}

/// Mail, TLS, databases and queues: ports where nobody expects HTTP.
const OPAQUE_PORTS: &[RangeInclusive<u16>] = &[
    25..=25,
    443..=443,
    465..=465,
    587..=587,
    1433..=1433,
    1521..=1521,
    2181..=2181,
    3306..=3306,
    4222..=4222,
    5432..=5432,
    5672..=5672,
    6379..=6379,
    9042..=9042,
    9092..=9094,
    9300..=9300,
    11211..=11211,
    27017..=27019,
];

impl Default for Settings {
    fn default() -> Self {
        Self {
            shared_namespaces: None,
            opaque_ports: OPAQUE_PORTS.to_vec(),
            endpoint_trust: EndpointTrust::default(),
        }
    }
}
