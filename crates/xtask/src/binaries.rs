//! The product's own binaries, built once in release and shared by images, conversion and tests.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use gqla_testkit::cluster::StandIns;

use crate::shell::{cargo, repo_root, run, step};

/// Release binaries of this checkout.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The command line.
    pub gqla: PathBuf,
    /// The inference pod.
    pub server: PathBuf,
    /// The operator.
    pub operator: PathBuf,
    /// The node agent.
    pub agent: PathBuf,
    /// What test clusters have in place of GPUs.
    pub stand_ins: StandIns,
}

/// Everything that is built, by package; built at once so that nothing is compiled twice.
const PACKAGES: [&str; 7] = [
    "gqla-cli",
    "gqla-server",
    "gqla-operator",
    "gqla-agent",
    "gqla-deviceplugin",
    "gqla-fakenvml",
    "gqla-fakecuda",
];

/// Builds what changed.
pub fn build() -> Result<Binaries> {
    step("Build gqla, gqla-server, gqla-operator, gqla-agent and the stand-ins for GPUs (release)", || {
        run(cargo()?
            .args(["build", "--release", "--locked"])
            .args(PACKAGES.iter().flat_map(|package| ["-p", package])))
    })?;
    let folder = target_dir()?.join("release");
    let find = |name: &str| -> Result<PathBuf> {
        let path = folder.join(name);
        ensure!(path.is_file(), "cargo built no {}", path.display());
        Ok(path)
    };
    Ok(Binaries {
        gqla: find("gqla")?,
        server: find("gqla-server")?,
        operator: find("gqla-operator")?,
        agent: find("gqla-agent")?,
        stand_ins: StandIns {
            nvml: find("libgqla_fakenvml.so")?,
            cuda: find("libgqla_fakecuda.so")?,
            device_plugin: find("gqla-deviceplugin")?,
        },
    })
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
