//! A node: namespaces of its own (network, mount, host name, cgroup) in which a kubelet takes itself for alone on a machine.
//!
//! The machine's files are visible in it, so that programs need not be copied; what a kubelet, containerd or a pod with
//! host paths would write outside of the cluster's folder is covered by mounts that exist in the node only. All
//! of it goes with the last process.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::cgroups::Cgroups;
use crate::cgroup::Hierarchy;
use crate::named_netns::NamedNetNs;
use crate::process::{Process, Setting, enter_before_exec};

/// What the kubelet would set for the whole machine: it writes to files instead.
const SYSCTLS: [&str; 6] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];
/// A node forwards between its pods and the others; a pod's packets may come back another way.
const NETWORK: [(&str, &str); 3] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
];

/// A node of a [`Cluster`](super::Cluster).
#[derive(Debug)]
pub struct Node {
    name: String,
    address: Ipv4Addr,
    /// Sits in the node's namespaces, and holds them open.
    holder: Process,
    /// In the order in which they are entered.
    namespaces: Vec<OwnedFd>,
    /// `cgroup.procs` of where daemons run.
    sys: Vec<File>,
    netns: NamedNetNs,
    folder: PathBuf,
}

impl Node {
    /// Makes a node's namespaces and cgroups, without network interfaces and without daemons.
    pub(super) fn new(
        name: &str,
        address: Ipv4Addr,
        run: &str,
        folder: &Path,
        cgroups: &Cgroups,
    ) -> Result<Self> {
        let folder = folder.join(name);
        for part in ["containerd", "kubelet", "log", "cni", "upper", "work"] {
            fs::create_dir_all(folder.join(part)).with_context(|| format!("making {}", folder.display()))?;
        }
        cgroups.make_node(name)?;
        let netns = NamedNetNs::new(&format!("{run}.{name}"))?;
        let mut sleep = Command::new("sleep");
        sleep.arg("infinity");
        // Where the process is when its cgroup namespace is made is the top of that namespace.
        let setting = Setting {
            cgroups: cgroups.open(name)?,
            namespaces: vec![netns.netns().as_fd().try_clone_to_owned()?],
            new_namespaces: UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP,
        };
        let holder = Process::spawn_in(&format!("holder of {name}"), sleep, setting)?;
        let sys = cgroups.open(&format!("{name}/sys"))?;
        for procs in &sys {
            rustix::io::write(procs, holder.pid().to_string().as_bytes())?;
        }
        cgroups.delegate(name);
        let open = |kind| Ok(OwnedFd::from(File::open(format!("/proc/{}/ns/{kind}", holder.pid()))?));
        let namespaces = ["net", "uts", "cgroup", "mnt"].map(open).into_iter().collect::<io::Result<_>>()?;
        let node = Self { name: name.to_owned(), address, holder, namespaces, sys, netns, folder };
        let hierarchies = cgroups.hierarchies();
        node.enter(|| set_up(&node.name, &node.folder, hierarchies))?
            .with_context(|| format!("making {name} look like a machine"))?;
        Ok(node)
    }

    /// Its name: `n1`, `n2`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address among the nodes.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A process in all of its namespaces, for `nsenter -t PID -m -n -u -C`.
    pub fn pid(&self) -> u32 {
        self.holder.pid()
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NamedNetNs {
        &self.netns
    }

    /// Where its own files are.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs `act` on a thread inside of the node: its files, its network, its host name.
    ///
    /// # Errors
    /// When the node cannot be entered; `act` has not run then.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T> {
        let thread = || -> io::Result<T> {
            // SAFETY: the thread's own working directory and root: it shares no file descriptors any less.
            unsafe { unshare_unsafe(UnshareFlags::FS) }?;
            for namespace in &self.namespaces {
                move_into_link_name_space(namespace.as_fd(), None)?;
            }
            Ok(act())
        };
        let done = std::thread::scope(|scope| scope.spawn(thread).join());
        match done {
            Ok(done) => done.with_context(|| format!("entering {}", self.name)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a program inside of the node to its end, and gives what it prints.
    ///
    /// # Errors
    /// With what it says when it fails.
    pub fn run(&self, mut command: Command) -> Result<String> {
        let program = command.get_program().to_string_lossy().into_owned();
        enter_before_exec(&mut command, self.setting()?);
        let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {program}"))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} on {}: {}", self.name, error.trim_end());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// [`Self::run`] for words.
    ///
    /// # Errors
    /// [`Self::run`]'s.
    pub fn exec(&self, words: &[&str]) -> Result<String> {
        let [program, arguments @ ..] = words else { bail!("there is nothing to run on {}", self.name) };
        let mut command = Command::new(program);
        command.args(arguments);
        self.run(command)
    }

    /// Starts a daemon of the node.
    pub(super) fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        Process::spawn_in(&format!("{name} of {}", self.name), command, self.setting()?)
    }

    fn setting(&self) -> io::Result<Setting> {
        Ok(Setting {
            cgroups: self.sys.iter().map(File::try_clone).collect::<io::Result<_>>()?,
            namespaces: self.namespaces.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?,
            new_namespaces: UnshareFlags::empty(),
        })
    }
}

/// Runs inside of the node.
fn set_up(name: &str, folder: &Path, hierarchies: &[Hierarchy]) -> Result<()> {
    rustix::system::sethostname(name.as_bytes()).context("setting the host name")?;
    // Nothing of what follows may reach the machine.
    let all = MountPropagationFlags::REC;
    mount_change("/", MountPropagationFlags::PRIVATE | all).context("cutting off the machine's mounts")?;
    // As a kubelet expects it, for volumes.
    mount_change("/", MountPropagationFlags::SHARED | all).context("sharing the node's mounts")?;

    mount_cgroups(hierarchies)?;
    filesystem("bpf", Path::new("/sys/fs/bpf"), "")?;
    filesystem("tmpfs", Path::new("/run"), "mode=755")?;
    // All that is there stays visible, as it may hold the programs; what is made there is made in the cluster's folder.
    let (upper, work) = (folder.join("upper"), folder.join("work"));
    let options = format!("lowerdir=/var/lib,upperdir={},workdir={}", upper.display(), work.display());
    filesystem("overlay", Path::new("/var/lib"), &options)?;
    for path in ["/run/netns", "/run/lock", "/var/lib/kubelet"] {
        fs::create_dir_all(path).with_context(|| format!("making {path}"))?;
    }
    bind(&folder.join("kubelet"), Path::new("/var/lib/kubelet"))?;
    bind(&folder.join("log"), Path::new("/var/log"))?;

    let files = Path::new("/run/sysctl");
    fs::create_dir(files).context("making /run/sysctl")?;
    for sysctl in SYSCTLS {
        let (real, file) = (Path::new("/proc/sys").join(sysctl), files.join(sysctl.replace('/', ".")));
        // Not every kernel has all.
        let Ok(value) = fs::read(&real) else { continue };
        fs::write(&file, value).with_context(|| format!("writing {}", file.display()))?;
        bind(&file, &real)?;
    }
    for (sysctl, value) in NETWORK {
        let path = Path::new("/proc/sys").join(sysctl);
        fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))?;
    }
    Ok(())
}

/// The hierarchies at their places, as seen from the node's cgroup namespace.
fn mount_cgroups(hierarchies: &[Hierarchy]) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    if hierarchies.iter().any(|hierarchy| hierarchy.mount != root) {
        filesystem("tmpfs", root, "mode=755")?;
    }
    for Hierarchy { mount: at, version_1 } in hierarchies {
        fs::create_dir_all(at).with_context(|| format!("making {}", at.display()))?;
        match version_1 {
            None => filesystem("cgroup2", at, "")?,
            Some(options) if options.starts_with("name=") => {
                filesystem("cgroup", at, &format!("none,{options}"))?;
            }
            Some(options) => filesystem("cgroup", at, options)?,
        }
    }
    Ok(())
}

fn filesystem(kind: &str, at: &Path, options: &str) -> Result<()> {
    let options = std::ffi::CString::new(options)?;
    mount(kind, at, kind, MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("mounting {kind} ({options:?}) at {}", at.display()))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount_bind(from, to).with_context(|| format!("mounting {} at {}", from.display(), to.display()))
}
