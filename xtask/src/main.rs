//! Tasks of this repository: `cargo xtask build | test | bench | demo | hostile | kubernetes | h2spec | prometheus | cluster | image | manifests`.

mod bench;
mod build;
mod cache;
mod cluster;
mod command;
mod demo;
mod golang;
mod gomodule;
mod h2spec;
mod hostile;
mod image;
mod interrupt;
mod kubernetes;
mod linker;
mod manifests;
mod packages;
mod prometheus;
mod pure;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Builds and tests Divert. Installs what is missing where it may (root, apt), and prints each
/// command that it runs.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Compiles the eBPF objects, then the agent that embeds them.
    Build(build::Args),
    /// Runs every check: formatting, lints, links of the documentation, fuzz targets for some seconds, and all tests.
    /// As root.
    Test(test::Args),
    /// Measures what Divert costs, beside nginx, HAProxy and Envoy. As root.
    Bench(bench::Args),
    /// Shows requests taking their ways through real namespaces. As root.
    Demo(demo::Args),
    /// Plays clients and servers that misbehave around others that must not notice. As root.
    Hostile(hostile::Args),
    /// Builds the Kubernetes that tests run, once; `cargo xtask test` does so, too.
    Kubernetes,
    /// Builds h2spec, which tests run, once; `cargo xtask test` does so, too.
    H2spec,
    /// Builds Prometheus, which tests run, once; `cargo xtask test` does so, too.
    Prometheus,
    /// Writes the agent's container image, without a container engine.
    Image(image::Args),
    /// Makes the files below deploy that are made from others: definition, plain manifests.
    Manifests(manifests::Args),
    /// A real cluster of several nodes on this machine, with no way out. As root.
    #[command(subcommand)]
    Cluster(cluster::Task),
    /// One service of the demo.
    #[command(hide = true)]
    DemoService(demo::service::Args),
    /// One process of the benchmark.
    #[command(hide = true, subcommand)]
    BenchPart(bench::parts::Part),
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Build(args) => build::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::BenchPart(part) => bench::parts::run(&part),
        Task::Demo(args) => demo::run(&args),
        Task::Hostile(args) => hostile::run(&args),
        Task::Kubernetes => kubernetes::build().map(|program| println!("{}", program.display())),
        Task::H2spec => h2spec::build().map(|program| println!("{}", program.display())),
        Task::Prometheus => prometheus::build().map(|program| println!("{}", program.display())),
        Task::Image(args) => image::run(&args),
        Task::Manifests(args) => manifests::run(&args),
        Task::Cluster(task) => cluster::run(&task),
        Task::DemoService(args) => demo::service::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
