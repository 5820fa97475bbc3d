//! `gqla`: plans, conversions and measurements on the command line, one file per subcommand.

mod plan;
mod roofline;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Group-Query Latent Attention on the command line.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Choose path, tensor parallelism and drafts for a model on a GPU class
    Plan(plan::Args),
    /// Print the roofline figures behind the choice of a path
    Roofline(roofline::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Plan(args) => plan::run(&args),
        Command::Roofline(args) => roofline::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
