//! The product's images, written without a container engine from the release binaries.

use std::path::{Path, PathBuf};

use anyhow::Result;
use gqla_testkit::image::Image;

use crate::{binaries::Binaries, shell::step};

/// Name of the inference image.
pub const SERVER: &str = "localhost/gqla-server:dev";
/// Name of the operator image.
pub const OPERATOR: &str = "localhost/gqla-operator:dev";
/// Name of the node agent's image.
pub const AGENT: &str = "localhost/gqla-agent:dev";

/// Writes the archives into `folder` and returns their paths.
pub fn build(binaries: &Binaries, folder: &Path) -> Result<[PathBuf; 3]> {
    step("Write the server, operator and agent images", || {
        Ok([
            write(SERVER, "gqla-server", &binaries.server, &[], folder)?,
            write(OPERATOR, "gqla-operator", &binaries.operator, &["run"], folder)?,
            write(AGENT, "gqla-agent", &binaries.agent, &[], folder)?,
        ])
    })
}

fn write(name: &str, program: &str, binary: &Path, args: &[&str], folder: &Path) -> Result<PathBuf> {
    let inside = format!("/usr/local/bin/{program}");
    let archive = folder.join(format!("{program}.tar"));
    Image::new(name)
        .file(binary, &inside, 0o755)
        .with_libraries_of(binary)?
        .entrypoint(std::iter::once(inside.as_str()).chain(args.iter().copied()))
        .write(&archive)?;
    Ok(archive)
}
