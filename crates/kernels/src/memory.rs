//! Memory for weights and caches: zeroed, from the start of a cache line on, on huge pages where the system has them.
//!
//! A step streams all weights once. With pages of 4 KiB the processor's prefetcher stops at every page and every
//! page costs a translation; on huge pages one core was measured to read bf16 weights a third faster. A small model's
//! matrices are smaller than a huge page, so they share one chunk.

use std::{
    cell::Cell,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{gemm::Element, prefetch::LINE};

/// Bytes of a chunk that matrices share. What nobody touched of it costs address space only.
const CHUNK: usize = 64 << 20;

/// Bytes the system gave, zeroed page by page when first touched.
struct Memory {
    bytes: *mut [u8],
    /// Where its first cache line starts.
    first: usize,
}

// SAFETY: the bytes are reached through `Lines` only, which own parts that do not overlap.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(bytes: usize) -> Self {
        let memory = vec![0u8; bytes + LINE].into_boxed_slice();
        let first = memory.as_ptr().align_offset(LINE).min(LINE);
        let bytes = Box::into_raw(memory);
        advise(bytes);
        Self { bytes, first }
    }

    /// Bytes from the first cache line on.
    fn len(&self) -> usize {
        self.bytes.len() - self.first
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a box and nobody holds a part any more.
        drop(unsafe { Box::from_raw(self.bytes) });
    }
}

/// Asks for huge pages. A system that has none answers an error, and everything works as before.
#[cfg(target_os = "linux")]
fn advise(bytes: *mut [u8]) {
    const PAGE: usize = 4096;
    let start = bytes.cast::<u8>();
    let skip = start.align_offset(PAGE);
    let len = bytes.len().saturating_sub(skip) / PAGE * PAGE;
    if len > 0 {
        // SAFETY: whole pages inside the allocation; the advice changes no contents.
        unsafe { libc::madvise(start.add(skip).cast(), len, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_: *mut [u8]) {}

/// The chunk with room left, and how much of it is taken; the chunk lives as long as a matrix in it.
static OPEN: Mutex<(Weak<Memory>, usize)> = Mutex::new((Weak::new(), 0));

/// Lines in memory of their own or in a part of a shared chunk.
pub(crate) struct Lines<E> {
    memory: Arc<Memory>,
    /// First byte, a multiple of [`LINE`] after the memory's first line.
    start: usize,
    len: usize,
    format: PhantomData<E>,
}

impl<E: Element> Lines<E> {
    /// Zeros in memory of their own.
    pub fn zeroed(len: usize) -> Self {
        let memory = Arc::new(Memory::new(len * size_of::<E>()));
        Self { memory, start: 0, len, format: PhantomData }
    }

    /// Zeros in a shared chunk.
    pub fn shared(len: usize) -> Self {
        let bytes = (len * size_of::<E>()).next_multiple_of(LINE);
        if bytes > CHUNK / 2 {
            return Self::zeroed(len);
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let room = open.0.upgrade().filter(|memory| open.1 + bytes <= memory.len());
        let memory = room.unwrap_or_else(|| {
            let memory = Arc::new(Memory::new(CHUNK));
            *open = (Arc::downgrade(&memory), 0);
            memory
        });
        let start = open.1;
        open.1 += bytes;
        Self { memory, start, len, format: PhantomData }
    }

    fn first(&self) -> *mut E {
        // SAFETY: `start` lies inside the memory by construction.
        unsafe { self.memory.bytes.cast::<u8>().add(self.memory.first + self.start).cast() }
    }
}

impl<E: Element> Deref for Lines<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // SAFETY: `len` numbers from a cache line on belong to this value alone; all-zero bytes are a number.
        unsafe { std::slice::from_raw_parts(self.first(), self.len) }
    }
}

impl<E: Element> DerefMut for Lines<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        // SAFETY: as in `deref`, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.first(), self.len) }
    }
}

thread_local! {
    /// A buffer between tasks of a thread, which stays in its core's second-level cache.
    static SCRATCH: Cell<Option<Lines<f32>>> = const { Cell::new(None) };
}

/// At least `len` numbers of no particular value. Give them back with [`give_back`], or the next task allocates.
pub(crate) fn scratch(len: usize) -> Lines<f32> {
    SCRATCH.take().filter(|lines| lines.len() >= len).unwrap_or_else(|| Lines::zeroed(len))
}

/// Keeps a buffer for the thread's next task.
pub(crate) fn give_back(lines: Lines<f32>) {
    SCRATCH.set(Some(lines));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_zeroed_aligned_and_apart() {
        let mut parts: Vec<Lines<f32>> = (1..40).map(|i| Lines::shared(i * 37)).collect();
        for (i, part) in parts.iter_mut().enumerate() {
            assert!(part.as_ptr().addr().is_multiple_of(LINE) && part.iter().all(|x| *x == 0.0));
            part.fill(i as f32);
        }
        for (i, part) in parts.iter().enumerate() {
            assert!(part.len() == (i + 1) * 37 && part.iter().all(|x| *x == i as f32));
        }
    }

    #[test]
    fn a_large_matrix_has_memory_of_its_own() {
        let large = Lines::<u16>::shared(CHUNK);
        assert_eq!((large.len(), large.start), (CHUNK, 0));
        assert!(large.as_ptr().addr().is_multiple_of(LINE));
        assert_eq!(Lines::<f32>::shared(0).len(), 0);
    }
}
