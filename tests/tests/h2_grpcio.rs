//! correctness.md, HTTP/2: gRPC as Python speaks it (grpcio, the C core), as client and as server, also with tonic at
//! the other end.

use std::time::Duration;

use anyhow::{Context, Result};
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::grpc::{self, Client, Server, in_time, method};
use divert_tests::lab::Family;
use divert_tests::process::Process;
use divert_tests::wait;

const LIMIT: Duration = Duration::from_secs(90);
const PODS: [&str; 3] = ["staging/web", "alice/web", "bob/web"];

fn serve(town: &Fixture) -> Result<Vec<Process>> {
    let mut servers = Vec::new();
    for name in PODS {
        let mut command = grpc::python("server.py")?;
        command.args([name, &PORT.to_string()]);
        servers.push(town.lab.pod(name).spawn("grpcio server", command)?);
    }
    for server in &servers {
        let says = || server.output().contains("serving");
        wait::until_within(LIMIT, "grpcio to serve", says).with_context(|| server.output())?;
    }
    Ok(servers)
}

/// Plays the client. Gives, for each server, how many calls it gave up or let run out of time.
fn call(town: &Fixture, family: Family) -> Result<[usize; 3]> {
    let mut command = grpc::python("client.py")?;
    command.arg(town.address(family).to_string());
    let printed = town.client().spawn("grpcio client", command)?.finish(LIMIT)?;
    assert!(printed.contains("grpcio is done"), "{printed}");
    let left = |name| {
        let line = printed.lines().find_map(|it| it.strip_prefix(name)?.strip_prefix(" was left "));
        line.and_then(|it| it.strip_suffix(" calls")?.parse().ok()).unwrap_or_else(|| panic!("{printed}"))
    };
    Ok(PODS.map(left))
}

fn town() -> Result<Fixture> {
    let town = Fixture::http2()?;
    town.divert("bob")?;
    Ok(town)
}

#[test]
fn grpcio_calls_tonic() -> Result<()> {
    let town = town()?;
    let servers = PODS.map(|name| Server::start(&town.lab.pod(name), PORT));
    let agent = town.agent()?;
    let left = call(&town, Family::V4)?;
    assert_eq!(agent.metric("divert_connections_accepted_total")?, 1.0, "one channel, one connection");
    for (server, left) in servers.into_iter().zip(left) {
        let server = server?;
        // One was given up and one ran out of time; none is under way, as the client has seen. Further ones had no time to
        // begin, or hardly.
        assert!((2..=left).contains(&server.seen().cancelled()), "of {left}: {:?}", server.seen());
        assert!(server.seen().timeout().is_some());
    }
    Ok(())
}

#[test]
fn grpcio_calls_itself() -> Result<()> {
    let town = town()?;
    let servers = serve(&town)?;
    let _agent = town.agent()?;
    let left = call(&town, Family::V6)?;
    for (server, left) in servers.iter().zip(left) {
        let count = |what| server.output().matches(what).count();
        let all_over =
            || (2..=left).contains(&count("hanging, ")) && count("cancelled") == count("hanging, ");
        wait::until("the server to see that none is wanted any more", all_over)
            .with_context(|| server.output())?;
        assert!(server.output().contains("hanging, a deadline"), "{}", server.output());
        assert!(server.output().contains("hanging, no deadline"), "{}", server.output());
    }
    Ok(())
}

#[test]
fn tonic_calls_grpcio() -> Result<()> {
    let town = town()?;
    let servers = serve(&town)?;
    let agent = town.agent()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let calls = async {
        let channel = grpc::channel(&town.client(), town.address(Family::V4))?;
        for round in 0..2 {
            for (key, name) in [None, Some("alice"), Some("bob")].into_iter().zip(PODS) {
                let client = Client::new(&channel, key);
                assert_eq!(client.unary(method::UNARY, "m").await?, format!("{name} m"));
                let messages = vec![bytes::Bytes::from(vec![0; 100_000]); 20];
                assert_eq!(client.collect(messages).await?, format!("{name} 20 2000000"));
                assert_eq!(client.count(300).await?.last(), Some(&format!("{name} 299")));
                let mut chat = client.chat().await?;
                assert_eq!(chat.say("word").await?, format!("{name} word"));
                chat.end().await?;
                let large = bytes::Bytes::from(divert_tests::script::bulk(4 << 20, round));
                let answer = client.call(method::SAME, client.request(large.clone())).await?;
                assert!(answer == large, "other bytes");
                let failed = client.unary(method::FAIL, "").await.expect_err("it always fails");
                assert_eq!(failed.message(), format!("{name}: nö"));
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    runtime.block_on(in_time("all calls", calls))??;
    assert_eq!(agent.metric("divert_connections_accepted_total")?, 1.0);
    drop(servers);
    Ok(())
}
