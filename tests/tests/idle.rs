//! correctness.md, Connection: ten thousand idle connections at once. A program of its own, as it needs
//! nearly all the descriptors that a process may have.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Result, ensure};
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::lab::Family;
use divert_tests::script::is_captured;
use divert_tests::server::accept;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn ten_thousand_idle_connections() -> Result<()> {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    // Both the agent and this test hold two sockets for each.
    let count = if hard.is_none_or(|hard| hard > 20_500) { 10_000 } else { 9_000 };
    let town = Fixture::new()?;
    let listener = town.server().listen_with_backlog(PORT, 4096)?;
    let agent = town.agent()?;
    let mut pairs: Vec<(TcpStream, TcpStream)> = Vec::with_capacity(count);
    for _ in 0..count {
        let client = town.client().connect(town.address(Family::V4))?;
        pairs.push((client, accept(&listener)?.0));
    }
    ensure!(is_captured(&pairs[0].0, &town.client())? == Some(true));
    // Upstreams are dialled in the order of the connections only by one worker: match them by what is said.
    for (number, (client, _)) in pairs.iter_mut().enumerate() {
        client.write_all(&[b"\0".as_slice(), &number.to_be_bytes()].concat())?;
    }
    let mut seen = vec![false; count];
    for (_, server) in &mut pairs {
        let mut bytes = [0; 9];
        server.read_exact(&mut bytes)?;
        let number = bytes[1..].iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
        ensure!(!std::mem::replace(&mut seen[number], true), "{number} came twice");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.process().pid()))?;
    let memory = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    eprintln!("{count} connections through an agent of {memory}");
    Ok(())
}
