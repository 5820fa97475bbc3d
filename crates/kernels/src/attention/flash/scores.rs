//! Scores of a task's queries against one block of keys, in either layout.

#![allow(clippy::needless_range_loop, reason = "register arrays are indexed side by side")]

use super::{
    Block, KeyPart, Part, Queries, Scores,
    products::{Products, Single, Stored, gather},
};
use crate::{attention::cache::BLOCK_TOKENS, gemm::TILE_ROWS, simd::Simd};

#[inline(always)]
pub(super) unsafe fn score_columns<S: Simd, A: Products<S>, const P: usize>(
    part: &Part<'_>,
    queries: Queries<'_>,
    keys: &[KeyPart; 2],
    block: Block<A::Number>,
    tokens: usize,
    scores: &mut Scores,
) {
    // SAFETY: the caller's contract.
    unsafe {
        for_tiles!(part.rows, TILE_ROWS, (S, A, P), score_column_tile(queries, keys, block, tokens, scores))
    }
}

#[inline(always)]
unsafe fn score_column_tile<S: Simd, A: Products<S>, const P: usize, const R: usize>(
    queries: Queries<'_>,
    keys: &[KeyPart; 2],
    block: Block<A::Number>,
    tokens: usize,
    scores: &mut Scores,
    row: usize,
) {
    // Whole groups of vectors: tokens beyond the last are stale but allocated, and `weigh` drops them.
    for group in (0..tokens).step_by(P * S::LANES) {
        // SAFETY: BLOCK_TOKENS is a multiple of P · LANES, so the columns exist.
        unsafe {
            let mut acc = [[S::splat(0.0); P]; R];
            for number in 0..2 {
                if keys[number].dim == 0 {
                    continue;
                }
                let key = &keys[number];
                if key.dim.is_multiple_of(A::PACK) {
                    let mut x = [std::ptr::null(); R];
                    let mut worth = [1.0; R];
                    for r in 0..R {
                        (x[r], worth[r]) = queries.inputs::<S, A>(row + r, keys, number);
                    }
                    add_part::<S, A, R, P>(&mut acc, &x, &worth, key, block, group);
                } else {
                    let mut x = [std::ptr::null(); R];
                    for r in 0..R {
                        x[r] = queries.exact(row + r).add(key.query);
                    }
                    add_part::<S, Single<A::Number>, R, P>(&mut acc, &x, &[1.0; R], key, block, group);
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

/// Adds what one part of the keys gives to scores of the tokens from `group` on.
#[inline(always)]
unsafe fn add_part<S: Simd, A: Products<S>, const R: usize, const P: usize>(
    acc: &mut [[S::V; P]; R],
    x: &[*const A::Inputs; R],
    worth: &[f32; R],
    key: &KeyPart,
    block: Block<A::Number>,
    group: usize,
) {
    // SAFETY: the part's columns are in the block, and `x` has an input for each; the caller's contract.
    unsafe {
        let (steps, step) = (key.dim / A::PACK, BLOCK_TOKENS * A::PACK);
        let first = block.numbers.add(key.block + group * A::PACK);
        let scaled = <A::Number as Stored>::SCALED;
        let mut sums = [[A::start(S::splat(0.0)); P]; R];
        for r in 0..R {
            for p in 0..P {
                sums[r][p] = A::start(if scaled { S::splat(0.0) } else { acc[r][p] });
            }
        }
        gather::<S, A, R, P>(&mut sums, x, first, step, steps);
        for p in 0..P {
            let scales = if scaled {
                S::load(block.scales(key.part).add(group + p * S::LANES))
            } else {
                S::splat(0.0)
            };
            for r in 0..R {
                acc[r][p] = if scaled {
                    S::mul_add(A::end(sums[r][p], worth[r], S::splat(0.0)), scales, acc[r][p])
                } else {
                    A::end(sums[r][p], worth[r], acc[r][p])
                };
            }
        }
    }
}

#[inline(always)]
pub(super) unsafe fn score_rows<S: Simd, E: Stored, const C: usize>(
    part: &Part<'_>,
    queries: Queries<'_>,
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
    unsafe {
        for_tiles!(
            part.rows,
            TILE_ROWS,
            (S, E, C),
            score_row_tile(queries, keys, stride, block, tokens, scores)
        )
    }
}

#[inline(always)]
unsafe fn score_row_tile<S: Simd, E: Stored, const C: usize, const R: usize>(
    queries: Queries<'_>,
    keys: &[KeyPart],
    stride: usize,
    block: Block<E>,
    tokens: usize,
    scores: &mut Scores,
    row: usize,
) {
    // SAFETY: tokens below `tokens` are in the block.
    unsafe {
        let mut q = [std::ptr::null(); R];
        for r in 0..R {
            q[r] = queries.exact(row + r);
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
