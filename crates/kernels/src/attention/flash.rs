//! Streaming softmax over cache blocks: the core all attention implementations share.
//!
//! A task holds up to [`MAX_ROWS`] query rows (tokens times heads that read the same keys) and visits the cache block
//! by block, keeping a running maximum and sum per row, so keys and values are read once for all its rows. Every row
//! meets the same blocks in the same order whatever else is in the task, and what it must not see adds an exact zero.
//! Chunks of blocks are summed apart and merged in order: where a sequence is cut depends on its tokens alone, and so
//! several threads can share one sequence.

#![allow(clippy::needless_range_loop, reason = "a task's rows index several arrays side by side")]

use std::ops::Range;

use super::cache::{BLOCK_TOKENS, LayerCache, Numbers, Segment, Stored};
use crate::{
    Pool,
    gemm::RowMap,
    memory::{give_back, scratch},
    shared::SharedMut,
    simd::{Simd, dispatch, prefetch},
};
use ahead::Ahead;
use blocks::{Block, Blocks};
use division::{Division, Work};
use merge::{divide, merge};
use scores::{score_panels, score_rows};
use values::add_values;
use weights::{scale_weights, weigh};

/// Calls `$f::<S, E, R, N>(args, row)` for tiles of R rows.
macro_rules! for_tiles {
    ($rows:expr, $max:expr, $n:ident, $f:ident($($arg:expr),*)) => {{
        let mut row = 0;
        while row < $rows {
            // Evenly, because a tile of few rows costs nearly as much as a full one.
            let left = $rows - row;
            let left = left.div_ceil(left.div_ceil($max));
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

mod ahead;
mod blocks;
mod division;
mod merge;
mod scores;
mod values;
mod weights;

/// Query rows of a task at most; their scores (12 KiB) stay in the first-level cache.
const MAX_ROWS: usize = 48;

/// Cache blocks of a chunk. Every row's sums are made chunk by chunk and merged in the order of its tokens, whether or
/// not the chunks of a sequence are shared between threads.
const CHUNK_BLOCKS: usize = 4;

/// A part of a key: `dim` channels that meet the query's channels from `query` on, at `block` in a cache block, with the
/// scales of the token's part `part`.
#[derive(Clone, Copy, Default)]
pub(super) struct KeyPart {
    pub query: usize,
    pub dim: usize,
    pub block: usize,
    pub part: usize,
}

/// How keys lie in a block.
#[derive(Clone, Copy)]
pub(super) enum Keys {
    /// Sixteen tokens side by side, `[token / 16][channel][16]`; two parts are summed.
    Panels([KeyPart; 2]),
    /// Token by token in rows of so many numbers; the second part continues the first, in the row and in the query.
    Rows([KeyPart; 2], usize),
}

/// Where values lie in a block: token by token, with the scales of the token's part `part`.
#[derive(Clone, Copy)]
pub(super) struct Values {
    pub block: usize,
    pub stride: usize,
    pub dim: usize,
    pub part: usize,
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

impl HeadSet {
    /// Where the keys of a block lie.
    fn keys_in<E>(&self, block: Block<E>) -> [Range<*const E>; 2] {
        match self.keys {
            Keys::Panels(parts) => parts.map(|part| block.stretch(part.block, BLOCK_TOKENS * part.dim)),
            Keys::Rows([first, _], stride) => {
                [block.stretch(first.block, BLOCK_TOKENS * stride), block.stretch(0, 0)]
            }
        }
    }

    /// Where the values of a block lie.
    fn values_in<E>(&self, block: Block<E>) -> [Range<*const E>; 2] {
        let Values { block: first, stride, .. } = self.values;
        [block.stretch(first, BLOCK_TOKENS * stride), block.stretch(0, 0)]
    }

    /// Asks for the scales of a block.
    #[inline(always)]
    fn ask_for_scales<E: Stored>(&self, block: Block<E>) {
        if E::SCALED {
            let (Keys::Panels(keys) | Keys::Rows(keys, _)) = self.keys;
            for part in [keys[0].part, keys[1].part, self.values.part] {
                let first = block.scales(part).cast::<u8>();
                (0..BLOCK_TOKENS * size_of::<f32>())
                    .step_by(64)
                    .for_each(|i| prefetch(first.wrapping_add(i)));
            }
        }
    }
}

/// Query rows of one set and segment.
#[derive(Clone, Copy)]
struct Part<'a> {
    set: &'a HeadSet,
    segment: &'a Segment<'a>,
    /// First row in the segment: token · heads + head.
    row: usize,
    rows: usize,
}

struct Task<'a, E> {
    part: Part<'a>,
    cache: Blocks<E>,
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
    partials: &mut Vec<f32>,
    sets: &[HeadSet],
    min_rows: usize,
    scale: f32,
) {
    // SAFETY: the caller's contract.
    unsafe {
        match cache.numbers() {
            Numbers::F32(n) => {
                attend_in(pool, Blocks::of(cache, n, &[]), segments, partials, sets, min_rows, scale);
            }
            Numbers::Bf16(n) => {
                attend_in(pool, Blocks::of(cache, n, &[]), segments, partials, sets, min_rows, scale);
            }
            Numbers::Int8(n, scales) => {
                attend_in(pool, Blocks::of(cache, n, scales), segments, partials, sets, min_rows, scale);
            }
        }
    }
}

/// As [`attend`], for one format of cache.
unsafe fn attend_in<E: Stored>(
    pool: &Pool,
    cache: Blocks<E>,
    segments: &[Segment<'_>],
    partials: &mut Vec<f32>,
    sets: &[HeadSet],
    min_rows: usize,
    scale: f32,
) {
    let whole = parts(segments, sets, MAX_ROWS);
    let work = Work {
        parts: whole.len(),
        rows: whole.iter().map(|part| part.rows).sum(),
        chunks: whole.iter().map(Part::chunks).max().unwrap_or(0),
    };
    let task = |part| Task { part, cache, scale };
    let parts = match work.division(pool.threads(), min_rows) {
        // SAFETY: the caller's contract.
        Division::Tokens => return unsafe { attend_by_chunk(pool, &whole, partials, task) },
        Division::Rows(MAX_ROWS) => whole,
        Division::Rows(rows) => parts(segments, sets, rows),
    };
    // SAFETY: every part is one task; the rest is the caller's contract.
    pool.run(parts.len(), &|i| unsafe { run_task(&task(parts[i])) });
}

/// All rows, at most `size` in a part.
fn parts<'a>(segments: &'a [Segment<'a>], sets: &'a [HeadSet], size: usize) -> Vec<Part<'a>> {
    let pairs = segments.iter().flat_map(|segment| sets.iter().map(move |set| (segment, set)));
    pairs
        .flat_map(|(segment, set)| {
            let rows = segment.rows * set.heads;
            (0..rows).step_by(size).map(move |row| Part { set, segment, row, rows: size.min(rows - row) })
        })
        .collect()
}

/// Runs every chunk of every part, then merges each row's chunks in their order.
///
/// # Safety
/// As [`attend`], for the rows of `parts`.
unsafe fn attend_by_chunk<'a, E: Stored>(
    pool: &Pool,
    parts: &[Part<'a>],
    partials: &mut Vec<f32>,
    task: impl Fn(Part<'a>) -> Task<'a, E> + Sync,
) {
    let (mut chunks, mut rows, mut total) = (Vec::new(), Vec::new(), 0);
    for part in parts {
        rows.extend((0..part.rows).map(|row| (part, row, total)));
        chunks.extend((0..part.chunks()).map(|chunk| (part, chunk, total + chunk * part.partial())));
        total += part.chunks() * part.partial();
    }
    // What groups share of a block is then read once, and blocks in their order.
    chunks.sort_by_key(|(_, chunk, _)| *chunk);
    let partials = super::sized(partials, total);
    let shared = SharedMut::new(partials);
    pool.run(chunks.len(), &|i| {
        let (part, chunk, start) = chunks[i];
        // SAFETY: every chunk of a part is one task and has numbers of its own; the rest is the caller's contract.
        unsafe { run_chunk_task(&task(*part), chunk, shared.slice(start, part.partial())) }
    });
    let partials = &*partials;
    pool.run(rows.len(), &|i| {
        let (part, row, start) = rows[i];
        // SAFETY: every row is one task, and the partials are those of its part.
        unsafe { merge_row(part, row, &partials[start..][..part.chunks() * part.partial()]) }
    });
}

dispatch! {
    /// Gathers one chunk of tokens. Compiled once for all callers, because it holds every kernel.
    ///
    /// # Safety
    /// As [`attend`]; the sink must have every row of the task.
    unsafe fn run_chunk<E: Stored>(task: &Task<'_, E>, chunk: usize, sink: &Sink, state: &mut State)
        = run_chunk_in; [4, 4] [2, 2] [2, 2]
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

impl State {
    const EMPTY: Self =
        Self { max: [f32::NEG_INFINITY; MAX_ROWS], sum: [0.0; MAX_ROWS], rescale: [0.0; MAX_ROWS] };
}

/// Where a task's rows gather their values.
struct Sink {
    to: *mut f32,
    rows: RowMap,
    first: usize,
}

impl Sink {
    #[inline(always)]
    unsafe fn row(&self, row: usize) -> *mut f32 {
        // SAFETY: the row exists, the caller's contract.
        unsafe { self.to.add(self.rows.offset(self.first + row)) }
    }

    /// Rows side by side.
    fn aside(to: &mut [f32], dim: usize) -> Self {
        Self { to: to.as_mut_ptr(), rows: RowMap::even(dim), first: 0 }
    }
}

/// All chunks of a part, one after the other.
unsafe fn run_task<E: Stored>(task: &Task<'_, E>) {
    let Part { rows, .. } = task.part;
    let dim = task.part.set.values.dim;
    let (mut total, out) = (State::EMPTY, task.part.sink());
    let mut partial = scratch(rows * dim);
    // SAFETY: the caller's contract; the buffer has every row.
    unsafe {
        run_chunk(task, 0, &out, &mut total);
        for chunk in 1..task.part.chunks() {
            let mut state = State::EMPTY;
            let aside = Sink::aside(&mut partial, dim);
            run_chunk(task, chunk, &aside, &mut state);
            for row in 0..rows {
                let so_far = (total.max[row], total.sum[row]);
                let more = (state.max[row], state.sum[row]);
                (total.max[row], total.sum[row]) = merge(so_far, out.row(row), more, aside.row(row), dim);
            }
        }
        for row in 0..rows {
            divide(out.row(row), total.sum[row], dim);
        }
    }
    give_back(partial);
}

/// Leaves a chunk's sums in `partial`: rows of values, then all maxima, then all sums of weights.
unsafe fn run_chunk_task<E: Stored>(task: &Task<'_, E>, chunk: usize, partial: &mut [f32]) {
    let Part { rows, set, .. } = task.part;
    let mut state = State::EMPTY;
    // SAFETY: the caller's contract; the partial has every row.
    unsafe { run_chunk(task, chunk, &Sink::aside(partial, set.values.dim), &mut state) }
    let (maxima, sums) = partial[rows * set.values.dim..].split_at_mut(rows);
    maxima.copy_from_slice(&state.max[..rows]);
    sums.copy_from_slice(&state.sum[..rows]);
}

/// Merges the chunks of one row into its output.
unsafe fn merge_row(part: &Part<'_>, row: usize, partials: &[f32]) {
    let (rows, dim) = (part.rows, part.set.values.dim);
    let mut total = (f32::NEG_INFINITY, 0.0);
    // SAFETY: the caller's contract.
    unsafe {
        let out = part.sink().row(row);
        for partial in partials.chunks_exact(part.partial()) {
            let more = (partial[rows * dim + row], partial[rows * dim + rows + row]);
            total = merge(total, out, more, partial[row * dim..].as_ptr(), dim);
        }
        divide(out, total.1, dim);
    }
}

/// `P`: vectors of outputs beside each other; `C`: keys beside each other when keys are rows.
#[inline(always)]
unsafe fn run_chunk_in<S: Simd, E: Stored, const P: usize, const C: usize>(
    task: &Task<'_, E>,
    chunk: usize,
    sink: &Sink,
    state: &mut State,
) {
    let mut scores: Scores = [[0.0; BLOCK_TOKENS]; MAX_ROWS];
    let part = &task.part;
    let last = part.position(part.rows - 1);
    let vectors = P * S::LANES;
    let end = ((chunk + 1) * CHUNK_BLOCKS).min(last / BLOCK_TOKENS + 1);
    for index in chunk * CHUNK_BLOCKS..end {
        let first = index * BLOCK_TOKENS;
        let tokens = (last + 1 - first).min(BLOCK_TOKENS);
        // SAFETY: the block exists and holds `tokens` tokens; the caller's contract.
        unsafe {
            let block = task.cache.block(part.segment.blocks[index]);
            match part.set.keys {
                Keys::Panels(parts) => {
                    let steps = tokens.div_ceil(vectors) * (parts[0].dim + parts[1].dim);
                    let ahead = Ahead::of(part.set.values_in(block), steps);
                    score_panels::<S, E, P>(part, &parts, block, tokens, &mut scores, ahead);
                }
                Keys::Rows(parts, stride) => {
                    score_rows::<S, E, C>(part, parts, stride, block, tokens, &mut scores);
                }
            }
            for row in 0..part.rows {
                let visible = (part.position(row) + 1).saturating_sub(first).min(BLOCK_TOKENS);
                weigh::<S>(&mut scores[row], visible, task.scale, row, state);
                if E::SCALED {
                    scale_weights::<S>(&mut scores[row], block.scales(part.set.values.part));
                }
            }
            let next = part.segment.blocks.get(index + 1).filter(|_| first + BLOCK_TOKENS <= last);
            let ahead = next.map_or(Ahead::NOTHING, |next| {
                let next = task.cache.block(*next);
                part.set.ask_for_scales(next);
                let steps = (part.set.values.dim / vectors).max(1) * tokens;
                Ahead::of(part.set.keys_in(next), steps)
            });
            add_values::<S, E, P>(part, sink, block.numbers, tokens, &scores, &state.rescale, ahead);
        }
    }
}

impl Part<'_> {
    /// Position of a row's token.
    #[inline(always)]
    fn position(&self, row: usize) -> usize {
        self.segment.start + (self.row + row) / self.set.heads
    }

    /// Chunks up to the last row's token.
    #[inline(always)]
    fn chunks(&self) -> usize {
        self.position(self.rows - 1) / (CHUNK_BLOCKS * BLOCK_TOKENS) + 1
    }

    /// Numbers a chunk leaves.
    #[inline(always)]
    fn partial(&self) -> usize {
        self.rows * (self.set.values.dim + 2)
    }

    /// Number of the first row in the step: (token, head) as the row maps count.
    #[inline(always)]
    fn first(&self) -> usize {
        self.segment.first_row * self.set.heads + self.row
    }

    #[inline(always)]
    unsafe fn query(&self, row: usize) -> *const f32 {
        // SAFETY: the row exists, the caller's contract.
        unsafe { self.set.q.add(self.set.q_rows.offset(self.first() + row)) }
    }

    #[inline(always)]
    fn sink(&self) -> Sink {
        Sink { to: self.set.out, rows: self.set.out_rows, first: self.first() }
    }
}
