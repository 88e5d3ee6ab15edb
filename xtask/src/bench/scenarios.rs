//! The loads, one line each.

use super::contenders::Contender::{
    self, Before, Direct, Divert, Envoy, Haproxy, Insert, Nginx, NotCaptured,
};

/// How a load is made.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Kind {
    /// wrk: as many requests as get through.
    Http1 { connections: u32, request: Request },
    /// h2load: unary calls as gRPC makes them, with prior knowledge; all with alice's key, or none.
    Unary { connections: u32, streams: u32, keyed: bool },
    /// Our own client: requests at a fixed rate, latency from the intended time.
    Paced { connections: u32, rate: u32, keyed: u32 },
    /// Our own client: connections that are opened and reset, one after the other.
    Connect,
}

/// What is asked for over HTTP/1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Request {
    /// A GET with a small answer; one of `0` has alice's key, of no requests if zero.
    Small { keyed_of: u32 },
    /// A GET with a small answer, with members of others' in `baggage`, this many bytes.
    Traced(usize),
    /// The same as `Small`, each on a connection of its own.
    NewConnection,
    /// A GET whose answer has this many bytes.
    Download(u32),
    /// A POST with this many bytes.
    Upload(u32),
}

/// One load, and who carries it.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) kind: Kind,
    pub(super) contenders: &'static [Contender],
    /// Times the rounds of others: short loads are run more often.
    pub(super) repeat: usize,
}

/// Everybody who routes, and the way without.
const ALL: &[Contender] = &[Direct, Divert, Insert, Before, Nginx, Haproxy, Envoy];
const ALL_AND_PASSED: &[Contender] = &[Direct, NotCaptured, Divert, Insert, Before, Nginx, Haproxy, Envoy];

pub(super) const KEEP_ALIVE_1: &str = "keep-alive-1";
pub(super) const KEEP_ALIVE_32: &str = "keep-alive-32";
pub(super) const KEEP_ALIVE_256: &str = "keep-alive-256";
pub(super) const KEYED_100: &str = "keyed-100";
pub(super) const TRACED: &str = "traced-32";
pub(super) const NEW_CONNECTION: &str = "new-connection";
pub(super) const UNARY: &str = "h2-unary";
pub(super) const DOWN_10M: &str = "down-10m";
pub(super) const UP_10M: &str = "up-10m";
pub(super) const LATENCY_1: &str = "latency-1";
pub(super) const CONNECT: &str = "connect";

const fn http1(name: &'static str, title: &'static str, connections: u32, request: Request) -> Load {
    Load { name, title, kind: Kind::Http1 { connections, request }, contenders: ALL, repeat: 1 }
}

const fn unary(name: &'static str, title: &'static str, keyed: bool) -> Load {
    Load { name, title, kind: Kind::Unary { connections: 8, streams: 16, keyed }, contenders: ALL, repeat: 1 }
}

const fn small(keyed_of: u32) -> Request {
    Request::Small { keyed_of }
}

/// All of them, in the order of the report.
pub(super) const LOADS: &[Load] = &[
    http1(KEEP_ALIVE_1, "HTTP/1 keep-alive, 1 connection", 1, small(0)),
    Load {
        contenders: ALL_AND_PASSED,
        ..http1(KEEP_ALIVE_32, "HTTP/1 keep-alive, 32 connections", 32, small(0))
    },
    http1(KEEP_ALIVE_256, "HTTP/1 keep-alive, 256 connections", 256, small(0)),
    http1(
        TRACED,
        "the same, 32 connections, with 600 bytes of baggage that is no key",
        32,
        Request::Traced(600),
    ),
    http1("keyed-10", "HTTP/1 keep-alive, 32 connections, 10 % of requests diverted", 32, small(10)),
    http1(KEYED_100, "HTTP/1 keep-alive, 32 connections, all requests diverted", 32, small(1)),
    http1(
        NEW_CONNECTION,
        "HTTP/1, a new connection for each request, 32 at once",
        32,
        Request::NewConnection,
    ),
    unary(UNARY, "gRPC-shaped unary calls over HTTP/2, 8 connections with 16 streams each", false),
    unary("h2-unary-keyed", "the same, all calls diverted", true),
    http1("down-1k", "answers of 1 KB, 32 connections", 32, Request::Download(1 << 10)),
    http1("down-64k", "answers of 64 KB, 32 connections", 32, Request::Download(64 << 10)),
    http1(DOWN_10M, "answers of 10 MB, 4 connections", 4, Request::Download(10 << 20)),
    http1("up-1k", "requests of 1 KB, 32 connections", 32, Request::Upload(1 << 10)),
    http1("up-64k", "requests of 64 KB, 32 connections", 32, Request::Upload(64 << 10)),
    http1(UP_10M, "requests of 10 MB, 4 connections", 4, Request::Upload(10 << 20)),
    Load {
        name: LATENCY_1,
        title: "latency at 1,000 requests a second on 1 connection",
        kind: Kind::Paced { connections: 1, rate: 1000, keyed: 0 },
        contenders: ALL,
        repeat: 1,
    },
    Load {
        name: "latency-mixed",
        title: "latency at 3,000 requests a second on 32 connections, every tenth diverted",
        kind: Kind::Paced { connections: 32, rate: 3000, keyed: 10 },
        contenders: ALL,
        repeat: 1,
    },
    Load {
        name: CONNECT,
        title: "connects to a service that is not captured, one after the other",
        kind: Kind::Connect,
        contenders: &[Direct, NotCaptured],
        repeat: 3,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_different() {
        let mut names: Vec<_> = LOADS.iter().map(|load| load.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), LOADS.len());
    }
}
