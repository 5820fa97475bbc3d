//! The gqla-server binary.

use clap::Parser;
use gqla_server::args::{Args, Command};
use gqla_server::{inspect, serve};
use gqla_telemetry::init_logging;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    init_logging(args.log_format, "info")?;
    match args.command()? {
        Command::Inspect(target) => inspect::run(&target),
        Command::Serve(config) => serve(*config),
    }
}
