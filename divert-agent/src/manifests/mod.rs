//! A directory of manifests as the source of the world: the same objects as in a cluster, as files.
//!
//! *.yaml, *.yml and *.json directly in the directory; hidden files are ignored. What cannot be read never
//! takes anything away: a file that does not parse keeps all it last gave, an invalid document keeps that
//! object's last good version. Only a good file that no longer has an object removes it.

mod store;
#[cfg(test)]
mod tests;
mod watch;

pub use store::{Hints, Manifests, ManifestsError, Refresh};
pub use watch::{Watch, watch};
