//! Scores of a task's queries against one block of keys, in either layout.

#![allow(clippy::needless_range_loop, reason = "register arrays are indexed side by side")]

use super::{
    Block, KeyPart, Part, Queries, Scores,
    ahead::Ahead,
    products::{Products, RowProducts, Single, Stored, gather},
};
use crate::simd::Simd;

#[inline(always)]
pub(super) unsafe fn score_columns<S: Simd, A: Products<S>, const P: usize>(
    part: &Part<'_>,
    queries: Queries<'_>,
    keys: &[KeyPart; 2],
    block: Block<A::Number>,
    tokens: usize,
    scores: &mut Scores,
    ahead: &mut Ahead,
) {
    // SAFETY: the caller's contract.
    unsafe {
        for_tiles!(
            part.rows,
            A::TILE,
            (S, A, P),
            score_column_tile(queries, keys, block, tokens, scores, ahead)
        )
    }
}

#[inline(always)]
unsafe fn score_column_tile<S: Simd, A: Products<S>, const P: usize, const R: usize>(
    queries: Queries<'_>,
    keys: &[KeyPart; 2],
    block: Block<A::Number>,
    tokens: usize,
    scores: &mut Scores,
    ahead: &mut Ahead,
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
                    add_part::<S, A, R, P>(&mut acc, &x, &worth, key, block, group, ahead);
                } else {
                    let mut x = [std::ptr::null(); R];
                    for r in 0..R {
                        x[r] = queries.exact(row + r).add(key.query);
                    }
                    add_part::<S, Single<A::Number>, R, P>(&mut acc, &x, &[1.0; R], key, block, group, ahead);
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
    ahead: &mut Ahead,
) {
    // SAFETY: the part's columns are in the block, and `x` has an input for each; the caller's contract.
    unsafe {
        let (steps, step) = (key.dim / A::PACK, P * S::LANES * A::PACK);
        let first = block.numbers.add(key.block + group * key.dim);
        let scaled = <A::Number as Stored>::SCALED;
        let mut sums = [[A::start(S::splat(0.0)); P]; R];
        for r in 0..R {
            for p in 0..P {
                sums[r][p] = A::start(if scaled { S::splat(0.0) } else { acc[r][p] });
            }
        }
        gather::<S, A, R, P>(&mut sums, x, first, step, steps, ahead);
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

/// Keys that lie token by token, `stride` numbers apart, of parts as [`KeyPart::of_rows`] gives them.
#[inline(always)]
pub(super) unsafe fn score_rows<S: Simd, A: RowProducts<S>, const C: usize>(
    part: &Part<'_>,
    queries: Queries<'_>,
    keys: &[KeyPart; 2],
    stride: usize,
    block: Block<A::Number>,
    tokens: usize,
    scores: &mut Scores,
) {
    // SAFETY: the caller's contract.
    unsafe {
        for_tiles!(
            part.rows,
            A::QUERIES,
            (S, A, C),
            score_row_tile(queries, keys, stride, block, tokens, scores)
        )
    }
}

#[inline(always)]
unsafe fn score_row_tile<S: Simd, A: RowProducts<S>, const C: usize, const R: usize>(
    queries: Queries<'_>,
    keys: &[KeyPart; 2],
    stride: usize,
    block: Block<A::Number>,
    tokens: usize,
    scores: &mut Scores,
    row: usize,
) {
    // SAFETY: tokens below `tokens` are in the block.
    unsafe {
        let mut q = [[(std::ptr::null(), 1.0); R]; 2];
        for number in 0..2 {
            for r in 0..R {
                q[number][r] = queries.inputs::<S, A>(row + r, keys, number);
            }
        }
        let mut token = 0;
        while token + C <= tokens {
            let dots = dot_tile::<S, A, R, C>(&q, keys, block, token, stride);
            for r in 0..R {
                for c in 0..C {
                    scores[row + r][token + c] = dots[r][c];
                }
            }
            token += C;
        }
        while token < tokens {
            let dots = dot_tile::<S, A, R, 1>(&q, keys, block, token, stride);
            for r in 0..R {
                scores[row + r][token] = dots[r][0];
            }
            token += 1;
        }
    }
}

/// `R x C` inner products of queries with the keys of tokens from `token` on.
#[inline(always)]
unsafe fn dot_tile<S: Simd, A: RowProducts<S>, const R: usize, const C: usize>(
    q: &[[(*const A::Inputs, f32); R]; 2],
    keys: &[KeyPart; 2],
    block: Block<A::Number>,
    token: usize,
    stride: usize,
) -> [[f32; C]; R] {
    let mut dots = [[0.0; C]; R];
    // SAFETY: the tokens are in the block, which has a scale for every token of every part.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; R];
        for (key, q) in keys.iter().zip(q) {
            if key.dim == 0 {
                continue;
            }
            let rows = block.numbers.add(key.block + token * stride);
            let products = product_tile::<S, A, R, C>(q, rows, stride, key.dim);
            for c in 0..C {
                for r in 0..R {
                    let product = A::end(products[r][c], q[r].1, S::splat(0.0));
                    sums[r][c] = if <A::Number as Stored>::SCALED {
                        let scale = S::splat(*block.scales(key.part).add(token + c));
                        S::mul_add(product, scale, sums[r][c])
                    } else {
                        product
                    };
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
unsafe fn product_tile<S: Simd, A: RowProducts<S>, const R: usize, const C: usize>(
    q: &[(*const A::Inputs, f32); R],
    keys: *const A::Number,
    stride: usize,
    dim: usize,
) -> [[A::Sums; C]; R] {
    let vector = S::LANES * A::PACK;
    let whole = dim / vector * vector;
    // SAFETY: every load is inside a row of `dim` channels.
    unsafe {
        let mut acc = [[A::start(S::splat(0.0)); C]; R];
        let mut i = 0;
        while i < whole {
            // One key at a time: an array of them would push sums out of registers.
            for c in 0..C {
                let k = A::load_row(keys.add(c * stride + i));
                for r in 0..R {
                    acc[r][c] = A::multiply(acc[r][c], A::load_inputs(q[r].0.add(i / A::PACK)), k);
                }
            }
            i += vector;
        }
        if whole < dim {
            for r in 0..R {
                let q = A::load_first_inputs(q[r].0.add(whole / A::PACK), dim - whole);
                for c in 0..C {
                    let k = A::load_first_of_row(keys.add(c * stride + whole), dim - whole);
                    acc[r][c] = A::multiply(acc[r][c], q, k);
                }
            }
        }
        acc
    }
}
