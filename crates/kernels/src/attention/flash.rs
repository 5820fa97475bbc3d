//! Streaming softmax over cache blocks: the core all attention implementations share.
//!
//! A task holds up to [`MAX_ROWS`] query rows (tokens times heads that read the same keys) of each of its groups and visits
//! the cache block by block, all groups of a block in the order they lie in, keeping a running maximum and sum per row: keys
//! and values are read once for all rows, and memory from one end to the other. Every row
//! meets the same blocks in the same order whatever else is in the task, and what it must not see adds an exact zero.
//! Chunks of blocks are summed apart and merged in order: where a sequence is cut depends on its tokens alone, and so
//! several threads can share one sequence.

#![allow(clippy::needless_range_loop, reason = "a task's rows index several arrays side by side")]

use super::cache::{BLOCK_TOKENS, LayerCache, Numbers, Segment};
use crate::{
    Pool,
    memory::{give_back, scratch},
    prefetch,
    shared::SharedMut,
    simd::{Simd, dispatch},
};
use ahead::Ahead;
use blocks::{Block, Blocks};
use division::{Division, Work};
use merge::divide;
use partial::Partial;
use products::{Products, RowProducts, Stored};
use queries::Queries;
use scores::{score_columns, score_rows};
pub(super) use sets::{HeadSet, KeyPart, Keys, Values, strip};
use values::{Weighing, add_values};
use weights::weigh;

#[macro_use]
mod tiles;

mod ahead;
mod blocks;
mod division;
#[cfg(target_arch = "x86_64")]
mod dots;
mod merge;
mod partial;
mod products;
mod queries;
mod scores;
mod sets;
mod values;
mod weights;

/// Query rows of a task's group at most; their scores (12 KiB) stay in the first-level cache.
const MAX_ROWS: usize = 48;

/// Cache blocks of a chunk. Every row's sums are made chunk by chunk and merged in the order of its tokens, whether or
/// not the chunks of a sequence are shared between threads.
const CHUNK_BLOCKS: usize = 4;

/// What a call does with its scores and weights.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    /// Scores are multiplied with this, which is positive: the largest stays the largest.
    pub scale: f32,
    /// Rows of a task that are worth a thread.
    pub min_rows: usize,
    /// Whether queries and weights are rounded to bf16 where the cache is and the processor multiplies bf16.
    pub bf16_products: bool,
}

/// Query rows of some sets and a segment.
#[derive(Clone, Copy)]
struct Part<'a> {
    sets: &'a [HeadSet],
    segment: &'a Segment<'a>,
    /// First row in the segment: token · heads + head.
    row: usize,
    /// Rows of each set.
    rows: usize,
}

struct Task<'a, E> {
    part: Part<'a>,
    cache: Blocks<E>,
    scale: f32,
    run: RunChunk<E>,
    /// From a chunk to the one its thread will probably take next.
    stride: usize,
}

/// Gathers one chunk of tokens in `partial`; the room is for what [`Part::room`] says.
///
/// # Safety
/// As [`attend`], and a machine with what the function was compiled for.
type RunChunk<E> = unsafe fn(task: &Task<'_, E>, chunk: usize, partial: Partial, room: *mut f32);

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
    terms: Terms,
) {
    // SAFETY: the caller's contract.
    unsafe {
        match cache.numbers() {
            Numbers::F32(n) => {
                let cache = Blocks::of(cache, n, &[]);
                attend_in(pool, cache, segments, partials, sets, terms, run_chunk::<f32>);
            }
            Numbers::Bf16(n) => {
                let cache = Blocks::of(cache, n, &[]);
                let unit = if terms.bf16_products { unit_for(sets, bf16_unit) } else { None };
                attend_in(pool, cache, segments, partials, sets, terms, unit.unwrap_or(run_chunk::<u16>));
            }
            Numbers::Int8(n, scales) => {
                let cache = Blocks::of(cache, n, scales);
                let run = unit_for(sets, int8_unit).unwrap_or(run_chunk::<i8>);
                attend_in(pool, cache, segments, partials, sets, terms, run);
            }
        }
    }
}

/// Units multiply columns of keys, or rows in pairs of channels, and whole vectors of values.
fn unit_for<E>(sets: &[HeadSet], unit: fn() -> Option<RunChunk<E>>) -> Option<RunChunk<E>> {
    const VECTOR: usize = 16;
    let fits = |set: &HeadSet| {
        let keys = match set.keys {
            Keys::Columns(_) => true,
            Keys::Rows(parts, _) => parts.iter().all(|part| part.dim.is_multiple_of(2)),
        };
        keys && set.values.dim.is_multiple_of(VECTOR)
    };
    if sets.iter().all(fits) { unit() } else { None }
}

#[cfg(target_arch = "x86_64")]
use dots::{bf16 as bf16_unit, int8 as int8_unit};

#[cfg(not(target_arch = "x86_64"))]
fn bf16_unit() -> Option<RunChunk<u16>> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn int8_unit() -> Option<RunChunk<i8>> {
    None
}

/// As [`attend`], for one format of cache.
unsafe fn attend_in<E: Stored>(
    pool: &Pool,
    cache: Blocks<E>,
    segments: &[Segment<'_>],
    partials: &mut Vec<f32>,
    sets: &[HeadSet],
    terms: Terms,
    run: RunChunk<E>,
) {
    let together = parts(segments, sets, sets.len(), MAX_ROWS);
    let work = Work {
        parts: together.len(),
        rows: together.iter().map(|part| part.rows * sets.len()).sum(),
        chunks: together.iter().map(Part::chunks).max().unwrap_or(0),
    };
    let task = |part, stride| Task { part, cache, scale: terms.scale, run, stride };
    let parts = match work.division(pool.threads(), terms.min_rows) {
        Division::Tokens => {
            let task = |part| task(part, pool.threads());
            // SAFETY: the caller's contract.
            return unsafe { attend_by_chunk(pool, &together, partials, task) };
        }
        Division::Together => together,
        Division::Rows(rows) => parts(segments, sets, 1, rows),
    };
    // SAFETY: every part is one task; the rest is the caller's contract.
    pool.run(parts.len(), &|i| unsafe { run_task(&task(parts[i], 1)) });
}

/// All rows, at most `size` of each of up to `together` sets in a part.
fn parts<'a>(
    segments: &'a [Segment<'a>],
    sets: &'a [HeadSet],
    together: usize,
    size: usize,
) -> Vec<Part<'a>> {
    let pairs =
        segments.iter().flat_map(|segment| sets.chunks(together.max(1)).map(move |sets| (segment, sets)));
    pairs
        .flat_map(|(segment, sets)| {
            let rows = segment.rows * sets[0].heads;
            (0..rows).step_by(size).map(move |row| Part { sets, segment, row, rows: size.min(rows - row) })
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
        let all = (0..part.sets.len()).flat_map(|set| (0..part.rows).map(move |row| (set, row)));
        rows.extend(all.map(|place| (part, place, total)));
        chunks.extend((0..part.chunks()).map(|chunk| (part, chunk, total + chunk * part.partial())));
        total += part.chunks() * part.partial();
    }
    let partials = super::sized(partials, total);
    let shared = SharedMut::new(partials);
    pool.run(chunks.len(), &|i| {
        let (part, chunk, start) = chunks[i];
        // SAFETY: every chunk of a part is one task and has numbers of its own; the rest is the caller's contract.
        unsafe {
            let mut room = scratch(part.room());
            let partial = Partial::of_mut(part, shared.slice(start, part.partial()));
            let task = task(*part);
            (task.run)(&task, chunk, partial, room.as_mut_ptr());
            give_back(room);
        }
    });
    let partials = &*partials;
    pool.run(rows.len(), &|i| {
        let (part, (set, row), start) = rows[i];
        let (out, mut total) = (part.out(set, row), (f32::NEG_INFINITY, 0.0));
        for partial in partials[start..].chunks_exact(part.partial()).take(part.chunks()) {
            // SAFETY: every row is one task, and merging only reads partials; the rest is the caller's contract.
            total = unsafe { Partial::of(part, partial).set(set).merge_into(total, out, row) };
        }
        // SAFETY: as above.
        unsafe { divide(out, total.1, part.dim()) }
    });
}

/// All chunks of a part, one after the other.
unsafe fn run_task<E: Stored>(task: &Task<'_, E>) {
    let Part { rows, sets, .. } = task.part;
    let mut memory = scratch(task.part.partial() + task.part.room());
    let mut totals = vec![(f32::NEG_INFINITY, 0.0); sets.len() * rows];
    let (partial, room) = memory.split_at_mut(task.part.partial());
    let partial = Partial::of_mut(&task.part, partial);
    let all = || (0..sets.len()).flat_map(|set| (0..rows).map(move |row| (set, row)));
    // SAFETY: the caller's contract; the buffers have every row.
    unsafe {
        for chunk in 0..task.part.chunks() {
            (task.run)(task, chunk, partial, room.as_mut_ptr());
            for ((set, row), total) in all().zip(&mut totals) {
                *total = partial.set(set).merge_into(*total, task.part.out(set, row), row);
            }
        }
        for ((set, row), total) in all().zip(&totals) {
            divide(task.part.out(set, row), total.1, task.part.dim());
        }
    }
    give_back(memory);
}

dispatch! {
    /// The [`RunChunk`] in f32, compiled once for all callers, because it holds every kernel.
    ///
    /// # Safety
    /// As [`attend`].
    unsafe fn run_chunk<E: Stored>(task: &Task<'_, E>, chunk: usize, partial: Partial, room: *mut f32)
        = run_chunk_exactly; [4, 4] [2, 2] [2, 2]
}

/// Scores of a set's rows against one block, then their weights.
type Scores = [[f32; BLOCK_TOKENS]; MAX_ROWS];

#[inline(always)]
unsafe fn run_chunk_exactly<S: Simd, E: Stored, const P: usize, const C: usize>(
    task: &Task<'_, E>,
    chunk: usize,
    partial: Partial,
    room: *mut f32,
) {
    // SAFETY: the caller's contract.
    unsafe { run_chunk_in::<S, E::Exact<S>, P, C>(task, chunk, partial, room) }
}

/// `P`: vectors of outputs beside each other; `C`: keys beside each other when keys are rows.
#[inline(always)]
unsafe fn run_chunk_in<S: Simd, A: Products<S>, const P: usize, const C: usize>(
    task: &Task<'_, A::Number>,
    chunk: usize,
    partial: Partial,
    room: *mut f32,
) {
    debug_assert_eq!(P * S::LANES, strip(), "blocks lie as they are multiplied");
    let mut scores: Scores = [[0.0; BLOCK_TOKENS]; MAX_ROWS];
    let mut weighing = [Weighing { rescale: 0.0, worth: 1.0 }; MAX_ROWS];
    let part = &task.part;
    let packed = room.wrapping_add(part.rounded_queries());
    for set in 0..part.sets.len() {
        // SAFETY: the partial and the room have every row.
        unsafe {
            for row in 0..part.rows {
                *partial.set(set).max(row) = f32::NEG_INFINITY;
                *partial.set(set).sum(row) = 0.0;
            }
            if A::ROUNDS {
                Queries::of(part, set, room).round::<S, A>();
            }
        }
    }
    let last = part.position(part.rows - 1);
    let end = ((chunk + 1) * CHUNK_BLOCKS).min(last / BLOCK_TOKENS + 1);
    for index in chunk * CHUNK_BLOCKS..end {
        let first = index * BLOCK_TOKENS;
        let tokens = (last + 1 - first).min(BLOCK_TOKENS);
        let block = task.cache.block(part.segment.blocks[index]);
        for (number, set) in part.sets.iter().enumerate() {
            let (gathered, queries) = (partial.set(number), Queries::of(part, number, room));
            let mut ahead = task.ahead::<S, A, P>(chunk, (index, end), number, tokens);
            // SAFETY: the block exists and holds `tokens` tokens; the caller's contract.
            unsafe {
                match &set.keys {
                    Keys::Columns(keys) => {
                        score_columns::<S, A, P>(part, queries, keys, block, tokens, &mut scores, &mut ahead);
                    }
                    Keys::Rows(keys, stride) => {
                        let keys = KeyPart::of_rows::<A::Number>(*keys);
                        score_rows::<S, A::Rows, C>(
                            part,
                            queries,
                            &keys,
                            *stride,
                            block,
                            tokens,
                            &mut scores,
                        );
                    }
                }
                let values = &set.values;
                let terms = (first, task.scale);
                weigh::<S, A>(part, gathered, values, block, terms, &mut scores, &mut weighing);
                let weights = (&scores, &weighing[..]);
                match set.keys {
                    Keys::Columns(_) => {
                        add_values::<S, A, P>(part, gathered, values, block, tokens, weights, &mut ahead);
                    }
                    Keys::Rows(..) => {
                        let (values, block) = pack_values::<S, A::Rows>(values, block, tokens, packed);
                        add_values::<S, A::Rows, P>(
                            part, gathered, &values, block, tokens, weights, &mut ahead,
                        );
                    }
                }
            }
        }
    }
}

/// A block's values as `A` takes them: where they lie, or packed for all rows that meet them.
#[inline(always)]
unsafe fn pack_values<S: Simd, A: RowProducts<S>>(
    values: &Values,
    block: Block<A::Number>,
    tokens: usize,
    room: *mut f32,
) -> (Values, Block<A::Number>) {
    if A::PACK == 1 {
        return (*values, block);
    }
    let packed: *mut A::Number = room.cast();
    for token in (0..tokens).step_by(A::PACK) {
        // SAFETY: a block has a whole number of packs, and the room one block's values; the caller's contract.
        unsafe {
            let from = block.numbers.add(values.block + token * values.stride);
            A::pack(from, values.stride, values.dim, packed.add(token * values.dim));
        }
    }
    (Values { block: 0, stride: values.dim, strip: values.dim, ..*values }, block.reordered(packed))
}

impl<E: Stored> Task<'_, E> {
    /// What to ask for while set `number` meets block `index`, which holds so many tokens: what the next set reads, or the
    /// first one of the chunk's next block before `end`, or of the chunk that this thread will probably take next. No more,
    /// because a block of many groups is as large as a core's second-level cache.
    #[inline(always)]
    fn ahead<S: Simd, A: Products<S, Number = E>, const P: usize>(
        &self,
        chunk: usize,
        (index, end): (usize, usize),
        number: usize,
        tokens: usize,
    ) -> Ahead {
        let (sets, blocks) = (self.part.sets, self.part.segment.blocks);
        let next = (number + 1) % sets.len();
        let block = match next {
            0 if index + 1 < end => index + 1,
            0 => (chunk + self.stride) * CHUNK_BLOCKS,
            _ => index,
        };
        let (Some(block), Some(worth)) = (blocks.get(block), S::ASKS_FROM) else {
            return Ahead::NOTHING;
        };
        let asked = sets[next].stretch(next == 0);
        let first = self.cache.block(*block).numbers.wrapping_add(asked.start);
        let asks = self.part.asks::<S, A, P>(tokens);
        let worth = if prefetch::always_pays() { 0.0 } else { worth[usize::from(A::ROUNDS)] };
        Ahead::of(first.cast(), asked.len() * size_of::<E>(), self.part.products(), (asks, worth))
    }
}

impl Part<'_> {
    /// Position of a row's token.
    #[inline(always)]
    fn position(&self, row: usize) -> usize {
        self.segment.start + (self.row + row) / self.sets[0].heads
    }

    /// Products of a set's rows with a block's keys and values.
    #[inline(always)]
    fn products(&self) -> usize {
        let set = &self.sets[0];
        let (Keys::Columns([one, other]) | Keys::Rows([one, other], _)) = set.keys;
        self.rows * BLOCK_TOKENS * (one.dim + other.dim + set.values.dim)
    }

    /// Times [`gather`](products::gather) asks ahead while a set meets `tokens` of a block.
    #[inline(always)]
    fn asks<S: Simd, A: Products<S>, const P: usize>(&self, tokens: usize) -> usize {
        let (set, lanes) = (&self.sets[0], P * S::LANES);
        let (keys, per_ask, tile) = match set.keys {
            Keys::Columns([one, other]) => {
                let per_ask = A::PACK * A::UNROLLED;
                (tokens.div_ceil(lanes) * (one.dim / per_ask + other.dim / per_ask), per_ask, A::TILE)
            }
            // Their scores do not ask.
            Keys::Rows(..) => (0, A::Rows::PACK * A::Rows::UNROLLED, A::Rows::TILE),
        };
        let values = set.values.dim.div_ceil(lanes) * (tokens / per_ask);
        self.rows.div_ceil(tile) * (keys + values)
    }

    /// Chunks up to the last row's token.
    #[inline(always)]
    fn chunks(&self) -> usize {
        self.position(self.rows - 1) / (CHUNK_BLOCKS * BLOCK_TOKENS) + 1
    }

    /// Channels of a value.
    fn dim(&self) -> usize {
        self.sets[0].values.dim
    }

    /// Numbers a chunk leaves.
    #[inline(always)]
    fn partial(&self) -> usize {
        self.sets.len() * self.rows * (self.dim() + 2)
    }

    /// Numbers of room that rounded queries take.
    fn rounded_queries(&self) -> usize {
        self.sets.len() * self.rows * self.sets[0].rounded_query()
    }

    /// Numbers of room that a chunk takes: rounded queries, then packed values.
    fn room(&self) -> usize {
        self.rounded_queries() + self.sets[0].packed_values()
    }

    /// Number of a set's first row in the step: (token, head) as the row maps count.
    #[inline(always)]
    fn first(&self, set: &HeadSet) -> usize {
        self.segment.first_row * set.heads + self.row
    }

    /// Where a row's result goes.
    #[inline(always)]
    fn out(&self, set: usize, row: usize) -> *mut f32 {
        let set = &self.sets[set];
        set.out.wrapping_add(set.out_rows.offset(self.first(set) + row))
    }
}
