//! `gqla eval`: measures how well a model predicts text.

mod ppl;

use clap::Subcommand;

/// Measure a model's quality.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    measure: Measure,
}

#[derive(Debug, Subcommand)]
enum Measure {
    /// Perplexity over non-overlapping windows of a text
    Ppl(ppl::Args),
}

/// Measures and prints the result on stdout; progress goes to stderr.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.measure {
        Measure::Ppl(args) => ppl::run(args),
    }
}
