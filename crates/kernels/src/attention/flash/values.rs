//! Weighted sums of one block's values, added to what a chunk has gathered.

#![allow(clippy::needless_range_loop, reason = "register arrays are indexed side by side")]

use super::{
    Block, Part, Scores, Values,
    ahead::Ahead,
    partial::Gathered,
    products::{Products, gather},
};
use crate::{attention::cache::BLOCK_TOKENS, gemm::Element, simd::Simd};

/// What turns a row's weights into an addition to its sums.
#[derive(Clone, Copy)]
pub(super) struct Weighing {
    /// What the sums so far are multiplied with; 0 starts afresh.
    pub rescale: f32,
    /// What one of a weight is worth.
    pub worth: f32,
}

/// `sums = sums · rescale + weights · V`. Weights are as `A` takes them.
#[inline(always)]
pub(super) unsafe fn add_values<S: Simd, A: Products<S>, const P: usize>(
    part: &Part<'_>,
    gathered: Gathered,
    values: &Values,
    block: Block<A::Number>,
    tokens: usize,
    weights: (&Scores, &[Weighing]),
    ahead: &mut Ahead,
) {
    // SAFETY: the caller's contract.
    unsafe {
        for_tiles!(
            part.rows,
            A::TILE,
            (S, A, P),
            value_tile(gathered, values, block.numbers, tokens, weights, ahead)
        )
    }
}

#[inline(always)]
unsafe fn value_tile<S: Simd, A: Products<S>, const P: usize, const R: usize>(
    gathered: Gathered,
    values: &Values,
    block: *const A::Number,
    tokens: usize,
    weights: (&Scores, &[Weighing]),
    ahead: &mut Ahead,
    row: usize,
) {
    let Values { block: offset, stride, strip, dim, .. } = *values;
    let whole = dim / S::LANES * S::LANES;
    // SAFETY: channels below `dim` of tokens below `tokens` are in the block; the caller's contract.
    unsafe {
        let values = block.add(offset);
        let columns = Columns::<A::Number> {
            gathered,
            stride,
            strip,
            tokens,
            weights: weights.0,
            weighing: weights.1,
            values,
        };
        let mut channel = 0;
        while channel + P * S::LANES <= whole {
            columns.add::<S, A, R, P>(channel, row, ahead);
            channel += P * S::LANES;
        }
        while channel < whole {
            columns.add::<S, A, R, 1>(channel, row, ahead);
            channel += S::LANES;
        }
        for channel in whole..dim {
            for r in 0..R {
                let out = gathered.values(row + r).add(channel);
                let rescale = weights.1[row + r].rescale;
                // What was never written is not read.
                let mut sum = if rescale == 0.0 { 0.0 } else { *out * rescale };
                for token in 0..tokens {
                    let of_token = token / A::PACK * A::PACK * stride + token % A::PACK;
                    let value = columns.channel(channel, A::PACK).add(of_token);
                    sum += weights.0[row + r][token] * (*value).to_f32();
                }
                *out = sum;
            }
        }
    }
}

/// Values of a block and what is made of them.
struct Columns<'a, E> {
    gathered: Gathered,
    values: *const E,
    /// Numbers from one token of a strip to the next.
    stride: usize,
    /// Channels of a strip.
    strip: usize,
    tokens: usize,
    weights: &'a Scores,
    weighing: &'a [Weighing],
}

impl<E> Columns<'_, E> {
    /// Where the first `pack` tokens' numbers of a channel lie.
    #[inline(always)]
    fn channel(&self, channel: usize, pack: usize) -> *const E {
        let strip = channel / self.strip * self.strip * BLOCK_TOKENS;
        self.values.wrapping_add(strip + channel % self.strip * pack)
    }

    /// `P` vectors of channels of `R` rows.
    #[inline(always)]
    unsafe fn add<S: Simd, A: Products<S, Number = E>, const R: usize, const P: usize>(
        &self,
        channel: usize,
        row: usize,
        ahead: &mut Ahead,
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            let mut x = [self.weights.as_ptr().cast::<A::Inputs>(); R];
            let mut so_far = [[S::splat(0.0); P]; R];
            for r in 0..R {
                x[r] = self.weights[row + r].as_ptr().cast();
                let rescale = self.weighing[row + r].rescale;
                if rescale != 0.0 {
                    let out = self.gathered.values(row + r).add(channel);
                    for p in 0..P {
                        so_far[r][p] = S::mul(S::load(out.add(p * S::LANES)), S::splat(rescale));
                    }
                }
            }
            let mut sums = [[A::start(S::splat(0.0)); P]; R];
            for r in 0..R {
                for p in 0..P {
                    sums[r][p] = A::start(so_far[r][p]);
                }
            }
            let (steps, step) = (self.tokens / A::PACK, self.stride * A::PACK);
            let first = self.channel(channel, A::PACK);
            gather::<S, A, R, P>(&mut sums, &x, first, step, steps, ahead);
            if !self.tokens.is_multiple_of(A::PACK) {
                // Beside the last token lies what somebody else left, which may not even be finite.
                for p in 0..P {
                    let lots = A::load_first(first.add(steps * step + p * S::LANES * A::PACK));
                    for r in 0..R {
                        sums[r][p] = A::add(sums[r][p], x[r].add(steps), lots);
                    }
                }
            }
            for r in 0..R {
                let out = self.gathered.values(row + r).add(channel);
                for p in 0..P {
                    let sum = A::end(sums[r][p], self.weighing[row + r].worth, so_far[r][p]);
                    S::store(out.add(p * S::LANES), sum);
                }
            }
        }
    }
}
