//! One step through the layers.

use gqla_kernels::{
    Matrix,
    attention::{Attention, CacheFormat, LayerCache, Scratch, Segment},
    ops::{rms_norm, rms_norm_row, swiglu},
};

use gqla_model::DecodePath;

use super::{
    comm::{Alone, Comm, CommError},
    model::{Layer, Model},
};
use crate::blocks::BlockCopy;

/// Everything a step writes: the caches, and activations that no later step reads; and the way to the other ranks.
pub(super) struct Workspace {
    caches: Vec<LayerCache>,
    activations: Activations,
    pub comm: Box<dyn Comm>,
}

#[derive(Default)]
struct Activations {
    /// The residual stream, `[rows, hidden]`.
    residual: Vec<f32>,
    normed: Vec<f32>,
    projected: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    activated: Vec<f32>,
    logits: Vec<f32>,
    /// This rank's part of a sum over ranks.
    partial: Vec<f32>,
    scratch: Scratch,
}

impl Workspace {
    /// Caches of `blocks` blocks for every layer.
    pub fn new(model: &Model, blocks: usize, format: CacheFormat) -> Self {
        Self::of_rank(model, blocks, format, Box::new(Alone))
    }

    /// The same for a rank's part of a model.
    pub fn of_rank(model: &Model, blocks: usize, format: CacheFormat, comm: Box<dyn Comm>) -> Self {
        let cache = |layer: &Layer| LayerCache::new(blocks, layer.attention.kv_elements(), format);
        let caches = model.layers.iter().map(cache).collect();
        Self { caches, activations: Activations::default(), comm }
    }

    /// Bytes of the caches.
    #[cfg(test)]
    pub fn cache_bytes(&self) -> usize {
        self.caches.iter().map(|cache| cache.allocated_elements() * cache.format().bytes()).sum()
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

fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}

impl Model {
    /// Goes on along the GQA path: layer by layer, so that no more than one layer's cache exists twice. Blocks keep
    /// their numbers. Layers that were not made for it stay as they are.
    pub(super) fn expand(&mut self, workspace: &mut Workspace, blocks: &[u32]) {
        for (layer, cache) in self.layers.iter_mut().zip(&mut workspace.caches) {
            let Some(gqa) = layer.expanded.take() else { continue };
            let mut expanded = LayerCache::new(cache.blocks(), gqa.kv_elements(), cache.format());
            gqa.expand(&self.pool, cache, &mut expanded, blocks);
            *cache = expanded;
            layer.attention = Box::new(gqa);
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
        self.head(wanted, activations, &mut **comm)
    }

    /// Each rank has some rows of the embedding; the others add nothing to them.
    fn embed(&self, tokens: &[u32], residual: &mut [f32], comm: &mut dyn Comm) -> Result<(), CommError> {
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

    fn attend(
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
        let projected = sized(&mut a.projected, rows * layer.projection.outputs());
        layer.projection.multiply(&self.pool, &a.normed, projected);
        self.position(layer, segments, projected);
        let attended = sized(&mut a.attended, rows * layer.attention.output_width());
        layer.attention.forward(&self.pool, cache, segments, projected, &mut a.scratch, attended);
        add_over_ranks(&mut a.residual, &mut a.partial, comm, |sum| {
            layer.output.multiply_add(&self.pool, attended, sum);
        })
    }

    /// Norms the latents where the model has such a norm, and turns queries and keys.
    fn position(&self, layer: &Layer, segments: &[Segment<'_>], projected: &mut [f32]) {
        let width = layer.projection.outputs();
        for segment in segments {
            for i in 0..segment.rows {
                let row = &mut projected[(segment.first_row + i) * width..][..width];
                if let Some(norm) = &layer.latent_norm {
                    let latent = &mut row[norm.offset..][..norm.weight.len()];
                    let raw = latent.to_vec();
                    rms_norm_row(&raw, &norm.weight, norm.eps, latent);
                }
                for heads in &self.rotary {
                    for head in 0..heads.count {
                        let start = heads.offset + head * heads.stride;
                        self.rope.apply(&mut row[start..start + heads.dim], segment.start + i);
                    }
                }
            }
        }
    }

    fn feed_forward(&self, layer: &Layer, a: &mut Activations, comm: &mut dyn Comm) -> Result<(), CommError> {
        rms_norm(&self.pool, &a.residual, &layer.post_norm, self.eps, &mut a.normed);
        let rows = a.residual.len() / self.norm.len();
        let width = layer.down.inputs();
        let gate_up = sized(&mut a.gate_up, rows * 2 * width);
        layer.gate_up.multiply(&self.pool, &a.normed, gate_up);
        let activated = sized(&mut a.activated, rows * width);
        swiglu(&self.pool, gate_up, width, activated);
        add_over_ranks(&mut a.residual, &mut a.partial, comm, |sum| {
            layer.down.multiply_add(&self.pool, activated, sum);
        })
    }

    fn head<'a>(
        &self,
        wanted: &[usize],
        a: &'a mut Activations,
        comm: &mut dyn Comm,
    ) -> Result<&'a [f32], CommError> {
        let hidden = self.norm.len();
        let head: &Matrix = self.head.as_ref().unwrap_or(&self.embedding);
        let normed = sized(&mut a.normed, wanted.len() * hidden);
        for (row, normed) in wanted.iter().zip(normed.chunks_exact_mut(hidden)) {
            rms_norm_row(&a.residual[row * hidden..][..hidden], &self.norm, self.eps, normed);
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
