//! A running model on a GPU behind the [`Engine`] trait.

use std::time::Duration;

use gqla_kernels::{
    attention::{BLOCK_TOKENS, Segment},
    device::{Images, PromptAttention, PromptGemm},
    sample::{Choice, Draw, NoToken},
};
use gqla_model::DecodePath;
use gqla_weights::Checkpoint;
use half::bf16;

use super::{CudaLoadError, CudaModel, forward::Workspace};
use crate::{
    Engine, EngineInfo, EngineStats, RankInfo, Request, Speculation, SubmitError,
    blocks::BlockCopy,
    cpu::{
        CacheMemory, NotExpandable,
        memory::{Demand, blocks},
    },
    runner::{Bounds, Runner, StepModel},
    scheduler::Limits,
    speculation::drawn_rows,
};

/// Tokens of a step at least: prompts advance in chunks of so many, while the others decode.
const STEP_TOKENS: usize = 256;

/// How to run a model on a GPU.
#[derive(Clone, Debug)]
pub struct CudaEngineConfig {
    /// The decode path; `None` takes the GQA path.
    pub path: Option<DecodePath>,
    /// Prompt plus answer, in tokens; refused where the cache cannot hold it. `None` takes the model's own limit, or
    /// what the cache holds.
    pub max_model_len: Option<usize>,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Requests that may wait.
    pub max_queued: usize,
    /// What the cache may take of the device's memory.
    pub kv_cache: CacheMemory,
    /// Drafts, if any. They never change a text, but the kernel that attends is chosen for them.
    pub speculation: Option<Speculation>,
    /// Whether the engine can change from the absorb path to the GQA path while it runs. The up-projections are then
    /// kept in both forms, and a cache block takes what the larger of the two layouts needs.
    pub expandable: bool,
    /// The device, of those that the driver shows.
    pub device: usize,
    /// Where images of the kernels are.
    pub images: Images,
    /// What multiplies prompts.
    pub prompt_gemm: PromptGemm,
    /// How prompts attend along the absorb path; along GQA they attend in groups in any case.
    pub prompt_attention: PromptAttention,
}

impl Default for CudaEngineConfig {
    fn default() -> Self {
        Self {
            path: None,
            max_model_len: None,
            max_num_seqs: 64,
            max_queued: 128,
            kv_cache: CacheMemory::FreeShare(0.9),
            speculation: None,
            expandable: false,
            device: 0,
            images: Images::default(),
            prompt_gemm: PromptGemm::Own,
            prompt_attention: PromptAttention::Latents,
        }
    }
}

/// A model running on a GPU.
pub struct CudaEngine {
    info: EngineInfo,
    runner: Runner,
    expands: bool,
}

impl CudaEngine {
    /// Loads a checkpoint and starts the engine's thread.
    ///
    /// # Errors
    /// When the model is not one this backend runs, or does not fit on the device.
    pub fn start(checkpoint: &Checkpoint, config: CudaEngineConfig) -> Result<Self, CudaLoadError> {
        for (field, value) in [
            ("max_num_seqs", config.max_num_seqs),
            ("max_model_len", config.max_model_len.unwrap_or(1)),
            ("max_queued", config.max_queued),
        ] {
            if value == 0 {
                return Err(CudaLoadError::Zero { field });
            }
        }
        let model = CudaModel::prepare(checkpoint, &config)?;
        let tokens = STEP_TOKENS.max(2 * config.max_num_seqs);
        let drawn = drawn_rows(config.speculation, config.max_num_seqs, tokens);
        let info = plan_cache(&model, &config, tokens, drawn)?;
        let limits = Limits { sequences: config.max_num_seqs, tokens, context: info.context_length };
        let bounds = Bounds {
            limits,
            blocks: info.num_blocks,
            queued: config.max_queued,
            vocab: info.vocab_size,
            speculation: config.speculation,
        };
        let workspace = Workspace::new(&model, info.num_blocks, [tokens, info.context_length], drawn)?;
        let runner = Runner::start(Running { model, workspace, failed: None }, bounds)?;
        Ok(Self { info, runner, expands: config.expandable })
    }

    /// Changes from the absorb path to the GQA path before the next step. Running sequences go on where they are: keys and
    /// values are those that the GQA path would have made of the latents as they are cached, and nothing is computed again.
    /// Doing so twice does nothing.
    ///
    /// # Errors
    /// [`NotExpandable`] unless [`CudaEngineConfig::expandable`] was set.
    pub fn switch_to_gqa(&self) -> Result<(), NotExpandable> {
        if !self.expands {
            return Err(NotExpandable);
        }
        self.runner.expand();
        Ok(())
    }
}

/// Sizes the cache as the CPU engine does, by the device's free memory: steps compute `tokens` and draw from `drawn`.
fn plan_cache(
    model: &CudaModel,
    config: &CudaEngineConfig,
    tokens: usize,
    drawn: usize,
) -> Result<EngineInfo, CudaLoadError> {
    let context = config.max_model_len.unwrap_or(usize::MAX).min(model.context_length());
    let kv_bytes_per_token = model.kv_elements_per_token_layer() * model.cached_layers() * size_of::<bf16>();
    let blocks_per_sequence = context.div_ceil(BLOCK_TOKENS);
    let demand = Demand {
        block: model.page_bytes() as u64,
        workspace: model.workspace_bytes(tokens, drawn, context) as u64,
        needed: config.max_model_len.map_or(1, |_| blocks_per_sequence) as u64,
        useful: config.max_num_seqs.saturating_mul(blocks_per_sequence) as u64,
    };
    let free = || model.device.memory().map(|(free, _)| free as u64).map_err(|error| error.to_string());
    let num_blocks = usize::try_from(blocks(config.kv_cache, demand, free)?).unwrap_or(usize::MAX);
    Ok(EngineInfo {
        path: Some(model.path()),
        tensor_parallel: 1,
        multi_token_prediction: config.speculation.map_or(0, |speculation| speculation.tokens() as u32),
        context_length: context.min(num_blocks * BLOCK_TOKENS),
        block_size: BLOCK_TOKENS,
        num_blocks,
        kv_elements_per_token_layer: model.kv_elements_per_token_layer(),
        kv_bytes_per_token,
        ranks: vec![RankInfo { weight_bytes: model.parameters.stored_bytes, kv_bytes_per_token }],
        vocab_size: model.vocab_size(),
        instruction_sets: vec!["cuda"],
    })
}

impl Engine for CudaEngine {
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

/// A model and its buffers, as the engine's thread owns them.
pub(super) struct Running {
    pub model: CudaModel,
    pub workspace: Workspace,
    /// Why copying or expanding blocks failed, which the next step tells.
    pub failed: Option<String>,
}

impl StepModel for Running {
    fn copy(&mut self, copies: &[BlockCopy]) {
        if let Err(error) = self.workspace.copy(&self.model.device, copies) {
            self.failed = Some(error.to_string());
        }
    }

    fn expand(&mut self, blocks: &[u32]) {
        if let Err(error) = self.model.expand(&mut self.workspace, blocks) {
            self.failed = Some(error.to_string());
        }
    }

    fn step(&mut self, tokens: &[u32], segments: &[Segment<'_>], wanted: &[usize]) -> Result<(), String> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let stepped = self.model.forward(&mut self.workspace, tokens, segments, wanted);
        stepped.map_err(|error| error.to_string())
    }

    fn choose(&mut self, draws: &[Draw]) -> Result<Vec<Result<Choice, NoToken>>, String> {
        self.model.choose(&mut self.workspace, draws).map_err(|error| error.to_string())
    }

    fn draft(
        &mut self,
        rows: &[usize],
        next: &[u32],
        segments: &[Segment<'_>],
        wanted: &[usize],
    ) -> Result<(), String> {
        let drafted = self.model.draft(&mut self.workspace, rows, next, segments, wanted);
        drafted.map_err(|error| error.to_string())
    }
}
