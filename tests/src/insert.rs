//! What tests of insertion have in common: an agent that inserts, who answers, what was taken over, and how the kernel sees a
//! connection.

use std::net::TcpStream;
use std::{fs, io};

use anyhow::{Context, Result};

use crate::agent::{Agent, Options};
use crate::fixture::Fixture;
use crate::http::Http;
use crate::lab::Pod;
use crate::traces;
use crate::usage::tcp_info;

/// Who answers requests without a key.
pub const SHARED: &str = "staging/web";
/// Who answers those with alice's.
pub const ALICES: &str = "alice/web";
/// Who answers those with bob's.
pub const BOBS: &str = "bob/web";

/// How an agent is started that inserts.
pub fn options() -> Options {
    Options { arguments: vec!["--path".into(), "insert".into()], ..Options::default() }
}

/// Starts an agent that inserts, and waits until it is ready.
///
/// # Errors
/// When it does not become ready.
pub fn agent(town: &Fixture) -> Result<Agent> {
    Agent::start(&town.lab, &town.manifests, &options())
}

/// Who answers a request.
///
/// # Errors
/// When nobody does, or the agent.
pub fn answered(http: &mut Http, fields: &[(&str, &str)]) -> Result<String> {
    let response = http.get("/", fields)?;
    response
        .served_by()
        .with_context(|| format!("answered by the agent: {} {}", response.status, response.text()))
}

/// What has become of connections that were watched: `divert_takeovers_total` by result.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Takeovers {
    /// Handed to the agent.
    pub taken: u64,
    /// For lack of room, to be tried again.
    pub tried_again: u64,
    /// Reset, as something else was under way.
    pub busy: u64,
    /// Reset, as the server said more.
    pub late: u64,
    /// Reset, as the agent could not put its socket in.
    pub failed: u64,
}

impl Takeovers {
    /// So far.
    ///
    /// # Errors
    /// When the agent does not tell.
    pub fn of(agent: &Agent) -> Result<Self> {
        let metrics = agent.get("/metrics")?.text();
        let of = |result: &str| {
            let series = format!("divert_takeovers_total{{result=\"{result}\"}} ");
            let value = metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok());
            value.map(|it| it as u64).with_context(|| format!("no {series}"))
        };
        Ok(Self {
            taken: of("taken")?,
            tried_again: of("tried_again")?,
            busy: of("reset_busy")?,
            late: of("reset_late")?,
            failed: of("reset_failed").unwrap_or(0),
        })
    }

    /// So many taken over, and no other result.
    pub fn taken(taken: u64) -> Self {
        Self { taken, ..Self::default() }
    }
}

/// Sets a sysctl of a pod's namespace, by its path below net.
///
/// # Errors
/// When there is none of that name.
pub fn set(pod: &Pod, name: &str, value: &str) -> Result<()> {
    // What is below /proc/sys/net depends on the namespace of the thread that opens it.
    let written = pod.netns().enter(|| fs::write(format!("/proc/sys/net/{name}"), value))?;
    written.with_context(|| format!("setting net.{name} in {}", pod.name()))
}

/// Sockets of a pod's that have one of its ports and another end, by state as the kernel numbers it: ESTABLISHED is 1,
/// TIME_WAIT 6, CLOSE_WAIT 8.
///
/// # Errors
/// When the namespace cannot be looked at.
pub fn states(pod: &Pod, port: u16) -> Result<Vec<u8>> {
    const LISTEN: u8 = 10;
    let mut states = Vec::new();
    for table in ["tcp", "tcp6"] {
        let sockets = traces::read(pod, table)?;
        states.extend(sockets.lines().skip(1).filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (_, local) = fields.next()?.rsplit_once(':')?;
            let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
            (u16::from_str_radix(local, 16).ok()? == port && state != LISTEN).then_some(state)
        }));
    }
    Ok(states)
}

/// Some of `struct tcp_info` (linux/tcp.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Info {
    /// Whether timestamps, selective acknowledgements and window scaling were agreed on.
    pub timestamps: bool,
    /// See `timestamps`.
    pub selective: bool,
    /// See `timestamps`.
    pub scaled: bool,
    /// Longest segment that was received lately.
    pub received_segment: u32,
    /// Segments that were sent again.
    pub retransmitted: u32,
    /// Bytes of data received.
    pub received: u64,
}

impl Info {
    /// What the kernel says of a connection.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn of(stream: &TcpStream) -> io::Result<Self> {
        let info = tcp_info::<160>(stream)?;
        let u32_at = |at: usize| info[at..].first_chunk().map_or(0, |it| u32::from_ne_bytes(*it));
        let u64_at = |at: usize| info[at..].first_chunk().map_or(0, |it| u64::from_ne_bytes(*it));
        let options = info[5];
        Ok(Self {
            timestamps: options & 1 != 0,
            selective: options & 2 != 0,
            scaled: options & 4 != 0,
            received_segment: u32_at(20),
            retransmitted: u32_at(100),
            received: u64_at(128),
        })
    }
}
