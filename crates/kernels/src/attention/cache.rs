//! The paged cache of one layer and how a step's tokens lie in it.

use std::ops::Range;

use gqla_model::{CacheFormat, CachedToken};

use crate::{gemm::Element, memory::Lines};

/// Tokens of a cache block.
pub const BLOCK_TOKENS: usize = 64;

/// Blocks of one layer; arithmetic is f32 whatever they store. What lies where in a block is the attention implementation's own affair.
pub struct LayerCache {
    numbers: Numbers,
    blocks: usize,
    token: CachedToken,
}

/// The numbers of all blocks. Memory comes page by page when first touched, so unused blocks cost none.
pub(crate) enum Numbers {
    F32(Lines<f32>),
    Bf16(Lines<u16>),
    /// A scale for each part and token, `[block][part][token]`: storing a token changes nothing of any other.
    Int8(Lines<i8>, Lines<f32>),
}

/// Where a token lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub block: u32,
    /// Which token of the block it is.
    pub token: usize,
}

/// Which numbers of a block are a part of a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Which of the token's parts it is.
    pub part: usize,
    /// The first number's place in the block.
    pub offset: usize,
    /// Numbers that lie in a row.
    pub aside: usize,
    /// From one of these to the next.
    pub apart: usize,
    /// From the first of these to the first of the next ones.
    pub step: usize,
}

impl Run {
    /// All numbers side by side.
    pub fn aside(part: usize, offset: usize) -> Self {
        Self { part, offset, aside: 1, apart: 1, step: 1 }
    }

    fn place(&self, number: usize) -> usize {
        self.offset + number / self.aside * self.step + number % self.aside * self.apart
    }
}

/// The scale with which the largest of `values` is 127, and its inverse; one value that is not finite makes it so too, so
/// that nothing hides it.
fn scale(values: &[f32]) -> (f32, f32) {
    // Magnitudes are ordered as their bits are, with infinity and then NaN at the end.
    let largest = values.iter().fold(0, |largest: u32, value| largest.max(value.abs().to_bits()));
    let scale = f32::from_bits(largest) / 127.0;
    (scale, if scale == 0.0 { 0.0 } else { scale.recip() })
}

impl LayerCache {
    /// `blocks` blocks of [`BLOCK_TOKENS`] tokens.
    pub fn new(blocks: usize, token: CachedToken, format: CacheFormat) -> Self {
        let each = |per_token: u64| blocks * BLOCK_TOKENS * per_token as usize;
        let elements = each(token.elements);
        let numbers = match format {
            CacheFormat::F32 => Numbers::F32(Lines::zeroed(elements)),
            CacheFormat::Bf16 => Numbers::Bf16(Lines::zeroed(elements)),
            CacheFormat::Int8 => Numbers::Int8(Lines::zeroed(elements), Lines::zeroed(each(token.parts))),
        };
        Self { numbers, blocks, token }
    }

    /// Bytes the blocks hold.
    pub fn allocated_bytes(&self) -> usize {
        match &self.numbers {
            Numbers::F32(numbers) => size_of_val(&**numbers),
            Numbers::Bf16(numbers) => size_of_val(&**numbers),
            Numbers::Int8(numbers, scales) => size_of_val(&**numbers) + size_of_val(&**scales),
        }
    }

    /// What they are stored as.
    pub fn format(&self) -> CacheFormat {
        match self.numbers {
            Numbers::F32(_) => CacheFormat::F32,
            Numbers::Bf16(_) => CacheFormat::Bf16,
            Numbers::Int8(..) => CacheFormat::Int8,
        }
    }

    /// Numbers that keys and values of groups have side by side for one lane.
    pub(super) fn pack(&self) -> usize {
        match self.numbers {
            Numbers::F32(_) => 1,
            Numbers::Bf16(_) | Numbers::Int8(..) => 2,
        }
    }

    /// Blocks in the cache.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    pub(crate) fn block_elements(&self) -> usize {
        BLOCK_TOKENS * self.token.elements as usize
    }

    pub(crate) fn block_scales(&self) -> usize {
        BLOCK_TOKENS * self.token.parts as usize
    }

    pub(crate) fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Where the numbers of a token's block are.
    fn block(&self, at: Place) -> Range<usize> {
        let first = at.block as usize * self.block_elements();
        first..first + self.block_elements()
    }

    fn scale_index(&self, at: Place, part: usize) -> usize {
        at.block as usize * self.block_scales() + part * BLOCK_TOKENS + at.token
    }

    /// Stores a part of a token.
    pub(super) fn write(&mut self, at: Place, run: Run, values: &[f32]) {
        fn write<E: Element>(block: &mut [E], run: Run, values: impl Iterator<Item = f32>) {
            values.enumerate().for_each(|(i, value)| block[run.place(i)] = E::of_f32(value));
        }
        let (block, index) = (self.block(at), self.scale_index(at, run.part));
        let exact = values.iter().copied();
        match &mut self.numbers {
            Numbers::F32(numbers) => write(&mut numbers[block], run, exact),
            Numbers::Bf16(numbers) => write(&mut numbers[block], run, exact),
            Numbers::Int8(numbers, scales) if !values.is_empty() => {
                let (scale, inverse) = scale(values);
                scales[index] = scale;
                write(&mut numbers[block], run, exact.map(|value| value * inverse));
            }
            Numbers::Int8(..) => {}
        }
    }

    /// A part of a token, as it is worth.
    pub(super) fn read(&self, at: Place, run: Run, out: &mut [f32]) {
        fn read<E: Element>(block: &[E], run: Run, out: &mut [f32]) {
            out.iter_mut().enumerate().for_each(|(i, out)| *out = block[run.place(i)].to_f32());
        }
        let block = self.block(at);
        match &self.numbers {
            Numbers::F32(numbers) => read(&numbers[block], run, out),
            Numbers::Bf16(numbers) => read(&numbers[block], run, out),
            Numbers::Int8(numbers, scales) => {
                read(&numbers[block], run, out);
                let scale = scales[self.scale_index(at, run.part)];
                out.iter_mut().for_each(|value| *value *= scale);
            }
        }
    }

    /// Fills the cache with finite numbers of no meaning.
    pub(crate) fn fill(&mut self, noise: impl Iterator<Item = f32>) {
        fn fill<E: Element>(numbers: &mut [E], noise: impl Iterator<Item = f32>) {
            numbers.iter_mut().zip(noise).for_each(|(number, noise)| *number = E::of_f32(noise));
        }
        match &mut self.numbers {
            Numbers::F32(numbers) => fill(numbers, noise),
            Numbers::Bf16(numbers) => fill(numbers, noise),
            Numbers::Int8(numbers, scales) => {
                fill(numbers, noise.map(|noise| noise * 127.0));
                scales.fill(1.0 / 127.0);
            }
        }
    }

    /// Copies one block over another.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        fn copy<E: Element>(numbers: &mut [E], len: usize, from: u32, to: u32) {
            let (from, to) = (from as usize * len, to as usize * len);
            numbers.copy_within(from..from + len, to);
        }
        let (elements, scaled) = (self.block_elements(), self.block_scales());
        match &mut self.numbers {
            Numbers::F32(numbers) => copy(numbers, elements, from, to),
            Numbers::Bf16(numbers) => copy(numbers, elements, from, to),
            Numbers::Int8(numbers, scales) => {
                copy(numbers, elements, from, to);
                copy(scales, scaled, from, to);
            }
        }
    }

    /// Panics unless the cache is of such a layer and has these blocks.
    pub(crate) fn check_blocks(&self, blocks: &[u32], token: CachedToken) {
        assert_eq!(self.token, token, "the cache was made for another layer");
        let count = self.blocks;
        assert!(blocks.iter().all(|block| (*block as usize) < count), "no such block of {count}");
    }

    /// Panics unless every segment's tokens lie in blocks of this cache and its rows below `rows`.
    pub(crate) fn check(&self, segments: &[Segment<'_>], token: CachedToken, rows: usize) {
        for segment in segments {
            self.check_blocks(segment.blocks, token);
            assert!(segment.first_row + segment.rows <= rows, "a segment names rows beyond {rows}");
            let tokens = segment.start + segment.rows;
            assert!(tokens <= segment.blocks.len() * BLOCK_TOKENS, "{tokens} tokens overflow their blocks");
        }
    }
}

/// Consecutive tokens of one sequence in a step.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Row of the first token in the step's matrices.
    pub first_row: usize,
    /// Tokens.
    pub rows: usize,
    /// Position of the first token in its sequence; earlier ones are in the cache.
    pub start: usize,
    /// The sequence's blocks, in order.
    pub blocks: &'a [u32],
}

impl Segment<'_> {
    /// The row and the place of every token.
    pub(super) fn places(&self) -> impl Iterator<Item = (usize, Place)> {
        (0..self.rows).map(|i| {
            let position = self.start + i;
            let block = self.blocks[position / BLOCK_TOKENS];
            (self.first_row + i, Place { block, token: position % BLOCK_TOKENS })
        })
    }
}
