//! What is captured, and what is left alone: the peer of a connection that is not captured is the server
//! itself, in the kernel's own table and not only by getpeername.

use anyhow::{Context, Result, ensure};
use divert_tests::fixture::{ALICE, Fixture, PORT};
use divert_tests::lab::FAMILIES;
use divert_tests::manifest::{self, Port};
use divert_tests::script::is_captured;
use divert_tests::server::Echo;
use divert_tests::wait;

/// Whether the client's connections to a port of staging/web are captured; whoever connects is answered,
/// and shown the address it asked for.
fn captured(town: &Fixture, port: u16) -> Result<bool> {
    let mut seen = Vec::new();
    for family in FAMILIES {
        let to = town.web.address(family, port);
        let stream = town.client().connect(to)?;
        assert_eq!(stream.peer_addr()?, to);
        seen.push(is_captured(&stream, &town.client())?.context("the connection is in no table of sockets")?);
        let by = divert_tests::http::Http::new(stream).get("/", &[])?.served_by();
        assert_eq!(by.as_deref(), Some("staging/web"));
    }
    ensure!(seen[0] == seen[1], "one family is captured, the other not: {seen:?}");
    Ok(seen[0])
}

fn port(number: u16, name: &str) -> Port {
    Port::from(number).named(name)
}

#[test]
fn a_service_that_nobody_diverts_is_not_captured() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    town.undivert("alice")?;
    let agent = town.agent()?;
    assert!(!captured(&town, PORT)?);
    assert_eq!(agent.metric("divert_connections_accepted_total")?, 0.0);
    assert_eq!(agent.metric("divert_captures")?, 0.0);

    town.divert("alice")?;
    wait::until("the service to be captured", || captured(&town, PORT).unwrap_or(false))?;
    town.undivert("alice")?;
    wait::until("the service to be let go", || captured(&town, PORT).is_ok_and(|captured| !captured))
}

#[test]
fn a_port_that_declares_another_protocol_is_not_captured() -> Result<()> {
    let town = Fixture::new()?;
    let ports = [
        (port(8080, "http"), true),
        (port(8081, "tcp-events"), false),
        (port(8082, "web").app_protocol("postgresql"), false),
        (port(8083, "tcp").app_protocol("http"), true),
        (port(8084, "https"), false),
        (port(8085, "a").app_protocol("kubernetes.io/h2c"), true),
        // It has a name that says nothing, and so its number decides.
        (port(6379, "b"), false),
        (port(8086, "b2"), true),
    ];
    let servers: Result<Vec<_>> =
        ports.iter().map(|(port, _)| Echo::start(&town.server(), port.port)).collect();
    let _servers = servers?;
    town.put_town(&ports.clone().map(|(port, _)| port))?;
    let _agent = town.agent()?;
    for (port, wanted) in ports {
        assert_eq!(captured(&town, port.port)?, wanted, "{port:?}");
    }
    Ok(())
}

#[test]
fn a_pod_or_a_namespace_that_opts_out_is_left_alone() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let client = town.client();
    let opted_out = |object: usize, out: bool| -> Result<()> {
        let mut objects = town.objects(&[PORT.into()]);
        if out {
            let labels = &mut objects[object]["metadata"]["labels"];
            labels["divert.dev/capture"] = serde_json::json!("false");
        }
        town.manifests.put("town", &objects).map(drop)
    };
    let objects = town.objects(&[PORT.into()]);
    let pod = objects.iter().position(|it| it["kind"] == "Pod" && it["metadata"]["name"] == "client");
    let pod = pod.context("the client is among the objects")?;
    let agent = town.agent()?;
    // Object 0 is the namespace staging.
    for object in [pod, 0] {
        assert!(captured(&town, PORT)?);
        opted_out(object, true)?;
        let mut last = None;
        wait::until("the pod to be left alone", || {
            last = Some(captured(&town, PORT));
            matches!(last, Some(Ok(false)))
        })
        .with_context(|| format!("object {object}: {last:?}\n{}", agent.process().output()))?;
        // Capture ends first, what it needed goes after it.
        wait::until("listener and routes to go", || agent.traces_in(&client).is_ok_and(|it| it.is_empty()))?;
        opted_out(object, false)?;
        wait::until("the pod to be served again", || captured(&town, PORT).unwrap_or(false))?;
    }
    Ok(())
}

#[test]
fn a_developers_own_service_stays_where_it_is_whatever_the_header_says() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    town.divert("bob")?;
    let _agent = town.agent()?;
    for family in FAMILIES {
        let to = town.developers[1].address(family, PORT);
        let stream = town.client().connect(to)?;
        assert_eq!(is_captured(&stream, &town.client())?, Some(false));
        let response = divert_tests::http::Http::new(stream).get("/", &[ALICE])?;
        assert_eq!(response.served_by().as_deref(), Some("bob/web"));
    }
    Ok(())
}

#[test]
fn pods_are_captured_by_endpoint_address_too() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let _agent = town.agent()?;
    for family in FAMILIES {
        let to = std::net::SocketAddr::new(town.server().ip(family), PORT);
        let stream = town.client().connect(to)?;
        assert_eq!(is_captured(&stream, &town.client())?, Some(true));
        let mut connection = divert_tests::http::Http::new(stream);
        assert_eq!(connection.get("/", &[ALICE])?.served_by().as_deref(), Some("alice/web"));
        assert_eq!(connection.get("/", &[])?.served_by().as_deref(), Some("staging/web"));
        assert_eq!(connection.stream().peer_addr()?, to);
    }
    Ok(())
}

#[test]
fn the_manifests_say_which_namespace_consents() -> Result<()> {
    let town = Fixture::new()?;
    let _servers = town.servers()?;
    let _agent = town.agent()?;
    assert!(captured(&town, PORT)?);
    let mut objects = town.objects(&[PORT.into()]);
    objects[0] = manifest::namespace("staging");
    town.manifests.put("town", &objects)?;
    wait::until("consent that is withdrawn to end capture", || {
        captured(&town, PORT).is_ok_and(|captured| !captured)
    })
}
