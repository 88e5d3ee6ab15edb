//! The part of the endpoint slice controller that files lack: a Service with a selector and no
//! EndpointSlice of its own gets one from the Pods that match.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::world::{Endpoint, EndpointSlice, Object, ObjectRef, Pod, Service, SlicePort};

/// Slices for the Services among `objects` that have none.
pub fn derive(objects: &BTreeMap<ObjectRef, Object>) -> Vec<EndpointSlice> {
    let own_slices: HashSet<_> = objects
        .values()
        .filter_map(|object| match object {
            Object::EndpointSlice(slice) => Some(&slice.service),
            _ => None,
        })
        .collect();
    let mut pods: HashMap<&str, Vec<&Pod>> = HashMap::new();
    for object in objects.values() {
        if let Object::Pod(pod) = object {
            pods.entry(&pod.pod.namespace).or_default().push(pod);
        }
    }
    objects
        .values()
        .filter_map(|object| match object {
            Object::Service(service) if !own_slices.contains(&service.service) => Some(service),
            _ => None,
        })
        .flat_map(|service| {
            of_service(service, pods.get(&*service.service.namespace).map_or(&[], Vec::as_slice))
        })
        .collect()
}

/// One slice for all pods that have the same numbers for the Service's ports.
fn of_service(service: &Service, pods: &[&Pod]) -> Vec<EndpointSlice> {
    if service.is_external_name() {
        return Vec::new();
    }
    let mut by_ports: BTreeMap<Vec<(Arc<str>, u16)>, Vec<Endpoint>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !pod.finished && service.selects(&pod.labels)) {
        let number = |port: &crate::world::ServicePort| {
            pod.target_port(&port.target).map(|number| (port.name.clone(), number))
        };
        let ports = service.ports.iter().filter_map(number).collect();
        by_ports.entry(ports).or_default().extend(of_pod(service, pod));
    }
    by_ports
        .into_iter()
        .enumerate()
        .map(|(index, (ports, endpoints))| EndpointSlice {
            service: service.service.clone(),
            // No object of Kubernetes can be called so.
            name: format!("{}/{index}", service.service.name).into(),
            by_controller: true,
            ports: ports.into_iter().map(|(name, number)| SlicePort { name, number }).collect(),
            endpoints,
        })
        .collect()
}

/// An endpoint for each address of a pod.
fn of_pod<'a>(service: &'a Service, pod: &'a Pod) -> impl Iterator<Item = Endpoint> + 'a {
    let named = pod.subdomain.as_ref() == Some(&service.service.name);
    pod.addresses.iter().map(move |&address| Endpoint {
        address,
        ready: service.publish_not_ready || (pod.ready && !pod.terminating),
        serving_terminating: pod.ready && pod.terminating,
        hostname: pod.hostname.clone().filter(|_| named),
        pod: Some(pod.pod.name.clone()),
        node: None,
    })
}
