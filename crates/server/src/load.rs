//! Loads the model on a thread of its own, while the admin port already says how far it is.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use anyhow::Context;
use gqla_engine::{
    Engine, Speculation,
    cpu::{CpuEngine, CpuEngineConfig},
    cuda::{CudaEngine, CudaEngineConfig, CudaModel, Images},
};
use gqla_protocol::ChatTemplate;
use gqla_weights::{AttentionConfig, Checkpoint, Tokenizer};

use crate::{
    args::{Config, Device},
    decode_path::{Asked, Machine, PathChoice, choose},
    ridge,
    speculation::Drafts,
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
        ranks = ?info.ranks,
        instruction_sets = ?info.instruction_sets,
        drafts = info.multi_token_prediction,
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
    progress("choosing the decode path");
    let choice = decode_path(&checkpoint, config)?;
    log(&choice);
    let speculation = speculation(&checkpoint, config)?;
    progress("reading the tokenizer");
    let tokenizer = tokenizer(&checkpoint)?;
    let template = template(&checkpoint)?;
    let eos_token_ids = checkpoint.config().eos_token_ids.clone();
    progress("reading the weights");
    let engine = start_engine(&checkpoint, config, &choice, speculation)?;
    let metrics = app.metrics.attach(&engine, choice.reason, began.elapsed())?;
    Ok(Model { engine, tokenizer, template, grammars: OnceLock::new(), eos_token_ids, metrics })
}

fn decode_path(checkpoint: &Checkpoint, config: &Config) -> anyhow::Result<PathChoice> {
    let shape = match checkpoint.config().attention {
        AttentionConfig::Plain { .. } => None,
        AttentionConfig::Latent { .. } => Some(checkpoint.model_shape()?),
    };
    let asked = Asked {
        path: config.decode_path,
        tensor_parallel: config.tensor_parallel,
        context_length: config.max_model_len.unwrap_or(checkpoint.config().max_position_embeddings),
        concurrency: config.limits.running,
        cache_format: config.kv_cache_format,
    };
    let measure = || ridge::measure(config.kv_cache);
    Ok(choose(asked, shape.as_ref(), measure)?)
}

fn speculation(checkpoint: &Checkpoint, config: &Config) -> anyhow::Result<Option<Speculation>> {
    let Some(mut drafts) = config.drafts else { return Ok(None) };
    let layers = checkpoint.config().num_nextn_predict_layers;
    if let (Drafts::Auto { .. }, Device::Cuda, 1..) = (drafts, config.device, layers)
        && let Err(error) = CudaModel::can_draft(checkpoint)
    {
        tracing::warn!(%error, "drafts are looked up in the text");
        drafts = drafts.where_no_layer_runs();
    }
    let (speculation, method) = drafts.of(layers)?;
    if layers == 0 && matches!(drafts, Drafts::Auto { .. }) {
        tracing::info!(
            "the checkpoint has no multi-token-prediction layer: drafts are looked up in the text"
        );
    }
    tracing::info!(method, tokens = speculation.tokens(), "drafting method chosen");
    Ok(Some(speculation))
}

fn log(choice: &PathChoice) {
    let machine = choice.machine.as_ref();
    if let Some(why) = machine.and_then(|machine| machine.unmeasured.as_deref()) {
        tracing::warn!(why, "the catalogue's figures of a CPU are used");
    }
    tracing::info!(
        path = choice.path.map_or("plain", |path| path.flag()),
        reason = choice.reason.label(),
        explanation = choice.explanation,
        rates = machine.map(Machine::source),
        bytes_per_second = machine.map(|machine| machine.spec.bytes_per_second),
        flops_per_second = machine.map(|machine| machine.spec.flops_per_second),
        ridge = machine.map(|machine| machine.spec.ridge()),
        "decode path chosen"
    );
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
    speculation: Option<Speculation>,
) -> anyhow::Result<Arc<dyn Engine>> {
    if config.device == Device::Cuda {
        return Ok(Arc::new(CudaEngine::start(
            checkpoint,
            CudaEngineConfig {
                path: choice.path,
                max_model_len: config.max_model_len,
                max_num_seqs: config.limits.running,
                max_queued: config.limits.queued,
                kv_cache: config.kv_cache,
                speculation,
                expandable: false,
                device: 0,
                images: Images::find(config.kernel_images.as_deref()),
                prompt_gemm: config.prompt_gemm,
                prompt_attention: config.prompt_attention,
            },
        )?));
    }
    let engine = CpuEngine::start(
        checkpoint,
        CpuEngineConfig {
            path: choice.path,
            max_model_len: config.max_model_len,
            max_num_seqs: config.limits.running,
            max_queued: config.limits.queued,
            kv_cache: config.kv_cache,
            kv_cache_format: config.kv_cache_format,
            precision: config.precision,
            expandable: false,
            speculation,
            threads: None,
            tensor_parallel: config.tensor_parallel as usize,
            // Ranks wait for one another for a part of a step, which is what the liveness probe waits for.
            rank_timeout: config.liveness_timeout / 4,
        },
    )?;
    Ok(Arc::new(engine))
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Mutex, PoisonError},
        time::Duration,
    };

    use clap::Parser as _;

    use super::*;
    use crate::{
        args::{Args, Command},
        metrics::Metrics,
    };

    #[derive(Default)]
    struct Lines(Mutex<Vec<u8>>);

    impl io::Write for &Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const LLAMA: &str = "llama_a/llama_gqla_a";

    /// What loading a converted fixture with `flags` logs, one JSON object per line.
    fn logged(flags: &str) -> Vec<serde_json::Value> {
        loaded(LLAMA, flags).unwrap()
    }

    fn loaded(fixture: &str, flags: &str) -> anyhow::Result<Vec<serde_json::Value>> {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
        let line = format!("gqla-server --kv-cache-bytes 16777216 {flags} --model {fixtures}/{fixture}");
        let Command::Serve(config) =
            Args::try_parse_from(line.split_whitespace()).unwrap().command().unwrap()
        else {
            panic!("expected to serve")
        };
        let app = App::new("m".to_owned(), 0, config.limits, Metrics::new("m").unwrap());
        let lines = Arc::new(Lines::default());
        let subscriber =
            tracing_subscriber::fmt().json().flatten_event(true).with_writer(Arc::clone(&lines)).finish();
        tracing::subscriber::with_default(subscriber, || load(&app, &config))?;
        app.model().unwrap().engine.shutdown(Duration::ZERO);
        let text = lines.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text = String::from_utf8(text).unwrap();
        Ok(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    #[test]
    fn drafts_come_from_the_layer_where_there_is_one_and_the_log_says_so() {
        let glm = "glm_a/gqla";
        for (fixture, flags, method, missing) in [
            (glm, "--mtp 2", Some("mtp"), false),
            (glm, "--mtp 2 --speculative-method mtp", Some("mtp"), false),
            (glm, "--mtp 2 --speculative-method ngram", Some("ngram"), false),
            (LLAMA, "--mtp 2", Some("ngram"), true),
            (LLAMA, "--mtp 2 --speculative-method ngram", Some("ngram"), false),
            (glm, "--mtp 0", None, false),
        ] {
            let lines = loaded(fixture, &format!("--decode-path gqa {flags}")).unwrap();
            let line = |message: &str| {
                lines.iter().find(|line| line["message"].as_str().is_some_and(|text| text.contains(message)))
            };
            let chosen = line("drafting method chosen").map(|line| line["method"].as_str().unwrap());
            assert_eq!(chosen, method, "{fixture} {flags}");
            assert_eq!(line("has no multi-token-prediction layer").is_some(), missing, "{fixture} {flags}");
            // Four layers of 4 groups of 32 + 32 and the rope key of 16 in f32, and the fifth that drafts.
            let loaded = line("model loaded").unwrap();
            if fixture == glm {
                let layers = if method == Some("mtp") { 5 } else { 4 };
                assert_eq!(loaded["kv_bytes_per_token"], layers * (4 * 64 + 16) * 4, "{flags}");
            }
        }
        let error = loaded(LLAMA, "--decode-path gqa --mtp 1 --speculative-method mtp").unwrap_err();
        assert!(error.to_string().contains("no multi-token-prediction layer"), "{error:#}");
    }

    fn choice(flags: &str) -> serde_json::Value {
        let lines = logged(flags);
        lines.into_iter().find(|line| line["message"] == "decode path chosen").unwrap()
    }

    #[test]
    fn auto_measures_this_machine_and_says_what_it_found() {
        let choice = choice("--decode-path auto");
        assert_eq!(
            (choice["rates"].as_str(), choice["reason"].as_str()),
            (Some("measured"), Some("planned"))
        );
        let figure = |name: &str| choice[name].as_f64().unwrap();
        let (bytes, flops) = (figure("bytes_per_second"), figure("flops_per_second"));
        assert!((1e6..1e14).contains(&bytes) && (1e6..1e17).contains(&flops), "{choice}");
        assert!((figure("ridge") - flops / bytes).abs() < 1e-6 * figure("ridge"), "{choice}");
        assert!(choice["explanation"].as_str().is_some_and(|why| !why.is_empty()), "{choice}");
    }

    #[test]
    fn ranks_say_what_they_hold() {
        let lines = logged("--decode-path gqa --tp 2");
        let loaded = lines.iter().find(|line| line["message"] == "model loaded").unwrap();
        // A group of 16 + 16 and the rope key of 16, in 3 layers of f32.
        assert_eq!(loaded["kv_bytes_per_token"], 2 * 48 * 3 * 4);
        let ranks = loaded["ranks"].as_str().unwrap();
        assert_eq!(ranks.matches("kv_bytes_per_token: 576").count(), 2, "{ranks}");
    }

    #[test]
    fn a_pinned_path_is_not_measured_for() {
        let choice = choice("--decode-path mqa-absorb");
        assert_eq!(
            (choice["path"].as_str(), choice["reason"].as_str()),
            (Some("mqa-absorb"), Some("requested"))
        );
        assert!(choice["rates"].is_null() && choice["ridge"].is_null(), "{choice}");
    }
}
