//! Processes of the benchmark, in namespaces of their own: this program again, optimised, with hidden commands.

mod connect;
mod paced;
mod server;

use anyhow::Result;

/// Which to be.
#[derive(clap::Subcommand)]
pub(crate) enum Part {
    /// The server behind a service.
    Server(server::Args),
    /// A client that asks at a fixed rate.
    Paced(paced::Args),
    /// A client that connects and does nothing else.
    Connect(connect::Args),
}

/// Runs it; a server until it is killed.
///
/// # Errors
/// When it cannot do what it is for.
pub(crate) fn run(part: &Part) -> Result<()> {
    match part {
        Part::Server(args) => server::run(args),
        Part::Paced(args) => paced::run(args),
        Part::Connect(args) => connect::run(args),
    }
}

/// What a server prints once it can be asked.
pub(super) const LISTENING: &str = "listening";
/// The field that says who answered.
pub(super) const SERVED_BY: &str = "x-served-by";
/// Path of an answer of a given length: `/bytes/1024`.
pub(super) const BYTES: &str = "/bytes/";
