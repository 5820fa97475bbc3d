//! Global memory: allocations far apart, and which of their bytes somebody wrote.

use std::{cell::Cell, collections::BTreeMap};

use crate::report::Traffic;

/// Free addresses between two allocations. An index that is wrong by a whole tensor still hits nothing.
const RED_ZONE: u64 = 1 << 30;
/// Allocations begin at multiples of this, as CUDA's do at multiples of 256.
const ALIGN: u64 = 512;
const FIRST: u64 = 1 << 40;
/// Addresses of the windows begin above.
const LAST: u64 = 1 << 62;

/// Why memory can't be had or reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The device is full.
    #[error("{wanted} bytes wanted, {free} of {capacity} free")]
    Full {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes not allocated.
        free: u64,
        /// Bytes there are.
        capacity: u64,
    },
    /// No single allocation holds the range.
    #[error("{bytes} bytes at {address:#x} lie in no allocation")]
    OutOfBounds {
        /// First byte.
        address: u64,
        /// Length.
        bytes: u64,
    },
    /// Allocations are freed by their first address, once.
    #[error("no allocation begins at {address:#x}")]
    NotAllocated {
        /// What was to be freed.
        address: u64,
    },
}

/// The memory of one device.
#[derive(Debug)]
pub struct GlobalMemory {
    capacity: u64,
    allocated: u64,
    next: u64,
    /// In the order of their addresses, which only grow: what was freed is never allocated again.
    buffers: Vec<Buffer>,
    /// Where the last look-up ended, since the next one usually ends there as well.
    last: Cell<usize>,
}

#[derive(Debug)]
struct Buffer {
    address: u64,
    data: Vec<u8>,
    /// A bit per byte that was written.
    written: Vec<u64>,
    traffic: Traffic,
}

impl GlobalMemory {
    /// A device with `capacity` bytes. The host's memory is only taken as bytes are written.
    pub fn new(capacity: u64) -> Self {
        Self::at(0, capacity)
    }

    /// As [`Self::new`], with all addresses above `base`.
    pub fn at(base: u64, capacity: u64) -> Self {
        Self {
            capacity,
            allocated: 0,
            next: FIRST.saturating_add(base),
            buffers: Vec::new(),
            last: Cell::new(0),
        }
    }

    /// Bytes there are.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes that are allocated.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// A new allocation's address.
    ///
    /// # Errors
    /// When the device is full.
    pub fn allocate(&mut self, bytes: u64) -> Result<u64, MemoryError> {
        let free = self.capacity - self.allocated;
        let full = MemoryError::Full { wanted: bytes, free, capacity: self.capacity };
        let length = usize::try_from(bytes).map_err(|_| full)?;
        let address = self.next;
        let end =
            address.checked_add(bytes).filter(|end| bytes <= free && *end < LAST - RED_ZONE).ok_or(full)?;
        self.next = (end + RED_ZONE).next_multiple_of(ALIGN);
        self.allocated += bytes;
        let traffic = Traffic { size: bytes, read: 0, written: 0 };
        self.buffers.push(Buffer {
            address,
            data: vec![0; length],
            written: vec![0; length.div_ceil(64)],
            traffic,
        });
        Ok(address)
    }

    /// Gives an allocation back.
    ///
    /// # Errors
    /// When none begins at `address`.
    pub fn free(&mut self, address: u64) -> Result<(), MemoryError> {
        let found = self.buffers.binary_search_by_key(&address, |buffer| buffer.address);
        let buffer = self.buffers.remove(found.map_err(|_| MemoryError::NotAllocated { address })?);
        self.allocated -= buffer.traffic.size;
        Ok(())
    }

    /// Whether one allocation holds the range.
    pub fn contains(&self, address: u64, bytes: u64) -> bool {
        self.find(address, bytes).is_some()
    }

    /// Copies out. Bytes that nobody wrote read as 0xff, which in all our formats is no number.
    ///
    /// # Errors
    /// When no single allocation holds the range.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let bytes = into.len() as u64;
        let (index, offset) = self.find(address, bytes).ok_or(MemoryError::OutOfBounds { address, bytes })?;
        self.buffers[index].read(offset, into);
        Ok(())
    }

    /// Copies in.
    ///
    /// # Errors
    /// When no single allocation holds the range.
    pub fn write(&mut self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let bytes = from.len() as u64;
        let (index, offset) = self.find(address, bytes).ok_or(MemoryError::OutOfBounds { address, bytes })?;
        self.buffers[index].write(offset, from);
        Ok(())
    }

    /// Copies from one range to another, which may overlap. Bytes that nobody wrote are not copied.
    ///
    /// # Errors
    /// When no single allocation holds one of the ranges.
    pub fn copy(&mut self, to: u64, from: u64, bytes: u64) -> Result<(), MemoryError> {
        let (source, at) = self.find(from, bytes).ok_or(MemoryError::OutOfBounds { address: from, bytes })?;
        if !self.contains(to, bytes) {
            return Err(MemoryError::OutOfBounds { address: to, bytes });
        }
        for (offset, run) in self.buffers[source].written_runs(at, bytes as usize) {
            self.write(to + offset as u64, &run)?;
        }
        Ok(())
    }

    /// Whether somebody wrote all bytes of a range that lies in an allocation.
    pub fn is_written(&self, address: u64, bytes: u64) -> bool {
        self.find(address, bytes)
            .is_some_and(|(index, offset)| self.buffers[index].is_written(offset, bytes as usize))
    }

    fn find(&self, address: u64, bytes: u64) -> Option<(usize, usize)> {
        let offset_in = |index: usize| {
            let buffer = self.buffers.get(index)?;
            let offset = address.checked_sub(buffer.address)?;
            (offset.checked_add(bytes)? <= buffer.traffic.size).then_some((index, offset as usize))
        };
        offset_in(self.last.get()).or_else(|| {
            let after = self.buffers.partition_point(|buffer| buffer.address <= address);
            let found = offset_in(after.checked_sub(1)?)?;
            self.last.set(found.0);
            Some(found)
        })
    }

    pub(crate) fn count_read(&mut self, address: u64, bytes: u64) {
        if let Some((index, _)) = self.find(address, bytes) {
            self.buffers[index].traffic.read += bytes;
        }
    }

    pub(crate) fn count_written(&mut self, address: u64, bytes: u64) {
        if let Some((index, _)) = self.find(address, bytes) {
            self.buffers[index].traffic.written += bytes;
        }
    }

    /// Traffic since the last call, of allocations that had any.
    pub(crate) fn take_traffic(&mut self) -> BTreeMap<u64, Traffic> {
        let mut all = BTreeMap::new();
        for buffer in &mut self.buffers {
            let traffic = buffer.traffic;
            buffer.traffic = Traffic { read: 0, written: 0, ..traffic };
            if traffic.read + traffic.written > 0 {
                all.insert(buffer.address, traffic);
            }
        }
        all
    }
}

impl Buffer {
    fn read(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.data[offset..offset + into.len()]);
        if !self.is_written(offset, into.len()) {
            let unwritten = |at: usize| self.written[at / 64] >> (at % 64) & 1 == 0;
            let missing = into.iter_mut().enumerate().filter(|(at, _)| unwritten(offset + at));
            missing.for_each(|(_, byte)| *byte = 0xff);
        }
    }

    /// Runs of bytes in a range that somebody wrote, and where in it they begin.
    fn written_runs(&self, offset: usize, bytes: usize) -> Vec<(usize, Vec<u8>)> {
        let written = |at: &usize| self.is_written(offset + at, 1);
        let (mut runs, mut at) = (Vec::new(), 0);
        while let Some(first) = (at..bytes).find(written) {
            at = (first..bytes).find(|at| !written(at)).unwrap_or(bytes);
            runs.push((first, self.data[offset + first..offset + at].to_vec()));
        }
        runs
    }

    fn write(&mut self, offset: usize, from: &[u8]) {
        self.data[offset..offset + from.len()].copy_from_slice(from);
        for (word, bits) in words(offset, from.len()) {
            self.written[word] |= bits;
        }
    }

    fn is_written(&self, offset: usize, bytes: usize) -> bool {
        words(offset, bytes).all(|(word, bits)| self.written[word] & bits == bits)
    }
}

/// The words of a bit set, and the bits in them, that stand for a range.
fn words(offset: usize, bytes: usize) -> impl Iterator<Item = (usize, u64)> {
    let end = offset + bytes;
    (offset / 64..end.div_ceil(64)).map(move |word| {
        let low = offset.saturating_sub(word * 64);
        let high = (end - word * 64).min(64);
        (word, (u64::MAX << low) & (u64::MAX >> (64 - high)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_is_finite_and_freed_once() {
        let mut memory = GlobalMemory::new(100);
        let first = memory.allocate(60).unwrap();
        assert_eq!(memory.allocate(41), Err(MemoryError::Full { wanted: 41, free: 40, capacity: 100 }));
        assert_eq!(memory.free(first + 1), Err(MemoryError::NotAllocated { address: first + 1 }));
        memory.free(first).unwrap();
        assert_eq!(memory.free(first), Err(MemoryError::NotAllocated { address: first }));
        let second = memory.allocate(100).unwrap();
        assert_ne!(first, second, "a stale address must stay stale");
        assert!(!memory.contains(first, 1));
        assert!(memory.allocate(u64::MAX).is_err());
    }

    #[test]
    fn ranges_lie_in_one_allocation() {
        let mut memory = GlobalMemory::new(1 << 20);
        let (a, b) = (memory.allocate(64).unwrap(), memory.allocate(64).unwrap());
        for (address, bytes, inside) in [
            (a, 64, true),
            (a, 65, false),
            (a + 64, 1, false),
            (a - 1, 1, false),
            (b + 63, 1, true),
            (u64::MAX, 2, false),
        ] {
            assert_eq!(memory.contains(address, bytes), inside, "{address:#x} {bytes}");
            assert_eq!(memory.read(address, &mut vec![0; bytes as usize]).is_ok(), inside);
        }
    }

    #[test]
    fn copies_carry_what_was_written() {
        let mut memory = GlobalMemory::new(1 << 20);
        let (a, b) = (memory.allocate(100).unwrap(), memory.allocate(100).unwrap());
        memory.write(a + 10, &[1; 20]).unwrap();
        memory.write(a + 50, &[2; 5]).unwrap();
        memory.copy(b, a + 5, 60).unwrap();
        let mut got = [0; 60];
        memory.read(b, &mut got).unwrap();
        let expected: Vec<u8> = (5..65)
            .map(|at| {
                if (10..30).contains(&at) {
                    1
                } else if (50..55).contains(&at) {
                    2
                } else {
                    0xff
                }
            })
            .collect();
        assert_eq!(got[..], expected);
        assert!(memory.is_written(b + 5, 20) && !memory.is_written(b + 5, 21));
        memory.copy(a + 11, a + 10, 20).unwrap();
        assert!(memory.is_written(a + 10, 21), "the ranges may overlap");
        assert!(memory.copy(b + 41, a, 60).is_err() && memory.copy(b, a + 41, 60).is_err());
    }

    proptest! {
        #[test]
        fn bytes_nobody_wrote_are_known(ranges in prop::collection::vec((0usize..200, 0usize..100), 0..8), at in 0usize..300, len in 0usize..100) {
            let mut memory = GlobalMemory::new(1 << 20);
            let base = memory.allocate(400).unwrap();
            let mut model = vec![None; 400];
            for (i, (offset, bytes)) in ranges.into_iter().enumerate() {
                memory.write(base + offset as u64, &vec![i as u8; bytes]).unwrap();
                model[offset..offset + bytes].fill(Some(i as u8));
            }
            let mut got = vec![0; len];
            memory.read(base + at as u64, &mut got).unwrap();
            let expected: Vec<u8> = model[at..at + len].iter().map(|byte| byte.unwrap_or(0xff)).collect();
            prop_assert_eq!(got, expected);
            let written = model[at..at + len].iter().all(Option::is_some);
            prop_assert_eq!(memory.is_written(base + at as u64, len as u64), written);
        }
    }
}
