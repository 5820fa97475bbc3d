//! The paged cache of one layer and how a step's tokens lie in it.

use gqla_model::CacheFormat;

use crate::{gemm::Element, memory::Lines};

/// Tokens of a cache block.
pub const BLOCK_TOKENS: usize = 64;

/// Blocks of one layer; arithmetic is f32 whatever they store. What lies where in a block is the attention implementation's own affair.
pub struct LayerCache {
    numbers: Numbers,
    blocks: usize,
    elements_per_token: usize,
}

/// The numbers of all blocks. Memory comes page by page when first touched, so unused blocks cost none.
pub(crate) enum Numbers {
    F32(Lines<f32>),
    Bf16(Lines<u16>),
}

fn write<E: Element>(numbers: &mut [E], offset: usize, step: usize, values: &[f32]) {
    let Some(last) = values.len().checked_sub(1) else { return };
    let places = &mut numbers[offset..][..=last * step];
    if step == 1 {
        places.iter_mut().zip(values).for_each(|(place, value)| *place = E::of_f32(*value));
    } else {
        values.iter().enumerate().for_each(|(i, value)| places[i * step] = E::of_f32(*value));
    }
}

fn read<E: Element>(numbers: &[E], offset: usize, out: &mut [f32]) {
    out.iter_mut().zip(&numbers[offset..]).for_each(|(out, number)| *out = number.to_f32());
}

impl LayerCache {
    /// `blocks` blocks of [`BLOCK_TOKENS`] tokens of `elements_per_token` numbers.
    pub fn new(blocks: usize, elements_per_token: usize, format: CacheFormat) -> Self {
        let elements = blocks * BLOCK_TOKENS * elements_per_token;
        let numbers = match format {
            CacheFormat::F32 => Numbers::F32(Lines::zeroed(elements)),
            CacheFormat::Bf16 => Numbers::Bf16(Lines::zeroed(elements)),
        };
        Self { numbers, blocks, elements_per_token }
    }

    /// Numbers the blocks hold.
    pub fn allocated_elements(&self) -> usize {
        self.blocks * self.block_elements()
    }

    /// What they are stored as.
    pub fn format(&self) -> CacheFormat {
        match self.numbers {
            Numbers::F32(_) => CacheFormat::F32,
            Numbers::Bf16(_) => CacheFormat::Bf16,
        }
    }

    /// Blocks in the cache.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    pub(crate) fn block_elements(&self) -> usize {
        BLOCK_TOKENS * self.elements_per_token
    }

    pub(crate) fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Stores numbers in a block, `step` places apart from `offset` on.
    pub(crate) fn write(&mut self, block: u32, offset: usize, step: usize, values: &[f32]) {
        let size = self.block_elements();
        assert!(
            values.is_empty() || offset + (values.len() - 1) * step < size,
            "a token's numbers lie in its block"
        );
        let offset = block as usize * size + offset;
        match &mut self.numbers {
            Numbers::F32(numbers) => write(numbers, offset, step, values),
            Numbers::Bf16(numbers) => write(numbers, offset, step, values),
        }
    }

    /// All numbers of a block.
    pub(crate) fn read(&self, block: u32, out: &mut Vec<f32>) {
        out.resize(self.block_elements(), 0.0);
        let offset = block as usize * self.block_elements();
        match &self.numbers {
            Numbers::F32(numbers) => read(numbers, offset, out),
            Numbers::Bf16(numbers) => read(numbers, offset, out),
        }
    }

    /// Copies one block over another.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let len = self.block_elements();
        let (from, to) = (from as usize * len, to as usize * len);
        match &mut self.numbers {
            Numbers::F32(numbers) => numbers.copy_within(from..from + len, to),
            Numbers::Bf16(numbers) => numbers.copy_within(from..from + len, to),
        }
    }

    /// Panics unless the cache is of such a layer and has these blocks.
    pub(crate) fn check_blocks(&self, blocks: &[u32], elements_per_token: usize) {
        assert_eq!(self.elements_per_token, elements_per_token, "the cache was made for another layer");
        let count = self.blocks;
        assert!(blocks.iter().all(|block| (*block as usize) < count), "no such block of {count}");
    }

    /// Panics unless every segment's tokens lie in blocks of this cache and its rows below `rows`.
    pub(crate) fn check(&self, segments: &[Segment<'_>], elements_per_token: usize, rows: usize) {
        for segment in segments {
            self.check_blocks(segment.blocks, elements_per_token);
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
    /// (row, block, place in the block) of every token.
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, u32, usize)> {
        (0..self.rows).map(|i| {
            let position = self.start + i;
            (self.first_row + i, self.blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS)
        })
    }
}
