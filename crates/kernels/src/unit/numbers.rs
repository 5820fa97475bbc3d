//! The two kinds of numbers: how inputs are rounded, and what sums stand for.

use std::arch::x86_64::*;

use super::{INT8_OFFSET, RowScale, UnitTask};
use crate::gemm::PANEL;

/// The largest part of a row's whole numbers, and what a high part counts: [`HIGH`] x 127 + 127 is the largest of all.
const PART: i32 = 127;
const HIGH: i32 = 254;

/// Numbers that a unit multiplies.
pub(super) trait Numbers {
    /// Rows of a tile that one row of inputs takes.
    const ROWS: usize;

    /// Outputs of `row` from the sums of its tile rows.
    ///
    /// # Safety
    /// AVX-512F, and a row and a panel of outputs that the task has.
    unsafe fn results(task: &UnitTask, row: usize, output: usize, sums: [__m512i; 2]) -> __m512;
}

/// Inputs rounded to the nearest bf16, sums in f32.
pub(super) struct Bf16;

impl Bf16 {
    /// Rounds `k` numbers, whole vectors of them.
    ///
    /// # Safety
    /// The machine must have AVX-512-BF16, and the pointers `k` numbers.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn round(from: *const f32, k: usize, to: *mut u8) {
        for i in (0..k).step_by(PANEL) {
            // SAFETY: a whole number of vectors; the caller's contract.
            unsafe {
                let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(_mm512_loadu_ps(from.add(i))));
                _mm256_storeu_si256(to.add(2 * i).cast(), rounded);
            }
        }
    }
}

impl Numbers for Bf16 {
    const ROWS: usize = 1;

    #[inline(always)]
    unsafe fn results(_: &UnitTask, _: usize, _: usize, sums: [__m512i; 2]) -> __m512 {
        // SAFETY: the caller's contract.
        unsafe { _mm512_castsi512_ps(sums[0]) }
    }
}

/// Inputs rounded to a 32,385th of their row's largest, in two parts of eight bits: `254 high + low`. Sums are exact, and so
/// the same in every unit. A row that has a NaN gives NaN, as in f32.
pub(super) struct Int8;

impl Int8 {
    /// Rounds `k` numbers, whole vectors of them: `k` high parts, then `k` low ones.
    ///
    /// # Safety
    /// The machine must have AVX-512F, and the pointers `k` numbers and room for `2 k`.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn round(from: *const f32, k: usize, to: *mut u8) -> RowScale {
        // SAFETY: a whole number of vectors; the caller's contract.
        unsafe {
            let (mut largest, mut nan) = (_mm512_setzero_ps(), 0);
            for i in (0..k).step_by(PANEL) {
                let x = _mm512_loadu_ps(from.add(i));
                nan |= _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
                largest = _mm512_max_ps(largest, _mm512_abs_ps(x));
            }
            let largest = _mm512_reduce_max_ps(largest);
            let steps = (HIGH * PART + PART) as f32;
            let inverse = if largest > 0.0 { steps / largest } else { 0.0 };
            let (mut highs, mut lows) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            for i in (0..k).step_by(PANEL) {
                let scaled = _mm512_mul_ps(_mm512_loadu_ps(from.add(i)), _mm512_set1_ps(inverse));
                // What is no number would become the least whole one, whose parts overflow.
                let ordered = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(scaled, scaled);
                let whole = _mm512_maskz_cvtps_epi32(ordered, scaled);
                let share = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(1.0 / HIGH as f32));
                let limit = _mm512_set1_epi32(PART);
                let high = _mm512_min_epi32(_mm512_cvtps_epi32(share), limit);
                let high = _mm512_max_epi32(high, _mm512_set1_epi32(-PART));
                let low = _mm512_sub_epi32(whole, _mm512_mullo_epi32(high, _mm512_set1_epi32(HIGH)));
                highs = _mm512_add_epi32(highs, high);
                lows = _mm512_add_epi32(lows, low);
                _mm_storeu_si128(to.add(i).cast(), _mm512_cvtepi32_epi8(high));
                _mm_storeu_si128(to.add(k + i).cast(), _mm512_cvtepi32_epi8(low));
            }
            let sums = [_mm512_reduce_add_epi32(highs), _mm512_reduce_add_epi32(lows)];
            RowScale { scale: if nan == 0 { largest / steps } else { f32::NAN }, sums }
        }
    }
}

impl Numbers for Int8 {
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn results(task: &UnitTask, row: usize, output: usize, sums: [__m512i; 2]) -> __m512 {
        // SAFETY: the row has a scale, and scales fill whole panels; the caller's contract.
        unsafe {
            let RowScale { scale, sums: added } = *task.x.scales.add(row);
            let part = |part: usize| {
                let added = _mm512_set1_epi32(INT8_OFFSET * added[part]);
                _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[part], added))
            };
            let sum = _mm512_fmadd_ps(part(0), _mm512_set1_ps(HIGH as f32), part(1));
            let scales = _mm512_mul_ps(_mm512_loadu_ps(task.scales.add(output)), _mm512_set1_ps(scale));
            _mm512_mul_ps(sum, scales)
        }
    }
}
