//! Loads the model on a thread of its own, while the admin port already says how far it is.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use anyhow::Context;
use gqla_engine::{
    Engine,
    cpu::{CpuEngine, CpuEngineConfig},
};
use gqla_protocol::ChatTemplate;
use gqla_weights::{AttentionConfig, Checkpoint, Tokenizer};

use crate::{
    args::Config,
    decode_path::{PathChoice, choose},
    state::{App, Model, Phase},
};

/// Loads and publishes the model, or says why it never will be.
pub(crate) fn load(app: &App, config: &Config) -> anyhow::Result<()> {
    let began = Instant::now();
    let model = try_load(app, config, began)
        .inspect_err(|error| app.set_phase(Phase::Failed(format!("{error:#}"))))?;
    let info = model.engine.info();
    tracing::info!(
        path = info.path.map_or("plain", |path| path.flag()),
        context_length = info.context_length,
        kv_bytes_per_token = info.kv_bytes_per_token,
        instruction_set = info.instruction_set,
        seconds = began.elapsed().as_secs_f64(),
        "model loaded"
    );
    app.set_phase(Phase::Ready(Arc::new(model)));
    Ok(())
}

fn try_load(app: &App, config: &Config, began: Instant) -> anyhow::Result<Model> {
    let progress = |text: &str| app.set_phase(Phase::Loading(text.to_owned()));
    progress("opening the checkpoint");
    let checkpoint = Checkpoint::open(&config.model)
        .with_context(|| format!("cannot serve `{}`", config.model.display()))?;
    let choice = decode_path(&checkpoint, config)?;
    tracing::info!(
        path = choice.path.map_or("plain", |path| path.flag()),
        reason = choice.reason.label(),
        explanation = choice.explanation,
        "decode path chosen"
    );
    progress("reading the tokenizer");
    let tokenizer = tokenizer(&checkpoint)?;
    let template = template(&checkpoint)?;
    let eos_token_ids = checkpoint.config().eos_token_ids.clone();
    progress("reading the weights");
    let engine = start_engine(&checkpoint, config, &choice)?;
    let metrics = app.metrics.attach(&engine, choice.reason, began.elapsed())?;
    Ok(Model { engine, tokenizer, template, grammars: OnceLock::new(), eos_token_ids, metrics })
}

fn decode_path(checkpoint: &Checkpoint, config: &Config) -> anyhow::Result<PathChoice> {
    let shape = match checkpoint.config().attention {
        AttentionConfig::Plain { .. } => None,
        AttentionConfig::Latent { .. } => Some(checkpoint.model_shape()?),
    };
    let context = config.max_model_len.unwrap_or(checkpoint.config().max_position_embeddings);
    Ok(choose(config.decode_path, shape.as_ref(), context, config.limits.running)?)
}

/// A directory may lack `tokenizer.json`, as checkpoints made for tests do; one that is there must be sound.
fn tokenizer(checkpoint: &Checkpoint) -> anyhow::Result<Option<Tokenizer>> {
    let root = checkpoint.root();
    if root.is_dir() && !root.join("tokenizer.json").exists() {
        tracing::warn!("no tokenizer.json beside the weights: prompts and answers are token ids");
        return Ok(None);
    }
    Ok(Some(checkpoint.tokenizer()?))
}

fn template(checkpoint: &Checkpoint) -> anyhow::Result<Option<ChatTemplate>> {
    let Some(source) = checkpoint.chat_template()? else { return Ok(None) };
    let [bos, eos] = [&source.bos_token, &source.eos_token].map(|token| token.as_deref().unwrap_or_default());
    Ok(Some(ChatTemplate::new(&source.template, bos, eos)?))
}

fn start_engine(
    checkpoint: &Checkpoint,
    config: &Config,
    choice: &PathChoice,
) -> anyhow::Result<Arc<dyn Engine>> {
    let engine = CpuEngine::start(
        checkpoint,
        CpuEngineConfig {
            path: choice.path,
            max_model_len: config.max_model_len,
            max_num_seqs: config.limits.running,
            max_queued: config.limits.queued,
            kv_cache: config.kv_cache,
            kv_cache_format: config.kv_cache_format,
            expandable: false,
            threads: None,
        },
    )?;
    Ok(Arc::new(engine))
}
