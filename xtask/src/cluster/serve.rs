//! The process that holds a cluster.

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{fs, process, thread};

use anyhow::{Context, Result, bail};
use divert_tests::cluster::{Cluster, Options};
use divert_tests::named_netns;

use super::relay;
use super::state::{self, State};
use crate::interrupt;

const PACE: Duration = Duration::from_millis(50);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(super) nodes: u8,
}

/// Starts a cluster, and holds it until SIGTERM.
pub(super) fn run(state: &State, args: &Args) -> Result<()> {
    let _held = state.hold()?;
    interrupt::catch()?;
    let (started, starting) = mpsc::channel();
    let options = Options { nodes: args.nodes };
    let start = move || drop(started.send(Cluster::start(&options)));
    thread::Builder::new().name("start".into()).spawn(start)?;
    let cluster = loop {
        match starting.recv_timeout(PACE) {
            Ok(cluster) => break cluster?,
            Err(RecvTimeoutError::Disconnected) => bail!("the start has panicked"),
            // Whoever asked for the end sweeps: what a start has made so far is known by its name, and daemons end
            // with this process.
            Err(RecvTimeoutError::Timeout) if interrupt::check().is_err() => process::exit(1),
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    let port = relay::start(&cluster)?;
    let kubeconfig = fs::read_to_string(cluster.client().kubeconfig())?;
    let server = cluster.nodes()[0].address();
    let kubeconfig =
        kubeconfig.replace(&format!("{server}:{}", relay::SERVER_PORT), &format!("127.0.0.1:{port}"));
    fs::write(state.kubeconfig(), kubeconfig)
        .with_context(|| format!("writing {}", state.kubeconfig().display()))?;
    state.publish(&describe(&cluster))?;
    while interrupt::check().is_ok() {
        thread::sleep(PACE);
    }
    drop(cluster);
    Ok(())
}

fn describe(cluster: &Cluster) -> state::Cluster {
    let nodes = cluster.nodes().iter().map(|node| state::Node {
        name: node.name().to_owned(),
        pid: node.pid(),
        netns: PathBuf::from(named_netns::FOLDER).join(node.netns().name()),
    });
    state::Cluster {
        kubeconfig: cluster.client().kubeconfig().to_owned(),
        ctr: cluster.ctr(),
        nodes: nodes.collect(),
    }
}
