//! From scores to the weights of values.

use super::{
    BLOCK_TOKENS, Block, MAX_ROWS, Part, Scores, Values,
    partial::Gathered,
    products::{Products, Stored},
    values::Weighing,
};
use crate::{
    math::{exp, exp_of},
    simd::Simd,
};

/// Turns all rows' scores of the block from token `first` on into weights relative to the running maxima, as `A` takes them;
/// invisible tokens weigh 0. Steps are taken by all rows before the next one, because a row's own wait for each other.
#[inline(always)]
pub(super) unsafe fn weigh<S: Simd, A: Products<S>>(
    part: &Part<'_>,
    gathered: Gathered,
    values: &Values,
    block: Block<A::Number>,
    (first, scale): (usize, f32),
    scores: &mut Scores,
    weighing: &mut [Weighing; MAX_ROWS],
) {
    let visible = |row| (part.position(row) + 1).saturating_sub(first).min(BLOCK_TOKENS);
    let mut largest = [0.0; MAX_ROWS];
    // SAFETY: the gathered sums have every row, and a block has a scale for every token; the caller's contract.
    unsafe {
        for row in 0..part.rows {
            hide(&mut scores[row], visible(row), f32::NEG_INFINITY);
            largest[row] = (largest_of::<S>(&scores[row]) * scale).max(*gathered.max(row));
        }
        for row in 0..part.rows {
            for score in &mut scores[row] {
                *score = exp_of::<S>(*score * scale - largest[row]);
            }
            hide(&mut scores[row], visible(row), 0.0);
        }
        for row in 0..part.rows {
            let so_far = *gathered.max(row);
            // What sees nothing yet has nothing to rescale.
            let rescale = if so_far == f32::NEG_INFINITY { 0.0 } else { exp(so_far - largest[row]) };
            *gathered.sum(row) = *gathered.sum(row) * rescale + sum_of::<S>(&scores[row]);
            *gathered.max(row) = largest[row];
            weighing[row] = Weighing { rescale, worth: 1.0 };
            if A::Number::SCALED {
                scale_weights::<S>(&mut scores[row], block.scales(values.part));
            }
        }
        if A::ROUNDS {
            for row in 0..part.rows {
                let weights = scores[row].as_mut_ptr();
                weighing[row].worth = A::round(weights, BLOCK_TOKENS, weights.cast());
            }
        }
    }
}

/// Gives `value` to what a row does not see.
#[inline(always)]
fn hide(scores: &mut [f32; BLOCK_TOKENS], visible: usize, value: f32) {
    if visible < BLOCK_TOKENS {
        scores[visible..].fill(value);
    }
}

#[inline(always)]
unsafe fn largest_of<S: Simd>(scores: &[f32; BLOCK_TOKENS]) -> f32 {
    // SAFETY: the array is a whole number of vectors long.
    unsafe {
        let mut max = S::splat(f32::NEG_INFINITY);
        for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
            max = S::max(max, S::load(scores.as_ptr().add(i)));
        }
        S::max_lane(max)
    }
}

#[inline(always)]
unsafe fn sum_of<S: Simd>(weights: &[f32; BLOCK_TOKENS]) -> f32 {
    // SAFETY: the array is a whole number of vectors long.
    unsafe {
        let mut sum = S::splat(0.0);
        for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
            sum = S::mul_add(S::load(weights.as_ptr().add(i)), S::splat(1.0), sum);
        }
        S::sum(sum)
    }
}

/// Takes a block's value scales into a row's weights, so that values are summed as they are stored.
#[inline(always)]
unsafe fn scale_weights<S: Simd>(weights: &mut [f32; BLOCK_TOKENS], scales: *const f32) {
    for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
        // SAFETY: the array is a whole number of vectors long, and a block has a scale for every token.
        unsafe {
            let place = weights.as_mut_ptr().add(i);
            S::store(place, S::mul(S::load(place), S::load(scales.add(i))));
        }
    }
}
