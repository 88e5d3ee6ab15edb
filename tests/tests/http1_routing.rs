//! semantics.md, Header and Decision: who gets which request.

use anyhow::{Context, Result};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, BOB, Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::lab::FAMILIES;
use divert_tests::peer::Peer;
use divert_tests::script::is_captured;
use divert_tests::server::Echo;
use divert_tests::stage::Stage;
use divert_tests::{manifest, path, wait};

const SHARED: &str = "staging/web";
const ALICES: &str = "alice/web";
const BOBS: &str = "bob/web";

/// A server in each of the pods.
fn servers(town: &Fixture) -> Result<[Echo; 3]> {
    Ok([
        Echo::start(&town.lab.pod(SHARED), PORT)?,
        Echo::start(&town.lab.pod(ALICES), PORT)?,
        Echo::start(&town.lab.pod(BOBS), PORT)?,
    ])
}

/// Who answers a request with these fields on a connection.
fn served_by(http: &mut Http, fields: &[(&str, &str)]) -> Result<String> {
    let response = http.get("/", fields)?;
    response
        .served_by()
        .with_context(|| format!("the agent answered: {} {}", response.status, response.text()))
}

#[test]
fn requests_on_a_kept_connection_are_routed_one_by_one() -> Result<()> {
    let town = Fixture::new()?;
    let servers = servers(&town)?;
    town.divert("bob")?;
    let _agent = town.agent()?;
    for family in FAMILIES {
        let mut http = town.connect_by(family)?;
        let kinds: [(&[(&str, &str)], &str); 8] = [
            (&[], SHARED),
            (&[ALICE], ALICES),
            (&[BOB], BOBS),
            (&[ALICE], ALICES),
            (&[], SHARED),
            (&[("BAGGAGE", "x=y , okteto-divert = bob ;p")], BOBS),
            (&[("baggage", "okteto-divert=carol")], SHARED),
            (&[("baggage", "okteto-divert=alice-feature")], SHARED),
        ];
        for (number, (fields, expected)) in kinds.into_iter().cycle().take(40).enumerate() {
            assert_eq!(served_by(&mut http, fields)?, expected, "request {number}, {fields:?}");
        }
        assert_eq!(http.stream().peer_addr()?, town.address(family));
    }
    // One upstream connection for each client connection and target, kept; and where agents insert, the client's own.
    let own = if path::inserts() { 2 } else { 0 };
    assert_eq!(servers.each_ref().map(Echo::accepted), [2 + own, 2, 2]);
    Ok(())
}

#[test]
fn a_developers_server_sees_the_pod_as_its_client() -> Result<()> {
    let town = Fixture::new()?;
    let servers = servers(&town)?;
    let _agent = town.agent()?;
    for family in FAMILIES {
        let mut http = town.connect_by(family)?;
        assert_eq!(served_by(&mut http, &[ALICE])?, ALICES);
        let clients = servers[1].clients();
        let peer = clients.last().context("a client")?.ip().to_canonical();
        assert_eq!(peer, town.client().ip(family));
    }
    Ok(())
}

#[test]
fn pipelined_requests_to_different_targets_are_answered_in_order() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    town.divert("bob")?;
    let _agent = town.agent()?;
    let mut http = town.connect()?;
    let keys = ["", "baggage: okteto-divert=alice\r\n", "baggage: okteto-divert=bob\r\n"];
    let requests: Vec<_> = (0..30).map(|number| (number, keys[number * 7 % 3])).collect();
    let text = requests.iter().map(|(number, key)| {
        let body = format!("body {number}");
        format!("POST /{number} HTTP/1.1\r\nHost: web\r\n{key}Content-Length: {}\r\n\r\n{body}", body.len())
    });
    http.send(text.collect::<String>().as_bytes())?;
    for (number, _) in requests {
        let response = http.response()?;
        let expected = [SHARED, ALICES, BOBS][number * 7 % 3];
        assert_eq!(response.served_by().as_deref(), Some(expected), "request {number}");
        assert!(response.text().starts_with(&format!("POST /{number} ")), "{}", response.text());
        assert!(response.text().ends_with(&format!("body {number}")), "{}", response.text());
    }
    Ok(())
}

#[test]
fn an_endpoint_that_is_gone_gets_no_further_request() -> Result<()> {
    let town = Fixture::new()?;
    let servers = servers(&town)?;
    let agent = town.agent()?;
    let mut http = town.connect()?;
    assert_eq!(served_by(&mut http, &[ALICE])?, ALICES);
    // Alice's Service now has bob's pod for its endpoint.
    let bobs = town.lab.pod(BOBS);
    let slice =
        |ready| [manifest::endpoint_slice("alice", "web", "by-hand", &[(bobs.ip(FAMILIES[0]), ready)], PORT)];
    town.manifests.put("slice", &slice(true))?;
    wait::until("the new endpoint to answer on the kept connection", || {
        served_by(&mut http, &[ALICE]).is_ok_and(|answer| answer == BOBS)
    })?;
    let before = servers[1].requests();
    for _ in 0..20 {
        assert_eq!(served_by(&mut http, &[ALICE])?, BOBS);
    }
    assert_eq!(servers[1].requests(), before);
    // Not ready: 503, and the sentence says who and why.
    town.manifests.put("slice", &slice(false))?;
    let mut answer = None;
    wait::until("503", || {
        answer = http.get("/", &[ALICE]).ok();
        answer.as_ref().is_some_and(|answer| answer.status == 503)
    })?;
    let answer = answer.context("an answer")?;
    assert!(answer.header("x-divert-error").is_some());
    assert!(answer.text().contains("alice/web"), "{}", answer.text());
    assert_eq!(served_by(&mut town.connect()?, &[])?, SHARED);
    drop(agent);
    Ok(())
}

#[test]
fn a_dead_original_does_not_stop_diverted_requests() -> Result<()> {
    let town = Fixture::new()?;
    let _alices = Echo::start(&town.lab.pod(ALICES), PORT)?;
    let _agent = town.agent()?;
    path::meet_refusal(&town.client(), town.address(FAMILIES[0]))?;
    let mut http = town.connect()?;
    assert_eq!(served_by(&mut http, &[ALICE])?, ALICES);
    let mut http = town.connect()?;
    let refused = http.get("/", &[]);
    assert!(refused.is_err(), "no shared copy runs, yet it answered {refused:?}");
    Ok(())
}

#[test]
fn the_key_is_read_as_baggage_is_written() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    town.divert("bob")?;
    let _agent = town.agent()?;
    let baggage = |value: &str| format!("baggage: {value}\r\n");
    let many = |count: usize| "x=y,".repeat(count);
    let cases = [
        // Members, white space, properties, other names.
        (baggage("okteto-divert=alice"), ALICES),
        (baggage("a=b, \t okteto-divert \t=\t alice ; p=1;q , c=d"), ALICES),
        (baggage("divert=alice"), ALICES),
        ("BaGgAgE:okteto-divert=alice\r\n".into(), ALICES),
        ("baggage.okteto-divert: alice\r\n".into(), ALICES),
        ("Baggage.Okteto-Divert:  alice  \r\n".into(), ALICES),
        // In this order: each key's first value that is not empty.
        (baggage("divert=bob,okteto-divert=alice"), ALICES),
        (format!("baggage.okteto-divert: bob\r\n{}", baggage("divert=alice")), ALICES),
        (baggage("okteto-divert=alice,okteto-divert=bob"), ALICES),
        (baggage("okteto-divert=,divert=alice"), ALICES),
        (baggage("okteto-divert=;p,divert="), SHARED),
        // Several fields are one list.
        (format!("{}Accept: */*\r\n{}", baggage("a=b"), baggage("okteto-divert=alice")), ALICES),
        (format!("{}{}", baggage("okteto-divert=alice"), baggage("okteto-divert=bob")), ALICES),
        // Percent-encoding: decoded, or raw where it is broken.
        (baggage("okteto-divert=%61lic%65"), ALICES),
        (baggage("okteto-divert=alice%"), SHARED),
        (baggage("okteto-divert=alice%2"), SHARED),
        (baggage("okteto-divert=%ff"), SHARED),
        // Whole values, case-sensitive, of this key and no other.
        (baggage("okteto-divert=alice-feature"), SHARED),
        (baggage("okteto-divert=alic"), SHARED),
        (baggage("okteto-divert=Alice"), SHARED),
        (baggage("Okteto-Divert=alice"), SHARED),
        (baggage("x-okteto-divert=alice"), SHARED),
        (baggage("a=b;okteto-divert=alice"), SHARED),
        (baggage("a=okteto-divert=alice"), SHARED),
        (baggage("okteto-divert"), SHARED),
        ("x-baggage: okteto-divert=alice\r\n".into(), SHARED),
        // 180 members and 8192 bytes are read.
        (baggage(&format!("{}okteto-divert=alice", many(179))), ALICES),
        (baggage(&format!("{}okteto-divert=alice", many(180))), SHARED),
        (baggage(&format!("a={},okteto-divert=alice", "b".repeat(8000))), ALICES),
        (baggage(&format!("a={},okteto-divert=alice", "b".repeat(8192))), SHARED),
        // A key that nobody diverts with.
        (baggage("okteto-divert=staging"), SHARED),
        (baggage("okteto-divert=carol"), SHARED),
        (baggage("okteto-divert=../alice"), SHARED),
    ];
    let mut http = town.connect()?;
    for (fields, expected) in cases {
        let request = format!("GET / HTTP/1.1\r\nHost: web\r\n{fields}\r\n");
        http.send(request.as_bytes())?;
        let response = http.response()?;
        assert_eq!(response.served_by().as_deref(), Some(expected), "{fields:.100}");
        // Forwarded as it came.
        assert_eq!(response.text(), request);
    }
    Ok(())
}

#[test]
fn the_names_of_the_key_are_settings() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let arguments = ["--key", "team,who", "--key-header", "x-team"].map(String::from).to_vec();
    let _agent = Agent::start(&town.lab, &town.manifests, &Options { arguments, ..Options::default() })?;
    let mut http = town.connect()?;
    assert_eq!(served_by(&mut http, &[("baggage", "team=alice")])?, ALICES);
    assert_eq!(served_by(&mut http, &[("baggage", "team=,who=alice")])?, ALICES);
    assert_eq!(served_by(&mut http, &[("X-Team", "alice")])?, ALICES);
    assert_eq!(served_by(&mut http, &[ALICE])?, SHARED);
    assert_eq!(served_by(&mut http, &[("baggage.okteto-divert", "alice")])?, SHARED);
    Ok(())
}

#[test]
fn a_change_of_routing_applies_from_the_next_request() -> Result<()> {
    let stage = Stage::new()?;
    let Stage { town, .. } = &stage;
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let (head, rest) = ok.split_at(ok.len() - 1);
    let post = "POST / HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\nContent-Length: 4\r\n\r\n";
    let (mut client, mut first) = stage.connect()?;
    let mut other = town.client().connect(town.address(FAMILIES[0])).map(Peer::new)?;
    let mut others = [Some(Peer::accept(&stage.shared)?), None];
    // Asks on another connection until requests go where they now should.
    let mut settle = |to_alice: bool| -> Result<()> {
        wait::until("the change to apply", || {
            other.send("GET / HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\n\r\n");
            let asked = wait::some_within(wait::PATIENCE, "a request", || {
                for (server, fresh) in others.iter_mut().zip([stage.try_shared(), stage.try_alice()]) {
                    *server = fresh.or_else(|| server.take());
                }
                others.iter_mut().position(|server| server.as_mut().is_some_and(Peer::has_bytes))
            });
            let Ok(asked) = asked else { return false };
            if let Some(server) = &mut others[asked] {
                server.head();
                server.send(ok);
            }
            other.expect(ok);
            (asked == 1) == to_alice
        })
    };
    settle(true)?;
    // Half sent to alice, when her Divert goes.
    client.send(format!("{post}bo"));
    let mut alice = stage.alice()?;
    alice.expect(format!("{post}bo"));
    // A server that was sent nothing is not kept waiting.
    first.expect_end();
    town.undivert("alice")?;
    settle(false)?;
    client.send(format!("dy{post}"));
    alice.expect("dy");
    alice.send(ok);
    client.expect(ok);
    // The next is the shared copy's; half answered by it, when the Divert is back.
    let mut shared = Peer::accept(&stage.shared)?;
    shared.expect(post);
    client.send("body");
    shared.expect("body");
    shared.send(head);
    client.expect(head);
    town.divert("alice")?;
    settle(true)?;
    shared.send(rest);
    client.expect(rest);
    client.send(format!("{post}body"));
    alice.expect(format!("{post}body"));
    alice.send(ok);
    client.expect(ok);
    Ok(())
}

#[test]
fn a_developers_own_service_stays_hers_whatever_the_key() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    town.divert("bob")?;
    let _agent = town.agent()?;
    for family in FAMILIES {
        let to = town.developers[0].address(family, PORT);
        let stream = town.client().connect(to)?;
        assert_eq!(is_captured(&stream, &town.client())?, Some(false));
        let mut http = Http::new(stream);
        for fields in [&[][..], &[ALICE], &[BOB]] {
            assert_eq!(served_by(&mut http, fields)?, ALICES);
        }
    }
    Ok(())
}

#[test]
fn endpoint_addresses_are_routed_like_the_service() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = servers(&town)?;
    let _agent = town.agent()?;
    for family in FAMILIES {
        let to = (town.server().ip(family), PORT).into();
        let mut http = Http::new(town.client().connect(to)?);
        assert_eq!(served_by(&mut http, &[ALICE])?, ALICES);
        assert_eq!(served_by(&mut http, &[])?, SHARED);
        assert_eq!(http.stream().peer_addr()?, to);
    }
    Ok(())
}

#[test]
fn a_dead_original_resets_at_once_where_nobody_could_answer() -> Result<()> {
    let town = Fixture::new()?;
    let unready = [(town.lab.pod(ALICES).ip(FAMILIES[0]), false)];
    town.manifests.put("slice", &[manifest::endpoint_slice("alice", "web", "by-hand", &unready, PORT)])?;
    let agent = town.agent()?;
    path::meet_refusal(&town.client(), town.address(FAMILIES[0]))?;
    // It may come before connect has returned.
    match town.client().connect(town.address(FAMILIES[0])) {
        Ok(client) => Peer::new(client).expect_reset(),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    assert_eq!(agent.metric("divert_connections_reset_total")?, 1.0);
    Ok(())
}
