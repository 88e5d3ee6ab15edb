//! semantics.md, Injection, over HTTP/2: streams for a developer's host, and those of a developer's own pods.

use anyhow::Result;
use divert_tests::fixture::{ALICE, BOB, Fixture, PORT};
use divert_tests::h2::stage::{alice, answer, expect_answer, greet, open};
use divert_tests::h2::{Frame, H2, Style, owned, request};
use divert_tests::lab::Family;
use divert_tests::manifest;
use divert_tests::peer::Peer;
use divert_tests::stage::Stage;

/// What a request is given.
const KEY: (&str, &str) = ("baggage", "okteto-divert=alice");

fn with_host(host: &str) -> Result<Stage> {
    let town = Fixture::http2()?;
    let mut divert = manifest::divert("alice", "staging");
    divert["spec"]["hosts"] = [host].as_slice().into();
    town.manifests.put("alice", &[divert])?;
    Stage::of(town)
}

fn to_host<'a>(authority: &'a str, fields: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let pseudo = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", authority)];
    [&pseudo, fields].concat()
}

/// The fields, without the key, which must be there once.
#[track_caller]
fn without_key(fields: &[(String, String)]) -> Vec<(String, String)> {
    let (keys, others): (Vec<_>, Vec<_>) = fields.iter().cloned().partition(|(name, _)| name == "baggage");
    assert_eq!(keys, owned(&[KEY]), "{fields:?}");
    others
}

#[test]
fn an_authority_counts_as_host() -> Result<()> {
    let stage = with_host("web-alice.example.com")?;
    let (mut client, mut shared) = open(&stage)?;
    let host = "web-alice.example.com";
    let hers = [
        to_host(host, &[]),
        to_host("WEB-Alice.Example.com:8080", &[("x", "y")]),
        // Without :authority it is Host that says it (RFC 9113 8.3.1).
        vec![(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", host)],
        to_host(host, &[("host", "web")]),
    ];
    let others = [
        to_host("web", &[]),
        to_host("web", &[("host", host)]),
        to_host("alice.example.com", &[]),
        // A request that carries a key is left alone.
        to_host(host, &[BOB]),
    ];
    let mut alices = None;
    let mut stream = 1;
    for (fields, is_hers) in hers.iter().zip([true; 4]).chain(others.iter().zip([false; 4])) {
        client.send_head(stream, fields, true);
        if is_hers && alices.is_none() {
            alices = Some(alice(&stage, &[])?.0);
        }
        let server = if is_hers { alices.as_mut().expect("just made") } else { &mut shared };
        let head = answer(server, stream, "answered");
        let got = if is_hers { without_key(&head.fields) } else { head.fields };
        assert_eq!(got, owned(fields));
        expect_answer(&mut client, stream, "answered");
        stream += 2;
    }
    Ok(())
}

/// A developer's pod that calls a service of staging, and who is at the other end.
struct Call {
    client: H2,
    shared: H2,
}

fn from_pod(stage: &Stage) -> Result<Call> {
    let dev = stage.town.lab.pod("alice/dev");
    let client = Peer::new(dev.connect(stage.town.address(Family::V4))?);
    let (client, shared) = greet(client, Peer::accept(&stage.shared)?, &[], &[]);
    Ok(Call { client, shared })
}

#[test]
fn streams_of_her_own_pods_get_her_key() -> Result<()> {
    let stage = Stage::of(Fixture::http2_with_pods(&["alice/dev"])?)?;
    let Call { mut client, mut shared } = from_pod(&stage)?;
    client.request(1, &[("x", "y")], true);
    let (mut alice, _) = alice(&stage, &[])?;
    let head = answer(&mut alice, 1, "hers");
    assert_eq!(without_key(&head.fields), owned(&request(&[("x", "y")], true)));
    expect_answer(&mut client, 1, "hers");
    // Other members are merged with, in the first field, and everything else is as it was.
    let fields = [("x", "y"), ("baggage", "user=42;p=1 , a=b"), ("baggage", "c=d"), ("z", "1")];
    let merged =
        [("x", "y"), ("baggage", "okteto-divert=alice,user=42;p=1 , a=b"), ("baggage", "c=d"), ("z", "1")];
    for (stream, style) in [(3, Style::Indexed), (5, Style::Plain), (7, Style::Never)] {
        let block = client.block(&request(&fields, true), style);
        client.send(&[Frame::headers(stream, block, true)]);
        assert_eq!(answer(&mut alice, stream, "hers").fields, owned(&request(&merged, true)));
        expect_answer(&mut client, stream, "hers");
    }
    // Bodies and trailers stay as they are.
    client.request(9, &[], false);
    client.data(9, "body", false);
    client.send_head(9, &[("x-trailer", "1")], true);
    without_key(&alice.head(9).fields);
    alice.expect_data(9, "body", false);
    assert_eq!(alice.head(9).fields, owned(&[("x-trailer", "1")]));
    answer_now(&mut alice, 9);
    expect_answer(&mut client, 9, "now");
    // Her own key, and others', are left alone.
    client.request(11, &[ALICE], true);
    assert_eq!(answer(&mut alice, 11, "hers").fields, owned(&request(&[ALICE], true)));
    expect_answer(&mut client, 11, "hers");
    client.request(13, &[BOB], true);
    assert_eq!(answer(&mut shared, 13, "shared").fields, owned(&request(&[BOB], true)));
    expect_answer(&mut client, 13, "shared");
    Ok(())
}

fn answer_now(server: &mut H2, stream: u32) {
    server.respond(stream, &[], false);
    server.data(stream, "now", true);
}

#[test]
fn the_original_gets_the_key_too_where_she_has_no_service() -> Result<()> {
    let town = Fixture::http2_with_pods(&["alice/dev", "staging/api"])?;
    let api = town.lab.cluster_ips(&town.lab.pod("staging/api"))?;
    town.manifests.put("api", &[manifest::service("staging", "api", api, &[PORT.into()])])?;
    let stage = Stage::of(town)?;
    let listener = stage.town.lab.pod("staging/api").listen(PORT)?;
    let dev = stage.town.lab.pod("alice/dev");
    let client = Peer::new(dev.connect(api.address(Family::V4, PORT))?);
    let (mut client, mut server) = greet(client, Peer::accept(&listener)?, &[], &[]);
    let member = ("baggage", "user=42");
    let merged = ("baggage", "okteto-divert=alice,user=42");
    // Blocks that use tables, across the point where the agent has to write them anew.
    let mut stream = 1;
    for round in 0..3 {
        for (fields, expected) in [
            (vec![("x", "y")], None),
            (vec![("x", "y"), member, ("z", "1")], Some(vec![("x", "y"), merged, ("z", "1")])),
            (vec![BOB, ("z", "1")], Some(vec![BOB, ("z", "1")])),
        ] {
            let block = client.block(&request(&fields, true), Style::Indexed);
            client.send(&Frame::headers_in_pieces(stream, &block, true, 1 + round * 20));
            let head = answer(&mut server, stream, "api");
            match expected {
                Some(expected) => assert_eq!(head.fields, owned(&request(&expected, true)), "round {round}"),
                None => {
                    assert_eq!(without_key(&head.fields), owned(&request(&fields, true)), "round {round}")
                }
            }
            expect_answer(&mut client, stream, "api");
            stream += 2;
        }
    }
    stage.expect_no_alice()
}

#[test]
fn a_head_that_would_grow_too_long_is_refused_where_it_is_seen() -> Result<()> {
    let stage = Stage::of(Fixture::http2_with_pods(&["alice/dev"])?)?;
    let Call { mut client, mut shared } = from_pod(&stage)?;
    // As a head of HTTP/1 is counted: name, value and four bytes for each field. At the limit without the key.
    let count = |fields: &[(&str, &str)]| -> usize {
        fields.iter().map(|(name, value)| name.len() + value.len() + 4).sum()
    };
    let bare = request(&[("x-long", "")], true);
    let long = "v".repeat((128 << 10) - count(&bare));
    for (stream, extra) in [(1, &[][..]), (3, &[("content-type", "application/grpc")])] {
        let fields = [&[("x-long", &long[..long.len() - count(extra)])], extra].concat();
        let block = client.block(&request(&fields, true), Style::Plain);
        client.send(&Frame::headers_in_pieces(stream, &block, true, 16_384));
        let head = client.head(stream);
        assert_eq!(head.get("x-divert-error"), Some("HeadTooLarge"), "{head:?}");
        if extra.is_empty() {
            assert_eq!(head.status(), "431");
        } else {
            assert!(head.get("grpc-status").is_some_and(|status| status != "0"), "{head:?}");
        }
    }
    // The connection is as good as before.
    client.request(5, &[BOB], true);
    answer(&mut shared, 5, "shared");
    client.head(5);
    stage.expect_no_alice()
}
