//! Where a step's tokens are, on the device.

use std::ops::Range;

use super::{Buffer, Device, DeviceError};
use crate::attention::{BLOCK_TOKENS, Segment};

/// Into how many splits a row's tokens are divided, which follows from its position alone: a row's bits may depend on
/// nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Splits {
    /// Pages of a split of a short sequence.
    pub least_pages: usize,
    /// Splits of a row at most: where they would be more, each takes twice the pages, and so on.
    pub most: usize,
}

impl Splits {
    /// What the engine decodes with.
    pub const ENGINE: Self = Self { least_pages: 8, most: 32 };

    /// Pages of each split of a row whose tokens are in `pages` pages.
    fn pages_per_split(self, pages: usize) -> usize {
        let (mut each, most) = (self.least_pages.max(1), self.most.max(1));
        while each.saturating_mul(most) < pages {
            each *= 2;
        }
        each
    }

    /// Splits of such a row.
    fn of(self, pages: usize) -> usize {
        pages.div_ceil(self.pages_per_split(pages))
    }

    /// Splits of any row of a sequence of up to `tokens` tokens, at most.
    pub(super) fn most_of(self, tokens: usize) -> usize {
        tokens.div_ceil(BLOCK_TOKENS).div_ceil(self.least_pages.max(1)).min(self.most.max(1))
    }

    /// The first position from `position` on whose splits are larger.
    fn grow_at(self, position: usize) -> usize {
        let pages = position / BLOCK_TOKENS + 1;
        self.pages_per_split(pages).saturating_mul(self.most.max(1)).saturating_mul(BLOCK_TOKENS)
    }
}

/// Positions, slots and pages of a step's rows. Segments must follow each other from row 0 on.
pub struct Tables {
    /// `[rows]`, each token's place in its sequence.
    pub(super) positions: Buffer<i32>,
    /// `[rows]`, page times tokens of a page plus place in the page.
    pub(super) slots: Buffer<i32>,
    /// `[sequences + 1]`
    pub(super) first_rows: Buffer<i32>,
    /// `[sequences, width]`, -1 where a sequence has no page.
    pub(super) pages: Buffer<i32>,
    pub(super) width: usize,
    pub(super) sequences: usize,
    pub(super) rows: usize,
    /// Rows of the sequence that has most.
    pub(super) most_rows: usize,
    /// Tokens of the longest sequence.
    pub(super) longest: usize,
    /// How rows are divided, and into how many splits at most.
    pub(super) division: Splits,
    pub(super) splits: usize,
    /// Pages that there are at least.
    pub(super) page_count: usize,
}

impl Tables {
    /// Copies to the device where the tokens of `segments` are in a cache of `page_count` pages, and how rows are divided.
    ///
    /// # Errors
    /// When segments leave rows out, or name pages that are not there; when the device refuses.
    pub fn new(
        device: &Device,
        segments: &[Segment<'_>],
        page_count: usize,
        division: Splits,
    ) -> Result<Self, DeviceError> {
        let segments = cut(segments, division);
        let host = HostTables::of(&segments, page_count)
            .map_err(|reason| DeviceError::arguments("tables", reason))?;
        let splits =
            |segment: &Segment<'_>| division.of((segment.start + segment.rows).div_ceil(BLOCK_TOKENS));
        Ok(Self {
            positions: device.upload("positions", &host.positions)?,
            slots: device.upload("slots", &host.slots)?,
            first_rows: device.upload("first rows", &host.first_rows)?,
            pages: device.upload("page table", &host.pages)?,
            width: host.width,
            sequences: segments.len(),
            rows: host.positions.len(),
            most_rows: segments.iter().map(|segment| segment.rows).max().unwrap_or(0),
            longest: segments.iter().map(|segment| segment.start + segment.rows).max().unwrap_or(0),
            division,
            splits: segments.iter().map(splits).max().unwrap_or(0),
            page_count,
        })
    }

    /// Tokens of the step.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// Pages that follow each other, as what is computed for all of their tokens is stored.
pub struct PageRun {
    pub(super) first: usize,
    pub(super) tables: Tables,
}

impl PageRun {
    /// `pages` of a cache of `page_count`.
    ///
    /// # Errors
    /// When there are none or some are not there; when the device refuses.
    pub fn new(device: &Device, pages: Range<u32>, page_count: usize) -> Result<Self, DeviceError> {
        let (first, rows) = (pages.start as usize, pages.len() * BLOCK_TOKENS);
        let blocks: Vec<u32> = pages.collect();
        let segment = Segment { first_row: 0, rows, start: 0, blocks: &blocks };
        Ok(Self { first, tables: Tables::new(device, &[segment], page_count, Splits::ENGINE)? })
    }
}

/// Segments as kernels take them: all rows of one have splits of one size.
fn cut<'a>(segments: &[Segment<'a>], division: Splits) -> Vec<Segment<'a>> {
    let mut cut = Vec::with_capacity(segments.len());
    for segment in segments {
        let mut rest = *segment;
        while rest.start + rest.rows > division.grow_at(rest.start) {
            let rows = division.grow_at(rest.start) - rest.start;
            cut.push(Segment { rows, ..rest });
            rest = Segment {
                first_row: rest.first_row + rows,
                rows: rest.rows - rows,
                start: rest.start + rows,
                ..rest
            };
        }
        cut.push(rest);
    }
    cut
}

#[derive(Debug, Default, PartialEq, Eq)]
struct HostTables {
    positions: Vec<i32>,
    slots: Vec<i32>,
    first_rows: Vec<i32>,
    pages: Vec<i32>,
    width: usize,
}

impl HostTables {
    fn of(segments: &[Segment<'_>], page_count: usize) -> Result<Self, String> {
        if page_count.saturating_mul(BLOCK_TOKENS) > i32::MAX as usize {
            return Err(format!(
                "{page_count} pages of {BLOCK_TOKENS} tokens are more than kernels count, 2^31 - 1"
            ));
        }
        let pages_of = |segment: &Segment<'_>| (segment.start + segment.rows).div_ceil(BLOCK_TOKENS);
        let width = segments.iter().map(pages_of).max().unwrap_or(0);
        let mut tables = Self { first_rows: vec![0], width, ..Self::default() };
        for segment in segments {
            let (row, needed) = (tables.positions.len(), pages_of(segment));
            if segment.first_row != row || segment.rows == 0 {
                return Err(format!(
                    "a segment of {} rows begins at {}, expected some at {row}",
                    segment.rows, segment.first_row
                ));
            }
            let pages = segment.blocks.get(..needed).ok_or_else(|| {
                format!(
                    "{} tokens need {needed} pages, the sequence has {}",
                    segment.start + segment.rows,
                    segment.blocks.len()
                )
            })?;
            if let Some(page) = pages.iter().find(|page| **page as usize >= page_count) {
                return Err(format!("page {page} of {page_count}"));
            }
            let positions = segment.start..segment.start + segment.rows;
            tables.positions.extend(positions.clone().map(number));
            tables.slots.extend(positions.map(|position| {
                number(pages[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS)
            }));
            tables.first_rows.push(number(tables.positions.len()));
            tables.pages.extend(pages.iter().map(|page| number(*page as usize)));
            tables.pages.extend(std::iter::repeat_n(-1, width - needed));
        }
        Ok(tables)
    }
}

/// What kernels count with; tables of larger caches are refused.
fn number(x: usize) -> i32 {
    i32::try_from(x).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_grow_with_the_position_and_never_become_more_than_there_may_be() {
        let division = Splits { least_pages: 2, most: 4 };
        for (pages, each, splits) in [
            (1, 2, 1),
            (2, 2, 1),
            (3, 2, 2),
            (8, 2, 4),
            (9, 4, 3),
            (16, 4, 4),
            (17, 8, 3),
            (1 << 20, 1 << 18, 4),
        ] {
            assert_eq!((division.pages_per_split(pages), division.of(pages)), (each, splits), "{pages}");
        }
        for (tokens, most) in [(1, 1), (129, 2), (8 * 64, 4), (9 * 64, 4), (1 << 20, 4)] {
            assert_eq!(division.most_of(tokens), most, "{tokens}");
        }
        for (position, grows) in [(0, 512), (511, 512), (512, 1024), (1023, 1024), (1024, 2048)] {
            assert_eq!(division.grow_at(position), grows, "{position}");
        }
    }

    #[test]
    fn segments_are_cut_where_splits_grow() {
        let division = Splits { least_pages: 1, most: 2 };
        let blocks: Vec<u32> = (0..20).collect();
        let segments = [
            Segment { first_row: 0, rows: 1, start: 127, blocks: &blocks },
            Segment { first_row: 1, rows: 400, start: 100, blocks: &blocks },
            Segment { first_row: 401, rows: 2, start: 128, blocks: &blocks },
        ];
        let cut: Vec<_> = cut(&segments, division).iter().map(|s| (s.first_row, s.start, s.rows)).collect();
        assert_eq!(cut, [(0, 127, 1), (1, 100, 28), (29, 128, 128), (157, 256, 244), (401, 128, 2)]);
    }

    #[test]
    fn rows_follow_each_other_and_pages_are_there() {
        let segments = [
            Segment { first_row: 0, rows: 2, start: 63, blocks: &[4, 2, 9] },
            Segment { first_row: 2, rows: 1, start: 0, blocks: &[1] },
        ];
        let tables = HostTables::of(&segments, 5).unwrap();
        assert_eq!(tables.positions, [63, 64, 0]);
        assert_eq!(tables.slots, [4 * 64 + 63, 2 * 64, 64]);
        assert_eq!((tables.first_rows, tables.pages, tables.width), (vec![0, 2, 3], vec![4, 2, 1, -1], 2));
        for (segment, reason) in [
            (Segment { first_row: 1, rows: 1, start: 0, blocks: &[0] }, "begins at 1"),
            (Segment { first_row: 0, rows: 0, start: 0, blocks: &[0] }, "0 rows"),
            (Segment { first_row: 0, rows: 1, start: 64, blocks: &[0] }, "need 2 pages"),
            (Segment { first_row: 0, rows: 1, start: 0, blocks: &[5] }, "page 5 of 5"),
        ] {
            let error = HostTables::of(&[segment], 5).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
