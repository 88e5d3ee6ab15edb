//! The town most tests play in: `staging` runs `client` and `web`, `alice` and `bob` run a `web` of
//! their own, and each service has cluster IPs with one port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::agent::{Agent, Options};
use crate::http::Http;
use crate::lab::{ClusterIps, Family, Lab, Pod};
use crate::manifest::{self, Manifests, Port};
use crate::server::Echo;

/// The port of every service. It has no name and no declared protocol, so it may carry anything.
pub const PORT: u16 = 8080;

/// The header field that sends a request to alice.
pub const ALICE: (&str, &str) = ("baggage", "okteto-divert=alice");
/// The header field that sends a request to bob.
pub const BOB: (&str, &str) = ("baggage", "okteto-divert=bob");

/// A lab, its manifests, and the address of `staging/web`.
#[derive(Debug)]
pub struct Fixture {
    /// The manifests: `town` holds everything but Diverts, `alice` her Divert.
    pub manifests: Manifests,
    /// Cluster IPs of `staging/web`.
    pub web: ClusterIps,
    /// Cluster IPs of `alice/web` and `bob/web`.
    pub developers: [ClusterIps; 2],
    /// The network.
    pub lab: Lab,
}

const PODS: [&str; 4] = ["staging/client", "staging/web", "alice/web", "bob/web"];

impl Fixture {
    /// A town where alice diverts and bob does not. No server runs, and no agent.
    ///
    /// # Errors
    /// When the kernel refuses a part of it.
    pub fn new() -> Result<Self> {
        Self::with_pods(&[])
    }

    /// The same where the port of every service is declared to be of HTTP/2.
    ///
    /// # Errors
    /// When the kernel refuses a part of it.
    pub fn http2() -> Result<Self> {
        Self::http2_with_pods(&[])
    }

    /// A town with more pods, where the port of every service is declared to be of HTTP/2.
    ///
    /// # Errors
    /// When the kernel refuses a part of it.
    pub fn http2_with_pods(more: &[&str]) -> Result<Self> {
        let town = Self::with_pods(more)?;
        town.put_town(&[Port::from(PORT).app_protocol("kubernetes.io/h2c")])?;
        Ok(town)
    }

    /// A town with more pods.
    ///
    /// # Errors
    /// When the kernel refuses a part of it.
    pub fn with_pods(more: &[&str]) -> Result<Self> {
        let pods: Vec<_> = PODS.iter().chain(more).copied().collect();
        let lab = Lab::new(&pods)?;
        let manifests = Manifests::new(&lab.folder().join("manifests"))?;
        let web = lab.cluster_ips(&lab.pod("staging/web"))?;
        let developers = [lab.cluster_ips(&lab.pod("alice/web"))?, lab.cluster_ips(&lab.pod("bob/web"))?];
        let town = Self { manifests, web, developers, lab };
        town.put_town(&[PORT.into()])?;
        town.divert("alice")?;
        Ok(town)
    }

    /// Writes everything but Diverts, with these ports for every service.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_town(&self, ports: &[Port]) -> Result<Instant> {
        self.manifests.put("town", &self.objects(ports))
    }

    /// Everything but Diverts.
    pub fn objects(&self, ports: &[Port]) -> Vec<Value> {
        let mut objects = vec![
            manifest::shared_namespace("staging"),
            manifest::namespace("alice"),
            manifest::namespace("bob"),
            manifest::service("staging", "web", self.web, ports),
            manifest::service("alice", "web", self.developers[0], ports),
            manifest::service("bob", "web", self.developers[1], ports),
        ];
        objects.extend(self.lab.pods().map(|pod| manifest::pod(pod)));
        objects
    }

    /// Gives a namespace a Divert to staging.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn divert(&self, namespace: &str) -> Result<Instant> {
        self.manifests.put(namespace, &[manifest::divert(namespace, "staging")])
    }

    /// Takes a namespace's Divert away.
    ///
    /// # Errors
    /// When it has none.
    pub fn undivert(&self, namespace: &str) -> Result<Instant> {
        self.manifests.remove(namespace)
    }

    /// Starts an agent and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn agent(&self) -> Result<Agent> {
        Agent::start(&self.lab, &self.manifests, &Options::default())
    }

    /// Starts a server in each pod named `web`: of staging, alice and bob, in that order.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn servers(&self) -> Result<[Echo; 3]> {
        let start = |namespace: &str| Echo::start(&self.lab.pod(&format!("{namespace}/web")), PORT);
        Ok([start("staging")?, start("alice")?, start("bob")?])
    }

    /// The pod that requests come from.
    pub fn client(&self) -> Arc<Pod> {
        self.lab.pod("staging/client")
    }

    /// The pod behind `staging/web`.
    pub fn server(&self) -> Arc<Pod> {
        self.lab.pod("staging/web")
    }

    /// The address of `staging/web`.
    pub fn address(&self, family: Family) -> SocketAddr {
        self.web.address(family, PORT)
    }

    /// Connects from the client to `staging/web`.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn connect(&self) -> Result<Http> {
        self.connect_by(Family::V4)
    }

    /// Connects from the client to `staging/web` by one family.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn connect_by(&self, family: Family) -> Result<Http> {
        let to = self.address(family);
        let stream = self.client().connect(to).with_context(|| format!("connecting to {to}"))?;
        Ok(Http::new(stream))
    }
}
