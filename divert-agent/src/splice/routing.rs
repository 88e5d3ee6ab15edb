//! From the routing table to an upstream: what is decided about a request, and in which order endpoints are tried.

use std::net::SocketAddr;
use std::sync::Arc;

use divert_core::choose;
use divert_core::decide::{self, decide};
use divert_core::plan::Route;

use super::captured::Captured;
use super::tally::Tally;

/// What was decided about a request, in so far as it outlives the look into the routing table.
pub(super) struct Decided {
    /// To a developer's service; `None` is the original destination.
    pub(super) route: Option<Arc<Route>>,
    /// The key to forward with it.
    pub(super) inject: Option<Box<str>>,
    /// The service that was asked for, for `x-divert-target`.
    pub(super) asked: Option<String>,
    /// Where it counts.
    pub(super) tally: Arc<Tally>,
}

impl Decided {
    /// Decides a request by the routing table as it is now.
    pub(super) fn of(captured: &Captured, key: Option<&str>, host: Option<&str>, debug: bool) -> Self {
        let Captured { worker, claim, pod, .. } = captured;
        let (target, hosts) = (claim.target(), worker.table.hosts());
        let sender = pod.sender();
        let sender = sender.as_ref().as_ref();
        let decision = decide(&target, &hosts, &decide::Request { key, host, sender });
        let service = decision.service.map(|shared| &shared.service);
        // A key that the client made up names no series.
        let known = decision.inject || decision.route.is_some();
        let series = decision.key.filter(|_| known).unwrap_or_default();
        Self {
            route: decision.route.map(Arc::clone),
            inject: decision.key.filter(|_| decision.inject).map(Box::from),
            asked: service.filter(|_| debug).map(ToString::to_string),
            tally: worker.tallies.get(service, series),
        }
    }
}

/// The endpoints of a route in the order in which they are to be tried for a connection.
pub(super) fn in_turn<'r>(
    captured: &Captured,
    route: &'r Route,
) -> impl Iterator<Item = SocketAddr> + use<'r> {
    let worker = &captured.worker;
    let turn = worker.turn.get();
    worker.turn.set(turn.wrapping_add(1));
    choose::in_order(&route.backend, turn, captured.source)
}
