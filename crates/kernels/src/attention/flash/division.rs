//! What a call's tasks are made of: rows, or chunks of tokens.

use super::MAX_ROWS;

/// Parts per thread from which on nobody waits long for the last one.
const PARTS_PER_THREAD: usize = 4;

/// What a call has to do, as far as dividing it matters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// Parts that have all groups of their rows.
    pub parts: usize,
    /// Rows of all groups.
    pub rows: usize,
    /// Chunks of the part that has most.
    pub chunks: usize,
}

/// What tasks are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Division {
    /// All chunks and groups of a part each.
    Together,
    /// One chunk of tokens of a part each, merged afterwards.
    Tokens,
    /// So many rows of one group at most.
    Rows(usize),
}

impl Work {
    /// Few long sequences are divided by tokens, so that all threads work and blocks are still read once for all rows;
    /// few short ones by rows. No row's result depends on the choice.
    pub fn division(self, threads: usize, min_rows: usize) -> Division {
        if threads == 1 || self.parts >= PARTS_PER_THREAD * threads {
            Division::Together
        } else if self.chunks > 1 {
            Division::Tokens
        } else {
            Division::Rows(self.rows.div_ceil(2 * threads).clamp(min_rows.min(MAX_ROWS), MAX_ROWS))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Division, Work};

    #[test]
    fn few_sequences_are_divided_by_tokens_when_they_are_long() {
        let division = |parts, rows, chunks, threads| Work { parts, rows, chunks }.division(threads, 3);
        for (parts, rows, chunks, threads, expected) in [
            (1, 9, 1, 2, Division::Rows(3)),
            (1, 20, 1, 2, Division::Rows(5)),
            (1, 9, 2, 2, Division::Tokens),
            (1, 9, 32, 1, Division::Together),
            (8, 72, 32, 2, Division::Together),
            (8, 72, 32, 4, Division::Tokens),
            (8, 1152, 1, 2, Division::Together),
            (7, 1152, 1, 2, Division::Rows(48)),
        ] {
            assert_eq!(division(parts, rows, chunks, threads), expected, "{parts} parts of {chunks} chunks");
        }
    }
}
