//! `gqla`: plans, conversions and measurements on the command line, one file per subcommand.

mod bench;
mod calibration;
mod command;
mod convert;
mod decision;
mod eval;
mod explain;
mod gpu_classes;
mod kernels;
mod logits;
mod manifest;
mod model;
mod nodes;
mod plan;
mod roofline;
mod schema;
mod table;

use std::{io, process::ExitCode};

use clap::Parser;

/// Group-Query Latent Attention on the command line.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: command::Command,
}

fn main() -> ExitCode {
    match Cli::parse().command.run() {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has what they wanted: `gqla … | head`.
        Err(error) if error.downcast_ref().map(io::Error::kind) == Some(io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
