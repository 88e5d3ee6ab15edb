//! Many Ingresses: who has which host, and what is captured for it.

use anyhow::Result;
use divert_tests::lab::Lab;
use divert_tests::manifest;
use serde_json::{Value, json};

use super::{Cluster, developer, service};

pub(crate) const NAME: &str = "scale-hosts";

pub(super) const CLUSTER: Cluster = Cluster {
    name: NAME,
    title: "compile and apply: 2,000 Ingresses before 200 Services, half of them for hosts of 30 developers",
    pods: &["staging/client"],
    objects,
    changed,
    // Of the Service behind it: cluster IPs of both families, and an endpoint.
    fewer: 3,
};

const SERVICES: usize = 200;
const INGRESSES: usize = 2000;
const DEVELOPERS: usize = 30;
/// Services of each developer.
const OWN: usize = 20;
/// The name of a Service that one developer has and only the Ingress that changes leads to.
const BEHIND: usize = 999;

/// A quarter of the Ingresses is the shared namespace's for any host, a quarter its own for a host each, and of the
/// developers' half has the annotation of okteto, and half a host of a Divert.
fn objects(lab: &Lab) -> Vec<Value> {
    let mut objects = vec![manifest::shared_namespace("staging")];
    objects.extend(lab.pods().map(|pod| manifest::pod(pod)));
    let mut number = 0;
    let mut next = |namespace: &str, name: usize| {
        number += 1;
        service(namespace, name, number, 1)
    };
    objects.extend((0..SERVICES).flat_map(|name| next("staging", name)));
    let mut hosts = vec![Vec::new(); DEVELOPERS];
    for place in 0..INGRESSES {
        let behind = place % SERVICES;
        let of = developer(place / 4 % DEVELOPERS);
        let host = format!("web-{place}-{of}.example.com");
        objects.push(match place % 4 {
            0 => ingress("staging", place, "", behind),
            1 => ingress("staging", place, &format!("shop-{place}.example.com"), behind),
            2 => {
                let mut ingress = ingress(&of, place, &host, behind);
                ingress["metadata"]["annotations"] = json!({"divert.okteto.com/header": of});
                ingress
            }
            _ => {
                hosts[place / 4 % DEVELOPERS].push(host.clone());
                ingress(&of, place, &host, behind)
            }
        });
    }
    for (place, hosts) in hosts.into_iter().enumerate() {
        let namespace = developer(place);
        objects.push(manifest::namespace(&namespace));
        let mut divert = manifest::divert(&namespace, "staging");
        divert["spec"]["hosts"] = json!(hosts);
        objects.push(divert);
        objects.extend((0..OWN).flat_map(|own| next(&namespace, (place * OWN + own) % SERVICES)));
    }
    objects.extend(next(&developer(0), BEHIND));
    objects
}

/// An Ingress of a developer for one more host.
fn changed(_lab: &Lab, less: bool) -> Result<Vec<Value>> {
    let of = developer(0);
    let mut more = ingress(&of, INGRESSES, &format!("more-{of}.example.com"), BEHIND);
    more["metadata"]["annotations"] = json!({"divert.okteto.com/header": of});
    Ok(if less { Vec::new() } else { vec![more] })
}

/// One for a host, or for any.
fn ingress(namespace: &str, place: usize, host: &str, behind: usize) -> Value {
    let mut ingress =
        manifest::ingress(namespace, &format!("web-{place}"), host, &format!("service{behind:04}"));
    if host.is_empty() {
        let rule = ingress["spec"]["rules"][0].as_object_mut();
        rule.into_iter().for_each(|rule| drop(rule.remove("host")));
    }
    ingress
}
