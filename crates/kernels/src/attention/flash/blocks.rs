//! Where a cache's blocks are, for kernels.

use crate::attention::cache::{BLOCK_TOKENS, LayerCache};

/// The first number and the first scale of a block. Formats without scales have none.
#[derive(Clone, Copy)]
pub(super) struct Block<E> {
    pub numbers: *const E,
    scales: *const f32,
}

impl<E> Block<E> {
    /// The same block's numbers in another order.
    #[inline(always)]
    pub fn reordered(self, numbers: *const E) -> Self {
        Self { numbers, ..self }
    }

    /// Scales of a part of the block's tokens.
    #[inline(always)]
    pub fn scales(&self, part: usize) -> *const f32 {
        self.scales.wrapping_add(part * BLOCK_TOKENS)
    }
}

/// The blocks of a cache, for threads that only read them.
#[derive(Clone, Copy)]
pub(super) struct Blocks<E> {
    first: Block<E>,
    elements: usize,
    scales: usize,
}

// SAFETY: nobody writes the cache while `attend` borrows it.
unsafe impl<E> Sync for Blocks<E> {}

impl<E> Blocks<E> {
    pub fn of(cache: &LayerCache, numbers: &[E], scales: &[f32]) -> Self {
        let first = Block { numbers: numbers.as_ptr(), scales: scales.as_ptr() };
        Self { first, elements: cache.block_elements(), scales: cache.block_scales() }
    }

    #[inline(always)]
    pub fn block(&self, index: u32) -> Block<E> {
        let Block { numbers, scales } = self.first;
        Block {
            numbers: numbers.wrapping_add(index as usize * self.elements),
            scales: scales.wrapping_add(index as usize * self.scales),
        }
    }
}
