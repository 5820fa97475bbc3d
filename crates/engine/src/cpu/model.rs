//! A loaded model: weights, and nothing that a sequence leaves behind.

use std::ops::Range;

use gqla_kernels::{
    Matrix, Pool,
    attention::{Attention, BLOCK_TOKENS, CacheFormat, CachedToken, PerGroup, Segment},
    ops::Rope,
};
use gqla_model::DecodePath;
use gqla_weights::Checkpoint;

use super::{
    CommError, LoadError, Precision, draft::DraftLayer, feed_forward::FeedForward, forward::Workspace, load,
    projection::Projection, shard::Shard,
};

/// Tokens [`Model::logits`] computes at a time.
pub(super) const CHUNK: usize = 128;

/// Which channels of a projected row the rotary embedding turns: `count` heads, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct RotaryHeads {
    pub offset: usize,
    pub count: usize,
    pub stride: usize,
    pub dim: usize,
}

/// One decoder layer.
pub(super) struct Layer {
    pub input_norm: Vec<f32>,
    pub projection: Projection,
    pub attention: Box<dyn Attention>,
    /// What takes its place when the path changes.
    pub expanded: Option<PerGroup>,
    pub output: Matrix,
    pub post_norm: Vec<f32>,
    pub feed_forward: FeedForward,
}

/// A model ready to compute, on one decode path.
pub struct Model {
    pub(super) pool: Pool,
    pub(super) embedding: Matrix,
    /// `None` when the embedding is the head.
    pub(super) head: Option<Matrix>,
    pub(super) layers: Vec<Layer>,
    /// The prediction layer, once it was asked for.
    pub(super) draft: Option<DraftLayer>,
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
    /// Loads a checkpoint to compute with all the machine's processors. `path` chooses between a latent model's
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
        Self::load_as(checkpoint, path, threads, Precision::default())
    }

    /// As [`Self::load_with_threads`], with numbers as `precision` says.
    pub fn load_as(
        checkpoint: &Checkpoint,
        path: Option<DecodePath>,
        threads: Option<usize>,
        precision: Precision,
    ) -> Result<Self, LoadError> {
        Self::load_shard(&Shard::whole(checkpoint), path, precision, Pool::new(threads)?)
    }

    /// Loads one rank's part of a checkpoint.
    pub(super) fn load_shard(
        shard: &Shard<'_>,
        path: Option<DecodePath>,
        precision: Precision,
        pool: Pool,
    ) -> Result<Self, LoadError> {
        load::model(shard, path, precision, pool)
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

    /// The decoder's layers, then the prediction layer: the order of the caches.
    fn all_layers(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().chain(self.draft.iter().map(|draft| &draft.layer))
    }

    /// As [`Self::all_layers`], to be changed.
    pub(super) fn all_layers_mut(&mut self) -> impl Iterator<Item = &mut Layer> {
        self.layers.iter_mut().chain(self.draft.iter_mut().map(|draft| &mut draft.layer))
    }

    /// What one token takes in the cache of every layer.
    pub(super) fn cached_tokens(&self) -> impl Iterator<Item = CachedToken> {
        self.all_layers().map(|layer| layer.attention.cached_token())
    }

    /// Cache elements one token takes in the layer that takes most: layers may differ in their groups.
    pub fn kv_elements_per_token_layer(&self) -> usize {
        self.cached_tokens().map(|token| token.elements as usize).max().unwrap_or(0)
    }

    /// Cache bytes one token takes in all layers, the prediction layer's among them once it was asked for.
    pub fn kv_bytes_per_token(&self, format: CacheFormat) -> usize {
        self.cached_tokens().map(|token| token.bytes(format) as usize).sum()
    }

    /// The same along whichever path the model may take.
    pub(super) fn largest_kv_bytes_per_token(&self, format: CacheFormat) -> usize {
        let bytes = |attention: &dyn Attention| attention.cached_token().bytes(format) as usize;
        let expanded = |layer: &Layer| layer.expanded.as_ref().map_or(0, |attention| bytes(attention));
        self.all_layers().map(|layer| bytes(&*layer.attention).max(expanded(layer))).sum()
    }

    /// Bytes of the buffers of a step of `rows` tokens that answers the logits of `wanted` of them.
    pub(super) fn workspace_bytes(&self, rows: usize, wanted: usize) -> usize {
        let hidden = self.norm.len();
        let widest = |width: &dyn Fn(&Layer) -> usize| self.all_layers().map(width).max().unwrap_or(0);
        let attention = widest(&|layer| {
            let attention = &layer.attention;
            let projection = layer.projection.width() + layer.projection.scratch_elements();
            projection + attention.output_width() + attention.scratch_elements()
        });
        let feed_forward = widest(&|layer| layer.feed_forward.scratch_elements());
        let draft = if self.draft.is_some() { 3 * hidden } else { 0 };
        // A rank's part of a sum, and the two places where the others find it.
        let exchange = if self.vocabulary.len() < self.vocab_size { 3 * hidden } else { 0 };
        let per_row = 2 * hidden + attention + feed_forward + draft + exchange;
        (rows * per_row + wanted * self.vocab_size()) * size_of::<f32>()
    }

    /// Prepares an absorbing model to change to the GQA path.
    pub(super) fn make_expandable(
        &mut self,
        shard: &Shard<'_>,
        precision: Precision,
    ) -> Result<(), LoadError> {
        if self.path != Some(DecodePath::MqaAbsorb) {
            return Err(LoadError::NotExpandable);
        }
        for (index, layer) in self.all_layers_mut().enumerate() {
            layer.expanded = Some(load::per_group(shard, precision, index)?);
        }
        Ok(())
    }

    /// Logits of every position of one sequence, `[tokens, vocab]`, by way of a cache of that format. The prompt is computed
    /// in chunks, as the engine does.
    pub fn logits(&self, tokens: &[u32], cache: CacheFormat) -> Result<Vec<f32>, LogitsError> {
        self.check(tokens)?;
        let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect();
        let mut workspace = Workspace::new(self, blocks.len(), cache);
        let mut logits = Vec::with_capacity(tokens.len() * self.vocab_size());
        for (index, chunk) in tokens.chunks(CHUNK).enumerate() {
            let segment = Segment { first_row: 0, rows: chunk.len(), start: index * CHUNK, blocks: &blocks };
            let wanted: Vec<usize> = (0..chunk.len()).collect();
            logits.extend_from_slice(self.forward(&mut workspace, chunk, &[segment], &wanted)?);
        }
        Ok(logits)
    }

    pub(super) fn check(&self, tokens: &[u32]) -> Result<(), LogitsError> {
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
    /// Draft logits of a model that cannot draft.
    #[error("the model was not made to draft: its prediction layer is not loaded")]
    NoDraftLayer,
    /// A token without the one that follows it, or the other way round.
    #[error("{tokens} tokens and {next} next tokens, expected as many of either")]
    Next {
        /// Tokens given.
        tokens: usize,
        /// Tokens that follow them.
        next: usize,
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
