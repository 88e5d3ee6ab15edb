//! The planner and who may ask it. Whatever the source, it is fed here, batch by batch, and its steps leave from here.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use divert_core::compile::Planner;
use divert_core::plan::PlanChange;
use divert_core::world::{World, WorldChange};
use tokio::sync::mpsc::UnboundedSender;

use super::State;

/// The one owner of the planner.
#[derive(Debug)]
pub(super) struct Planning {
    planner: Planner,
    steps: UnboundedSender<PlanChange>,
    state: Arc<State>,
    /// Whether a plan has been made.
    begun: bool,
}

impl Planning {
    /// The first step is the whole plan, whatever is in it.
    pub(super) fn new(planner: Planner, steps: UnboundedSender<PlanChange>, state: Arc<State>) -> Self {
        Self { planner, steps, state, begun: false }
    }

    /// The world with all batches so far.
    pub(super) fn world(&self) -> &World {
        self.planner.world()
    }

    pub(super) fn planner(&self) -> &Planner {
        &self.planner
    }

    /// Takes what has changed. The first plan is made once the world is `complete`, as what is not known yet would look
    /// as if it were not there. Whether this was it.
    pub(super) fn take(&mut self, changes: Vec<WorldChange>, complete: bool) -> bool {
        let change = self.state.compiling.time(|| self.planner.update(changes));
        self.state.updates.fetch_add(1, Ordering::Relaxed);
        let begins = complete && !self.begun;
        let step = match (begins, self.begun) {
            (true, _) => Some(self.planner.whole_plan()),
            (false, true) => Some(change).filter(|change| !change.is_empty()),
            (false, false) => None,
        };
        self.begun |= begins;
        if let Some(step) = step {
            // The receiver is gone only while the agent ends.
            let _ = self.steps.send(step);
            self.state.steps.fetch_add(1, Ordering::Relaxed);
        }
        begins
    }
}

/// For the thread of a source, and for questions.
#[derive(Clone)]
pub struct Inquiry(Arc<Mutex<Planning>>);

impl fmt::Debug for Inquiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inquiry").finish_non_exhaustive()
    }
}

impl Inquiry {
    pub(super) fn new(planning: Planning) -> Self {
        Self(Arc::new(Mutex::new(planning)))
    }

    /// What only one thread has at a time.
    pub(super) fn lock(&self) -> MutexGuard<'_, Planning> {
        // Who panicked held it to read it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The planner's answer. A compile that is under way is waited for; `None` when the question has panicked.
    pub async fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&Planner) -> R + Send + 'static,
    ) -> Option<R> {
        let planning = self.clone();
        tokio::task::spawn_blocking(move || question(planning.lock().planner())).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use divert_core::compile::Settings;
    use divert_core::manifests::testing::objects;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn an_update_counts_also_where_no_step_comes_of_it() {
        let (steps, mut taken) = unbounded_channel();
        let state = Arc::new(State::default());
        let mut planning = Planning::new(Planner::new(Settings::default()), steps, state.clone());
        let mut counted = |planning: &mut Planning, changes, complete| {
            let begins = planning.take(changes, complete);
            let steps = std::iter::from_fn(|| taken.try_recv().ok()).count();
            (begins, steps, state.updates.load(Ordering::Relaxed), state.steps.load(Ordering::Relaxed))
        };
        let namespace = || objects("apiVersion: v1\nkind: Namespace\nmetadata: {name: alice}\n");
        // What is not all gives no plan; the first plan is a step, though it is empty.
        assert_eq!(counted(&mut planning, namespace(), false), (false, 0, 1, 0));
        assert_eq!(counted(&mut planning, Vec::new(), true), (true, 1, 2, 1));
        // A namespace with no pods changes no plan, but an agent may be asked what it knows of it.
        assert_eq!(counted(&mut planning, namespace(), true), (false, 0, 3, 1));
    }
}
