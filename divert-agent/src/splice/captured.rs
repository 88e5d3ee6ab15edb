//! What a captured connection is: who made it, and to where. Every dial and every decision about it rests on this.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::counts::Count;
use super::worker::Worker;
use super::{Pod, dial};
use crate::table::Claim;

/// A captured connection's origin and meaning; shared by the parts that serve it.
#[derive(Debug)]
pub(super) struct Captured {
    pub(super) worker: Rc<Worker>,
    /// The pod that made it.
    pub(super) pod: Arc<Pod>,
    /// The destination that was asked for.
    pub(super) claim: Claim,
    /// The client's address: upstreams of the same family see it.
    pub(super) source: IpAddr,
}

impl Captured {
    /// Where its upstream connections are opened from.
    pub(super) fn dial_from(&self) -> dial::From<'_> {
        dial::From { netns: &self.pod.netns, source: self.source, mark: self.worker.config.mark }
    }

    /// Counts one.
    pub(super) fn count(&self, count: Count) {
        self.worker.counts.add(count);
    }
}
