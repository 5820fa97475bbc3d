//! `gqla eval ppl`: perplexity, defined so that anyone can compute the same number.
//!
//! The ids are cut into windows of equal length from the start and the tail is dropped. Each window starts from an
//! empty cache, and its first token is only context: a window of w tokens makes w - 1 predictions. Perplexity is
//! `exp` of the mean, over windows, of each window's mean negative log likelihood.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, bail};
use gqla_convert::ids_from_u16;
use gqla_engine::cpu::Model;
use gqla_model::{CacheFormat, DecodePath};
use gqla_weights::Checkpoint;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::table::{TableFormat, columns};

/// Measure perplexity over non-overlapping windows of a text.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A checkpoint directory or a GGUF file
    #[arg(long, value_name = "DIR|GGUF")]
    model: PathBuf,
    /// Decode path of a converted model [default: gqa]; a plain model has none to choose
    #[arg(long, value_name = "PATH")]
    path: Option<DecodePath>,
    /// What the cache's numbers are stored as
    #[arg(long, value_name = "DTYPE", default_value_t = CacheFormat::CPU_DEFAULT)]
    kv_cache_dtype: CacheFormat,
    #[command(flatten)]
    source: Source,
    /// Tokens per window
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..))]
    window: u32,
    /// Output format [default: table on a terminal, else json]
    #[arg(short, long, value_enum)]
    output: Option<TableFormat>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// UTF-8 text; what looks like a special token in it is text
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Token ids, little-endian u16
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
}

/// Measures and prints the result on stdout; progress goes to stderr.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let ids = args.source.load(&checkpoint)?;
    let length = args.window as usize;
    let windows: Vec<&[u32]> = ids.chunks_exact(length).collect();
    if windows.is_empty() {
        bail!(
            "the text has {} tokens, expected at least one window of {length}: give a longer text or a smaller \
             --window",
            ids.len()
        );
    }
    let model = Model::load(&checkpoint, args.path)?;
    let started = Instant::now();
    let nll_per_window = measure(&model, &windows, args.kv_cache_dtype)?;
    let result = Perplexity {
        model: &args.model,
        path: model.path().map(DecodePath::flag),
        ppl: perplexity(&nll_per_window),
        windows: windows.len(),
        window: length,
        tokens: windows.len() * length,
        seconds: started.elapsed().as_secs_f64(),
        nll_per_window,
    };
    TableFormat::or_default(args.output).print(&result, table)?;
    Ok(())
}

impl Source {
    fn load(&self, checkpoint: &Checkpoint) -> anyhow::Result<Vec<u32>> {
        let cannot_read = |file: &Path| format!("cannot read `{}`", file.display());
        match (&self.text, &self.ids) {
            (Some(file), _) => {
                let text = fs::read_to_string(file).with_context(|| cannot_read(file))?;
                Ok(checkpoint.tokenizer()?.encode(&text, false)?)
            }
            (None, Some(file)) => {
                let bytes = fs::read(file).with_context(|| cannot_read(file))?;
                ids_from_u16(&bytes).with_context(|| cannot_read(file))
            }
            (None, None) => Ok(Vec::new()),
        }
    }
}

/// Mean negative log likelihood of each window.
fn measure(model: &Model, windows: &[&[u32]], cache: CacheFormat) -> anyhow::Result<Vec<f64>> {
    let bar = ProgressBar::new(windows.len() as u64).with_style(style());
    let mut nll = Vec::with_capacity(windows.len());
    for (index, window) in windows.iter().enumerate() {
        let mean = window_nll(&model.logits(window, cache)?, window, model.vocab_size());
        if !mean.is_finite() {
            bail!(
                "the logits of window {index} are not finite, so there is no perplexity: the weights are damaged"
            );
        }
        nll.push(mean);
        bar.set_message(format!("{:.4}", perplexity(&nll)));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(nll)
}

fn style() -> ProgressStyle {
    let template = "perplexity so far {msg} [{bar:40}] {pos}/{len} windows, {eta} left";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Mean negative log likelihood of `window[1..]` under `logits`, `[window.len(), vocab]`. In f64, because sums over a
/// vocabulary of tens of thousands lose digits in f32.
fn window_nll(logits: &[f32], window: &[u32], vocab: usize) -> f64 {
    let predictions = logits.chunks_exact(vocab).zip(&window[1..]);
    predictions.map(|(row, next)| nll(row, *next as usize)).sum::<f64>() / (window.len() - 1) as f64
}

/// `log Σ exp(x) - x[next]`.
fn nll(logits: &[f32], next: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    sum.ln() + f64::from(max) - f64::from(logits[next])
}

fn perplexity(nll_per_window: &[f64]) -> f64 {
    (nll_per_window.iter().sum::<f64>() / nll_per_window.len() as f64).exp()
}

/// The JSON form of the result. Field names are an interface.
#[derive(Serialize)]
struct Perplexity<'a> {
    model: &'a Path,
    path: Option<&'static str>,
    ppl: f64,
    windows: usize,
    window: usize,
    tokens: usize,
    seconds: f64,
    nll_per_window: Vec<f64>,
}

fn table(result: &Perplexity<'_>) -> String {
    let row = [
        result.path.unwrap_or("plain").to_owned(),
        format!("{:.4}", result.ppl),
        format!("{} × {}", result.windows, result.window),
        result.tokens.to_string(),
        format!("{:.1}", result.seconds),
    ];
    columns(["path", "ppl", "windows", "tokens", "seconds"], &[row])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large() {
        let window = [3, 1, 4, 1, 5];
        let nll = window_nll(&[0.25; 5 * 8], &window, 8);
        assert!((perplexity(&[nll, nll]) - 8.0).abs() < 1e-12);
    }

    #[test]
    fn each_row_predicts_the_token_after_it() {
        // Row i is certain of token i + 1; the last row predicts nothing and must not count.
        let mut logits = vec![-100.0f32; 3 * 4];
        logits[1] = 100.0;
        logits[4 + 2] = 100.0;
        assert_eq!(window_nll(&logits, &[0, 1, 2], 4), 0.0);
        assert_eq!(window_nll(&logits, &[0, 1, 3], 4), 100.0);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        assert!((nll(&[1e4, 1e4], 0) - 2f64.ln()).abs() < 1e-9);
    }
}
