//! The GQA path: per-group keys and values are made from the latent once and cached; the latent is forgotten.

use gqla_model::{AttentionShape, CachedToken};

use super::{
    Attention, BLOCK_TOKENS, LatentDims, LayerCache, Scratch, Segment, UpProjection,
    absorb::LatentRows,
    cache::Place,
    expect_rows,
    flash::attend,
    grouped::{GroupedLayout, QueryRows},
    sized,
};
use crate::{
    Matrix, MatrixError, Pool,
    gemm::RowMap,
    matrix::{Operands, multiply_each},
};

/// Attention over cached per-group keys and values.
pub struct PerGroup {
    dims: LatentDims,
    layout: GroupedLayout,
    /// `[G (d_nope + d_v), r]`
    up: Matrix,
}

impl PerGroup {
    /// Packs the up-projections of one layer.
    pub fn new(shape: &AttentionShape, up: UpProjection<'_>) -> Result<Self, MatrixError> {
        let dims = LatentDims::of(shape);
        let LatentDims { groups, nope, value, rope, rank, .. } = dims;
        let up = expect_rows(Matrix::stack(&[up.0], rank)?, groups * (nope + value))?;
        Ok(Self { dims, layout: GroupedLayout { groups, key: nope, rope, value }, up })
    }

    /// The same attention with its scores multiplied by `factor` besides, as scaled rotary embeddings want.
    pub fn with_score_factor(mut self, factor: f32) -> Self {
        self.dims.scale *= factor;
        self
    }

    /// The same attention with queries and softmax weights rounded to bf16 where the cache is bf16 and the processor multiplies
    /// bf16 ([`bf16_unit`](crate::bf16_unit)).
    pub fn with_bf16_products(mut self, wanted: bool) -> Self {
        self.dims.bf16_products = wanted;
        self
    }

    fn store(&self, cache: &mut LayerCache, segments: &[Segment<'_>], projected: &[f32], kv: &[f32]) {
        let d = &self.dims;
        let rope_offset = d.latent_offset() + d.rank;
        let places = segments.iter().flat_map(Segment::places);
        for (row, at) in places {
            let kv = &kv[row * self.up.outputs()..][..self.up.outputs()];
            let rope = &projected[row * d.projected_width() + rope_offset..][..d.rope];
            self.store_token(cache, at, kv, rope);
        }
    }

    fn store_token(&self, cache: &mut LayerCache, at: Place, kv: &[f32], rope: &[f32]) {
        for (group, kv) in kv.chunks_exact(self.dims.nope + self.dims.value).enumerate() {
            let (key, value) = kv.split_at(self.dims.nope);
            self.layout.store(cache, at, group, key, value);
        }
        self.layout.store_rope(cache, at, rope);
    }

    /// Fills `blocks` of `cache` from the same blocks of the absorb path's cache of this layer: the keys and values
    /// are the ones this path would have made of the latents as `latents` holds them: bit for bit where it is f32, else of
    /// numbers that were rounded once, and are rounded once more where `cache` is not f32.
    ///
    /// # Panics
    /// When a cache is of another layer, or lacks one of the blocks.
    pub fn expand(&self, pool: &Pool, latents: &LayerCache, cache: &mut LayerCache, blocks: &[u32]) {
        let d = &self.dims;
        let layout = LatentRows { rank: d.rank, rope: d.rope };
        let latent = layout.width();
        latents.check_blocks(blocks, layout.token());
        cache.check_blocks(blocks, self.layout.token());
        let mut rows = vec![0.0; BLOCK_TOKENS * latent];
        let mut kv = vec![0.0; BLOCK_TOKENS * self.up.outputs()];
        for block in blocks.iter().copied() {
            for (token, row) in rows.chunks_exact_mut(latent).enumerate() {
                layout.load(latents, Place { block, token }, row);
            }
            let expand = Operands {
                x: rows.as_ptr(),
                x_rows: RowMap::even(latent),
                y: kv.as_mut_ptr(),
                y_rows: RowMap::even(self.up.outputs()),
                rows: BLOCK_TOKENS,
                accumulate: false,
            };
            // SAFETY: `rows` holds a block of latent rows, `kv` a row for each.
            unsafe { multiply_each(pool, &[(&self.up, expand)]) }
            let tokens = rows.chunks_exact(latent).zip(kv.chunks_exact(self.up.outputs()));
            for (token, (row, kv)) in tokens.enumerate() {
                self.store_token(cache, Place { block, token }, kv, &row[d.rank..]);
            }
        }
    }
}

impl Attention for PerGroup {
    fn cached_token(&self) -> CachedToken {
        self.layout.token()
    }

    fn projected_width(&self) -> usize {
        self.dims.projected_width()
    }

    fn output_width(&self) -> usize {
        self.dims.heads * self.dims.value
    }

    fn scratch_elements(&self) -> usize {
        self.up.outputs()
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
        let kv = sized(&mut scratch.first, rows * self.up.outputs());
        let expand = Operands {
            x: projected[d.latent_offset()..].as_ptr(),
            x_rows: RowMap::even(d.projected_width()),
            y: kv.as_mut_ptr(),
            y_rows: RowMap::even(self.up.outputs()),
            rows,
            accumulate: false,
        };
        // SAFETY: every row of `projected` holds a latent, `kv` a row for each.
        unsafe { multiply_each(pool, &[(&self.up, expand)]) }
        self.store(cache, segments, projected, kv);
        self.attend(pool, cache, segments, projected, scratch, out);
    }

    fn attend(
        &self,
        pool: &Pool,
        cache: &LayerCache,
        segments: &[Segment<'_>],
        projected: &[f32],
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let d = &self.dims;
        let rows = projected.len() / d.projected_width();
        cache.check(segments, self.cached_token(), rows);
        assert_eq!(out.len(), rows * self.output_width(), "out holds every row");
        let q = QueryRows { rows: projected, width: d.projected_width(), channels: d.query() };
        let out = out.as_mut_ptr();
        let sets: Vec<_> =
            (0..d.groups).map(|group| self.layout.head_set(group, d.per_group, q, out)).collect();
        // SAFETY: lengths were checked above; groups write different columns, segments different rows.
        unsafe { attend(pool, cache, segments, &mut scratch.partials, &sets, d.terms(d.per_group)) }
    }
}
