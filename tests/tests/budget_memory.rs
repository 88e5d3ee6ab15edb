//! An agent with all that its budgets allow, under the limit of memory that the chart gives it.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::lab::{Family, Pod};
use divert_tests::memory::Limited;
use divert_tests::run::RunName;
use divert_tests::server::Echo;
use divert_tests::{usage, wait};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections of each pod: together somewhat fewer than 20,000 open files have room for, which is what there is on many
/// machines.
const OF_POD: usize = 2200;
/// ... of which these send heads that do not end, for `--max-pod-held`.
const HEADS: usize = 700;
const MEBI: u64 = 1 << 20;

/// The sum in values.yaml, without what the kernel takes back where the limit comes near.
const fn limit(connections: u64) -> u64 {
    128 * MEBI + connections * (48 << 10) + 256 * MEBI + 256 * MEBI
}
/// What a connection is sent each way, which is more than a block and two sockets take.
const SENT: usize = 128 << 10;

/// Buffers of the kernel as small as can be: it is the agent's that are to fill.
fn small_buffers(pod: &Pod) -> Result<()> {
    pod.netns().enter(|| {
        for name in ["tcp_rmem", "tcp_wmem"] {
            fs::write(format!("/proc/sys/net/ipv4/{name}"), "4096 8192 8192")?;
        }
        Ok::<_, std::io::Error>(())
    })??;
    Ok(())
}

/// One end of a connection, and what it has to say.
struct End {
    stream: TcpStream,
    says: Arc<[u8]>,
    sent: usize,
}

impl End {
    fn new(stream: TcpStream, says: &Arc<[u8]>) -> Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, says: Arc::clone(says), sent: 0 })
    }

    /// Sends as much as is taken; whether that was any.
    fn fill(&mut self) -> bool {
        // Who is answered that no more is held may be cut off while it sends.
        let sent = (&self.stream).write(&self.says[self.sent..]).unwrap_or(0);
        self.sent += sent;
        sent > 0
    }
}

#[test]
fn load_within_the_budgets_does_not_reach_the_charts_limit_of_memory() -> Result<()> {
    let values = fs::read_to_string(divert_tests::chart::folder().join("values.yaml"))?;
    ensure!(values.contains("limits: {memory: 2Gi}"), "the chart's limit is another one");
    ensure!(limit(16_384) + 640 * MEBI == 2 << 30, "and has another sum");
    let files = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files })?;

    let names = ["staging/one", "staging/two", "staging/three", "staging/four"];
    let town = Fixture::with_pods(&names)?;
    let alice = town.lab.pod("alice/web");
    let pods = names.map(|name| town.lab.pod(name));
    pods.iter().chain([&alice]).try_for_each(|pod| small_buffers(pod))?;
    let listener = alice.listen_with_backlog(PORT, 4096)?;
    listener.set_nonblocking(true)?;

    let limited = Limited::new(&RunName::next()?.to_string(), limit(4 * OF_POD as u64))?;
    let agent = Agent::start(&town.lab, &town.manifests, &Options::default())?;
    let before = usage::resident(agent.process().pid())?;
    limited.add(agent.process().pid())?;

    let answer: Arc<[u8]> =
        [&b"HTTP/1.1 200 OK\r\nContent-Length: 60000000\r\n\r\n"[..], &vec![b'y'; SENT]].concat().into();
    // Nobody asks the shared copy, which is there all the same.
    let _shared = Echo::start(&town.server(), PORT)?;
    let done = Arc::new(AtomicBool::new(false));
    let servers = std::thread::spawn({
        let done = Arc::clone(&done);
        move || -> Result<()> {
            let mut held = Vec::new();
            while !done.load(Ordering::Acquire) {
                match listener.accept() {
                    Ok((stream, _)) => held.push(End::new(stream, &answer)?),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        for end in &mut held {
                            end.fill();
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        }
    });

    let upload =
        "POST / HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\nContent-Length: 60000000\r\n\r\n";
    let upload: Arc<[u8]> = [upload.as_bytes(), &vec![b'x'; SENT]].concat().into();
    let head: Arc<[u8]> =
        format!("GET / HTTP/1.1\r\nHost: web\r\nX-Long: {}", "x".repeat(100 << 10)).into_bytes().into();
    let mut clients = Vec::new();
    for at in 0..OF_POD {
        for pod in &pods {
            let stream = pod.connect(town.address(Family::V4)).context("connecting")?;
            let mut client = End::new(stream, if at < HEADS { &head } else { &upload })?;
            client.fill();
            clients.push(client);
        }
    }
    // Until the queues of all are full.
    let mut quiet = 0;
    wait::until("nobody to take any more", || {
        let moved = clients.iter_mut().filter_map(|client| client.fill().then_some(())).count();
        quiet = if moved == 0 { quiet + 1 } else { 0 };
        quiet > 20
    })?;
    let active = agent.metric("divert_connections_active")?;
    let (grown, peak) = (usage::resident(agent.process().pid())? - before, limited.peak()?);
    let held = agent.metric("divert_held_bytes")?;
    eprintln!(
        "{active} connections, {} MiB held: {} MiB more of its own, {} MiB charged at most",
        held as u64 >> 20,
        grown >> 20,
        peak >> 20
    );
    // Who sends a head over the budget is answered, and may be gone.
    ensure!(active > (4 * (OF_POD - HEADS)) as f64, "{active} connections");
    ensure!(held > (150 * MEBI) as f64, "{held} bytes are held");
    ensure!(limited.kills()? == 0 && peak < limit(active as u64), "{peak} bytes");
    drop(clients);
    // 9,000 ends, which a busy machine has 13 s of work with.
    wait::until_within(Duration::from_secs(40), "all to be gone", || {
        agent.metric("divert_connections_active").is_ok_and(|active| active == 0.0)
    })?;
    done.store(true, Ordering::Release);
    servers.join().ok().context("the server panicked")??;
    Ok(())
}
