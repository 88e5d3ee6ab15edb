//! Where it is played: three services of staging, copies of alice and bob, one agent.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result};
use divert_common::label::{Label, LabelRanges};
use socket2::Socket;

use super::Plan;
use crate::agent::{Agent, Options};
use crate::fixture::Fixture;
use crate::http::Http;
use crate::lab::{ClusterIps, Family, Pod};
use crate::manifest::{self, Port};
use crate::wait;

/// Where services speak HTTP/1.
pub(super) const HTTP: u16 = 8080;
/// Where services speak HTTP/2.
pub(super) const HTTP2: u16 = 8082;
/// Where services speak a protocol of their own, server first. May be HTTP by its number, so it is captured.
pub(super) const TALK: u16 = 8090;
/// Of no Service, so that it is not captured: HTTP/1 of `staging/web` past the agent.
pub(super) const ASIDE: u16 = 9000;

/// The lab with the agent in it.
#[derive(Debug)]
pub(super) struct Town {
    // Dropped in this order.
    pub(super) agent: Agent,
    /// Listeners of `staging/deaf`, with what fills their queues.
    _deaf: [(TcpListener, Vec<Socket>); 2],
    odd: ClusterIps,
    deaf: ClusterIps,
    pub(super) fixture: Fixture,
}

/// What players need to know of it.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// Regular clients are here.
    pub(super) client: Arc<Pod>,
    /// Most of the rogue clients are here; some are beside the regular ones.
    pub(super) rogue: Arc<Pod>,
    pub(super) bob: Arc<Pod>,
    pub(super) odd: Arc<Pod>,
    web: ClusterIps,
    odd_ips: ClusterIps,
    deaf_ips: ClusterIps,
    /// `staging/web` past the agent.
    pub(super) aside: SocketAddr,
    /// The port of the agent's listener in each of the two pods of clients.
    listeners: [u16; 2],
}

impl Town {
    pub(super) fn new(plan: &Plan) -> Result<Self> {
        let more = ["staging/rogue", "staging/odd", "staging/deaf", "bob/odd", "bob/deaf", "alice/deaf"];
        let fixture = Fixture::with_pods(&more)?;
        let ports =
            [Port::from(HTTP).named("http"), Port::from(HTTP2).named("grpc"), Port::from(TALK).named("any")];
        fixture.put_town(&ports)?;
        fixture.divert("bob")?;
        let mut services = Vec::new();
        let mut service = |name: &str| -> Result<ClusterIps> {
            let (namespace, short) = name.split_once('/').context("pods have a namespace")?;
            let ips = fixture.lab.cluster_ips(&fixture.lab.pod(name))?;
            services.push(manifest::service(namespace, short, ips, &ports));
            Ok(ips)
        };
        let (odd, deaf) = (service("staging/odd")?, service("staging/deaf")?);
        // Developers have them too, so they are captured.
        service("bob/odd")?;
        service("bob/deaf")?;
        service("alice/deaf")?;
        fixture.manifests.put("odd", &services)?;
        let deaf_pod = fixture.lab.pod("staging/deaf");
        let deaf_servers = [deaf_server(&deaf_pod, HTTP)?, deaf_server(&deaf_pod, HTTP2)?];
        // One worker: whoever holds it up holds all up.
        let options = Options { workers: 1, program: plan.program.clone(), ..Options::default() };
        let agent = Agent::start(&fixture.lab, &fixture.manifests, &options)?;
        Ok(Self { agent, _deaf: deaf_servers, odd, deaf, fixture })
    }

    /// Waits until the servers are there and each key leads to its own.
    pub(super) fn first_answers(&self) -> Result<()> {
        for (key, by) in [(None, "staging/web"), (Some("alice"), "alice/web")] {
            let answered = || -> Result<Option<String>> {
                let stream = self.fixture.client().connect(self.fixture.web.address(Family::V4, HTTP))?;
                let key = key.map(|key| ("baggage", format!("okteto-divert={key}")));
                let fields: Vec<_> = key.iter().map(|(name, value)| (*name, value.as_str())).collect();
                Ok(Http::new(stream).get("/", &fields)?.served_by())
            };
            wait::until(&format!("{by} to answer"), || answered().is_ok_and(|it| it.as_deref() == Some(by)))?;
        }
        Ok(())
    }

    pub(super) fn places(&self) -> Result<Places> {
        let lab = &self.fixture.lab;
        let (client, rogue) = (self.fixture.client(), lab.pod("staging/rogue"));
        let listener = |pod: &Pod| -> Result<u16> {
            let traces = self.agent.traces_in(pod)?;
            let port = traces.iter().find_map(|it| it.strip_prefix("listener 0100007F:"));
            Ok(u16::from_str_radix(port.context("the agent listens on 127.0.0.1 of each pod")?, 16)?)
        };
        Ok(Places {
            listeners: [listener(&client)?, listener(&rogue)?],
            client,
            rogue,
            bob: lab.pod("bob/web"),
            odd: lab.pod("staging/odd"),
            web: self.fixture.web,
            odd_ips: self.odd,
            deaf_ips: self.deaf,
            aside: (self.fixture.server().v4, ASIDE).into(),
        })
    }
}

impl Places {
    pub(super) fn web(&self, family: Family, port: u16) -> SocketAddr {
        self.web.address(family, port)
    }

    pub(super) fn odd(&self, family: Family, port: u16) -> SocketAddr {
        self.odd_ips.address(family, port)
    }

    pub(super) fn deaf(&self, family: Family, port: u16) -> SocketAddr {
        self.deaf_ips.address(family, port)
    }

    /// How the journal names clients at these addresses.
    pub(super) fn words(&self, addresses: &[SocketAddr]) -> Vec<String> {
        let name = |address: &SocketAddr| {
            let ip = address.ip().to_canonical();
            let pod = [&self.client, &self.rogue].into_iter().find(|pod| ip == pod.v4 || ip == pod.v6)?;
            Some(client_name(pod, address.port()))
        };
        addresses.iter().filter_map(name).collect()
    }

    /// A pod of clients, and the address of a label in there: of one that is in use, mostly.
    pub(super) fn label(&self, random: &mut fastrand::Rng) -> (Arc<Pod>, SocketAddr) {
        let (pod, port) = match random.bool() {
            true => (&self.client, self.listeners[0]),
            false => (&self.rogue, self.listeners[1]),
        };
        let index = if random.u8(..4) == 0 { random.u32(..1 << 22) } else { random.u32(..24) };
        let label = Label::new(index).unwrap_or_else(|| unreachable!("labels have 22 bits"));
        let ranges = LabelRanges::default();
        let ip: IpAddr = if random.bool() { ranges.v4(label).into() } else { ranges.v6(label).into() };
        (Arc::clone(pod), (ip, port).into())
    }
}

/// How the journal names a client.
pub(super) fn client_name(pod: &Pod, port: u16) -> String {
    format!("from {} :{port} to", pod.name())
}

/// A listener whose queue is full: Linux drops further SYNs, as a host does that is gone.
fn deaf_server(pod: &Pod, port: u16) -> Result<(TcpListener, Vec<Socket>)> {
    let listener = pod.listen_with_backlog(port, 0)?;
    let fill = |family| -> Result<Socket> {
        let socket = pod.socket(family)?;
        socket.set_nonblocking(true)?;
        // In progress, or refused one day: either way it has its place in the queue.
        let _ = socket.connect(&SocketAddr::new(pod.ip(family), port).into());
        Ok(socket)
    };
    let queued = (0..4).map(|_| fill(Family::V4)).collect::<Result<Vec<_>>>()?;
    let full = || -> Result<bool> {
        let socket = pod.socket(Family::V4)?;
        let to = SocketAddr::new(pod.ip(Family::V4), port);
        let connected = socket.connect_timeout(&to.into(), std::time::Duration::from_millis(100));
        drop(TcpStream::from(socket));
        Ok(connected.is_err())
    };
    wait::until("the queue of the deaf service to be full", || full().unwrap_or(false))?;
    Ok((listener, queued))
}
