//! Following a directory as it changes, within 200 ms.
//!
//! inotify says when to look; what has changed is then found by looking. So events may be merged, lost or
//! misunderstood without harm, and an editor's rename-over, `cp`, and the symlink swap of a mounted
//! ConfigMap (`..data`) need no code of their own. Two things that looking does not show come from events:
//! a file that is still being written is not read before it is closed, and one whose timestamp is too
//! coarse to show the last write is read again.
//!
//! The directory may vanish and come back, or be a symlink that is swapped: its parent is watched too.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf, absolute};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use divert_core::manifests::Report;
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use super::{Hints, Manifests, ManifestsError, Refresh};

/// Events closer together than this belong to one change: an editor's rename, write, rename.
const QUIET: Duration = Duration::from_millis(30);
/// Events that never pause are acted on after this time all the same.
const IMPATIENCE: Duration = Duration::from_millis(100);
/// A file that was not closed this long after the last write is read as it is.
const WRITE_LIMIT: Duration = Duration::from_secs(1);
/// A file that went, or came and is still empty, is left at what it last gave for this long: editors move
/// the old file away before they write the new one.
const GRACE: Duration = Duration::from_millis(80);
/// How often to look without an event: for files that are links out of the directory, and file systems
/// without inotify.
const TICK: Duration = Duration::from_secs(1);
/// How often to look while inotify does not work at all.
const TICK_BLIND: Duration = Duration::from_millis(100);

/// Follows a directory until dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Both fail only if the thread has panicked, which its own message has told.
        let _ = self.stop.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads a directory and follows it. `on_change` gets the first reading before this returns, and every
/// later one that brings something, on a thread of its own, with the report of what is wrong by then.
///
/// # Errors
/// When the directory cannot be read now. If it vanishes later, all it last gave stays.
pub fn watch(
    dir: &Path,
    mut on_change: impl FnMut(Refresh, &Report) + Send + 'static,
) -> Result<Watch, ManifestsError> {
    let (stop, messages) = channel();
    // Watching comes before reading: a change in between is an event.
    let mut follower = Follower::new(dir, stop.clone());
    follower.rewatch();
    let (manifests, first) = Manifests::open(dir)?;
    on_change(first, manifests.report());
    let run = move || follower.run(manifests, &messages, on_change);
    let thread = std::thread::Builder::new().name("manifests".into()).spawn(run);
    let thread = thread.map_err(|error| ManifestsError::new(dir, error))?;
    Ok(Watch { stop, thread: Some(thread) })
}

enum Message {
    Event(notify::Result<notify::Event>),
    Stop,
}

/// The watching side: what inotify is asked, and what it told.
struct Follower {
    dir: PathBuf,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the directory that is watched.
    watched: Option<(u64, u64)>,
    changed: HashSet<PathBuf>,
    /// Files that are not to be read before a time, because they are being written or replaced.
    unsettled: HashMap<PathBuf, Instant>,
}

impl Follower {
    fn new(dir: &Path, messages: Sender<Message>) -> Self {
        let absolute = absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let own = absolute.clone();
        let handle = move |event: notify::Result<notify::Event>| {
            if event.as_ref().map_or(true, |event| concerns(&own, event)) {
                // The receiver is gone only while the thread ends.
                let _ = messages.send(Message::Event(event));
            }
        };
        let watcher = notify::recommended_watcher(handle)
            .and_then(|mut watcher| {
                if let Some(parent) = absolute.parent() {
                    watcher.watch(parent, RecursiveMode::NonRecursive)?;
                }
                Ok(watcher)
            })
            .inspect_err(|error| {
                tracing::warn!(dir = %dir.display(), %error, "inotify does not work, so manifests are polled");
            });
        Self {
            dir: absolute,
            watcher: watcher.ok(),
            watched: None,
            changed: HashSet::new(),
            unsettled: HashMap::new(),
        }
    }

    fn run(
        mut self,
        mut manifests: Manifests,
        messages: &Receiver<Message>,
        mut on_change: impl FnMut(Refresh, &Report),
    ) {
        loop {
            let tick = if self.watched.is_some() { TICK } else { TICK_BLIND };
            let settled = self.unsettled.values().min();
            let wait = settled.map_or(tick, |at| at.saturating_duration_since(Instant::now()).min(tick));
            if !self.gather(messages, wait) {
                return;
            }
            self.rewatch();
            let now = Instant::now();
            self.unsettled.retain(|_, &mut until| now < until);
            let unsettled: HashSet<_> = self.unsettled.keys().cloned().collect();
            let changed = self.changed.extract_if(|path| !unsettled.contains(path)).collect();
            let hints = Hints { changed, unsettled };
            let refresh = manifests.refresh(&hints);
            if !refresh.is_empty() {
                on_change(refresh, manifests.report());
            }
        }
    }

    /// Waits for an event and those that belong to it. False when it is time to end.
    fn gather(&mut self, messages: &Receiver<Message>, wait: Duration) -> bool {
        let mut wait = wait;
        let mut until = None;
        loop {
            match messages.recv_timeout(wait) {
                Ok(Message::Event(event)) => self.note(event),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => return true,
            }
            let until = *until.get_or_insert_with(|| Instant::now() + IMPATIENCE);
            wait = QUIET.min(until.saturating_duration_since(Instant::now()));
            if wait.is_zero() {
                return true;
            }
        }
    }

    fn note(&mut self, event: notify::Result<notify::Event>) {
        let Ok(event) = event else { return };
        if event.need_rescan() {
            // What was closed meanwhile is not known.
            self.unsettled.clear();
        }
        let settles_in = match event.kind {
            // Sums up two events that came before.
            EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => return,
            EventKind::Modify(ModifyKind::Data(_)) => Some(WRITE_LIMIT),
            EventKind::Create(_)
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => Some(GRACE),
            _ => None,
        };
        for path in event.paths {
            if let Some(time) = settles_in {
                self.unsettled.insert(path.clone(), Instant::now() + time);
            } else if !matches!(event.kind, EventKind::Modify(ModifyKind::Metadata(_))) {
                self.unsettled.remove(&path);
            }
            self.changed.insert(path);
        }
    }

    /// Sees to it that the directory of that name is the one that is watched.
    fn rewatch(&mut self) {
        let there = fs::metadata(&self.dir).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if there == self.watched {
            return;
        }
        let Some(watcher) = &mut self.watcher else { return };
        // Of a directory that is gone, the watch went with it.
        let _ = watcher.unwatch(&self.dir);
        self.watched = there.filter(|_| match watcher.watch(&self.dir, RecursiveMode::NonRecursive) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(dir = %self.dir.display(), %error, "cannot watch; polling meanwhile");
                false
            }
        });
        self.unsettled.clear();
    }
}

/// Whether an event can mean that a manifest changed. Our own reading makes events, too.
fn concerns(dir: &Path, event: &notify::Event) -> bool {
    let reading = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => true,
        _ => false,
    };
    !reading
        && (event.paths.is_empty()
            || event.paths.iter().any(|path| path == dir || path.parent() == Some(dir)))
}
