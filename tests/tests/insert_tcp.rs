//! Insertion: what TCP can be like on a connection that is taken over: its options, buffers and segments.

use std::io::Read;
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::insert::{ALICES, Info, SHARED, Takeovers, agent, answered, set};
use divert_tests::lab::{self, FAMILIES, Family};
use divert_tests::server::Echo;
use divert_tests::wait::{self, PATIENCE};
use socket2::Socket;

/// A connection from the client to `staging/web` whose socket is prepared before.
fn connect(town: &Fixture, family: Family, prepare: impl Fn(&Socket) -> std::io::Result<()>) -> Result<Http> {
    let socket = town.client().socket(family)?;
    prepare(&socket).context("preparing a client's socket")?;
    socket.connect_timeout(&town.address(family).into(), PATIENCE)?;
    Ok(Http::new(lab::patient(socket.into())?))
}

/// Requests of some lengths before a takeover, with it, and behind it; each is answered by whom it is for, in full.
fn exchange(http: &mut Http, lengths: &[usize]) -> Result<()> {
    for (key, by) in [
        ("", SHARED),
        ("", SHARED),
        ("baggage: okteto-divert=alice\r\n", ALICES),
        ("", SHARED),
        ("baggage: okteto-divert=alice\r\n", ALICES),
    ] {
        for length in lengths {
            let body: String = ('a'..='z').cycle().take(*length).collect();
            http.send(
                format!("POST / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: {length}\r\n\r\n{body}")
                    .as_bytes(),
            )?;
            let response = http.response().with_context(|| format!("{length} bytes for {by}"))?;
            ensure!(
                response.served_by().as_deref() == Some(by),
                "{:?} instead of {by}",
                response.served_by()
            );
            ensure!(response.text().ends_with(&body), "{length} bytes for {by}");
        }
    }
    Ok(())
}

#[test]
fn options_that_ends_agree_on_or_do_not_make_no_difference() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = agent(&town)?;
    let client = town.client();
    let mut taken = 0;
    for number in 0..8 {
        let wanted = [number & 1 != 0, number & 2 != 0, number & 4 != 0];
        for (name, on) in ["tcp_timestamps", "tcp_sack", "tcp_window_scaling"].into_iter().zip(wanted) {
            set(&client, &format!("ipv4/{name}"), if on { "1" } else { "0" })?;
        }
        for family in FAMILIES {
            let mut http = connect(&town, family, |_| Ok(()))?;
            let info = Info::of(http.stream())?;
            assert_eq!([info.timestamps, info.selective, info.scaled], wanted);
            exchange(&mut http, &[1, 300_000]).with_context(|| format!("{family:?}, {info:?}"))?;
            taken += 1;
        }
    }
    assert_eq!(Takeovers::of(&agent)?, Takeovers::taken(taken));
    Ok(())
}

#[test]
fn a_client_takes_as_much_as_its_buffer_holds() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = agent(&town)?;
    let mut taken = 0;
    for family in FAMILIES {
        for scaling in ["1", "0"] {
            set(&town.client(), "ipv4/tcp_window_scaling", scaling)?;
            for size in [2304, 20_000, 8 << 20] {
                let mut http = connect(&town, family, |it| it.set_recv_buffer_size(size))?;
                let lengths = if size < 10_000 { [1, 20_000] } else { [1, 400_000] };
                exchange(&mut http, &lengths).with_context(|| format!("{family:?}, {size}, {scaling}"))?;
                taken += 1;
            }
        }
    }
    assert_eq!(Takeovers::of(&agent)?, Takeovers::taken(taken));
    Ok(())
}

#[test]
fn segments_are_as_long_as_the_client_takes_them() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = agent(&town)?;
    let client = town.client();
    let mut taken = 0;
    for family in FAMILIES {
        for longest in [88, 536, 1300, 1460] {
            let mut http = connect(&town, family, |it| it.set_tcp_mss(longest))?;
            exchange(&mut http, &[1, 50_000]).with_context(|| format!("{family:?}, {longest}"))?;
            let seen = Info::of(http.stream())?.received_segment;
            ensure!(seen <= longest.max(536), "segments of {seen} where {longest} is the most");
            taken += 1;
        }
        // And where the device takes less than the server's.
        client.named_netns().ip_batch("link set eth0 mtu 1280\n")?;
        let mut http = connect(&town, family, |_| Ok(()))?;
        exchange(&mut http, &[1, 200_000]).with_context(|| format!("{family:?}, a short device"))?;
        let seen = Info::of(http.stream())?.received_segment;
        ensure!(seen <= 1280, "segments of {seen} where the device takes 1280");
        client.named_netns().ip_batch("link set eth0 mtu 1500\n")?;
        taken += 1;
    }
    assert_eq!(Takeovers::of(&agent)?, Takeovers::taken(taken));
    Ok(())
}

/// What alice's server sends: so long that no buffers on the way hold it.
const LONG: usize = 10_000_000;

fn long_answer() -> Vec<u8> {
    (0..LONG).map(|at| (at % 251) as u8).collect()
}

/// Reads an answer with that body, so many bytes at a time.
fn read_long(stream: &mut TcpStream, piece: usize) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("reading a head")?;
        head.extend(byte);
    }
    let text = String::from_utf8_lossy(&head);
    ensure!(text.contains(ALICES) && text.contains(&format!("Content-Length: {LONG}\r\n")), "{text}");
    let (mut got, mut bytes) = (0, vec![0; piece]);
    while got < LONG {
        let read = stream.read(&mut bytes).with_context(|| format!("after {got} bytes"))?;
        ensure!(read > 0, "it ended after {got} bytes");
        let wrong = bytes[..read].iter().zip(got..).position(|(byte, at)| *byte != (at % 251) as u8);
        ensure!(wrong.is_none(), "another byte after {got}");
        got += read;
    }
    Ok(())
}

#[test]
fn a_client_that_reads_late_and_little_gets_all() -> Result<()> {
    let town = Fixture::new()?;
    let _shared = Echo::start(&town.server(), PORT)?;
    let _alices = Echo::answering(&town.lab.pod(ALICES), PORT, |_| long_answer())?;
    let agent = agent(&town)?;
    for (family, scaling) in [(Family::V4, "1"), (Family::V6, "1"), (Family::V4, "0")] {
        set(&town.client(), "ipv4/tcp_window_scaling", scaling)?;
        let mut http = connect(&town, family, |it| it.set_recv_buffer_size(30_000))?;
        assert_eq!(answered(&mut http, &[])?, SHARED);
        http.send(b"GET / HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\n\r\n")?;
        // Until it has no room: the same number of bytes after twenty looks at it.
        let (mut last, mut still) = (0, 0);
        wait::until("the client's buffer to be full", || {
            let received = Info::of(http.stream()).map_or(0, |info| info.received);
            still = if received == last { still + 1 } else { 0 };
            last = received;
            received > 10_000 && still > 20
        })?;
        ensure!(last < LONG as u64 / 2, "{last} bytes are in a buffer of 30,000");
        let mut stream = http.stream().try_clone()?;
        read_long(&mut stream, 9_000).with_context(|| format!("{family:?}, scaling {scaling}"))?;
        assert_eq!(answered(&mut http, &[])?, SHARED);
    }
    assert_eq!(Takeovers::of(&agent)?, Takeovers::taken(3));
    Ok(())
}

/// The kernel asks an idle connection's other end whether it is there. Nobody answers for a connection that was taken over
/// but the socket that was put in.
#[test]
fn an_idle_connection_is_kept_alive_by_probes() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let agent = agent(&town)?;
    let mut connections = Vec::new();
    for family in FAMILIES {
        for (fields, by) in [(&[][..], SHARED), (&[ALICE], ALICES)] {
            let mut http = connect(&town, family, |socket| {
                let second = std::time::Duration::from_secs(1);
                let keepalive = socket2::TcpKeepalive::new().with_time(second).with_interval(second);
                socket.set_tcp_keepalive(&keepalive.with_retries(2))
            })?;
            assert_eq!(answered(&mut http, &[])?, SHARED);
            assert_eq!(answered(&mut http, fields)?, by);
            connections.push((http, fields, by));
        }
    }
    let received = |http: &Http| divert_tests::usage::segments_received(http.stream()).unwrap_or(0);
    let before: Vec<_> = connections.iter().map(|(http, ..)| received(http)).collect();
    // Of two that are not answered the connection dies.
    wait::until("four probes to be answered on each", || {
        connections.iter().zip(&before).all(|((http, ..), before)| received(http) >= before + 4)
    })?;
    for (http, fields, by) in &mut connections {
        assert_eq!(&answered(http, fields)?, by);
    }
    assert_eq!(Takeovers::of(&agent)?, Takeovers::taken(2));
    Ok(())
}
