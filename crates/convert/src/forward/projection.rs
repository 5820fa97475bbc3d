//! How a layer turns normalised hidden states into queries, keys and values.

use super::{AttentionInputs, Linear, RopeTable};

/// What a projection yields for one sample.
#[derive(Clone, Debug)]
pub struct Projected {
    /// Inputs of attention.
    pub attention: AttentionInputs,
    /// `[tokens, width]`: the activations whose second moments conversion needs.
    pub observed: Vec<f32>,
}

/// A layer's attention up to the softmax.
pub trait Projection: Sync {
    /// Width of [`Projected::observed`].
    fn observed_width(&self) -> usize;

    /// Projects `x` `[tokens, D]`, token 0 at position 0.
    fn project(&self, x: &[f32], rope: &RopeTable) -> Projected;
}

/// Ordinary grouped-query attention with half-split RoPE; keys before RoPE are observed.
#[derive(Clone, Debug)]
pub struct PlainProjection {
    /// `[H d, D]`.
    pub q: Linear,
    /// `[G d, D]`.
    pub k: Linear,
    /// `[G d, D]`.
    pub v: Linear,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub groups: usize,
}

impl Projection for PlainProjection {
    fn observed_width(&self) -> usize {
        self.k.rows()
    }

    fn project(&self, x: &[f32], rope: &RopeTable) -> Projected {
        let head_dim = self.q.rows() / self.heads;
        let (mut queries, observed, values) = (self.q.apply(x), self.k.apply(x), self.v.apply(x));
        let mut keys = observed.clone();
        for (rows, width) in [(&mut queries, self.q.rows()), (&mut keys, self.k.rows())] {
            for (position, token) in rows.chunks_exact_mut(width).enumerate() {
                token.chunks_exact_mut(head_dim).for_each(|head| rope.turn_halves(position, head));
            }
        }
        let (heads, groups) = (self.heads, self.groups);
        let attention =
            AttentionInputs { queries, keys, values, heads, groups, key_dim: head_dim, value_dim: head_dim };
        Projected { attention, observed }
    }
}

/// Group-query latent attention in its per-group form; the latent is observed.
#[derive(Clone, Debug)]
pub struct LatentProjection {
    /// `[H (d_nope + d_rope), D]`.
    pub q: Linear,
    /// `[r + d_rope, D]`.
    pub kv_a: Linear,
    /// `[G (d_nope + d_v), r]`.
    pub kv_b: Linear,
    /// Query heads.
    pub heads: usize,
    /// Key/value groups.
    pub groups: usize,
    /// `d_rope`.
    pub rope_dim: usize,
}

impl Projection for LatentProjection {
    fn observed_width(&self) -> usize {
        self.kv_a.rows() - self.rope_dim
    }

    fn project(&self, x: &[f32], rope: &RopeTable) -> Projected {
        let (rank, key_dim) = (self.observed_width(), self.q.rows() / self.heads);
        let nope = key_dim - self.rope_dim;
        let value_dim = self.kv_b.rows() / self.groups - nope;
        let mut queries = self.q.apply(x);
        for (position, token) in queries.chunks_exact_mut(self.q.rows()).enumerate() {
            token.chunks_exact_mut(key_dim).for_each(|head| rope.turn_pairs(position, &mut head[nope..]));
        }
        let (mut observed, mut rotary) = (Vec::new(), Vec::new());
        for (position, token) in self.kv_a.apply(x).chunks_exact_mut(self.kv_a.rows()).enumerate() {
            let (latent, key) = token.split_at_mut(rank);
            rope.turn_pairs(position, key);
            observed.extend_from_slice(latent);
            rotary.extend_from_slice(key);
        }
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let expanded = self.kv_b.apply(&observed);
        for (token, rotary) in expanded.chunks_exact(self.kv_b.rows()).zip(rotary.chunks_exact(self.rope_dim))
        {
            for group in token.chunks_exact(nope + value_dim) {
                keys.extend_from_slice(&group[..nope]);
                keys.extend_from_slice(rotary);
                values.extend_from_slice(&group[nope..]);
            }
        }
        let (heads, groups) = (self.heads, self.groups);
        Projected {
            attention: AttentionInputs { queries, keys, values, heads, groups, key_dim, value_dim },
            observed,
        }
    }
}
