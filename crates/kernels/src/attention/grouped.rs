//! How keys and values of groups lie in a cache block.
//!
//! `[shared rope key | G times key, value]`, in the order they are read, so that a block is one stretch of memory: in
//! stretches that each group skipped through, decoding was measured to read bf16 at two thirds of the rate and less. Keys
//! lie channel by channel, `[64 tokens / S][d][S tokens]`, because a query meets many tokens at once; values token by token,
//! `[d_v / S][64 tokens][S channels]`, because an output gathers many channels at once. [`S`](strip) is what the machine
//! multiplies at a step; values that do not fill whole strips are one. In narrow formats two channels, and two tokens, are
//! side by side, as processors multiply them: `[.. d / 2][S tokens][2]` and `[.. 32 pairs of tokens][S channels][2]`; a key of
//! an odd number of channels lies as in f32. The rope key exists once.

use gqla_model::CachedToken;

use super::{
    cache::{BLOCK_TOKENS, LayerCache, Place, Run},
    flash::{HeadSet, KeyPart, Keys, Values, strip},
};
use crate::gemm::RowMap;

/// Widths of one token's parts in a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupedLayout {
    pub groups: usize,
    /// Channels of a group's own key.
    pub key: usize,
    /// Channels of the key all groups share; 0 for plain attention.
    pub rope: usize,
    /// Channels of a group's value.
    pub value: usize,
}

impl GroupedLayout {
    pub fn token(&self) -> CachedToken {
        let elements = self.groups * (self.key + self.value) + self.rope;
        let parts = 2 * self.groups + usize::from(self.rope > 0);
        CachedToken { elements: elements as u64, parts: parts as u64 }
    }

    fn rope_part(&self) -> usize {
        2 * self.groups
    }

    fn key_offset(&self, group: usize) -> usize {
        BLOCK_TOKENS * (self.rope + group * (self.key + self.value))
    }

    fn value_offset(&self, group: usize) -> usize {
        self.key_offset(group) + BLOCK_TOKENS * self.key
    }

    /// Channels of a value that lie side by side.
    fn value_strip(&self) -> usize {
        if self.value.is_multiple_of(strip()) { strip() } else { self.value }
    }

    /// Stores one token's key and value of a group.
    pub fn store(&self, cache: &mut LayerCache, at: Place, group: usize, key: &[f32], value: &[f32]) {
        store_key(cache, at, 2 * group, self.key_offset(group), key);
        let (part, pack, strip) = (2 * group + 1, cache.pack(), self.value_strip());
        let offset = self.value_offset(group) + at.token / pack * pack * strip + at.token % pack;
        cache.write(at, Run { part, offset, aside: strip, apart: pack, step: BLOCK_TOKENS * strip }, value);
    }

    /// Stores one token's shared rope key.
    pub fn store_rope(&self, cache: &mut LayerCache, at: Place, rope: &[f32]) {
        store_key(cache, at, self.rope_part(), 0, rope);
    }

    /// The heads of one group; `heads` are consecutive in queries of `query` channels and outputs of `value`.
    pub fn head_set(&self, group: usize, heads: usize, q: QueryRows, out: *mut f32) -> HeadSet {
        let output_width = self.groups * heads * self.value;
        HeadSet {
            keys: Keys::Columns([
                KeyPart { query: 0, dim: self.key, block: self.key_offset(group), part: 2 * group },
                KeyPart { query: self.key, dim: self.rope, block: 0, part: self.rope_part() },
            ]),
            values: Values {
                block: self.value_offset(group),
                stride: self.value_strip(),
                strip: self.value_strip(),
                dim: self.value,
                part: 2 * group + 1,
            },
            heads,
            q: q.rows[group * heads * q.channels..].as_ptr(),
            q_rows: RowMap { inner: heads, stride: q.channels, outer: q.width },
            out: out.wrapping_add(group * heads * self.value),
            out_rows: RowMap { inner: heads, stride: self.value, outer: output_width },
        }
    }
}

/// Queries at the start of projected rows.
#[derive(Clone, Copy)]
pub(super) struct QueryRows<'a> {
    pub rows: &'a [f32],
    /// Width of a projected row.
    pub width: usize,
    /// Channels of a head.
    pub channels: usize,
}

fn store_key(cache: &mut LayerCache, at: Place, part: usize, first: usize, channels: &[f32]) {
    let pack = if channels.len().is_multiple_of(cache.pack()) { cache.pack() } else { 1 };
    let strip = strip();
    let offset = first + at.token / strip * strip * channels.len() + at.token % strip * pack;
    cache.write(at, Run { part, offset, aside: pack, apart: 1, step: strip * pack }, channels);
}
