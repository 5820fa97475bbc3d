//! A mutable slice that tasks share by writing different parts.

use std::marker::PhantomData;

/// A slice whose parts are written by different threads.
pub(crate) struct SharedMut<'a> {
    data: *mut f32,
    len: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: `slice` passes the duty to keep parts disjoint to its caller.
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self { data: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// # Safety
    /// No two live parts may overlap.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's duty")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of {}", self.len);
        // SAFETY: inside the slice by the check above, disjoint by the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}
