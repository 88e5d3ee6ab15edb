//! correctness.md, HTTP/2: real gRPC, by tonic on both ends, with calls of mixed keys on one channel.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use divert_tests::agent::{Agent, Options};
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::grpc::{self, Client, Server, in_time, method};
use divert_tests::lab::Family;
use divert_tests::manifest::{self, Port};
use divert_tests::wait;
use tonic::Code;
use tonic::transport::Channel;

/// Whose key, and who is to answer.
const KEYS: [(Option<&str>, &str); 3] =
    [(None, "staging/web"), (Some("alice"), "alice/web"), (Some("bob"), "bob/web")];

/// A town where alice and bob divert, and all three are served.
struct Town {
    runtime: tokio::runtime::Runtime,
    _agent: Agent,
    servers: [Server; 3],
    town: Fixture,
}

impl Town {
    fn new() -> Result<Self> {
        let town = Fixture::http2()?;
        town.divert("bob")?;
        let start = |pod: &str| Server::start(&town.lab.pod(pod), PORT);
        let servers = [start("staging/web")?, start("alice/web")?, start("bob/web")?];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, _agent: town.agent()?, servers, town })
    }

    fn channel(&self) -> Result<Channel> {
        let _entered = self.runtime.enter();
        grpc::channel(&self.town.client(), self.town.address(Family::V4))
    }

    /// Clients by one channel, in the order of [`KEYS`].
    fn clients(&self) -> Result<[Client; 3]> {
        let channel = self.channel()?;
        Ok(KEYS.map(|(key, _)| Client::new(&channel, key)))
    }

    fn run<T>(&self, what: &str, future: impl Future<Output = T>) -> Result<T> {
        Ok(self.runtime.block_on(in_time(what, future))?)
    }
}

#[test]
fn every_kind_of_call_is_answered_by_whom_its_key_says() -> Result<()> {
    let town = Town::new()?;
    let clients = town.clients()?;
    for (client, (_, name)) in clients.iter().zip(KEYS) {
        town.run("calls of each kind", async {
            assert_eq!(client.unary(method::UNARY, "m").await?, format!("{name} m"));
            let messages = (0..50).map(|number| Bytes::from(vec![0; 1000 * number])).collect();
            assert_eq!(client.collect(messages).await?, format!("{name} 50 1225000"));
            let counted: Vec<_> = (0..500).map(|number| format!("{name} {number}")).collect();
            assert_eq!(client.count(500).await?, counted);
            let failed = client.unary(method::FAIL, "").await.expect_err("it always fails");
            assert_eq!((failed.code(), failed.message()), (Code::NotFound, &*format!("{name}: nö")));
            let unknown = client.unary("/test.Town/Nothing", "").await.expect_err("there is none");
            assert_eq!(unknown.code(), Code::Unimplemented);
            Ok::<_, anyhow::Error>(())
        })??;
    }
    // Three conversations at once, a word each in turn.
    town.run("conversations", async {
        let mut chats = Vec::new();
        for (client, (_, name)) in clients.iter().zip(KEYS) {
            let chat = client.chat().await?;
            assert_eq!(chat.hello, format!("{name} hello"));
            chats.push(chat);
        }
        for word in ["one", "two", "three"] {
            for (chat, (_, name)) in chats.iter_mut().zip(KEYS) {
                assert_eq!(chat.say(word).await?, format!("{name} {word}"));
            }
        }
        for chat in chats {
            chat.end().await?;
        }
        Ok::<_, anyhow::Error>(())
    })??;
    assert_eq!(town.servers.each_ref().map(|server| server.seen().calls()), [6; 3]);
    Ok(())
}

#[test]
fn four_megabytes_go_there_and_back() -> Result<()> {
    let town = Town::new()?;
    let clients = town.clients()?;
    let large = Bytes::from(divert_tests::script::bulk(4 << 20, 3));
    // One after the other, then all at once: they share the window of the connection.
    for client in &clients {
        let answer =
            town.run("four megabytes", client.call(method::SAME, client.request(large.clone())))??;
        assert!(answer == large, "other bytes");
    }
    let [one, two, three] = &clients;
    let (one, two, three) = town.run("twelve megabytes", async {
        tokio::join!(
            one.call(method::SAME, one.request(large.clone())),
            two.call(method::SAME, two.request(large.clone())),
            three.call(method::SAME, three.request(large.clone())),
        )
    })?;
    for answer in [one?, two?, three?] {
        assert!(answer == large, "other bytes");
    }
    assert_eq!(town.servers.each_ref().map(|server| server.seen().calls()), [2; 3]);
    Ok(())
}

#[test]
fn a_thousand_calls_are_open_at_once_and_each_is_answered_by_its_own() -> Result<()> {
    const CALLS: usize = 1000;
    let town = Town::new()?;
    let clients = town.clients()?;
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..CALLS {
        let client = clients[number % 3].clone();
        let wanted = format!("{} {number}", KEYS[number % 3].1);
        let call = async move {
            let answer = client.unary(method::HANG, number.to_string()).await?;
            ensure!(answer == wanted, "{answer} instead of {wanted}");
            Ok(())
        };
        calls.spawn_on(call, town.runtime.handle());
    }
    town.run("a thousand calls", async {
        let hanging = || town.servers.iter().map(|server| server.seen().hanging()).sum::<usize>();
        while hanging() < CALLS {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        town.servers.iter().for_each(Server::release);
        while let Some(done) = calls.join_next().await {
            done??;
        }
        Ok::<_, anyhow::Error>(())
    })??;
    // On one connection.
    assert_eq!(town._agent.metric("divert_connections_accepted_total")?, 1.0);
    Ok(())
}

#[test]
fn a_call_that_is_given_up_is_cancelled_at_its_server() -> Result<()> {
    let town = Town::new()?;
    let clients = town.clients()?;
    for (number, client) in clients.iter().enumerate() {
        let seen = town.servers[number].seen();
        let calling = client.clone();
        let call = town.runtime.spawn(async move { calling.unary(method::HANG, "").await });
        town.run("the call to begin", async {
            while seen.hanging() == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            call.abort();
            while seen.cancelled() == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })?;
        let others = town.servers.iter().map(|server| server.seen().cancelled()).sum::<usize>();
        assert_eq!(others, number + 1, "nobody else's");
        assert_eq!(
            town.run("the next call", client.unary(method::UNARY, "m"))??,
            format!("{} m", KEYS[number].1)
        );
    }
    Ok(())
}

#[test]
fn a_deadline_reaches_the_server_and_ends_the_call() -> Result<()> {
    let town = Town::new()?;
    let clients = town.clients()?;
    for (number, client) in clients.iter().enumerate() {
        let seen = town.servers[number].seen();
        let calls = seen.calls();
        let mut milliseconds = 200;
        // A busy machine may let it pass before the call begins. The last is shorter than a test waits.
        while seen.calls() == calls && milliseconds < 5_000 {
            milliseconds *= 2;
            let mut request = client.request(Bytes::new());
            request.set_timeout(Duration::from_millis(milliseconds));
            let ended = town.run("the deadline", client.call(method::HANG, request))?;
            let code = ended.expect_err("nobody answers").code();
            assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{code:?}");
        }
        assert_eq!(seen.timeout(), Some(format!("{milliseconds}000u")));
        wait::until("the server to give it up", || seen.hanging() == 0)?;
        assert_eq!(
            town.run("the next call", client.unary(method::UNARY, "m"))??,
            format!("{} m", KEYS[number].1)
        );
    }
    Ok(())
}

#[test]
fn a_developer_who_cannot_be_reached_is_unavailable_and_says_why() -> Result<()> {
    let mut town = Town::new()?;
    let clients = town.clients()?;
    let [shared, alice, _] = &clients;
    assert_eq!(town.run("a call", alice.unary(method::UNARY, "m"))??, "alice/web m");
    // No listener any more: what was open is cut.
    drop(std::mem::replace(&mut town.servers[1], Server::start(&town.town.client(), PORT + 1)?));
    let failed = town.run("a failure", alice.unary(method::UNARY, "m"))?.expect_err("nobody listens");
    assert_eq!(failed.code(), Code::Unavailable, "{failed:?}");
    let failed = town.run("a failure", alice.unary(method::UNARY, "m"))?.expect_err("nobody listens");
    assert_eq!(failed.code(), Code::Unavailable, "{failed:?}");
    assert!(failed.message().contains("alice/web"), "{failed:?}");
    assert!(failed.message().contains("refused"), "{failed:?}");
    assert_eq!(failed.metadata().get("x-divert-error").map(|it| it.as_bytes()), Some(&b"ConnectFailed"[..]));
    // No endpoint.
    let endpoint = (town.town.lab.pod("alice/web").ip(Family::V4), false);
    let slice = manifest::endpoint_slice("alice", "web", "by-hand", &[endpoint], PORT);
    town.town.manifests.put("endpoints", &[slice])?;
    wait::until("the reason to change", || {
        let failed = town.run("a failure", alice.unary(method::UNARY, "m"));
        let Ok(Err(failed)) = failed else { return false };
        failed.metadata().get("x-divert-error").is_some_and(|it| it.as_bytes() == b"NoReadyEndpoints")
            && failed.message().contains("alice/web has no ready endpoint")
            && failed.code() == Code::Unavailable
    })?;
    // The channel is as good as before.
    assert_eq!(town.run("a call", shared.unary(method::UNARY, "m"))??, "staging/web m");
    assert_eq!(town._agent.metric("divert_connections_accepted_total")?, 1.0);
    Ok(())
}

#[test]
fn a_channel_that_is_older_than_a_divert_follows_it() -> Result<()> {
    let town = Fixture::http2()?;
    town.undivert("alice")?;
    let http2: Port = PORT.into();
    town.put_town(&[http2.app_protocol("kubernetes.io/h2c")])?;
    let _servers = [Server::start(&town.server(), PORT)?, Server::start(&town.lab.pod("alice/web"), PORT)?];
    let options = Options { arguments: vec!["--reconnect-idle".into(), "1".into()], ..Options::default() };
    let agent = Agent::start(&town.lab, &town.manifests, &options)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let channel = {
        let _entered = runtime.enter();
        grpc::channel(&town.client(), town.address(Family::V4))?
    };
    let client = Client::new(&channel, Some("alice"));
    let by = || runtime.block_on(in_time("an answer", client.unary(method::UNARY, "m")));
    for _ in 0..5 {
        assert_eq!(by()??, "staging/web m");
    }
    assert_eq!(agent.metric("divert_connections_accepted_total")?, 0.0, "it is not captured");
    town.divert("alice")?;
    wait::until("the old connection to be closed", || {
        // The runtime must run for the channel to see it.
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(20)).await });
        agent.metric("divert_reconnects_total").is_ok_and(|closed| closed >= 1.0)
    })?;
    // A call that meets the closing fails, as with any server that closes an idle connection; none is missed.
    let first = wait::some_within(wait::PATIENCE, "an answer", || by().ok()?.ok())?;
    assert_eq!(first, "alice/web m");
    // A conversation ends where it began, whatever comes and goes.
    let mut chat = runtime.block_on(in_time("a conversation", client.chat()))??;
    assert_eq!(chat.hello, "alice/web hello");
    town.undivert("alice")?;
    let followed = |name: &'static str| {
        wait::until(&format!("{name} to answer"), || {
            by().is_ok_and(|answer| answer.is_ok_and(|text| text == format!("{name} m")))
        })
    };
    followed("staging/web")?;
    assert_eq!(runtime.block_on(in_time("a word", chat.say("still")))??, "alice/web still");
    town.divert("alice")?;
    followed("alice/web")?;
    assert_eq!(runtime.block_on(in_time("a word", chat.say("again")))??, "alice/web again");
    runtime.block_on(in_time("the end", chat.end()))??;
    Ok(())
}
