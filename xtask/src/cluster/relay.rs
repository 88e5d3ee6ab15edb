//! A way from the machine's loopback to the API server, for programs that know nothing of its namespace.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use divert_common::netns::NetNs;
use divert_tests::cluster::Cluster;
use divert_tests::named_netns;

/// Of the API server.
pub(super) const SERVER_PORT: u16 = 6443;

/// Listens on a port that is free, until this process ends. Bytes pass as they are: TLS is between the ends.
pub(super) fn start(cluster: &Cluster) -> Result<u16> {
    let node = &cluster.nodes()[0];
    let netns = Arc::new(NetNs::open(&Path::new(named_netns::FOLDER).join(node.netns().name()))?);
    let server = SocketAddr::new(node.address().into(), SERVER_PORT);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on 127.0.0.1")?;
    let port = listener.local_addr()?.port();
    let serve = move || {
        for client in listener.incoming().flatten() {
            let netns = Arc::clone(&netns);
            // One that breaks off is its own affair.
            thread::spawn(move || relay(&client, &netns.enter(|| TcpStream::connect(server))??));
        }
    };
    thread::Builder::new().name("relay".into()).spawn(serve)?;
    Ok(port)
}

fn relay(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        let copied = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
        copied
    };
    thread::scope(|scope| {
        scope.spawn(|| copy(server, client));
        copy(client, server)
    })?;
    Ok(())
}
