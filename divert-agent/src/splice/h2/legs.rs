//! The connections to developers' services behind one HTTP/2 connection: one for each service that is asked for, never
//! shared with another client's.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use divert_core::plan::{Route, ServiceRef};
use divert_http::h2::{Leg, Mux, UpstreamId};
use divert_http::{ServerBytes, detect_server};

use super::handler::Decider;
use crate::splice::answer::Answer;
use crate::splice::conn::Conn;
use crate::splice::dial::{self, Unreachable};
use crate::splice::routing::in_turn;
use crate::splice::tally::Tally;

/// Most connections, those that are ending included; a stream that needs one more is refused.
const MOST: usize = 16;
/// Most that are kept without a stream.
const KEPT: usize = 4;
/// How long nobody tries to connect where that has failed and the original destination serves instead. What a client tries
/// again meanwhile goes there at once, or it would be refused over and over where others keep coming.
const REST: Duration = Duration::from_secs(5);

type Dialling = Pin<Box<dyn Future<Output = Result<(SocketAddr, Conn), Unreachable>>>>;

/// A connection to an endpoint of a developer's service.
struct Upstream {
    id: UpstreamId,
    route: Arc<Route>,
    state: State,
    /// It takes no new streams.
    retired: bool,
    /// It knows that the client has ended its stream.
    told_end: bool,
    first: FirstBytes,
}

/// The first bytes that a server has sent: as many as tell HTTP/1, by which a server says that it does not understand.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct FirstBytes {
    bytes: [u8; 8],
    len: usize,
}

impl FirstBytes {
    fn add(&mut self, bytes: &[u8]) {
        let room = &mut self.bytes[self.len..];
        let some = bytes.len().min(room.len());
        room[..some].copy_from_slice(&bytes[..some]);
        self.len += some;
    }

    fn are_http1(&self) -> bool {
        detect_server(&self.bytes[..self.len]) == ServerBytes::Http1
    }
}

enum State {
    Dialling(Dialling),
    Open(SocketAddr, Conn),
}

/// All of them, and who decides which a request takes.
pub(super) struct Legs {
    pub(super) decider: Decider,
    upstreams: Vec<Upstream>,
    next: UpstreamId,
    /// Ways that lead nowhere for the time being, and until when.
    resting: Vec<(Arc<Route>, Instant)>,
    finished: bool,
}

impl Legs {
    pub(super) fn new(decider: Decider) -> Self {
        Self { decider, upstreams: Vec::new(), next: 0, resting: Vec::new(), finished: false }
    }

    /// The connection for a request of a route: the one there is, while its endpoint is one of the route's, else a new
    /// one. `None` when there are too many.
    pub(super) fn take(&mut self, route: &Arc<Route>) -> Option<UpstreamId> {
        for upstream in self
            .upstreams
            .iter_mut()
            .filter(|upstream| upstream.route.service == route.service && !upstream.retired)
        {
            match &upstream.state {
                State::Open(endpoint, _) if !route.backend.all().any(|it| it == *endpoint) => {
                    upstream.retired = true
                }
                State::Dialling(_) if !Arc::ptr_eq(&upstream.route, route) && upstream.route != *route => {
                    upstream.retired = true;
                }
                State::Open(..) | State::Dialling(_) => return Some(upstream.id),
            }
        }
        self.dial(route)
    }

    /// A new connection in place of one that takes no more streams. `None` when there are too many, or is nobody to
    /// connect to.
    pub(super) fn renew(&mut self, id: UpstreamId, route: &Arc<Route>) -> Option<UpstreamId> {
        if let Some(upstream) = self.upstreams.iter_mut().find(|upstream| upstream.id == id) {
            upstream.retired = true;
        }
        if route.backend.all().next().is_none() { None } else { self.dial(route) }
    }

    fn dial(&mut self, route: &Arc<Route>) -> Option<UpstreamId> {
        if self.upstreams.len() >= MOST {
            return None;
        }
        let id = self.next;
        self.next += 1;
        let endpoints: Vec<SocketAddr> = in_turn(&self.decider.0, route).collect();
        let captured = Rc::clone(&self.decider.0);
        let dialling = async move { dial::first_of(captured.dial_from(), endpoints.into_iter()).await };
        let state = State::Dialling(Box::pin(dialling));
        self.upstreams.push(Upstream {
            id,
            route: Arc::clone(route),
            state,
            retired: false,
            told_end: false,
            first: FirstBytes::default(),
        });
        Some(id)
    }

    /// Nobody could be connected to. As soon as there are other endpoints, it is another way.
    pub(super) fn rest(&mut self, route: Arc<Route>) {
        let now = Instant::now();
        self.resting.retain(|(other, until)| *until > now && other.service != route.service);
        self.resting.push((route, now + REST));
    }

    /// Whether that was so a moment ago.
    pub(super) fn rests(&self, route: &Arc<Route>) -> bool {
        let is_it = |other: &Arc<Route>| Arc::ptr_eq(other, route) || other == route;
        self.resting.iter().any(|(other, until)| is_it(other) && *until > Instant::now())
    }

    /// The service behind a connection.
    pub(super) fn service(&self, id: UpstreamId) -> Option<&ServiceRef> {
        self.upstreams.iter().find(|upstream| upstream.id == id).map(|upstream| &upstream.route.service)
    }

    /// Takes note of what the server at a place in the list has sent.
    pub(super) fn heard(&mut self, at: usize, bytes: &[u8]) {
        if let Some(upstream) = self.upstreams.get_mut(at) {
            upstream.first.add(bytes);
        }
    }

    /// The answer to a request whose server has ended the connection.
    pub(super) fn lost(&self, id: UpstreamId) -> Option<Answer<'_>> {
        let upstream = self.upstreams.iter().find(|upstream| upstream.id == id)?;
        Some(match &upstream.state {
            State::Open(endpoint, _) if upstream.first.are_http1() => {
                Answer::NotHttp2(&upstream.route.service, *endpoint)
            }
            _ => Answer::Ended(&upstream.route.service),
        })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.upstreams.len()
    }

    /// The one at a place in the list, if it is open.
    pub(super) fn open_at(&self, at: usize) -> Option<(UpstreamId, &Conn)> {
        let upstream = self.upstreams.get(at)?;
        match &upstream.state {
            State::Open(_, conn) => Some((upstream.id, conn)),
            State::Dialling(_) => None,
        }
    }

    /// One whose dial has ended, and how. One that failed is forgotten.
    #[expect(clippy::type_complexity, reason = "used once")]
    pub(super) fn poll_dial(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Option<(UpstreamId, Result<(), (Arc<Route>, Unreachable)>)> {
        for at in 0..self.upstreams.len() {
            let upstream = &mut self.upstreams[at];
            let State::Dialling(dialling) = &mut upstream.state else { continue };
            let Poll::Ready(dialled) = dialling.as_mut().poll(cx) else { continue };
            let id = upstream.id;
            match dialled {
                Ok((endpoint, conn)) => {
                    upstream.state = State::Open(endpoint, conn);
                    return Some((id, Ok(())));
                }
                Err(unreachable) => {
                    let upstream = self.upstreams.remove(at);
                    return Some((id, Err((upstream.route, unreachable))));
                }
            }
        }
        None
    }

    /// Makes the connections here and those that the mux knows the same: what one of them has given up the other lets go.
    pub(super) fn follow(&mut self, mux: &mut Mux<Arc<Tally>>) {
        if self.upstreams.is_empty() {
            return;
        }
        let mut idle = 0;
        for upstream in self.upstreams.iter_mut().rev() {
            if matches!(upstream.state, State::Open(..)) && mux.load(upstream.id) == 0 {
                idle += 1;
                upstream.retired |= idle > KEPT;
            }
            upstream.retired |= mux.is_retired(upstream.id);
            if upstream.retired {
                mux.retire(upstream.id);
            }
        }
        let mut closed = Vec::new();
        self.upstreams.retain(|upstream| {
            let unsent = mux.out(Leg::Upstream(upstream.id)).is_some_and(|out| !out.is_empty());
            let keep = !mux.is_finished(upstream.id) || unsent;
            if !keep {
                closed.push(upstream.id);
            }
            keep
        });
        for id in closed {
            mux.closed(id, self);
        }
    }

    /// The client has ended its stream: so is that of each leg, once all it sent is there.
    pub(super) fn tell_end(&mut self, mux: &mut Mux<Arc<Tally>>) {
        for upstream in self.upstreams.iter_mut().filter(|upstream| !upstream.told_end) {
            if let State::Open(_, conn) = &upstream.state
                && mux.out(Leg::Upstream(upstream.id)).is_none_or(|out| out.is_empty())
                && !mux.holds_for(Leg::Upstream(upstream.id))
            {
                upstream.told_end = true;
                conn.shutdown_write();
            }
        }
    }

    /// The client's connection came to its end, so these may end as connections do.
    pub(super) fn finish(&mut self) {
        self.finished = true;
    }
}

impl Drop for Legs {
    /// What is cut off in the middle must not look like an end.
    fn drop(&mut self) {
        if !self.finished {
            for upstream in &self.upstreams {
                if let State::Open(_, conn) = &upstream.state {
                    conn.reset_on_close();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_http1_is_known_however_its_bytes_come() {
        for (said, is_http1) in [
            (&["HTTP/1.1 400 Bad Request\r\n"][..], true),
            (&["H", "TTP/1", ".0 400\r\n"], true),
            (&["HTTP/", "2"], false),
            (&["\0\0\0\x04\0\0\0\0\0", "HTTP/1.1"], false),
            (&["HTTP/1"], false),
            (&[], false),
        ] {
            let mut first = FirstBytes::default();
            said.iter().for_each(|bytes| first.add(bytes.as_bytes()));
            assert_eq!(first.are_http1(), is_http1, "{said:?}");
        }
    }
}
