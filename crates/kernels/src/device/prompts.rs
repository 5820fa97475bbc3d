//! Who multiplies the rows of a step: our kernels, or a library those of prompts.

use std::ops::Range;

use super::gemm::BLOCKS;
use crate::attention::Segment;

/// What multiplies the rows of prompts. Rows that decode and rows of drafts are always our kernels', and so are experts, the
/// absorb path's products per group, and logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptGemm {
    /// Our kernels: a row's bits depend on that row alone.
    #[default]
    Own,
    /// cuBLASLt, opened when a model is loaded: prompts' bits then depend on how steps cut them, and so on what shares those
    /// steps. Has run on no GPU.
    CublasLt,
}

impl PromptGemm {
    /// Rows that the library multiplies, in runs of neighbours: those of segments with more than `decoding` rows, which is a
    /// token and all drafts that may follow it. Runs that our kernels multiply in tiles for few rows stay theirs.
    pub fn library_rows(self, segments: &[Segment<'_>], decoding: usize) -> Vec<Range<usize>> {
        if self == Self::Own {
            return Vec::new();
        }
        let mut runs: Vec<Range<usize>> = Vec::new();
        for segment in segments.iter().filter(|segment| segment.rows > decoding) {
            let rows = segment.first_row..segment.first_row + segment.rows;
            match runs.last_mut().filter(|run| run.end == rows.start) {
                Some(run) => run.end = rows.end,
                None => runs.push(rows),
            }
        }
        let few = BLOCKS[BLOCKS.len() - 2].rows;
        runs.retain(|run| run.len() > few);
        runs
    }
}

/// How prompts attend that are stored as latents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptAttention {
    /// As every token does, to latents.
    #[default]
    Latents,
    /// As along the GQA path, to keys and values that are made of the latents for the step: fewer multiplications, and other
    /// bits than a token has that is decoded at the same place. Has run on no GPU.
    Groups,
}

/// Neighbouring segments of a step that attend alike, or a prompt that attends in groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attending {
    /// Which of the step's.
    pub segments: Range<usize>,
    /// One segment, in groups.
    pub grouped: bool,
}

impl Attending {
    /// All segments in order, where prompts attend in groups: those with more than `decoding` rows, which is a token and all
    /// drafts that may follow it.
    pub fn parts(segments: &[Segment<'_>], decoding: usize) -> Vec<Self> {
        let mut parts: Vec<Self> = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            let grouped = segment.rows > decoding;
            match parts.last_mut() {
                Some(part) if !part.grouped && !grouped => part.segments.end = index + 1,
                _ => parts.push(Self { segments: index..index + 1, grouped }),
            }
        }
        parts
    }
}

/// All `rows` rows of a step in order, and whether the library multiplies them: those of `library` it does.
pub(super) fn parts(rows: usize, library: &[Range<usize>]) -> Vec<(Range<usize>, bool)> {
    let mut parts = Vec::with_capacity(2 * library.len() + 1);
    let mut next = 0;
    for run in library {
        parts.extend([(next..run.start, false), (run.clone(), true)]);
        next = run.end;
    }
    parts.push((next..rows, false));
    parts.retain(|(part, _)| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments of so many rows, one after another.
    fn segments(rows: &[usize]) -> Vec<Segment<'static>> {
        let mut first_row = 0;
        let segment = |rows: &usize| {
            let segment = Segment { first_row, rows: *rows, start: 0, blocks: &[] };
            first_row += rows;
            segment
        };
        rows.iter().map(segment).collect()
    }

    #[test]
    fn only_rows_of_prompts_are_the_librarys_and_only_where_they_are_many() {
        for (rows, decoding, expected) in [
            (&[65][..], 1, &[[0, 65]][..]),
            (&[64], 1, &[]),
            (&[1, 1, 100], 1, &[[2, 102]]),
            (&[1, 1, 40, 30], 1, &[[2, 72]]),
            (&[1, 40, 1, 30, 1], 1, &[]),
            (&[1, 100, 1, 1, 70, 3], 1, &[[1, 101], [103, 176]]),
            // Four drafts: a prompt's last rows may be as few, and are not told apart.
            (&[5, 100, 5, 5], 5, &[[5, 105]]),
            (&[5, 5, 5, 6, 60], 5, &[[15, 81]]),
            (&[1; 200], 1, &[]),
            (&[16; 32], 16, &[]),
        ] {
            let segments = segments(rows);
            let runs = PromptGemm::CublasLt.library_rows(&segments, decoding);
            let runs: Vec<[usize; 2]> = runs.into_iter().map(|run| [run.start, run.end]).collect();
            assert_eq!(runs, expected, "{rows:?}");
            assert!(PromptGemm::Own.library_rows(&segments, decoding).is_empty());
        }
    }

    #[test]
    fn prompts_attend_one_by_one_and_others_together() {
        for (rows, decoding, expected) in [
            (&[1, 1, 70, 9, 1, 2][..], 2, &[(0, 2, false), (2, 3, true), (3, 4, true), (4, 6, false)][..]),
            (&[3, 1], 2, &[(0, 1, true), (1, 2, false)]),
            (&[2, 2, 1], 2, &[(0, 3, false)]),
            (&[], 1, &[]),
        ] {
            let parts = Attending::parts(&segments(rows), decoding).into_iter();
            let parts: Vec<_> =
                parts.map(|part| (part.segments.start, part.segments.end, part.grouped)).collect();
            assert_eq!(parts, expected, "{rows:?}");
        }
    }

    #[test]
    fn parts_are_all_rows_in_order() {
        let (ours, library) = (|rows| (rows, false), |rows| (rows, true));
        for (rows, runs, expected) in [
            (7, &[][..], vec![ours(0..7)]),
            (70, &[[0, 70]], vec![library(0..70)]),
            (72, &[[2, 72]], vec![ours(0..2), library(2..72)]),
            (
                200,
                &[[1, 80], [90, 180]],
                vec![ours(0..1), library(1..80), ours(80..90), library(90..180), ours(180..200)],
            ),
        ] {
            let runs: Vec<Range<usize>> = runs.iter().map(|[start, end]| *start..*end).collect();
            assert_eq!(parts(rows, &runs), expected);
        }
    }
}
