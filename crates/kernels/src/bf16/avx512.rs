//! AVX-512's products of pairs, and rounding.

#![allow(clippy::needless_range_loop, reason = "register arrays are indexed side by side")]

use std::arch::x86_64::*;

use super::PairTask;
use crate::{
    gemm::{PANEL, TILE_ROWS, finish},
    simd::Avx512,
};

/// Panels beside each other.
const PANELS: usize = 4;

/// # Safety
/// As [`PairTask::run`].
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn run(task: &PairTask) {
    let mut row = 0;
    while row < task.rows {
        let rows = (task.rows - row).min(TILE_ROWS);
        // SAFETY: rows below `task.rows`; the caller's contract.
        unsafe {
            match rows {
                1 => strip::<1>(task, row),
                2 => strip::<2>(task, row),
                3 => strip::<3>(task, row),
                4 => strip::<4>(task, row),
                5 => strip::<5>(task, row),
                _ => strip::<6>(task, row),
            }
        }
        row += rows;
    }
}

/// All outputs of `R` rows.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn strip<const R: usize>(task: &PairTask, row: usize) {
    let count = task.outputs.div_ceil(PANEL);
    for first in (0..count).step_by(PANELS) {
        // SAFETY: panels and rows that exist, for `k` inputs; the caller's contract.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); PANELS]; R];
            let mut x = [task.x; R];
            for r in 0..R {
                x[r] = task.x.add((row + r) * task.k);
            }
            let mut b = [task.panels; PANELS];
            for p in 0..PANELS {
                b[p] = task.panel(first + p);
            }
            for _ in 0..task.k / 2 {
                for p in 0..PANELS {
                    let pairs: __m512bh = std::mem::transmute(_mm512_loadu_si512(b[p].cast()));
                    b[p] = b[p].wrapping_add(2 * PANEL);
                    for r in 0..R {
                        let pair = _mm512_set1_epi32(x[r].cast::<i32>().read_unaligned());
                        sums[r][p] = _mm512_dpbf16_ps(sums[r][p], std::mem::transmute(pair), pairs);
                    }
                }
                for r in 0..R {
                    x[r] = x[r].wrapping_add(2);
                }
            }
            for r in 0..R {
                let y = task.y.add(task.y_rows.offset(row + r));
                for p in 0..PANELS.min(count - first) {
                    let output = (first + p) * PANEL;
                    finish::<Avx512>(y.add(output), sums[r][p], task.outputs - output, task.accumulate);
                }
            }
        }
    }
}

/// Rounds `k` numbers, a multiple of 32, to the nearest bf16.
///
/// # Safety
/// The machine must have AVX-512-BF16, and the pointers `k` numbers.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn round_row(from: *const f32, to: *mut u16, k: usize) {
    for i in (0..k).step_by(PANEL) {
        // SAFETY: a whole number of vectors; the caller's contract.
        unsafe {
            let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(_mm512_loadu_ps(from.add(i))));
            _mm256_storeu_si256(to.add(i).cast(), rounded);
        }
    }
}
