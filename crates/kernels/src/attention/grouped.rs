//! How keys and values of groups lie in a cache block.
//!
//! `[G keys | shared rope key | G values]`: keys as panels of sixteen tokens, because a query meets many tokens at
//! once; values token by token, because an output gathers many channels at once. The rope key exists once.

use gqla_model::CachedToken;

use super::{
    cache::{BLOCK_TOKENS, LayerCache, Place, Run},
    flash::{HeadSet, KeyPart, Keys, Values},
};
use crate::gemm::{PANEL, RowMap};

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
        BLOCK_TOKENS * group * self.key
    }

    fn rope_offset(&self) -> usize {
        self.key_offset(self.groups)
    }

    fn value_offset(&self, group: usize) -> usize {
        self.rope_offset() + BLOCK_TOKENS * (self.rope + group * self.value)
    }

    /// Stores one token's key and value of a group.
    pub fn store(&self, cache: &mut LayerCache, at: Place, group: usize, key: &[f32], value: &[f32]) {
        store_panel(cache, at, 2 * group, self.key_offset(group), key);
        let value_offset = self.value_offset(group) + at.token * self.value;
        cache.write(at, Run::aside(2 * group + 1, value_offset), value);
    }

    /// Stores one token's shared rope key.
    pub fn store_rope(&self, cache: &mut LayerCache, at: Place, rope: &[f32]) {
        store_panel(cache, at, self.rope_part(), self.rope_offset(), rope);
    }

    /// The heads of one group; `heads` are consecutive in queries of `query` channels and outputs of `value`.
    pub fn head_set(&self, group: usize, heads: usize, q: QueryRows, out: *mut f32) -> HeadSet {
        let output_width = self.groups * heads * self.value;
        HeadSet {
            keys: Keys::Panels([
                KeyPart { query: 0, dim: self.key, block: self.key_offset(group), part: 2 * group },
                KeyPart {
                    query: self.key,
                    dim: self.rope,
                    block: self.rope_offset(),
                    part: self.rope_part(),
                },
            ]),
            values: Values {
                block: self.value_offset(group),
                stride: self.value,
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

fn store_panel(cache: &mut LayerCache, at: Place, part: usize, panels: usize, channels: &[f32]) {
    let offset = panels + at.token / PANEL * PANEL * channels.len() + at.token % PANEL;
    cache.write(at, Run { part, offset, step: PANEL }, channels);
}
