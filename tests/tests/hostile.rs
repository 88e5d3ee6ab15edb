//! correctness.md, Hostile: pods that dial what is not meant for them, and clients that give nothing an end.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::lab::{FAMILIES, Family, Pod};
use divert_tests::{server, usage, wait};

/// The port of the agent's listeners in a pod.
fn listener_port(agent: &Agent, pod: &Pod) -> Result<u16> {
    let traces = agent.traces_in(pod)?;
    let port = traces.iter().find_map(|it| it.strip_prefix("listener 0100007F:"));
    Ok(u16::from_str_radix(port.context("there is a listener on 127.0.0.1")?, 16)?)
}

/// The address of a label, of either family.
fn label(family: Family, index: u32) -> IpAddr {
    let ranges = divert_common::label::LabelRanges::default();
    let label = divert_common::label::Label::new(index).expect("the tests' labels are small numbers");
    match family {
        Family::V4 => ranges.v4(label).into(),
        Family::V6 => ranges.v6(label).into(),
    }
}

/// How a connection ends that nobody serves: at once, or when it is accepted.
fn end(pod: &Pod, to: SocketAddr) -> Result<ErrorKind> {
    let connected = pod.connect(to);
    let end = connected.and_then(|mut stream| stream.read(&mut [0; 1]));
    Ok(end.err().with_context(|| format!("{to} let {} in", pod.name()))?.kind())
}

const REFUSALS: [ErrorKind; 2] = [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset];

#[test]
fn the_listener_itself_and_labels_nobody_uses_are_refused() -> Result<()> {
    let town = Fixture::new()?;
    let servers = town.servers()?;
    let agent = town.agent()?;
    let client = town.client();
    let port = listener_port(&agent, &client)?;
    let loopbacks = ["127.0.0.1".parse()?, "::1".parse()?];
    for address in loopbacks.into_iter().chain(FAMILIES.map(|family| label(family, 4_000_000))) {
        let to = SocketAddr::new(address, port);
        let end = end(&client, to)?;
        assert!(REFUSALS.contains(&end), "{to}: {end:?}");
    }
    let no_label = r#"divert_connections_reset_total{reason="no_label"} 4"#;
    let metrics = agent.get("/metrics")?.text();
    assert!(metrics.contains(no_label), "{metrics}");
    // A label's address at any other port is nobody.
    for family in FAMILIES {
        assert_eq!(end(&client, SocketAddr::new(label(family, 0), PORT))?, ErrorKind::ConnectionRefused);
    }
    assert_eq!(servers.each_ref().map(server::Echo::accepted), [0; 3], "nothing went anywhere");

    // Who dials a label by hand gets what every connect to its destination gets, and no more.
    let mut by_hand: Vec<Option<String>> = Vec::new();
    for family in FAMILIES {
        for index in 0..8 {
            let Ok(stream) = client.connect(SocketAddr::new(label(family, index), port)) else { continue };
            by_hand.extend(Http::new(stream).get("/", &[]).map(|response| response.served_by()));
        }
    }
    assert!(!by_hand.is_empty());
    assert!(by_hand.iter().all(|by| by.as_deref() == Some("staging/web")), "{by_hand:?}");
    Ok(())
}

#[test]
fn other_pods_reach_neither_listeners_nor_labels() -> Result<()> {
    let town = Fixture::new()?;
    let servers = town.servers()?;
    let agent = town.agent()?;
    let (client, stranger) = (town.client(), town.lab.pod("bob/web"));
    let port = listener_port(&agent, &client)?;
    let accepted = || agent.metric("divert_connections_accepted_total");
    // By the pod's own addresses.
    for family in FAMILIES {
        assert_eq!(end(&stranger, SocketAddr::new(client.ip(family), port))?, ErrorKind::ConnectionRefused);
    }
    // By label addresses, sent to the pod as if it were a router: instead of the stranger's own label routes.
    let ranges = ["240.64.0.0/10", "fdd1:7e27::/64"];
    for (family, range) in FAMILIES.into_iter().zip(ranges) {
        let netns = stranger.named_netns();
        let own = netns.ip(&format!("{} route show table all {range}", flag(family)))?;
        let own: Vec<_> = own.lines().map(|route| route.replace("pref medium", "")).collect();
        let by_router = format!("{range} via {} dev eth0 metric 1", client.ip(family));
        let replace = |from: &[String], to: &[String]| -> Result<()> {
            let lines = from.iter().map(|route| format!("route del {route}\n"));
            netns.ip_batch(
                &lines.chain(to.iter().map(|route| format!("route add {route}\n"))).collect::<String>(),
            )
        };
        replace(&own, std::slice::from_ref(&by_router))?;
        for index in [0, 1, 2] {
            let to = SocketAddr::new(label(family, index), port);
            let socket = stranger.socket(family)?;
            // Whether it is refused or dropped on the way is the kernel's business.
            let connected = socket.connect_timeout(&to.into(), Duration::from_millis(300));
            assert!(connected.is_err(), "{to} was reached through {}", client.name());
        }
        replace(&[by_router], &own)?;
    }
    assert_eq!(accepted()?, 0.0);
    assert_eq!(servers.each_ref().map(server::Echo::accepted), [0; 3]);
    Ok(())
}

fn flag(family: Family) -> &'static str {
    if family == Family::V4 { "-4" } else { "-6" }
}

/// A town under attack: one worker, so that whoever holds it up holds all up.
struct Siege {
    // Dropped in this order.
    agent: Agent,
    _servers: [server::Echo; 3],
    town: Fixture,
    resident: u64,
}

impl Siege {
    fn new() -> Result<Self> {
        let town = Fixture::new()?;
        let _servers = town.servers()?;
        let options = Options { workers: 1, ..Options::default() };
        let agent = Agent::start(&town.lab, &town.manifests, &options)?;
        // Pages of code and the allocator's first ones are not what is measured.
        for _ in 0..50 {
            town.connect()?.get("/", &[ALICE])?;
        }
        let resident = usage::resident(agent.process().pid())?;
        Ok(Self { agent, _servers, town, resident })
    }

    /// Everybody else is served, and soon.
    fn others_are_served(&self) -> Result<()> {
        let began = Instant::now();
        for (key, by) in [(&[][..], "staging/web"), (&[ALICE][..], "alice/web")] {
            let response = self.town.connect()?.get("/", key)?;
            assert_eq!(response.served_by().as_deref(), Some(by));
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}");
        Ok(())
    }

    /// What the attack has taken is at most `most` bytes.
    #[track_caller]
    fn costs_at_most(&self, most: u64) -> Result<()> {
        let taken = usage::resident(self.agent.process().pid())?.saturating_sub(self.resident);
        eprintln!("{} KiB taken, of at most {} KiB", taken >> 10, most >> 10);
        assert!(taken <= most, "{taken} bytes of memory taken, more than {most}");
        Ok(())
    }

    fn attackers(&self, number: usize) -> Result<Vec<TcpStream>> {
        let connect = || Ok(self.town.client().connect(self.town.address(Family::V4))?);
        (0..number).map(|_| connect()).collect()
    }
}

/// Writes the same bytes again and again until the other side takes no more, or `most` bytes: how many.
fn write_until_full(stream: &mut TcpStream, bytes: &[u8], most: usize) -> Result<usize> {
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    let mut written = 0;
    while written < most {
        match stream.write(bytes) {
            Ok(length) => written += length,
            // It was cut off, or nothing moves any more.
            Err(_) => break,
        }
    }
    Ok(written)
}

#[test]
fn header_bombs_are_refused_and_cost_little() -> Result<()> {
    let siege = Siege::new()?;
    let mut attackers = siege.attackers(40)?;
    for attacker in &mut attackers {
        attacker.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n")?;
        let line = format!("X-Bomb: {}\r\n", "b".repeat(8000));
        write_until_full(attacker, line.as_bytes(), 4 << 20)?;
    }
    siege.others_are_served()?;
    // 128 KiB of head is the limit of each, and none is held once it is refused.
    siege.costs_at_most(40 * (128 << 10) + (4 << 20))?;
    wait::until("all of them to be answered 431", || {
        let metrics = siege.agent.get("/metrics").map(|it| it.text()).unwrap_or_default();
        metrics.contains(r#"divert_requests_total{result="refused"} 40"#)
    })
}

#[test]
fn slow_headers_hold_nobody_up() -> Result<()> {
    const MANY: usize = 300;
    let siege = Siege::new()?;
    let mut attackers = siege.attackers(MANY)?;
    for round in 0..20 {
        for attacker in &mut attackers {
            attacker.write_all(&b"GET / HTTP/1.1\r\nHost"[round..=round])?;
        }
        if round % 5 == 0 {
            siege.others_are_served()?;
        }
    }
    siege.others_are_served()?;
    // A block of 16 KiB for each that has begun something.
    siege.costs_at_most(MANY as u64 * (24 << 10) + (2 << 20))?;
    // Patience is all they need: the slowest is served like any.
    let mut last = Http::new(attackers.pop().context("there are some")?);
    last.send(b": web\r\n\r\n")?;
    assert_eq!(last.response()?.served_by().as_deref(), Some("staging/web"));
    Ok(())
}

#[test]
fn a_head_that_does_not_end_in_time_is_cut_off_and_nothing_else_is() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let arguments = ["--head-timeout", "1"].map(String::from).into();
    let agent = Agent::start(&town.lab, &town.manifests, &Options { arguments, ..Options::default() })?;
    let begin = |http: &mut Http| http.send(b"GET / HTTP/1.1\r\nHost: we");
    let (mut silent, mut idle, mut first, mut later, mut body) =
        (town.connect()?, town.connect()?, town.connect()?, town.connect()?, town.connect()?);
    for http in [&mut idle, &mut later, &mut body] {
        http.get("/", &[ALICE])?;
    }
    body.send(b"POST / HTTP/1.1\r\nHo")?;
    wait::until("the agent to have read", || {
        let read = usage::unread(agent.process().pid()).is_ok_and(|unread| unread == 0);
        read && usage::unacknowledged(body.stream()) == 0
    })?;
    body.send(b"st: web\r\nContent-Length: 4\r\n\r\nbo")?;
    begin(&mut first)?;
    begin(&mut later)?;
    let began = Instant::now();
    for slow in [&mut first, &mut later] {
        // A byte now and then does not help.
        wait::until("it to be cut off", || slow.send(b"b").is_err())?;
    }
    assert!(began.elapsed() > Duration::from_millis(500), "{:?}", began.elapsed());
    assert!(
        agent.get("/metrics")?.text().contains(r#"divert_connections_reset_total{reason="head_timeout"} 2"#)
    );
    body.send(b"dy")?;
    assert_eq!(body.response()?.served_by().as_deref(), Some("staging/web"));
    for (http, key, by) in [
        (&mut silent, &[][..], "staging/web"),
        (&mut idle, &[ALICE][..], "alice/web"),
        (&mut body, &[ALICE][..], "alice/web"),
    ] {
        assert_eq!(http.get("/", key)?.served_by().as_deref(), Some(by));
    }
    Ok(())
}

#[test]
fn a_client_that_was_refused_and_goes_on_sending_is_cut_off() -> Result<()> {
    let town = Fixture::new()?;
    let _server = town.server().listen(PORT)?;
    let _agent = town.agent()?;
    let mut http = town.connect()?;
    http.send(b"GET / HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")?;
    assert_eq!(http.response()?.status, 400);
    // It may be in the middle of something, and so is read from for a while; not for ever.
    let began = Instant::now();
    wait::until("it to be cut off", || http.send(b"b").is_err())?;
    assert!(began.elapsed() > Duration::from_millis(500), "{:?}", began.elapsed());
    Ok(())
}

#[test]
fn endless_chunks_to_a_server_that_does_not_read_stop_at_the_sockets() -> Result<()> {
    const MANY: usize = 20;
    let siege = Siege::new()?;
    // A server of alice's that accepts and never reads.
    let asleep = siege.town.lab.pod("alice/web").listen(PORT + 1)?;
    let mut objects = siege.town.objects(&[PORT.into()]);
    let alice = siege.town.lab.pod("alice/web");
    let mut slice = divert_tests::manifest::endpoint_slice(
        "alice",
        "web",
        "asleep",
        &[(alice.v4.into(), true)],
        PORT + 1,
    );
    slice["addressType"] = serde_json::json!("IPv4");
    objects.push(slice);
    siege.town.manifests.put("town", &objects)?;
    let request =
        b"POST / HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut held = Vec::new();
    wait::until("requests to alice to go to the server asleep", || {
        let Ok(mut probe) = siege.town.client().connect(siege.town.address(Family::V4)) else { return false };
        let sent = probe.write_all(request).is_ok();
        asleep.set_nonblocking(true).is_ok()
            && sent
            && wait::until_within(Duration::from_millis(200), "it", || match asleep.accept() {
                Ok(accepted) => {
                    held.push(accepted);
                    true
                }
                Err(_) => false,
            })
            .is_ok()
    })?;
    let chunk = [b"4000\r\n".to_vec(), vec![b'c'; 0x4000], b"\r\n".to_vec()].concat();
    let mut attackers = siege.attackers(MANY)?;
    for attacker in &mut attackers {
        attacker.write_all(request)?;
        write_until_full(attacker, &chunk, 64 << 20)?;
    }
    let normal = siege.town.connect()?.get("/", &[])?;
    assert_eq!(normal.served_by().as_deref(), Some("staging/web"));
    // One block each way; what is in pipes and sockets is the kernel's, which bounds it.
    siege.costs_at_most(MANY as u64 * (48 << 10) + (2 << 20))?;
    Ok(())
}

#[test]
fn a_chunk_size_line_without_end_is_refused() -> Result<()> {
    let siege = Siege::new()?;
    let mut attackers = siege.attackers(20)?;
    for attacker in &mut attackers {
        attacker.write_all(b"POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n1;")?;
        let written = write_until_full(attacker, &[b'x'; 4096], 32 << 20)?;
        assert!(written < 32 << 20, "32 MiB of a chunk extension were taken");
    }
    siege.others_are_served()?;
    siege.costs_at_most(20 * (64 << 10) + (2 << 20))
}

#[test]
fn pipelined_requests_without_end_whose_answers_nobody_reads_stop_at_the_sockets() -> Result<()> {
    const MANY: usize = 10;
    let siege = Siege::new()?;
    let requests = "GET /flood HTTP/1.1\r\nHost: web\r\n\r\n".repeat(100);
    let mut attackers = siege.attackers(MANY)?;
    for attacker in &mut attackers {
        write_until_full(attacker, requests.as_bytes(), 4 << 20)?;
    }
    siege.others_are_served()?;
    siege.costs_at_most(MANY as u64 * (64 << 10) + (2 << 20))
}

#[test]
fn a_response_head_without_end_is_bounded() -> Result<()> {
    let town = Fixture::new()?;
    let listener = town.server().listen(PORT)?;
    let agent = town.agent()?;
    let mut connection = town.connect()?;
    connection.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let (mut bomb, _) = server::accept(&listener)?;
    let before = usage::resident(agent.process().pid())?;
    bomb.write_all(b"HTTP/1.1 200 OK\r\n")?;
    let line = format!("X-Bomb: {}\r\n", "b".repeat(8000));
    write_until_full(&mut bomb, line.as_bytes(), 32 << 20)?;
    let taken = usage::resident(agent.process().pid())?.saturating_sub(before);
    assert!(taken <= 2 << 20, "{taken} bytes");
    Ok(())
}
