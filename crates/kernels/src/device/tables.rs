//! Where a step's tokens are, on the device, and what attending to them consists of.

use std::ops::Range;

use super::{
    Buffer, Device, DeviceError, Tiling,
    work::{Unit, number, pages_of},
};
use crate::attention::{BLOCK_TOKENS, Segment};

/// Numbers of a unit of work, and of what comes before the first: `Work` of `attention.cuh`.
const UNIT_NUMBERS: usize = size_of::<Unit>() / size_of::<i32>();

/// Positions, slots, pages and work of a step's rows. Segments must follow each other from row 0 on.
///
/// Every step of an engine has the same places, so that what is launched does not depend on the step: how much of them it
/// uses is written there too.
pub struct Tables {
    /// `[rows]`, each token's place in its sequence.
    pub(super) positions: Buffer<i32>,
    /// `[rows]`, page times tokens of a page plus place in the page.
    pub(super) slots: Buffer<i32>,
    /// Each sequence's pages, one after the other.
    pub(super) pages: Buffer<i32>,
    /// Units and rows of the step, then its units.
    pub(super) work: Buffer<i32>,
    /// What attends; nothing where there is none.
    pub(super) tiling: Option<Tiling>,
    pub(super) room: Room,
    pub(super) rows: usize,
    /// Tokens of the longest sequence.
    pub(super) longest: usize,
    /// Pages that there are at least.
    pub(super) page_count: usize,
    /// Rows that a library multiplies, in runs.
    pub(super) library: Vec<Range<usize>>,
}

/// What tables have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub rows: usize,
    pub pages: usize,
    pub units: usize,
    /// Of a row.
    pub splits: usize,
}

impl Room {
    fn of_steps(tiling: Tiling, [rows, longest]: [usize; 2]) -> Self {
        Self {
            rows,
            pages: rows * pages_of(longest),
            units: tiling.most_units(rows, longest),
            splits: tiling.division.most_of(longest),
        }
    }

    fn of(host: &HostTables) -> Self {
        Self {
            rows: host.positions.len(),
            pages: host.pages.len(),
            units: host.units.len(),
            splits: host.units.iter().map(|unit| unit.split as usize + 1).max().unwrap_or(0),
        }
    }

    fn holds(&self, needed: &Self) -> bool {
        needed.rows <= self.rows
            && needed.pages <= self.pages
            && needed.units <= self.units
            && needed.splits <= self.splits
    }

    /// Of positions, of slots, of pages and of work.
    fn numbers(&self) -> [usize; 4] {
        [self.rows, self.rows, self.pages, UNIT_NUMBERS * (1 + self.units)]
    }
}

impl Tables {
    /// Room for steps of up to `rows` rows, of sequences of up to `longest` tokens, whose rows attend as `tiling` says.
    ///
    /// # Errors
    /// When memory is short.
    pub fn room(device: &Device, tiling: Tiling, [rows, longest]: [usize; 2]) -> Result<Self, DeviceError> {
        Self::unwritten(device, Some(tiling), Room::of_steps(tiling, [rows, longest]))
    }

    /// Bytes of that.
    pub fn bytes(tiling: Tiling, [rows, longest]: [usize; 2]) -> usize {
        Room::of_steps(tiling, [rows, longest]).numbers().iter().sum::<usize>() * size_of::<i32>()
    }

    /// Tables of one step, as [`Self::set`] makes them; nothing attends without a `tiling`.
    ///
    /// # Errors
    /// As [`Self::set`], or when memory is short.
    pub fn new(
        device: &Device,
        segments: &[Segment<'_>],
        page_count: usize,
        tiling: Option<Tiling>,
    ) -> Result<Self, DeviceError> {
        let host = HostTables::of(segments, page_count, tiling)?;
        let mut tables = Self::unwritten(device, tiling, Room::of(&host))?;
        tables.write(device, &host, page_count)?;
        Ok(tables)
    }

    /// Copies to the device where the tokens of `segments` are in a cache of `page_count` pages, and what attends to what.
    /// The step before may still be under way there.
    ///
    /// # Errors
    /// When segments leave rows out, name pages that are not there, or are more than there is room for; when the device refuses.
    pub fn set(
        &mut self,
        device: &Device,
        segments: &[Segment<'_>],
        page_count: usize,
    ) -> Result<(), DeviceError> {
        let host = HostTables::of(segments, page_count, self.tiling)?;
        let needed = Room::of(&host);
        if !self.room.holds(&needed) {
            let reason = format!("a step needs {needed:?}, the engine made {:?}", self.room);
            return Err(DeviceError::arguments("tables", reason));
        }
        self.write(device, &host, page_count)
    }

    fn unwritten(device: &Device, tiling: Option<Tiling>, room: Room) -> Result<Self, DeviceError> {
        let [positions, slots, pages, work] = room.numbers();
        Ok(Self {
            positions: device.unwritten("positions", positions)?,
            slots: device.unwritten("slots", slots)?,
            pages: device.unwritten("page table", pages)?,
            work: device.unwritten("attention's units", work)?,
            tiling,
            room,
            rows: 0,
            longest: 0,
            page_count: 0,
            library: Vec::new(),
        })
    }

    /// Has a library multiply runs of this step's rows, as [`PromptGemm::library_rows`](super::PromptGemm::library_rows) names
    /// them.
    pub fn give_library(&mut self, runs: Vec<Range<usize>>) {
        self.library = runs;
    }

    fn write(&mut self, device: &Device, host: &HostTables, page_count: usize) -> Result<(), DeviceError> {
        device.write(&mut self.positions, 0, &host.positions)?;
        device.write(&mut self.slots, 0, &host.slots)?;
        device.write(&mut self.pages, 0, &host.pages)?;
        device.write(&mut self.work, 0, &host.work())?;
        self.rows = host.positions.len();
        self.longest = host.longest;
        self.page_count = page_count;
        self.library.clear();
        Ok(())
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
    /// Pages in runs of neighbours, in order, of up to `most`.
    pub fn ranges(pages: &[u32], most: usize) -> impl Iterator<Item = Range<u32>> + '_ {
        let follows = |a: &u32, b: &u32| a + 1 == *b;
        let range = |run: &[u32]| run[0]..run[0] + run.len() as u32;
        pages.chunk_by(follows).flat_map(move |run| run.chunks(most.max(1)).map(range))
    }

    /// `pages`, whose tokens go to as many pages from `to` on, of a cache of `page_count`.
    ///
    /// # Errors
    /// When there are none or some are not there; when the device refuses.
    pub fn new(device: &Device, pages: Range<u32>, to: u32, page_count: usize) -> Result<Self, DeviceError> {
        let (first, rows) = (pages.start as usize, pages.len() * BLOCK_TOKENS);
        let blocks: Vec<u32> = (to..).take(pages.len()).collect();
        let segment = Segment { first_row: 0, rows, start: 0, blocks: &blocks };
        Ok(Self { first, tables: Tables::new(device, &[segment], page_count, None)? })
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct HostTables {
    positions: Vec<i32>,
    slots: Vec<i32>,
    pages: Vec<i32>,
    units: Vec<Unit>,
    longest: usize,
}

impl HostTables {
    fn of(segments: &[Segment<'_>], page_count: usize, tiling: Option<Tiling>) -> Result<Self, DeviceError> {
        let (mut tables, mut pages_at) = (Self::default(), Vec::with_capacity(segments.len()));
        if page_count.saturating_mul(BLOCK_TOKENS) > i32::MAX as usize {
            return Err(wrong(format!(
                "{page_count} pages of {BLOCK_TOKENS} tokens are more than kernels count, 2^31 - 1"
            )));
        }
        for segment in segments {
            pages_at.push(tables.pages.len());
            tables.add(segment, page_count).map_err(wrong)?;
        }
        tables.units = tiling.map(|tiling| tiling.units(segments, &pages_at)).unwrap_or_default();
        Ok(tables)
    }

    fn add(&mut self, segment: &Segment<'_>, page_count: usize) -> Result<(), String> {
        let (row, tokens) = (self.positions.len(), segment.start + segment.rows);
        if segment.first_row != row || segment.rows == 0 {
            return Err(format!(
                "a segment of {} rows begins at {}, expected some at {row}",
                segment.rows, segment.first_row
            ));
        }
        let needed = pages_of(tokens);
        let pages = segment.blocks.get(..needed).ok_or_else(|| {
            format!("{tokens} tokens need {needed} pages, the sequence has {}", segment.blocks.len())
        })?;
        if let Some(page) = pages.iter().find(|page| **page as usize >= page_count) {
            return Err(format!("page {page} of {page_count}"));
        }
        let positions = segment.start..tokens;
        self.positions.extend(positions.clone().map(number));
        self.slots.extend(positions.map(|position| {
            number(pages[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS)
        }));
        self.pages.extend(pages.iter().map(|page| number(*page as usize)));
        self.longest = self.longest.max(tokens);
        Ok(())
    }

    /// `Work` of `attention.cuh`, and the units after it.
    fn work(&self) -> Vec<i32> {
        let mut work = vec![0; UNIT_NUMBERS];
        (work[0], work[1]) = (number(self.units.len()), number(self.positions.len()));
        work.extend_from_slice(bytemuck::cast_slice(&self.units));
        work
    }
}

fn wrong(reason: String) -> DeviceError {
    DeviceError::arguments("tables", reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Splits;

    #[test]
    fn runs_end_at_gaps_and_at_what_fits() {
        let runs = |pages: &[u32]| PageRun::ranges(pages, 2).collect::<Vec<_>>();
        assert_eq!(runs(&[0, 1, 2, 4, 8, 7]), [0..2, 2..3, 4..5, 8..9, 7..8]);
        assert!(runs(&[]).is_empty());
    }

    #[test]
    fn rows_follow_each_other_and_pages_are_there() {
        let segments = [
            Segment { first_row: 0, rows: 2, start: 63, blocks: &[4, 2, 9] },
            Segment { first_row: 2, rows: 1, start: 0, blocks: &[1] },
        ];
        let tables = HostTables::of(&segments, 5, None).unwrap();
        assert_eq!(tables.positions, [63, 64, 0]);
        assert_eq!(tables.slots, [4 * 64 + 63, 2 * 64, 64]);
        assert_eq!((tables.pages.as_slice(), tables.longest), (&[4, 2, 1][..], 65));
        assert_eq!(tables.work(), [0, 3, 0, 0, 0, 0, 0, 0]);
        for (segment, reason) in [
            (Segment { first_row: 1, rows: 1, start: 0, blocks: &[0] }, "begins at 1"),
            (Segment { first_row: 0, rows: 0, start: 0, blocks: &[0] }, "0 rows"),
            (Segment { first_row: 0, rows: 1, start: 64, blocks: &[0] }, "need 2 pages"),
            (Segment { first_row: 0, rows: 1, start: 0, blocks: &[5] }, "page 5 of 5"),
        ] {
            let error = HostTables::of(&[segment], 5, None).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn units_name_where_pages_are_and_any_step_of_an_engine_has_room() {
        let tiling =
            Tiling { division: Splits { least_pages: 1, most: 2 }, rows: 4, per_group: 6, groups: 2 };
        let blocks: Vec<u32> = (0..4).collect();
        let room = Room::of_steps(tiling, [3, 256]);
        // Three sequences of one row, a sequence of three, and one that splits' growth cuts in two.
        for (steps, units, at) in [
            (vec![(0, 1, 255), (1, 1, 10), (2, 1, 100)], 4 * (2 + 1 + 2), vec![0, 4, 5]),
            (vec![(0, 3, 100)], 2 * 5 * 2, vec![0]),
            (vec![(0, 3, 127)], 2 * (2 * 2 + 3 * 2), vec![0]),
        ] {
            let segment = |(first_row, rows, start)| Segment { first_row, rows, start, blocks: &blocks };
            let segments: Vec<_> = steps.into_iter().map(segment).collect();
            let host = HostTables::of(&segments, 4, Some(tiling)).unwrap();
            assert_eq!(host.units.len(), units, "{segments:?}");
            let mut places: Vec<_> = host.units.iter().map(|unit| unit.pages).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places, at);
            let work = host.work();
            assert_eq!((work.len(), &work[..2]), (8 * (1 + units), &[number(units), 3][..]));
            assert_eq!(work[8..16], bytemuck::cast::<Unit, [i32; 8]>(host.units[0]));
            assert!(room.holds(&Room::of(&host)), "{room:?}");
        }
        assert!(!room.holds(&Room { rows: 4, ..room }));
    }
}
