//! Streaming softmax over cache blocks: the core all attention implementations share.
//!
//! A task holds up to [`MAX_ROWS`] query rows (tokens times heads that read the same keys) and visits the cache block
//! by block, keeping a running maximum and sum per row, so keys and values are read once for all its rows. Every row
//! meets the same blocks in the same order whatever else is in the task, and what it must not see adds an exact zero.

#![allow(clippy::needless_range_loop, reason = "a task's rows index several arrays side by side")]

use super::cache::{BLOCK_TOKENS, LayerCache, Numbers, Segment};
use crate::{
    Pool,
    gemm::{Element, RowMap},
    math::exp,
    simd::{Simd, dispatch},
};
use scores::{score_panels, score_rows};
use values::add_values;

/// Calls `$f::<S, E, R, N>(args, row)` for tiles of R rows.
macro_rules! for_tiles {
    ($rows:expr, $max:expr, $n:ident, $f:ident($($arg:expr),*)) => {{
        let mut row = 0;
        while row < $rows {
            let left = ($rows - row).min($max);
            match left {
                1 => $f::<S, E, 1, $n>($($arg),*, row),
                2 => $f::<S, E, 2, $n>($($arg),*, row),
                3 => $f::<S, E, 3, $n>($($arg),*, row),
                4 => $f::<S, E, 4, $n>($($arg),*, row),
                5 => $f::<S, E, 5, $n>($($arg),*, row),
                _ => $f::<S, E, 6, $n>($($arg),*, row),
            }
            row += left;
        }
    }};
}

mod scores;
mod values;

/// Query rows of a task at most; their scores (12 KiB) stay in the first-level cache.
const MAX_ROWS: usize = 48;

/// A part of a key: `dim` channels that meet the query's channels from `query` on, at `block` in a cache block.
#[derive(Clone, Copy, Default)]
pub(super) struct KeyPart {
    pub query: usize,
    pub dim: usize,
    pub block: usize,
}

/// How keys lie in a block.
#[derive(Clone, Copy)]
pub(super) enum Keys {
    /// Sixteen tokens side by side, `[token / 16][channel][16]`; two parts are summed.
    Panels([KeyPart; 2]),
    /// Token by token, `dim` channels from the start of a row of `stride`.
    Rows { dim: usize, stride: usize },
}

/// Where values lie in a block: token by token.
#[derive(Clone, Copy)]
pub(super) struct Values {
    pub block: usize,
    pub stride: usize,
    pub dim: usize,
}

/// Query heads that read the same keys and values.
#[derive(Clone, Copy)]
pub(super) struct HeadSet {
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

struct Task<'a, E> {
    set: &'a HeadSet,
    segment: &'a Segment<'a>,
    /// First row in the segment: token · heads + head.
    row: usize,
    rows: usize,
    cache: *const E,
    block_elements: usize,
    scale: f32,
}

/// Attends with every head set of every segment.
///
/// # Safety
/// Head sets must point to queries and outputs of all rows the segments name, outputs must not overlap, and keys and
/// values must lie inside a block of `cache`; segments were checked against `cache`.
pub(super) unsafe fn attend(
    pool: &Pool,
    cache: &LayerCache,
    segments: &[Segment<'_>],
    sets: &[HeadSet],
    min_rows: usize,
    scale: f32,
) {
    let size = cache.block_elements();
    // SAFETY: the caller's contract; the pointer is to the cache's first block.
    unsafe {
        match cache.numbers() {
            Numbers::F32(n) => attend_in(pool, (n.as_ptr(), size), segments, sets, min_rows, scale),
            Numbers::Bf16(n) => attend_in(pool, (n.as_ptr(), size), segments, sets, min_rows, scale),
        }
    }
}

/// As [`attend`], for one format of cache: its first block and a block's size.
unsafe fn attend_in<E: Element>(
    pool: &Pool,
    (cache, block_elements): (*const E, usize),
    segments: &[Segment<'_>],
    sets: &[HeadSet],
    min_rows: usize,
    scale: f32,
) {
    let rows: usize = sets.iter().map(|set| set.heads * super::rows_of(segments)).sum();
    let size = rows.div_ceil(2 * pool.threads()).clamp(min_rows.min(MAX_ROWS), MAX_ROWS);
    let mut parts = Vec::new();
    for segment in segments {
        for set in sets {
            let rows = segment.rows * set.heads;
            parts.extend((0..rows).step_by(size).map(|row| (segment, set, row, size.min(rows - row))));
        }
    }
    let cache = CachePointer(cache);
    pool.run(parts.len(), &|index| {
        let (segment, set, row, rows) = parts[index];
        let task = Task { set, segment, row, rows, cache: cache.get(), block_elements, scale };
        // SAFETY: every part is one task; the rest is the caller's contract.
        unsafe { run_task(&task) }
    });
}

/// A pointer that threads only read through.
struct CachePointer<E>(*const E);

// SAFETY: nobody writes the cache while `attend` borrows it.
unsafe impl<E> Sync for CachePointer<E> {}

impl<E> CachePointer<E> {
    fn get(&self) -> *const E {
        self.0
    }
}

dispatch! {
    /// # Safety
    /// As [`attend`].
    unsafe fn run_task<E: Element>(task: &Task<'_, E>) = run_task_in; [4, 4] [2, 4] [2, 2]
}

/// Scores of a task's rows against one block, then their weights.
type Scores = [[f32; BLOCK_TOKENS]; MAX_ROWS];

/// Running softmax state of a task's rows.
struct State {
    max: [f32; MAX_ROWS],
    sum: [f32; MAX_ROWS],
    /// What the sums so far are multiplied with, now that the maximum grew.
    rescale: [f32; MAX_ROWS],
}

/// `P`: vectors of outputs beside each other; `C`: keys beside each other when keys are rows.
#[inline(always)]
unsafe fn run_task_in<S: Simd, E: Element, const P: usize, const C: usize>(task: &Task<'_, E>) {
    let mut scores: Scores = [[0.0; BLOCK_TOKENS]; MAX_ROWS];
    let mut state =
        State { max: [f32::NEG_INFINITY; MAX_ROWS], sum: [0.0; MAX_ROWS], rescale: [0.0; MAX_ROWS] };
    let last = task.position(task.rows - 1);
    for (index, block) in task.segment.blocks[..=last / BLOCK_TOKENS].iter().enumerate() {
        let first = index * BLOCK_TOKENS;
        let tokens = (last + 1 - first).min(BLOCK_TOKENS);
        // SAFETY: the block exists and holds `tokens` tokens; the caller's contract.
        unsafe {
            let block = task.cache.add(*block as usize * task.block_elements);
            match task.set.keys {
                Keys::Panels(parts) => score_panels::<S, E, P>(task, &parts, block, tokens, &mut scores),
                Keys::Rows { dim, stride } => {
                    score_rows::<S, E, C>(task, dim, stride, block, tokens, &mut scores);
                }
            }
            for row in 0..task.rows {
                let visible = (task.position(row) + 1).saturating_sub(first).min(BLOCK_TOKENS);
                weigh::<S>(&mut scores[row], visible, task.scale, row, &mut state);
            }
            add_values::<S, E, P>(task, block, tokens, &scores, &state.rescale);
        }
    }
    // SAFETY: the caller's contract.
    unsafe { divide(task, &state.sum) }
}

impl<E> Task<'_, E> {
    /// Position of a row's token.
    #[inline(always)]
    fn position(&self, row: usize) -> usize {
        self.segment.start + (self.row + row) / self.set.heads
    }

    /// Number of a row in the step: (token, head) as the row maps count.
    #[inline(always)]
    fn step_row(&self, row: usize) -> usize {
        self.segment.first_row * self.set.heads + self.row + row
    }

    #[inline(always)]
    unsafe fn query(&self, row: usize) -> *const f32 {
        // SAFETY: the row exists, the caller's contract.
        unsafe { self.set.q.add(self.set.q_rows.offset(self.step_row(row))) }
    }

    #[inline(always)]
    unsafe fn out(&self, row: usize) -> *mut f32 {
        // SAFETY: the row exists, the caller's contract.
        unsafe { self.set.out.add(self.set.out_rows.offset(self.step_row(row))) }
    }
}

/// Turns one row's scores of a block into weights relative to the running maximum; invisible tokens weigh 0.
#[inline(always)]
unsafe fn weigh<S: Simd>(
    scores: &mut [f32; BLOCK_TOKENS],
    visible: usize,
    scale: f32,
    row: usize,
    state: &mut State,
) {
    if visible == 0 {
        scores.fill(0.0);
        state.rescale[row] = 1.0;
        return;
    }
    scores[visible..].fill(f32::NEG_INFINITY);
    // SAFETY: the array is a whole number of vectors long.
    unsafe {
        let mut max = S::splat(f32::NEG_INFINITY);
        for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
            let scaled = S::mul(S::load(scores.as_ptr().add(i)), S::splat(scale));
            S::store(scores.as_mut_ptr().add(i), scaled);
            max = S::max(max, scaled);
        }
        let max = S::max_lane(max).max(state.max[row]);
        for score in scores.iter_mut() {
            *score = exp(*score - max);
        }
        scores[visible..].fill(0.0);
        let mut sum = S::splat(0.0);
        for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
            sum = S::mul_add(S::load(scores.as_ptr().add(i)), S::splat(1.0), sum);
        }
        // The first block has nothing to rescale.
        let rescale = if state.max[row] == f32::NEG_INFINITY { 0.0 } else { exp(state.max[row] - max) };
        state.sum[row] = state.sum[row] * rescale + S::sum(sum);
        state.max[row] = max;
        state.rescale[row] = rescale;
    }
}

#[inline(always)]
unsafe fn divide<E>(task: &Task<'_, E>, sums: &[f32; MAX_ROWS]) {
    for row in 0..task.rows {
        let inverse = 1.0 / sums[row];
        // SAFETY: the row has `dim` outputs.
        unsafe {
            let out = task.out(row);
            for channel in 0..task.set.values.dim {
                *out.add(channel) *= inverse;
            }
        }
    }
}
