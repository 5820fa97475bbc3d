//! A running CPU model behind the [`Engine`] trait.

use std::time::Duration;

use gqla_kernels::{
    attention::{BLOCK_TOKENS, CacheFormat, Segment},
    instruction_set,
};
use gqla_model::DecodePath;
use gqla_weights::Checkpoint;

use super::{
    LoadError, Model, Weights,
    forward::Workspace,
    memory::{CacheMemory, Demand, blocks, free},
};
use crate::{
    Engine, EngineInfo, EngineStats, Request, Speculation, SubmitError,
    blocks::BlockCopy,
    runner::{Bounds, Runner, StepModel},
    scheduler::Limits,
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
    /// What its weights are kept as.
    pub weights: Weights,
    /// Whether the engine can change from the absorb path to the GQA path while it runs. The up-projections are then
    /// kept in both forms, and a cache block takes what the larger of the two layouts needs.
    pub expandable: bool,
    /// Drafts, if any. They never change a text.
    pub speculation: Option<Speculation>,
    /// Threads that compute; `None` takes what the machine offers.
    pub threads: Option<usize>,
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
            weights: Weights::Stored,
            expandable: false,
            speculation: None,
            threads: None,
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
        ] {
            if value == 0 {
                return Err(LoadError::Zero { field });
            }
        }
        let mut model = Model::load_as(checkpoint, config.path, config.threads, config.weights)?;
        if config.expandable {
            model.make_expandable(checkpoint)?;
        }
        let info = plan_cache(&model, &config)?;
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
        let workspace = Workspace::new(&model, info.num_blocks, config.kv_cache_format);
        let runner = Runner::start(Running { model, workspace }, bounds)?;
        Ok(Self { info, runner, expands: config.expandable })
    }

    /// Changes from the absorb path to the GQA path before the next step. Running sequences go on where they are:
    /// keys and values of what is cached are made from the latents, exactly, and nothing is computed again. Doing so
    /// twice does nothing.
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

/// Rows of a step that logits are wanted of, at most.
fn drawn_rows(config: &CpuEngineConfig) -> usize {
    let each = 1 + config.speculation.map_or(0, |speculation| speculation.tokens());
    config.max_num_seqs.saturating_mul(each).min(step_tokens(config))
}

/// Sizes the cache: no more blocks than all sequences can use, and a context that always fits. One that was asked for
/// is kept or refused; the model's own may be cut.
fn plan_cache(model: &Model, config: &CpuEngineConfig) -> Result<EngineInfo, LoadError> {
    let context = config.max_model_len.unwrap_or(usize::MAX).min(model.context_length());
    let number_bytes = config.kv_cache_format.bytes();
    let blocks_per_sequence = context.div_ceil(BLOCK_TOKENS);
    let demand = Demand {
        block: (model.largest_kv_elements_per_token() * number_bytes * BLOCK_TOKENS) as u64,
        workspace: model.workspace_bytes(step_tokens(config), drawn_rows(config)) as u64,
        needed: config.max_model_len.map_or(1, |_| blocks_per_sequence) as u64,
        useful: config.max_num_seqs.saturating_mul(blocks_per_sequence) as u64,
    };
    let num_blocks = usize::try_from(blocks(config.kv_cache, demand, free)?).unwrap_or(usize::MAX);
    let kv_bytes_per_token = model.kv_elements_per_token() * number_bytes;
    Ok(EngineInfo {
        path: model.path(),
        tensor_parallel: 1,
        multi_token_prediction: config.speculation.map_or(0, |speculation| speculation.tokens() as u32),
        context_length: context.min(num_blocks * BLOCK_TOKENS),
        block_size: BLOCK_TOKENS,
        num_blocks,
        kv_elements_per_token_layer: model.kv_elements_per_token_layer(),
        kv_bytes_per_token,
        vocab_size: model.vocab_size(),
        instruction_set: instruction_set(),
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

    fn shutdown(&self, deadline: Duration) {
        self.runner.shutdown(deadline);
    }
}

/// A model and its buffers, as the engine's thread owns them.
struct Running {
    model: Model,
    workspace: Workspace,
}

impl StepModel for Running {
    fn copy(&mut self, copies: &[BlockCopy]) {
        self.workspace.copy(copies);
    }

    fn expand(&mut self, blocks: &[u32]) {
        self.model.expand(&mut self.workspace, blocks);
    }

    fn step(&mut self, tokens: &[u32], segments: &[Segment<'_>], wanted: &[usize]) -> Result<&[f32], String> {
        Ok(self.model.forward(&mut self.workspace, tokens, segments, wanted))
    }
}
