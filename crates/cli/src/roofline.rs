//! `gqla roofline`: the figures behind the choice of a path, as a table or as a plot for a slide.

mod paper;
mod points;
mod svg;

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::{gpu_classes, model, table::TableFormat};

/// Print the roofline figures behind the choice of a path.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The paper's comparison: DeepSeek's attention shape on H100 and H20, LLaMA-3-8B's cache
    #[arg(long, conflicts_with_all = ["gpu", "model", "svg"])]
    paper: bool,
    /// GPU class such as H20, in any case
    #[arg(long, value_name = "CLASS", requires = "model")]
    gpu: Option<String>,
    /// A built-in shape such as deepseek-v3-gqla, a checkpoint, or its config.json
    #[arg(long, value_name = "SHAPE|PATH", requires = "gpu")]
    model: Option<String>,
    /// GPUClasses that extend and override the built-in classes, as `kubectl get gpuclasses -o yaml` prints them
    #[arg(long, value_name = "FILE", requires = "gpu")]
    classes: Option<PathBuf>,
    /// Draw both paths at 1, 2 and 4 query tokens and 1 and 8 ranks against the ridge, into this file
    #[arg(long, value_name = "FILE", requires = "gpu")]
    svg: Option<PathBuf>,
    /// Output format [default: table on a terminal, else json]
    #[arg(short, long, value_enum)]
    output: Option<TableFormat>,
}

/// Prints the figures, and draws them if asked to.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let format = TableFormat::or_default(args.output);
    if args.paper {
        return paper::run(format);
    }
    let (Some(gpu), Some(name)) = (&args.gpu, &args.model) else {
        bail!("nothing to show: name --gpu and --model, or ask for --paper");
    };
    let classes = gpu_classes::catalogue(args.classes.as_deref())?;
    let class = model::gpu_class(&classes.catalogue, gpu)?;
    let view = points::View::compute(name, &model::resolve(name)?, class);
    if let Some(file) = &args.svg {
        std::fs::write(file, svg::draw(&view)).with_context(|| format!("cannot write {}", file.display()))?;
    }
    format.print(&view, points::table)?;
    Ok(())
}
