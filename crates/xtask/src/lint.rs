//! `cargo xtask lint`: what a review should not have to look for.
//!
//! Every check runs even when an earlier one failed, prints one line with its time, and says what to do. Cheap checks
//! come first.

mod arrows;
mod deny;
mod dockerfile;
mod tree;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{
    generate,
    shell::{self, cargo},
};

/// Check formatting, lints, documentation, dependencies and the source tree.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Run only the checks of these names
    #[arg(value_name = "CHECK")]
    only: Vec<String>,
}

/// A named check; it fails with everything that is wrong.
type Check = (&'static str, fn() -> Result<()>);

const CHECKS: [Check; 9] = [
    ("rustfmt", rustfmt),
    ("file sizes", tree::file_sizes),
    ("machine paths", tree::machine_paths),
    ("dockerfile", dockerfile::check),
    ("arrows", arrows::check),
    ("cargo deny", deny::check),
    ("generated files", generate::check),
    ("clippy", clippy),
    ("rustdoc", rustdoc),
];

/// Runs the checks; fails naming those that failed.
pub fn run(args: &Args) -> Result<()> {
    let known = CHECKS.map(|(name, _)| name);
    if let Some(unknown) = args.only.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("there is no check `{unknown}`: expected one of {}", known.join(", "));
    }
    let selected =
        CHECKS.iter().filter(|(name, _)| args.only.is_empty() || args.only.iter().any(|only| only == name));
    let failed: Vec<&str> = selected.filter(|check| !passes(check)).map(|(name, _)| *name).collect();
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    Ok(())
}

fn passes((name, check): &Check) -> bool {
    let start = Instant::now();
    let result = check();
    let verdict = if result.is_ok() { "ok  " } else { "FAIL" };
    println!("{verdict} {name} ({:.1} s)", start.elapsed().as_secs_f64());
    if let Err(error) = &result {
        println!("{error:#}");
    }
    result.is_ok()
}

fn rustfmt() -> Result<()> {
    shell::run(cargo()?.args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    let scope = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--quiet",
        "--keep-going",
        "--",
        "-D",
        "warnings",
    ];
    shell::run(cargo()?.args(scope))
}

fn rustdoc() -> Result<()> {
    let scope = ["doc", "--workspace", "--no-deps", "--locked", "--quiet"];
    shell::run(cargo()?.args(scope).env("RUSTDOCFLAGS", "-D warnings"))
}
