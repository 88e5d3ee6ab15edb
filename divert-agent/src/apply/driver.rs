//! The thread that apply runs on.
//!
//! It wakes for a change of the plan, for a change in a folder of network namespaces (inotify), and at the
//! applier's own pace; and it publishes the status after each.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use divert_core::plan::PlanChange;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{oneshot, watch};
use tracing::{debug, error, warn};

use super::{Applier, Status};
use crate::kernel::hooks::Hooks;
use crate::kernel::memory;

/// After inotify reports a new file, the namespace is mounted over it, which it does not report.
const AFTER_A_REPORT: Duration = Duration::from_secs(1);
/// Pace in that time.
const QUICK: Duration = Duration::from_millis(20);

enum Command {
    Apply(PlanChange),
    Look,
    Ask(Box<dyn FnOnce(&Applier) + Send>),
    /// Answered when it is done.
    Release(SyncSender<()>),
    Stop,
}

/// Questions to a running applier.
#[derive(Clone, Debug)]
pub struct Inquiry(Sender<Command>);

impl Inquiry {
    /// Its answer; `None` when it has ended.
    pub async fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&Applier) -> R + Send + 'static,
    ) -> Option<R> {
        let (answer, answered) = oneshot::channel();
        let ask = move |applier: &Applier| drop(answer.send(question(applier)));
        self.0.send(Command::Ask(Box::new(ask))).ok()?;
        answered.await.ok()
    }
}

/// A running applier. Dropping it stops it and leaves the kernel clean.
#[derive(Debug)]
pub struct Driver {
    commands: Sender<Command>,
    status: watch::Receiver<Status>,
    thread: Option<JoinHandle<Hooks>>,
}

impl Driver {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(applier: Applier) -> io::Result<Self> {
        let (commands, inbox) = channel();
        let (publish, status) = watch::channel(applier.status());
        let folders = Folders::new(applier.netns_folders().to_vec(), commands.clone());
        let thread =
            Builder::new().name("apply".into()).spawn(move || run(applier, &inbox, folders, &publish))?;
        Ok(Self { commands, status, thread: Some(thread) })
    }

    /// Hands over a step of the plan; steps are carried out in order.
    pub fn apply(&self, change: PlanChange) {
        self.send(Command::Apply(change));
    }

    /// Lets new connections go direct for good, and returns when they do; what was captured before is
    /// still served. The first step of an orderly end: workers may close their listeners after it.
    pub fn release(&self) {
        let (done, wait) = sync_channel(1);
        self.send(Command::Release(done));
        // An error says that the thread has ended, and its hooks with it.
        let _ = wait.recv();
    }

    /// For questions to the applier.
    pub fn inquiry(&self) -> Inquiry {
        Inquiry(self.commands.clone())
    }

    /// The status, and when it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Stops serving and waits until all that was opened is closed. Gives the hooks back, unless the
    /// thread has died.
    pub fn stop(mut self) -> Option<Hooks> {
        self.join()
    }

    fn join(&mut self) -> Option<Hooks> {
        self.send(Command::Stop);
        self.thread.take()?.join().ok()
    }

    fn send(&self, command: Command) {
        if self.commands.send(command).is_err() {
            error!("the apply thread has died, and capture with it: restart the agent");
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.join();
        }
    }
}

fn run(
    mut applier: Applier,
    inbox: &Receiver<Command>,
    mut folders: Folders,
    publish: &watch::Sender<Status>,
) -> Hooks {
    let mut due = Instant::now();
    let mut quick_until = due;
    let mut planned = false;
    loop {
        match inbox.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(Command::Apply(change)) => {
                applier.apply(change);
                // Loading the hooks has read all types of the kernel, and the first plan all objects.
                if !std::mem::replace(&mut planned, true) {
                    memory::give_back();
                }
            }
            Ok(Command::Look) => {
                quick_until = Instant::now() + AFTER_A_REPORT;
                due = due.min(Instant::now() + QUICK);
            }
            Ok(Command::Ask(question)) => question(&applier),
            Ok(Command::Release(done)) => {
                applier.release();
                // Who asked may have gone.
                let _ = done.send(());
            }
            Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return applier.close(),
            Err(RecvTimeoutError::Timeout) => {
                folders.watch();
                applier.tick();
                let now = Instant::now();
                due = now + if now < quick_until { QUICK } else { applier.pace() };
            }
        }
        // A pod that has just been planned may be there any moment.
        due = due.min(Instant::now() + applier.pace());
        publish.send_if_modified(|published| {
            let status = applier.status();
            let changed = *published != status;
            *published = status;
            changed
        });
    }
}

/// Watches the folders that exist; those that come to exist later as well.
struct Folders {
    wanted: Vec<PathBuf>,
    /// By real path: /var/run is mostly a link to /run.
    watched: BTreeSet<PathBuf>,
    watcher: Option<RecommendedWatcher>,
}

impl Folders {
    fn new(wanted: Vec<PathBuf>, commands: Sender<Command>) -> Self {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a folder, which the scan does itself, is an access.
            if event.is_ok_and(|it| !it.kind.is_access()) {
                // The thread has ended: nobody needs to know.
                let _ = commands.send(Command::Look);
            }
        });
        let watcher = watcher
            .inspect_err(|error| warn!("new network namespaces are found a moment later: {error}"))
            .ok();
        Self { wanted, watched: BTreeSet::new(), watcher }
    }

    fn watch(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        for folder in self.wanted.iter().filter_map(|it| it.canonicalize().ok()) {
            if self.watched.contains(&folder) {
                continue;
            }
            match watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.watched.insert(folder)),
                Err(error) => debug!(folder = %folder.display(), "cannot be watched: {error}"),
            }
        }
    }
}
