//! Scores of a task's queries against one block of keys, in either layout.

#![allow(clippy::needless_range_loop, reason = "register arrays are indexed side by side")]

use super::{Ahead, Block, KeyPart, Part, Scores, Stored};
use crate::{
    gemm::{PANEL, TILE_ROWS, tile},
    simd::Simd,
};

#[inline(always)]
pub(super) unsafe fn score_panels<S: Simd, E: Stored, const P: usize>(
    part: &Part<'_>,
    parts: &[KeyPart; 2],
    block: Block<E>,
    tokens: usize,
    scores: &mut Scores,
    mut ahead: Ahead,
) {
    let ahead = &mut ahead;
    // SAFETY: the caller's contract.
    unsafe {
        for_tiles!(part.rows, TILE_ROWS, P, score_panel_tile(part, parts, block, tokens, scores, ahead))
    }
}

#[inline(always)]
unsafe fn score_panel_tile<S: Simd, E: Stored, const R: usize, const P: usize>(
    part: &Part<'_>,
    parts: &[KeyPart; 2],
    block: Block<E>,
    tokens: usize,
    scores: &mut Scores,
    ahead: &mut Ahead,
    row: usize,
) {
    // The first tile asks for everything.
    let mut asking = std::mem::replace(ahead, Ahead::NOTHING);
    // Whole groups of vectors: tokens beyond the last are stale but allocated, and `weigh` drops them.
    for group in (0..tokens).step_by(P * S::LANES) {
        // SAFETY: BLOCK_TOKENS is a multiple of P · LANES, so the panels exist.
        unsafe {
            let mut acc = [[S::splat(0.0); P]; R];
            for key in parts {
                let mut x = [part.set.q; R];
                for r in 0..R {
                    x[r] = part.query(row + r).add(key.query);
                }
                let mut b = [block.numbers; P];
                for p in 0..P {
                    let token = group + p * S::LANES;
                    b[p] = block.numbers.add(key.block + token / PANEL * PANEL * key.dim + token % PANEL);
                }
                if !E::SCALED {
                    tile::<S, E, R, P>(&mut acc, &x, &b, PANEL, key.dim, || {});
                } else if key.dim > 0 {
                    let mut sums = [[S::splat(0.0); P]; R];
                    tile::<S, E, R, P>(&mut sums, &x, &b, PANEL, key.dim, || asking.step::<E>());
                    for p in 0..P {
                        let scales = S::load(block.scales(key.part).add(group + p * S::LANES));
                        for r in 0..R {
                            acc[r][p] = S::mul_add(sums[r][p], scales, acc[r][p]);
                        }
                    }
                }
            }
            for r in 0..R {
                for p in 0..P {
                    S::store(scores[row + r].as_mut_ptr().add(group + p * S::LANES), acc[r][p]);
                }
            }
        }
    }
}

#[inline(always)]
pub(super) unsafe fn score_rows<S: Simd, E: Stored, const C: usize>(
    part: &Part<'_>,
    keys: [KeyPart; 2],
    stride: usize,
    block: Block<E>,
    tokens: usize,
    scores: &mut Scores,
) {
    let [first, second] = keys;
    // Without scales both parts are one.
    let both = [KeyPart { dim: first.dim + second.dim, ..first }];
    let keys = if E::SCALED { &keys[..] } else { &both };
    // SAFETY: the caller's contract.
    unsafe { for_tiles!(part.rows, TILE_ROWS, C, score_row_tile(part, keys, stride, block, tokens, scores)) }
}

#[inline(always)]
unsafe fn score_row_tile<S: Simd, E: Stored, const R: usize, const C: usize>(
    part: &Part<'_>,
    keys: &[KeyPart],
    stride: usize,
    block: Block<E>,
    tokens: usize,
    scores: &mut Scores,
    row: usize,
) {
    // SAFETY: tokens below `tokens` are in the block.
    unsafe {
        let mut q = [part.set.q; R];
        for r in 0..R {
            q[r] = part.query(row + r);
        }
        let mut token = 0;
        while token + C <= tokens {
            let dots = dot_tile::<S, E, R, C>(&q, keys, block, token, stride);
            for r in 0..R {
                for c in 0..C {
                    scores[row + r][token + c] = dots[r][c];
                }
            }
            token += C;
        }
        while token < tokens {
            let dots = dot_tile::<S, E, R, 1>(&q, keys, block, token, stride);
            for r in 0..R {
                scores[row + r][token] = dots[r][0];
            }
            token += 1;
        }
    }
}

/// `R x C` inner products of queries with the keys of tokens from `token` on.
#[inline(always)]
unsafe fn dot_tile<S: Simd, E: Stored, const R: usize, const C: usize>(
    q: &[*const f32; R],
    keys: &[KeyPart],
    block: Block<E>,
    token: usize,
    stride: usize,
) -> [[f32; C]; R] {
    let mut dots = [[0.0; C]; R];
    // SAFETY: the tokens are in the block, which has a scale for every token of every part.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; R];
        for key in keys {
            let mut x = *q;
            for r in 0..R {
                x[r] = q[r].add(key.query);
            }
            let rows = block.numbers.add(key.block + token * stride);
            let products = product_tile::<S, E, R, C>(&x, rows, stride, key.dim);
            if !E::SCALED {
                sums = products;
                continue;
            }
            for c in 0..C {
                let scale = S::splat(*block.scales(key.part).add(token + c));
                for r in 0..R {
                    sums[r][c] = S::mul_add(products[r][c], scale, sums[r][c]);
                }
            }
        }
        for r in 0..R {
            dots[r] = S::sum_each(&sums[r]);
        }
    }
    dots
}

/// `R x C` products over `dim` channels, each of which is the sum of its lanes.
#[inline(always)]
unsafe fn product_tile<S: Simd, E: Stored, const R: usize, const C: usize>(
    q: &[*const f32; R],
    keys: *const E,
    stride: usize,
    dim: usize,
) -> [[S::V; C]; R] {
    let whole = dim / S::LANES * S::LANES;
    // SAFETY: every load is inside a row of `dim` channels.
    unsafe {
        let mut acc = [[S::splat(0.0); C]; R];
        let mut i = 0;
        while i < whole {
            // One key at a time: an array of them would push sums out of registers.
            for c in 0..C {
                let k = E::load::<S>(keys.add(c * stride + i));
                for r in 0..R {
                    acc[r][c] = S::mul_add(S::load(q[r].add(i)), k, acc[r][c]);
                }
            }
            i += S::LANES;
        }
        if whole < dim {
            for r in 0..R {
                let q = S::load_partial(q[r].add(whole), dim - whole);
                for c in 0..C {
                    let k = E::load_partial::<S>(keys.add(c * stride + whole), dim - whole);
                    acc[r][c] = S::mul_add(q, k, acc[r][c]);
                }
            }
        }
        acc
    }
}
