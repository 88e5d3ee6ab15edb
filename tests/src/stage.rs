//! A town whose servers are the test's own: it accepts their connections, and plays every end itself.

use std::net::TcpListener;

use anyhow::{Result, bail};

use crate::agent::{Agent, Options};
use crate::fixture::{Fixture, PORT};
use crate::lab::Family;
use crate::peer::Peer;
use crate::server;

/// The town of [`Fixture`] with an agent, where the test listens for `staging/web` and `alice/web`.
#[derive(Debug)]
pub struct Stage {
    /// The agent.
    pub agent: Agent,
    /// Connections to the original destination: one comes with each client.
    pub shared: TcpListener,
    /// Connections to alice's service: one comes when a request is hers.
    pub alices: TcpListener,
    /// The town.
    pub town: Fixture,
}

impl Stage {
    /// Sets it up.
    ///
    /// # Errors
    /// When the kernel refuses a part, or the agent does not become ready.
    pub fn new() -> Result<Self> {
        Self::of(Fixture::new()?)
    }

    /// Sets it up with an agent that splices, whatever path others take.
    ///
    /// # Errors
    /// When the kernel refuses a part, or the agent does not become ready.
    pub fn spliced() -> Result<Self> {
        Self::with(Fixture::new()?, &Options::spliced())
    }

    /// Sets it up where the port is declared to be of HTTP/2, so that its connections go through the agent from their first
    /// byte on.
    ///
    /// # Errors
    /// When the kernel refuses a part, or the agent does not become ready.
    pub fn http2() -> Result<Self> {
        Self::of(Fixture::http2()?)
    }

    /// Sets it up in a town that is made.
    ///
    /// # Errors
    /// When the kernel refuses a part, or the agent does not become ready.
    pub fn of(town: Fixture) -> Result<Self> {
        Self::with(town, &Options::default())
    }

    fn with(town: Fixture, options: &Options) -> Result<Self> {
        let shared = town.server().listen(PORT)?;
        let alices = town.lab.pod("alice/web").listen(PORT)?;
        let agent = Agent::start(&town.lab, &town.manifests, options)?;
        Ok(Self { agent, shared, alices, town })
    }

    /// A client, and the connection to the original destination that is opened with it.
    ///
    /// # Errors
    /// When one of them does not come about.
    pub fn connect(&self) -> Result<(Peer, Peer)> {
        let client = Peer::new(self.town.client().connect(self.town.address(Family::V4))?);
        Ok((client, Peer::accept_original(&self.shared)?))
    }

    /// The next connection to alice.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn alice(&self) -> Result<Peer> {
        Peer::accept(&self.alices)
    }

    /// A connection to alice that is there already.
    pub fn try_alice(&self) -> Option<Peer> {
        server::try_accept(&self.alices).map(Peer::new)
    }

    /// A connection to the original destination that is there already.
    pub fn try_shared(&self) -> Option<Peer> {
        server::try_accept(&self.shared).map(Peer::new)
    }

    /// Fails when somebody has connected to alice who was not accepted yet. To be asked when all that could
    /// lead there is over.
    ///
    /// # Errors
    /// Naming who it is.
    pub fn expect_no_alice(&self) -> Result<()> {
        match self.try_alice() {
            None => Ok(()),
            Some(peer) => bail!("nobody is to reach alice, and {:?} did", peer.stream().peer_addr()),
        }
    }
}
