//! `gqla logits`: what a model computes for a token sequence, for comparison with other implementations.

use std::path::PathBuf;

use anyhow::{Context, bail};
use gqla_engine::cpu::Model;
use gqla_model::{CacheFormat, DecodePath};
use gqla_weights::Checkpoint;
use safetensors::{Dtype, serialize, tensor::TensorView};

/// Write the logits of every position of a token sequence to a safetensors file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A checkpoint directory or a GGUF file
    #[arg(long, value_name = "DIR|GGUF")]
    model: PathBuf,
    /// Token ids, with commas between
    #[arg(long, value_name = "IDS", value_delimiter = ',', required = true)]
    ids: Vec<u32>,
    /// Decode path of a converted model [default: gqa]; a plain model has none to choose
    #[arg(long, value_name = "PATH")]
    path: Option<DecodePath>,
    /// What the cache's numbers are stored as
    #[arg(long, value_name = "DTYPE", default_value_t = CacheFormat::CPU_DEFAULT)]
    kv_cache_dtype: CacheFormat,
    /// Where tensor `logits`, f32 [tokens, vocab], goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Computes and writes the logits.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let model = Model::load(&checkpoint, args.path)?;
    let logits = model.logits(&args.ids, args.kv_cache_dtype)?;
    if let Some(position) = logits.iter().position(|logit| !logit.is_finite()) {
        bail!(
            "the logits of position {} are not finite: the weights of `{}` are damaged",
            position / model.vocab_size(),
            args.model.display()
        );
    }
    let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![args.ids.len(), model.vocab_size()], &bytes)?;
    std::fs::write(&args.out, serialize([("logits", view)], None)?)
        .with_context(|| format!("cannot write `{}`", args.out.display()))
}
