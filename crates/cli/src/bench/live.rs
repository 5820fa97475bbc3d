//! `gqla bench live`: two saved pages of a serving pod's metrics become a calibration.

mod page;

use std::{fmt::Write as _, fs::File, io::Read as _, path::PathBuf};

use anyhow::{Context as _, bail};
use gqla_model::DecodePath;
use gqla_planner::{Calibration, Catalogue, LiveFit, LiveLoad, LivePod, Provenance, Runtime};

use self::page::Page;
use super::machine::now;
use crate::{model, table::TableFormat};

/// Largest page that is read.
const LARGEST: u64 = 8 << 20;

/// Calibrate from a serving pod.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pod's metrics, as gqla-server or vLLM exports them
    #[arg(long, value_name = "FILE")]
    before: PathBuf,
    /// The same pod's metrics, some time later
    #[arg(long, value_name = "FILE")]
    after: PathBuf,
    /// Seconds between the two
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seconds: f64,
    /// What the pod serves: a built-in shape such as deepseek-v3-gqla, a checkpoint, or its config.json
    #[arg(long, value_name = "SHAPE|PATH")]
    model: String,
    /// The class of its GPUs such as H20, in any case
    #[arg(long, value_name = "CLASS")]
    gpu: String,
    /// The path it decodes along [default: the one gqla-server's metrics name; vLLM's name none]
    #[arg(long, value_name = "PATH")]
    path: Option<DecodePath>,
    /// Its tensor-parallel degree
    #[arg(long, value_name = "N", default_value_t = 1)]
    tp: u32,
    /// Output format: json is a calibration [default: table on a terminal, else json]
    #[arg(short, long, value_enum)]
    output: Option<TableFormat>,
}

/// Reads, calculates and prints.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let report = Report::read(args)?;
    let calibration = report.calibration(args, now())?;
    TableFormat::or_default(args.output).print(&calibration, |_| report.table(args))?;
    Ok(())
}

/// What the pages say, and what follows from it.
struct Report {
    /// The class, as the catalogue spells it.
    gpu: String,
    runtime: Runtime,
    path: DecodePath,
    load: LiveLoad,
    fit: LiveFit,
}

impl Report {
    fn read(args: &Args) -> anyhow::Result<Self> {
        let shape = model::resolve(&args.model)?;
        let catalogue = Catalogue::builtin();
        let gpu = &model::gpu_class(&catalogue, &args.gpu)?.spec;
        let (before, after) = (page(&args.before)?, page(&args.after)?);
        let path = path(args.path, &before, &after)?;
        let runtime = if after.path.is_some() { Runtime::Native } else { Runtime::Vllm };
        let load = LiveLoad::between(&before.counters, &after.counters, args.seconds)?;
        let pod = LivePod { shape: &shape, gpu, runtime, path, tensor_parallel: args.tp };
        Ok(Self { gpu: gpu.name.to_string(), runtime, path, load, fit: pod.fit(&load)? })
    }

    fn calibration(&self, args: &Args, measured_at: String) -> anyhow::Result<Calibration> {
        let provenance = Provenance {
            tool: format!("gqla bench live on {}", args.model),
            device: self.gpu.clone(),
            build: format!("{}, {}, tp={}", self.engine(), self.path, args.tp),
            measured_at,
            samples: self.load.decoded_tokens as u32,
        };
        let device = self.fit.rates.device(&self.gpu, provenance)?;
        Ok(Calibration { devices: vec![device], ..Calibration::default() })
    }

    const fn engine(&self) -> &'static str {
        match self.runtime {
            Runtime::Native => "gqla-server",
            Runtime::Vllm => "vLLM",
        }
    }

    fn table(&self, args: &Args) -> String {
        let Self { load, fit, .. } = self;
        let mut text =
            format!("{} on {}, {}, tp={}, {} s\n", self.engine(), self.gpu, self.path, args.tp, args.seconds);
        let drafts = match load.drafts {
            0 => String::new(),
            drafts => format!(", {drafts} drafted, {:.2} tokens a step", load.tokens_per_step),
        };
        for (what, value) in [
            ("tokens", format!("{:.0}, {:.1} per second", load.decoded_tokens, load.tokens_per_second)),
            ("per token", format!("{:.3} ms{drafts}", load.time_per_output_token_ms)),
            ("batch", format!("{:.2}, modelled as {}", load.batch, fit.batch)),
            (
                "context",
                format!(
                    "{} tokens: prompts of {:.0} and half of {:.0}",
                    fit.context, load.prompt_tokens, load.answer_tokens
                ),
            ),
            (
                "step",
                format!("{:.3} ms measured, {:.3} ms at the class's rates", load.step_ms, fit.class_step_ms),
            ),
            ("prompts", format!("{:.0} % of the time, modelled", fit.prefill_share * 100.0)),
            (
                "device",
                format!(
                    "{:.3} of the class's rates: {:.1} GB/s, {:.1} GFLOP/s",
                    fit.scale,
                    fit.rates.bytes_per_second / 1e9,
                    fit.rates.flops_per_second / 1e9
                ),
            ),
        ] {
            let _ = writeln!(text, "{what:<10} {value}");
        }
        text + "(both rates are scaled by one number until the modelled step takes as long as the measured one; time that \
                prompts took between steps is in it)\n"
    }
}

fn page(file: &PathBuf) -> anyhow::Result<Page> {
    let mut text = String::new();
    File::open(file)
        .and_then(|opened| opened.take(LARGEST + 1).read_to_string(&mut text))
        .with_context(|| format!("cannot read {}", file.display()))?;
    if text.len() as u64 > LARGEST {
        bail!("{} is larger than {} MiB, which no page of metrics is", file.display(), LARGEST >> 20);
    }
    Page::parse(&text).with_context(|| format!("cannot measure by {}", file.display()))
}

/// The one path that the pages and the flag agree on.
fn path(asked: Option<DecodePath>, before: &Page, after: &Page) -> anyhow::Result<DecodePath> {
    if let (Some(before), Some(after)) = (before.path, after.path)
        && before != after
    {
        bail!("the path was {before} and became {after}: take both pages from one pod");
    }
    match (asked, before.path.or(after.path)) {
        (Some(asked), Some(told)) if asked != told => {
            bail!("--path {asked}: the pod says that it decodes along {told}; leave --path out")
        }
        (asked, told) => told
            .or(asked)
            .context("the pages do not name the decode path: give it with --path mqa-absorb or --path gqa"),
    }
}
