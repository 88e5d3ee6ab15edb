//! `divert-agent`, the program.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use divert_agent::cli::{Cli, Command};
use divert_agent::{plan_view, run};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("DIVERT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let done = match cli.command {
        Command::Run(args) => run::run(*args).map_err(anyhow::Error::from),
        Command::Plan(args) => plan_view::plan_command(args).map_err(anyhow::Error::from),
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
