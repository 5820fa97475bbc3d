//! A running CPU model behind the [`Engine`] trait.

use std::time::Duration;

use gqla_kernels::attention::{BLOCK_TOKENS, CacheFormat};
use gqla_model::DecodePath;
use gqla_weights::Checkpoint;

use super::{
    LoadError, Precision,
    memory::{CacheMemory, Demand, blocks, free},
    ranks::{self, Part, Ranks},
};
use crate::{
    Engine, EngineInfo, EngineStats, RankInfo, Request, Speculation, SubmitError,
    runner::{Bounds, Runner},
    scheduler::Limits,
    speculation::drawn_rows,
};

/// Tokens of a step at least: enough rows that a prompt's matrix products reuse each weight from the cache, few enough
/// that running sequences wait a fraction of a second for a chunk of someone else's prompt.
const STEP_TOKENS: usize = 128;

/// How to run a model on the CPU.
#[derive(Clone, Debug)]
pub struct CpuEngineConfig {
    /// The decode path of a latent model; `None` takes the GQA path, and is the only choice for a plain model.
    pub path: Option<DecodePath>,
    /// Prompt plus answer, in tokens; refused where the cache cannot hold it. `None` takes the model's own limit, or
    /// what the cache holds.
    pub max_model_len: Option<usize>,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Requests that may wait.
    pub max_queued: usize,
    /// What the cache may take.
    pub kv_cache: CacheMemory,
    /// What the cache's numbers are stored as.
    pub kv_cache_format: CacheFormat,
    /// What its weights are kept as and multiplied with.
    pub precision: Precision,
    /// Whether the engine can change from the absorb path to the GQA path while it runs. The up-projections are then
    /// kept in both forms, and a cache block takes what the larger of the two layouts needs.
    pub expandable: bool,
    /// Drafts, if any. They never change a text.
    pub speculation: Option<Speculation>,
    /// Threads that compute, those of all ranks together; `None` takes what the machine offers.
    pub threads: Option<usize>,
    /// Tensor-parallel ranks, each with its part of the weights and the cache. Degrees that do not divide the model's heads
    /// or groups are refused.
    pub tensor_parallel: usize,
    /// How long ranks wait for one that hangs before the engine gives up. One that panics ends the step at once.
    pub rank_timeout: Duration,
}

impl Default for CpuEngineConfig {
    fn default() -> Self {
        Self {
            path: None,
            max_model_len: None,
            max_num_seqs: 16,
            max_queued: 128,
            kv_cache: CacheMemory::Bytes(1 << 30),
            kv_cache_format: CacheFormat::CPU_DEFAULT,
            precision: Precision::default(),
            expandable: false,
            speculation: None,
            threads: None,
            tensor_parallel: 1,
            rank_timeout: Duration::from_secs(30),
        }
    }
}

/// A model running on this machine's processors.
pub struct CpuEngine {
    info: EngineInfo,
    runner: Runner,
    expands: bool,
}

impl CpuEngine {
    /// Loads a checkpoint and starts the engine's thread.
    pub fn start(checkpoint: &Checkpoint, config: CpuEngineConfig) -> Result<Self, LoadError> {
        for (field, value) in [
            ("max_num_seqs", config.max_num_seqs),
            ("max_model_len", config.max_model_len.unwrap_or(1)),
            ("max_queued", config.max_queued),
            ("tensor_parallel", config.tensor_parallel),
        ] {
            if value == 0 {
                return Err(LoadError::Zero { field });
            }
        }
        let parts = ranks::load(checkpoint, &config)?;
        let info = plan_cache(&parts, &config)?;
        let bounds = Bounds {
            limits: Limits {
                sequences: config.max_num_seqs,
                tokens: step_tokens(&config),
                context: info.context_length,
            },
            blocks: info.num_blocks,
            queued: config.max_queued,
            vocab: info.vocab_size,
            speculation: config.speculation,
        };
        let models = parts.into_iter().map(|part| part.model).collect();
        let comms = ranks::comms(config.tensor_parallel, config.rank_timeout);
        let ranks = Ranks::start(models, comms, info.num_blocks, config.kv_cache_format)?;
        let runner = Runner::start(ranks, bounds)?;
        Ok(Self { info, runner, expands: config.expandable })
    }

    /// Changes from the absorb path to the GQA path before the next step. Running sequences go on where they are:
    /// keys and values are made from the latents as they are cached, and nothing is computed again: exactly with an f32
    /// cache, and with one that rounds, of latents that were rounded already. Doing so twice does nothing.
    ///
    /// # Errors
    /// [`NotExpandable`] unless [`CpuEngineConfig::expandable`] was set.
    pub fn switch_to_gqa(&self) -> Result<(), NotExpandable> {
        if !self.expands {
            return Err(NotExpandable);
        }
        self.runner.expand();
        Ok(())
    }
}

/// The engine cannot change its path.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this engine was not started to change its path: set `expandable` and start a converted model along `mqa-absorb`"
)]
pub struct NotExpandable;

/// Tokens of a step: what decodes, and always some of a prompt.
fn step_tokens(config: &CpuEngineConfig) -> usize {
    STEP_TOKENS.max(2 * config.max_num_seqs)
}

/// Sizes the cache: no more blocks than all sequences can use, and a context that always fits. One that was asked for
/// is kept or refused; the model's own may be cut.
fn plan_cache(parts: &[Part], config: &CpuEngineConfig) -> Result<EngineInfo, LoadError> {
    let Some(Part { model, .. }) = parts.first() else {
        return Err(LoadError::Zero { field: "tensor_parallel" });
    };
    let context = config.max_model_len.unwrap_or(usize::MAX).min(model.context_length());
    let format = config.kv_cache_format;
    let blocks_per_sequence = context.div_ceil(BLOCK_TOKENS);
    let of_all = |bytes: &dyn Fn(&Part) -> usize| parts.iter().map(bytes).sum::<usize>();
    let tokens = step_tokens(config);
    let drawn = drawn_rows(config.speculation, config.max_num_seqs, tokens);
    let workspace = |part: &Part| part.model.workspace_bytes(tokens, drawn);
    let demand = Demand {
        block: (of_all(&|part| part.model.largest_kv_bytes_per_token(format)) * BLOCK_TOKENS) as u64,
        workspace: of_all(&workspace) as u64,
        needed: config.max_model_len.map_or(1, |_| blocks_per_sequence) as u64,
        useful: config.max_num_seqs.saturating_mul(blocks_per_sequence) as u64,
    };
    let num_blocks = usize::try_from(blocks(config.kv_cache, demand, free)?).unwrap_or(usize::MAX);
    let kv_bytes = |part: &Part| part.model.kv_bytes_per_token(format);
    let rank = |part: &Part| RankInfo { weight_bytes: part.weight_bytes, kv_bytes_per_token: kv_bytes(part) };
    Ok(EngineInfo {
        path: model.path(),
        tensor_parallel: u32::try_from(parts.len()).unwrap_or(u32::MAX),
        multi_token_prediction: config.speculation.map_or(0, |speculation| speculation.tokens() as u32),
        context_length: context.min(num_blocks * BLOCK_TOKENS),
        block_size: BLOCK_TOKENS,
        num_blocks,
        kv_elements_per_token_layer: of_all(&|part| part.model.kv_elements_per_token_layer()),
        kv_bytes_per_token: of_all(&kv_bytes),
        ranks: parts.iter().map(rank).collect(),
        vocab_size: model.vocab_size(),
        instruction_sets: config.precision.instruction_sets(format),
    })
}

impl Engine for CpuEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn submit(&self, request: Request) -> Result<(), SubmitError> {
        self.runner.submit(request)
    }

    fn stats(&self) -> EngineStats {
        self.runner.stats()
    }

    fn failure(&self) -> Option<String> {
        self.runner.failure()
    }

    fn shutdown(&self, deadline: Duration) {
        self.runner.shutdown(deadline);
    }
}
