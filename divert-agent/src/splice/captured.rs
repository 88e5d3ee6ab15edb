//! What a captured connection is: who made it, and to where. Every dial and every decision about it rests on this.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::conn::Conn;
use super::counts::Count;
use super::owner::{self, Came, Owner};
use super::session::End;
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
    /// In whose name its upstreams are made, where the pod has packet rules of its own.
    owner: Cell<Option<Owner>>,
}

impl Captured {
    pub(super) fn new(worker: Rc<Worker>, pod: Arc<Pod>, claim: Claim, source: IpAddr) -> Self {
        Self { worker, pod, claim, source, owner: Cell::default() }
    }

    /// Finds out where it comes from, before anything is dialled for it.
    pub(super) fn came(&self, client: &Conn) -> Came {
        let (owner, came) = owner::ask(self, client);
        self.owner.set(owner);
        came
    }

    /// Where its upstream connections are opened from.
    pub(super) fn dial_from(&self) -> dial::From<'_> {
        dial::From {
            netns: &self.pod.netns,
            source: self.source,
            mark: self.worker.config.mark,
            mark_mask: self.worker.config.mark_mask,
            owner: self.owner.get(),
            rules: &self.pod.rules,
        }
    }

    /// A client whose original destination could not be connected to, and whom nobody else serves: it is to see that, as it
    /// would without us.
    ///
    /// A client that may go on to an address of the other family does so when this one refuses: for some seconds it is left
    /// to do that itself. Where there is no other, what a Divert serves is all that there is. The same holds where a Divert
    /// has served the client: it has no need of another address, and the next one may be served as well.
    pub(super) fn unserved(&self, error: &io::Error) -> End {
        if error.kind() == io::ErrorKind::ConnectionRefused && self.claim.target().dual_stack {
            self.pod.refused(self.claim.label);
        }
        match dial::is_exhausted(error) {
            true => self.exhausted(error),
            false => self.count(Count::OriginalFailed),
        }
        End::Reset
    }

    /// A descriptor or a port was lacking. Without descriptors new connections go direct.
    pub(super) fn exhausted(&self, error: &io::Error) {
        self.count(Count::Exhausted);
        if dial::lacks_descriptors(error) {
            self.worker.config.agent.exhausted();
        }
    }

    /// Counts one.
    pub(super) fn count(&self, count: Count) {
        self.worker.counts.add(count);
    }
}
