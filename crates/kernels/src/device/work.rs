//! What a step's attention consists of: a list of units, which the blocks of a grid that no step decides take in turn.

use std::cmp::Reverse;

use bytemuck::{Pod, Zeroable};

use super::{DecodePlan, DecodeShape};
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
    pub(super) fn pages_per_split(self, pages: usize) -> usize {
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

/// What units are cut to: the rows of a kernel's blocks, and the splits of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// How a row's tokens are divided.
    pub division: Splits,
    /// Query rows of a unit.
    pub rows: usize,
    /// Rows of a query in a group whose heads share keys.
    pub per_group: usize,
    /// Such groups.
    pub groups: usize,
}

/// `Unit` of `attention.cuh`: a split of a tile of query rows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct Unit {
    pub pages: i32,
    pub first_query: i32,
    pub queries: i32,
    pub first_row: i32,
    pub group: i32,
    pub length: i32,
    pub split: i32,
    pub pages_each: i32,
}

impl Unit {
    fn page_count(&self) -> i32 {
        (number(pages_of(self.length as usize)) - self.split * self.pages_each).min(self.pages_each)
    }
}

impl Tiling {
    /// What a step's units are along `plan`, where rows are divided by `division`.
    pub fn of(plan: &DecodePlan, shape: &DecodeShape, division: Splits) -> Self {
        let groups = shape.key_groups(plan.path);
        let [rows, per_group, groups] = [plan.rows, shape.heads / groups, groups].map(|count| count as usize);
        Self { division, rows, per_group, groups }
    }

    /// Tiles of rows that a sequence's `queries` tokens have in each group.
    pub fn tiles(self, queries: usize) -> usize {
        (queries * self.per_group).div_ceil(self.rows)
    }

    /// Units of any step of `rows` rows and sequences of up to `longest` tokens, at most.
    pub(super) fn most_units(self, rows: usize, longest: usize) -> usize {
        // Sequences of one row have most tiles.
        rows.saturating_mul(self.tiles(1) * self.groups).saturating_mul(self.division.most_of(longest))
    }

    /// Units of all rows of `segments`, which come with the place where their pages begin in the page table. Those of most
    /// pages come first, so that blocks which take every so manieth have done about as much when the list ends.
    pub(super) fn units(self, segments: &[Segment<'_>], pages_at: &[usize]) -> Vec<Unit> {
        let mut units = Vec::new();
        for (segment, pages_at) in segments.iter().zip(pages_at) {
            for part in cut(*segment, self.division) {
                self.add(&part, *pages_at, &mut units);
            }
        }
        units.sort_by_key(|unit| Reverse(unit.page_count()));
        units
    }

    /// Units of rows whose splits have one size.
    fn add(self, part: &Segment<'_>, pages_at: usize, units: &mut Vec<Unit>) {
        for tile in 0..self.tiles(part.rows) {
            let end_row = ((tile + 1) * self.rows).min(part.rows * self.per_group);
            let length = part.start + (end_row - 1) / self.per_group + 1;
            let pages = pages_of(length);
            for group in 0..self.groups {
                units.extend((0..self.division.of(pages)).map(|split| Unit {
                    pages: number(pages_at),
                    first_query: number(part.first_row),
                    queries: number(part.rows),
                    first_row: number(tile * self.rows),
                    group: number(group),
                    length: number(length),
                    split: number(split),
                    pages_each: number(self.division.pages_per_split(pages)),
                }));
            }
        }
    }
}

/// Pages of so many tokens.
pub(super) fn pages_of(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

/// What kernels count with; tables of larger caches are refused.
pub(super) fn number(x: usize) -> i32 {
    i32::try_from(x).unwrap_or(i32::MAX)
}

/// A segment's rows in parts whose rows have splits of one size, so that a tile's have.
fn cut(segment: Segment<'_>, division: Splits) -> impl Iterator<Item = Segment<'_>> {
    let mut rest = segment;
    std::iter::from_fn(move || {
        let rows = division.grow_at(rest.start).saturating_sub(rest.start).min(rest.rows);
        let part = Segment { rows, ..rest };
        rest = Segment {
            first_row: rest.first_row + rows,
            rows: rest.rows - rows,
            start: rest.start + rows,
            ..rest
        };
        (rows > 0).then_some(part)
    })
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
        for ((first_row, start, rows), expected) in [
            ((0, 127, 1), vec![(0, 127, 1)]),
            ((1, 100, 400), vec![(1, 100, 28), (29, 128, 128), (157, 256, 244)]),
            ((401, 128, 2), vec![(401, 128, 2)]),
            ((7, 0, 0), vec![]),
        ] {
            let parts = cut(Segment { first_row, rows, start, blocks: &[] }, division);
            let parts: Vec<_> = parts.map(|s| (s.first_row, s.start, s.rows)).collect();
            assert_eq!(parts, expected);
        }
    }

    /// Fields that differ between units: first query, first row, group, length, split, and pages of it.
    fn told(units: &[Unit]) -> Vec<[i32; 6]> {
        let tell = |u: &Unit| [u.first_query, u.first_row, u.group, u.length, u.split, u.page_count()];
        units.iter().map(tell).collect()
    }

    #[test]
    fn a_tile_has_the_splits_of_its_last_query_and_long_units_come_first() {
        let division = Splits { least_pages: 2, most: 2 };
        let tiling = Tiling { division, rows: 4, per_group: 2, groups: 2 };
        let segments = [
            // A page and a token.
            Segment { first_row: 0, rows: 1, start: 64, blocks: &[] },
            // Three pages, in splits of two.
            Segment { first_row: 1, rows: 3, start: 127, blocks: &[] },
            Segment { first_row: 4, rows: 1, start: 511, blocks: &[] },
        ];
        let units = tiling.units(&segments, &[0, 2, 5]);
        assert_eq!(
            told(&units),
            [
                [4, 0, 0, 512, 0, 4],
                [4, 0, 0, 512, 1, 4],
                [4, 0, 1, 512, 0, 4],
                [4, 0, 1, 512, 1, 4],
                [0, 0, 0, 65, 0, 2],
                [0, 0, 1, 65, 0, 2],
                [1, 0, 0, 129, 0, 2],
                [1, 0, 1, 129, 0, 2],
                [1, 4, 0, 130, 0, 2],
                [1, 4, 1, 130, 0, 2],
                [1, 0, 0, 129, 1, 1],
                [1, 0, 1, 129, 1, 1],
                [1, 4, 0, 130, 1, 1],
                [1, 4, 1, 130, 1, 1],
            ]
        );
        assert!(units.iter().all(|unit| unit.pages == [0, 2, 2, 2, 5][unit.first_query as usize]));
        assert!(units.len() <= tiling.most_units(5, 512));
        assert!(tiling.units(&[], &[]).is_empty());
    }

    /// Every block takes every 132nd unit: a sequence of 128k tokens among 200 short ones leaves none with much less to do.
    #[test]
    fn one_long_sequence_idles_no_block() {
        for (rows, per_group, groups) in [(16, 4, 8), (64, 128, 1)] {
            let tiling = Tiling { division: Splits::ENGINE, rows, per_group, groups };
            let long = Segment { first_row: 100, rows: 1, start: (1 << 17) - 1, blocks: &[] };
            let short = |i| Segment { first_row: i, rows: 1, start: 300 + 11 * i, blocks: &[] };
            let segments: Vec<_> = (0..100).map(short).chain([long]).chain((101..201).map(short)).collect();
            let units = tiling.units(&segments, &vec![0; segments.len()]);
            let mut pages = [0; 132];
            for (index, unit) in units.iter().enumerate() {
                pages[index % 132] += unit.page_count();
            }
            let (least, most) = (pages.iter().min().unwrap(), pages.iter().max().unwrap());
            let mean = pages.iter().sum::<i32>() / 132;
            println!(
                "{groups} groups: {} units, {least} to {most} pages a block, {mean} on average",
                units.len()
            );
            let longest = units[0].page_count();
            assert!(most - least <= longest && longest == 64, "{least} to {most}");
        }
    }
}
