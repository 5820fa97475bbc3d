//! From scores to the weights of values.

use super::BLOCK_TOKENS;
use crate::{math::exp, simd::Simd};

/// Turns one row's scores of a block into weights relative to the running maximum; invisible tokens weigh 0. Answers what
/// the sums so far are multiplied with, now that the maximum grew.
#[inline(always)]
pub(super) unsafe fn weigh<S: Simd>(
    scores: &mut [f32; BLOCK_TOKENS],
    visible: usize,
    scale: f32,
    (largest, total): (&mut f32, &mut f32),
) -> f32 {
    if visible == 0 {
        scores.fill(0.0);
        return 1.0;
    }
    scores[visible..].fill(f32::NEG_INFINITY);
    // SAFETY: the array is a whole number of vectors long.
    unsafe {
        let mut max = S::splat(f32::NEG_INFINITY);
        for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
            let scaled = S::mul(S::load(scores.as_ptr().add(i)), S::splat(scale));
            S::store(scores.as_mut_ptr().add(i), scaled);
            max = S::max(max, scaled);
        }
        let max = S::max_lane(max).max(*largest);
        for score in scores.iter_mut() {
            *score = exp(*score - max);
        }
        scores[visible..].fill(0.0);
        let mut sum = S::splat(0.0);
        for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
            sum = S::mul_add(S::load(scores.as_ptr().add(i)), S::splat(1.0), sum);
        }
        // The first block has nothing to rescale.
        let rescale = if *largest == f32::NEG_INFINITY { 0.0 } else { exp(*largest - max) };
        *total = *total * rescale + S::sum(sum);
        *largest = max;
        rescale
    }
}

/// Takes a block's value scales into a row's weights, so that values are summed as they are stored.
#[inline(always)]
pub(super) unsafe fn scale_weights<S: Simd>(weights: &mut [f32; BLOCK_TOKENS], scales: *const f32) {
    for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
        // SAFETY: the array is a whole number of vectors long, and a block has a scale for every token.
        unsafe {
            let place = weights.as_mut_ptr().add(i);
            S::store(place, S::mul(S::load(place), S::load(scales.add(i))));
        }
    }
}
