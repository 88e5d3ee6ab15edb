//! The plan as people and programs see it: what a directory of manifests, or a cluster, means.

use std::net::{IpAddr, SocketAddr};

use clap::ValueEnum;
use serde::Serialize;

use crate::api::OnUnavailable;
use crate::columns::Columns;
use crate::compile::{DivertStatus, IngressStatus, Planner};
use crate::manifests::Problem;
use crate::plan::{Backend, CaptureSet, Plan, Route, Unavailable};

/// How to print the plan.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// The plan as it is printed.
#[derive(Debug, Serialize)]
pub struct View<'a> {
    diverts: Vec<DivertStatus>,
    ingresses: &'a [IngressStatus],
    captures: Vec<CaptureView>,
    hosts: Vec<HostView>,
    pods: Vec<PodView>,
    problems: &'a [Problem],
}

#[derive(Debug, Serialize)]
struct CaptureView {
    /// Namespaces whose developers' pods are meant; empty is everyone.
    set: Vec<String>,
    address: SocketAddr,
    service: String,
    routes: Vec<RouteView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RouteView {
    key: String,
    service: String,
    on_unavailable: OnUnavailable,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    preferred: Vec<SocketAddr>,
    endpoints: Vec<SocketAddr>,
    /// All connections of a client go to one of them.
    by_client: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    unavailable: Option<String>,
}

#[derive(Debug, Serialize)]
struct HostView {
    host: String,
    key: String,
    shared: Vec<String>,
}

#[derive(Debug, Serialize)]
struct PodView {
    pod: String,
    addresses: Vec<IpAddr>,
    /// Shared namespaces towards which its requests get the key.
    set: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    ports: Vec<u16>,
}

impl<'a> View<'a> {
    /// Puts together what is printed.
    pub fn new(planner: &'a Planner, problems: &'a [Problem]) -> Self {
        let Plan { captures, pods, hosts } = planner.plan();
        let names = |set: &CaptureSet| set.namespaces().map(|name| name.to_string()).collect();
        let captures = captures.iter().flat_map(|(capture, target)| {
            target.services.iter().map(move |shared| CaptureView {
                set: names(&capture.set),
                address: capture.address,
                service: shared.service.to_string(),
                routes: shared.routes.iter().map(|(key, route)| RouteView::new(key, route)).collect(),
            })
        });
        let pods = pods.iter().map(|(pod, plan)| PodView {
            pod: pod.to_string(),
            addresses: plan.addresses.clone(),
            set: names(&plan.set),
            key: plan.key.as_ref().map(|key| key.to_string()),
            ports: plan.ports.iter().copied().collect(),
        });
        let hosts = hosts.iter().map(|(host, grant)| HostView {
            host: host.to_string(),
            key: grant.key.to_string(),
            shared: grant.shared.iter().map(|shared| shared.to_string()).collect(),
        });
        Self {
            diverts: planner.statuses(),
            ingresses: planner.ingresses(),
            captures: captures.collect(),
            hosts: hosts.collect(),
            pods: pods.collect(),
            problems,
        }
    }

    /// As aligned columns.
    pub fn table(&self) -> String {
        let mut diverts = Columns::new("Diverts", &["DIVERT", "SHARED", "ACCEPTED", "READY", "MESSAGE"]);
        let mut services = Columns::new("Services", &["DIVERT", "SERVICE", "ENDPOINTS", "STATE", "MESSAGE"]);
        for status in &self.diverts {
            let condition = |kind| status.conditions.iter().find(|condition| condition.kind == kind);
            let word = |kind| match condition(kind) {
                Some(condition) if condition.status => "yes",
                Some(condition) => condition.reason,
                None => "-",
            };
            let worst = status.conditions.iter().find(|condition| !condition.status);
            diverts.row([
                status.divert.to_string(),
                status.shared_namespace.to_string(),
                word("Accepted").into(),
                word("Ready").into(),
                worst.map(|condition| condition.message.clone()).unwrap_or_default(),
            ]);
            for row in &status.services {
                services.row([
                    status.divert.to_string(),
                    row.name.to_string(),
                    row.ready.to_string(),
                    row.reason.to_string(),
                    row.message.clone(),
                ]);
            }
        }
        let mut hosts = Columns::new("Hosts", &["ASKED BY", "HOST", "STATE", "MESSAGE"]);
        for status in &self.diverts {
            for row in &status.hosts {
                let reason = row.reason.to_string();
                hosts.row([status.divert.to_string(), row.host.to_string(), reason, row.message.clone()]);
            }
        }
        for status in self.ingresses {
            let name = format!("Ingress {}", status.ingress);
            if let Some(refused) = &status.refused {
                hosts.row([name.clone(), String::new(), "refused".into(), refused.clone()]);
            }
            for row in &status.hosts {
                let reason = row.reason.to_string();
                hosts.row([name.clone(), row.host.to_string(), reason, row.message.clone()]);
            }
        }
        let columns = ["ADDRESS", "SERVICE", "FOR", "KEY", "GOES TO", "ENDPOINTS"];
        let mut captures = Columns::new("Captured", &columns);
        for capture in &self.captures {
            let whose = match &*capture.set {
                [] => "everyone".to_owned(),
                set => format!("developers of {}", set.join(", ")),
            };
            let first = [capture.address.to_string(), capture.service.clone(), whose];
            // Captured to give requests a key.
            if capture.routes.is_empty() {
                captures.row([&first[..], &["-", "as asked", "-"].map(String::from)].concat());
            }
            for (i, route) in capture.routes.iter().enumerate() {
                let rest = [route.key.clone(), route.service.clone(), route.backend()];
                captures.row([if i == 0 { first.clone() } else { Default::default() }, rest].concat());
            }
        }
        let mut pods = Columns::new("Pods", &["POD", "ADDRESSES", "PORTS", "KEY"]);
        for pod in &self.pods {
            let key = pod.key.as_ref().map(|key| format!("{key}, towards {}", pod.set.join(", ")));
            let key = key.unwrap_or_default();
            pods.row([pod.pod.clone(), join(&pod.addresses), join(&pod.ports), key]);
        }
        [diverts, services, hosts, captures, pods].map(|columns| columns.print()).join("\n")
    }
}

impl RouteView {
    fn new(key: &str, route: &Route) -> Self {
        let (preferred, endpoints, by_client, unavailable) = match &route.backend {
            Backend::Endpoints { preferred, endpoints, by_client, .. } => {
                (preferred.clone(), endpoints.clone(), *by_client, None)
            }
            Backend::Unavailable(why) => {
                let why = match why {
                    Unavailable::NoReadyEndpoints => "NoReadyEndpoints".to_owned(),
                    Unavailable::EndpointsNotPods => "EndpointsNotPods".to_owned(),
                    Unavailable::NoLocalEndpoints => "NoLocalEndpoints".to_owned(),
                    Unavailable::AddressInLabelRange { address } => format!("AddressInLabelRange {address}"),
                    Unavailable::PortMismatch { port } => format!("PortMismatch {port}"),
                };
                (Vec::new(), Vec::new(), false, Some(why))
            }
        };
        Self {
            key: key.to_owned(),
            service: route.service.to_string(),
            on_unavailable: route.on_unavailable,
            preferred,
            endpoints,
            by_client,
            unavailable,
        }
    }

    fn backend(&self) -> String {
        match (&self.unavailable, self.on_unavailable) {
            (None, _) if self.by_client => format!("{} (one for each client)", join(&self.endpoints)),
            (None, _) if self.preferred.is_empty() => join(&self.endpoints),
            (None, _) => format!("{} (first {})", join(&self.endpoints), join(&self.preferred)),
            (Some(why), OnUnavailable::Fail) => format!("none: {why}, answers 503"),
            (Some(why), OnUnavailable::Shared) => format!("none: {why}, the shared copy answers"),
        }
    }
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::Settings;
    use crate::manifests::testing::objects;

    const MANIFESTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: staging, labels: {divert.dev/shared: 'true'}}
---
apiVersion: v1
kind: Namespace
metadata: {name: alice}
---
apiVersion: divert.dev/v1alpha1
kind: Divert
metadata: {name: d, namespace: alice}
spec: {sharedNamespace: staging, services: [api, catalog]}
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: staging}
spec: {clusterIP: 10.96.0.12, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: alice}
spec: {selector: {app: c}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: c, namespace: alice, labels: {app: c}}
status: {podIP: 10.0.1.12}
";

    fn planner() -> Planner {
        let mut planner = Planner::new(Settings::default());
        planner.update(objects(MANIFESTS));
        planner
    }

    #[test]
    fn the_table_is_aligned_and_says_it_all() {
        let planner = planner();
        assert_eq!(
            View::new(&planner, &[]).table(),
            "\
Diverts
  DIVERT   SHARED   ACCEPTED  READY             MESSAGE
  alice/d  staging  yes       ServicesNotReady  alice has no Service api: deploy it, or take it out of the Divert

Services
  DIVERT   SERVICE  ENDPOINTS  STATE           MESSAGE
  alice/d  api      0          ServiceMissing  alice has no Service api: deploy it, or take it out of the Divert
  alice/d  catalog  1          Ready

Hosts
  none

Captured
  ADDRESS        SERVICE          FOR                    KEY    GOES TO        ENDPOINTS
  10.96.0.12:80  staging/catalog  everyone               alice  alice/catalog  10.0.1.12:8080
  10.96.0.12:80  staging/catalog  developers of staging  alice  alice/catalog  10.0.1.12:8080

Pods
  POD      ADDRESSES  PORTS  KEY
  alice/c  10.0.1.12  8080   alice, towards staging
"
        );
        let nothing = Planner::new(Settings::default());
        assert!(View::new(&nothing, &[]).table().starts_with("Diverts\n  none\n\nServices\n  none\n"));
    }

    #[test]
    fn json_has_the_same_for_programs() {
        let planner = planner();
        let json = serde_json::to_value(View::new(&planner, &[])).unwrap();
        assert_eq!(json["captures"][0]["address"], "10.96.0.12:80");
        assert_eq!(json["captures"][0]["routes"][0]["key"], "alice");
        assert_eq!(json["captures"][0]["routes"][0]["endpoints"][0], "10.0.1.12:8080");
        assert_eq!(json["diverts"][0]["conditions"][1]["reason"], "ServicesNotReady");
        assert_eq!(json["diverts"][0]["services"][0]["reason"], "ServiceMissing");
        assert_eq!(json["pods"][0]["ports"][0], 8080);
    }
}
