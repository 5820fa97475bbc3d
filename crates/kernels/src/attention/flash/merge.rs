//! Sums of several chunks become one.

use crate::{
    math::exp,
    simd::{Simd, dispatch},
};

dispatch! {
    /// Adds a chunk's (maximum, sum of weights) and weighted values to what earlier chunks of the row left.
    ///
    /// # Safety
    /// `out` and `values` must hold `dim` numbers each and not overlap.
    pub(super) unsafe fn merge(
        so_far: (f32, f32),
        out: *mut f32,
        more: (f32, f32),
        values: *const f32,
        dim: usize,
    ) -> (f32, f32) = merge_in; [] [] []
}

#[inline(always)]
unsafe fn merge_in<S: Simd>(
    so_far: (f32, f32),
    out: *mut f32,
    more: (f32, f32),
    values: *const f32,
    dim: usize,
) -> (f32, f32) {
    // The row sees nothing of the chunk, and whatever the buffer holds is none of its values.
    if more.0 == f32::NEG_INFINITY {
        return so_far;
    }
    // SAFETY: both rows have `dim` channels and do not overlap.
    unsafe {
        if so_far.0 == f32::NEG_INFINITY {
            out.copy_from_nonoverlapping(values, dim);
            return more;
        }
        let max = so_far.0.max(more.0);
        let (keep, add) = (exp(so_far.0 - max), exp(more.0 - max));
        let (keeps, adds) = (S::splat(keep), S::splat(add));
        for i in (0..dim).step_by(S::LANES) {
            let (left, place) = (dim - i, out.add(i));
            if left >= S::LANES {
                let kept = S::mul(S::load(place), keeps);
                S::store(place, S::mul_add(S::load(values.add(i)), adds, kept));
            } else {
                let kept = S::mul(S::load_partial(place, left), keeps);
                S::store_partial(place, S::mul_add(S::load_partial(values.add(i), left), adds, kept), left);
            }
        }
        (max, so_far.1 * keep + more.1 * add)
    }
}

/// Sums of weighted values become means.
///
/// # Safety
/// `out` must hold `dim` numbers.
pub(super) unsafe fn divide(out: *mut f32, sum: f32, dim: usize) {
    let inverse = 1.0 / sum;
    for channel in 0..dim {
        // SAFETY: the row has `dim` outputs.
        unsafe { *out.add(channel) *= inverse }
    }
}
