//! How long a plan takes, and whether the path it chooses is the faster one here, both in release builds. Decisions are made
//! on every pass over a fleet, so a plan has a millisecond.

use anyhow::Result;

use crate::shell::{cargo, run};

/// What `gqla bench paths` is run with.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Measure only how long a plan takes
    #[arg(long)]
    time_only: bool,
    /// Arguments of `gqla bench paths`, such as `--model deepseek-v3-gqla --pairs 31`
    #[arg(last = true)]
    paths: Vec<String>,
}

/// Measures and prints.
pub fn run_bench(args: &Args) -> Result<()> {
    println!("{}", machine());
    run(cargo()?.args([
        "run",
        "--locked",
        "--release",
        "--package",
        "gqla-planner",
        "--example",
        "plan_time",
    ]))?;
    if args.time_only {
        return Ok(());
    }
    let paths = ["run", "--locked", "--release", "--package", "gqla-cli", "--", "bench", "paths"];
    run(cargo()?.args(paths).args(&args.paths))
}

/// The processor's name and how many of it there are.
pub(super) fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    format!("{}, {cpus} CPUs", name.map_or("a processor without a name", |(_, name)| name.trim()))
}
