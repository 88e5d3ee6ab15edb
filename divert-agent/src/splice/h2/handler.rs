//! Decisions about the requests of one HTTP/2 connection.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use divert_core::api::OnUnavailable;
use divert_core::plan::{Backend, Route, ServiceRef};
use divert_http::KeyNames;
use divert_http::h2;
use divert_http::h2::{Handler, Leg, RequestView, UpstreamId, Verdict};

use super::legs::Legs;
use crate::splice::answer::Answer;
use crate::splice::captured::Captured;
use crate::splice::counts::Count;
use crate::splice::routing::Decided;
use crate::splice::session::Session;
use crate::splice::tally::{Fate, Tally};

/// What decisions rest on.
pub(super) struct Decider(pub(super) Rc<Captured>, Instant);

impl Decider {
    pub(super) fn new(session: &Session) -> Self {
        Self(Rc::clone(&session.captured), Instant::now())
    }

    /// The way to a developer's service as it is now: the key is the service's namespace.
    fn route_to(&self, service: &ServiceRef) -> Option<Arc<Route>> {
        let target = self.0.claim.target();
        let mut routes = target.services.iter().filter_map(|shared| shared.routes.get(&service.namespace));
        routes.find(|route| route.service == *service).map(Arc::clone)
    }
}

impl Handler for Legs {
    type Token = Arc<Tally>;

    fn names(&self) -> &KeyNames {
        &self.decider.0.worker.config.names
    }

    fn decide(&mut self, request: &RequestView<'_>) -> Verdict<Self::Token> {
        let decided = Decided::of(&self.decider.0, request.key.as_deref(), request.host, request.debug);
        let mut target = decided.asked;
        let dispatch = match decided.route {
            None => h2::Dispatch::Original,
            Some(route) => match &route.backend {
                Backend::Unavailable(_) if route.on_unavailable == OnUnavailable::Shared => {
                    h2::Dispatch::Original
                }
                Backend::Unavailable(why) => {
                    h2::Dispatch::Reply(Answer::Unavailable(&route.service, why).h2())
                }
                Backend::Endpoints { .. } if self.rests(&route) => h2::Dispatch::Original,
                Backend::Endpoints { .. } => {
                    let shared = route.on_unavailable == OnUnavailable::Shared;
                    target = request.debug.then(|| route.service.to_string());
                    self.take(&route).map_or(h2::Dispatch::Refuse, |id| h2::Dispatch::Upstream { id, shared })
                }
            },
        };
        Verdict { dispatch, inject: decided.inject, target: target.map(Into::into), token: decided.tally }
    }

    fn settle(&mut self, tally: Arc<Tally>, fate: h2::Fate) {
        let (count, fate) = match fate {
            h2::Fate::Original => (Count::RequestsOriginal, Fate::Shared),
            h2::Fate::Diverted => (Count::RequestsDiverted, Fate::Diverted),
            h2::Fate::Unavailable => (Count::RequestsUnavailable, Fate::Unavailable),
        };
        self.decider.0.worker.counts.add(count);
        tally.add(fate);
    }

    fn too_large(&mut self) -> h2::LocalReply {
        self.decider.0.worker.counts.add(Count::RequestsRefused);
        Answer::HeadTooLarge.h2()
    }

    fn reconnect(&mut self, id: UpstreamId, sent: usize) -> Option<UpstreamId> {
        let route = self.decider.route_to(self.service(id)?)?;
        let next = self.renew(id, &route)?;
        self.decider.0.worker.counts.add_many(Count::Retried, sent as u64);
        Some(next)
    }

    fn no_connect(&mut self, id: UpstreamId) -> h2::LocalReply {
        self.service(id)
            .map_or_else(|| Answer::OriginalFailed.h2(), |service| Answer::NoExtendedConnect(service).h2())
    }

    fn now(&mut self) -> Duration {
        self.decider.1.elapsed()
    }

    fn lost(&mut self, leg: Leg) -> h2::LocalReply {
        let answer = if let Leg::Upstream(id) = leg { Legs::lost(self, id) } else { None };
        answer.unwrap_or(Answer::OriginalFailed).h2()
    }
}
