//! One step through the layers.

use gqla_kernels::{
    Matrix,
    attention::{Attention, CacheFormat, LayerCache, Scratch, Segment},
    ops::{rms_norm, rms_norm_row},
};
use gqla_model::DecodePath;

use super::{
    feed_forward,
    model::{Layer, Model},
    projection,
};
use crate::blocks::BlockCopy;

/// Everything a step writes: the caches, and activations that no later step reads.
pub(super) struct Workspace {
    pub(super) caches: Vec<LayerCache>,
    pub(super) activations: Activations,
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
    projection: projection::Buffers,
    attention: Scratch,
    feed_forward: feed_forward::Buffers,
}

impl Workspace {
    /// Caches of `blocks` blocks for every layer.
    pub fn new(model: &Model, blocks: usize, format: CacheFormat) -> Self {
        let cache = |elements| LayerCache::new(blocks, elements, format);
        Self { caches: model.kv_elements().map(cache).collect(), activations: Activations::default() }
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
            let mut expanded = LayerCache::new(cache.blocks(), gqa.kv_elements(), cache.format());
            gqa.expand(&self.pool, cache, &mut expanded, blocks);
            *cache = expanded;
            if let Some(layer) = self.all_layers_mut().nth(index) {
                layer.attention = Box::new(gqa);
            }
            self.path = Some(DecodePath::Gqa);
        }
    }

    /// Computes `tokens`, which `segments` describe, and answers `[wanted.len(), vocab]` logits of the rows `wanted`.
    pub(super) fn forward<'w>(
        &self,
        workspace: &'w mut Workspace,
        tokens: &[u32],
        segments: &[Segment<'_>],
        wanted: &[usize],
    ) -> &'w [f32] {
        let Workspace { caches, activations } = workspace;
        let hidden = self.norm.len();
        let residual = sized(&mut activations.residual, tokens.len() * hidden);
        for (token, row) in tokens.iter().zip(residual.chunks_exact_mut(hidden)) {
            self.embedding.read_row(*token as usize, row);
        }
        for (layer, cache) in self.layers.iter().zip(caches) {
            self.attend(layer, cache, segments, activations);
            self.feed_forward(layer, activations);
        }
        if self.draft.is_some() {
            let len = activations.residual.len();
            let all = sized(&mut activations.hidden, len);
            rms_norm(&self.pool, &activations.residual, &self.norm, self.eps, all);
        }
        self.head(&self.norm, wanted, activations)
    }

    pub(super) fn attend(
        &self,
        layer: &Layer,
        cache: &mut LayerCache,
        segments: &[Segment<'_>],
        a: &mut Activations,
    ) {
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
        layer.output.multiply_add(&self.pool, attended, &mut a.residual);
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

    pub(super) fn feed_forward(&self, layer: &Layer, a: &mut Activations) {
        rms_norm(&self.pool, &a.residual, &layer.post_norm, self.eps, &mut a.normed);
        layer.feed_forward.forward(&self.pool, &a.normed, &mut a.feed_forward, &mut a.residual);
    }

    /// Logits of the rows `wanted` of the residual stream, after a norm.
    pub(super) fn head<'a>(&self, norm: &[f32], wanted: &[usize], a: &'a mut Activations) -> &'a [f32] {
        let hidden = self.norm.len();
        let head: &Matrix = self.head.as_ref().unwrap_or(&self.embedding);
        let normed = sized(&mut a.normed, wanted.len() * hidden);
        for (row, normed) in wanted.iter().zip(normed.chunks_exact_mut(hidden)) {
            rms_norm_row(&a.residual[row * hidden..][..hidden], norm, self.eps, normed);
        }
        let logits = sized(&mut a.logits, wanted.len() * head.outputs());
        head.multiply(&self.pool, normed, logits);
        logits
    }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
