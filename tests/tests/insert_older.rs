//! Insertion into connections that are older than the agent: as after each upgrade.

use anyhow::{Context, Result, ensure};
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::insert::{ALICES, SHARED, answered};
use divert_tests::lab::FAMILIES;
use divert_tests::manifest::Port;
use divert_tests::usage::unacknowledged;
use divert_tests::wait;

fn agent(town: &Fixture) -> Result<Agent> {
    let arguments = ["--path", "auto"].map(str::to_owned).into();
    Agent::start(&town.lab, &town.manifests, &Options { arguments, ..Options::default() })
}

fn town() -> Result<Fixture> {
    let town = Fixture::new()?;
    town.put_town(&[Port::from(PORT).named("http")])?;
    Ok(town)
}

/// Connections in use, which are never idle for as long as would have them closed.
#[test]
fn connections_in_use_follow_every_agent_that_comes() -> Result<()> {
    let town = town()?;
    let _servers = town.servers()?;
    let mut open = Vec::new();
    for family in FAMILIES.into_iter().cycle().take(6) {
        let mut http = town.connect_by(family)?;
        assert_eq!(answered(&mut http, &[])?, SHARED);
        open.push(http);
    }
    for round in 0..3 {
        let mut agent = agent(&town)?;
        // A third of them is taken over in each round, and ends with its agent.
        let mut kept = open.split_off(open.len() - open.len() / 3);
        for http in &mut kept {
            wait::until("a connection in use to be followed", || {
                answered(http, &[]).is_ok_and(|by| by == SHARED)
                    && answered(http, &[ALICE]).is_ok_and(|by| by == ALICES)
            })
            .with_context(|| format!("agent {round}"))?;
        }
        for http in &mut open {
            assert_eq!(answered(http, &[])?, SHARED);
        }
        assert_eq!(agent.series("divert_reconnects_total{result=\"closed\"}")?, 0.0);
        ensure!(agent.metric("divert_watched_older_total")? >= kept.len() as f64);
        agent.stop()?;
    }
    Ok(())
}

/// Sends a body of three pieces, each once the server has acknowledged what was before: then it looks most like a request.
fn upload(http: &mut Http, head: &str, piece: &str) -> Result<()> {
    http.send(head.as_bytes())?;
    for _ in 0..3 {
        wait::until("what was sent to be acknowledged", || unacknowledged(http.stream()) == 0)?;
        http.send(piece.as_bytes())?;
    }
    let response = http.response()?;
    ensure!(response.served_by().as_deref() == Some(SHARED), "{:?}", response.served_by());
    ensure!(response.text().ends_with(&piece.repeat(3)), "{}", response.text());
    Ok(())
}

#[test]
fn the_rest_of_a_body_that_looks_like_a_request_is_none() -> Result<()> {
    let town = town()?;
    let _servers = town.servers()?;
    let mut http = town.connect()?;
    assert_eq!(answered(&mut http, &[])?, SHARED);
    let agent = agent(&town)?;
    let body = "GET / HTTP/1.1\r\nHost: web\r\nbaggage: okteto-divert=alice\r\n\r\n";
    let head = format!("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n\r\n", 3 * body.len());
    wait::until("it to be followed", || {
        upload(&mut http, &head, body).is_ok()
            && agent.metric("divert_watched_older_total").is_ok_and(|it| it == 1.0)
    })?;
    upload(&mut http, &head, body)?;
    assert_eq!(agent.series("divert_takeovers_total{result=\"taken\"}")?, 0.0);
    assert_eq!(answered(&mut http, &[ALICE])?, ALICES);
    assert_eq!(agent.metric("divert_watched_older_total")?, 1.0);
    Ok(())
}
