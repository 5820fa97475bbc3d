//! Attention over a paged cache: one interface, the two decode paths and plain GQA behind it.
//!
//! Per layer an implementation is given the projected rows of all tokens of a step, stores what its path caches and
//! attends. [`PerGroup`] caches per-group keys and values with the shared rope key once; [`Absorb`] caches one latent
//! row and never materialises a key or a value; [`Plain`] is ordinary grouped-query attention. All three end in the
//! same streaming softmax (`flash`).
//!
//! A cache stores f32, bf16, or int8 with a scale for each token's part (a group's key, its value, the rotary key, the
//! latent). Scales multiply scores and softmax weights, never single numbers. Keys and values of groups that are cached in
//! int8 meet queries and weights of 16 bits where the processor multiplies pairs of these, f32 elsewhere. With normally distributed queries, keys and
//! values, outputs over an int8 cache are within a relative root mean square error of 1.2e-2 of float64 along every path;
//! a part with few channels that stand out loses more, since one scale serves it.

mod absorb;
mod cache;
mod flash;
mod grouped;
mod per_group;
mod plain;
#[cfg(test)]
mod tests;

use gqla_model::AttentionShape;

pub use absorb::Absorb;
pub use cache::{BLOCK_TOKENS, LayerCache, Segment};
pub use gqla_model::{CacheFormat, CachedToken};
pub use per_group::PerGroup;
pub use plain::Plain;

use crate::{
    Matrix, MatrixError, Pool, WeightRows,
    unit::{Narrow, Unit},
};
use flash::Terms;

/// The unit of the processor in which attention multiplies over a cache, where a layer's dimensions fit it: `avx512-bf16` or
/// `avx512-vnni`. `None` is f32.
pub fn unit(cache: CacheFormat, bf16_products: bool) -> Option<&'static str> {
    let numbers = match cache {
        CacheFormat::Bf16 if bf16_products => Narrow::Bf16,
        CacheFormat::Int8 => Narrow::Int8,
        CacheFormat::F32 | CacheFormat::Bf16 => return None,
    };
    Unit::in_use(numbers).map(|_| Unit::Avx512.name(numbers))
}

/// Attention of one layer along one path.
pub trait Attention: Send + Sync {
    /// What one token takes in this layer's cache.
    fn cached_token(&self) -> CachedToken;

    /// Width of a projected row.
    fn projected_width(&self) -> usize;

    /// Width of an output row: heads times value dimension.
    fn output_width(&self) -> usize;

    /// Numbers a call keeps in its [`Scratch`] for each row.
    fn scratch_elements(&self) -> usize;

    /// Stores the tokens of `segments` in `cache`, then attends.
    ///
    /// `projected` is `[rows, projected_width]`, already turned by the rotary embedding: `[q | c | k_rope]` for the
    /// latent paths (each head of q as `[nope | rope]`), `[q | k | v]` for plain attention. `out` is
    /// `[rows, output_width]`. Segments must name rows of `projected`, cover their tokens with blocks of `cache`, and
    /// own those blocks.
    fn forward(
        &self,
        pool: &Pool,
        cache: &mut LayerCache,
        segments: &[Segment<'_>],
        projected: &[f32],
        scratch: &mut Scratch,
        out: &mut [f32],
    );

    /// The part of [`Self::forward`] that reads the cache, alone, so that it can be timed: nothing is projected or
    /// stored, and queries that `forward` would have made are whatever `scratch` holds.
    fn attend(
        &self,
        pool: &Pool,
        cache: &LayerCache,
        segments: &[Segment<'_>],
        projected: &[f32],
        scratch: &mut Scratch,
        out: &mut [f32],
    );
}

/// Buffers that layers reuse; their contents never outlive a call.
#[derive(Default)]
pub struct Scratch {
    first: Vec<f32>,
    second: Vec<f32>,
    /// What chunks of tokens leave before they are merged.
    partials: Vec<f32>,
}

impl Scratch {
    /// Overwrites everything, so that a test can show that nothing is read from an earlier call.
    pub fn poison(&mut self) {
        self.first.fill(f32::NAN);
        self.second.fill(f32::NAN);
        self.partials.fill(f32::NAN);
    }
}

/// Makes `buffer` hold `len` numbers and lends them.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Offsets of the parts of a latent layer's rows.
#[derive(Clone, Copy, Debug)]
struct LatentDims {
    heads: usize,
    groups: usize,
    per_group: usize,
    nope: usize,
    rope: usize,
    value: usize,
    rank: usize,
    scale: f32,
    bf16_products: bool,
}

impl LatentDims {
    fn of(shape: &AttentionShape) -> Self {
        let (nope, rope) = (shape.qk_nope_head_dim as usize, shape.qk_rope_head_dim as usize);
        Self {
            heads: shape.num_attention_heads as usize,
            groups: shape.num_key_value_heads as usize,
            per_group: shape.heads_per_group() as usize,
            nope,
            rope,
            value: shape.v_head_dim as usize,
            rank: shape.kv_lora_rank as usize,
            scale: (1.0 / ((nope + rope) as f64).sqrt()) as f32,
            bf16_products: false,
        }
    }

    /// Width of one head's query.
    fn query(&self) -> usize {
        self.nope + self.rope
    }

    /// Where the latent starts in a projected row.
    fn latent_offset(&self) -> usize {
        self.heads * self.query()
    }

    fn projected_width(&self) -> usize {
        self.latent_offset() + self.rank + self.rope
    }

    /// What attention does with scores and weights where so many rows are worth a thread.
    fn terms(&self, min_rows: usize) -> Terms {
        Terms { scale: self.scale, min_rows, bf16_products: self.bf16_products }
    }
}

/// The up-projections of one latent layer, `kv_b_proj` `[G (d_nope + d_v), r]`: rows of group g are `W_UK` then
/// `W_UV`. Both paths are built from these same rows.
#[derive(Clone, Copy, Debug)]
pub struct UpProjection<'a>(pub WeightRows<'a>);

/// Checks that a matrix has the rows its place needs.
fn expect_rows(matrix: Matrix, rows: usize) -> Result<Matrix, MatrixError> {
    if matrix.outputs() == rows {
        Ok(matrix)
    } else {
        Err(MatrixError::Rows { rows: matrix.outputs(), expected: rows })
    }
}
