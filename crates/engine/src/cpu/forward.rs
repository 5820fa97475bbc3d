//! One step through the layers.

use gqla_kernels::{
    Matrix,
    attention::{Attention, CacheFormat, LayerCache, Scratch, Segment},
    ops::{rms_norm, rms_norm_row},
};
use gqla_model::DecodePath;

use super::{
    comm::{Alone, Comm, CommError},
    feed_forward,
    model::{Layer, Model},
    projection,
};
use crate::blocks::BlockCopy;

/// Everything a step writes: the caches, and activations that no later step reads; and the way to the other ranks.
pub(super) struct Workspace {
    pub(super) caches: Vec<LayerCache>,
    pub(super) activations: Activations,
    pub comm: Box<dyn Comm>,
}

#[derive(Default)]
pub(super) struct Activations {
    /// The residual stream, `[rows, hidden]`.
    pub residual: Vec<f32>,
    /// What the last call made of every row, for the prediction layer; empty where there is none.
    pub hidden: Vec<f32>,
    /// The prediction layer's input, `[rows, 2 hidden]`.
    pub joined: Vec<f32>,
    normed: Vec<f32>,
    projected: Vec<f32>,
    attended: Vec<f32>,
    logits: Vec<f32>,
    /// This rank's part of a sum over ranks.
    partial: Vec<f32>,
    projection: projection::Buffers,
    attention: Scratch,
    feed_forward: feed_forward::Buffers,
}

impl Workspace {
    /// Caches of `blocks` blocks for every layer.
    pub fn new(model: &Model, blocks: usize, format: CacheFormat) -> Self {
        Self::of_rank(model, blocks, format, Box::new(Alone))
    }

    /// The same for a rank's part of a model.
    pub fn of_rank(model: &Model, blocks: usize, format: CacheFormat, comm: Box<dyn Comm>) -> Self {
        let cache = |token| LayerCache::new(blocks, token, format);
        Self { caches: model.cached_tokens().map(cache).collect(), activations: Activations::default(), comm }
    }

    /// `[wanted.len(), vocab]` logits of the last call, on the first rank.
    pub fn logits(&self) -> &[f32] {
        let a = &self.activations;
        if self.comm.world() == 1 { &a.logits } else { &a.partial }
    }

    /// Bytes of the caches.
    #[cfg(test)]
    pub fn cache_bytes(&self) -> usize {
        self.caches.iter().map(LayerCache::allocated_bytes).sum()
    }
}

impl Workspace {
    /// Copies blocks in every layer, in this order.
    pub fn copy(&mut self, copies: &[BlockCopy]) {
        for cache in &mut self.caches {
            copies.iter().for_each(|copy| cache.copy_block(copy.from, copy.to));
        }
    }
}

pub(super) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}

impl Model {
    /// Goes on along the GQA path: layer by layer, so that no more than one layer's cache exists twice. Blocks keep
    /// their numbers. Layers that were not made for it stay as they are.
    pub(super) fn expand(&mut self, workspace: &mut Workspace, blocks: &[u32]) {
        for (index, cache) in workspace.caches.iter_mut().enumerate() {
            let Some(gqa) = self.all_layers_mut().nth(index).and_then(|layer| layer.expanded.take()) else {
                continue;
            };
            let mut expanded = LayerCache::new(cache.blocks(), gqa.cached_token(), cache.format());
            gqa.expand(&self.pool, cache, &mut expanded, blocks);
            *cache = expanded;
            if let Some(layer) = self.all_layers_mut().nth(index) {
                layer.attention = Box::new(gqa);
            }
            self.path = Some(DecodePath::Gqa);
        }
    }

    /// Computes `tokens`, which `segments` describe, and answers `[wanted.len(), vocab]` logits of the rows `wanted`.
    /// Of several ranks only the first answers any.
    ///
    /// # Errors
    /// Only where there are other ranks, and one is gone.
    pub(super) fn forward<'w>(
        &self,
        workspace: &'w mut Workspace,
        tokens: &[u32],
        segments: &[Segment<'_>],
        wanted: &[usize],
    ) -> Result<&'w [f32], CommError> {
        let Workspace { caches, activations, comm } = workspace;
        self.embed(tokens, sized(&mut activations.residual, tokens.len() * self.norm.len()), &mut **comm)?;
        for (layer, cache) in self.layers.iter().zip(caches) {
            self.attend(layer, cache, segments, activations, &mut **comm)?;
            self.feed_forward(layer, activations, &mut **comm)?;
        }
        if self.draft.is_some() {
            let len = activations.residual.len();
            let all = sized(&mut activations.hidden, len);
            rms_norm(&self.pool, &activations.residual, &self.norm, self.eps, all);
        }
        self.head(&self.norm, wanted, activations, &mut **comm)
    }

    /// Each rank has some rows of the embedding; the others add nothing to them.
    pub(super) fn embed(
        &self,
        tokens: &[u32],
        residual: &mut [f32],
        comm: &mut dyn Comm,
    ) -> Result<(), CommError> {
        for (token, row) in tokens.iter().zip(residual.chunks_exact_mut(self.norm.len())) {
            let token = *token as usize;
            if self.vocabulary.contains(&token) {
                self.embedding.read_row(token - self.vocabulary.start, row);
            } else {
                row.fill(0.0);
            }
        }
        comm.all_reduce(residual)
    }

    pub(super) fn attend(
        &self,
        layer: &Layer,
        cache: &mut LayerCache,
        segments: &[Segment<'_>],
        a: &mut Activations,
        comm: &mut dyn Comm,
    ) -> Result<(), CommError> {
        let rows = a.residual.len() / self.norm.len();
        rms_norm(
            &self.pool,
            &a.residual,
            &layer.input_norm,
            self.eps,
            sized(&mut a.normed, rows * self.norm.len()),
        );
        let projected = sized(&mut a.projected, rows * layer.projection.width());
        layer.projection.forward(&self.pool, &a.normed, &mut a.projection, projected);
        self.position(layer, segments, projected);
        let attended = sized(&mut a.attended, rows * layer.attention.output_width());
        layer.attention.forward(&self.pool, cache, segments, projected, &mut a.attention, attended);
        add_over_ranks(&mut a.residual, &mut a.partial, comm, |sum| {
            layer.output.multiply_add(&self.pool, attended, sum);
        })
    }

    /// Turns queries and keys.
    fn position(&self, layer: &Layer, segments: &[Segment<'_>], projected: &mut [f32]) {
        let width = layer.projection.width();
        for segment in segments {
            for i in 0..segment.rows {
                let row = &mut projected[(segment.first_row + i) * width..][..width];
                for heads in &self.rotary {
                    for head in 0..heads.count {
                        let start = heads.offset + head * heads.stride;
                        self.rope.apply(&mut row[start..start + heads.dim], segment.start + i);
                    }
                }
            }
        }
    }

    pub(super) fn feed_forward(
        &self,
        layer: &Layer,
        a: &mut Activations,
        comm: &mut dyn Comm,
    ) -> Result<(), CommError> {
        rms_norm(&self.pool, &a.residual, &layer.post_norm, self.eps, &mut a.normed);
        add_over_ranks(&mut a.residual, &mut a.partial, comm, |sum| {
            layer.feed_forward.forward(&self.pool, &a.normed, &mut a.feed_forward, sum);
        })
    }

    /// Logits of the rows `wanted` of the residual stream, after a norm.
    pub(super) fn head<'a>(
        &self,
        norm: &[f32],
        wanted: &[usize],
        a: &'a mut Activations,
        comm: &mut dyn Comm,
    ) -> Result<&'a [f32], CommError> {
        let hidden = self.norm.len();
        let head: &Matrix = self.head.as_ref().unwrap_or(&self.embedding);
        let normed = sized(&mut a.normed, wanted.len() * hidden);
        for (row, normed) in wanted.iter().zip(normed.chunks_exact_mut(hidden)) {
            rms_norm_row(&a.residual[row * hidden..][..hidden], norm, self.eps, normed);
        }
        let logits = sized(&mut a.logits, wanted.len() * head.outputs());
        head.multiply(&self.pool, normed, logits);
        if comm.world() == 1 {
            return Ok(logits);
        }
        let first = comm.rank() == 0;
        let whole = sized(&mut a.partial, if first { wanted.len() * self.vocab_size } else { 0 });
        let mut start = 0;
        comm.all_gather(logits, &mut |_, part| {
            if !part.is_empty() && first {
                let width = part.len() / wanted.len();
                let rows = whole.chunks_exact_mut(self.vocab_size).zip(part.chunks_exact(width));
                rows.for_each(|(row, part)| row[start..start + width].copy_from_slice(part));
                start += width;
            }
        })?;
        Ok(whole)
    }
}

/// Adds to `residual` what `add` adds on all ranks together. The sum over ranks is made first, so that every rank adds
/// the same bits.
fn add_over_ranks(
    residual: &mut [f32],
    partial: &mut Vec<f32>,
    comm: &mut dyn Comm,
    add: impl FnOnce(&mut [f32]),
) -> Result<(), CommError> {
    if comm.world() == 1 {
        add(residual);
        return Ok(());
    }
    partial.clear();
    partial.resize(residual.len(), 0.0);
    add(partial);
    comm.all_reduce(partial)?;
    residual.iter_mut().zip(&*partial).for_each(|(sum, x)| *sum += x);
    Ok(())
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
