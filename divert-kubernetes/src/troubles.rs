//! What keeps the cluster from being followed, as it is logged.

use super::source::Source;

/// As last logged.
#[derive(Debug, Default)]
pub struct Troubles(Vec<String>);

impl Troubles {
    /// Logs once for each change: an API server that is away for an hour is one line, and another at its end. Gives all
    /// there is to say at the moment, and what is still waited for.
    pub fn tell(&mut self, source: &Source) -> Vec<String> {
        let troubles = source.troubles();
        for trouble in troubles.iter().filter(|trouble| !self.0.contains(trouble)) {
            tracing::warn!("{trouble}");
        }
        if troubles.is_empty() && !self.0.is_empty() {
            tracing::info!("the cluster is followed without gaps again");
        }
        let told = troubles.iter().cloned().chain(source.awaited()).collect();
        self.0 = troubles;
        told
    }
}
