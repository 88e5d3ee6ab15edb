//! The agent's use of a cluster: watches → world → plan, on a thread of its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use super::source::Source;
use super::{Cluster, ConnectError, Troubles};
use crate::compile::{Planner, Settings};
use crate::control::{Question, State};
use crate::plan::PlanChange;

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

/// Follows the cluster and sends steps of the plan for the pods of `node`. The first is sent once everything
/// has been listed; what is wrong meanwhile, and later, is in the state. Questions are answered between changes.
///
/// # Errors
/// When it cannot begin. An API server that is away is no error: it is waited for.
pub fn follow(
    cluster: Cluster,
    node: String,
    settings: Settings,
    sender: UnboundedSender<PlanChange>,
    state: Arc<State>,
    questions: UnboundedReceiver<Question>,
) -> Result<Following, FollowError> {
    let (stop, stopped) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = {
        let _entered = runtime.enter();
        cluster.client()?
    };
    let thread = Builder::new().name("cluster".into()).spawn(move || {
        runtime.block_on(async move {
            let source = Source::start(&client, Some(&node));
            let mut follower = Follower {
                planner: Planner::new(settings),
                sender,
                state,
                planned: false,
                troubles: Troubles::default(),
            };
            tokio::select! {
                () = follower.run(source, questions) => {}
                // Dropped: the agent ends.
                _ = stopped => {}
            }
        });
    })?;
    Ok(Following { stop: Some(stop), thread: Some(thread) })
}

struct Follower {
    planner: Planner,
    sender: UnboundedSender<PlanChange>,
    state: Arc<State>,
    planned: bool,
    troubles: Troubles,
}

impl Follower {
    async fn run(&mut self, mut source: Source, mut questions: UnboundedReceiver<Question>) {
        loop {
            let batch = tokio::select! {
                batch = source.next(self.planner.world()) => batch,
                Some(question) = questions.recv() => {
                    question(&self.planner);
                    continue;
                }
            };
            let change = self.state.compiling.time(|| self.planner.update(batch.changes));
            if self.planned {
                self.send(change);
            } else if source.is_complete() {
                self.planned = true;
                tracing::info!("the cluster is known, the first plan is made");
                self.send(self.planner.whole_plan());
            }
            self.tell(&source);
        }
    }

    fn send(&self, change: PlanChange) {
        // The receiver is gone only while the agent ends.
        let _ = self.sender.send(change);
        self.state.steps.fetch_add(1, Ordering::Relaxed);
    }

    fn tell(&mut self, source: &Source) {
        for (known, told) in
            [(&self.state.troubles, self.troubles.tell(source)), (&self.state.stale, source.stale())]
        {
            if **known.load() != told {
                known.store(Arc::new(told));
            }
        }
    }
}
