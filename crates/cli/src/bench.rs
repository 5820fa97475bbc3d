//! `gqla bench`: times the kernels on this machine, or reads what a pod counted, and writes what `gqla plan --calibration`
//! takes.

mod attn;
mod host;
mod live;
mod machine;
mod paths;
mod place;

use std::{ops::RangeInclusive, time::Duration};

use clap::Subcommand;
#[cfg(test)]
pub(crate) use {attn::Layer, host::Report as HostReport, place::Processor};

/// Measure this machine, or a pod that serves.
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
    /// A serving pod, by two saved pages of its metrics
    ///
    /// Reads two pages that gqla-server or vLLM exported some time apart, such as
    /// `kubectl get --raw /api/v1/namespaces/NS/pods/POD:9090/proxy/metrics` prints (gqla-server's port; vLLM has 8000), and
    /// scales bandwidth and FLOP/s of the GPU class by one number, so that the modelled step takes as long as the measured one
    /// at the pod's mean batch and context. The JSON is a calibration for `gqla plan`, `gqla explain` and the operator.
    ///
    /// Keep the pod evenly busy between the pages: the batch is the time sequences waited for tokens over the time that passed,
    /// and idle time would make it look smaller. Counters do not show how much of a step was reading prompts: prompts make the
    /// device look slower than it is, and pages of which they take more than 20 %, as modelled, are refused; tokens found
    /// in a prefix cache count as read. Steps with drafts are told by vllm:spec_decode_num_drafts_total and its like; a
    /// pod that drafts without counting is refused. The ridge stays that of the class: what the other path takes is scaled, not
    /// measured.
    Live(live::Args),
    /// Both paths side by side against the planner's choice
    Paths(paths::Args),
}

/// Measures and prints; JSON is a calibration that `gqla plan` takes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.measure {
        Measure::Attn(args) => attn::run(args),
        Measure::Host(args) => host::run(args),
        Measure::Live(args) => live::run(args),
        Measure::Paths(args) => paths::run(args),
    }
}

const SECONDS: RangeInclusive<f64> = 0.1..=3600.0;

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if SECONDS.contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("expected seconds from {} to {}, got `{text}`", SECONDS.start(), SECONDS.end())),
    }
}
