//! The subcommands.

use clap::Subcommand;

use crate::{bench, convert, eval, explain, kernels, logits, nodes, plan, roofline};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure what this machine's kernels reach, or what a serving pod does
    Bench(bench::Args),
    /// Make a GQLA checkpoint of a plain LLaMA one
    Convert(convert::Args),
    /// Measure how well a model predicts text
    Eval(eval::Args),
    /// Explain what the operator would decide for a GQLADeployment on a fleet, without a cluster
    Explain(explain::Args),
    /// Try the CUDA kernels on this machine's GPUs, or count what they take
    Kernels(kernels::Args),
    /// Write the logits of a token sequence to a file
    Logits(logits::Args),
    /// Show what GPUs every node really has
    Nodes(nodes::Args),
    /// Choose path, tensor parallelism and drafts for a model on a GPU class
    Plan(plan::Args),
    /// Print the roofline figures behind the choice of a path
    Roofline(roofline::Args),
}

impl Command {
    /// Does it.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Bench(args) => bench::run(&args),
            Self::Convert(args) => convert::run(&args),
            Self::Eval(args) => eval::run(&args),
            Self::Explain(args) => explain::run(&args),
            Self::Kernels(args) => kernels::run(&args),
            Self::Logits(args) => logits::run(&args),
            Self::Nodes(args) => nodes::run(&args),
            Self::Plan(args) => plan::run(&args),
            Self::Roofline(args) => roofline::run(&args),
        }
    }
}
