//! The product's images, written without a container engine from the release binaries.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use gqla_testkit::image::Image;

use crate::{binaries::Binaries, kernels, shell::step};

/// Where `gqla-server` and `gqla` look for the CUDA kernels' images.
const KERNELS: &str = "/usr/local/share/gqla/kernels";

/// Name of the inference image.
pub const SERVER: &str = "localhost/gqla-server:dev";
/// Name of the operator image.
pub const OPERATOR: &str = "localhost/gqla-operator:dev";
/// Name of the node agent's image.
pub const AGENT: &str = "localhost/gqla-agent:dev";

/// Writes the archives into `folder` and returns their paths. The server's has the kernels of the built-in shapes, and of
/// `models` of this repository.
pub fn build(binaries: &Binaries, models: &[&str], folder: &Path) -> Result<[PathBuf; 3]> {
    let own = models.iter().map(|model| kernels::images_of(&binaries.gqla, model));
    let kernels = own.chain([kernels::images(&binaries.gqla)]).collect::<Result<Vec<_>>>()?;
    step("Write the server, operator and agent images", || {
        let mut server = Image::new(SERVER);
        for folder in &kernels {
            for kernel in fs::read_dir(folder)? {
                let kernel = kernel?;
                server = server.file(kernel.path(), Path::new(KERNELS).join(kernel.file_name()), 0o644);
            }
        }
        Ok([
            write(server, "gqla-server", &binaries.server, &[], folder)?,
            write(Image::new(OPERATOR), "gqla-operator", &binaries.operator, &["run"], folder)?,
            write(Image::new(AGENT), "gqla-agent", &binaries.agent, &[], folder)?,
        ])
    })
}

fn write(image: Image, program: &str, binary: &Path, args: &[&str], folder: &Path) -> Result<PathBuf> {
    let inside = format!("/usr/local/bin/{program}");
    let archive = folder.join(format!("{program}.tar"));
    image
        .file(binary, &inside, 0o755)
        .with_libraries_of(binary)?
        .entrypoint(std::iter::once(inside.as_str()).chain(args.iter().copied()))
        .write(&archive)?;
    Ok(archive)
}
