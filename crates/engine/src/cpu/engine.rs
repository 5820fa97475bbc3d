//! A running CPU model behind the [`Engine`] trait.

use std::time::Duration;

use gqla_kernels::{
    attention::{BLOCK_TOKENS, Segment},
    instruction_set,
};
use gqla_model::DecodePath;
use gqla_weights::Checkpoint;

use super::{LoadError, Model, forward::Workspace};
use crate::{
    Engine, EngineInfo, EngineStats, Request, SubmitError,
    runner::{Bounds, Runner, StepModel},
    scheduler::Limits,
};

/// Tokens of a step: enough rows that a prompt's matrix products reuse each weight from the cache, few enough that
/// running sequences wait a fraction of a second for a chunk of someone else's prompt.
const STEP_TOKENS: usize = 128;

/// Bytes of an f32.
const ELEMENT_BYTES: usize = size_of::<f32>();

/// How to run a model on the CPU.
#[derive(Clone, Debug)]
pub struct CpuEngineConfig {
    /// The decode path of a converted model; `None` takes the GQA path, and is the only choice for a plain model.
    pub path: Option<DecodePath>,
    /// Prompt plus answer, in tokens; `None` takes the model's own limit. The cache may lower it further.
    pub max_model_len: Option<usize>,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Requests that may wait.
    pub max_queued: usize,
    /// Bytes the cache may take; touched only as far as it is used.
    pub kv_cache_bytes: usize,
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
            kv_cache_bytes: 1 << 30,
            threads: None,
        }
    }
}

/// A model running on this machine's processors.
pub struct CpuEngine {
    info: EngineInfo,
    runner: Runner,
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
        let model = Model::load_with_threads(checkpoint, config.path, config.threads)?;
        let info = plan_cache(&model, &config)?;
        let bounds = Bounds {
            limits: Limits {
                sequences: config.max_num_seqs,
                tokens: STEP_TOKENS.max(config.max_num_seqs),
                context: info.context_length,
            },
            blocks: info.num_blocks,
            queued: config.max_queued,
            vocab: info.vocab_size,
        };
        let workspace = Workspace::new(&model, info.num_blocks);
        let runner = Runner::start(Running { model, workspace }, bounds)?;
        Ok(Self { info, runner })
    }
}

/// Sizes the cache: no more blocks than all sequences can use, and a context that always fits.
fn plan_cache(model: &Model, config: &CpuEngineConfig) -> Result<EngineInfo, LoadError> {
    let context = config.max_model_len.unwrap_or(usize::MAX).min(model.context_length());
    let kv_bytes_per_token = model.kv_elements_per_token_layer() * model.layers() * ELEMENT_BYTES;
    let block_bytes = kv_bytes_per_token * BLOCK_TOKENS;
    let useful = config.max_num_seqs.saturating_mul(context.div_ceil(BLOCK_TOKENS));
    let num_blocks = (config.kv_cache_bytes / block_bytes).min(useful);
    if num_blocks == 0 {
        let bytes = config.kv_cache_bytes;
        return Err(LoadError::CacheTooSmall { bytes, block_tokens: BLOCK_TOKENS, block_bytes });
    }
    Ok(EngineInfo {
        path: model.path(),
        tensor_parallel: 1,
        multi_token_prediction: 0,
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
    fn step(&mut self, tokens: &[u32], segments: &[Segment<'_>], wanted: &[usize]) -> Result<&[f32], String> {
        Ok(self.model.forward(&mut self.workspace, tokens, segments, wanted))
    }
}
