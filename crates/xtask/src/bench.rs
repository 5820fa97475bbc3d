//! `cargo xtask bench`: figures that are measured on this machine and printed, never asserted.

mod engine;
mod fleet;
mod planner;

use anyhow::Result;
use clap::Subcommand;

/// Measure and print.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// The CPU engine's tokens per second beside llama.cpp's, in turn, and attention beside the machine's roof
    Engine(engine::Args),
    /// The operator's memory and CPU time over a large fleet whose labels change
    Fleet(fleet::Args),
    /// How long a plan takes over all built-in models and classes, and whether its path is the faster one on this machine
    Planner(planner::Args),
}

/// Runs one benchmark.
pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Engine(args) => engine::run(args),
        Bench::Fleet(args) => fleet::run(args),
        Bench::Planner(args) => planner::run_bench(args),
    }
}
