//! The gqla-operator binary.

use std::process::ExitCode;

use clap::Parser as _;
use gqla_operator::{
    args::{Args, Command},
    run,
};

fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().command {
        Command::Crds => {
            for crd in gqla_api::crds() {
                print!("---\n{}", gqla_api::render(&crd)?.1);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(settings) => {
            gqla_telemetry::init_logging(settings.log_format, "info")?;
            tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run::run(*settings))
        }
    }
}
