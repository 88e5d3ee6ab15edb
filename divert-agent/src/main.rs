//! `divert-agent`, the program.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use divert_agent::cli::{Cli, Command};
use divert_agent::{inspect, okteto, plan_command, run};
use divert_core::crd;
use tracing_subscriber::EnvFilter;

/// kube logs each request that fails; what it means for us is logged once by who made it.
const DEFAULT_LOG: &str = "info,kube_client=off,kube_runtime=off";

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("DIVERT_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let done = match cli.command {
        Command::Run(args) => run::run(*args).map_err(anyhow::Error::from),
        Command::Crd => crd::yaml().map(|yaml| print!("{yaml}")).map_err(anyhow::Error::from),
        Command::Controller(args) => divert_controller::run(args).map_err(anyhow::Error::from),
        Command::Uninstall(args) => divert_controller::uninstall(args).map_err(anyhow::Error::from),
        Command::Status(args) => inspect::status(args).map_err(anyhow::Error::from),
        Command::Explain(args) => inspect::explain(args).map_err(anyhow::Error::from),
        Command::Up(args) => okteto::up(args).map_err(anyhow::Error::from),
        Command::Down(args) => okteto::down(args).map_err(anyhow::Error::from),
        Command::Plan(args) => plan_command::plan_command(args).map_err(anyhow::Error::from),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // To a person who has just typed a command, not into a log.
            eprintln!("divert-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
