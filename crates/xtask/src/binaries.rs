//! The product's own binaries, built once in release and shared by images, conversion and tests.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use crate::shell::{repo_root, run, step};

/// Release binaries of this checkout.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The command line.
    pub gqla: PathBuf,
    /// The inference pod.
    pub server: PathBuf,
    /// The operator.
    pub operator: PathBuf,
}

/// Builds what changed.
pub fn build() -> Result<Binaries> {
    step("Build gqla, gqla-server and gqla-operator (release)", || {
        run(Command::new(env!("CARGO")).current_dir(repo_root()?).args([
            "build",
            "--release",
            "--locked",
            "-p",
            "gqla-cli",
            "-p",
            "gqla-server",
            "-p",
            "gqla-operator",
        ]))
    })?;
    let folder = target_dir()?.join("release");
    let find = |name: &str| -> Result<PathBuf> {
        let path = folder.join(name);
        ensure!(path.is_file(), "cargo built no {}", path.display());
        Ok(path)
    };
    Ok(Binaries { gqla: find("gqla")?, server: find("gqla-server")?, operator: find("gqla-operator")? })
}

/// Where cargo puts its output, as cargo itself says.
pub fn target_dir() -> Result<PathBuf> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .current_dir(repo_root()?)
        .no_deps()
        .exec()
        .context("`cargo metadata` failed")?;
    Ok(metadata.target_directory.into_std_path_buf())
}
