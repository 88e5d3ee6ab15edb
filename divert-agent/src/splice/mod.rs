//! The data plane: accept → detect → decide → forward.

use std::net::TcpListener;
use std::sync::Arc;

use divert_common::netns::{NetNs, NetNsId};

use crate::plan::PodRef;

/// A pod whose connections are served, as the data plane needs to know it.
#[derive(Debug)]
pub struct Pod {
    /// Name, for logs and answers.
    pub pod: PodRef,
    /// Its network namespace: upstream sockets are made in there.
    pub netns: NetNs,
}

/// The listeners of one worker in one pod; at least one of them.
#[derive(Debug)]
pub struct Listeners {
    /// Bound to 127.0.0.1, non-blocking.
    pub v4: Option<TcpListener>,
    /// Bound to ::1, non-blocking.
    pub v6: Option<TcpListener>,
}

/// The worker threads.
#[derive(Debug)]
pub struct Workers {}

impl Workers {
    /// Number of workers.
    pub fn count(&self) -> usize {
        1
    }

    /// Serves a pod: one element of `listeners` for each worker, in order.
    pub fn open(&self, pod: Arc<Pod>, listeners: Vec<Listeners>) {
        let _ = (pod, listeners);
    }

    /// Stops serving a pod: its listeners are closed, its connections are reset.
    pub fn close(&self, netns: NetNsId) {
        let _ = netns;
    }
}
