//! Which agent of a node serves, where there are two: while a new version is rolled out, the newcomer works beside
//! the old one, whose hooks come first, and takes over what the old one lets go.
//!
//! The lock is flock(2) on a file in a folder that the agents of a node share (`--run-dir`). It changes nothing
//! about who is captured: that follows from the order of the hooks, and the routes of a run bear its port, so
//! that no agent removes another's. It says who serves: to people, and to a successor that is to be handed
//! listeners.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use arc_swap::ArcSwapOption;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Name of the file in the folder.
pub const FILE: &str = "agent.lock";

/// Why agents of this node cannot agree.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}: {source}; --run-dir is to be a folder of this node that all its agents can write")]
pub struct LockError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// This agent's place: it serves, or stands by for the one that does.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    held: Arc<ArcSwapOption<File>>,
}

impl Place {
    /// Takes the lock if it is free; else waits for it on a thread of its own, for as long as it takes.
    /// `identity` is left in the file, for people and for the next one.
    ///
    /// # Errors
    /// When there is no such folder, or no lock to be had in it.
    pub fn take(folder: &Path, identity: &str) -> Result<Self, LockError> {
        fs::create_dir_all(folder).map_err(failed("making the folder", folder))?;
        let path = folder.join(FILE);
        let held = Arc::new(ArcSwapOption::empty());
        match lock(&path, identity, FlockOperation::NonBlockingLockExclusive) {
            Ok(file) => held.store(Some(Arc::new(file))),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::WOULDBLOCK) => {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                tracing::info!("standing by: {} serves this node", holder.trim());
                wait(path.clone(), identity.to_owned(), held.clone())
                    .map_err(failed("waiting for the lock", &path))?;
            }
            Err(error) => return Err(failed("locking", &path)(error)),
        }
        Ok(Self { path, held })
    }

    /// Whether this agent serves the node.
    pub fn is_serving(&self) -> bool {
        self.held.load().is_some()
    }

    /// Lets the next one serve. Without one, nothing is left.
    pub fn give_up(&self) {
        let Some(file) = self.held.swap(None) else { return };
        // While it is locked: who waits for this file will find that it is not the one at the path.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("the lock {} stays behind, harmless: {error}", self.path.display());
        }
        drop(file);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_up();
    }
}

fn wait(path: PathBuf, identity: String, held: Arc<ArcSwapOption<File>>) -> io::Result<()> {
    // Ends with the process if not before: flock cannot be called off, and waiting costs nothing.
    let waiting = thread::Builder::new().name("lock".into()).spawn(move || {
        match lock(&path, &identity, FlockOperation::LockExclusive) {
            Ok(file) => {
                held.store(Some(Arc::new(file)));
                tracing::info!("serving this node: the agent before has let go");
            }
            Err(error) => tracing::error!("the lock {} cannot be waited for: {error}", path.display()),
        }
    });
    waiting.map(drop)
}

/// Locks the file that is at the path once it is locked: its last holder may have removed it.
fn lock(path: &Path, identity: &str, how: FlockOperation) -> io::Result<File> {
    loop {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        flock(&file, how)?;
        match fs::metadata(path) {
            Ok(there) if there.ino() == file.metadata()?.ino() => {
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "{identity}")?;
                return Ok(file);
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LockError + 'a {
    move |source| LockError { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("divert-lock-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn becomes_serving(place: &Place) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !place.is_serving() {
            if Instant::now() > deadline {
                return false;
            }
            thread::yield_now();
        }
        true
    }

    #[test]
    fn one_serves_and_the_others_follow_one_by_one() {
        let folder = Folder::new("order");
        let first = Place::take(&folder.0, "first").unwrap();
        let others = ["second", "third"].map(|name| Place::take(&folder.0, name).unwrap());
        assert!(first.is_serving());
        assert!(others.iter().all(|it| !it.is_serving()));
        assert_eq!(fs::read_to_string(folder.0.join(FILE)).unwrap(), "first\n");

        first.give_up();
        assert!(!first.is_serving());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !others.iter().any(Place::is_serving) {
            assert!(Instant::now() < deadline, "one of the others takes over");
            thread::yield_now();
        }
        let [second, third] = others;
        let (holder, next) = if second.is_serving() { (second, third) } else { (third, second) };
        assert!(!next.is_serving());
        drop(holder);
        assert!(becomes_serving(&next));
        next.give_up();
        assert!(!folder.0.join(FILE).exists(), "nothing is left");
    }

    #[test]
    fn a_file_that_a_dead_agent_left_is_no_lock() {
        let folder = Folder::new("dead");
        fs::write(folder.0.join(FILE), "an agent that was killed, whose name is long\n").unwrap();
        let place = Place::take(&folder.0, "next").unwrap();
        assert!(place.is_serving());
        assert_eq!(fs::read_to_string(folder.0.join(FILE)).unwrap(), "next\n");
    }

    #[test]
    fn a_folder_that_cannot_be_is_refused_by_name() {
        let folder = Folder::new("refused");
        let file = folder.0.join("file");
        fs::write(&file, "").unwrap();
        let said = Place::take(&file.join("below"), "it").unwrap_err().to_string();
        assert!(said.contains("file/below") && said.contains("--run-dir"), "{said}");
    }
}
