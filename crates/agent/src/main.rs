//! The gqla-agent binary.

use std::process::ExitCode;

use clap::Parser as _;
use gqla_agent::{args::Args, run};

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    gqla_telemetry::init_logging(args.log_format, "info")?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run::run(args))
}
