//! What chunks leave before they are merged.

use super::{Part, merge::merge};

/// What a chunk leaves of its sets, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Partial {
    numbers: *mut f32,
    rows: usize,
    dim: usize,
}

impl Partial {
    /// One that is only read.
    pub fn of(part: &Part<'_>, numbers: &[f32]) -> Self {
        assert!(numbers.len() >= part.partial(), "a partial has every row");
        Self { numbers: numbers.as_ptr().cast_mut(), rows: part.rows, dim: part.dim() }
    }

    /// One that is gathered.
    pub fn of_mut(part: &Part<'_>, numbers: &mut [f32]) -> Self {
        Self { numbers: numbers.as_mut_ptr(), ..Self::of(part, numbers) }
    }

    #[inline(always)]
    pub fn set(self, set: usize) -> Gathered {
        let Self { numbers, rows, dim } = self;
        Gathered { numbers: numbers.wrapping_add(set * rows * (dim + 2)), rows, dim }
    }
}

/// What a chunk leaves of a set: rows of weighted values, then every row's maximum, then every row's sum of weights.
#[derive(Clone, Copy)]
pub(super) struct Gathered {
    numbers: *mut f32,
    rows: usize,
    dim: usize,
}

impl Gathered {
    #[inline(always)]
    pub fn values(&self, row: usize) -> *mut f32 {
        self.numbers.wrapping_add(row * self.dim)
    }

    #[inline(always)]
    pub fn max(&self, row: usize) -> *mut f32 {
        self.numbers.wrapping_add(self.rows * self.dim + row)
    }

    #[inline(always)]
    pub fn sum(&self, row: usize) -> *mut f32 {
        self.max(self.rows + row)
    }

    /// Adds a row to what earlier chunks left of it in `out`.
    pub unsafe fn merge_into(&self, so_far: (f32, f32), out: *mut f32, row: usize) -> (f32, f32) {
        // SAFETY: a row that was gathered, and its output; the caller's contract.
        unsafe { merge(so_far, out, (*self.max(row), *self.sum(row)), self.values(row), self.dim) }
    }
}
