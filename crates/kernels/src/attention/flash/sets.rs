//! Where keys, values and queries of heads that attend to the same lie.

use std::ops::Range;

use super::products::Stored;
use crate::{
    attention::cache::BLOCK_TOKENS,
    gemm::RowMap,
    simd::{Isa, isa},
};

/// Tokens of keys, or channels of values, that lie side by side in a cache block: as many as are multiplied at each step, so
/// that a step's numbers come right after those of the one before and memory is read in order.
pub(in crate::attention) fn strip() -> usize {
    match isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => 64,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => 16,
        Isa::Portable => 16,
    }
}

/// A part of a key: `dim` channels that meet the query's channels from `query` on, at `block` in a cache block, with the
/// scales of the token's part `part`.
#[derive(Clone, Copy, Default)]
pub(in crate::attention) struct KeyPart {
    pub query: usize,
    pub dim: usize,
    pub block: usize,
    pub part: usize,
}

/// How keys lie in a block.
#[derive(Clone, Copy)]
pub(in crate::attention) enum Keys {
    /// Strips of [`strip`] tokens one after the other, each channel by channel or two channels together; two parts
    /// are summed.
    Columns([KeyPart; 2]),
    /// Token by token in rows of so many numbers; the second part continues the first, in the row and in the query.
    Rows([KeyPart; 2], usize),
}

/// Where values lie in a block: strips of channels one after the other, each token by token, or beside columns two tokens
/// together, with the scales of the token's part `part`.
#[derive(Clone, Copy)]
pub(in crate::attention) struct Values {
    pub block: usize,
    /// From one token of a strip to the next.
    pub stride: usize,
    /// Channels of a strip.
    pub strip: usize,
    pub dim: usize,
    pub part: usize,
}

/// Query heads that read the same keys and values. Sets of one call differ in where things lie only.
#[derive(Clone, Copy)]
pub(in crate::attention) struct HeadSet {
    pub keys: Keys,
    pub values: Values,
    /// Heads of the set; rows are ordered by token, then head.
    pub heads: usize,
    /// First query channel of the set in row 0.
    pub q: *const f32,
    pub q_rows: RowMap,
    /// First output channel of the set in row 0.
    pub out: *mut f32,
    pub out_rows: RowMap,
}

// SAFETY: the pointers are used by `attend` only, whose caller vouches for them; tasks write disjoint rows.
unsafe impl Sync for HeadSet {}

impl HeadSet {
    /// Numbers of room that a row's rounded query takes: what one of each part is worth, then the parts two by two.
    pub(super) fn rounded_query(&self) -> usize {
        let (Keys::Columns([first, second]) | Keys::Rows([first, second], _)) = self.keys;
        2 + first.dim / 2 + second.dim / 2
    }

    /// Which numbers of a block the set reads; of a key that others read too only where asked `with_shared`.
    #[inline(always)]
    pub(super) fn stretch(&self, with_shared: bool) -> Range<usize> {
        match self.keys {
            Keys::Columns([own, shared]) => {
                let before = with_shared && shared.block + BLOCK_TOKENS * shared.dim == own.block;
                let first = if before { shared.block } else { own.block };
                first..self.values.block + BLOCK_TOKENS * self.values.dim
            }
            Keys::Rows([first, _], stride) => first.block..first.block + BLOCK_TOKENS * stride,
        }
    }

    /// Numbers of room that a block's values take where they are packed: two narrow ones in each.
    pub(super) fn packed_values(&self) -> usize {
        match self.keys {
            Keys::Columns(_) => 0,
            Keys::Rows(..) => BLOCK_TOKENS * self.values.dim / 2,
        }
    }
}

impl KeyPart {
    /// Parts of rows: both are one where numbers have no scales.
    pub(super) fn of_rows<E: Stored>([first, second]: [Self; 2]) -> [Self; 2] {
        if E::SCALED {
            [first, second]
        } else {
            [Self { dim: first.dim + second.dim, ..first }, Self::default()]
        }
    }
}
