//! Ordinary grouped-query attention of models that were not converted: its own keys and values, one path.

use gqla_model::CachedToken;

use super::{
    Attention, LayerCache, Scratch, Segment,
    flash::{Terms, attend},
    grouped::{GroupedLayout, QueryRows},
};
use crate::Pool;

/// Attention over cached keys and values of `groups` groups of `head_dim` channels.
pub struct Plain {
    heads: usize,
    head_dim: usize,
    layout: GroupedLayout,
    bf16_products: bool,
}

impl Plain {
    /// `groups` must divide `heads`.
    pub fn new(heads: usize, groups: usize, head_dim: usize) -> Self {
        assert!(groups > 0 && heads.is_multiple_of(groups), "{groups} groups divide {heads} heads");
        let layout = GroupedLayout { groups, key: head_dim, rope: 0, value: head_dim };
        Self { heads, head_dim, layout, bf16_products: false }
    }

    /// The same attention with queries and softmax weights rounded to bf16 where the cache is bf16 and the processor multiplies
    /// bf16 ([`bf16_unit`](crate::bf16_unit)).
    pub fn with_bf16_products(mut self, wanted: bool) -> Self {
        self.bf16_products = wanted;
        self
    }

    fn store(&self, cache: &mut LayerCache, segments: &[Segment<'_>], projected: &[f32]) {
        let (groups, width) = (self.layout.groups, self.projected_width());
        for (row, at) in segments.iter().flat_map(Segment::places) {
            let kv = &projected[row * width + self.heads * self.head_dim..(row + 1) * width];
            let (keys, values) = kv.split_at(groups * self.head_dim);
            let pairs = keys.chunks_exact(self.head_dim).zip(values.chunks_exact(self.head_dim));
            for (group, (key, value)) in pairs.enumerate() {
                self.layout.store(cache, at, group, key, value);
            }
        }
    }
}

impl Attention for Plain {
    fn cached_token(&self) -> CachedToken {
        self.layout.token()
    }

    fn projected_width(&self) -> usize {
        (self.heads + 2 * self.layout.groups) * self.head_dim
    }

    fn output_width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn scratch_elements(&self) -> usize {
        0
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
        cache.check(segments, self.cached_token(), projected.len() / self.projected_width());
        self.store(cache, segments, projected);
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
        let rows = projected.len() / self.projected_width();
        cache.check(segments, self.cached_token(), rows);
        assert_eq!(out.len(), rows * self.output_width(), "out holds every row");
        let q = QueryRows { rows: projected, width: self.projected_width(), channels: self.head_dim };
        let (groups, out) = (self.layout.groups, out.as_mut_ptr());
        let heads = self.heads / groups;
        let sets: Vec<_> = (0..groups).map(|group| self.layout.head_set(group, heads, q, out)).collect();
        let scale = (1.0 / (self.head_dim as f64).sqrt()) as f32;
        let terms = Terms { scale, min_rows: heads, bf16_products: self.bf16_products };
        // SAFETY: lengths were checked above; groups write different columns, segments different rows.
        unsafe { attend(pool, cache, segments, &mut scratch.partials, &sets, terms) }
    }
}
