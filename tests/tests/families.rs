//! Services of both families whose servers listen on one: clients try the addresses in turn, and go on where one refuses.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use divert_tests::agent::Agent;
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::http::Http;
use divert_tests::lab::{self, Family, Pod};
use divert_tests::script::is_captured;
use divert_tests::server::Echo;
use divert_tests::{path, wait};

/// Serves on IPv4 alone, as a server that binds 0.0.0.0 does.
fn on_v4(pod: &Pod) -> Result<Echo> {
    let socket = pod.socket(Family::V4)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
    socket.listen(64)?;
    Ok(Echo::on(pod.name(), socket.into(), <[u8]>::to_vec))
}

fn start() -> Result<(Fixture, [Echo; 2], Agent)> {
    let town = Fixture::with_pods(&["staging/other"])?;
    let servers = [on_v4(&town.server())?, on_v4(&town.lab.pod("alice/web"))?];
    let agent = town.agent()?;
    Ok((town, servers, agent))
}

fn asked(town: &Fixture, pod: &Pod, family: Family, key: &[(&str, &str)]) -> Result<Option<String>> {
    let stream = lab::patient(pod.connect(town.address(family))?)?;
    Ok(Http::new(stream).get("/", key)?.served_by())
}

#[test]
fn a_request_with_a_key_reaches_a_server_of_the_other_family() -> Result<()> {
    let (town, _servers, _agent) = start()?;
    path::meet_refusal(&town.client(), town.address(Family::V6))?;
    for family in [Family::V6, Family::V4] {
        assert_eq!(
            asked(&town, &town.client(), family, &[ALICE])?.as_deref(),
            Some("alice/web"),
            "{family:?}"
        );
    }
    Ok(())
}

#[test]
fn what_was_just_refused_is_left_to_refuse_so_that_clients_go_on() -> Result<()> {
    let (town, _servers, agent) = start()?;
    let (client, other) = (town.client(), town.lab.pod("staging/other"));
    path::meet_refusal(&client, town.address(Family::V6))?;
    // Who is led to the agent first learns of it as well as a proxy can tell.
    assert!(asked(&town, &client, Family::V6, &[]).is_err());
    let refused = client.connect(town.address(Family::V6)).expect_err("nobody listens there");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert!(agent.passed("refused")? >= 1.0);
    for (key, by) in [(&[][..], "staging/web"), (&[ALICE], "alice/web")] {
        assert_eq!(asked(&town, &client, Family::V4, key)?.as_deref(), Some(by));
    }
    // It is this pod that was refused: another may have rules that let it.
    path::meet_refusal(&other, town.address(Family::V6))?;
    assert_eq!(asked(&town, &other, Family::V6, &[ALICE])?.as_deref(), Some("alice/web"));
    wait::until("the pod's connections there to be captured again", || {
        client
            .connect(town.address(Family::V6))
            .is_ok_and(|it| is_captured(&it, &client).is_ok_and(|it| it == Some(true)))
    })
}

/// Segments with RST that the kernel of a pod's namespace has sent.
fn resets_sent(pod: &Pod) -> Result<u64> {
    let table = pod.netns().enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut rows =
        table.lines().filter_map(|line| line.strip_prefix("Tcp: ")).map(str::split_ascii_whitespace);
    let (names, values) = rows.next().zip(rows.next()).context("no row of TCP")?;
    let (_, sent) = names.zip(values).find(|(name, _)| *name == "OutRsts").context("no OutRsts")?;
    Ok(sent.parse()?)
}

#[test]
fn a_refusal_that_no_client_met_keeps_nobody_from_alice() -> Result<()> {
    let town = Fixture::new()?;
    let _alices = Echo::start(&town.lab.pod("alice/web"), PORT)?;
    let _agent = town.agent()?;
    path::meet_refusal(&town.client(), town.address(Family::V4))?;
    let before = resets_sent(&town.server())?;
    let mut http = town.connect()?;
    wait::until("the shared copy's kernel to refuse", || {
        resets_sent(&town.server()).is_ok_and(|it| it > before)
    })?;
    assert_eq!(http.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));
    assert_eq!(town.connect()?.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));
    Ok(())
}
