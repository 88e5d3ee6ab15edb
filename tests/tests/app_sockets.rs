//! correctness.md, Connection: the ways in which applications make and use sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::lab::{FAMILIES, Family, Pod, patient};
use divert_tests::manifest;
use divert_tests::script::is_captured;
use divert_tests::server::{Echo, accept};
use divert_tests::wait;
use io_uring::{IoUring, opcode, types};
use socket2::Socket;

struct Running {
    _servers: [Echo; 2],
    _agent: Agent,
    client: std::sync::Arc<Pod>,
    town: Fixture,
}

fn start() -> Result<Running> {
    start_with(&Options::default())
}

fn start_with(options: &Options) -> Result<Running> {
    let town = Fixture::new()?;
    let _servers = [Echo::start(&town.server(), PORT)?, Echo::start(&town.lab.pod("alice/web"), PORT)?];
    let _agent = Agent::start(&town.lab, &town.manifests, options)?;
    Ok(Running { _servers, _agent, client: town.client(), town })
}

impl Running {
    /// Asks on a connected socket, and checks who answers.
    fn ask_both(&self, socket: Socket) -> Result<()> {
        let mut http = Http::new(patient(socket.into())?);
        ensure!(http.get("/", &[ALICE])?.served_by().as_deref() == Some("alice/web"));
        ensure!(http.get("/", &[])?.served_by().as_deref() == Some("staging/web"));
        Ok(())
    }

    fn captured(&self, socket: impl AsFd) -> Result<bool> {
        is_captured(socket, &self.client)?.context("the connection ended at once")
    }
}

#[test]
fn non_blocking_connect() -> Result<()> {
    let running = start()?;
    for family in FAMILIES {
        let to = running.town.address(family);
        let socket = running.client.socket(family)?;
        socket.set_nonblocking(true)?;
        let begun = socket.connect(&to.into());
        let in_progress = begun.is_err_and(|error| error.raw_os_error() == Some(libc::EINPROGRESS));
        ensure!(in_progress, "a non-blocking connect takes its time");
        // Shown before the handshake is through, too.
        wait::until("the connection", || socket.peer_addr().is_ok())?;
        ensure!(socket.take_error()?.is_none());
        ensure!(socket.peer_addr()?.as_socket() == Some(to));
        ensure!(running.captured(&socket)?);
        socket.set_nonblocking(false)?;
        running.ask_both(socket)?;
    }
    Ok(())
}

/// A connect that the kernel makes on behalf of the ring runs the hooks of the socket's cgroup as well.
#[test]
fn io_uring() -> Result<()> {
    let running = start()?;
    for family in FAMILIES {
        let to = running.town.address(family);
        let socket = running.client.socket(family)?;
        let address = socket2::SockAddr::from(to);
        let connect =
            opcode::Connect::new(types::Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len());
        let mut ring = IoUring::new(2)?;
        // SAFETY: socket and address outlive the operation, whose end is waited for below.
        unsafe { ring.submission().push(&connect.build())? };
        ring.submit_and_wait(1)?;
        let done = ring.completion().next().context("the connect has ended")?;
        ensure!(
            done.result() == 0,
            "connect by io_uring: {}",
            std::io::Error::from_raw_os_error(-done.result())
        );
        ensure!(socket.peer_addr()?.as_socket() == Some(to));
        ensure!(running.captured(&socket)?);
        running.ask_both(socket)?;
    }
    Ok(())
}

#[test]
fn bound_source_address_and_port() -> Result<()> {
    let running = start()?;
    for family in FAMILIES {
        for port in [0, 23456] {
            let socket = running.client.socket(family)?;
            socket.set_reuse_address(true)?;
            let source = SocketAddr::new(running.client.ip(family), port);
            socket.bind(&source.into())?;
            socket.connect(&running.town.address(family).into())?;
            let local = socket.local_addr()?.as_socket().context("an address")?;
            ensure!(local.ip() == source.ip() && (port == 0 || local.port() == port), "shown as {local}");
            ensure!(running.captured(&socket)?);
            running.ask_both(socket)?;
        }
    }
    Ok(())
}

#[test]
fn a_source_address_besides_the_pods_own_is_the_servers_peer() -> Result<()> {
    let town = Fixture::new()?;
    let listener = town.server().listen(PORT)?;
    let alices = town.lab.pod("alice/web").listen(PORT)?;
    let client = town.client();
    let second = town.lab.cluster_ips(&client)?;
    let _agent = town.agent()?;
    let servers = [(&listener, ""), (&alices, "baggage: okteto-divert=alice\r\n")];
    let mut held = Vec::new();
    for ((listener, key), family) in servers.into_iter().flat_map(|it| FAMILIES.map(|family| (it, family))) {
        let socket = client.socket(family)?;
        let source = second.address(family, 0);
        socket.bind(&source.into())?;
        socket.connect(&town.address(family).into())?;
        ensure!(is_captured(&socket, &client)? == Some(true));
        ensure!(socket.local_addr()?.as_socket().is_some_and(|it| it.ip() == source.ip()));
        let mut stream = patient(socket.into())?;
        write!(stream, "GET / HTTP/1.1\r\nHost: web\r\n{key}\r\n")?;
        let (server, peer) = accept(listener)?;
        ensure!(peer.ip().to_canonical() == source.ip(), "{peer} instead of {source}");
        // An original that ends before it has the request is connected to once more.
        held.push((stream, server));
    }
    Ok(())
}

#[test]
fn v4_mapped_and_v6_only() -> Result<()> {
    let running = start()?;
    let mapped = SocketAddr::new(IpAddr::V6(running.town.web.v4.to_ipv6_mapped()), PORT);
    let socket = running.client.socket(Family::V6)?;
    socket.connect(&mapped.into())?;
    ensure!(socket.peer_addr()?.as_socket() == Some(mapped));
    let local = socket.local_addr()?.as_socket().context("an address")?.ip();
    ensure!(local == IpAddr::V6(running.client.v4.to_ipv6_mapped()), "shown as {local}");
    ensure!(running.captured(&socket)?);
    running.ask_both(socket)?;

    let socket = running.client.socket(Family::V6)?;
    socket.set_only_v6(true)?;
    socket.connect(&running.town.address(Family::V6).into())?;
    ensure!(running.captured(&socket)?);
    running.ask_both(socket)
}

#[test]
fn a_socket_bound_to_a_device_is_left_alone() -> Result<()> {
    let running = start()?;
    for family in FAMILIES {
        let socket = running.client.socket(family)?;
        socket.bind_device(Some(b"eth0"))?;
        socket.connect(&running.town.address(family).into())?;
        ensure!(!running.captured(&socket)?);
        let mut http = Http::new(patient(socket.into())?);
        ensure!(http.get("/", &[ALICE])?.served_by().as_deref() == Some("staging/web"));
    }
    Ok(())
}

#[test]
fn tcp_fast_open() -> Result<()> {
    let running = start()?;
    for family in FAMILIES {
        let socket = running.client.socket(family)?;
        let on: libc::c_int = 1;
        // SAFETY: the option takes an int, whose address and size are given.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_TCP,
                libc::TCP_FASTOPEN_CONNECT,
                (&raw const on).cast(),
                4,
            )
        };
        ensure!(set == 0, "{}", std::io::Error::last_os_error());
        socket.connect(&running.town.address(family).into())?;
        running.ask_both(socket)?;
    }
    Ok(())
}

#[test]
fn a_child_uses_the_connection_after_a_fork() -> Result<()> {
    let running = start()?;
    let stream = running.client.connect(running.town.address(Family::V4))?;
    let request =
        r"GET /child HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\nConnection: close\r\n\r\n";
    let socket = OwnedFd::from(stream.try_clone()?);
    let mut child = Command::new("sh")
        .args(["-c", &format!("printf '{request}' >&0; head -n 2")])
        .stdin(Stdio::from(socket))
        .stdout(Stdio::piped())
        .spawn()?;
    drop(stream);
    let mut answer = String::new();
    child.stdout.take().context("its output")?.read_to_string(&mut answer)?;
    ensure!(child.wait()?.success());
    ensure!(answer.contains("X-Served-By: alice/web"), "{answer}");
    Ok(())
}

#[test]
fn a_refused_original_is_an_error_at_once_where_nobody_is_ready() -> Result<()> {
    let town = Fixture::new()?;
    // No server runs, and alice's only endpoint is not ready.
    let alice = town.lab.pod("alice/web").ip(Family::V4);
    town.manifests.put("slice", &[manifest::endpoint_slice("alice", "web", "x", &[(alice, false)], PORT)])?;
    let _agent = town.agent()?;
    let began = Instant::now();
    let ended = match town.client().connect(town.address(Family::V4)) {
        Ok(mut stream) => stream.read(&mut [0; 1]).map(drop),
        Err(error) => Err(error),
    };
    let error = ended.expect_err("nobody listens");
    ensure!([ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused].contains(&error.kind()), "{error}");
    ensure!(began.elapsed() < Duration::from_millis(900), "it took {:?}", began.elapsed());
    Ok(())
}

#[test]
fn a_refused_original_is_an_error_within_the_limit_where_alice_is_ready() -> Result<()> {
    let town = Fixture::new()?;
    let _alices = Echo::start(&town.lab.pod("alice/web"), PORT)?;
    let _agent = town.agent()?;
    let began = Instant::now();
    let mut stream = town.client().connect(town.address(Family::V4))?;
    let error = stream.read(&mut [0; 1]).expect_err("nobody listens");
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    ensure!(began.elapsed() < Duration::from_secs(3), "it took {:?}", began.elapsed());
    Ok(())
}

#[test]
fn a_stuck_reader_takes_bounded_memory_and_stops_nobody() -> Result<()> {
    let town = Fixture::new()?;
    let listener = town.server().listen(PORT)?;
    let agent = Agent::start(&town.lab, &town.manifests, &Options { workers: 1, ..Options::default() })?;
    let memory = || -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", agent.process().pid()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
    };
    let before = memory()?;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let mut client = town.client().connect(town.address(Family::V4))?;
        let (server, _) = accept(&listener)?;
        client.set_nonblocking(true)?;
        let block = vec![0; 1 << 16];
        // Until a write has found no room for a while: every buffer on the way is full.
        let mut last = Instant::now();
        wait::until("the way to be full", || {
            match client.write(&block) {
                Ok(_) => last = Instant::now(),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            last.elapsed() > Duration::from_millis(20)
        })?;
        stuck.push((client, server));
    }
    let grown = memory()?.saturating_sub(before);
    ensure!(grown < 20 * 512, "20 stuck connections take {grown} KiB of the agent");
    let began = Instant::now();
    let mut client = town.client().connect(town.address(Family::V4))?;
    let (mut server, _) = accept(&listener)?;
    client.write_all(b"\0ping")?;
    server.read_exact(&mut [0; 5])?;
    ensure!(began.elapsed() < Duration::from_secs(1), "others wait: {:?}", began.elapsed());
    Ok(())
}
