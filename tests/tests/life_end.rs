//! correctness.md, Life: the agent's end, asked for and not, and what is left of it.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::bpf_maps;
use divert_tests::fixture::{ALICE, BOB, Fixture};
use divert_tests::http::Http;
use divert_tests::script::is_captured;
use divert_tests::wait;

fn captured(town: &Fixture, connection: &Http) -> Result<bool> {
    is_captured(connection.stream(), &town.client())?.context("the connection is in no table of sockets")
}

/// Whether a new connection is refused by the server's pod itself, where nobody listens: the agent would
/// accept it first.
fn goes_direct(town: &Fixture) -> bool {
    let connected = town.client().connect(town.address(divert_tests::lab::Family::V4));
    connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn a_clean_end_closes_what_is_idle_and_leaves_nothing() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let mut agent = town.agent()?;
    let mut idle = town.connect()?;
    assert_eq!(idle.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));
    assert!(captured(&town, &idle)?);

    // Looks for routes, listeners and programs that are left.
    agent.stop()?;
    assert_eq!(idle.read_to_end()?, b"", "an idle connection ends as a server ends it, not by a reset");
    let mut direct = town.connect()?;
    assert!(!captured(&town, &direct)?);
    let missed = direct.get("/", &[ALICE])?;
    assert_eq!(missed.served_by().as_deref(), Some("staging/web"));
    Ok(())
}

#[test]
fn a_killed_agent_leaves_label_routes_alone_which_the_next_one_takes_over() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let client = town.client();
    let mut first = town.agent()?;
    let mut carried = town.connect()?;
    assert_eq!(carried.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));

    first.kill();
    // New connections go direct from the first one on.
    let mut direct = town.connect()?;
    assert_eq!(direct.get("/", &[])?.served_by().as_deref(), Some("staging/web"));
    assert!(!captured(&town, &direct)?);
    let end = carried.read_to_end();
    assert!(
        matches!(&end, Ok(bytes) if bytes.is_empty())
            || matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset),
        "what the agent carried ends with it: {end:?}"
    );
    wait::until("hooks and listeners to go with their process", || {
        let traces = first.traces_in(&client).unwrap_or_default();
        first.attached().is_ok_and(|number| number == 0) && traces.iter().all(|it| it.starts_with("route "))
    })?;
    let label_ranges = ["240.64.0.0/10", "fdd1:7e27::/64"];
    let left = first.traces_in(&client)?;
    assert_eq!(left.len(), 2, "{left:?}");
    for range in label_ranges {
        assert!(left.iter().any(|route| route.contains(range)), "{range} in {left:?}");
    }

    let mut second = town.agent()?;
    let mut again = town.connect()?;
    assert!(captured(&town, &again)?);
    assert_eq!(again.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));
    assert_eq!(direct.get("/", &[])?.served_by().as_deref(), Some("staging/web"), "and is not disturbed");
    second.terminate()?;
    // Against how things were before the first: its routes have gone with those of the second.
    first.assert_nothing_left()
}

#[test]
fn connections_leave_nothing_in_the_maps_of_the_kernel() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    // What is known of one that was inserted rests a while after its end.
    let agent = Agent::start(&town.lab, &town.manifests, &Options::spliced())?;
    let pid = agent.process().pid();
    let before = bpf_maps::entries(pid)?;
    assert!(before.len() >= 4, "pods, captures of two families, origins: {before:?}");
    assert!(before.values().any(|&length| length > 0), "the town is in there: {before:?}");

    let mut connections = Vec::new();
    for number in 0..150 {
        let key = [&[][..], &[ALICE], &[BOB]][number % 3];
        let family = divert_tests::lab::FAMILIES[number % 2];
        let mut connection = town.connect_by(family)?;
        connection.get("/", key)?;
        connections.push(connection);
    }
    assert!(agent.metric("divert_connections_active")? >= 150.0);
    assert_eq!(bpf_maps::entries(pid)?, before, "while they are open");
    drop(connections);
    wait::until("the connections to end", || {
        agent.metric("divert_connections_active").is_ok_and(|active| active == 0.0)
    })?;
    assert_eq!(bpf_maps::entries(pid)?, before, "after their end");
    Ok(())
}

/// What clients met while the agent ended.
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicUsize,
    /// A kept connection was closed before a byte of the response: a client's own rules make it try again.
    closed_while_idle: AtomicUsize,
    /// Answered by the shared copy in alice's stead, on a connection that was not captured.
    missed: AtomicUsize,
}

impl Tally {
    /// Sends requests, each on a connection of its own or all on one, until told to stop.
    fn client(&self, town: &Fixture, keep: bool, stop: &AtomicBool) -> Result<()> {
        let mut kept: Option<Http> = None;
        while !stop.load(Ordering::Acquire) {
            for (key, wanted) in [(&[][..], "staging/web"), (&[ALICE][..], "alice/web")] {
                let reused = kept.is_some();
                let mut connection = match kept.take() {
                    Some(kept) => kept,
                    None => town.connect()?,
                };
                let captured = is_captured(connection.stream(), &town.client())?;
                let response = match connection.get("/", key) {
                    Ok(response) => response,
                    Err(_) if reused => {
                        self.closed_while_idle.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    Err(error) => return Err(error).context("on a new connection"),
                };
                let by = response.served_by();
                if by.as_deref() == Some(wanted) {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                } else {
                    ensure!(
                        captured == Some(false) && by.as_deref() == Some("staging/web"),
                        "{key:?} was answered by {by:?}, captured: {captured:?}"
                    );
                    self.missed.fetch_add(1, Ordering::Relaxed);
                }
                kept = keep.then_some(connection);
            }
        }
        Ok(())
    }
}

#[test]
fn an_end_under_load_breaks_no_exchange_and_answers_none_wrong() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let mut agent = town.agent()?;
    let (tally, stop) = (Tally::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let clients: Vec<_> = [true, true, false, false]
            .map(|keep| {
                scope.spawn({
                    let (tally, town, stop) = (&tally, &town, &stop);
                    move || tally.client(town, keep, stop)
                })
            })
            .into();
        let answered = || tally.answered.load(Ordering::Relaxed);
        let ended =
            wait::until("requests to flow", || answered() > 100 || clients.iter().any(|it| it.is_finished()))
                .and_then(|()| agent.terminate());
        let before = answered();
        let flowed = wait::until("requests to flow without the agent", || {
            answered() > before + 100 || clients.iter().any(|it| it.is_finished())
        });
        stop.store(true, Ordering::Release);
        for client in clients {
            client.join().unwrap_or_else(|_| panic!("a client panicked"))?;
        }
        ended.and(flowed)
    })?;
    eprintln!("{tally:?}");
    // At most the one that was under way on each kept connection.
    assert!(tally.closed_while_idle.load(Ordering::Relaxed) <= 2, "{tally:?}");
    agent.assert_nothing_left()
}

#[test]
fn what_waits_to_be_accepted_at_the_end_is_served() -> Result<()> {
    /// More than a worker accepts before it hears of the end.
    const MANY: usize = 300;
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let options = Options { workers: 1, ..Options::default() };
    let mut agent = Agent::start(&town.lab, &town.manifests, &options)?;
    agent.pause()?;
    let mut waiting = Vec::new();
    for _ in 0..MANY {
        let mut connection = town.connect()?;
        connection.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
        waiting.push(connection);
    }
    // From two seconds on they go direct, on a machine that busy.
    assert!(captured(&town, &waiting[0])?);
    agent.process().signal(rustix::process::Signal::TERM)?;
    agent.resume()?;
    for (number, connection) in waiting.iter_mut().enumerate() {
        let response = connection.response().with_context(|| format!("connection {number} of {MANY}"))?;
        assert_eq!(response.served_by().as_deref(), Some("staging/web"));
    }
    agent.wait_end()?;
    agent.assert_nothing_left()
}

#[test]
fn an_exchange_under_way_at_the_end_is_finished() -> Result<()> {
    let town = Fixture::new()?;
    let listener = town.server().listen(divert_tests::fixture::PORT)?;
    // Where agents insert, an exchange without a key is not theirs to finish.
    let mut agent = Agent::start(&town.lab, &town.manifests, &Options::spliced())?;
    let mut connection = town.connect()?;
    connection.send(b"GET /slow HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let (server, _) = divert_tests::server::accept(&listener)?;
    // Nobody else is listened to: what looks whether new connections are captured is to leave no other.
    drop(listener);
    let mut server = Http::new(server);
    let request = server.read_exact(b"GET /slow HTTP/1.1\r\nHost: web\r\n\r\n".len())?;
    assert!(request.starts_with(b"GET /slow"));
    server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")?;

    agent.process().signal(rustix::process::Signal::TERM)?;
    wait::until("new connections to go direct", || goes_direct(&town))?;
    server.send(b"lf")?;
    assert_eq!(connection.response()?.text(), "half");
    assert_eq!(connection.read_to_end()?, b"", "and then the connection is closed");
    agent.wait_end()?;
    agent.assert_nothing_left()
}

#[test]
fn what_does_not_end_in_time_is_reset() -> Result<()> {
    let town = Fixture::new()?;
    let listener = town.server().listen(divert_tests::fixture::PORT)?;
    let options = Options { drain: 0, ..Options::spliced() };
    let mut agent = Agent::start(&town.lab, &town.manifests, &options)?;
    let mut connection = town.connect()?;
    connection.send(b"GET /never HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let (server, _) = divert_tests::server::accept(&listener)?;
    let mut server = Http::new(server);
    server.read_exact(b"GET /never HTTP/1.1\r\nHost: web\r\n\r\n".len())?;
    agent.stop()?;
    let reset = |end: std::io::Result<Vec<u8>>| end.map_err(|error| error.kind());
    assert_eq!(reset(connection.read_to_end()), Err(ErrorKind::ConnectionReset));
    assert_eq!(reset(server.read_to_end()), Err(ErrorKind::ConnectionReset));
    Ok(())
}

/// Asks the agent to end while most of a response waits in its socket for a client with a small window.
fn end_with_a_slow_reader(town: &Fixture, agent: &Agent, length: usize) -> Result<Http> {
    let listener = town.server().listen(divert_tests::fixture::PORT)?;
    let socket = town.client().socket(divert_tests::lab::Family::V4)?;
    socket.set_recv_buffer_size(2 << 10)?;
    socket.connect(&town.address(divert_tests::lab::Family::V4).into())?;
    let mut connection = Http::new(divert_tests::lab::patient(socket.into())?);
    connection.send(b"GET /much HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let (server, _) = divert_tests::server::accept(&listener)?;
    drop(listener);
    let mut server = Http::new(server);
    server.read_exact(b"GET /much HTTP/1.1\r\nHost: web\r\n\r\n".len())?;
    server.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes())?;
    server.send(&vec![b'm'; length])?;

    agent.process().signal(rustix::process::Signal::TERM)?;
    wait::until("new connections to go direct", || goes_direct(town))?;
    // All is read and written by now: the agent waits for nothing but the client.
    let direct = Instant::now();
    wait::until("it to have had the time to end", || direct.elapsed() > Duration::from_millis(500))?;
    Ok(connection)
}

#[test]
fn a_slow_reader_gets_the_whole_response_after_the_end() -> Result<()> {
    const LENGTH: usize = 24 << 10;
    let town = Fixture::new()?;
    let mut agent = Agent::start(&town.lab, &town.manifests, &Options::spliced())?;
    let mut connection = end_with_a_slow_reader(&town, &agent, LENGTH)?;
    assert_eq!(connection.response()?.body.len(), LENGTH);
    assert_eq!(connection.read_to_end()?, b"");
    agent.wait_end()?;
    agent.assert_nothing_left()
}

#[test]
fn a_second_signal_ends_the_agent_at_once() -> Result<()> {
    let town = Fixture::new()?;
    let listener = town.server().listen(divert_tests::fixture::PORT)?;
    // Longer than any test waits.
    let options = Options { drain: 300, ..Options::spliced() };
    let mut agent = Agent::start(&town.lab, &town.manifests, &options)?;
    let mut connection = town.connect()?;
    connection.send(b"GET /never HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let (server, _) = divert_tests::server::accept(&listener)?;
    drop(listener);
    let mut server = Http::new(server);
    server.read_exact(b"GET /never HTTP/1.1\r\nHost: web\r\n\r\n".len())?;

    agent.process().signal(rustix::process::Signal::TERM)?;
    wait::until("new connections to go direct", || goes_direct(&town))?;
    assert!(agent.process().output().contains("SIGTERM: ending"));
    agent.process().signal(rustix::process::Signal::INT)?;
    agent.wait_end()?;
    assert!(agent.process().output().contains("SIGINT again: ending at once"));
    // As after SIGKILL: what it carried ends with it, and routes for labels may be left for the next agent.
    let end = connection.read_to_end();
    assert!(
        matches!(&end, Ok(bytes) if bytes.is_empty())
            || matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset),
        "{end:?}"
    );
    wait::until("hooks to go with their process", || agent.attached().is_ok_and(|number| number == 0))?;
    town.agent()?.stop().map(drop)
}

#[test]
fn a_client_that_resets_what_waits_for_it_is_not_waited_for() -> Result<()> {
    let town = Fixture::new()?;
    // Far longer than the end is waited for.
    let options = Options { drain: 120, ..Options::spliced() };
    let mut agent = Agent::start(&town.lab, &town.manifests, &options)?;
    let connection = end_with_a_slow_reader(&town, &agent, 24 << 10)?;
    socket2::SockRef::from(connection.stream()).set_linger(Some(Duration::ZERO))?;
    drop(connection);
    agent.wait_end()?;
    agent.assert_nothing_left()
}
