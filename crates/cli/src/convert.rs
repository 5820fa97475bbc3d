//! `gqla convert`: makes a GQLA checkpoint of a plain LLaMA one.

mod progress;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context;
use clap::ValueEnum;
use gqla_convert::{Calibration, Conversion, Report, Request, Target, ids_from_u16};
use gqla_weights::{Checkpoint, Dtype};
use serde::Serialize;

use crate::table::{TableFormat, columns};
use progress::Progress;

/// Convert a grouped-query LLaMA checkpoint to group-query latent attention (TransGQLA).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The source: a checkpoint directory or a GGUF file
    #[arg(long, value_name = "DIR|GGUF")]
    model: PathBuf,
    /// Where the converted checkpoint goes; must not hold a model yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Dimension of the rotary key that all heads share
    #[arg(long, value_name = "DIM")]
    qk_rope_head_dim: usize,
    /// Width of the cached latent
    #[arg(long, value_name = "RANK")]
    kv_lora_rank: usize,
    /// Neighbouring rotary frequencies that share one rotation
    #[arg(long, value_name = "N", default_value_t = 2)]
    freqfold: usize,
    /// Rotary frequencies each kept one stands for [default: head_dim / qk_rope_head_dim]
    #[arg(long, value_name = "N")]
    collapse: Option<usize>,
    /// How much more weight values get than keys of the same size
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    balance_kv_ratio: f64,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// How weights are stored
    #[arg(long, value_enum, default_value_t = DtypeArg::Bf16)]
    dtype: DtypeArg,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Output format [default: table on a terminal, else json]
    #[arg(short, long, value_enum)]
    output: Option<TableFormat>,
}

#[derive(Debug, clap::Args)]
struct CalibrationArgs {
    #[command(flatten)]
    source: CalibrationSource,
    /// Calibration samples
    #[arg(long, value_name = "N", default_value_t = 128)]
    calibration_samples: usize,
    /// Tokens per calibration sample
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    calibration_length: usize,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct CalibrationSource {
    /// UTF-8 text to calibrate on
    #[arg(long, value_name = "FILE")]
    calibration_text: Option<PathBuf>,
    /// Token ids to calibrate on, little-endian u16
    #[arg(long, value_name = "FILE")]
    calibration_ids: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DtypeArg {
    /// Half the size of f32; what accelerators compute in
    Bf16,
    /// As computed
    F32,
}

/// Converts and prints the summary on stdout; progress goes to stderr.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let checkpoint = Checkpoint::open(&args.model)?;
    let calibration = args.calibration.load(&checkpoint)?;
    let conversion = Conversion::new(&checkpoint, args.request(), calibration)?;
    let threads = args.threads.map_or(0, usize::from);
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("cannot start threads")?;
    let layers = checkpoint.config().num_hidden_layers;
    let progress = Progress::start(conversion.work(), layers);
    let report = pool.install(|| conversion.run(&args.out, &progress))?;
    progress.finish();
    let summary = Summary {
        out: &args.out,
        seconds: started.elapsed().as_secs_f64(),
        absorb_percent_of_source: report.cache_elements.absorb_percent(),
        report: &report,
    };
    TableFormat::or_default(args.output).print(&summary, table)?;
    Ok(())
}

impl Args {
    fn request(&self) -> Request {
        let file = self.model.file_name().unwrap_or(self.model.as_os_str());
        Request {
            target: Target {
                qk_rope_head_dim: self.qk_rope_head_dim,
                kv_lora_rank: self.kv_lora_rank,
                freqfold: self.freqfold,
                collapse: self.collapse,
            },
            balance_kv_ratio: self.balance_kv_ratio,
            dtype: match self.dtype {
                DtypeArg::Bf16 => Dtype::BF16,
                DtypeArg::F32 => Dtype::F32,
            },
            source_name: file.to_string_lossy().into_owned(),
        }
    }
}

impl CalibrationArgs {
    fn load(&self, checkpoint: &Checkpoint) -> anyhow::Result<Calibration> {
        let ids = match (&self.source.calibration_text, &self.source.calibration_ids) {
            (Some(file), _) => {
                let text = std::fs::read_to_string(file).with_context(|| cannot_read(file))?;
                checkpoint.tokenizer()?.encode(&text, false)?
            }
            (None, Some(file)) => {
                let bytes = std::fs::read(file).with_context(|| cannot_read(file))?;
                ids_from_u16(&bytes).with_context(|| cannot_read(file))?
            }
            (None, None) => Vec::new(),
        };
        let vocab_size = checkpoint.config().vocab_size;
        Ok(Calibration::new(ids, self.calibration_samples, self.calibration_length, vocab_size)?)
    }
}

fn cannot_read(file: &Path) -> String {
    format!("cannot read the calibration file `{}`", file.display())
}

/// The JSON form of the summary. Field names are an interface.
#[derive(Serialize)]
struct Summary<'a> {
    out: &'a Path,
    seconds: f64,
    absorb_percent_of_source: f64,
    #[serde(flatten)]
    report: &'a Report,
}

fn table(summary: &Summary<'_>) -> String {
    let report = summary.report;
    let header = ["layer", "|K|/|V|", "rope energy", "latent energy"];
    let rows: Vec<_> = report
        .layers
        .iter()
        .map(|layer| {
            [
                layer.layer.to_string(),
                format!("{:.3}", layer.ratio),
                format!("{:.2} %", 100.0 * layer.rope_energy),
                format!("{:.2} %", 100.0 * layer.latent_energy),
            ]
        })
        .collect();
    let cache = report.cache_elements;
    format!(
        "{}\ncache elements per token and layer: {} before; {} on mqa-absorb ({:.3} %), {} on gqa\n\
         converted {} to {} in {:.1} s\n",
        columns(header, &rows),
        cache.source,
        cache.mqa_absorb,
        summary.absorb_percent_of_source,
        cache.gqa,
        report.source,
        summary.out.display(),
        summary.seconds,
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Harness {
        #[command(flatten)]
        args: Args,
    }

    fn parse(extra: &[&str]) -> Result<Args, clap::Error> {
        let common = [
            "gqla",
            "--model",
            "m/a.gguf",
            "--out",
            "o",
            "--qk-rope-head-dim",
            "64",
            "--kv-lora-rank",
            "320",
        ];
        Harness::try_parse_from(common.iter().chain(extra)).map(|harness| harness.args)
    }

    #[test]
    fn exactly_one_calibration_source_is_needed() {
        assert!(parse(&[]).unwrap_err().to_string().contains("--calibration-text"));
        assert!(parse(&["--calibration-text", "t", "--calibration-ids", "i"]).is_err());
        assert!(parse(&["--calibration-ids", "i", "--threads", "0"]).is_err());
        let request = parse(&["--calibration-ids", "i"]).unwrap().request();
        assert_eq!((request.target.freqfold, request.target.collapse, request.dtype), (2, None, Dtype::BF16));
        assert_eq!(request.source_name, "a.gguf");
    }
}
