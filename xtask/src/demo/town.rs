//! The demo's pods, services, manifests and agent.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{self, Agent};
use divert_tests::http::Http;
use divert_tests::lab::{ClusterIps, Family, Lab};
use divert_tests::manifest::{self, Manifests, Port};
use divert_tests::process::Process;
use divert_tests::{script, wait};

use crate::interrupt;

/// The chain, in the order of the calls. The last speaks gRPC.
pub(super) const CHAIN: [&str; 4] = ["frontend", "api", "catalog", "inventory"];
/// Who runs copies of services.
pub(super) const DEVELOPERS: [&str; 2] = ["alice", "bob"];
/// What they run.
pub(super) const COPIES: [(&str, &str); 3] = [("alice", "catalog"), ("bob", "api"), ("bob", "inventory")];

const PORT: u16 = 8080;

/// A host that is granted to alice.
pub(super) const ALICES_HOST: &str = "shop-alice.example.com";
/// A pod that calls services of staging and passes nothing on, as a developer's shell does.
pub(super) const ALICES_SHELL: &str = "alice/shell";
/// A pod of staging that does.
const VISITOR: &str = "staging/visitor";

/// All that runs. Dropped, it is gone.
pub(super) struct Town {
    // Dropped in this order.
    agent: Agent,
    services: Vec<Process>,
    manifests: Manifests,
    ips: Vec<(String, ClusterIps)>,
    lab: Lab,
}

impl Town {
    pub(super) fn new(release: bool) -> Result<Self> {
        let shared = CHAIN.map(|service| format!("staging/{service}"));
        let copies = COPIES.map(|(namespace, service)| format!("{namespace}/{service}"));
        let pods: Vec<&str> = shared.iter().chain(&copies).map(String::as_str).collect();
        let lab = Lab::new(&[&pods[..], &[VISITOR, ALICES_SHELL]].concat())?;
        let ips = pods
            .iter()
            .map(|name| Ok(((*name).to_owned(), lab.cluster_ips(&lab.pod(name))?)))
            .collect::<Result<Vec<_>>>()?;
        let manifests = Manifests::new(&lab.folder().join("manifests"))?;
        put_objects(&manifests, &lab, &ips)?;
        let services = start_services(&lab, &ips)?;
        let program = agent_program(release)?;
        let options = agent::Options { program: Some(program), ..agent::Options::default() };
        interrupt::check()?;
        let agent = Agent::start(&lab, &manifests, &options)?;
        let town = Self { agent, services, manifests, ips, lab };
        DEVELOPERS.iter().try_for_each(|developer| town.divert(developer).map(drop))?;
        town.settle()?;
        Ok(town)
    }

    /// Waits until the Diverts show; after that they are expected to hold.
    fn settle(&self) -> Result<()> {
        // Before anybody asks anything: a gRPC connection made earlier would stay direct for as long as it is used.
        for (_, service) in COPIES {
            wait::until(&format!("connections to staging/{service} to be captured"), || {
                let captured = self
                    .connect(service)
                    .and_then(|http| script::is_captured(http.stream(), &self.lab.pod(VISITOR)));
                matches!(captured, Ok(Some(true)))
            })
            .with_context(|| self.agent.process().output())?;
        }
        for developer in DEVELOPERS {
            let shown = || {
                let way =
                    self.connect("api").and_then(|mut http| super::traffic::ask(&mut http, Some(developer)));
                way.is_ok_and(|way| super::Expected::from("api", Some(developer)).check(&way).is_ok())
            };
            wait::until(&format!("the Divert of {developer} to take effect"), shown)
                .with_context(|| self.agent.process().output())?;
        }
        let injected = || {
            let way = self
                .connect_from(ALICES_SHELL, "frontend")
                .and_then(|mut http| super::traffic::ask(&mut http, None));
            way.is_ok_and(|way| super::Expected::from("frontend", Some("alice")).check(&way).is_ok())
        };
        wait::until("alice's pods to get her key", injected).with_context(|| self.agent.process().output())
    }

    pub(super) fn describe(&self) -> String {
        let list = |developer: &str| {
            let own = COPIES.iter().filter(|(namespace, _)| *namespace == developer);
            own.map(|(_, service)| *service).collect::<Vec<_>>().join(" and ")
        };
        format!(
            "staging runs {}, which speaks gRPC; alice runs {}, bob {}. One agent, nothing in the pods.",
            CHAIN.join(" → "),
            list("alice"),
            list("bob")
        )
    }

    /// A connection from a pod of staging to a service of staging.
    pub(super) fn connect(&self, service: &str) -> Result<Http> {
        self.connect_from(VISITOR, service)
    }

    /// A connection from any pod to a service of staging.
    pub(super) fn connect_from(&self, pod: &str, service: &str) -> Result<Http> {
        interrupt::check()?;
        let to = address(&self.ips, &format!("staging/{service}"))?.address(Family::V4, PORT);
        let stream = self.lab.pod(pod).connect(to);
        Ok(Http::new(stream.with_context(|| format!("connecting to staging/{service} at {to}"))?))
    }

    pub(super) fn divert(&self, developer: &str) -> Result<Instant> {
        let mut divert = manifest::divert(developer, "staging");
        if developer == "alice" {
            divert["spec"]["hosts"] = [ALICES_HOST][..].into();
        }
        self.manifests.put(developer, &[divert])
    }

    pub(super) fn undivert(&self, developer: &str) -> Result<Instant> {
        self.manifests.remove(developer)
    }

    /// Ends everything in order, and returns the name that all of it carried.
    pub(super) fn close(mut self) -> Result<String> {
        let name = self.lab.name();
        for service in &mut self.services {
            ensure!(service.exited().is_none(), "a service ended by itself:\n{}", service.output());
        }
        self.agent.stop()?;
        Ok(name)
    }
}

fn put_objects(manifests: &Manifests, lab: &Lab, ips: &[(String, ClusterIps)]) -> Result<()> {
    let mut objects = vec![manifest::shared_namespace("staging")];
    objects.extend(DEVELOPERS.map(manifest::namespace));
    objects.extend(lab.pods().map(|pod| manifest::pod(pod)));
    objects.extend(ips.iter().filter_map(|(name, ips)| {
        let (namespace, service) = name.split_once('/')?;
        Some(manifest::service(namespace, service, *ips, &[Port::from(PORT).named("http")]))
    }));
    objects.push(manifest::ingress("staging", "previews", "*.example.com", "frontend"));
    manifests.put("objects", &objects).map(drop)
}

/// Every copy of a service calls the next one of staging: it does not know of any other.
fn start_services(lab: &Lab, ips: &[(String, ClusterIps)]) -> Result<Vec<Process>> {
    let me = std::env::current_exe().context("finding this program's own path")?;
    let mut services = Vec::new();
    for (name, _) in ips {
        interrupt::check()?;
        let service = name.split('/').next_back().unwrap_or_default();
        let mut command = Command::new(&me);
        command.args(["demo-service", "--name", name, "--port", &PORT.to_string()]);
        match CHAIN.iter().skip_while(|link| **link != service).nth(1) {
            Some(next) => {
                let address = address(ips, &format!("staging/{next}"))?.address(Family::V4, PORT);
                command.args(["--next", &address.to_string()]);
                command.args((Some(next) == CHAIN.last()).then_some("--next-grpc"));
            }
            None => drop(command.arg("--grpc")),
        }
        services.push(lab.pod(name).spawn(name, command)?);
    }
    services.iter().try_for_each(|service| service.wait_for_output("listening"))?;
    Ok(services)
}

fn address(ips: &[(String, ClusterIps)], name: &str) -> Result<ClusterIps> {
    let found = ips.iter().find(|(service, _)| service == name);
    found.map(|(_, ips)| *ips).with_context(|| format!("no service {name} in the demo"))
}

fn agent_program(release: bool) -> Result<PathBuf> {
    if !release {
        return agent::program();
    }
    let me = std::env::current_exe()?;
    let target = me.parent().and_then(|folder| folder.parent()).context("this program is in target/")?;
    Ok(target.join("release/divert-agent"))
}
