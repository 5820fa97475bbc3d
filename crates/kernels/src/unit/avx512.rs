//! AVX-512's dot products of two bf16 or four int8.

#![allow(clippy::needless_range_loop, reason = "register arrays are indexed side by side")]

use std::arch::x86_64::*;

use super::{
    UnitTask,
    numbers::{Bf16, Int8, Numbers},
};
use crate::{
    gemm::{PANEL, finish},
    prefetch::{self, prefetch_stream},
    simd::Avx512,
};

/// Panels beside each other.
const PANELS: usize = 4;

/// `sums + x · w` in every 32 bits.
trait Dot: Numbers {
    unsafe fn dot(sums: __m512i, x: __m512i, w: __m512i) -> __m512i;
}

impl Dot for Bf16 {
    #[inline(always)]
    unsafe fn dot(sums: __m512i, x: __m512i, w: __m512i) -> __m512i {
        // SAFETY: vectors of one size; the machine has AVX-512-BF16, the caller's contract.
        unsafe {
            let [x, w] = [x, w].map(|pairs| std::mem::transmute::<__m512i, __m512bh>(pairs));
            _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sums), x, w))
        }
    }
}

impl Dot for Int8 {
    #[inline(always)]
    unsafe fn dot(sums: __m512i, x: __m512i, w: __m512i) -> __m512i {
        // SAFETY: the machine has AVX-512-VNNI, the caller's contract.
        unsafe { _mm512_dpbusd_epi32(sums, w, x) }
    }
}

/// # Safety
/// As [`UnitTask::run`].
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx512bf16")]
pub(super) unsafe fn run_bf16(task: &UnitTask) {
    for row in 0..task.rows.div_ceil(6) {
        // SAFETY: rows that exist; the caller's contract.
        unsafe {
            match task.rows - 6 * row {
                1 => strip::<Bf16, 1, 1>(task, 6 * row),
                2 => strip::<Bf16, 2, 2>(task, 6 * row),
                3 => strip::<Bf16, 3, 3>(task, 6 * row),
                4 => strip::<Bf16, 4, 4>(task, 6 * row),
                5 => strip::<Bf16, 5, 5>(task, 6 * row),
                _ => strip::<Bf16, 6, 6>(task, 6 * row),
            }
        }
    }
}

/// # Safety
/// As [`UnitTask::run`].
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx512vnni")]
pub(super) unsafe fn run_int8(task: &UnitTask) {
    for row in 0..task.rows.div_ceil(3) {
        // SAFETY: rows that exist; the caller's contract.
        unsafe {
            match task.rows - 3 * row {
                1 => strip::<Int8, 1, 2>(task, 3 * row),
                2 => strip::<Int8, 2, 4>(task, 3 * row),
                _ => strip::<Int8, 3, 6>(task, 3 * row),
            }
        }
    }
}

/// All outputs of `R` rows of inputs, which are `T` rows of numbers.
#[inline(always)]
unsafe fn strip<N: Dot, const R: usize, const T: usize>(task: &UnitTask, row: usize) {
    let count = task.outputs.div_ceil(PANEL);
    for first in (0..count).step_by(PANELS) {
        // SAFETY: panels and rows that exist; the caller's contract.
        unsafe {
            let mut sums = [[_mm512_setzero_si512(); PANELS]; T];
            let mut x = [task.x.numbers; T];
            for t in 0..T {
                x[t] = task.tile_row(N::ROWS * row + t);
            }
            let mut w = [task.panels; PANELS];
            for p in 0..PANELS {
                w[p] = task.panel(first + p);
            }
            // A later tile's weights are near.
            let ask = row == 0 && prefetch::always_pays();
            for _ in 0..task.row_bytes / 4 {
                for p in 0..PANELS {
                    if ask {
                        prefetch_stream(w[p], 1);
                    }
                    let weights = _mm512_loadu_si512(w[p].cast());
                    w[p] = w[p].wrapping_add(64);
                    for t in 0..T {
                        let inputs = _mm512_set1_epi32(x[t].cast::<i32>().read_unaligned());
                        sums[t][p] = N::dot(sums[t][p], inputs, weights);
                    }
                }
                for t in 0..T {
                    x[t] = x[t].wrapping_add(4);
                }
            }
            for r in 0..R {
                let y = task.y.add(task.y_rows.offset(row + r));
                for p in 0..PANELS.min(count - first) {
                    let output = (first + p) * PANEL;
                    let sums = [sums[N::ROWS * r][p], sums[N::ROWS * r + N::ROWS - 1][p]];
                    let results = N::results(task, row + r, output, sums);
                    finish::<Avx512>(y.add(output), results, task.outputs - output, task.accumulate);
                }
            }
        }
    }
}
