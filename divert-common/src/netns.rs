//! Network namespaces: what identifies one, and how to act inside it.
//!
//! Invariant: a thread that enters a namespace leaves it before [`NetNs::enter`] returns, also when
//! the closure panics. The closure is synchronous, so no other task of a runtime can run in between.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What tells one namespace from another while both exist: the inode on nsfs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NetNsId {
    /// st_dev of the namespace file.
    pub device: u64,
    /// st_ino of the namespace file.
    pub inode: u64,
}

/// An open network namespace. It stays alive as long as this value does.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    id: NetNsId,
}

impl NetNs {
    /// Opens `/proc/PID/ns/net`, `/run/netns/NAME` or the like.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_file(File::open(path)?)
    }

    /// The namespace that the calling thread is in.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Takes an open namespace file.
    pub fn from_file(file: File) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&file)?;
        Ok(Self { file, id: NetNsId { device: stat.st_dev, inode: stat.st_ino } })
    }

    /// (device, inode) of the namespace.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// Runs `act` with the calling thread inside this namespace. Sockets made there stay there.
    ///
    /// Costs two setns calls, 1 to 1.4 µs: the namespace to come back to is opened once per thread, at
    /// the first call. Needs CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// When the namespace cannot be entered; `act` has not run then.
    ///
    /// # Panics
    /// When calls are nested, and when the way back is barred: to go on in a foreign namespace would
    /// send traffic where it does not belong.
    pub fn enter<T>(&self, act: impl FnOnce() -> T) -> io::Result<T> {
        HOME.with(|home| {
            let mut home = home.try_borrow_mut().expect("entering a namespace is never nested");
            let home: &File = match &mut *home {
                Some(file) => file,
                none => none.insert(File::open("/proc/thread-self/ns/net")?),
            };
            move_into(self.file.as_fd())?;
            let _return = Return(home.as_fd());
            Ok(act())
        })
    }
}

thread_local! {
    /// Where this thread lives.
    static HOME: RefCell<Option<File>> = const { RefCell::new(None) };
}

/// Takes the thread home when dropped.
struct Return<'a>(BorrowedFd<'a>);

impl Drop for Return<'_> {
    fn drop(&mut self) {
        move_into(self.0)
            .expect("the namespace this thread came from is open, and it was allowed to leave it");
    }
}

fn move_into(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?)
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
