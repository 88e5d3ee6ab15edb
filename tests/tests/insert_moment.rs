//! Insertion: what the server does in the moment in which a connection is taken over, and what is left of it then.

use std::hint::spin_loop;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::agent::Agent;
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::insert::{ALICES, Takeovers, agent, answered, states};
use divert_tests::lab::{self, Family};
use divert_tests::manifest;
use divert_tests::peer::Peer;
use divert_tests::server::Echo;
use divert_tests::wait::{self, PATIENCE};

const PLAIN: &[u8] = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n";
const KEYED: &[u8] = b"GET / HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const LAST: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
/// What a server says that is tired of waiting.
const TIRED: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Ports of `staging/web`: one after another, as a destination that could not be taken over is spliced from then on.
const PORTS: std::ops::Range<u16> = PORT..PORT + 16;

/// A town whose test plays `staging/web` itself, on many ports.
struct Scene {
    agent: Agent,
    shared: Vec<TcpListener>,
    _alices: Vec<Echo>,
    /// Where the test plays alice, too: the last of the ports.
    alice: TcpListener,
    /// The port that is used now, of those.
    port: usize,
    town: Fixture,
}

impl Scene {
    fn new() -> Result<Self> {
        let town = Fixture::new()?;
        let ports: Vec<_> = PORTS.map(|port| manifest::Port::from(port).named(&format!("p{port}"))).collect();
        town.put_town(&ports)?;
        let shared = PORTS.map(|port| town.server().listen(port)).collect::<Result<_, _>>()?;
        let alices = town.lab.pod(ALICES);
        let alice = alices.listen(PORTS.end - 1)?;
        let alices =
            (PORTS.start..PORTS.end - 1).map(|port| Echo::start(&alices, port)).collect::<Result<_>>()?;
        let agent = agent(&town)?;
        Ok(Self { agent, shared, _alices: alices, alice, port: 0, town })
    }

    /// Where the next connection goes.
    fn to(&self) -> std::net::SocketAddr {
        self.town.web.address(Family::V4, PORTS.start + self.port as u16)
    }

    /// A connection on which one request was answered by the server, and the server's end.
    fn connect(&self) -> Result<(Peer, Peer)> {
        let mut client = Peer::new(self.town.client().connect(self.to())?);
        let mut server = Peer::accept(&self.shared[self.port])?;
        client.send(PLAIN);
        server.expect(PLAIN);
        server.send(ANSWER);
        client.expect(ANSWER);
        Ok((client, server))
    }
}

/// What the server does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Finish,
    Reset,
    Say,
    SayAndClose,
}

/// What a client met with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Met {
    Alice,
    End,
    Reset,
}

/// All that comes, up to the end or to a whole answer of alice's.
fn read(mut stream: &TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let (mut got, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return (got, None),
            Ok(read) => got.extend(&bytes[..read]),
            Err(error) => return (got, Some(error.kind())),
        }
        if got.ends_with(KEYED) {
            return (got, None);
        }
    }
}

/// Whether a connection was reset, by its other end or by the agent.
fn is_reset(error: Option<ErrorKind>) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error, Some(BrokenPipe | ConnectionAborted | ConnectionReset))
}

/// Both at once, but for some microseconds by which one is earlier.
fn collide(client: Peer, server: Peer, act: Act, early: Duration, late: Duration) -> Result<Met> {
    let barrier = Barrier::new(2);
    let pause = |time: Duration| {
        let begun = Instant::now();
        while begun.elapsed() < time {
            spin_loop();
        }
    };
    let (sent, server) = thread::scope(|scope| {
        let acting = scope.spawn(|| {
            barrier.wait();
            pause(late);
            let mut stream = server.stream();
            match act {
                Act::Finish => {
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                }
                Act::Reset => {
                    server.reset();
                    return None;
                }
                Act::Say => drop(stream.write_all(TIRED)),
                Act::SayAndClose => {
                    drop(stream.write_all(TIRED));
                    return None;
                }
            }
            Some(server)
        });
        barrier.wait();
        pause(early);
        let sent = client.stream().write_all(KEYED);
        (sent, acting.join().expect("no panic"))
    });
    let (got, error) = match sent {
        Ok(()) => read(client.stream()),
        Err(error) => (Vec::new(), Some(error.kind())),
    };
    drop(server);
    let reset = is_reset(error);
    ensure!(error.is_none() || reset, "{act:?}: {error:?} after {:?}", got.escape_ascii().to_string());
    // What the server said before it was cut off is the client's, and nothing of it comes later.
    let rest = got.strip_prefix(TIRED).unwrap_or(&got);
    let alice = rest.starts_with(b"HTTP/1.1 200 OK\r\nX-Served-By: alice/web\r\n") && rest.ends_with(KEYED);
    ensure!(rest.is_empty() || alice, "{act:?}: {:?}", got.escape_ascii().to_string());
    Ok(match (alice, reset) {
        (true, _) => Met::Alice,
        (false, true) => Met::Reset,
        (false, false) => Met::End,
    })
}

#[test]
fn whatever_a_server_does_in_that_moment_nothing_is_mixed_and_nobody_hangs() -> Result<()> {
    let rounds: usize = std::env::var("DIVERT_ROUNDS").ok().and_then(|it| it.parse().ok()).unwrap_or(25);
    let mut random = fastrand::Rng::new();
    for act in [Act::Finish, Act::Reset, Act::Say, Act::SayAndClose] {
        let mut scene = Scene::new()?;
        let (mut met, mut told) = ([0; 3], Takeovers::default());
        for _ in 0..rounds {
            let (client, server) = scene.connect()?;
            let mut jitter = || Duration::from_nanos(random.u64(..120_000));
            let (early, late) = (jitter(), jitter());
            let outcome = collide(client, server, act, early, late)?;
            met[outcome as usize] += 1;
            if outcome == Met::Alice && matches!(act, Act::Finish | Act::Reset) {
                continue;
            }
            let now = Takeovers::of(&scene.agent)?;
            if (now.busy, now.late, now.failed) != (told.busy, told.late, told.failed) {
                // Where one was reset, the next goes by the agent from the start.
                scene.port += 1;
                if scene.port == PORTS.len() - 1 {
                    scene = Scene::new()?;
                    told = Takeovers::default();
                    continue;
                }
            }
            told = now;
        }
        let [alice, end, reset] = met;
        eprintln!("{act:?}: {alice} by alice, {end} ended, {reset} reset; {told:?}");
        // A server that says something then has nearly always its client reset.
        ensure!(alice > 0 || matches!(act, Act::Say | Act::SayAndClose), "{act:?}: {met:?}");
    }
    Ok(())
}

/// TIME_WAIT: all has been said, and acknowledged.
const TIME_WAIT: u8 = 6;

/// Waits until nothing is left of connections of a port in the server's pod.
fn all_closed(scene: &Scene) -> Result<()> {
    let port = PORTS.start + scene.port as u16;
    wait::until("the server's end to be closed", || {
        states(&scene.town.server(), port).is_ok_and(|it| it.iter().all(|state| *state == TIME_WAIT))
    })
    .with_context(|| format!("{:?}", states(&scene.town.server(), port)))
}

#[test]
fn a_server_that_says_more_has_its_client_reset_once_and_is_reset_itself() -> Result<()> {
    let scene = Scene::new()?;
    let (client, mut server) = scene.connect()?;
    let mut http = Http::new(client.stream().try_clone()?);
    assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
    // More than one segment.
    server.send([TIRED, &[b'x'; 20_000]].concat());
    let end = http.read_to_end().map_err(|error| error.kind());
    ensure!(is_reset(end.as_ref().err().copied()), "{end:?}");
    let end = server.rest();
    ensure!(end == Err((String::new(), ErrorKind::ConnectionReset)) || end == Ok(String::new()), "{end:?}");
    drop(server);
    all_closed(&scene)?;
    assert_eq!(Takeovers::of(&scene.agent)?, Takeovers { taken: 1, late: 1, ..Takeovers::default() });
    Ok(())
}

#[test]
fn what_a_server_says_that_its_client_has_never_heard_of_is_nobodys_loss() -> Result<()> {
    let scene = Scene::new()?;
    let mut http = Http::new(scene.town.client().connect(scene.to())?);
    let mut server = Peer::accept(&scene.shared[0])?;
    assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
    server.send([b'x'; 20_000]);
    assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
    let end = server.rest();
    ensure!(end == Err((String::new(), ErrorKind::ConnectionReset)) || end == Ok(String::new()), "{end:?}");
    drop(server);
    all_closed(&scene)?;
    assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
    assert_eq!(Takeovers::of(&scene.agent)?, Takeovers::taken(1));
    Ok(())
}

/// Who has closed does not wait for a request: the client meets the end that it would meet without the agent, and the
/// next connections are watched as ever.
#[test]
fn a_request_to_a_server_that_has_closed_ends_as_ever() -> Result<()> {
    let scene = Scene::new()?;
    for _ in 0..3 {
        let (client, server) = scene.connect()?;
        drop(server);
        wait::until("its end to arrive", || client.readable_within(Duration::from_millis(10)))?;
        let (got, error) = match client.stream().write_all(KEYED) {
            Ok(()) => read(client.stream()),
            Err(error) => (Vec::new(), Some(error.kind())),
        };
        ensure!(got.is_empty(), "{:?}", got.escape_ascii().to_string());
        ensure!(error.is_none() || is_reset(error), "{error:?}");
        all_closed(&scene)?;
        // Watched: the server itself gets the connection, and the request is alice's.
        let (client, _server) = scene.connect()?;
        let mut http = Http::new(client.stream().try_clone()?);
        assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
    }
    assert_eq!(Takeovers::of(&scene.agent)?.taken, 3);
    Ok(())
}

#[test]
fn a_connection_that_cannot_be_taken_over_is_reset_at_both_ends() -> Result<()> {
    let scene = Scene::new()?;
    let (client, mut server) = scene.connect()?;
    let local = client.stream().local_addr()?;
    // Somebody has a socket where the agent would put its own.
    let occupied = occupy(&scene, local)?;
    client.stream().write_all(KEYED)?;
    let (got, error) = read(client.stream());
    ensure!(got.is_empty(), "{:?}", got.escape_ascii().to_string());
    ensure!(is_reset(error), "{error:?}");
    let end = server.rest();
    assert_eq!(end, Err((String::new(), ErrorKind::ConnectionReset)), "the server's end");
    drop((server, occupied));
    all_closed(&scene)?;
    assert_eq!(Takeovers::of(&scene.agent)?, Takeovers { taken: 1, failed: 1, ..Takeovers::default() });
    Ok(())
}

/// A socket in the client's pod that is the other end of a client's connection, as far as its kernel goes.
fn occupy(scene: &Scene, client: std::net::SocketAddr) -> Result<socket2::Socket> {
    use std::os::fd::AsRawFd;
    let socket = scene.town.client().socket(Family::V4)?;
    let on: libc::c_int = 1;
    for (level, name) in [(libc::IPPROTO_IP, libc::IP_TRANSPARENT), (libc::IPPROTO_TCP, libc::TCP_REPAIR)] {
        let size = size_of_val(&on) as libc::socklen_t;
        // SAFETY: the kernel copies one int.
        let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), size) };
        ensure!(done == 0, "{}", std::io::Error::last_os_error());
    }
    socket.bind(&scene.to().into())?;
    socket.connect(&client.into())?;
    Ok(socket)
}

/// A client's socket with a port of its own.
fn connect_from(scene: &Scene, port: u16) -> Result<Http> {
    let client = scene.town.client();
    let socket = client.socket(Family::V4)?;
    socket.set_reuse_address(true)?;
    socket.bind(&std::net::SocketAddr::from((client.v4, port)).into())?;
    socket.connect_timeout(&scene.to().into(), PATIENCE)?;
    Ok(Http::new(lab::patient(socket.into())?))
}

/// How a connection ends before its port is used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The client closes, and waits (TIME_WAIT).
    Client,
    /// The agent closes, and waits.
    Agent,
    /// The client resets it.
    Reset,
}

#[test]
fn a_port_that_is_used_again_is_another_connection() -> Result<()> {
    let mut scene = Scene::new()?;
    let client = scene.town.client();
    // Without a wait of a second, and not only over loopback.
    divert_tests::insert::set(&client, "ipv4/tcp_tw_reuse", "1")?;
    divert_tests::insert::set(&client, "ipv4/tcp_tw_reuse_delay", "1")?;
    let (mut taken, mut from) = (0, 41_000);
    for timestamps in ["1", "0"] {
        divert_tests::insert::set(&client, "ipv4/tcp_timestamps", timestamps)?;
        for end in [End::Client, End::Agent, End::Reset] {
            // The kernel lets nobody use a port again whose last user had no timestamps.
            if end == End::Client && timestamps == "0" {
                continue;
            }
            from += 1;
            scene.port = if end == End::Agent { PORTS.len() - 1 } else { 0 };
            for round in 0..5 {
                let told = || format!("{end:?}, timestamps {timestamps}, round {round}");
                let mut http = connect_from(&scene, from).with_context(told)?;
                let mut server = Peer::accept(&scene.shared[scene.port]).with_context(told)?;
                if round % 2 == 0 {
                    http.send(PLAIN)?;
                    server.expect(PLAIN);
                    server.send(ANSWER);
                    assert_eq!(http.read_exact(ANSWER.len()).with_context(told)?, ANSWER);
                }
                if end == End::Agent {
                    http.send(KEYED)?;
                    let mut alice = Peer::accept(&scene.alice).with_context(told)?;
                    alice.head();
                    alice.send(LAST);
                } else {
                    assert_eq!(answered(&mut http, &[ALICE]).with_context(told)?, ALICES, "{}", told());
                }
                taken += 1;
                server.expect_end();
                drop(server);
                match end {
                    End::Client => {}
                    End::Agent => assert_eq!(http.read_to_end().with_context(told)?, LAST, "{}", told()),
                    End::Reset => socket2::SockRef::from(http.stream()).set_linger(Some(Duration::ZERO))?,
                }
                drop(http);
                // An old end there would answer the new SYN.
                all_closed(&scene).with_context(told)?;
            }
        }
    }
    assert_eq!(Takeovers::of(&scene.agent)?, Takeovers::taken(taken));
    Ok(())
}
