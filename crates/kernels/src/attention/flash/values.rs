//! Weighted sums of one block's values, added to a task's outputs.

#![allow(clippy::needless_range_loop, reason = "register arrays are indexed side by side")]

use super::{Ahead, MAX_ROWS, Part, Scores, Sink, Stored, Values};
use crate::{
    gemm::{TILE_ROWS, tile},
    simd::Simd,
};

/// `out = out · rescale + weights · V`; a rescale of 0 starts afresh.
#[inline(always)]
pub(super) unsafe fn add_values<S: Simd, E: Stored, const P: usize>(
    part: &Part<'_>,
    sink: &Sink,
    block: *const E,
    tokens: usize,
    scores: &Scores,
    rescale: &[f32; MAX_ROWS],
    mut ahead: Ahead,
) {
    let ahead = &mut ahead;
    // SAFETY: the caller's contract.
    unsafe {
        for_tiles!(part.rows, TILE_ROWS, P, value_tile(part, sink, block, tokens, scores, rescale, ahead))
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn value_tile<S: Simd, E: Stored, const R: usize, const P: usize>(
    part: &Part<'_>,
    sink: &Sink,
    block: *const E,
    tokens: usize,
    scores: &Scores,
    rescale: &[f32; MAX_ROWS],
    ahead: &mut Ahead,
    row: usize,
) {
    // The first tile asks for everything.
    let mut asking = std::mem::replace(ahead, Ahead::NOTHING);
    let Values { block: offset, stride, dim, .. } = part.set.values;
    let whole = dim / S::LANES * S::LANES;
    let mut channel = 0;
    // SAFETY: channels below `dim` of tokens below `tokens` are in the block; the caller's contract.
    unsafe {
        let values = block.add(offset);
        while channel + P * S::LANES <= whole {
            value_columns::<S, E, R, P>(
                sink,
                values.add(channel),
                stride,
                tokens,
                channel,
                scores,
                rescale,
                &mut asking,
                row,
            );
            channel += P * S::LANES;
        }
        while channel < whole {
            value_columns::<S, E, R, 1>(
                sink,
                values.add(channel),
                stride,
                tokens,
                channel,
                scores,
                rescale,
                &mut asking,
                row,
            );
            channel += S::LANES;
        }
        for channel in whole..dim {
            for r in 0..R {
                let out = sink.row(row + r).add(channel);
                let mut sum = start(*out, rescale[row + r]);
                for token in 0..tokens {
                    sum += scores[row + r][token] * (*values.add(token * stride + channel)).to_f32();
                }
                *out = sum;
            }
        }
    }
}

/// What a sum goes on from. The output buffer is not read before something was written to it.
#[inline(always)]
fn start(out: f32, rescale: f32) -> f32 {
    if rescale == 0.0 { 0.0 } else { out * rescale }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn value_columns<S: Simd, E: Stored, const R: usize, const P: usize>(
    sink: &Sink,
    values: *const E,
    stride: usize,
    tokens: usize,
    channel: usize,
    scores: &Scores,
    rescale: &[f32; MAX_ROWS],
    ahead: &mut Ahead,
    row: usize,
) {
    let mut asking = *ahead;
    // SAFETY: the caller's contract.
    unsafe {
        let mut x = [scores.as_ptr().cast::<f32>(); R];
        let mut acc = [[S::splat(0.0); P]; R];
        for r in 0..R {
            x[r] = scores[row + r].as_ptr();
            let out = sink.row(row + r).add(channel);
            if rescale[row + r] != 0.0 {
                for p in 0..P {
                    acc[r][p] = S::mul(S::load(out.add(p * S::LANES)), S::splat(rescale[row + r]));
                }
            }
        }
        let mut b = [values; P];
        for p in 0..P {
            b[p] = values.add(p * S::LANES);
        }
        tile::<S, E, R, P>(&mut acc, &x, &b, stride, tokens, || asking.step::<E>());
        *ahead = asking;
        for r in 0..R {
            let out = sink.row(row + r).add(channel);
            for p in 0..P {
                S::store(out.add(p * S::LANES), acc[r][p]);
            }
        }
    }
}
