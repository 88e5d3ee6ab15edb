//! The agent under test, in a namespace of its own, with its admin address on that namespace's `lo`.
//!
//! It runs in a cgroup below the one that its hooks are attached to, as in Kubernetes, so that its own
//! connections go through its own hooks.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use divert_common::label::LabelRanges;
use divert_common::netns::NetNs;
use rustix::process::Signal;

use crate::http::{Http, Response};
use crate::kube::{Client, Node};
use crate::lab::{self, Lab, Pod};
use crate::manifest::Manifests;
use crate::process::{Place, Process};
use crate::{path, traces, wait};

/// Longest wait for an agent to be ready: the kernel takes a second of its own to verify the programs, which every test
/// that runs has it do.
const READY: Duration = Duration::from_secs(40);

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program; [`program`] when none is named.
    pub program: Option<PathBuf>,
    /// `--workers`.
    pub workers: u32,
    /// Address of `--admin`, of the lab's node.
    pub admin_address: Ipv4Addr,
    /// Port of `--admin`.
    pub admin_port: u16,
    /// `--drain`, in seconds: less than a test waits for the end.
    pub drain: u64,
    /// More arguments.
    pub arguments: Vec<String>,
    /// Limits of descriptors, soft and hard, other than this process's own.
    pub descriptors: Option<(u64, u64)>,
    /// The error that socket(2) gives it for sockets of sock_diag, as on a kernel without.
    pub no_sock_diag: Option<i32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            program: None,
            workers: 2,
            admin_address: Ipv4Addr::LOCALHOST,
            admin_port: 9464,
            drain: 5,
            arguments: Vec::new(),
            descriptors: None,
            no_sock_diag: None,
        }
    }
}

impl Options {
    /// Of an agent that splices whatever path others take, for tests of what only splicing has.
    pub fn spliced() -> Self {
        Self { arguments: vec!["--path".into(), "splice".into()], ..Self::default() }
    }
}

/// A running agent. Dropped, it is asked to end, and must do so cleanly, unless it was killed before.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    node: Arc<NetNs>,
    admin: SocketAddr,
    cgroup: PathBuf,
    pods: Vec<(Arc<Pod>, Traces)>,
    killed: bool,
}

impl Agent {
    /// Starts an agent and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; the message holds what it printed.
    pub fn start(lab: &Lab, manifests: &Manifests, options: &Options) -> Result<Self> {
        let mut agent = Self::launch(lab, manifests, options)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts an agent and does not wait for it.
    ///
    /// # Errors
    /// When there is no program.
    pub fn launch(lab: &Lab, manifests: &Manifests, options: &Options) -> Result<Self> {
        let mut command = Command::new(options.program.clone().map_or_else(program, Ok)?);
        command.arg("run").arg("--manifests").arg(manifests.path());
        Self::spawn(lab, command, options)
    }

    /// Starts an agent that follows a cluster, as one of its users, for the pods of a node, and does not wait
    /// for it. Pods' cgroups are looked for below the lab's.
    ///
    /// # Errors
    /// When there is no program.
    pub fn launch_on(lab: &Lab, node: &Node, user: &Client, options: &Options) -> Result<Self> {
        let mut command = Command::new(options.program.clone().map_or_else(program, Ok)?);
        command.arg("run").env("KUBECONFIG", user.kubeconfig()).env("NODE_NAME", &node.name);
        command.arg("--cgroup-root").arg(lab.cgroup());
        Self::spawn(lab, command, options)
    }

    fn spawn(lab: &Lab, mut command: Command, options: &Options) -> Result<Self> {
        let admin = SocketAddr::from((options.admin_address, options.admin_port));
        command.arg("--cgroup").arg(lab.cgroup());
        command.env(path::VARIABLE, path::chosen());
        command.args(["--workers", &options.workers.to_string(), "--admin", &admin.to_string()]);
        command.args(["--drain", &options.drain.to_string()]).args(&options.arguments);
        command.env("RUST_BACKTRACE", "1");
        if let Some((soft, hard)) = options.descriptors {
            limit_descriptors(&mut command, soft, hard);
        }
        if let Some(errno) = options.no_sock_diag {
            deny_sock_diag(&mut command, errno);
        }
        let pods =
            lab.pods().map(|pod| Ok((Arc::clone(pod), Traces::of(pod)?))).collect::<Result<Vec<_>>>()?;
        let node = Arc::new(NetNs::open(&PathBuf::from("/run/netns").join(lab.node().name()))?);
        let place = Place { netns: Some(&node), cgroup: Some(lab.agents_cgroup()) };
        let process = Process::spawn("divert-agent", command, place)?;
        Ok(Self { process, node, admin, cgroup: lab.cgroup().to_owned(), pods, killed: false })
    }

    /// Waits until /readyz says so.
    ///
    /// # Errors
    /// When it does not in time, or the agent ends.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait_ready_within(READY)
    }

    /// Waits until /readyz says so, for at most `limit`.
    ///
    /// # Errors
    /// When it does not in time, or the agent ends.
    pub fn wait_ready_within(&mut self, limit: Duration) -> Result<()> {
        let mut last = String::from("no answer");
        let ready = wait::some_within(limit, "the agent to be ready", || {
            if let Some(status) = self.process.exited() {
                return Some(Err(status));
            }
            match self.get("/readyz") {
                Ok(response) if response.status == 200 => return Some(Ok(())),
                Ok(response) => last = format!("{} {}", response.status, response.text()),
                Err(error) => last = format!("{error:#}"),
            }
            None
        });
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => {
                self.killed = true;
                bail!("the agent ended ({status}) before it was ready:\n{}", self.process.output())
            }
            Err(error) => {
                self.kill();
                Err(error).with_context(|| format!("/readyz: {last}\n{}", self.process.output()))
            }
        }
    }

    /// Asks the admin address.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn get(&self, path: &str) -> Result<Response> {
        let stream = self.node.enter(|| TcpStream::connect_timeout(&self.admin, wait::PATIENCE))??;
        Http::new(lab::patient(stream)?).get(path, &[("Connection", "close")])
    }

    /// The sum of a metric over all its labels; zero when it is not there.
    ///
    /// # Errors
    /// When /metrics does not answer.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let metrics = self.get("/metrics")?.text();
        let samples = metrics.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            (series.split('{').next()? == name).then(|| value.parse::<f64>().ok())?
        });
        Ok(samples.sum())
    }

    /// Connects to captured destinations that its hooks have let through so far, for this reason.
    ///
    /// # Errors
    /// When /metrics does not answer, or knows no such reason.
    pub fn passed(&self, reason: &str) -> Result<f64> {
        self.series(&format!("divert_hook_passed_total{{reason=\"{reason}\"}}"))
    }

    /// The value of one series, by its name and labels as they are written.
    ///
    /// # Errors
    /// When /metrics does not answer, or has no such series.
    pub fn series(&self, series: &str) -> Result<f64> {
        let metrics = self.get("/metrics")?.text();
        let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no {series} in {metrics}"))?.parse()?)
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// SIGKILL: what a crash or the OOM killer does.
    pub fn kill(&mut self) {
        self.killed = true;
        self.process.kill();
    }

    /// SIGSTOP: a hang. Returns when every thread has stopped.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> Result<()> {
        self.process.signal(Signal::STOP)?;
        let tasks = format!("/proc/{}/task", self.process.pid());
        wait::until("the agent to stop", || {
            let stopped = |task: std::fs::DirEntry| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                // The name before the state may hold anything, a parenthesis as well.
                stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
            };
            std::fs::read_dir(&tasks).is_ok_and(|mut tasks| tasks.all(|task| task.is_ok_and(stopped)))
        })
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resume(&self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// SIGTERM; waits for the end and looks for what is left.
    ///
    /// # Errors
    /// When it does not end in time, ends with an error, or leaves something.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let status = self.terminate()?;
        self.assert_nothing_left()?;
        Ok(status)
    }

    /// SIGTERM; waits for the end and does not look for what is left, which may be another agent's.
    ///
    /// # Errors
    /// When it does not end in time or ends with an error.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::TERM)?;
        self.wait_end()
    }

    /// Waits for a clean end that was asked for already.
    ///
    /// # Errors
    /// When it does not end in time or ends with an error.
    pub fn wait_end(&mut self) -> Result<ExitStatus> {
        self.wait_end_within(wait::PATIENCE)
    }

    /// Waits for a clean end that was asked for already, for at most `limit`.
    ///
    /// # Errors
    /// When it does not end in time or ends with an error.
    pub fn wait_end_within(&mut self, limit: Duration) -> Result<ExitStatus> {
        let status = self.process.wait_exit(limit);
        self.killed = true;
        let status = status?;
        ensure!(status.success(), "the agent ended with {status}:\n{}", self.process.output());
        Ok(status)
    }

    /// What is in a pod's namespace that was not there when the agent was started: routes as `ip` prints them,
    /// and listeners on loopback.
    ///
    /// # Errors
    /// When the namespace cannot be looked at.
    pub fn traces_in(&self, pod: &Pod) -> Result<Vec<String>> {
        let before = self.pods.iter().find(|(it, _)| it.name() == pod.name()).map(|(_, before)| &before.0);
        let now = Traces::of(pod)?.0;
        Ok(now.into_iter().filter(|trace| before.is_none_or(|before| !before.contains(trace))).collect())
    }

    /// Number of eBPF programs attached to the cgroup, by whichever agent.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn attached(&self) -> Result<u32> {
        Ok(traces::hooks(&self.cgroup)?)
    }

    /// Whether something of an agent is in pods or on the cgroup that was not there at the start.
    ///
    /// # Errors
    /// Naming what is left.
    pub fn assert_nothing_left(&self) -> Result<()> {
        for (pod, before) in &self.pods {
            let mut left = String::new();
            // The kernel takes sockets apart a moment after their process is gone.
            wait::until(&format!("{} to be as it was", pod.name()), || {
                let now = Traces::of(pod).unwrap_or_default();
                left = format!("{:?}", now.0.difference(&before.0).collect::<Vec<_>>());
                left == "[]"
            })
            .with_context(|| format!("left in {}: {left}", pod.name()))?;
        }
        wait::until("no eBPF program to be attached to the cgroup", || {
            self.attached().is_ok_and(|number| number == 0)
        })
    }

    /// Panics are bugs wherever they happen; the test must not pass over one.
    fn panicked(&self) -> bool {
        self.process.output().contains("panicked at")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // One that was paused would not hear of its end.
        let stopped = if self.killed { Ok(()) } else { self.resume().and_then(|()| self.stop()).map(drop) };
        let panicked = self.panicked();
        if stopped.is_err() || panicked {
            eprintln!("---- divert-agent printed:\n{}", self.process.output());
        }
        if let Err(error) = stopped {
            panic!("{error:#}");
        }
        assert!(!panicked, "a thread of the agent panicked");
    }
}

/// The agent's program: what DIVERT_AGENT names, else what cargo has built beside this program.
///
/// # Errors
/// When it is not there.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("DIVERT_AGENT") {
        return Ok(path.into());
    }
    let me = std::env::current_exe().context("finding this program's own path")?;
    let folders = me.ancestors().skip(1).take(2);
    let candidates = folders.map(|folder| folder.join("divert-agent"));
    let missing = "no divert-agent in target/: run `cargo xtask build`, or set DIVERT_AGENT to its path";
    candidates.into_iter().find(|path| path.is_file()).context(missing)
}

fn limit_descriptors(command: &mut Command, soft: u64, hard: u64) {
    use std::os::unix::process::CommandExt;
    let limit = move || {
        let limit = rustix::process::Rlimit { current: Some(soft), maximum: Some(hard) };
        Ok(rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?)
    };
    // SAFETY: one system call, which allocates nothing.
    unsafe { command.pre_exec(limit) };
}

/// Has socket(2) fail for NETLINK_SOCK_DIAG, by a filter of seccomp that the program inherits.
fn deny_sock_diag(command: &mut Command, errno: i32) {
    use std::os::unix::process::CommandExt;
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    // struct seccomp_data: number, architecture, instruction pointer, six arguments of 64 bits.
    let filter = [
        step(LOAD, 0, 0),
        step(EQUAL, 5, libc::SYS_socket as u32),
        step(LOAD, 0, 16),
        step(EQUAL, 3, libc::AF_NETLINK as u32),
        step(LOAD, 0, 32),
        step(EQUAL, 1, libc::NETLINK_SOCK_DIAG as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let deny = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: the program and its length are valid for the call, which copies them; root needs no more than this.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: one system call, which allocates nothing.
    unsafe { command.pre_exec(deny) };
}

/// What an agent makes in a pod's namespace: routes and listeners.
#[derive(Debug, Default)]
struct Traces(BTreeSet<String>);

impl Traces {
    fn of(pod: &Pod) -> Result<Self> {
        let mut found = BTreeSet::new();
        for family in ["-4", "-6"] {
            let routes = pod.named_netns().ip(&format!("{family} route show table all"))?;
            let ranges = LabelRanges::default();
            let labels = [format!("{}/", ranges.v4), format!("{}/", ranges.v6)];
            let ours = |route: &&str| labels.iter().any(|range| route.contains(range.as_str()));
            found.extend(routes.lines().filter(ours).map(|route| format!("route {}", route.trim())));
        }
        for table in ["tcp", "tcp6"] {
            let sockets = traces::read(pod, table)?;
            found.extend(traces::loopback_listeners(&sockets).map(|local| format!("listener {local}")));
        }
        Ok(Self(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_route_and_a_listener_are_traces() -> Result<()> {
        let lab = Lab::new(&["staging/web"])?;
        let pod = lab.pod("staging/web");
        assert_eq!(Traces::of(&pod)?.0.len(), 0);
        pod.named_netns()
            .ip_batch("route add local 240.64.0.0/10 dev lo\nroute add local fdd1:7e27::/64 dev lo\n")?;
        let socket = pod.socket(lab::Family::V6)?;
        socket.bind(&SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0)).into())?;
        socket.listen(1)?;
        let traces = Traces::of(&pod)?;
        assert_eq!(traces.0.len(), 3, "{traces:?}");
        Ok(())
    }
}
