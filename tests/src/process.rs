//! Child processes that end with their guard, placed into a network namespace and a cgroup.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use divert_common::netns::NetNs;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::thread::{UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::{cgroup, wait};

/// Where a process is put before it runs its program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// Its network namespace; that of the caller when none.
    pub netns: Option<&'a NetNs>,
    /// Its cgroup; that of the caller when none.
    pub cgroup: Option<&'a Path>,
}

/// All that a process can be put into before it runs its program, in this order.
#[derive(Debug)]
pub struct Setting {
    /// `cgroup.procs` of its cgroups, of one in each hierarchy.
    pub cgroups: Vec<File>,
    /// Namespaces of any kind that are there.
    pub namespaces: Vec<OwnedFd>,
    /// Namespaces that are made for it. Not of process IDs: that would be its children's.
    pub new_namespaces: UnshareFlags,
}

impl TryFrom<Place<'_>> for Setting {
    type Error = io::Error;

    fn try_from(place: Place<'_>) -> io::Result<Self> {
        let netns = place.netns.map(|netns| netns.as_fd().try_clone_to_owned()).transpose()?;
        let cgroup = place.cgroup.map(cgroup::open_procs).transpose()?;
        Ok(Self {
            cgroups: cgroup.into_iter().collect(),
            namespaces: netns.into_iter().collect(),
            new_namespaces: UnshareFlags::empty(),
        })
    }
}

/// A running program. Killed with its process group and reaped on drop; the kernel kills it, too, when
/// the test's process dies. What it printed is shown when the test fails.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    /// Standard output and error, in the order written.
    output: File,
}

impl Process {
    /// Starts a program. Its standard input is empty; its output is kept.
    ///
    /// # Errors
    /// When it cannot be placed or started.
    pub fn spawn(name: &str, command: Command, place: Place<'_>) -> Result<Self> {
        Self::spawn_in(name, command, place.try_into()?)
    }

    /// [`Self::spawn`], into any setting.
    ///
    /// # Errors
    /// When it cannot be put there or started.
    pub fn spawn_in(name: &str, mut command: Command, setting: Setting) -> Result<Self> {
        // A memory file needs no thread that empties a pipe, and can be read at any time.
        let output = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
        command.process_group(0);
        enter_before_exec(&mut command, setting);
        let child = spawn_on_lasting_thread(command)
            .with_context(|| format!("starting {name}: is the program installed?"))?;
        Ok(Self { name: name.to_owned(), child, status: None, output })
    }

    /// What it was called when it was started.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, not its group.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.group().filter(|_| self.status.is_none()).context("the process has ended")?;
        kill_process(pid, signal).with_context(|| format!("sending {signal:?} to {}", self.name))
    }

    /// All it has printed so far, standard output and error together.
    pub fn output(&self) -> String {
        let length = self.output.metadata().map_or(0, |metadata| metadata.len());
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let read = self.output.read_at(&mut bytes, 0).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    /// Waits until it has printed `text`.
    ///
    /// # Errors
    /// When it has not within [`wait::PATIENCE`].
    pub fn wait_for_output(&self, text: &str) -> Result<()> {
        wait::until(&format!("{} to print {text:?}", self.name), || self.output().contains(text))
            .with_context(|| format!("it printed:\n{}", self.output()))
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait::some_within(limit, &what, || self.exited())
            .with_context(|| format!("it printed:\n{}", self.output()))
    }

    /// Waits until it ends well, and returns what it printed.
    ///
    /// # Errors
    /// When it fails, or does not end within `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<String> {
        let status = self.wait_exit(limit)?;
        ensure!(status.success(), "{} ended with {status}:\n{}", self.name, self.output());
        Ok(self.output())
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        if self.exited().is_none() {
            if let Some(group) = self.group() {
                let _ = kill_process_group(group, Signal::KILL);
            }
            self.status = self.child.wait().ok();
        }
    }

    fn group(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()).ok()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- {} ({:?}) printed:\n{}", self.name, self.status, self.output());
        }
    }
}

/// Has a child move itself before exec, and end with the thread that starts it.
pub fn enter_before_exec(command: &mut Command, setting: Setting) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            // The parent died before the kernel was told to watch it.
            return Err(io::Error::other("the test's process is gone"));
        }
        for procs in &setting.cgroups {
            rustix::io::write(procs, b"0")?;
        }
        for namespace in &setting.namespaces {
            move_into_link_name_space(namespace.as_fd(), None)?;
        }
        if !setting.new_namespaces.is_empty() {
            // SAFETY: the child is alone in its process: it shares no file descriptors with another thread.
            unsafe { unshare_unsafe(setting.new_namespaces) }?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only; nothing allocates between fork and exec but the
    // error of a dead parent, which nobody waits for.
    unsafe { command.pre_exec(prepare) };
}

/// Spawns from a thread that lives as long as the process: PR_SET_PDEATHSIG fires when the *thread* that
/// made the child ends (prctl(2)), and a test's thread may end before a process that others share.
fn spawn_on_lasting_thread(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::SyncSender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let (reply, answer) = mpsc::sync_channel(1);
    let gone = || io::Error::other("the thread that starts programs is gone");
    spawner.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}
