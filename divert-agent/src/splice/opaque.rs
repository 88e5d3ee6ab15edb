//! Relaying a connection byte for byte: what is not HTTP, and what stopped being it.
//!
//! Each direction ends by itself (half-close), and a reset on one side is a reset on the other.

use std::future::poll_fn;
use std::task::Poll;

use super::buffer::Buffer;
use super::conn::Conn;
use super::pump::{Broken, Pump};

/// How a relayed connection ended.
#[derive(Debug)]
pub(super) enum Relayed {
    /// Both directions reached their end of stream.
    Closed,
    /// One side was reset or died; the other is to be reset.
    Broken,
}

/// A side as the relay finds it.
pub(super) struct Side<'a> {
    /// The socket.
    pub(super) conn: &'a Conn,
    /// Bytes that were read from it already.
    pub(super) read: Buffer,
    /// Its end of stream was seen already.
    pub(super) ended: bool,
}

enum Direction {
    Up,
    Down,
}

/// Relays until both directions have ended.
pub(super) async fn relay(client: Side<'_>, server: Side<'_>) -> Relayed {
    let (a, b) = (client.conn, server.conn);
    let mut up = Pump::new(client.read, client.ended);
    let mut down = Pump::new(server.read, server.ended);

    let first = poll_fn(|cx| {
        let up_ready = match up.poll(cx, a, b) {
            Poll::Ready(Err(broken)) => return Poll::Ready(Err((broken, Direction::Up))),
            other => other.is_ready(),
        };
        match down.poll(cx, b, a) {
            Poll::Ready(Err(broken)) => Poll::Ready(Err((broken, Direction::Down))),
            other if up_ready || other.is_ready() => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await;
    match first {
        Ok(()) => {}
        Err((Broken::Source, _)) => return Relayed::Broken,
        // Who was reset may have said why before.
        Err((Broken::Sink, Direction::Up)) => {
            let _ = poll_fn(|cx| down.poll(cx, b, a)).await;
            return Relayed::Broken;
        }
        Err((Broken::Sink, Direction::Down)) => {
            let _ = poll_fn(|cx| up.poll(cx, a, b)).await;
            return Relayed::Broken;
        }
    }

    // Half-closed: the side that has ended is not read any more, so its reset must be watched for.
    let (silent, other) = if up.done() { (a, &mut down) } else { (b, &mut up) };
    let (from, to) = if std::ptr::eq(silent, a) { (b, a) } else { (a, b) };
    let rest = poll_fn(|cx| other.poll(cx, from, to));
    tokio::select! {
        biased;
        rest = rest => match rest {
            Ok(()) => Relayed::Closed,
            Err(_) => Relayed::Broken,
        },
        () = silent.failed() => Relayed::Broken,
    }
}
