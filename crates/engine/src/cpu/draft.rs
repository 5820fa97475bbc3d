//! Draft logits of a model's own prediction layer.

use gqla_kernels::{
    Matrix,
    attention::{BLOCK_TOKENS, CacheFormat, Segment},
    ops::rms_norm_row,
};
use gqla_weights::Checkpoint;

use super::{
    CommError, LoadError, Model, Precision,
    forward::{Workspace, sized},
    load,
    model::{CHUNK, Layer, LogitsError},
    shard::Shard,
};

/// The multi-token-prediction layer: from what the decoder made of a token, and the token that follows it, the token
/// after that. It shares the decoder's embedding and output head and has a cache of its own.
pub(super) struct DraftLayer {
    pub embedding_norm: Vec<f32>,
    pub hidden_norm: Vec<f32>,
    /// `[hidden, 2 hidden]`, of the embedding's half first.
    pub projection: Matrix,
    pub layer: Layer,
    pub norm: Vec<f32>,
}

impl Model {
    /// Loads the prediction layer, along the path of the decoder. Workspaces made afterwards have a cache for it, and
    /// the cache's bytes count it.
    ///
    /// # Errors
    /// [`LoadError::NoDraftLayer`] where the checkpoint has none.
    pub fn make_drafting(&mut self, checkpoint: &Checkpoint) -> Result<(), LoadError> {
        self.make_rank_drafting(&Shard::whole(checkpoint), Precision::default())
    }

    /// The same for a rank's part of the layer, with numbers as `precision` says.
    pub(super) fn make_rank_drafting(
        &mut self,
        shard: &Shard<'_>,
        precision: Precision,
    ) -> Result<(), LoadError> {
        let mut draft = load::draft(shard, self.path, precision)?;
        if self.layers.iter().any(|layer| layer.expanded.is_some()) {
            draft.layer.expanded = Some(load::per_group(shard, precision, shard.config().num_hidden_layers)?);
        }
        self.draft = Some(draft);
        Ok(())
    }

    /// Draft logits of every position of one sequence, `[tokens, vocab]`: row i is of the token after `next[i]`, the token
    /// that follows token i.
    ///
    /// # Errors
    /// As [`Self::logits`], and when the model was not made to draft or some token has no next one.
    pub fn draft_logits(
        &self,
        tokens: &[u32],
        next: &[u32],
        cache: CacheFormat,
    ) -> Result<Vec<f32>, LogitsError> {
        self.check(tokens)?;
        self.check(next)?;
        if tokens.len() != next.len() {
            return Err(LogitsError::Next { tokens: tokens.len(), next: next.len() });
        }
        let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect();
        let mut workspace = Workspace::new(self, blocks.len(), cache);
        let mut logits = Vec::with_capacity(tokens.len() * self.vocab_size());
        for (index, (chunk, next)) in tokens.chunks(CHUNK).zip(next.chunks(CHUNK)).enumerate() {
            let segment = Segment { first_row: 0, rows: chunk.len(), start: index * CHUNK, blocks: &blocks };
            let rows: Vec<usize> = (0..chunk.len()).collect();
            self.forward(&mut workspace, chunk, &[segment], &[])?;
            let drafts = self.draft(&mut workspace, &rows, next, &[segment], &rows)?;
            logits.extend_from_slice(drafts.ok_or(LogitsError::NoDraftLayer)?);
        }
        Ok(logits)
    }

    /// Draft logits, `[wanted.len(), vocab]`, of the rows `wanted` of this call; `None` for a model that was not made to
    /// draft, or a workspace made before it was.
    ///
    /// Row i of this call continues row `rows[i]` of the last call of [`Self::forward`] or of this function on the same
    /// workspace, and `next[i]` is the token that follows it; its logits are of the token after `next[i]`. `segments`
    /// describe the rows of this call in the layer's own cache: `start` is the position of the token that row
    /// `rows[i]` came from, and blocks are the sequence's blocks, as for the decoder. A row sees only what earlier calls
    /// have put there, so every position of a sequence has to be given once, the prompt's too; what is given again
    /// overwrites.
    ///
    /// A second draft token comes of giving this function its own rows again, one position later. Drafts are guesses:
    /// what they are worth is for whoever verifies them. Of several ranks only the first answers logits.
    ///
    /// # Errors
    /// Only where there are other ranks, and one is gone.
    pub(super) fn draft<'w>(
        &self,
        workspace: &'w mut Workspace,
        rows: &[usize],
        next: &[u32],
        segments: &[Segment<'_>],
        wanted: &[usize],
    ) -> Result<Option<&'w [f32]>, CommError> {
        let Workspace { caches, activations: a, comm } = workspace;
        let (Some(draft), Some(cache)) = (&self.draft, caches.get_mut(self.layers.len())) else {
            return Ok(None);
        };
        let comm = &mut **comm;
        let hidden = self.norm.len();
        assert_eq!(rows.len(), next.len(), "every row has a token that follows it");
        let joined = sized(&mut a.joined, rows.len() * 2 * hidden);
        let mut embeddings = vec![0.0; rows.len() * hidden];
        self.embed(next, &mut embeddings, comm)?;
        let embeddings = embeddings.chunks_exact(hidden);
        for ((row, embedding), joined) in rows.iter().zip(embeddings).zip(joined.chunks_exact_mut(2 * hidden))
        {
            let (left, right) = joined.split_at_mut(hidden);
            rms_norm_row(embedding, &draft.embedding_norm, self.eps, left);
            rms_norm_row(&a.hidden[row * hidden..][..hidden], &draft.hidden_norm, self.eps, right);
        }
        draft.projection.multiply(&self.pool, joined, sized(&mut a.residual, rows.len() * hidden));
        self.attend(&draft.layer, cache, segments, a, comm)?;
        self.feed_forward(&draft.layer, a, comm)?;
        a.hidden.clone_from(&a.residual);
        self.head(&draft.norm, wanted, a, comm).map(Some)
    }
}

#[cfg(test)]
#[path = "draft_tests.rs"]
mod tests;
