//! Model graphs, caches, scheduler and sampling behind one [`Engine`] trait.
//!
//! [`cpu`] and [`cuda`] compute; around them, `runner` is the engine's thread, `scheduler` decides each step over `sequence`s,
//! `blocks` hands out cache blocks and finds beginnings again, `speculation` guesses tokens ahead, and `sampling` says
//! how each is drawn. A sequence's tokens depend on its own prompt and parameters alone, never on what shares its steps, nor on what
//! was guessed.

mod blocks;
pub mod cpu;
pub mod cuda;
mod request;
#[cfg(test)]
#[path = "../tests/support/rewrite.rs"]
mod rewrite;
mod runner;
mod sampling;
mod scheduler;
mod sequence;
mod speculation;

use std::time::Duration;

pub use gqla_kernels::sample::{TokenLogprob, TokenMask};
use gqla_model::DecodePath;
pub use gqla_weights::{ChatTemplateSource, Checkpoint, Tokenizer};
pub use request::{Cancel, Constraint, Event, Finish, Request, SamplingParams, Sink, SubmitError};
pub use speculation::{
    DraftDepth, DraftSource, MOST_DRAFTS, NoDraftLayer, PromptLookup, Speculation, SpeculationError,
    SpeculationStats,
};

/// A running model. The server and the tools know nothing more of it.
pub trait Engine: Send + Sync {
    /// What is being served.
    fn info(&self) -> &EngineInfo;

    /// Queues a sequence; returns at once. Dropping nothing and waiting for nothing: all news comes by the sink.
    fn submit(&self, request: Request) -> Result<(), SubmitError>;

    /// Counters and gauges as of the last step.
    fn stats(&self) -> EngineStats;

    /// Why a step failed, once one did: the engine takes nothing more and only a new process helps.
    fn failure(&self) -> Option<String>;

    /// Refuses new sequences, lets running ones finish for at most `deadline`, then aborts them and stops.
    fn shutdown(&self, deadline: Duration);
}

/// Facts about a running model that never change.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineInfo {
    /// The decode path at the start; `None` for a plain (unconverted) GQA model, which has only one.
    pub path: Option<DecodePath>,
    /// Tensor-parallel ranks.
    pub tensor_parallel: u32,
    /// Drafted tokens per step of a sequence at most, wherever they come from.
    pub multi_token_prediction: u32,
    /// Prompt plus answer, in tokens.
    pub context_length: usize,
    /// Tokens per cache block.
    pub block_size: usize,
    /// Blocks in the cache.
    pub num_blocks: usize,
    /// Cache elements one token takes in the layer that takes most, on all ranks together: layers may differ in their
    /// groups.
    pub kv_elements_per_token_layer: usize,
    /// Cache bytes one token takes in all layers, on all ranks together.
    pub kv_bytes_per_token: usize,
    /// What each tensor-parallel rank has of it.
    pub ranks: Vec<RankInfo>,
    /// Vocabulary size.
    pub vocab_size: usize,
    /// What the kernels picked at run time: an instruction set, such as `avx512f`, then the processor's units for narrow numbers.
    pub instruction_sets: Vec<&'static str>,
}

/// What one tensor-parallel rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankInfo {
    /// Bytes of the checkpoint's tensors that are its part, as the files store them.
    pub weight_bytes: u64,
    /// Cache bytes one token takes in all layers.
    pub kv_bytes_per_token: usize,
}

/// Counters (ever growing) and gauges of a running model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Sequences in the running batch.
    pub running: usize,
    /// Sequences waiting for room.
    pub waiting: usize,
    /// Cache blocks that sequences have; blocks whose content is only kept for reuse are not counted.
    pub blocks_used: usize,
    /// Tokens whose keys were looked for in the cache when their sequence started.
    pub prefix_queries: u64,
    /// Tokens found there, and not computed again.
    pub prefix_hits: u64,
    /// Prompt tokens computed so far.
    pub prompt_tokens: u64,
    /// Tokens delivered so far.
    pub generated_tokens: u64,
    /// Steps run so far.
    pub steps: u64,
    /// Sequences evicted from the cache to be recomputed later.
    pub preemptions: u64,
    /// Drafts and what became of them.
    pub speculation: SpeculationStats,
    /// Time since the scheduler last went round; what liveness is judged by.
    pub since_last_heartbeat: Duration,
}
