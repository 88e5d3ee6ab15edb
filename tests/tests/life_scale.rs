//! correctness.md, Life: a thousand pods and ten thousand services on one node.
//!
//! What it costs is printed. Asserted is what holds on any machine: every pod is served and steered
//! right, its memory is bounded, and the end leaves nothing.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::PORT;
use divert_tests::http::Http;
use divert_tests::lab::{ClusterIps, Crowd, FAMILIES, Family, Lab, Pod};
use divert_tests::manifest::{self, Manifests};
use divert_tests::script::is_captured;
use divert_tests::server::Echo;
use divert_tests::traces::{self, Found};
use divert_tests::{usage, wait};
use serde_json::Value;

const PODS: usize = 1000;
const SERVICES: usize = 10_000;
const DEVELOPERS: usize = 12;
/// Services of staging that somebody diverts, beside `web`.
const DIVERTED: usize = 100;
/// Services that each developer runs, of those.
const OWN: usize = 16;
/// Namespaces of the pods that nothing is special about.
const TEAMS: usize = 20;

/// By name the first, one in the middle, and the last of all pods of the node.
const CLIENTS: [&str; 3] = ["aaa/first", "team10/middle", "zzz/last"];
/// Its requests get the key dev00.
const DEVELOPERS_CLIENT: &str = "dev00/client";
const SERVERS: [&str; 3] = ["staging/web", "dev00/web", "dev11/web"];

/// A debug agent, on a machine whose processors others use as well.
const PATIENCE: Duration = Duration::from_secs(180);
/// Measured: 28 KiB with two workers. A buffer for each pod, or a copy of what all have in common, is more.
const MOST_PER_POD: u64 = 64 << 10;

/// The node and what its agent is told.
struct Node {
    _servers: Vec<Echo>,
    web: ClusterIps,
    manifests: Manifests,
    crowd: Crowd,
    lab: Lab,
}

impl Node {
    /// With all manifests but those of the crowd: what it costs besides is what pods cost.
    fn new() -> Result<Self> {
        let pods: Vec<_> = CLIENTS.into_iter().chain([DEVELOPERS_CLIENT]).chain(SERVERS).collect();
        let lab = Lab::new(&pods)?;
        let others = (0..PODS - pods.len()).map(|number| format!("{}/pod{number:04}", team(number % TEAMS)));
        let crowd = lab.crowd(&others.collect::<Vec<_>>())?;
        let manifests = Manifests::new(&lab.folder().join("manifests"))?;
        let servers = SERVERS.map(|name| Echo::start(&lab.pod(name), PORT));
        let web = lab.cluster_ips(&lab.pod("staging/web"))?;
        let node = Self { _servers: servers.into_iter().collect::<Result<_>>()?, web, manifests, crowd, lab };
        node.put_services()?;
        Ok(node)
    }

    fn put_services(&self) -> Result<()> {
        let mut services = 0;
        let mut unasked = |objects: &mut Vec<Value>, namespace: &str, number: usize| {
            objects.extend(unasked(namespace, number, services));
            services += 1;
        };
        let mut staging = vec![
            manifest::shared_namespace("staging"),
            manifest::service("staging", "web", self.web, &[PORT.into()]),
        ];
        staging.extend(["aaa", "zzz"].map(manifest::namespace));
        staging.extend((0..TEAMS).map(|number| manifest::namespace(&team(number))));
        for number in 0..DEVELOPERS {
            let name = developer(number);
            let mut objects = vec![manifest::namespace(&name)];
            for own in 0..OWN {
                unasked(&mut objects, &name, (number * DIVERTED / DEVELOPERS + own) % DIVERTED);
            }
            if let Some(pod) = self.lab.pods().find(|pod| pod.name() == format!("{name}/web")) {
                let ips = self.lab.cluster_ips(pod)?;
                objects.push(manifest::service(&name, "web", ips, &[PORT.into()]));
            }
            self.manifests.put_json(&name, &objects)?;
            self.divert(number)?;
        }
        for number in 0..SERVICES - SERVERS.len() - DEVELOPERS * OWN {
            unasked(&mut staging, "staging", number);
        }
        self.manifests.put_json("staging", &staging)?;
        self.put_pods("pods", self.lab.pods()).map(drop)
    }

    fn divert(&self, number: usize) -> Result<Instant> {
        let name = developer(number);
        self.manifests.put_json(&format!("divert-{name}"), &[manifest::divert(&name, "staging")])
    }

    fn put_pods<'p>(&self, file: &str, pods: impl Iterator<Item = &'p Arc<Pod>>) -> Result<Instant> {
        self.manifests.put_json(file, &pods.map(|pod| manifest::pod(pod)).collect::<Vec<_>>())
    }

    fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.lab.pods().chain(self.crowd.pods())
    }

    /// Who answers a request from a pod, on a captured connection.
    fn ask(&self, from: &str, family: Family, key: Option<&str>) -> Result<String> {
        let pod = self.lab.pod(from);
        let stream = pod.connect(self.web.address(family, PORT))?;
        ensure!(is_captured(&stream, &pod)? == Some(true), "a connection of {from} is not captured");
        answered_by(&mut Http::new(stream), key)
    }

    /// Steering, for pods from everywhere in the order of their names.
    fn expect_right(&self) -> Result<()> {
        for family in FAMILIES {
            for from in CLIENTS {
                for (key, by) in [
                    (None, "staging/web"),
                    (Some("dev00"), "dev00/web"),
                    (Some("dev11"), "dev11/web"),
                    // Diverts, but has no such service; and nobody.
                    (Some("dev05"), "staging/web"),
                    (Some("nobody"), "staging/web"),
                ] {
                    assert_eq!(self.ask(from, family, key)?, by, "{from}, {key:?}");
                }
            }
            assert_eq!(self.ask(DEVELOPERS_CLIENT, family, None)?, "dev00/web");
        }
        // No wire leads away from these: a connect that succeeds has met the agent.
        for pod in self.crowd.pods().iter().step_by(37) {
            for family in FAMILIES {
                let to = self.web.address(family, PORT);
                pod.connect(to).with_context(|| format!("{} is not served", pod.name()))?;
            }
        }
        Ok(())
    }
}

fn developer(number: usize) -> String {
    format!("dev{number:02}")
}

fn team(number: usize) -> String {
    format!("team{number:02}")
}

/// A Service with two endpoints of each family, different from all others, that nobody asks.
fn unasked(namespace: &str, number: usize, unique: u32) -> [Value; 3] {
    let name = format!("service{number:05}");
    let v4 = |part: u8| Ipv4Addr::from_bits(Ipv4Addr::new(10, part, 0, 0).to_bits() + unique);
    let v6 = |part: u16| Ipv6Addr::new(0xfd00, part, 0, 0, 0, 0, (unique >> 16) as u16, unique as u16);
    let slice = |suffix: &str, ips: [std::net::IpAddr; 2]| {
        manifest::endpoint_slice(namespace, &name, suffix, &ips.map(|ip| (ip, true)), PORT)
    };
    [
        manifest::service(namespace, &name, ClusterIps { v4: v4(1), v6: v6(1) }, &[PORT.into()]),
        slice("v4", [v4(2).into(), v4(3).into()]),
        slice("v6", [v6(2).into(), v6(3).into()]),
    ]
}

fn answered_by(http: &mut Http, key: Option<&str>) -> Result<String> {
    let baggage = key.map(|key| format!("okteto-divert={key}"));
    let fields: Vec<_> = baggage.iter().map(|value| ("baggage", value.as_str())).collect();
    let response = http.get("/", &fields)?;
    response.served_by().with_context(|| format!("the agent answered: {}", response.text()))
}

#[test]
fn a_thousand_pods_and_ten_thousand_services() -> Result<()> {
    let began = Instant::now();
    let node = Node::new()?;
    eprintln!("the node was made in {:?}", began.elapsed());

    let started = Instant::now();
    let folder = node.crowd.folder().display().to_string();
    let options = Options { arguments: vec!["--netns-dir".into(), folder], drain: 60, ..Options::default() };
    let mut agent = Agent::launch(&node.lab, &node.manifests, &options)?;
    let pid = agent.process().pid();
    agent.wait_ready_within(PATIENCE)?;
    let (resident, own) = (usage::resident(pid)?, usage::anonymous(pid)?);
    eprintln!(
        "{SERVICES} services were known and {} destinations captured after {:?} ({:?} of processor time), with {} KiB \
         resident",
        agent.metric("divert_captures")?,
        started.elapsed(),
        usage::cpu_time(pid)?,
        resident >> 10,
    );

    let (put, cpu) = (node.put_pods("crowd", node.crowd.pods().iter())?, usage::cpu_time(pid)?);
    wait::until_within(PATIENCE, "every pod to be served", || {
        agent.metric("divert_pods_served").is_ok_and(|served| served == PODS as f64)
    })?;
    let per_pod = usage::anonymous(pid)?.saturating_sub(own) / node.crowd.pods().len() as u64;
    eprintln!(
        "{PODS} pods were served {:?} later ({:?} of processor time), with {} KiB resident, {} KiB for each pod",
        put.elapsed(),
        usage::cpu_time(pid)? - cpu,
        usage::resident(pid)? >> 10,
        per_pod >> 10,
    );
    ensure!(per_pod < MOST_PER_POD, "{per_pod} bytes for each pod");

    let mut ports = Vec::new();
    for pod in node.pods() {
        let found = traces::of(pod)?;
        ensure!(found.label_routes == 2 && found.lookups == 1, "{}: {found:?}", pod.name());
        let port = found.port.context("a label route has the port as its metric")?;
        ensure!(traces::is_taken(pod, port)?, "nobody listens in {} on port {port}", pod.name());
        ports.push(port);
    }
    node.expect_right()?;

    // Of dev11, and of dev00 with whom all of staging is captured for the pod that she has here.
    for (number, own, changes) in [(11, "dev11/web", 10), (0, "dev00/web", 2)] {
        let name = developer(number);
        // On a connection that is open: the change itself, and no new connection, is timed.
        let mut http = Http::new(node.lab.pod(CLIENTS[2]).connect(node.web.address(Family::V4, PORT))?);
        let mut times = Vec::new();
        let cpu = usage::cpu_time(pid)?;
        for change in 0..changes {
            let (put, by) = if change % 2 == 0 {
                (node.manifests.remove_json(&format!("divert-{name}"))?, "staging/web")
            } else {
                (node.divert(number)?, own)
            };
            wait::until_within(PATIENCE, "the change to be in effect", || {
                answered_by(&mut http, Some(&name)).is_ok_and(|answered| answered == by)
            })?;
            times.push(put.elapsed());
        }
        times.sort();
        let cpu = (usage::cpu_time(pid)? - cpu) / changes;
        eprintln!("the Divert of {name} came or went within {times:?} ({cpu:?} of processor time for each)");
    }

    let (before, since) = (usage::cpu_time(pid)?, Instant::now());
    // The pace of thorough looks: what is measured, not waited for.
    std::thread::sleep(Duration::from_secs(5));
    eprintln!(
        "in {:?} without a change: {:?} of processor time",
        since.elapsed(),
        usage::cpu_time(pid)? - before
    );

    let end = Instant::now();
    agent.process().signal(rustix::process::Signal::TERM)?;
    agent.wait_end_within(PATIENCE)?;
    eprintln!("the end took {:?}", end.elapsed());
    for (pod, port) in node.pods().zip(ports) {
        // The kernel takes sockets apart a moment after their process is gone.
        wait::until(&format!("nothing to be left in {}", pod.name()), || {
            let nothing = traces::of(pod).is_ok_and(|found| found == Found::default());
            nothing && traces::is_taken(pod, port).is_ok_and(|taken| !taken)
        })?;
    }
    Ok(())
}
