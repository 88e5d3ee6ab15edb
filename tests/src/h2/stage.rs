//! A [`Stage`] whose ends speak HTTP/2.

use anyhow::Result;

use super::frame::Frame;
use super::peer::H2;
use crate::peer::Peer;
use crate::stage::Stage;

/// Opens a connection through a stage: the client's end and that of the original destination, which have exchanged
/// prefaces, SETTINGS and acknowledgements.
///
/// # Errors
/// When one of them does not come about.
pub fn open(stage: &Stage) -> Result<(H2, H2)> {
    open_with(stage, &[], &[])
}

/// [`open`] with SETTINGS of both.
///
/// # Errors
/// When one of them does not come about.
pub fn open_with(stage: &Stage, client: &[(u16, u32)], server: &[(u16, u32)]) -> Result<(H2, H2)> {
    let (one, other) = stage.connect()?;
    Ok(greet(one, other, client, server))
}

/// Exchanges prefaces, SETTINGS and acknowledgements; what passes is looked at.
///
/// # Panics
/// When SETTINGS come through changed.
#[track_caller]
pub fn greet(one: Peer, other: Peer, client: &[(u16, u32)], server: &[(u16, u32)]) -> (H2, H2) {
    let mut near = H2::client(one, client);
    let (mut far, theirs) = H2::server(other, server);
    assert_eq!(theirs, client, "the client's SETTINGS");
    assert_eq!(near.expect_settings(), server, "the server's SETTINGS");
    near.wait_acknowledged(1);
    near.send(&[Frame::settings_ack()]);
    far.wait_acknowledged(1);
    (near, far)
}

/// The next connection to alice, with its greeting; and the SETTINGS that it came with.
///
/// # Errors
/// When none comes in time.
pub fn alice(stage: &Stage, settings: &[(u16, u32)]) -> Result<(H2, Vec<(u16, u32)>)> {
    Ok(H2::server(stage.alice()?, settings))
}

/// Answers a request that comes on a stream with 200 and a body; returns its head.
///
/// # Panics
/// When something else comes.
#[track_caller]
pub fn answer(server: &mut H2, stream: u32, body: &str) -> super::head::Head {
    let head = server.head(stream);
    server.respond(stream, &[], false);
    server.data(stream, body, true);
    head
}

/// Takes a response of 200 with this body, and nothing more than that.
///
/// # Panics
/// When something else comes.
#[track_caller]
pub fn expect_answer(client: &mut H2, stream: u32, body: &str) -> super::head::Head {
    let head = client.head(stream);
    assert_eq!(head.status(), "200", "{head:?}");
    client.expect_data(stream, body, true);
    head
}
