//! One thread of a process held still, as by a bug, while its others go on: signals stop all of them.

use std::fs;
use std::io;

use anyhow::{Context, Result};

/// A thread that does not run while this lives, held by ptrace(2). To be made, used and dropped on one thread, whose
/// tracee it is.
#[derive(Debug)]
pub struct Frozen {
    tid: libc::pid_t,
    gone: bool,
}

impl Frozen {
    /// Stops the thread of a process that bears this name.
    ///
    /// # Errors
    /// When there is none, or it may not be traced.
    pub fn thread(pid: u32, name: &str) -> Result<Self> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.map_while(Result::ok);
        let mut named = tasks.filter(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        });
        let task = named.next().with_context(|| format!("process {pid} has no thread {name}"))?;
        let tid = task.file_name().to_string_lossy().parse()?;
        ptrace(libc::PTRACE_SEIZE, tid)?;
        ptrace(libc::PTRACE_INTERRUPT, tid)?;
        let mut frozen = Self { tid, gone: false };
        frozen.wait(0);
        Ok(frozen)
    }

    /// Whether its process has ended, which cannot be waited for before it is asked here.
    pub fn is_gone(&mut self) -> bool {
        self.gone || self.wait(libc::WNOHANG).is_some_and(|it| libc::WIFEXITED(it) || libc::WIFSIGNALED(it))
    }

    fn wait(&mut self, options: libc::c_int) -> Option<libc::c_int> {
        let mut status = 0;
        // SAFETY: the status is written to memory of this function's.
        let waited = unsafe { libc::waitpid(self.tid, &raw mut status, options | libc::__WALL) };
        self.gone |=
            waited == -1 || waited == self.tid && (libc::WIFEXITED(status) || libc::WIFSIGNALED(status));
        (waited == self.tid).then_some(status)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if !self.is_gone() {
            // It may end at this very moment.
            let _ = ptrace(libc::PTRACE_DETACH, self.tid);
        }
    }
}

fn ptrace(request: libc::c_uint, tid: libc::pid_t) -> io::Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests touch no memory of this process.
    let done = unsafe { libc::ptrace(request, tid, none, none) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
