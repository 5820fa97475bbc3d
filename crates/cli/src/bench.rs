//! `gqla bench`: times the kernels on this machine and writes what `gqla plan --calibration` takes.

mod attn;
mod host;
mod machine;

use std::{ops::RangeInclusive, time::Duration};

use clap::Subcommand;
#[cfg(test)]
pub(crate) use {attn::Bench as AttentionBench, host::Report as HostReport};

/// Measure this machine.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    measure: Measure,
}

#[derive(Debug, Subcommand)]
enum Measure {
    /// Decode attention along both paths
    Attn(attn::Args),
    /// Memory bandwidth, arithmetic and the ridge between them
    Host(host::Args),
}

/// Measures and prints; JSON is a calibration that `gqla plan` takes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.measure {
        Measure::Attn(args) => attn::run(args),
        Measure::Host(args) => host::run(args),
    }
}

const SECONDS: RangeInclusive<f64> = 0.1..=3600.0;

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if SECONDS.contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("expected seconds from {} to {}, got `{text}`", SECONDS.start(), SECONDS.end())),
    }
}
