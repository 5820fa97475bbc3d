//! `gqla`: plans, conversions and measurements on the command line, one file per subcommand.

<<<<<<< HEAD
mod bench;
=======
mod calibration;
mod command;
>>>>>>> explain
mod convert;
mod decision;
mod eval;
mod explain;
mod logits;
mod manifest;
mod model;
mod nodes;
mod plan;
mod roofline;
mod table;

use std::process::ExitCode;

use clap::Parser;

/// Group-Query Latent Attention on the command line.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
<<<<<<< HEAD
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure what this machine's kernels reach
    Bench(bench::Args),
    /// Make a GQLA checkpoint of a plain LLaMA one
    Convert(convert::Args),
    /// Measure how well a model predicts text
    Eval(eval::Args),
    /// Write the logits of a token sequence to a file
    Logits(logits::Args),
    /// Show what GPUs every node really has
    Nodes(nodes::Args),
    /// Choose path, tensor parallelism and drafts for a model on a GPU class
    Plan(plan::Args),
    /// Print the roofline figures behind the choice of a path
    Roofline(roofline::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Nodes(args) => nodes::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Roofline(args) => roofline::run(&args),
    };
    if let Err(error) = result {
=======
    command: command::Command,
}

fn main() -> ExitCode {
    if let Err(error) = Cli::parse().command.run() {
>>>>>>> explain
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
