//! A cached virtual environment for real clients of the API.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::shell::{cache_dir, capture, step};

const OPENAI: &str = "openai==3.54.0";

/// The interpreter of an environment that has the `openai` client.
pub fn with_openai() -> Result<PathBuf> {
    let home = cache_dir()?.join(format!("venv-{OPENAI}"));
    let python = home.join("bin/python");
    let ready = home.join(".ready");
    if !ready.is_file() {
        step(&format!("Install {OPENAI} from PyPI"), || {
            capture(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))?;
            capture(Command::new(&python).args(["-m", "pip", "install", "--quiet", OPENAI]))?;
            Ok(std::fs::write(&ready, OPENAI)?)
        })?;
    }
    Ok(python)
}
