//! Network namespaces with a name under /run/netns, where agents and `ip` look for them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use divert_common::netns::NetNs;
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{
    MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Where namespaces have names.
pub const FOLDER: &str = "/run/netns";

/// A named network namespace; the name goes on drop, and the namespace with it when nothing is in it.
#[derive(Debug)]
pub struct NamedNetNs {
    name: String,
    path: PathBuf,
    netns: NetNs,
}

impl NamedNetNs {
    /// Makes a namespace with nothing in it but `lo`, down.
    ///
    /// # Errors
    /// When it cannot be made; needs CAP_SYS_ADMIN.
    pub fn new(name: &str) -> Result<Self> {
        prepare_folder().with_context(|| format!("making {FOLDER} ready for names"))?;
        Self::new_in(Path::new(FOLDER), name)
    }

    /// Makes one with its name in another folder, where only those look who are told to.
    ///
    /// # Errors
    /// When it cannot be made; needs CAP_SYS_ADMIN.
    pub fn new_in(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        File::options().write(true).create_new(true).open(&path)?;
        let made = std::thread::scope(|scope| {
            let maker = scope.spawn(|| -> io::Result<NetNs> {
                // SAFETY: only this thread's network namespace changes, and the thread ends here.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
                mount_bind("/proc/thread-self/ns/net", &path)?;
                NetNs::current()
            });
            maker.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes it panicked")))
        });
        match made {
            Ok(netns) => Ok(Self { name: name.to_owned(), path, netns }),
            Err(error) => {
                remove(&path);
                Err(error).with_context(|| format!("making the network namespace {name}"))
            }
        }
    }

    /// Its name, under [`FOLDER`] as a rule.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Runs the lines as `ip -batch` does, in this namespace.
    ///
    /// # Errors
    /// With the message of `ip`.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], lines)
    }

    /// Has `nft` carry out the lines, in this namespace.
    ///
    /// # Errors
    /// With the message of `nft`.
    pub fn nft(&self, lines: &str) -> Result<()> {
        self.feed("nft", &["-f", "-"], lines)
    }

    /// Has `iptables-legacy-restore` carry out the lines, in this namespace.
    ///
    /// # Errors
    /// With the message of `iptables-legacy-restore`.
    pub fn iptables_legacy(&self, lines: &str) -> Result<()> {
        self.feed("iptables-legacy-restore", &[], lines)
    }

    /// Runs a program on the lines.
    fn feed(&self, program: &str, arguments: &[&str], lines: &str) -> Result<()> {
        let mut running = self.netns.enter(|| {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn()
        })??;
        let mut stdin = running.stdin.take().context("it has a standard input")?;
        stdin.write_all(lines.as_bytes())?;
        drop(stdin);
        let done = running.wait_with_output()?;
        if !done.status.success() {
            bail!("{program} in {}: {}\n{lines}", self.name, String::from_utf8_lossy(&done.stderr));
        }
        Ok(())
    }

    /// What `ip ARGS` prints in this namespace.
    ///
    /// # Errors
    /// With the message of `ip`.
    pub fn ip(&self, args: &str) -> Result<String> {
        let done = self.netns.enter(|| Command::new("ip").args(args.split_whitespace()).output())??;
        if !done.status.success() {
            bail!("ip {args} in {}: {}", self.name, String::from_utf8_lossy(&done.stderr));
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Takes the name away now; the namespace lives on while something is in it.
    pub fn unname(&self) {
        remove(&self.path);
    }
}

impl Drop for NamedNetNs {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Takes a namespace's name away.
pub(crate) fn remove(path: &Path) {
    let _ = unmount(path, UnmountFlags::DETACH);
    let _ = fs::remove_file(path);
}

/// Makes the folder a shared mount, as `ip netns add` does: a later `ip netns add` would otherwise
/// mount it over itself, and names made before could then not be taken away any more.
fn prepare_folder() -> io::Result<()> {
    fs::create_dir_all(FOLDER)?;
    let folder = File::open(FOLDER)?;
    flock(&folder, FlockOperation::LockExclusive)?;
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    if mount_change(FOLDER, shared).is_err() {
        mount_bind_recursive(FOLDER, FOLDER)?;
        mount_change(FOLDER, shared)?;
    }
    Ok(())
}
