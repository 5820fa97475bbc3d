//! The program's own memory: what page-locked allocations there are, and reading and writing any of it.

use std::{alloc, collections::BTreeMap};

use crate::code::Code;

const ALIGN: usize = 4096;

/// A range of the program's memory, by address, since work in a stream outlives the call that named it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostRange {
    address: usize,
    bytes: usize,
}

impl HostRange {
    /// The range that a C caller named.
    pub fn new(address: usize, bytes: usize) -> Result<Self, Code> {
        if address == 0 && bytes > 0 { Err(Code::INVALID_VALUE) } else { Ok(Self { address, bytes }) }
    }

    pub fn bytes(self) -> usize {
        self.bytes
    }

    pub fn read(self) -> Vec<u8> {
        if self.bytes == 0 {
            return Vec::new();
        }
        // SAFETY: the caller of the C function vouches that the range is readable until the copy is done; page-locked
        // ranges are ours and are freed only after all work (`PageLocked::free`).
        unsafe {
            std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(self.address), self.bytes)
        }
        .to_vec()
    }

    pub fn write(self, from: &[u8]) {
        let bytes = self.bytes.min(from.len());
        // SAFETY: as for `read`, for writing; `from` is our own and cannot overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(
                from.as_ptr(),
                std::ptr::with_exposed_provenance_mut(self.address),
                bytes,
            )
        };
    }
}

/// Page-locked allocations, by address.
#[derive(Default)]
pub(crate) struct PageLocked(BTreeMap<usize, usize>);

impl PageLocked {
    fn layout(bytes: usize) -> Result<alloc::Layout, Code> {
        alloc::Layout::from_size_align(bytes.max(1), ALIGN).map_err(|_| Code::INVALID_VALUE)
    }

    /// Allocates; returns the address.
    pub fn allocate(&mut self, bytes: usize) -> Result<usize, Code> {
        // SAFETY: the layout's size is not zero.
        let pointer = unsafe { alloc::alloc_zeroed(Self::layout(bytes)?) };
        if pointer.is_null() {
            return Err(Code::OUT_OF_MEMORY);
        }
        let address = pointer.expose_provenance();
        self.0.insert(address, bytes);
        Ok(address)
    }

    /// Frees what [`Self::allocate`] returned. No work may be left that names it.
    pub fn free(&mut self, address: usize) -> Result<(), Code> {
        let bytes = self.0.remove(&address).ok_or(Code::INVALID_VALUE)?;
        // SAFETY: it was allocated with this layout, and the map held it, so it was not freed before.
        unsafe { alloc::dealloc(std::ptr::with_exposed_provenance_mut(address), Self::layout(bytes)?) };
        Ok(())
    }

    /// Whether one allocation holds the range.
    pub fn holds(&self, range: HostRange) -> bool {
        let below = self.0.range(..=range.address).next_back();
        below.is_some_and(|(address, bytes)| range.address + range.bytes <= address + bytes)
    }
}
