//! Scores of a task's queries against one block of keys, in either layout.

#![allow(clippy::needless_range_loop, reason = "register arrays are indexed side by side")]

use super::{KeyPart, Part, Scores};
use crate::{
    gemm::{Element, PANEL, TILE_ROWS, tile},
    simd::Simd,
};

#[inline(always)]
pub(super) unsafe fn score_panels<S: Simd, E: Element, const P: usize>(
    part: &Part<'_>,
    parts: &[KeyPart; 2],
    block: *const E,
    tokens: usize,
    scores: &mut Scores,
) {
    // SAFETY: the caller's contract.
    unsafe { for_tiles!(part.rows, TILE_ROWS, P, score_panel_tile(part, parts, block, tokens, scores)) }
}

#[inline(always)]
unsafe fn score_panel_tile<S: Simd, E: Element, const R: usize, const P: usize>(
    part: &Part<'_>,
    parts: &[KeyPart; 2],
    block: *const E,
    tokens: usize,
    scores: &mut Scores,
    row: usize,
) {
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
                let mut b = [block; P];
                for p in 0..P {
                    let token = group + p * S::LANES;
                    b[p] = block.add(key.block + token / PANEL * PANEL * key.dim + token % PANEL);
                }
                tile::<S, E, R, P>(&mut acc, &x, &b, PANEL, key.dim);
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
pub(super) unsafe fn score_rows<S: Simd, E: Element, const C: usize>(
    part: &Part<'_>,
    dim: usize,
    stride: usize,
    block: *const E,
    tokens: usize,
    scores: &mut Scores,
) {
    // SAFETY: the caller's contract.
    unsafe { for_tiles!(part.rows, TILE_ROWS, C, score_row_tile(part, dim, stride, block, tokens, scores)) }
}

#[inline(always)]
unsafe fn score_row_tile<S: Simd, E: Element, const R: usize, const C: usize>(
    part: &Part<'_>,
    dim: usize,
    stride: usize,
    block: *const E,
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
            let dots = dot_tile::<S, E, R, C>(&q, block.add(token * stride), stride, dim);
            for r in 0..R {
                for c in 0..C {
                    scores[row + r][token + c] = dots[r][c];
                }
            }
            token += C;
        }
        while token < tokens {
            let dots = dot_tile::<S, E, R, 1>(&q, block.add(token * stride), stride, dim);
            for r in 0..R {
                scores[row + r][token] = dots[r][0];
            }
            token += 1;
        }
    }
}

/// `R x C` inner products over `dim` channels.
#[inline(always)]
unsafe fn dot_tile<S: Simd, E: Element, const R: usize, const C: usize>(
    q: &[*const f32; R],
    keys: *const E,
    stride: usize,
    dim: usize,
) -> [[f32; C]; R] {
    let whole = dim / S::LANES * S::LANES;
    let mut dots = [[0.0; C]; R];
    // SAFETY: every load is inside a row of `dim` channels.
    unsafe {
        let mut acc = [[S::splat(0.0); C]; R];
        let mut i = 0;
        while i < whole {
            let mut k = [S::splat(0.0); C];
            for c in 0..C {
                k[c] = E::load::<S>(keys.add(c * stride + i));
            }
            for r in 0..R {
                let q = S::load(q[r].add(i));
                for c in 0..C {
                    acc[r][c] = S::mul_add(q, k[c], acc[r][c]);
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
        for r in 0..R {
            dots[r] = S::sum_each(&acc[r]);
        }
    }
    dots
}
