//! Loads, stores, atomics, `ldmatrix` and `cp.async`, every access checked and counted.

use super::{
    block::{Block, loaded},
    warp::{Copy, each},
};
use crate::{
    matrix::{self, Lanes},
    program::{Instruction, LaneFn},
    report::{FaultKind, Requests, Wavefronts},
    shared::{Access, wavefronts},
    types::{Space, Type},
};

/// One lane's access.
#[derive(Clone, Copy)]
struct Place {
    warp: usize,
    lane: usize,
    space: Space,
    address: u64,
    bytes: u64,
}

impl Block<'_> {
    fn place(&self, warp: usize, lane: usize, space: Space, address: u64, bytes: u64) -> Place {
        let (space, address) = space.resolve(address);
        Place { warp, lane, space, address, bytes }
    }

    pub(super) fn load(
        &mut self,
        warp: usize,
        lanes: u32,
        instruction: &Instruction,
        space: Space,
        ty: Type,
    ) {
        let base = self.value(warp, instruction.from[0]);
        let (element, count) = (ty.bytes() as usize, instruction.to.len());
        let mut values = vec![[0u64; 32]; count];
        let mut places = Vec::new();
        for lane in each(lanes) {
            let place = self.place(
                warp,
                lane,
                space,
                base[lane].wrapping_add(instruction.offset),
                (element * count) as u64,
            );
            let mut bytes = [0xff; 32];
            if self.read(place, instruction, &mut bytes[..element * count], Access::Read) {
                places.push(place);
            }
            for (value, bytes) in values.iter_mut().zip(bytes.chunks(element)) {
                value[lane] = loaded(ty, bytes);
            }
        }
        for (index, value) in values.iter().enumerate() {
            self.set(warp, instruction, index, lanes, |lane| value[lane]);
        }
        self.count(&places, Access::Read);
    }

    pub(super) fn store(
        &mut self,
        warp: usize,
        lanes: u32,
        instruction: &Instruction,
        space: Space,
        ty: Type,
    ) {
        let base = self.value(warp, instruction.from[0]);
        let values: Vec<Lanes> = instruction.from[1..].iter().map(|value| self.value(warp, *value)).collect();
        let element = ty.bytes() as usize;
        let mut places = Vec::new();
        for lane in each(lanes) {
            let bytes: Vec<u8> =
                values.iter().flat_map(|value| value[lane].to_le_bytes().into_iter().take(element)).collect();
            let address = base[lane].wrapping_add(instruction.offset);
            let place = self.place(warp, lane, space, address, bytes.len() as u64);
            if self.write(place, instruction, &bytes) {
                places.push(place);
            }
        }
        self.count(&places, Access::Write);
    }

    /// Lanes one after another.
    pub(super) fn atomic(
        &mut self,
        warp: usize,
        lanes: u32,
        instruction: &Instruction,
        f: LaneFn,
        space: Space,
        ty: Type,
    ) {
        self.report.counters.atomics += 1;
        let source = |index: usize| self.value(warp, instruction.from[index]).map(|x| x & ty.mask());
        let base = self.value(warp, instruction.from[0]);
        let (a, b) = (source(1), if instruction.from.len() > 2 { source(2) } else { [0; 32] });
        let bytes = ty.bytes() as usize;
        let mut before = [0; 32];
        for lane in each(lanes) {
            let place =
                self.place(warp, lane, space, base[lane].wrapping_add(instruction.offset), bytes as u64);
            let mut old = [0; 8];
            if !self.read(place, instruction, &mut old[..bytes], Access::Atomic) {
                continue;
            }
            before[lane] = loaded(ty, &old[..bytes]) & ty.mask();
            let new = match f {
                LaneFn::Three(f) => f(before[lane], a[lane], b[lane]),
                LaneFn::Two(f) => f(before[lane], a[lane]),
                LaneFn::One(_) | LaneFn::Four(_) => before[lane],
            };
            self.write_atomically(place, instruction, &new.to_le_bytes()[..bytes]);
        }
        if !instruction.to.is_empty() {
            self.set(warp, instruction, 0, lanes, |lane| before[lane]);
        }
    }

    fn write_atomically(&mut self, place: Place, instruction: &Instruction, from: &[u8]) {
        // Shared memory's shadow has seen the atomic already.
        if place.space == Space::Shared {
            self.shared.bytes_mut(place.address, place.bytes).copy_from_slice(from);
        } else {
            self.write(place, instruction, from);
        }
    }

    /// Reads if the whole range is there; what is wrong with it otherwise, or besides, is noted.
    fn read(&mut self, place: Place, instruction: &Instruction, into: &mut [u8], access: Access) -> bool {
        let Place { warp, lane, space, address, bytes } = place;
        if !self.aligned(warp, lane, instruction, address, bytes) {
            return false;
        }
        match space {
            Space::Shared => {
                let there = self.access_shared(place, instruction, access);
                if there {
                    into.copy_from_slice(self.shared.bytes(address, bytes));
                }
                there
            }
            Space::Param => self.read_small(place, instruction, self.launch.params, into),
            Space::Local => {
                let size = self.kernel.local_bytes as usize;
                let own = self.warps[warp].local[lane * size..][..size].to_vec();
                self.read_small(place, instruction, &own, into)
            }
            Space::Global | Space::Generic => self.read_global(place, instruction, into),
        }
    }

    fn read_small(&mut self, place: Place, instruction: &Instruction, from: &[u8], into: &mut [u8]) -> bool {
        let start = usize::try_from(place.address).ok();
        let range = start.and_then(|start| from.get(start..start.checked_add(into.len())?));
        match range {
            Some(range) => into.copy_from_slice(range),
            None => self.outside(place, instruction, FaultKind::OutOfBounds),
        }
        range.is_some()
    }

    fn read_global(&mut self, place: Place, instruction: &Instruction, into: &mut [u8]) -> bool {
        if self.memory.read(place.address, into).is_err() {
            self.outside(place, instruction, FaultKind::GlobalOutOfBoundsRead);
            return false;
        }
        self.check_written(place, instruction);
        true
    }

    fn check_written(&mut self, place: Place, instruction: &Instruction) {
        if !self.memory.is_written(place.address, place.bytes) {
            self.outside(place, instruction, FaultKind::GlobalUninitialised);
        }
    }

    fn write(&mut self, place: Place, instruction: &Instruction, from: &[u8]) -> bool {
        let Place { warp, lane, space, address, bytes } = place;
        if !self.aligned(warp, lane, instruction, address, bytes) {
            return false;
        }
        match space {
            Space::Shared => {
                let there = self.access_shared(place, instruction, Access::Write);
                if there {
                    self.shared.bytes_mut(address, bytes).copy_from_slice(from);
                }
                there
            }
            Space::Param => {
                self.outside(place, instruction, FaultKind::ReadOnly);
                false
            }
            Space::Local => {
                let size = self.kernel.local_bytes as usize;
                let own = &mut self.warps[warp].local[lane * size..][..size];
                let start = usize::try_from(address).ok();
                let range = start.and_then(|start| own.get_mut(start..start.checked_add(from.len())?));
                let there = range.map(|range| range.copy_from_slice(from)).is_some();
                if !there {
                    self.outside(place, instruction, FaultKind::OutOfBounds);
                }
                there
            }
            Space::Global | Space::Generic => {
                let there = self.memory.write(address, from).is_ok();
                if !there {
                    self.outside(place, instruction, FaultKind::GlobalOutOfBoundsWrite);
                }
                there
            }
        }
    }

    fn outside(&mut self, place: Place, instruction: &Instruction, kind: FaultKind) {
        let detail = format!("{} bytes at {:#x}", place.bytes, place.address);
        self.fault(kind, place.warp, place.lane, instruction, detail);
    }

    fn access_shared(&mut self, place: Place, instruction: &Instruction, access: Access) -> bool {
        let by = self.accessor(place.warp, place.lane);
        let Some(wrong) = self.shared.access(by, place.address, place.bytes, access) else {
            self.outside(place, instruction, FaultKind::SharedOutOfBounds);
            return false;
        };
        for (kind, detail) in wrong {
            self.fault(kind, place.warp, place.lane, instruction, detail);
        }
        true
    }

    /// Counts what one instruction of a warp asked for.
    fn count(&mut self, places: &[Place], access: Access) {
        let of = |space: Space| -> Vec<(u64, u64)> {
            places
                .iter()
                .filter(|place| place.space == space)
                .map(|place| (place.address, place.bytes))
                .collect()
        };
        self.count_global(&of(Space::Global), access);
        let shared = of(Space::Shared);
        add(&mut self.report.counters.shared, &wavefronts(&shared));
        self.count_shared(&shared, access);
        self.report.counters.local_bytes += of(Space::Local).iter().map(|(_, bytes)| bytes).sum::<u64>();
    }

    fn count_shared(&mut self, ranges: &[(u64, u64)], access: Access) {
        let counters = &mut self.report.counters;
        let bytes = match access {
            Access::Read => &mut counters.shared_bytes_read,
            Access::Write | Access::Atomic => &mut counters.shared_bytes_written,
        };
        *bytes += ranges.iter().map(|(_, bytes)| bytes).sum::<u64>();
    }

    fn count_global(&mut self, ranges: &[(u64, u64)], access: Access) {
        if ranges.is_empty() {
            return;
        }
        let mut sectors: Vec<u64> =
            ranges.iter().flat_map(|(at, bytes)| at / 32..(at + bytes).div_ceil(32)).collect();
        sectors.sort_unstable();
        sectors.dedup();
        let counters = &mut self.report.counters;
        let requests: &mut Requests = match access {
            Access::Read => &mut counters.global_loads,
            Access::Write | Access::Atomic => &mut counters.global_stores,
        };
        requests.requests += 1;
        requests.sectors += sectors.len() as u64;
        for (address, bytes) in ranges {
            requests.bytes += bytes;
            match access {
                Access::Read => self.memory.count_read(*address, *bytes),
                Access::Write | Access::Atomic => self.memory.count_written(*address, *bytes),
            }
        }
    }

    /// Lanes 8q to 8q + 7 hold the addresses of the rows of matrix q.
    pub(super) fn load_matrices(
        &mut self,
        warp: usize,
        lanes: u32,
        instruction: &Instruction,
        matrices: usize,
        transposed: bool,
    ) {
        self.report.counters.ldmatrix += 1;
        let base = self.value(warp, instruction.from[0]);
        for q in 0..matrices {
            let mut matrix = [[u16::MAX; 8]; 8];
            let mut ranges = Vec::new();
            for (row, elements) in matrix.iter_mut().enumerate() {
                let lane = 8 * q + row;
                let place =
                    self.place(warp, lane, Space::Shared, base[lane].wrapping_add(instruction.offset), 16);
                let mut bytes = [0; 16];
                if self.read(place, instruction, &mut bytes, Access::Read) {
                    ranges.push((place.address, 16));
                    *elements = std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]));
                }
            }
            add(&mut self.report.counters.ldmatrix_shared, &wavefronts(&ranges));
            self.count_shared(&ranges, Access::Read);
            let fragment = matrix::fragment(&matrix, transposed);
            self.set(warp, instruction, q, lanes, |lane| fragment[lane]);
        }
    }

    /// Notes the copies; they happen when their thread waits for them, so that whoever does not wait sees no data.
    pub(super) fn copy_async(&mut self, warp: usize, lanes: u32, instruction: &Instruction, bytes: u32) {
        let (to, from) = (self.value(warp, instruction.from[0]), self.value(warp, instruction.from[1]));
        let bytes = u64::from(bytes);
        let sources = instruction.from.get(2).map_or([bytes; 32], |source| self.value(warp, *source));
        let (mut read, mut written) = (Vec::new(), Vec::new());
        for lane in each(lanes) {
            let source = (sources[lane] & 0xffff_ffff).min(bytes);
            let global = self.place(warp, lane, Space::Global, from[lane], source);
            let shared = self.place(warp, lane, Space::Shared, to[lane], bytes);
            let aligned = self.aligned(warp, lane, instruction, shared.address, bytes)
                && self.aligned(warp, lane, instruction, global.address, bytes);
            if !aligned || !self.access_shared(shared, instruction, Access::Write) {
                continue;
            }
            written.push((shared.address, bytes));
            let readable = source > 0 && self.memory.contains(global.address, source);
            if readable {
                read.push((global.address, source));
                self.check_written(global, instruction);
            } else if source > 0 {
                self.outside(global, instruction, FaultKind::GlobalOutOfBoundsRead);
            }
            self.shared.depart(shared.address, bytes);
            let source = if readable { source } else { 0 };
            self.warps[warp].copies[lane].open.push(Copy {
                shared: shared.address,
                global: global.address,
                bytes,
                source,
            });
        }
        self.count_global(&read, Access::Read);
        add(&mut self.report.counters.cp_async_shared, &wavefronts(&written));
        self.count_shared(&written, Access::Write);
    }

    /// Copies of all but each lane's `left` youngest groups arrive.
    pub(super) fn wait(&mut self, warp: usize, lanes: u32, left: usize) {
        for lane in each(lanes) {
            let by = self.accessor(warp, lane);
            for copy in self.warps[warp].copies[lane].arrivals(left) {
                let mut bytes = [0; 16];
                // Checked when it was issued; what was freed since reads as zeros.
                let _ = self.memory.read(copy.global, &mut bytes[..copy.source as usize]);
                let to = self.shared.bytes_mut(copy.shared, copy.bytes);
                to.copy_from_slice(&bytes[..copy.bytes as usize]);
                self.shared.arrive(by, copy.shared, copy.bytes);
            }
        }
    }
}

fn add(total: &mut Wavefronts, more: &Wavefronts) {
    total.actual += more.actual;
    total.ideal += more.ideal;
}
