//! Where it all happens: the pods, the servers, the agent, and the proxies in the client's pod.
//!
//! The proxies and the clients that use them are in a cgroup without hooks, or the proxies' own connections would
//! be captured. So is the client that goes direct.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{self, Agent};
use divert_tests::cgroup::Cgroup;
use divert_tests::http::Http;
use divert_tests::lab::{self, ClusterIps, Family, Lab, Pod};
use divert_tests::manifest::{self, Manifests, Port};
use divert_tests::process::{Place, Process};
use divert_tests::run::RunName;
use divert_tests::{usage, wait};

use super::contenders::{Contender, ROUTERS};
use super::load::Aim;
use super::parts::{LISTENING, SERVED_BY};
use super::programs::Programs;
use super::proxies::{self, Upstreams};
use crate::interrupt;

/// The pod of the clients.
const CLIENT: &str = "staging/client";
/// Who answers requests without a key.
pub(super) const SERVER: &str = "staging/web";
/// Who answers requests with alice's.
pub(super) const ALICES_SERVER: &str = "alice/web";
const HTTP1: u16 = 8080;
const HTTP2: u16 = 8081;

/// What a client speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// All that runs. Dropped, it is gone.
pub(super) struct Town {
    // Dropped in this order: listeners of proxies are not what an agent may leave.
    proxies: Vec<(Contender, Process)>,
    agent: Agent,
    _servers: Vec<Process>,
    manifests: Manifests,
    /// A cgroup without hooks.
    outside: Cgroup,
    web: ClusterIps,
    /// A service with the same server that nobody diverts.
    plain: ClusterIps,
    client: Arc<Pod>,
    lab: Lab,
    /// Resident memory of the agent when it was ready, in bytes.
    pub(super) idle_resident: u64,
}

impl Town {
    /// Makes it, with this agent, which is one contender or another.
    ///
    /// # Errors
    /// When a part cannot be started, or a contender does not route as it should.
    pub(super) fn new(programs: &Programs, agent: &Path, contender: Contender) -> Result<Self> {
        interrupt::check()?;
        let lab = Lab::new(&[CLIENT, SERVER, ALICES_SERVER])?;
        let outside = Cgroup::new(&RunName::next()?.to_string())?;
        let manifests = Manifests::new(&lab.folder().join("manifests"))?;
        let (web, plain) = (lab.cluster_ips(&lab.pod(SERVER))?, lab.cluster_ips(&lab.pod(SERVER))?);
        let alice = lab.cluster_ips(&lab.pod(ALICES_SERVER))?;
        let ports = [Port::from(HTTP1).named("http"), Port::from(HTTP2).named("grpc")];
        let mut objects = vec![
            manifest::shared_namespace("staging"),
            manifest::namespace("alice"),
            manifest::service("staging", "web", web, &ports),
            manifest::service("staging", "plain", plain, &ports),
            manifest::service("alice", "web", alice, &ports),
        ];
        objects.extend(lab.pods().map(|pod| manifest::pod(pod)));
        manifests.put("town", &objects)?;
        manifests.put("alice", &[manifest::divert("alice", "staging")])?;
        let servers = [SERVER, ALICES_SERVER].map(|name| start_server(programs, &lab, name));
        let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
        let mut options = agent_options(agent);
        if contender == Contender::Insert {
            options.arguments.extend(["--path", "insert"].map(str::to_owned));
        }
        let agent = Agent::start(&lab, &manifests, &options)?;
        let idle_resident = usage::resident(agent.process().pid())?;
        let client = lab.pod(CLIENT);
        let (proxies, _servers) = (Vec::new(), servers);
        let mut town =
            Self { agent, proxies, _servers, manifests, outside, web, plain, client, lab, idle_resident };
        town.start_proxies(programs)?;
        for contender in ROUTERS {
            if town.has(contender) {
                town.check(contender)?;
            }
        }
        Ok(town)
    }

    fn start_proxies(&mut self, programs: &Programs) -> Result<()> {
        let alice = self.lab.pod(ALICES_SERVER);
        let to = Upstreams {
            shared: self.web.address(Family::V4, HTTP1),
            alice: (alice.v4, HTTP1).into(),
            shared_h2: self.web.address(Family::V4, HTTP2),
            alice_h2: (alice.v4, HTTP2).into(),
        };
        for proxy in ROUTERS {
            if let Some(command) = proxies::command(proxy, programs, &to, self.lab.folder())? {
                let place = Place { cgroup: Some(self.outside.path()), ..self.client.place() };
                self.proxies.push((proxy, Process::spawn(proxy.name(), command, place)?));
            }
        }
        Ok(())
    }

    /// Waits until a contender answers, and makes sure that it tells keys from those that look alike.
    fn check(&self, contender: Contender) -> Result<()> {
        let to = self.aim(contender, Protocol::Http1).to;
        let mut last = String::new();
        let answers = wait::until(&format!("{} to route", contender.name()), || {
            interrupt::check().is_err()
                || match self.routes(contender, to) {
                    Ok(()) => true,
                    Err(error) => {
                        last = format!("{error:#}");
                        false
                    }
                }
        });
        interrupt::check()?;
        let output = self.proxies.iter().find(|it| it.0 == contender).map(|it| it.1.output());
        answers.with_context(|| format!("{last}\n{}", output.unwrap_or_default()))
    }

    fn routes(&self, contender: Contender, to: SocketAddr) -> Result<()> {
        let mut http = Http::new(self.connect(contender, to)?);
        for (baggage, by) in [
            (None, SERVER),
            (Some("okteto-divert=alice"), ALICES_SERVER),
            (Some("a=b, okteto-divert=alice;c=d"), ALICES_SERVER),
            (Some("okteto-divert=alice-feature"), SERVER),
        ] {
            let fields: Vec<_> = baggage.iter().map(|value| ("baggage", *value)).collect();
            let response = http.get("/", &fields)?;
            let answered = response.header(SERVED_BY).unwrap_or_else(|| response.text());
            ensure!(answered == by, "{baggage:?} was answered by {answered} and not by {by}");
        }
        Ok(())
    }

    /// A connection from the client's pod, as a contender's clients make theirs.
    ///
    /// # Errors
    /// Those of connect(2).
    pub(super) fn connect(&self, contender: Contender, to: SocketAddr) -> Result<TcpStream> {
        let client = &self.client;
        let stream = match contender {
            Contender::Divert | Contender::Insert | Contender::Before | Contender::NotCaptured => {
                client.connect(to)
            }
            _ => client
                .netns()
                .enter(|| TcpStream::connect_timeout(&to, wait::PATIENCE))?
                .and_then(lab::patient),
        };
        stream.with_context(|| format!("connecting to {} at {to}", contender.name()))
    }

    /// Where the clients of a contender are and what they connect to.
    pub(super) fn aim(&self, contender: Contender, protocol: Protocol) -> Aim<'_> {
        let service = |ips: &ClusterIps| {
            let port = if protocol == Protocol::Http1 { HTTP1 } else { HTTP2 };
            ips.address(Family::V4, port)
        };
        let client = self.client.place();
        let outside = Place { cgroup: Some(self.outside.path()), ..client };
        let (to, place) = match contender {
            Contender::Direct => (service(&self.web), outside),
            Contender::NotCaptured => (service(&self.plain), client),
            Contender::Divert | Contender::Insert | Contender::Before => (service(&self.web), client),
            Contender::Nginx | Contender::Haproxy | Contender::Envoy => {
                let (http1, http2) = proxies::ports(contender).unwrap_or_default();
                let port = if protocol == Protocol::Http1 { http1 } else { http2 };
                (SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port), outside)
            }
        };
        let routes = !matches!(contender, Contender::Direct | Contender::NotCaptured);
        Aim { to, place, routes, folder: self.lab.folder() }
    }

    /// Whether a contender runs here; the agent does, whichever version it is.
    pub(super) fn has(&self, contender: Contender) -> bool {
        proxies::ports(contender).is_none() || self.proxies.iter().any(|it| it.0 == contender)
    }

    /// The process that does a contender's work.
    pub(super) fn pid(&self, contender: Contender) -> Option<u32> {
        match contender {
            Contender::Divert | Contender::Insert | Contender::Before => Some(self.agent.process().pid()),
            _ => self.proxies.iter().find(|it| it.0 == contender).map(|it| it.1.pid()),
        }
    }

    /// Its manifests: `alice` has her Divert.
    pub(super) fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// Ends everything in order.
    ///
    /// # Errors
    /// When something ended by itself, or the agent leaves anything.
    pub(super) fn close(mut self) -> Result<()> {
        for (proxy, process) in &mut self.proxies {
            ensure!(process.exited().is_none(), "{} ended by itself:\n{}", proxy.name(), process.output());
        }
        self.proxies.clear();
        self.agent.stop()?;
        Ok(())
    }
}

/// One worker, as all contenders. To the agent the proxies' connections look like some that are older than their
/// capture: it is not to close them.
pub(super) fn agent_options(program: &Path) -> agent::Options {
    agent::Options {
        program: Some(PathBuf::from(program)),
        workers: 1,
        arguments: ["--reconnect-idle", "86400"].map(str::to_owned).to_vec(),
        ..agent::Options::default()
    }
}

fn start_server(programs: &Programs, lab: &Lab, name: &str) -> Result<Process> {
    let mut server = programs.part("server");
    server.args(["--name", name, "--http1", &HTTP1.to_string(), "--http2", &HTTP2.to_string()]);
    let process = lab.pod(name).spawn(name, server)?;
    process.wait_for_output(LISTENING)?;
    Ok(process)
}
