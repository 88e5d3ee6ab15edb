//! The agent's use of a cluster: its watches, on a thread of their own.

use std::io;
use std::thread::{Builder, JoinHandle};

use tokio::sync::oneshot;

use super::source::{Messages, Source};
use super::{Cluster, ConnectError};

/// A cluster that is being followed; dropping it ends that.
#[derive(Debug)]
pub struct Following {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Following {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that follows the cluster has died");
        }
    }
}

/// Why following cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// Certificates or tokens cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The system has no thread or descriptor left.
    #[error("starting the thread that follows the cluster: {0}")]
    System(#[from] io::Error),
}

/// Follows the cluster for the pods of `node`, and hands over what has come, on a thread of its own.
///
/// # Errors
/// When it cannot begin. An API server that is away is no error: it is waited for.
pub fn follow(
    cluster: Cluster,
    node: String,
    mut take: impl FnMut(&mut Source, Messages) + Send + 'static,
) -> Result<Following, FollowError> {
    let (stop, stopped) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = {
        let _entered = runtime.enter();
        cluster.client()?
    };
    let thread = Builder::new().name("cluster".into()).spawn(move || {
        runtime.block_on(async move {
            let mut source = Source::start(&client, Some(&node));
            let run = async {
                loop {
                    let messages = source.come().await;
                    take(&mut source, messages);
                }
            };
            tokio::select! {
                () = run => {}
                // Dropped: the agent ends.
                _ = stopped => {}
            }
        });
    })?;
    Ok(Following { stop: Some(stop), thread: Some(thread) })
}
