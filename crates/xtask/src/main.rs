//! `cargo xtask`: everything that is done to this repository by more than one command.

mod bench;
mod binaries;
mod cluster;
mod demo;
mod demo_model;
mod e2e;
mod fingerprint;
mod generate;
mod images;
mod kernels;
mod lint;
mod nvrtc;
mod progress;
mod prometheus;
mod python;
mod scenario;
mod shell;
mod test;
mod usage;

use clap::{Parser, Subcommand};

/// Build, check and show the product.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the product on a real cluster on this machine, until Ctrl-C
    Demo(demo::Args),
    /// Run everything CI runs
    Test,
    /// Run the demo's steps on a real cluster and assert on what a user sees
    E2e(e2e::Args),
    /// Measure and print
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Start an empty test cluster, until Ctrl-C
    Cluster(cluster::ClusterArgs),
    /// Check formatting, lints, documentation, dependencies and the source tree
    Lint(lint::Args),
    /// Write generated files: the CRDs and the chart's copy of them
    Gen(generate::Args),
    /// Count anew what the CUDA kernels take, and write the baseline that tests hold them to
    Kernels,
    /// Print where NVRTC is, which tests of CUDA kernels need, and install it first if it is not there
    Nvrtc,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Test => test::run_all(),
        Command::E2e(args) => e2e::run(&args),
        Command::Bench(bench) => bench::run(&bench),
        Command::Cluster(args) => tokio::runtime::Runtime::new()?.block_on(cluster::run(args)),
        Command::Lint(args) => lint::run(&args),
        Command::Gen(args) => generate::run(&args),
        Command::Kernels => kernels::write_baseline(),
        Command::Nvrtc => nvrtc::print(),
    }
}
