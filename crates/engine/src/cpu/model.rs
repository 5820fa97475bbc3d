//! A loaded model: weights, and nothing that a sequence leaves behind.

use std::ops::Range;

use gqla_kernels::{
    Matrix, Pool,
    attention::{Attention, BLOCK_TOKENS, CacheFormat, PerGroup, Segment},
    ops::Rope,
};
use gqla_model::DecodePath;
use gqla_weights::Checkpoint;

use super::{CommError, LoadError, forward::Workspace, load, shard::Shard};

/// Tokens [`Model::logits`] computes at a time.
const CHUNK: usize = 128;

/// Which channels of a projected row the rotary embedding turns: `count` heads, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct RotaryHeads {
    pub offset: usize,
    pub count: usize,
    pub stride: usize,
    pub dim: usize,
}

/// The norm some converted models put on the latent before it is cached.
pub(super) struct LatentNorm {
    pub offset: usize,
    pub weight: Vec<f32>,
    pub eps: f32,
}

/// One decoder layer.
pub(super) struct Layer {
    pub input_norm: Vec<f32>,
    /// All projections attention needs, stacked.
    pub projection: Matrix,
    pub latent_norm: Option<LatentNorm>,
    pub attention: Box<dyn Attention>,
    /// What takes its place when the path changes.
    pub expanded: Option<PerGroup>,
    pub output: Matrix,
    pub post_norm: Vec<f32>,
    /// Gate rows, then up rows.
    pub gate_up: Matrix,
    pub down: Matrix,
}

/// A LLaMA-family model ready to compute, on one decode path.
pub struct Model {
    pub(super) pool: Pool,
    pub(super) embedding: Matrix,
    /// `None` when the embedding is the head.
    pub(super) head: Option<Matrix>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Vec<f32>,
    pub(super) eps: f32,
    pub(super) rope: Rope,
    pub(super) rotary: Vec<RotaryHeads>,
    pub(super) path: Option<DecodePath>,
    pub(super) context: usize,
    /// Rows of the whole embedding that `embedding` and `head` have.
    pub(super) vocabulary: Range<usize>,
    pub(super) vocab_size: usize,
}

impl Model {
    /// Loads a checkpoint to compute with all the machine's processors. `path` chooses between a converted model's
    /// two paths; `None` takes GQA there, and is the only choice for a plain model.
    pub fn load(checkpoint: &Checkpoint, path: Option<DecodePath>) -> Result<Self, LoadError> {
        Self::load_with_threads(checkpoint, path, None)
    }

    /// As [`Self::load`] on `threads` threads.
    pub fn load_with_threads(
        checkpoint: &Checkpoint,
        path: Option<DecodePath>,
        threads: Option<usize>,
    ) -> Result<Self, LoadError> {
        Self::load_shard(&Shard::whole(checkpoint), path, Pool::new(threads)?)
    }

    /// Loads one rank's part of a checkpoint.
    pub(super) fn load_shard(
        shard: &Shard<'_>,
        path: Option<DecodePath>,
        pool: Pool,
    ) -> Result<Self, LoadError> {
        load::model(shard, path, pool)
    }

    /// The decode path; `None` for a plain model.
    pub fn path(&self) -> Option<DecodePath> {
        self.path
    }

    /// Rows of the embedding.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Longest sequence, in tokens.
    pub fn context_length(&self) -> usize {
        self.context
    }

    /// Decoder layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Cache elements one token takes in one layer.
    pub fn kv_elements_per_token_layer(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.attention.kv_elements())
    }

    /// The same along whichever path the model may take.
    pub(super) fn largest_kv_elements(&self) -> usize {
        let expanded = self.layers.first().and_then(|layer| layer.expanded.as_ref());
        let expanded = expanded.map_or(0, |attention| attention.kv_elements());
        self.kv_elements_per_token_layer().max(expanded)
    }

    /// Bytes of the buffers of a step of `rows` tokens that draws for `sequences`.
    pub(super) fn workspace_bytes(&self, rows: usize, sequences: usize) -> usize {
        let hidden = self.norm.len();
        let widest = |width: &dyn Fn(&Layer) -> usize| self.layers.iter().map(width).max().unwrap_or(0);
        let attention = widest(&|layer| {
            let attention = &layer.attention;
            layer.projection.outputs() + attention.output_width() + attention.scratch_elements()
        });
        let feed_forward = widest(&|layer| 3 * layer.down.inputs());
        // A rank's part of a sum, and the two places where the others find it.
        let exchange = if self.vocabulary.len() < self.vocab_size { 3 * hidden } else { 0 };
        let per_row = 2 * hidden + attention + feed_forward + exchange;
        (rows * per_row + sequences * self.vocab_size()) * size_of::<f32>()
    }

    /// Prepares an absorbing model to change to the GQA path.
    pub(super) fn make_expandable(&mut self, shard: &Shard<'_>) -> Result<(), LoadError> {
        if self.path != Some(DecodePath::MqaAbsorb) {
            return Err(LoadError::NotExpandable);
        }
        for (index, layer) in self.layers.iter_mut().enumerate() {
            layer.expanded = Some(load::per_group(shard, index)?);
        }
        Ok(())
    }

    /// Logits of every position of one sequence, `[tokens, vocab]`. The prompt is computed in chunks, as the engine
    /// does.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>, LogitsError> {
        self.check(tokens)?;
        let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect();
        let mut workspace = Workspace::new(self, blocks.len(), CacheFormat::F32);
        let mut logits = Vec::with_capacity(tokens.len() * self.vocab_size());
        for (index, chunk) in tokens.chunks(CHUNK).enumerate() {
            let segment = Segment { first_row: 0, rows: chunk.len(), start: index * CHUNK, blocks: &blocks };
            let wanted: Vec<usize> = (0..chunk.len()).collect();
            logits.extend_from_slice(self.forward(&mut workspace, chunk, &[segment], &wanted)?);
        }
        Ok(logits)
    }

    fn check(&self, tokens: &[u32]) -> Result<(), LogitsError> {
        if tokens.len() > self.context {
            return Err(LogitsError::TooLong { tokens: tokens.len(), context: self.context });
        }
        let vocab_size = self.vocab_size();
        match tokens.iter().position(|id| *id as usize >= vocab_size) {
            Some(position) => Err(LogitsError::UnknownToken { id: tokens[position], position, vocab_size }),
            None => Ok(()),
        }
    }
}

/// Why a sequence has no logits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogitsError {
    /// The model is a part of one, and another part is gone.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// Longer than the model's context.
    #[error("{tokens} tokens exceed the model's context of {context}")]
    TooLong {
        /// Tokens given.
        tokens: usize,
        /// The limit.
        context: usize,
    },
    /// A token outside the vocabulary.
    #[error("token {id} at position {position} is outside the vocabulary of {vocab_size}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Where it stands.
        position: usize,
        /// The vocabulary's size.
        vocab_size: usize,
    },
}
