//! Which pods are registered: those whose connections can be captured; and which of them are developers'.

use crate::api;
use crate::plan::{CaptureSet, PodPlan};
use crate::world::{Namespace, Pod, World};

/// Why connections of a pod are left alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeftAlone {
    /// It shares the node's network.
    HostNetwork,
    /// It has ended: its address may be another's by now.
    Finished,
    /// It has no address yet.
    NoAddress,
    /// Its own label says so.
    PodLabel,
    /// Its namespace's label says so.
    NamespaceLabel,
}

/// What this depends on, of a pod in whatever form it is known.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Shares the node's network.
    pub host_network: bool,
    /// In phase Succeeded or Failed.
    pub finished: bool,
    /// Has an address.
    pub has_address: bool,
    /// Its label `divert.dev/capture`.
    pub label: Option<&'a str>,
}

impl Facts<'_> {
    /// Why its connections are left alone whatever its namespace says; `None` when they are captured.
    pub fn left_alone(&self) -> Option<LeftAlone> {
        if self.host_network {
            Some(LeftAlone::HostNetwork)
        } else if self.finished {
            Some(LeftAlone::Finished)
        } else if !self.has_address {
            Some(LeftAlone::NoAddress)
        } else if !allows_capture(self.label) {
            Some(LeftAlone::PodLabel)
        } else {
            None
        }
    }
}

/// Whether connections of a namespace's pods may be captured at all.
pub fn namespace_allows_capture(namespace: &Namespace) -> bool {
    allows_capture(namespace.labels.get(api::CAPTURE).map(|value| &**value))
}

/// Whether the label `divert.dev/capture` of a pod or namespace allows it.
fn allows_capture(label: Option<&str>) -> bool {
    label != Some("false")
}

/// Why connections of a pod are left alone; `None` when they are captured.
pub fn left_alone(world: &World, pod: &Pod) -> Option<LeftAlone> {
    let facts = Facts {
        host_network: pod.host_network,
        finished: pod.finished,
        has_address: !pod.addresses.is_empty(),
        label: pod.labels.get(api::CAPTURE).map(|value| &**value),
    };
    let namespace_allows = || world.namespace(&pod.pod.namespace).is_none_or(namespace_allows_capture);
    facts.left_alone().or_else(|| (!namespace_allows()).then_some(LeftAlone::NamespaceLabel))
}

/// What to do for a pod; `None` when its connections are to be left alone. A terminating pod stays: it
/// still makes requests. `set` is that of its namespace.
pub(super) fn compile(world: &World, pod: &Pod, set: CaptureSet) -> Option<PodPlan> {
    left_alone(world, pod).is_none().then(|| {
        let targets = world
            .services(&pod.pod.namespace)
            .filter(|service| service.selects(&pod.labels))
            .flat_map(|service| &service.ports)
            .filter_map(|port| pod.target_port(&port.target));
        PodPlan {
            uid: pod.uid.clone(),
            addresses: pod.addresses.clone(),
            key: (!set.is_everyone()).then(|| pod.pod.namespace.clone()),
            set,
            ports: pod.ports.iter().map(|port| port.number).chain(targets).collect(),
        }
    })
}
