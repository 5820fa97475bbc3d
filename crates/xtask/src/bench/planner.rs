//! How long a plan takes in a release build. Decisions are made on every pass over a fleet, so a plan has a millisecond.

use anyhow::Result;

use crate::shell::{cargo, run};

/// Measures and prints.
pub fn run_bench() -> Result<()> {
    println!("{}", machine());
    run(cargo()?.args([
        "run",
        "--locked",
        "--release",
        "--package",
        "gqla-planner",
        "--example",
        "plan_time",
    ]))
}

/// The processor's name and how many of it there are.
pub(super) fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    format!("{}, {cpus} CPUs", name.map_or("a processor without a name", |(_, name)| name.trim()))
}
