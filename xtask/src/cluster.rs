//! `cargo xtask cluster`: a Kubernetes of several nodes to try things on, of the kind that the tests run.
//!
//! `up` returns when the cluster is usable. The cluster is then held by a process of its own (`serve`): it ends with that
//! process, however that ends, and what a killed one leaves is swept by the next `up` or `down`. Each checkout of the
//! repository has one.

mod parts;
mod relay;
mod serve;
mod state;

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail, ensure};
use divert_common::netns::NetNs;
use divert_tests::{kube, run};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{interrupt, kubernetes, packages, workspace};
use state::{Cluster, State};

/// How long an end may take; it takes two seconds.
const END: Duration = Duration::from_secs(60);
const PACE: Duration = Duration::from_millis(50);

#[derive(clap::Subcommand)]
pub(crate) enum Task {
    /// Gets the programs that a cluster is made of, once; `up` and `cargo xtask test` do so, too.
    Build,
    /// Starts a cluster, and returns when it is usable. Ctrl-C before leaves nothing.
    Up(serve::Args),
    /// Ends the cluster. Nothing is left of it.
    Down,
    /// Runs kubectl as the cluster's administrator.
    Kubectl(Arguments),
    /// Runs helm as the cluster's administrator.
    Helm(Arguments),
    /// Runs a program on a node: a shell if none is said.
    Enter {
        /// `n1`, `n2`…
        node: String,
        #[command(flatten)]
        words: Arguments,
    },
    /// Gives every node the images of an archive.
    Import {
        /// In OCI's format or docker's.
        archive: PathBuf,
    },
    /// The process that holds the cluster.
    #[command(hide = true)]
    Serve(serve::Args),
}

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Passed on as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(task: &Task) -> Result<()> {
    match task {
        Task::Build => return build().map(|folder| println!("{}", folder.display())),
        _ if !packages::is_root() => bail!("a cluster is made of namespaces and cgroups: run this as root"),
        _ => {}
    }
    let state = State::of(&workspace::root());
    match task {
        Task::Build => Ok(()),
        Task::Up(args) => up(&state, args),
        Task::Down => down(&state),
        Task::Serve(args) => serve::run(&state, args),
        Task::Kubectl(Arguments { arguments }) => {
            let mut kubectl = Command::new(kube::program()?);
            kubectl.arg("kubectl").args(arguments);
            replaced_by(&state.cluster()?, kubectl)
        }
        Task::Helm(Arguments { arguments }) => {
            let mut helm = Command::new(workspace::target().join("cluster/helm"));
            helm.args(arguments);
            replaced_by(&state.cluster()?, helm)
        }
        Task::Enter { node, words } => Err(inside(&state.cluster()?, node, &words.arguments)?.exec().into()),
        Task::Import { archive } => import(&state.cluster()?, archive),
    }
}

/// Helm, built if need be.
pub(crate) fn helm() -> Result<PathBuf> {
    parts::HELM.build()
}

/// Gets Kubernetes and all else. Gives the folder of all else.
pub(crate) fn build() -> Result<PathBuf> {
    kubernetes::build()?;
    parts::build()
}

fn up(state: &State, args: &serve::Args) -> Result<()> {
    build()?;
    interrupt::catch()?;
    let mut started = None;
    if state.holder()?.is_none() {
        run::sweep();
        state.prepare()?;
        started = Some(start_holder(state, args)?);
    } else if state.try_cluster()?.is_some() {
        println!("The cluster is up already. To have another, `cargo xtask cluster down` before.");
    }
    match follow(state, started.as_mut()) {
        Ok(cluster) => explain(state, &cluster),
        Err(error) => {
            // It may not have come as far as to be known as the holder.
            if let Some(mut started) = started.filter(|_| state.holder().is_ok_and(|holder| holder.is_none()))
            {
                started.kill()?;
                started.wait()?;
            }
            end(state)?;
            return Err(error);
        }
    }
    Ok(())
}

/// Starts the process that holds the cluster, out of reach of the terminal's signals.
fn start_holder(state: &State, args: &serve::Args) -> Result<Child> {
    let program = env::current_exe().context("finding this program's own path")?;
    let log = fs::File::create(state.log()).with_context(|| format!("writing {}", state.log().display()))?;
    let mut holder = Command::new(program);
    holder.args(["cluster", "serve", "--nodes", &args.nodes.to_string()]).process_group(0);
    holder.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
    holder.spawn().context("starting the process that holds the cluster")
}

/// Shows what the holder says until the cluster is usable. It may be another's, who has not waited for it.
fn follow(state: &State, mut started: Option<&mut Child>) -> Result<Cluster> {
    let mut log = fs::File::open(state.log())?;
    loop {
        // In this order: what it has said before the end, or before the cluster was usable, is to be shown.
        let ended = match &mut started {
            Some(child) => child.try_wait()?.is_some(),
            None => state.holder()?.is_none(),
        };
        let cluster = state.try_cluster()?;
        let mut news = Vec::new();
        log.read_to_end(&mut news)?;
        if started.is_some() || cluster.is_none() {
            std::io::stderr().write_all(&news)?;
        }
        match cluster {
            _ if ended => bail!("the cluster has not come up"),
            Some(cluster) => return Ok(cluster),
            None => interrupt::check()?,
        }
        thread::sleep(PACE);
    }
}

fn explain(state: &State, cluster: &Cluster) {
    let kubeconfig = state.kubeconfig();
    println!(
        "
  cargo xtask cluster kubectl get pods --all-namespaces
  cargo xtask cluster helm list
  cargo xtask cluster enter {}                          # a shell on a node
  cargo xtask cluster import IMAGE.tar                  # there is no registry
  export KUBECONFIG={}     # for programs of your own
  cargo xtask cluster down",
        cluster.nodes[0].name,
        kubeconfig.display()
    );
}

fn down(state: &State) -> Result<()> {
    let began = Instant::now();
    if end(state)? {
        println!("The cluster is down, and nothing is left of it ({:.1?}).", began.elapsed());
    } else {
        println!("There was no cluster; what killed ones left has been swept.");
    }
    Ok(())
}

/// Ends the holder, if there is one, and sweeps.
fn end(state: &State) -> Result<bool> {
    let holder = state.holder()?;
    if let Some(holder) = holder {
        let process = pidfd_open(holder, PidfdFlags::empty()).context("looking for who holds the cluster")?;
        for signal in [Signal::TERM, Signal::KILL] {
            pidfd_send_signal(&process, signal).context("ending the cluster")?;
            // Readable when it has ended, and with it all daemons.
            let mut ended = [PollFd::new(&process, PollFlags::IN)];
            if poll(&mut ended, Some(&END.try_into()?))? > 0 {
                break;
            }
        }
    }
    run::sweep();
    state.remove()?;
    Ok(holder.is_some())
}

/// Goes on as a program that reaches the API server, with the administrator's rights.
fn replaced_by(cluster: &Cluster, mut command: Command) -> Result<()> {
    let netns = &cluster.nodes[0].netns;
    let opened = NetNs::open(netns).with_context(|| format!("opening {}", netns.display()))?;
    command.env("KUBECONFIG", &cluster.kubeconfig);
    let error = opened.enter(|| command.exec())?;
    Err(error).with_context(|| format!("running {}", command.get_program().to_string_lossy()))
}

/// A program in all namespaces of a node.
fn inside(cluster: &Cluster, name: &str, words: &[OsString]) -> Result<Command> {
    let node = cluster.nodes.iter().find(|node| node.name == name);
    let node = node.with_context(|| format!("the cluster has no node {name}"))?;
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--target", &node.pid.to_string(), "--mount", "--net", "--uts", "--cgroup", "--"]);
    nsenter.args(words);
    if words.is_empty() {
        nsenter.arg("sh");
    }
    Ok(nsenter)
}

fn import(cluster: &Cluster, archive: &Path) -> Result<()> {
    let archive =
        archive.canonicalize().with_context(|| format!("looking for the image {}", archive.display()))?;
    for node in &cluster.nodes {
        let mut words: Vec<OsString> = cluster.ctr.iter().map(OsString::from).collect();
        words.extend(["images", "import", "--snapshotter=overlayfs"].map(OsString::from));
        words.push(archive.clone().into());
        let status = inside(cluster, &node.name, &words)?.status().context("running nsenter")?;
        ensure!(status.success(), "{} has not taken {}: {status}", node.name, archive.display());
    }
    Ok(())
}
