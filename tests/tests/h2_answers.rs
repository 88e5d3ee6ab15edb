//! semantics.md, Decision, over HTTP/2: what the agent answers itself, stream by stream, and who answered, for those
//! who ask.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::Result;
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::h2::stage::{alice, answer, expect_answer, greet, open};
use divert_tests::h2::{Event, Frame, H2, Head, code, kind, owned, setting};
use divert_tests::lab::Family;
use divert_tests::manifest;
use divert_tests::peer::Peer;
use divert_tests::stage::Stage;
use divert_tests::wait;

const GRPC: (&str, &str) = ("content-type", "application/grpc+proto");

/// A stage where alice's endpoints are these, or none is ready.
fn with_endpoints(hosts: &[u8], more: impl FnOnce(&mut serde_json::Value)) -> Result<Stage> {
    let town = Fixture::http2()?;
    let [a, b, c, _] = town.client().v4.octets();
    let address = |host: u8| Ipv4Addr::new(a, b, c, host).into();
    let mut endpoints: Vec<_> = hosts.iter().map(|&host| (address(host), true)).collect();
    if endpoints.is_empty() {
        endpoints.push((address(200), false));
    }
    let slice = manifest::endpoint_slice("alice", "web", "by-hand", &endpoints, PORT);
    town.manifests.put("endpoints", &[slice])?;
    let mut divert = manifest::divert("alice", "staging");
    more(&mut divert);
    town.manifests.put("alice", &[divert])?;
    Stage::of(town)
}

/// What comes on a stream up to its end: head, body, and the code of a reset behind them.
#[track_caller]
fn whole(client: &mut H2, stream: u32) -> (Head, String) {
    let head = client.head(stream);
    let mut body = Vec::new();
    let mut end = head.end;
    while !end {
        match client.on(stream) {
            Event::Frame(frame) if frame.kind == kind::DATA => {
                end = frame.ends_stream();
                body.extend(frame.payload);
            }
            other => panic!("neither DATA nor an end but {other:?}"),
        }
    }
    (head, String::from_utf8_lossy(&body).into_owned())
}

/// An answer of the agent: status, reason, and words of its sentence.
#[track_caller]
fn expect_error(client: &mut H2, stream: u32, status: &str, reason: &str, words: &[&str]) {
    let (head, text) = whole(client, stream);
    assert_eq!((head.status(), head.get("x-divert-error")), (status, Some(reason)), "{head:?} {text}");
    for word in words {
        assert!(text.contains(word), "{word} is missing in: {text}");
    }
    let length = head.get("content-length").map(|length| length.parse());
    assert!(length.is_none_or(|length| length == Ok(text.len())), "{head:?} {text}");
}

/// The same for gRPC: one head of trailers alone.
#[track_caller]
fn expect_grpc_error(client: &mut H2, stream: u32, reason: &str, words: &[&str]) {
    let head = client.head(stream);
    let expected = ("200", Some("14"), Some(reason), true);
    assert_eq!(
        (head.status(), head.get("grpc-status"), head.get("x-divert-error"), head.end),
        expected,
        "{head:?}"
    );
    assert!(head.get("content-type").is_some_and(|it| it.starts_with("application/grpc")), "{head:?}");
    let message = head.get("grpc-message").unwrap_or_default().replace("%20", " ");
    for word in words {
        assert!(message.contains(word), "{word} is missing in: {message}");
    }
}

#[test]
fn no_ready_endpoint_is_a_503_and_the_connection_goes_on() -> Result<()> {
    let stage = with_endpoints(&[], |_| {})?;
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[ALICE], true);
    client.request(3, &[], true);
    client.request(5, &[ALICE, GRPC], false);
    expect_error(&mut client, 1, "503", "NoReadyEndpoints", &["alice/web", "no ready endpoint"]);
    answer(&mut shared, 3, "shared");
    expect_answer(&mut client, 3, "shared");
    expect_grpc_error(&mut client, 5, "NoReadyEndpoints", &["alice/web", "no ready endpoint"]);
    // HEAD has the head alone.
    let fields = [(":method", "HEAD"), (":scheme", "http"), (":path", "/"), (":authority", "web"), ALICE];
    client.send_head(7, &fields, true);
    let (head, body) = whole(&mut client, 7);
    assert_eq!((head.status(), body.as_str()), ("503", ""));
    // What the clients send of a body all the same is swallowed, and the window is theirs again.
    let window = client.window();
    client.request(9, &[ALICE], false);
    client.bulk(9, &[b'x'; 50_000], true);
    expect_error(&mut client, 9, "503", "NoReadyEndpoints", &[]);
    // But for what is not worth a frame.
    client.wait_window(window - 16_384);
    client.request(11, &[], true);
    answer(&mut shared, 11, "shared");
    expect_answer(&mut client, 11, "shared");
    let metrics = stage.agent.get("/metrics")?.text();
    let tally = r#"key="alice",result="unavailable"} 4"#;
    assert!(metrics.contains(tally), "{metrics}");
    Ok(())
}

#[test]
fn a_server_of_http1_is_a_502_that_says_so() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[ALICE], true);
    let mut alice = stage.alice()?;
    alice.expect("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    alice.send("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    let endpoint = format!("{}:{PORT}", stage.town.lab.pod("alice/web").v4);
    expect_error(&mut client, 1, "502", "NotHttp2", &["alice/web", "HTTP/1", &endpoint]);
    client.request(3, &[], true);
    answer(&mut shared, 3, "shared");
    expect_answer(&mut client, 3, "shared");
    Ok(())
}

#[test]
fn refused_connections_are_a_502_that_names_them() -> Result<()> {
    let town = Fixture::http2()?;
    let hers = format!("{}:{PORT}", town.lab.pod("alice/web").v4);
    let shared = town.server().listen(PORT)?;
    let _agent = town.agent()?;
    let client = Peer::new(town.client().connect(town.address(Family::V4))?);
    let (mut client, mut shared) = greet(client, Peer::accept(&shared)?, &[], &[]);
    client.request(1, &[ALICE], true);
    client.request(3, &[ALICE, GRPC], true);
    expect_error(&mut client, 1, "502", "ConnectFailed", &["alice/web", &hers, "refused"]);
    expect_grpc_error(&mut client, 3, "ConnectFailed", &["alice/web", &hers, "refused"]);
    // It was said to these alone: as soon as one listens, it is asked.
    let alices = town.lab.pod("alice/web").listen(PORT)?;
    client.request(5, &[ALICE], true);
    let (mut alice, _) = H2::server(Peer::accept(&alices)?, &[]);
    answer(&mut alice, 5, "hers");
    expect_answer(&mut client, 5, "hers");
    client.request(7, &[], true);
    answer(&mut shared, 7, "shared");
    expect_answer(&mut client, 7, "shared");
    Ok(())
}

#[test]
fn endpoints_that_time_out_are_a_504_and_hold_up_nobody() -> Result<()> {
    let stage = with_endpoints(&[200, 201, 202], |_| {})?;
    let (mut client, mut shared) = open(&stage)?;
    let began = Instant::now();
    client.request(1, &[ALICE], false);
    client.request(3, &[ALICE, GRPC], true);
    client.data(1, "body", true);
    for stream in (5..105).step_by(2) {
        client.request(stream, &[], true);
        answer(&mut shared, stream, "shared");
        expect_answer(&mut client, stream, "shared");
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    expect_error(&mut client, 1, "504", "ConnectTimeout", &["alice/web", "NetworkPolicy"]);
    expect_grpc_error(&mut client, 3, "ConnectTimeout", &["alice/web", "NetworkPolicy"]);
    let took = began.elapsed();
    assert!((Duration::from_millis(4900)..Duration::from_secs(8)).contains(&took), "{took:?}");
    Ok(())
}

#[test]
fn with_shared_the_original_answers_for_endpoints_that_cannot() -> Result<()> {
    for hosts in [&[][..], &[3]] {
        // None is ready; or alice's, the third pod of the lab, refuses.
        let stage = with_endpoints(hosts, |divert| divert["spec"]["onUnavailable"] = "Shared".into())?;
        drop(stage.alices);
        let town = &stage.town;
        let hers = (town.lab.pod("alice/web").v4, PORT).into();
        wait::until("her port to be closed", || town.client().connect(hers).is_err())?;
        let client = Peer::new(town.client().connect(town.address(Family::V4))?);
        let (mut client, mut shared) = greet(client, Peer::accept(&stage.shared)?, &[], &[]);
        for stream in [1, 3] {
            client.request(stream, &[ALICE], false);
            client.data(stream, "body", true);
            assert_eq!(shared.head(stream).all("baggage").count(), 1);
            shared.expect_data(stream, "body", true);
            shared.respond(stream, &[], false);
            shared.data(stream, "shared", true);
            expect_answer(&mut client, stream, "shared");
        }
    }
    Ok(())
}

#[test]
fn who_answered_is_told_to_those_who_ask() -> Result<()> {
    let stage = Stage::http2()?;
    let (mut client, mut shared) = open(&stage)?;
    let debug = ("x-divert-debug", "1");
    client.request(1, &[ALICE, debug], true);
    let (mut alice, _) = alice(&stage, &[])?;
    let mut stream = 1;
    for round in 0..3 {
        for (hers, fields) in [
            (true, vec![ALICE, debug]),
            (false, vec![debug]),
            (true, vec![ALICE]),
            (false, vec![]),
            (true, vec![ALICE, ("x-divert-debug", "0")]),
            (false, vec![("x-divert-debug", "true")]),
        ] {
            if stream > 1 {
                client.request(stream, &fields, true);
            }
            let server = if hers { &mut alice } else { &mut shared };
            // The field is forwarded like any other.
            assert_eq!(server.head(stream).fields[4..], owned(&fields));
            server.send_head(stream, &[(":status", "103"), ("link", "</a>")], false);
            server.respond(stream, &[("x-same", "word"), ("x-b", "c")], false);
            server.data(stream, "body", false);
            server.send_head(stream, &[("x-trailer", "1")], true);
            assert_eq!(client.head(stream).status(), "103");
            let head = client.head(stream);
            let target = fields.contains(&debug).then_some(if hers { "alice/web" } else { "staging/web" });
            assert_eq!(
                head.all("x-divert-target").collect::<Vec<_>>(),
                Vec::from_iter(target),
                "round {round}"
            );
            assert_eq!((head.get("x-same"), head.get("x-b")), (Some("word"), Some("c")));
            client.expect_data(stream, "body", false);
            assert_eq!(client.head(stream).fields, owned(&[("x-trailer", "1")]));
            stream += 2;
        }
    }
    Ok(())
}

#[test]
fn alice_is_served_where_the_original_is_not_there() -> Result<()> {
    let town = Fixture::http2()?;
    let alices = town.lab.pod("alice/web").listen(PORT)?;
    let agent = town.agent()?;
    let peer = Peer::new(town.client().connect(town.address(Family::V4))?);
    let mut client = H2::client(peer, &[(setting::INITIAL_WINDOW_SIZE, 100_000)]);
    // The agent is the server of this connection.
    client.expect_settings();
    client.wait_acknowledged(1);
    client.send(&[Frame::settings_ack()]);
    client.request(1, &[ALICE], false);
    let (mut alice, settings) = H2::server(Peer::accept(&alices)?, &[]);
    assert!(settings.contains(&(setting::INITIAL_WINDOW_SIZE, 100_000)), "{settings:?}");
    alice.head(1);
    let body = divert_tests::script::bulk(500_000, 1);
    let mut sent = 0;
    for piece in body.chunks(10_000) {
        client.wait_window(piece.len());
        client.wait_granted(1, (sent + piece.len()).saturating_sub(65_535));
        client.data(1, piece, sent + piece.len() == body.len());
        sent += piece.len();
        alice.expect_data(1, piece, sent == body.len());
        let size = u32::try_from(piece.len())?;
        alice.send(&[Frame::window_update(0, size), Frame::window_update(1, size)]);
    }
    alice.respond(1, &[], false);
    alice.data(1, "hers", true);
    expect_answer(&mut client, 1, "hers");
    client.send(&[Frame::ping(b"who's it")]);
    client.expect_ping(&Frame::pong(b"who's it"));
    client.request(3, &[ALICE], false);
    alice.head(3);
    // The others are told that there is nobody, and that the next connection may find somebody.
    client.request(5, &[], true);
    let (head, _) = whole(&mut client, 5);
    assert!(head.status().starts_with('5') && head.get("x-divert-error").is_some(), "{head:?}");
    assert_eq!(client.expect_goaway(), (5, code::NO_ERROR));
    for (stream, fields) in [(7, &[ALICE][..]), (9, &[GRPC])] {
        client.request(stream, fields, true);
        client.expect_reset(stream, code::REFUSED_STREAM);
    }
    // What was begun is ended.
    client.data(3, "the end", true);
    alice.expect_data(3, "the end", true);
    alice.respond(3, &[], false);
    alice.data(3, "hers", true);
    expect_answer(&mut client, 3, "hers");
    client.expect_end();
    alice.expect_end();
    // Where it has refused it is left to do that itself for some seconds.
    let connect = || town.client().connect(town.address(Family::V4)).ok();
    let peer = Peer::new(wait::some_within(wait::PATIENCE, "a connection to be captured", connect)?);
    let mut client = H2::client(peer, &[]);
    client.request(1, &[GRPC], true);
    client.expect_settings();
    assert_eq!(client.head(1).get("grpc-status"), Some("14"));
    // Connections of clients that were served are none that were reset.
    assert_eq!(agent.metric("divert_connections_reset_total")?, 0.0);
    assert!(agent.get("/metrics")?.text().contains(r#"divert_requests_total{result="unavailable"} 2"#));
    let shared = town.server().listen(PORT)?;
    let client = Peer::new(town.client().connect(town.address(Family::V4))?);
    let (mut client, mut shared) = greet(client, Peer::accept(&shared)?, &[], &[]);
    client.request(1, &[], true);
    answer(&mut shared, 1, "shared");
    expect_answer(&mut client, 1, "shared");
    Ok(())
}

/// A client may end its side of the connection when it has asked for all that it wants, be it of a server that serves in
/// the end in another's place.
#[test]
fn a_client_that_says_no_more_is_served_by_the_shared_copy_too() -> Result<()> {
    let stage = with_endpoints(&[200], |divert| divert["spec"]["onUnavailable"] = "Shared".into())?;
    let (mut client, mut shared) = open(&stage)?;
    client.request(1, &[ALICE], true);
    client.peer().finish();
    answer(&mut shared, 1, "shared");
    shared.expect_end();
    expect_answer(&mut client, 1, "shared");
    client.expect_end();
    Ok(())
}

/// Those who call the shared copy by the same connection do not wait while connecting to alice takes its time.
#[test]
fn an_endpoint_that_times_out_holds_up_nobody_with_shared_either() -> Result<()> {
    let stage = with_endpoints(&[200], |divert| divert["spec"]["onUnavailable"] = "Shared".into())?;
    let (mut client, mut shared) = open(&stage)?;
    let began = Instant::now();
    client.request(1, &[ALICE], true);
    for stream in (3..25).step_by(2) {
        client.request(stream, &[], true);
        answer(&mut shared, stream, "shared");
        expect_answer(&mut client, stream, "shared");
    }
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    // Its turn with the shared copy is over, so she has to try again, and is served at once then.
    client.expect_reset(1, code::REFUSED_STREAM);
    let began = Instant::now();
    for (stream, key) in [(25, &[ALICE][..]), (27, &[]), (29, &[ALICE])] {
        client.request(stream, key, true);
        answer(&mut shared, stream, "shared");
        expect_answer(&mut client, stream, "shared");
    }
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    Ok(())
}
