//! A large cluster: what the agent takes to compile and apply all of it, and a change of one endpoint, or of one Ingress.
//!
//! 10,000 Services with 100,000 endpoints, 1,000 of them diverted by 50 developers; and 2,000 Ingresses before 200
//! Services, half of them for hosts of 30 developers. Times are the agent's own (divert_change_seconds_total);
//! reading the manifests is not in them, as a cluster is not read from files.

mod hosts;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result};
use divert_tests::agent::Agent;
use divert_tests::lab::{ClusterIps, Lab};
use divert_tests::manifest::{self, Manifests};
use divert_tests::{usage, wait};
use serde_json::Value;

use super::contenders::Contender;
use super::figures::{Figures, Metric};
use super::programs::Programs;
use super::town::agent_options;
use super::{Effort, report};
use crate::interrupt;

pub(super) const NAME: &str = "scale";
/// The same on a node that runs a pod of a developer: all of the shared namespace is captured for it.
pub(super) const FROM_PODS: &str = "scale-from-pods";
pub(super) use hosts::NAME as HOSTS;

/// A cluster, and a change of it.
struct Cluster {
    /// The scenario.
    name: &'static str,
    title: &'static str,
    /// Pods of the node.
    pods: &'static [&'static str],
    /// All but what changes.
    objects: fn(&Lab) -> Vec<Value>,
    /// What changes, in a file of its own: with one thing less, or as at the beginning.
    changed: fn(&Lab, bool) -> Result<Vec<Value>>,
    /// Captures that go with the one thing.
    fewer: usize,
}

const CLUSTERS: [Cluster; 3] = [
    Cluster { name: NAME, title: TITLE, pods: &["staging/client"], objects, changed, fewer: 1 },
    Cluster {
        name: FROM_PODS,
        title: "the same, on a node with a pod of a developer",
        pods: &["staging/client", "developer00/client"],
        objects,
        changed,
        // An endpoint's address is captured once for everyone, and once more for the developer's pod.
        fewer: 2,
    },
    hosts::CLUSTER,
];

const TITLE: &str =
    "compile and apply: 10,000 Services, 1,000 of them diverted by 50 developers, 100,000 endpoints";

const SHARED: usize = 8000;
const DIVERTED: usize = 1000;
const DEVELOPERS: usize = 50;
/// Services of each developer; neighbours share half of theirs.
const OWN: usize = 40;
/// Endpoints of a Service of the shared namespace, and of a developer's.
const ENDPOINTS: (usize, usize) = (11, 6);
/// The Service whose endpoints change is in a file of its own.
const CHANGED: usize = 7;
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures each of them that is wanted.
///
/// # Errors
/// When the agent does not come to what the manifests say.
pub(super) fn measure(
    wanted: impl Fn(&str) -> bool,
    effort: Effort,
    programs: &Programs,
    figures: &mut Figures,
) -> Result<()> {
    for cluster in CLUSTERS.iter().filter(|cluster| wanted(cluster.name)) {
        for _ in 0..effort.rounds.min(3) {
            once(cluster, programs, figures).with_context(|| cluster.name.to_owned())?;
        }
        report::print_scenario(cluster.name, cluster.title, figures);
    }
    Ok(())
}

fn once(cluster: &Cluster, programs: &Programs, figures: &mut Figures) -> Result<()> {
    let Cluster { name, pods, objects, changed, fewer, .. } = *cluster;
    interrupt::check()?;
    let lab = Lab::new(pods)?;
    let manifests = Manifests::new(&lab.folder().join("manifests"))?;
    let put_changed =
        |less: bool| -> Result<()> { manifests.put_json("changed", &changed(&lab, less)?).map(drop) };
    manifests.put_json("all", &objects(&lab))?;
    put_changed(false)?;
    let mut agent = Agent::launch(&lab, &manifests, &agent_options(&programs.agent))?;
    agent.wait_ready_within(PATIENCE)?;
    figures.add(name, Contender::Divert, Metric::WholeSeconds, taken(&agent)?);
    let series = "divert_change_seconds_total{step=\"apply\"} ";
    let metrics = agent.get("/metrics")?.text();
    let apply = metrics.lines().find_map(|line| line.strip_prefix(series)?.parse().ok());
    figures.add(name, Contender::Divert, Metric::ApplySeconds, apply.context("apply tells its time")?);
    let captures = agent.metric("divert_captures")?;
    for (less, expected) in [(true, captures - fewer as f64), (false, captures)] {
        interrupt::check()?;
        let before = taken(&agent)?;
        put_changed(less)?;
        wait::until_within(PATIENCE, "the change to be carried out", || {
            agent.metric("divert_captures").is_ok_and(|now| now == expected)
        })?;
        figures.add(name, Contender::Divert, Metric::ChangeMillis, (taken(&agent)? - before) * 1e3);
    }
    let peak = usage::peak_resident(agent.process().pid())?;
    figures.add(name, Contender::Divert, Metric::Peak, peak as f64);
    agent.stop()?;
    Ok(())
}

/// Seconds that the agent has spent on changes so far.
fn taken(agent: &Agent) -> Result<f64> {
    agent.metric("divert_change_seconds_total")
}

fn developer(number: usize) -> String {
    format!("developer{number:02}")
}

fn objects(lab: &Lab) -> Vec<Value> {
    let mut objects = vec![manifest::shared_namespace("staging")];
    objects.extend(lab.pods().map(|pod| manifest::pod(pod)));
    let mut number = 0;
    let mut service = |namespace: &str, name: usize, endpoints: usize| {
        number += 1;
        service(namespace, name, number, endpoints)
    };
    for name in 0..SHARED {
        let both = service("staging", name, ENDPOINTS.0);
        if name != CHANGED {
            objects.extend(both);
        }
    }
    for developer_number in 0..DEVELOPERS {
        let namespace = developer(developer_number);
        objects.push(manifest::namespace(&namespace));
        objects.push(manifest::divert(&namespace, "staging"));
        let own = (0..OWN).map(|own| (developer_number * DIVERTED / DEVELOPERS + own) % DIVERTED);
        objects.extend(own.flat_map(|name| service(&namespace, name, ENDPOINTS.1)));
    }
    objects
}

/// One endpoint of a Service.
fn changed(_lab: &Lab, less: bool) -> Result<Vec<Value>> {
    let endpoints = if less { ENDPOINTS.0 - 1 } else { ENDPOINTS.0 };
    Ok(service("staging", CHANGED, CHANGED as u32 + 1, endpoints).into())
}

/// A Service and its endpoints, with addresses that no other has.
fn service(namespace: &str, name: usize, number: u32, endpoints: usize) -> [Value; 2] {
    let name = format!("service{name:04}");
    let ips = ClusterIps {
        v4: Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + number),
        v6: Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, number as u16),
    };
    let endpoint = |place: usize| -> (IpAddr, bool) {
        let first = Ipv4Addr::new(10, 2, 0, 0).to_bits();
        (Ipv4Addr::from_bits(first + number * 16 + place as u32).into(), true)
    };
    let endpoints: Vec<_> = (0..endpoints).map(endpoint).collect();
    [
        manifest::service(namespace, &name, ips, &[8080.into()]),
        manifest::endpoint_slice(namespace, &name, "v4", &endpoints, 8080),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_large_as_it_says() {
        assert_eq!(SHARED + DEVELOPERS * OWN, 10_000);
        assert_eq!(SHARED * ENDPOINTS.0 + DEVELOPERS * OWN * ENDPOINTS.1, 100_000);
    }
}
