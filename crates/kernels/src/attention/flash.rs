//! Streaming softmax over cache blocks: the core all attention implementations share.
//!
//! A task holds up to [`MAX_ROWS`] query rows (tokens times heads that read the same keys) and visits the cache block
//! by block, keeping a running maximum and sum per row, so keys and values are read once for all its rows. Every row
//! meets the same blocks in the same order whatever else is in the task, and what it must not see adds an exact zero.

#![allow(clippy::needless_range_loop, reason = "register arrays are indexed side by side")]

use super::cache::{BLOCK_TOKENS, LayerCache, Segment};
use crate::{
    Pool,
    gemm::{PANEL, RowMap, TILE_ROWS, tile},
    math::exp,
    simd::{Simd, dispatch},
};

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

struct Task<'a> {
    set: &'a HeadSet,
    segment: &'a Segment<'a>,
    /// First row in the segment: token · heads + head.
    row: usize,
    rows: usize,
    cache: *const f32,
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
    let rows: usize = sets.iter().map(|set| set.heads * super::rows_of(segments)).sum();
    let size = rows.div_ceil(2 * pool.threads()).clamp(min_rows.min(MAX_ROWS), MAX_ROWS);
    let mut parts = Vec::new();
    for segment in segments {
        for set in sets {
            let rows = segment.rows * set.heads;
            parts.extend((0..rows).step_by(size).map(|row| (segment, set, row, size.min(rows - row))));
        }
    }
    let (cache, block_elements) = (CachePointer(cache.as_ptr()), cache.block_elements());
    pool.run(parts.len(), &|index| {
        let (segment, set, row, rows) = parts[index];
        let task = Task { set, segment, row, rows, cache: cache.get(), block_elements, scale };
        // SAFETY: every part is one task; the rest is the caller's contract.
        unsafe { run_task(&task) }
    });
}

/// A pointer that threads only read through.
struct CachePointer(*const f32);

// SAFETY: nobody writes the cache while `attend` borrows it.
unsafe impl Sync for CachePointer {}

impl CachePointer {
    fn get(&self) -> *const f32 {
        self.0
    }
}

dispatch! {
    /// # Safety
    /// As [`attend`].
    unsafe fn run_task(task: &Task<'_>) = run_task_in; [4, 4] [2, 4] [2, 2]
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
unsafe fn run_task_in<S: Simd, const P: usize, const C: usize>(task: &Task<'_>) {
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
                Keys::Panels(parts) => score_panels::<S, P>(task, &parts, block, tokens, &mut scores),
                Keys::Rows { dim, stride } => {
                    score_rows::<S, C>(task, dim, stride, block, tokens, &mut scores);
                }
            }
            for row in 0..task.rows {
                let visible = (task.position(row) + 1).saturating_sub(first).min(BLOCK_TOKENS);
                weigh::<S>(&mut scores[row], visible, task.scale, row, &mut state);
            }
            add_values::<S, P>(task, block, tokens, &scores, &state.rescale);
        }
    }
    // SAFETY: the caller's contract.
    unsafe { divide(task, &state.sum) }
}

impl Task<'_> {
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

/// Calls `$f::<S, R, N>(args, row)` for tiles of R rows.
macro_rules! for_tiles {
    ($rows:expr, $max:expr, $n:ident, $f:ident($($arg:expr),*)) => {{
        let mut row = 0;
        while row < $rows {
            let left = ($rows - row).min($max);
            match left {
                1 => $f::<S, 1, $n>($($arg),*, row),
                2 => $f::<S, 2, $n>($($arg),*, row),
                3 => $f::<S, 3, $n>($($arg),*, row),
                4 => $f::<S, 4, $n>($($arg),*, row),
                5 => $f::<S, 5, $n>($($arg),*, row),
                _ => $f::<S, 6, $n>($($arg),*, row),
            }
            row += left;
        }
    }};
}

#[inline(always)]
unsafe fn score_panels<S: Simd, const P: usize>(
    task: &Task<'_>,
    parts: &[KeyPart; 2],
    block: *const f32,
    tokens: usize,
    scores: &mut Scores,
) {
    // SAFETY: the caller's contract.
    unsafe { for_tiles!(task.rows, TILE_ROWS, P, score_panel_tile(task, parts, block, tokens, scores)) }
}

#[inline(always)]
unsafe fn score_panel_tile<S: Simd, const R: usize, const P: usize>(
    task: &Task<'_>,
    parts: &[KeyPart; 2],
    block: *const f32,
    tokens: usize,
    scores: &mut Scores,
    row: usize,
) {
    // Whole groups of vectors: tokens beyond the last are stale but allocated, and `weigh` drops them.
    for group in (0..tokens).step_by(P * S::LANES) {
        // SAFETY: BLOCK_TOKENS is a multiple of P · LANES, so the panels exist.
        unsafe {
            let mut acc = [[S::splat(0.0); P]; R];
            for part in parts {
                let mut x = [task.set.q; R];
                for r in 0..R {
                    x[r] = task.query(row + r).add(part.query);
                }
                let mut b = [block; P];
                for p in 0..P {
                    let token = group + p * S::LANES;
                    b[p] = block.add(part.block + token / PANEL * PANEL * part.dim + token % PANEL);
                }
                tile::<S, f32, R, P>(&mut acc, &x, &b, PANEL, part.dim);
            }
            for r in 0..R {
                for p in 0..P {
                    S::store(scores[row + r].as_mut_ptr().add(group + p * S::LANES), acc[r][p]);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn score_rows<S: Simd, const C: usize>(
    task: &Task<'_>,
    dim: usize,
    stride: usize,
    block: *const f32,
    tokens: usize,
    scores: &mut Scores,
) {
    // SAFETY: the caller's contract.
    unsafe { for_tiles!(task.rows, 4, C, score_row_tile(task, dim, stride, block, tokens, scores)) }
}

#[inline(always)]
unsafe fn score_row_tile<S: Simd, const R: usize, const C: usize>(
    task: &Task<'_>,
    dim: usize,
    stride: usize,
    block: *const f32,
    tokens: usize,
    scores: &mut Scores,
    row: usize,
) {
    // SAFETY: tokens below `tokens` are in the block.
    unsafe {
        let mut q = [task.set.q; R];
        for r in 0..R {
            q[r] = task.query(row + r);
        }
        let mut token = 0;
        while token + C <= tokens {
            let dots = dot_tile::<S, R, C>(&q, block.add(token * stride), stride, dim);
            for r in 0..R {
                for c in 0..C {
                    scores[row + r][token + c] = dots[r][c];
                }
            }
            token += C;
        }
        while token < tokens {
            let dots = dot_tile::<S, R, 1>(&q, block.add(token * stride), stride, dim);
            for r in 0..R {
                scores[row + r][token] = dots[r][0];
            }
            token += 1;
        }
    }
}

/// `R x C` inner products over `dim` channels.
#[inline(always)]
unsafe fn dot_tile<S: Simd, const R: usize, const C: usize>(
    q: &[*const f32; R],
    keys: *const f32,
    stride: usize,
    dim: usize,
) -> [[f32; C]; R] {
    let whole = dim / S::LANES * S::LANES;
    let mut dots = [[0.0; C]; R];
    // SAFETY: every load is inside a row of `dim` channels.
    unsafe {
        let mut acc = [[S::splat(0.0); C]; R];
        let mut i = 0;
        while i < whole {
            let mut k = [S::splat(0.0); C];
            for c in 0..C {
                k[c] = S::load(keys.add(c * stride + i));
            }
            for r in 0..R {
                let q = S::load(q[r].add(i));
                for c in 0..C {
                    acc[r][c] = S::mul_add(q, k[c], acc[r][c]);
                }
            }
            i += S::LANES;
        }
        if whole < dim {
            for r in 0..R {
                let q = S::load_partial(q[r].add(whole), dim - whole);
                for c in 0..C {
                    let k = S::load_partial(keys.add(c * stride + whole), dim - whole);
                    acc[r][c] = S::mul_add(q, k, acc[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                dots[r][c] = S::sum(acc[r][c]);
            }
        }
    }
    dots
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

/// `out = out · rescale + weights · V`; a rescale of 0 starts afresh.
#[inline(always)]
unsafe fn add_values<S: Simd, const P: usize>(
    task: &Task<'_>,
    block: *const f32,
    tokens: usize,
    scores: &Scores,
    rescale: &[f32; MAX_ROWS],
) {
    // SAFETY: the caller's contract.
    unsafe { for_tiles!(task.rows, TILE_ROWS, P, value_tile(task, block, tokens, scores, rescale)) }
}

#[inline(always)]
unsafe fn value_tile<S: Simd, const R: usize, const P: usize>(
    task: &Task<'_>,
    block: *const f32,
    tokens: usize,
    scores: &Scores,
    rescale: &[f32; MAX_ROWS],
    row: usize,
) {
    let Values { block: offset, stride, dim } = task.set.values;
    let whole = dim / S::LANES * S::LANES;
    let mut channel = 0;
    // SAFETY: channels below `dim` of tokens below `tokens` are in the block; the caller's contract.
    unsafe {
        let values = block.add(offset);
        while channel + P * S::LANES <= whole {
            value_columns::<S, R, P>(
                task,
                values.add(channel),
                stride,
                tokens,
                channel,
                scores,
                rescale,
                row,
            );
            channel += P * S::LANES;
        }
        while channel < whole {
            value_columns::<S, R, 1>(
                task,
                values.add(channel),
                stride,
                tokens,
                channel,
                scores,
                rescale,
                row,
            );
            channel += S::LANES;
        }
        for channel in whole..dim {
            for r in 0..R {
                let out = task.out(row + r).add(channel);
                let mut sum = start(*out, rescale[row + r]);
                for token in 0..tokens {
                    sum += scores[row + r][token] * *values.add(token * stride + channel);
                }
                *out = sum;
            }
        }
    }
}

/// What a sum goes on from. The output buffer is not read before something was written to it.
#[inline(always)]
fn start(out: f32, rescale: f32) -> f32 {
    if rescale == 0.0 { 0.0 } else { out * rescale }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn value_columns<S: Simd, const R: usize, const P: usize>(
    task: &Task<'_>,
    values: *const f32,
    stride: usize,
    tokens: usize,
    channel: usize,
    scores: &Scores,
    rescale: &[f32; MAX_ROWS],
    row: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut x = [scores.as_ptr().cast::<f32>(); R];
        let mut acc = [[S::splat(0.0); P]; R];
        for r in 0..R {
            x[r] = scores[row + r].as_ptr();
            let out = task.out(row + r).add(channel);
            if rescale[row + r] != 0.0 {
                for p in 0..P {
                    acc[r][p] = S::mul(S::load(out.add(p * S::LANES)), S::splat(rescale[row + r]));
                }
            }
        }
        let mut b = [values; P];
        for p in 0..P {
            b[p] = values.add(p * S::LANES);
        }
        tile::<S, f32, R, P>(&mut acc, &x, &b, stride, tokens);
        for r in 0..R {
            let out = task.out(row + r).add(channel);
            for p in 0..P {
                S::store(out.add(p * S::LANES), acc[r][p]);
            }
        }
    }
}

#[inline(always)]
unsafe fn divide(task: &Task<'_>, sums: &[f32; MAX_ROWS]) {
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
