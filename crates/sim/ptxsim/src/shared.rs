//! Shared memory of one block and, for every two bytes of it, who wrote and read them since which barrier.
//!
//! Two accesses of different threads, one of them a write, are in order when a block barrier lies between, or, within
//! a warp, a `bar.warp.sync`. Lanes of a warp running in step here is no order: on a GPU they need not. Two bytes are
//! one place, so two threads that each write one byte of them count as a race.

use crate::report::{FaultKind, Wavefronts};

const PLACE: u64 = 2;

/// Who accesses, and what he has passed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accessor {
    pub warp: u32,
    pub lane: u32,
    /// Block barriers that were passed, from 1.
    pub barriers: u32,
    /// Barriers of the warp that were passed, from 1.
    pub warp_barriers: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    /// Reads and writes, and races with everything but others of its kind.
    Atomic,
}

#[derive(Clone, Copy, Default)]
enum Readers {
    #[default]
    None,
    /// Lanes of one warp.
    Lanes(u32),
    /// More than one warp.
    Warps,
}

#[derive(Clone, Copy, Default)]
struct Shadow {
    /// The last plain write; zero barriers: there was none.
    written: Stamp,
    /// The last atomic.
    changed: Stamp,
    read: Stamp,
    readers: Readers,
    /// A `cp.async` to here has not arrived.
    in_flight: bool,
}

/// When, and by whom.
#[derive(Clone, Copy, Default)]
struct Stamp {
    barriers: u32,
    warp_barriers: u32,
    warp: u32,
    lane: u32,
}

impl Stamp {
    fn of(by: Accessor) -> Self {
        Self { barriers: by.barriers, warp_barriers: by.warp_barriers, warp: by.warp, lane: by.lane }
    }

    /// Whether what was done then is done for `by`.
    fn is_before(self, by: Accessor) -> bool {
        self.barriers < by.barriers
            || (self.warp == by.warp && (self.lane == by.lane || self.warp_barriers < by.warp_barriers))
    }
}

/// The shared memory of a block.
pub(crate) struct Shared {
    data: Vec<u8>,
    shadow: Vec<Shadow>,
}

impl Shared {
    pub fn new(bytes: u32) -> Self {
        let bytes = bytes as usize;
        Self { data: vec![0xff; bytes], shadow: vec![Shadow::default(); bytes.div_ceil(PLACE as usize)] }
    }

    /// As new.
    pub fn clear(&mut self) {
        self.data.fill(0xff);
        self.shadow.fill(Shadow::default());
    }

    /// Notes an access and says what is wrong with it; `None` when it lies outside.
    pub fn access(
        &mut self,
        by: Accessor,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Option<Vec<(FaultKind, String)>> {
        if offset.checked_add(bytes)? > self.data.len() as u64 {
            return None;
        }
        let mut wrong = Vec::new();
        for place in offset / PLACE..(offset + bytes).div_ceil(PLACE) {
            let shadow = &mut self.shadow[place as usize];
            for kind in shadow.access(by, access) {
                let writer = shadow.written;
                wrong.push((
                    kind,
                    format!(
                        "shared offset {}, last written by lane {} of warp {}",
                        place * PLACE,
                        writer.lane,
                        writer.warp
                    ),
                ));
            }
            match access {
                Access::Read => shadow.note_read(by),
                Access::Write | Access::Atomic => shadow.note_write(by, access),
            }
        }
        Some(wrong)
    }

    /// The bytes of a range that [`Self::access`] found inside.
    pub fn bytes(&self, offset: u64, bytes: u64) -> &[u8] {
        &self.data[offset as usize..(offset + bytes) as usize]
    }

    /// As [`Self::bytes`], for writing.
    pub fn bytes_mut(&mut self, offset: u64, bytes: u64) -> &mut [u8] {
        &mut self.data[offset as usize..(offset + bytes) as usize]
    }

    /// A `cp.async` to the range begins: until it arrives, its bytes are no numbers.
    pub fn depart(&mut self, offset: u64, bytes: u64) {
        self.bytes_mut(offset, bytes).fill(0xff);
        self.places(offset, bytes).iter_mut().for_each(|shadow| shadow.in_flight = true);
    }

    /// It has arrived, for the thread that waited.
    pub fn arrive(&mut self, by: Accessor, offset: u64, bytes: u64) {
        for shadow in self.places(offset, bytes) {
            shadow.in_flight = false;
            shadow.note_write(by, Access::Write);
        }
    }

    fn places(&mut self, offset: u64, bytes: u64) -> &mut [Shadow] {
        &mut self.shadow[(offset / PLACE) as usize..(offset + bytes).div_ceil(PLACE) as usize]
    }
}

impl Shadow {
    fn access(&mut self, by: Accessor, access: Access) -> impl Iterator<Item = FaultKind> + use<> {
        let in_flight = std::mem::take(&mut self.in_flight).then_some(FaultKind::SharedInFlight);
        let never = self.written.barriers == 0 && self.changed.barriers == 0;
        let in_order = self.written.is_before(by) && (access == Access::Atomic || self.changed.is_before(by));
        let after_write = match access {
            Access::Read | Access::Atomic if never => Some(FaultKind::SharedUninitialised),
            _ if in_order => None,
            Access::Read => Some(FaultKind::SharedReadAfterWrite),
            Access::Write | Access::Atomic => Some(FaultKind::SharedWriteAfterWrite),
        };
        let after_read =
            (access != Access::Read && !self.reads_are_before(by)).then_some(FaultKind::SharedWriteAfterRead);
        [in_flight, after_write, after_read].into_iter().flatten()
    }

    fn reads_are_before(&self, by: Accessor) -> bool {
        match self.readers {
            Readers::None => true,
            Readers::Warps => self.read.barriers < by.barriers,
            Readers::Lanes(lanes) => {
                let only_own = self.read.warp == by.warp && lanes & !(1 << by.lane) == 0;
                only_own || Stamp { lane: u32::MAX, ..self.read }.is_before(by)
            }
        }
    }

    fn note_write(&mut self, by: Accessor, access: Access) {
        if access == Access::Atomic {
            self.changed = Stamp::of(by);
        } else {
            self.written = Stamp::of(by);
        }
        self.readers = Readers::None;
    }

    fn note_read(&mut self, by: Accessor) {
        let same_epoch = self.read.barriers == by.barriers;
        let same_warp = self.read.warp == by.warp;
        self.readers = match self.readers {
            Readers::Warps if same_epoch => Readers::Warps,
            Readers::Lanes(_) if same_epoch && !same_warp => Readers::Warps,
            Readers::Lanes(lanes) if same_epoch && self.read.warp_barriers == by.warp_barriers => {
                Readers::Lanes(lanes | 1 << by.lane)
            }
            _ => Readers::Lanes(1 << by.lane),
        };
        self.read = Stamp::of(by);
    }
}

/// Passes through the 32 banks of 4 bytes for one instruction of a warp: `ranges` are the lanes' (offset, bytes). As
/// many lanes as together ask for 128 bytes go at once; lanes that ask for the same word share it.
pub(crate) fn wavefronts(ranges: &[(u64, u64)]) -> Wavefronts {
    let mut total = Wavefronts::default();
    let Some((_, bytes)) = ranges.first() else { return total };
    let at_once = (128 / (*bytes).max(1)).clamp(1, 32) as usize;
    for lanes in ranges.chunks(at_once) {
        let mut words: Vec<u64> = lanes.iter().flat_map(|(at, n)| at / 4..(at + n).div_ceil(4)).collect();
        words.sort_unstable();
        words.dedup();
        let mut banks = [0u64; 32];
        words.iter().for_each(|word| banks[(word % 32) as usize] += 1);
        total.actual += banks.into_iter().max().unwrap_or(0);
        total.ideal += 1;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(warp: u32, lane: u32, barriers: u32, warp_barriers: u32) -> Accessor {
        Accessor { warp, lane, barriers, warp_barriers }
    }

    /// What the last of some accesses to one place is told.
    fn last_of(accesses: &[(Accessor, Access)]) -> Vec<FaultKind> {
        let mut shared = Shared::new(4);
        let mut told = Vec::new();
        for (by, access) in accesses {
            told = shared.access(*by, 0, 2, *access).unwrap().into_iter().map(|(kind, _)| kind).collect();
        }
        told
    }

    #[test]
    fn accesses_are_in_order_across_barriers_only() {
        use Access::{Read, Write};
        use FaultKind::{
            SharedReadAfterWrite as Raw, SharedUninitialised as Never, SharedWriteAfterRead as War,
            SharedWriteAfterWrite as Waw,
        };
        let (me, lane, warp) = (by(0, 0, 1, 1), by(0, 1, 1, 1), by(1, 0, 1, 1));
        let (lane_synced, warp_synced) = (by(0, 1, 1, 2), by(1, 0, 1, 2));
        let later = by(1, 0, 2, 2);
        for (name, accesses, expected) in [
            ("unwritten", vec![(me, Read)], vec![Never]),
            ("own", vec![(me, Write), (me, Read), (me, Write)], vec![]),
            ("lane of the warp", vec![(me, Write), (lane, Read)], vec![Raw]),
            ("lane after its warp's barrier", vec![(me, Write), (lane_synced, Read)], vec![]),
            ("another warp's barrier is not ours", vec![(me, Write), (warp_synced, Read)], vec![Raw]),
            ("block barrier", vec![(me, Write), (later, Read)], vec![]),
            ("two writers", vec![(me, Write), (warp, Write)], vec![Waw]),
            ("write over a read", vec![(me, Write), (me, Read), (later, Write)], vec![]),
            (
                "write over another's read",
                vec![(warp, Write), (by(0, 0, 2, 2), Read), (by(1, 0, 2, 2), Write)],
                vec![War],
            ),
            (
                "two lanes read, one writes",
                vec![(me, Write), (by(0, 0, 2, 2), Read), (by(0, 1, 2, 2), Read), (by(0, 1, 2, 2), Write)],
                vec![War],
            ),
            (
                "two warps read, one writes",
                vec![(me, Write), (by(1, 0, 2, 2), Read), (by(0, 0, 2, 2), Read), (by(0, 0, 2, 3), Write)],
                vec![War],
            ),
        ] {
            assert_eq!(last_of(&accesses), expected, "{name}");
        }
    }

    #[test]
    fn a_copy_in_flight_may_not_be_touched() {
        let (mut shared, me) = (Shared::new(32), by(0, 0, 1, 1));
        shared.access(me, 0, 16, Access::Write).unwrap();
        shared.depart(0, 16);
        let wrong = shared.access(me, 14, 4, Access::Read).unwrap();
        assert_eq!(
            wrong.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
            [FaultKind::SharedInFlight, FaultKind::SharedUninitialised]
        );
        shared.depart(0, 16);
        shared.arrive(me, 0, 16);
        assert!(shared.access(me, 0, 16, Access::Read).unwrap().is_empty());
        assert_eq!(shared.access(me, 31, 2, Access::Read), None);
        assert_eq!(shared.access(me, u64::MAX, 2, Access::Read), None);
    }

    #[test]
    fn conflicts_are_words_of_one_bank() {
        let count = |stride: u64, bytes: u64| {
            let w = wavefronts(&(0..32).map(|lane| (lane * stride, bytes)).collect::<Vec<_>>());
            (w.actual, w.ideal)
        };
        assert_eq!(count(4, 4), (1, 1), "one word each");
        assert_eq!(count(0, 4), (1, 1), "one word for all");
        assert_eq!(count(2, 2), (1, 1), "two lanes to a word");
        assert_eq!(count(8, 4), (2, 1), "every other bank");
        assert_eq!(count(128, 4), (32, 1), "one bank");
        assert_eq!(count(16, 16), (4, 4), "eight lanes at once");
        assert_eq!(count(384, 16), (32, 4), "rows of 384 bytes all begin at one bank");
        assert_eq!(wavefronts(&[]), Wavefronts::default());
    }
}
