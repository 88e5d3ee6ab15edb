//! What the hooks say at debug. Apart from the other tests, for what is logged is settled for a process.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod lab;

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use lab::{Agent, Lab, SERVED, SERVER_V4, SERVER_V6, close};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

#[test]
fn at_debug_the_hooks_tell_of_each_connection_what_became_of_it() {
    let (lines, said) = mpsc::channel();
    tracing::subscriber::set_global_default(Lines(lines)).unwrap();
    let said = || said.recv_timeout(Duration::from_secs(10)).unwrap();

    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    let (v4, v6) = (SocketAddr::new(SERVER_V4.into(), SERVED), SocketAddr::new(SERVER_V6.into(), SERVED));
    agent.capture(v4, 1);
    agent.capture(v6, 2_000);
    lab.connect(v4);
    assert_eq!(said(), "10.77.0.2:8080 captured as label 1");
    lab.connect(v6);
    assert_eq!(said(), "[fd77::2]:8080 captured as label 2000");

    close(agent.assignment.take());
    let _server = lab.serve();
    lab.connect(v4);
    assert_eq!(said(), "a captured destination passed: nobody listens for its label");
}

/// Sends each line of the hooks on.
struct Lines(mpsc::Sender<String>);

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "divert_ebpf" && *metadata.level() == Level::DEBUG
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Line(&self.0));
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

struct Line<'a>(&'a mpsc::Sender<String>);

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            // Nobody waits for lines after the test's end.
            let _ = self.0.send(format!("{value:?}"));
        }
    }
}
