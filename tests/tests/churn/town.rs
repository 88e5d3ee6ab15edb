//! What changes: two developers, each with a `web` of several endpoints, a host and a pod that calls.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::lab::{ClusterIps, Family, Pod};
use divert_tests::manifest;
use divert_tests::server::Echo;
use serde_json::{Value, json};

use super::timeline::{self, May, State};

pub(crate) const DEVELOPERS: [&str; 2] = ["alice", "bob"];
/// Of each developer's service.
pub(crate) const ENDPOINTS: usize = 3;

/// The host whose requests get a developer's key.
pub(crate) fn host(developer: &str) -> String {
    format!("web-{developer}.example.com")
}

/// A developer's Divert and service.
pub(crate) struct Developer {
    name: &'static str,
    pub(crate) diverts: bool,
    pub(crate) injects: bool,
    pub(crate) has_host: bool,
    pub(crate) endpoints: [Endpoint; ENDPOINTS],
}

/// An endpoint, and the pod behind it.
pub(crate) struct Endpoint {
    /// None: it is in no slice.
    pub(crate) ready: Option<bool>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) server: Echo,
}

impl Developer {
    /// How things are.
    pub(crate) fn state(&self) -> timeline::Developer {
        let numbers = (0..ENDPOINTS).filter(|number| self.endpoints[*number].ready == Some(true));
        timeline::Developer {
            web: if self.diverts { May::endpoints(numbers) } else { May::SHARED },
            from_pods: (self.diverts && self.injects).into(),
            host: (self.diverts && self.has_host).into(),
        }
    }

    fn divert(&self) -> Value {
        let mut divert = manifest::divert(self.name, "staging");
        divert["spec"]["inject"] = json!(if self.injects { "FromPods" } else { "None" });
        if self.has_host {
            divert["spec"]["hosts"] = json!([host(self.name)]);
        }
        divert
    }

    /// By hand, so that they can be unready. A service without endpoints has slices that say so.
    fn slices(&self) -> impl Iterator<Item = Value> {
        let of_family = |is_v4: bool| {
            let endpoints = self.endpoints.iter().filter_map(|it| {
                let ip: IpAddr = if is_v4 { it.pod.v4.into() } else { it.pod.v6.into() };
                Some((ip, it.ready?))
            });
            let suffix = if is_v4 { "v4" } else { "v6" };
            let mut slice =
                manifest::endpoint_slice(self.name, "web", suffix, &endpoints.collect::<Vec<_>>(), PORT);
            slice["addressType"] = json!(if is_v4 { "IPv4" } else { "IPv6" });
            slice
        };
        [true, false].into_iter().map(of_family)
    }
}

/// The usual town, what changes in it, and a service that tells when a change is in effect.
///
/// That service is `marker` of the namespace `mark`, whose one endpoint is ready at every other change. All that
/// changes is in one file with it, so it is one step of the plan, whose targets change in order of their
/// addresses: the cluster IP of `staging/marker` is the highest, so it comes last.
pub(crate) struct Town {
    pub(crate) fixture: Fixture,
    pub(crate) developers: [Developer; 2],
    /// Of `mark/marker`, and of `staging/marker`.
    markers: [ClusterIps; 2],
    changes: usize,
    _shared: Echo,
    _marker: Echo,
}

impl Town {
    /// Both developers divert, and all is ready.
    pub(crate) fn new() -> Result<Self> {
        let fixture = Fixture::with_pods(&[
            "staging/cron",
            "staging/batch",
            "alice/web1",
            "alice/web2",
            "alice/dev",
            "bob/web1",
            "bob/web2",
            "bob/dev",
            "mark/marker",
        ])?;
        // Diverts are with the rest here.
        fixture.undivert("alice")?;
        let endpoint = |name: String| -> Result<Endpoint> {
            let pod = fixture.lab.pod(&name);
            Ok(Endpoint { ready: Some(true), server: Echo::start(&pod, PORT)?, pod })
        };
        let developer = |name: &'static str| -> Result<Developer> {
            Ok(Developer {
                name,
                diverts: true,
                injects: true,
                has_host: true,
                endpoints: [
                    endpoint(format!("{name}/web"))?,
                    endpoint(format!("{name}/web1"))?,
                    endpoint(format!("{name}/web2"))?,
                ],
            })
        };
        let town = Self {
            developers: [developer("alice")?, developer("bob")?],
            markers: [
                fixture.lab.cluster_ips(&fixture.lab.pod("mark/marker"))?,
                fixture.lab.cluster_ips(&fixture.server())?,
            ],
            changes: 0,
            _shared: Echo::start(&fixture.server(), PORT)?,
            _marker: Echo::start(&fixture.lab.pod("mark/marker"), PORT)?,
            fixture,
        };
        town.put()?;
        Ok(town)
    }

    /// How things are while an agent serves.
    pub(crate) fn state(&self) -> State {
        State { developers: [0, 1].map(|who| self.developers[who].state()), gap: false, ending: false }
    }

    /// Makes the manifests say what things have come to.
    pub(crate) fn change(&mut self) -> Result<()> {
        self.changes += 1;
        self.put()
    }

    fn put(&self) -> Result<()> {
        let mut objects = self.fixture.objects(&[PORT.into()]);
        for developer in &self.developers {
            objects.extend(developer.slices());
            objects.extend(developer.diverts.then(|| developer.divert()));
        }
        let marker = self.fixture.lab.pod("mark/marker");
        // Its own pod is not to keep the capture set alive that pods of developers share.
        let mut divert = manifest::divert("mark", "staging");
        divert["spec"]["inject"] = json!("None");
        objects.extend([
            manifest::service("staging", "marker", self.markers[1], &[PORT.into()]),
            manifest::namespace("mark"),
            divert,
            manifest::service("mark", "marker", self.markers[0], &[PORT.into()]),
            manifest::endpoint_slice("mark", "marker", "v4", &[(marker.v4.into(), self.is_marked())], PORT),
        ]);
        self.fixture.manifests.put("town", &objects).map(drop)
    }

    fn is_marked(&self) -> bool {
        self.changes.is_multiple_of(2)
    }

    /// Whether an answer shows that the last change is in effect.
    pub(crate) fn shows(&self) -> bool {
        let to = self.markers[1].address(Family::V6, PORT);
        let mark = [("baggage", "okteto-divert=mark")];
        let connected = self.fixture.client().connect(to);
        let answer = connected.map_err(Into::into).and_then(|stream| Http::new(stream).get("/", &mark));
        answer.is_ok_and(|response| match self.is_marked() {
            true => response.served_by().as_deref() == Some("mark/marker"),
            false => response.status == 503,
        })
    }
}
