//! `gqla`: plans, conversions and measurements on the command line, one file per subcommand.

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
enum Command {}

fn main() -> ExitCode {
    let result: anyhow::Result<()> = match Cli::parse().command {};
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
