//! Which pods are registered: those whose connections can be captured; and which of them are developers'.

use crate::plan::{CaptureSet, PodPlan};
use crate::world::{Pod, World};

/// What to do for a pod; `None` when its connections are to be left alone. A terminating pod stays: it
/// still makes requests. `set` is that of its namespace.
pub(super) fn compile(world: &World, pod: &Pod, set: CaptureSet) -> Option<PodPlan> {
    let namespace = world.namespace(&pod.pod.namespace);
    let captured = !pod.host_network
        && !pod.finished
        && !pod.addresses.is_empty()
        && pod.allows_capture()
        && namespace.is_none_or(|namespace| namespace.allows_capture());
    captured.then(|| {
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
