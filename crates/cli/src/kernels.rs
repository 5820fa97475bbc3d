//! `gqla kernels`: whether a card computes as the references do, and what the kernels take.

mod build;
mod launches;
mod report;
mod selftest;
mod shape;

use std::path::PathBuf;

use anyhow::bail;
use clap::Subcommand;
use gqla_kernels::device::{Device, Images};
use gqla_model::AttentionShape;
use gqla_planner::ModelName;

use crate::{model, table::TableFormat};

/// Try the CUDA kernels, or count what they take.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Run every CUDA kernel on every GPU against float64, and fail if one is off
    ///
    /// Needs the NVIDIA driver, and images of the kernels or NVRTC 12. Attention is tried for every shape along both paths
    /// with 1 to 4 query tokens; a card that has no room for a kernel is told so, which is no failure.
    Selftest(selftest::Args),
    /// Print registers, spills, shared memory, traffic and multiplications of every CUDA kernel
    ///
    /// Registers and spills come from the driver, or from the assembler in NVRTC where the driver cannot tell. Traffic and
    /// instructions are counted by the stand-in for libcuda only, and are null on a GPU: nothing is guessed.
    Report(report::Args),
    /// Compile images of the CUDA kernels, so that servers need no NVRTC
    ///
    /// Needs NVRTC 12 where libraries are found, such as LD_LIBRARY_PATH, and neither a GPU nor the driver. The container image
    /// has those of the built-in shapes; make a folder for others and give it to gqla-server as --kernel-images.
    Build(build::Args),
}

/// What is tried.
#[derive(Debug, clap::Args)]
struct Tried {
    /// Built-in shapes such as deepseek-v3-gqla, checkpoints, or their config.json, with commas between [default: all built-in]
    #[arg(long, value_name = "SHAPE|PATH", value_delimiter = ',')]
    model: Vec<String>,
    /// Folder with images of the kernels (cubin, PTX) [default: those beside this program, else NVRTC]
    #[arg(long, value_name = "FOLDER")]
    kernel_images: Option<PathBuf>,
    /// Output format [default: table on a terminal, else json]
    #[arg(short, long, value_enum)]
    output: Option<TableFormat>,
}

/// Runs and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.what {
        What::Selftest(tried) => selftest::run(tried),
        What::Report(args) => report::run(args),
        What::Build(args) => build::run(args),
    }
}

/// Attention of the models, each once.
fn shapes(models: &[String]) -> anyhow::Result<Vec<AttentionShape>> {
    let all = if models.is_empty() {
        ModelName::ALL.map(|name| gqla_planner::shape(name).attention).to_vec()
    } else {
        models.iter().map(|model| Ok(model::resolve(model)?.attention)).collect::<anyhow::Result<_>>()?
    };
    let mut shapes: Vec<AttentionShape> = Vec::new();
    for shape in all {
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
    }
    Ok(shapes)
}

impl Tried {
    fn images(&self) -> Images {
        Images::find(self.kernel_images.as_deref())
    }
}

/// All GPUs that the driver shows.
fn devices() -> anyhow::Result<Vec<Device>> {
    let count = Device::count()?;
    if count == 0 {
        bail!("the NVIDIA driver shows no GPU: see `nvidia-smi`, and CUDA_VISIBLE_DEVICES if it is set");
    }
    (0..count).map(|ordinal| Ok(Device::open(ordinal)?)).collect()
}
