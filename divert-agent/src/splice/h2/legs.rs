//! The connections to developers' services behind one HTTP/2 connection: one for each service that is asked for, never
//! shared with another client's.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use divert_http::h2::{Leg, Mux, UpstreamId};
use divert_http::{ServerBytes, detect_server};

use super::handler::Decider;
use crate::plan::{Route, ServiceRef};
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
struct Up {
    id: UpstreamId,
    route: Arc<Route>,
    state: State,
    /// It takes no new streams.
    retired: bool,
    /// It knows that the client has ended its stream.
    told_end: bool,
    /// What it speaks, once it has said something.
    speaks: Option<Speaks>,
}

/// What a server speaks on a connection that began as one of HTTP/2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Speaks {
    Http1,
    /// HTTP/2, or what is told from it by the frames.
    Other,
}

enum State {
    Dialling(Dialling),
    Open(SocketAddr, Conn),
}

/// All of them, and who decides which a request takes.
pub(super) struct Legs {
    pub(super) decider: Decider,
    ups: Vec<Up>,
    next: UpstreamId,
    /// Ways that lead nowhere for the time being, and until when.
    resting: Vec<(Arc<Route>, Instant)>,
    finished: bool,
}

impl Legs {
    pub(super) fn new(decider: Decider) -> Self {
        Self { decider, ups: Vec::new(), next: 0, resting: Vec::new(), finished: false }
    }

    /// The connection for a request of a route: the one there is, while its endpoint is one of the route's, else a new
    /// one. `None` when there are too many.
    pub(super) fn take(&mut self, route: &Arc<Route>) -> Option<UpstreamId> {
        for up in self.ups.iter_mut().filter(|up| up.route.service == route.service && !up.retired) {
            match &up.state {
                State::Open(endpoint, _) if !route.backend.all().any(|it| it == *endpoint) => {
                    up.retired = true
                }
                State::Dialling(_) if !Arc::ptr_eq(&up.route, route) && up.route != *route => {
                    up.retired = true;
                }
                State::Open(..) | State::Dialling(_) => return Some(up.id),
            }
        }
        self.dial(route)
    }

    /// A new connection in place of one that takes no more streams. `None` when there are too many, or is nobody to
    /// connect to.
    pub(super) fn renew(&mut self, id: UpstreamId, route: &Arc<Route>) -> Option<UpstreamId> {
        if let Some(up) = self.ups.iter_mut().find(|up| up.id == id) {
            up.retired = true;
        }
        if route.backend.all().next().is_none() { None } else { self.dial(route) }
    }

    fn dial(&mut self, route: &Arc<Route>) -> Option<UpstreamId> {
        if self.ups.len() >= MOST {
            return None;
        }
        let id = self.next;
        self.next += 1;
        let endpoints: Vec<SocketAddr> = in_turn(&self.decider.0.worker, route).collect();
        let captured = Rc::clone(&self.decider.0);
        let dialling = async move { dial::first_of(captured.dial_from(), endpoints.into_iter()).await };
        let state = State::Dialling(Box::pin(dialling));
        self.ups.push(Up {
            id,
            route: Arc::clone(route),
            state,
            retired: false,
            told_end: false,
            speaks: None,
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
        self.ups.iter().find(|up| up.id == id).map(|up| &up.route.service)
    }

    /// Looks at the first bytes that the server at a place in the list has sent: one of HTTP/1 says that it does not
    /// understand.
    pub(super) fn heard(&mut self, at: usize, bytes: &[u8]) {
        if let Some(up) = self.ups.get_mut(at).filter(|up| up.speaks.is_none()) {
            let is_http1 = matches!(detect_server(bytes), ServerBytes::Http1);
            up.speaks = Some(if is_http1 { Speaks::Http1 } else { Speaks::Other });
        }
    }

    /// The answer to a request whose server has ended the connection.
    pub(super) fn lost(&self, id: UpstreamId) -> Option<Answer<'_>> {
        let up = self.ups.iter().find(|up| up.id == id)?;
        Some(match (&up.state, up.speaks) {
            (State::Open(endpoint, _), Some(Speaks::Http1)) => Answer::NotHttp2(&up.route.service, *endpoint),
            _ => Answer::Ended(&up.route.service),
        })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.ups.len()
    }

    /// The one at a place in the list, if it is open.
    pub(super) fn open_at(&self, at: usize) -> Option<(UpstreamId, &Conn)> {
        let up = self.ups.get(at)?;
        match &up.state {
            State::Open(_, conn) => Some((up.id, conn)),
            State::Dialling(_) => None,
        }
    }

    /// One whose dial has ended, and how. One that failed is forgotten.
    #[expect(clippy::type_complexity, reason = "used once")]
    pub(super) fn poll_dial(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Option<(UpstreamId, Result<(), (Arc<Route>, Unreachable)>)> {
        for at in 0..self.ups.len() {
            let up = &mut self.ups[at];
            let State::Dialling(dialling) = &mut up.state else { continue };
            let Poll::Ready(dialled) = dialling.as_mut().poll(cx) else { continue };
            let id = up.id;
            match dialled {
                Ok((endpoint, conn)) => {
                    up.state = State::Open(endpoint, conn);
                    return Some((id, Ok(())));
                }
                Err(unreachable) => {
                    let up = self.ups.remove(at);
                    return Some((id, Err((up.route, unreachable))));
                }
            }
        }
        None
    }

    /// Makes the connections here and those that the mux knows the same: what one of them has given up the other lets go.
    pub(super) fn follow(&mut self, mux: &mut Mux<Arc<Tally>>) {
        if self.ups.is_empty() {
            return;
        }
        let mut idle = 0;
        for up in self.ups.iter_mut().rev() {
            if matches!(up.state, State::Open(..)) && mux.load(up.id) == 0 {
                idle += 1;
                up.retired |= idle > KEPT;
            }
            up.retired |= mux.is_retired(up.id);
            if up.retired {
                mux.retire(up.id);
            }
        }
        let mut closed = Vec::new();
        self.ups.retain(|up| {
            let unsent = mux.out(Leg::Upstream(up.id)).is_some_and(|out| !out.is_empty());
            let keep = !mux.is_finished(up.id) || unsent;
            if !keep {
                closed.push(up.id);
            }
            keep
        });
        for id in closed {
            mux.closed(id, self);
        }
    }

    /// The client has ended its stream: so is that of each leg, once all it sent is there.
    pub(super) fn tell_end(&mut self, mux: &mut Mux<Arc<Tally>>) {
        for up in self.ups.iter_mut().filter(|up| !up.told_end) {
            if let State::Open(_, conn) = &up.state
                && mux.out(Leg::Upstream(up.id)).is_none_or(|out| out.is_empty())
                && !mux.holds_for(Leg::Upstream(up.id))
            {
                up.told_end = true;
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
            for up in &self.ups {
                if let State::Open(_, conn) = &up.state {
                    conn.reset_on_close();
                }
            }
        }
    }
}
