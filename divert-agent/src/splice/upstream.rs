//! The connections to developers' services that one client connection of HTTP/1 keeps. They are never shared with
//! another: identity, connection-bound authentication and isolation against request smuggling rest on that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use divert_core::plan::{Route, ServiceRef};

use super::conn::{Conn, ShortRead};

/// Most idle connections to developers' services that are kept.
const KEPT: usize = 4;

/// An idle connection to an endpoint of a developer's service.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) service: ServiceRef,
    pub(super) endpoint: SocketAddr,
    pub(super) conn: Conn,
}

/// Idle connections to developers' services, the one used last at the end.
#[derive(Debug, Default)]
pub(super) struct KeptList(Vec<Kept>);

impl KeptList {
    /// Takes a connection that may carry a request of `route`: to an endpoint that is still one of its.
    /// Connections to endpoints that no longer are get closed.
    pub(super) fn take(&mut self, route: &Arc<Route>) -> Option<Kept> {
        if self.0.is_empty() {
            return None;
        }
        let live = |kept: &Kept| route.backend.all().any(|endpoint| endpoint == kept.endpoint);
        self.0.retain(|kept| kept.service != route.service || live(kept));
        let at = self.0.iter().rposition(|kept| kept.service == route.service)?;
        Some(self.0.remove(at))
    }

    /// Keeps a connection for the next request; the one unused for longest makes room.
    pub(super) fn keep(&mut self, kept: Kept) {
        if self.0.len() == KEPT {
            self.0.remove(0);
        }
        self.0.push(kept);
    }

    /// Forgets connections that their servers have ended, or spoken on unasked.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>, unsolicited: &mut dyn FnMut()) {
        self.0.retain(|kept| match poll_idle(cx, &kept.conn) {
            Poll::Pending => true,
            Poll::Ready(Idle::Spoke) => {
                unsolicited();
                false
            }
            Poll::Ready(Idle::Ended | Idle::Broke) => false,
        });
    }

    /// Makes all of them close with RST.
    pub(super) fn reset_on_close(&self) {
        for kept in &self.0 {
            kept.conn.reset_on_close();
        }
    }
}

/// What an upstream did while no request was outstanding.
#[derive(Debug)]
pub(super) enum Idle {
    /// It ended its stream.
    Ended,
    /// It sent bytes that nobody asked for.
    Spoke,
    /// It was reset.
    Broke,
}

/// Ready when an idle upstream is no longer fit for a request.
pub(super) fn poll_idle(cx: &mut Context<'_>, conn: &Conn) -> Poll<Idle> {
    let mut byte = [0];
    conn.poll_recv(cx, &mut byte, ShortRead::Unproven).map(|got| match got {
        Ok(0) => Idle::Ended,
        Ok(_) => Idle::Spoke,
        Err(_) => Idle::Broke,
    })
}
