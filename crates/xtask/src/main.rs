//! `cargo xtask`: everything that is done to this repository by more than one command.

mod generate;
mod lint;
mod shell;

use clap::{Parser, Subcommand};

/// Build, check and show the product.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check formatting, lints, documentation, dependencies and the source tree
    Lint(lint::Args),
    /// Write generated files: the CRDs and the chart's copy of them
    Gen(generate::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Lint(args) => lint::run(&args),
        Command::Gen(args) => generate::run(&args),
    }
}
