//! The paged cache of one layer and how a step's tokens lie in it.

/// Tokens of a cache block.
pub const BLOCK_TOKENS: usize = 64;

/// Bytes of a cache line, which vectors of f32 should not straddle.
const LINE: usize = 64;

/// Blocks of one layer, f32. What lies where in a block is the attention implementation's own affair.
pub struct LayerCache {
    /// Zeroed by the system page by page when first touched, so unused blocks cost no memory.
    data: Vec<f32>,
    /// First element that starts a cache line.
    aligned: usize,
    elements: usize,
    elements_per_token: usize,
}

impl LayerCache {
    /// `blocks` blocks of [`BLOCK_TOKENS`] tokens of `elements_per_token` numbers.
    pub fn new(blocks: usize, elements_per_token: usize) -> Self {
        let elements = blocks * BLOCK_TOKENS * elements_per_token;
        let data = vec![0.0f32; elements + LINE / size_of::<f32>()];
        let aligned = data.as_ptr().align_offset(LINE).min(LINE / size_of::<f32>());
        Self { data, aligned, elements, elements_per_token }
    }

    /// Numbers the blocks hold.
    pub fn allocated_elements(&self) -> usize {
        self.elements
    }

    /// Blocks in the cache.
    pub fn blocks(&self) -> usize {
        self.allocated_elements().checked_div(self.block_elements()).unwrap_or(0)
    }

    pub(crate) fn block_elements(&self) -> usize {
        BLOCK_TOKENS * self.elements_per_token
    }

    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.data[self.aligned..].as_ptr()
    }

    /// One block.
    pub(crate) fn block_mut(&mut self, block: u32) -> &mut [f32] {
        let start = self.aligned + block as usize * self.block_elements();
        let len = self.block_elements();
        &mut self.data[start..start + len]
    }

    /// Panics unless every segment's tokens lie in blocks of this cache and its rows below `rows`.
    pub(crate) fn check(&self, segments: &[Segment<'_>], elements_per_token: usize, rows: usize) {
        assert_eq!(self.elements_per_token, elements_per_token, "the cache was made for another layer");
        for segment in segments {
            assert!(segment.first_row + segment.rows <= rows, "a segment names rows beyond {rows}");
            let tokens = segment.start + segment.rows;
            assert!(tokens <= segment.blocks.len() * BLOCK_TOKENS, "{tokens} tokens overflow their blocks");
            let blocks = self.blocks();
            assert!(
                segment.blocks.iter().all(|block| (*block as usize) < blocks),
                "no such block of {blocks}"
            );
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
