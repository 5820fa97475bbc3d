//! The absorb path: the cache holds one latent row per token, `[c | k_rope]`, that every query head reads.
//!
//! Queries move into the latent space by `W_UKᵀ`, the weighted latents out of it by `W_UV`, group by group: the
//! weights are never expanded to all heads, and no key or value ever exists. The value of a token is the first r
//! channels of its latent row.

use gqla_model::{AttentionShape, CachedToken};

use super::{
    Attention, LatentDims, LayerCache, Scratch, Segment, UpProjection,
    cache::{Place, Run},
    expect_rows,
    flash::{HeadSet, KeyPart, Keys, Values, attend},
    sized,
};
use crate::{
    Matrix, MatrixError, Pool, WeightRows,
    gemm::RowMap,
    matrix::{Operands, multiply_each},
};

/// Attention over cached latents.
pub struct Absorb {
    dims: LatentDims,
    /// `W_UKᵀ` of every group, `[r, d_nope]`.
    into_latent: Vec<Matrix>,
    /// `W_UV` of every group, `[d_v, r]`.
    out_of_latent: Vec<Matrix>,
}

impl Absorb {
    /// Packs the up-projections of one layer.
    pub fn new(shape: &AttentionShape, up: UpProjection<'_>) -> Result<Self, MatrixError> {
        let dims = LatentDims::of(shape);
        let LatentDims { groups, nope, value, rank, .. } = dims;
        let (rows, width) = (up.0.len() / rank, nope + value);
        if rows != groups * width || !up.0.len().is_multiple_of(rank) {
            return Err(MatrixError::Rows { rows, expected: groups * width });
        }
        let key_up = |group: usize| Matrix::stack(&[transpose(up.0, group * width, nope, rank).rows()], nope);
        let value_up = |group: usize| {
            let rows = up.0.range((group * width + nope) * rank, value * rank);
            expect_rows(Matrix::stack(&[rows], rank)?, value)
        };
        Ok(Self {
            dims,
            into_latent: (0..groups).map(key_up).collect::<Result<_, _>>()?,
            out_of_latent: (0..groups).map(value_up).collect::<Result<_, _>>()?,
        })
    }

    /// The same attention with its scores multiplied by `factor` besides, as scaled rotary embeddings want.
    pub fn with_score_factor(mut self, factor: f32) -> Self {
        self.dims.scale *= factor;
        self
    }

    /// As [`PerGroup::with_bf16_products`](super::PerGroup::with_bf16_products), of absorbed queries.
    pub fn with_bf16_products(mut self, wanted: bool) -> Self {
        self.dims.bf16_products = wanted;
        self
    }

    /// `q~ = [W_UKᵀ q_nope | q_rope]` for every head, `[rows, H, r + d_rope]`.
    fn absorb_queries(&self, pool: &Pool, projected: &[f32], rows: usize, absorbed: &mut [f32]) {
        let d = &self.dims;
        let (query, latent) = (d.query(), d.rank + d.rope);
        for (row, absorbed) in absorbed.chunks_exact_mut(d.heads * latent).enumerate() {
            let heads = projected[row * d.projected_width()..][..d.heads * query].chunks_exact(query);
            for (q, absorbed) in heads.zip(absorbed.chunks_exact_mut(latent)) {
                absorbed[d.rank..].copy_from_slice(&q[d.nope..]);
            }
        }
        let target = absorbed.as_mut_ptr();
        let into = |(group, matrix)| {
            let head: usize = group * d.per_group;
            let operands = Operands {
                x: projected[head * query..].as_ptr(),
                x_rows: RowMap { inner: d.per_group, stride: query, outer: d.projected_width() },
                y: target.wrapping_add(head * latent),
                y_rows: RowMap { inner: d.per_group, stride: latent, outer: d.heads * latent },
                rows: rows * d.per_group,
                accumulate: false,
            };
            (matrix, operands)
        };
        let products: Vec<_> = self.into_latent.iter().enumerate().map(into).collect();
        // SAFETY: rows of `projected` and `absorbed` were sized by the caller; groups write different heads.
        unsafe { multiply_each(pool, &products) }
    }

    /// `o = W_UV u` for every head.
    fn leave_latent(&self, pool: &Pool, means: &[f32], rows: usize, out: &mut [f32]) {
        let d = &self.dims;
        let out = out.as_mut_ptr();
        let leave = |(group, matrix)| {
            let head: usize = group * d.per_group;
            let operands = Operands {
                x: means[head * d.rank..].as_ptr(),
                x_rows: RowMap { inner: d.per_group, stride: d.rank, outer: d.heads * d.rank },
                y: out.wrapping_add(head * d.value),
                y_rows: RowMap { inner: d.per_group, stride: d.value, outer: d.heads * d.value },
                rows: rows * d.per_group,
                accumulate: false,
            };
            (matrix, operands)
        };
        let products: Vec<_> = self.out_of_latent.iter().enumerate().map(leave).collect();
        // SAFETY: `out` holds every row by the caller's check; groups write different heads.
        unsafe { multiply_each(pool, &products) }
    }

    fn store(&self, cache: &mut LayerCache, segments: &[Segment<'_>], projected: &[f32]) {
        let d = &self.dims;
        let layout = self.rows();
        for (row, at) in segments.iter().flat_map(Segment::places) {
            let source = &projected[row * d.projected_width() + d.latent_offset()..][..layout.width()];
            layout.store(cache, at, source);
        }
    }

    fn rows(&self) -> LatentRows {
        LatentRows { rank: self.dims.rank, rope: self.dims.rope }
    }
}

/// How latent rows lie in a cache block: token by token, `[c | k_rope]`.
#[derive(Clone, Copy)]
pub(super) struct LatentRows {
    pub rank: usize,
    pub rope: usize,
}

impl LatentRows {
    pub fn width(&self) -> usize {
        self.rank + self.rope
    }

    pub fn token(&self) -> CachedToken {
        CachedToken { elements: self.width() as u64, parts: 2 }
    }

    fn runs(&self, at: Place) -> [Run; 2] {
        let start = at.token * self.width();
        [Run::aside(0, start), Run::aside(1, start + self.rank)]
    }

    pub fn store(&self, cache: &mut LayerCache, at: Place, row: &[f32]) {
        let (latent, rope) = row.split_at(self.rank);
        self.runs(at).into_iter().zip([latent, rope]).for_each(|(run, part)| cache.write(at, run, part));
    }

    pub fn load(&self, cache: &LayerCache, at: Place, row: &mut [f32]) {
        let (latent, rope) = row.split_at_mut(self.rank);
        self.runs(at).into_iter().zip([latent, rope]).for_each(|(run, part)| cache.read(at, run, part));
    }
}

/// A transposed copy of rows, in the format they came in.
enum Transposed {
    F32(Vec<f32>),
    Bf16(Vec<u8>),
}

impl Transposed {
    fn rows(&self) -> WeightRows<'_> {
        match self {
            Self::F32(values) => WeightRows::F32(values),
            Self::Bf16(bytes) => WeightRows::Bf16(bytes),
        }
    }
}

/// Rows `first .. first + rows` of a matrix of `columns`, as `[columns, rows]`.
fn transpose(weights: WeightRows<'_>, first: usize, rows: usize, columns: usize) -> Transposed {
    let indices =
        (0..columns).flat_map(|column| (first..first + rows).map(move |row| row * columns + column));
    match weights {
        WeightRows::F32(values) => Transposed::F32(indices.map(|i| values[i]).collect()),
        WeightRows::Bf16(bytes) => {
            Transposed::Bf16(indices.flat_map(|i| [bytes[2 * i], bytes[2 * i + 1]]).collect())
        }
    }
}

impl Attention for Absorb {
    fn cached_token(&self) -> CachedToken {
        self.rows().token()
    }

    fn projected_width(&self) -> usize {
        self.dims.projected_width()
    }

    fn output_width(&self) -> usize {
        self.dims.heads * self.dims.value
    }

    fn scratch_elements(&self) -> usize {
        self.dims.heads * (2 * self.dims.rank + self.dims.rope)
    }

    fn forward(
        &self,
        pool: &Pool,
        cache: &mut LayerCache,
        segments: &[Segment<'_>],
        projected: &[f32],
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let d = &self.dims;
        let rows = projected.len() / d.projected_width();
        cache.check(segments, self.cached_token(), rows);
        assert_eq!(out.len(), rows * self.output_width(), "out holds every row");
        let absorbed = sized(&mut scratch.first, rows * d.heads * (d.rank + d.rope));
        self.absorb_queries(pool, projected, rows, absorbed);
        self.store(cache, segments, projected);
        self.attend(pool, cache, segments, projected, scratch, out);
        self.leave_latent(pool, &scratch.second, rows, out);
    }

    fn attend(
        &self,
        pool: &Pool,
        cache: &LayerCache,
        segments: &[Segment<'_>],
        projected: &[f32],
        scratch: &mut Scratch,
        _: &mut [f32],
    ) {
        let d = &self.dims;
        let rows = projected.len() / d.projected_width();
        let latent = d.rank + d.rope;
        cache.check(segments, self.cached_token(), rows);
        let absorbed = sized(&mut scratch.first, rows * d.heads * latent);
        let means = sized(&mut scratch.second, rows * d.heads * d.rank);
        let heads = HeadSet {
            keys: Keys::Rows(
                [
                    KeyPart { query: 0, dim: d.rank, block: 0, part: 0 },
                    KeyPart { query: d.rank, dim: d.rope, block: d.rank, part: 1 },
                ],
                latent,
            ),
            values: Values { block: 0, stride: latent, strip: d.rank, dim: d.rank, part: 0 },
            heads: d.heads,
            q: absorbed.as_ptr(),
            q_rows: RowMap { inner: d.heads, stride: latent, outer: d.heads * latent },
            out: means.as_mut_ptr(),
            out_rows: RowMap { inner: d.heads, stride: d.rank, outer: d.heads * d.rank },
        };
        // SAFETY: the buffers were sized for every row above and segments write different rows.
        unsafe { attend(pool, cache, segments, &mut scratch.partials, &[heads], d.terms(4)) }
    }
}
