//! Who is compared.

use serde::Serialize;

/// A way from a client to a server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Contender {
    /// No agent: the client is in a cgroup without hooks.
    Direct,
    /// Past the hooks, to a service that is not captured.
    NotCaptured,
    /// Captured, by the agent under test.
    Divert,
    /// Left alone until a request is diverted, by the same agent with `--path insert`.
    Insert,
    /// Captured, by the agent of another version.
    Before,
    /// nginx in the client's pod.
    Nginx,
    /// HAProxy in the client's pod.
    Haproxy,
    /// Envoy in the client's pod.
    Envoy,
}

impl Contender {
    /// How it is called in tables and on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::NotCaptured => "not captured",
            Self::Divert => "divert",
            Self::Insert => "insert",
            Self::Before => "before",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
        }
    }

    /// What a reader must know to compare it.
    pub(super) fn remark(self) -> &'static str {
        match self {
            Self::Direct => "no agent, no hooks",
            Self::NotCaptured => "agent on the node, service not diverted",
            Self::Divert => "an upstream connection for each client connection",
            Self::Insert => "the agent with --path insert: no connection of its own until one is diverted",
            Self::Before => "another version of the agent",
            Self::Nginx | Self::Envoy => "clients share upstream connections",
            Self::Haproxy => "http-reuse never (HTTP/2: shared)",
        }
    }
}

/// Those that route by the header.
pub(super) const ROUTERS: [Contender; 6] = [
    Contender::Divert,
    Contender::Insert,
    Contender::Before,
    Contender::Nginx,
    Contender::Haproxy,
    Contender::Envoy,
];
