//! correctness.md, Connection: what happens where something runs out, and what a connection costs.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use divert_tests::agent::{self, Agent, Options};
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::h2::stage::{answer, expect_answer, open};
use divert_tests::http::Http;
use divert_tests::lab::{self, Family};
use divert_tests::script::is_captured;
use divert_tests::stage::Stage;
use divert_tests::{server, usage, wait};
use rustix::process::{Pid, Resource, Rlimit};
use socket2::{Domain, Socket, Type};

fn pid_of(agent: &Agent) -> Result<Pid> {
    Pid::from_raw(i32::try_from(agent.process().pid())?).context("a process's id is not zero")
}

/// Numbers of the descriptors that the agent has open.
fn descriptors(agent: &Agent) -> Result<Vec<u64>> {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", agent.process().pid()))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// The agent's own TCP sockets that are connected.
fn legs(agent: &Agent) -> Result<Vec<Socket>> {
    let sockets = usage::sockets(agent.process().pid())?.into_iter();
    Ok(sockets.filter(|it| it.peer_addr().is_ok_and(|peer| peer.as_socket().is_some())).collect())
}

#[test]
fn the_soft_limit_of_descriptors_is_raised_to_the_hard_one() -> Result<()> {
    let town = Fixture::new()?;
    let options = Options { descriptors: Some((256, 3000)), ..Options::default() };
    let agent = Agent::start(&town.lab, &town.manifests, &options)?;
    assert_eq!(usage::open_files_limit(agent.process().pid())?, (3000, 3000));
    Ok(())
}

#[test]
fn memory_that_only_the_start_needed_is_given_back() -> Result<()> {
    let town = Fixture::new()?;
    let agent = town.agent()?;
    // Loading the hooks takes 22 MiB, for the types of the running kernel.
    let own = usage::anonymous(agent.process().pid())?;
    eprintln!("an idle agent has {} KiB of its own", own >> 10);
    assert!(own < 10 << 20, "{own} bytes");
    Ok(())
}

/// What is lacking is lacking for everybody: who comes next goes direct, and nobody waits for it.
#[test]
fn without_descriptors_new_connections_go_direct_and_the_agent_does_not_spin() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let options = Options { workers: 1, ..Options::default() };
    let agent = Agent::start(&town.lab, &town.manifests, &options)?;
    let pid = pid_of(&agent)?;
    // What a worker opens once, it opens here.
    town.connect()?.get("/", &[ALICE])?;
    // A connection takes two: with an odd number left, the last client has no upstream, with an even one it
    // is not accepted. Which of both it is this time depends on what else the agent has open for a moment.
    for more in [0, 1] {
        wait::until("earlier connections to end", || {
            agent.metric("divert_connections_active").is_ok_and(|active| active == 0.0)
        })?;
        let highest = descriptors(&agent)?.into_iter().max().context("it has some")?;
        let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
        let limit = |current| Rlimit { current: Some(current), maximum };
        let before = rustix::process::prlimit(Some(pid), Resource::Nofile, limit(highest + 9 + more))?;
        let (mut held, mut direct, mut reset) = (Vec::new(), Vec::new(), 0);
        while direct.len() < 5 {
            // A reset may come before connect returns.
            let asked = town.connect().and_then(|mut connection| {
                let captured = is_captured(connection.stream(), &town.client())? == Some(true);
                let response = connection.get("/", &[])?;
                assert_eq!(response.served_by().as_deref(), Some("staging/web"));
                Ok((connection, captured))
            });
            match asked {
                Ok((connection, true)) => held.push(connection),
                Ok((connection, false)) => direct.push(connection),
                Err(error) => {
                    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                    let is_reset = matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe));
                    assert!(is_reset && reset < 10, "nobody waits: {error:#}, {reset} were reset");
                    reset += 1;
                }
            }
        }
        assert!(held.len() >= 3, "{} connections", held.len());
        // The one by which it was noticed, and perhaps one that came by the gate meanwhile.
        assert!((1..=2).contains(&reset), "{reset} were reset");
        // Those who have a connection are served as ever.
        assert_eq!(held[0].get("/", &[])?.served_by().as_deref(), Some("staging/web"));
        // The agent looks for descriptors, but not all the time. What else it has to do now and then is not in each window.
        let mut share = f64::MAX;
        for _ in 0..3 {
            let (began, used) = (Instant::now(), usage::cpu_time(agent.process().pid())?);
            while began.elapsed() < Duration::from_millis(400) {
                std::thread::yield_now();
            }
            let used = usage::cpu_time(agent.process().pid())? - used;
            share = share.min(used.as_secs_f64() / began.elapsed().as_secs_f64());
        }
        eprintln!("without a descriptor the agent takes {:.1} % of a core", share * 100.0);
        assert!(share < 0.15, "{share}");
        rustix::process::prlimit(Some(pid), Resource::Nofile, before)?;
        wait::until("new connections to be captured again", || {
            let connection = town.connect();
            connection
                .is_ok_and(|it| is_captured(it.stream(), &town.client()).is_ok_and(|it| it == Some(true)))
        })?;
        drop((held, direct));
    }
    assert!(agent.passed("agent_full")? >= 10.0);
    Ok(())
}

#[test]
fn a_developers_connection_that_finds_no_descriptor_has_new_ones_go_direct() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    // What is watched is direct, whatever the agent lacks.
    let agent = Agent::start(&town.lab, &town.manifests, &Options::spliced())?;
    let pid = pid_of(&agent)?;
    let mut held = town.connect()?;
    assert_eq!(held.get("/", &[])?.served_by().as_deref(), Some("staging/web"));
    let lowest = Rlimit { current: Some(0), maximum: rustix::process::getrlimit(Resource::Nofile).maximum };
    let before = rustix::process::prlimit(Some(pid), Resource::Nofile, lowest)?;
    assert!(held.get("/", &[ALICE]).is_err(), "nobody can be connected to");
    let mut direct = town.connect()?;
    assert_eq!(direct.get("/", &[])?.served_by().as_deref(), Some("staging/web"));
    assert_eq!(is_captured(direct.stream(), &town.client())?, Some(false));
    rustix::process::prlimit(Some(pid), Resource::Nofile, before)?;
    assert!(agent.passed("agent_full")? >= 1.0);
    Ok(())
}

#[test]
fn a_developers_stream_that_finds_no_descriptor_has_new_connections_go_direct() -> Result<()> {
    let stage = Stage::new()?;
    let pid = pid_of(&stage.agent)?;
    let (mut client, mut shared) = open(&stage)?;
    let lowest = Rlimit { current: Some(0), maximum: rustix::process::getrlimit(Resource::Nofile).maximum };
    let before = rustix::process::prlimit(Some(pid), Resource::Nofile, lowest)?;
    client.request(1, &[ALICE], true);
    let head = client.head(1);
    assert_eq!((head.status(), head.get("x-divert-error")), ("502", Some("ConnectFailed")), "{head:?}");
    // The connection that there is goes on.
    client.request(3, &[], true);
    answer(&mut shared, 3, "shared");
    expect_answer(&mut client, 3, "shared");
    let direct = stage.town.connect()?;
    assert_eq!(is_captured(direct.stream(), &stage.town.client())?, Some(false));
    rustix::process::prlimit(Some(pid), Resource::Nofile, before)?;
    assert!(stage.agent.passed("agent_full")? >= 1.0);
    Ok(())
}

#[test]
fn without_ephemeral_ports_the_client_is_reset_and_counted() -> Result<()> {
    const LEFT: u16 = 4;
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = town.agent()?;
    let client = town.client();
    let range = format!("50000 {}", 50000 + LEFT - 1);
    client.netns().enter(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range))??;
    // The application brings ports of its own, so it is only the agent that runs out.
    let connect = |number: u16| -> Result<Http> {
        let socket = client.socket(Family::V4)?;
        socket.bind(&SocketAddr::from((client.v4, 40_000 + number)).into())?;
        socket.connect(&town.address(Family::V4).into())?;
        Ok(Http::new(lab::patient(socket.into())?))
    };
    let mut held = Vec::new();
    for number in 0..LEFT {
        let mut connection = connect(number)?;
        assert_eq!(connection.get("/", &[])?.served_by().as_deref(), Some("staging/web"));
        held.push(connection);
    }
    let mut one_more = connect(LEFT)?;
    let end = one_more.read_to_end().map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    let metrics = agent.get("/metrics")?.text();
    assert!(metrics.contains(r#"divert_connections_reset_total{reason="exhausted"} 1"#), "{metrics}");
    // Ports are taken per destination: alice's copy is another, and one that is given back serves again.
    assert_eq!(held[0].get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));
    Ok(())
}

/// As the agent has them: time, interval, retries of keep-alive, and the time limit of unacknowledged data.
fn timers(socket: &Socket) -> Result<(Duration, Duration, u32, Option<Duration>)> {
    assert!(socket.keepalive()?);
    Ok((
        socket.tcp_keepalive_time()?,
        socket.tcp_keepalive_interval()?,
        socket.tcp_keepalive_retries()?,
        socket.tcp_user_timeout()?,
    ))
}

#[test]
fn a_server_whose_address_vanishes_is_noticed() -> Result<()> {
    let town = Fixture::new()?;
    let servers = town.servers()?;
    // Looked at are the sockets of an agent that is in between from the start; so below.
    let agent = Agent::start(&town.lab, &town.manifests, &Options::spliced())?;
    let mut connection = town.connect()?;
    for key in [&[][..], &[ALICE]] {
        connection.get("/", key)?;
    }
    let own = connection.stream().local_addr()?;
    let (clients, upstreams): (Vec<_>, Vec<_>) = legs(&agent)?
        .into_iter()
        .partition(|leg| leg.peer_addr().is_ok_and(|peer| peer.as_socket() == Some(own)));
    let upstreams: Vec<_> = upstreams
        .into_iter()
        .filter(|leg| leg.peer_addr().is_ok_and(|peer| peer.as_socket().is_some_and(|it| it.port() == PORT)))
        .collect();
    assert_eq!((clients.len(), upstreams.len()), (1, 2));
    // Connections get these once they have lived for a while.
    wait::until("all legs to be watched", || {
        clients.iter().chain(&upstreams).all(|leg| leg.keepalive().is_ok_and(|on| on))
    })?;
    // 60 s and four probes 15 s apart: two minutes, where nothing is under way.
    let keep_alive = (Duration::from_secs(60), Duration::from_secs(15), 4);
    for leg in clients.iter().chain(&upstreams) {
        let (time, interval, retries, limit) = timers(leg)?;
        assert_eq!((time, interval, retries), keep_alive);
        if leg.peer_addr()?.as_socket() != Some(own) {
            assert_eq!(limit, Some(Duration::from_secs(120)), "and two where something is");
        }
    }

    // The same sockets, with the same options turned down: what they lead to shows in seconds.
    for leg in &upstreams {
        leg.set_tcp_user_timeout(Some(Duration::from_millis(1500)))?;
    }
    drop((clients, upstreams));
    town.lab.remove_sandbox(&town.server())?;
    connection.send(b"GET /into/the/void HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let end = connection.read_to_end().map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset), "a leg that dies resets the other");
    drop(servers);
    Ok(())
}

#[test]
fn a_server_that_does_not_read_for_long_keeps_its_connection() -> Result<()> {
    const LIMIT: Duration = Duration::from_millis(1500);
    // More than all buffers on the way hold.
    const BODY: usize = 32 << 20;
    let town = Fixture::new()?;
    let listener = town.server().listen(PORT)?;
    let agent = Agent::start(&town.lab, &town.manifests, &Options::spliced())?;
    let mut connection = town.connect()?;
    let head = format!("POST /slow HTTP/1.1\r\nHost: web\r\nContent-Length: {BODY}\r\n\r\n");
    connection.send(head.as_bytes())?;
    let (mut server, _) = listener.accept()?;
    let own = connection.stream().local_addr()?;
    let upstream: Vec<_> = legs(&agent)?
        .into_iter()
        .filter(|leg| leg.peer_addr().is_ok_and(|it| it.as_socket().is_some_and(|it| it.port() == PORT)))
        .filter(|leg| leg.peer_addr().is_ok_and(|it| it.as_socket() != Some(own)))
        .collect();
    assert_eq!(upstream.len(), 1);
    // The same socket, with the limit turned down, once it has lived long enough to have one.
    wait::until("the connection to get its limit", || {
        upstream[0].tcp_user_timeout().is_ok_and(|limit| limit.is_some())
    })?;
    upstream[0].set_tcp_user_timeout(Some(LIMIT))?;

    let mut client = connection.stream().try_clone()?;
    let sender = std::thread::spawn(move || client.write_all(&vec![b'x'; BODY]).map(|()| client));
    // As a debugger does: the server acknowledges, and reads nothing, for longer than the limit.
    wait::until("the limit to be lifted while nothing is read", || {
        upstream[0].tcp_user_timeout().is_ok_and(|limit| limit.is_none())
    })?;
    let stalled = Instant::now();
    wait::until("the limit to pass three times", || stalled.elapsed() > LIMIT * 3)?;
    let mut got = vec![0; 1 << 20];
    let mut left = head.len() + BODY;
    while left > 0 {
        let read = server.read(&mut got)?;
        assert!(read > 0, "{left} bytes did not come");
        left -= read;
    }
    sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    assert_eq!(upstream[0].tcp_user_timeout()?, Some(LIMIT), "and counts again once it reads");
    Ok(())
}

#[test]
fn an_application_can_bind_every_port_it_could_want() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = town.agent()?;
    let client = town.client();
    let captured = || -> Result<bool> {
        let stream = client.connect(town.address(Family::V4))?;
        Ok(is_captured(&stream, &client)? == Some(true))
    };
    let bind = |domain: Domain, port: u16| {
        let any: SocketAddr = match domain {
            Domain::IPV4 => ([0; 4], port).into(),
            _ => ([0_u16; 8], port).into(),
        };
        let socket = client.netns().enter(|| Socket::new(domain, Type::STREAM, None))??;
        socket.bind(&any.into())?;
        socket.listen(1)
    };
    let traces = agent.traces_in(&client)?;
    let ours = traces.iter().find_map(|it| it.strip_prefix("listener 0100007F:"));
    let ours = u16::from_str_radix(ours.context("the agent listens")?, 16)?;
    for port in (1..=u16::MAX).filter(|port| *port != ours) {
        for domain in [Domain::IPV4, Domain::IPV6] {
            // A copy of a socket just closed lives on in a child that another test starts, until its exec.
            wait::until(&format!("port {port} to be free"), || bind(domain, port).is_ok())?;
        }
    }
    assert!(bind(Domain::IPV4, ours).is_err(), "or the search is for the wrong thing");
    let range =
        client.netns().enter(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range"))??;
    let bounds: Vec<u16> = range.split_whitespace().filter_map(|it| it.parse().ok()).collect();
    assert!(ours < bounds[0] || ours > bounds[1], "{ours} lies in {range}");

    // A pod that declares that very port gets it.
    let mut objects = town.objects(&[PORT.into()]);
    for pod in objects.iter_mut().filter(|it| it["kind"] == "Pod") {
        pod["spec"]["containers"][0]["ports"] = serde_json::json!([{"containerPort": ours}]);
    }
    town.manifests.put("town", &objects)?;
    wait::until("the declared port to be free", || {
        bind(Domain::IPV4, ours).is_ok() && bind(Domain::IPV6, ours).is_ok()
    })?;
    wait::until("the pod to be served by another port", || captured().unwrap_or(false))?;
    assert!(agent.traces_in(&client)?.iter().all(|it| !it.ends_with(&format!(":{ours:04X}"))));
    Ok(())
}

/// Idle connections that two processes with this limit of descriptors can hold: the test has both ends.
fn affordable(hard: u64) -> usize {
    usize::try_from((hard.saturating_sub(2_000)) / 2).unwrap_or(usize::MAX).min(10_000)
}

#[test]
fn thousands_of_idle_connections_cost_little_and_are_served_when_they_wake() -> Result<()> {
    /// User space, for each captured connection that is idle, in bytes.
    const EACH: usize = 8 << 10;
    /// The agent with nothing to do, built for release, in bytes.
    const RESTING: u64 = 20 << 20;
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(20_000).min(1 << 20);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: limit.maximum })?;
    let many = affordable(hard);

    let town = Fixture::new()?;
    let listener = town.server().listen_with_backlog(PORT, 4096)?;
    let arguments = ["--path=splice", "--max-pod-connections=20000", "--max-connections=20000"];
    let arguments = arguments.map(String::from).into();
    let agent = Agent::start(&town.lab, &town.manifests, &Options { arguments, ..Options::default() })?;
    let pid = agent.process().pid();
    let talk = |connection: &mut Http, server: &mut TcpStream| -> Result<()> {
        use std::io::{Read, Write};
        connection.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
        let mut request = [0; 29];
        server.read_exact(&mut request)?;
        server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
        assert_eq!(connection.response()?.status, 204);
        Ok(())
    };
    let resting = usage::resident(pid)?;
    let before = usage::anonymous(pid)?;
    let mut pairs = Vec::new();
    for number in 0..many {
        let mut connection = town.connect()?;
        let (mut server, _) = server::accept(&listener)?;
        // Every other one has carried a request and waits for the next, the rest wait for the first.
        if number % 2 == 0 {
            talk(&mut connection, &mut server)?;
        }
        pairs.push((connection, server));
    }
    assert_eq!(agent.metric("divert_connections_active")?, many as f64);
    let each = (usage::anonymous(pid)?.saturating_sub(before)) as usize / many;
    eprintln!("{many} idle connections: {each} bytes each; resting: {} KiB", resting >> 10);
    assert!(each <= EACH, "{each} bytes for each idle connection");
    if agent::program()?.components().any(|it| it.as_os_str() == "release") {
        assert!(resting <= RESTING, "{resting} bytes with nothing to do");
    }
    for (connection, server) in pairs.iter_mut().step_by(97) {
        talk(connection, server)?;
    }
    // As many ends at once, and then there is room for as many again.
    drop(pairs);
    wait::until("all connections to end", || {
        agent.metric("divert_connections_active").is_ok_and(|active| active == 0.0)
    })?;
    let mut connection = town.connect()?;
    let (mut server, _) = server::accept(&listener)?;
    talk(&mut connection, &mut server)?;
    Ok(())
}

#[test]
fn without_descriptors_no_pod_is_let_go() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let options = Options { workers: 1, ..Options::default() };
    let agent = Agent::start(&town.lab, &town.manifests, &options)?;
    let pid = pid_of(&agent)?;
    let mut connection = town.connect()?;
    connection.get("/", &[ALICE])?;
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let none = Rlimit { current: Some(0), maximum };
    let before = rustix::process::prlimit(Some(pid), Resource::Nofile, none)?;
    // The agent looks at pods thoroughly every five seconds, and cannot now.
    let until = Instant::now() + Duration::from_secs(7);
    wait::until("the agent to have looked", || {
        connection.get("/", &[ALICE]).is_err() || Instant::now() > until
    })?;
    assert_eq!(connection.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));
    rustix::process::prlimit(Some(pid), Resource::Nofile, before)?;
    assert!(!agent.process().output().contains("no longer serving"), "{}", agent.process().output());
    assert_eq!(town.connect()?.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));
    Ok(())
}
