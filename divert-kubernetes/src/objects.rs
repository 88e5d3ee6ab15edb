//! The watch of a kind: kube's, which lists anew when it is told in mid-stream that it is too old, and here as
//! well when it is told so at its start, by status code. Without, it would ask with the same version for ever.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::stream::{BoxStream, Stream, StreamExt, unfold};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::time::sleep;

/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest. An API server that comes back finds each node within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The version that a watch was to go on from is no longer kept.
const GONE: u16 = 410;

/// Lists and watches, for ever. After an error the caller pauses.
pub fn objects<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let begin = move || -> BoxStream<'static, _> { watcher(api.clone(), config.clone()).boxed() };
    unfold((begin(), begin), |(mut stream, begin)| async move {
        let item = stream.next().await?;
        if let Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) = &item
            && status.code == GONE
        {
            stream = begin();
        }
        Some((item, (stream, begin)))
    })
}

/// Pauses between failures.
#[derive(Debug)]
pub struct BackOff(Duration);

impl Default for BackOff {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl BackOff {
    /// After a success.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// After a failure.
    pub async fn pause(&mut self) {
        // Not all nodes at once.
        sleep(self.0.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}
