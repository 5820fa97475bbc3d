//! Products in AVX-512's units for narrow numbers: pairs of bf16, and pairs of whole numbers of 16 bits.

use std::arch::x86_64::*;

use super::{
    Partial, Task,
    products::{Products, RowProducts},
    run_chunk_in,
};
use crate::{
    simd::Avx512,
    unit::{Narrow, Unit},
};

/// Inputs rounded to the nearest bf16, sums in f32.
struct Bf16Dots;

impl Products<Avx512> for Bf16Dots {
    type Number = u16;
    type Inputs = u32;
    type Lots = __m512i;
    type Sums = __m512;
    type Rows = Self;
    const PACK: usize = 2;
    const ROUNDS: bool = true;

    #[inline(always)]
    unsafe fn round(from: *const f32, n: usize, to: *mut u32) -> f32 {
        for i in (0..n).step_by(16) {
            // SAFETY: AVX-512-BF16 and `n` numbers, the trait's contract. What is written was read before.
            unsafe {
                let rounded = _mm512_cvtneps_pbh(load(from.add(i), n - i));
                let mask = first(n - i);
                _mm256_mask_storeu_epi16(
                    to.add(i / 2).cast(),
                    mask,
                    std::mem::transmute::<__m256bh, __m256i>(rounded),
                );
            }
        }
        1.0
    }
    #[inline(always)]
    unsafe fn load(p: *const u16) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const u16) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_and_si512(Self::load(p), _mm512_set1_epi32(0xffff)) }
    }
    #[inline(always)]
    unsafe fn start(so_far: __m512) -> __m512 {
        so_far
    }
    #[inline(always)]
    unsafe fn add(sums: __m512, x: *const u32, lots: __m512i) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { Self::multiply(sums, _mm512_set1_epi32(x.read_unaligned().cast_signed()), lots) }
    }
    #[inline(always)]
    unsafe fn end(sums: __m512, _: f32, _: __m512) -> __m512 {
        sums
    }
}

impl RowProducts<Avx512> for Bf16Dots {
    #[inline(always)]
    unsafe fn load_inputs(p: *const u32) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_first_inputs(p: *const u32, n: usize) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_maskz_loadu_epi32(first(n / 2), p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_row(p: *const u16) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { Self::load(p) }
    }
    #[inline(always)]
    unsafe fn load_first_of_row(p: *const u16, n: usize) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_maskz_loadu_epi16(first_of_32(n), p.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply(sums: __m512, x: __m512i, lots: __m512i) -> __m512 {
        // SAFETY: vectors of one size; the trait's contract.
        unsafe {
            let [x, lots] = [x, lots].map(|pairs| std::mem::transmute::<__m512i, __m512bh>(pairs));
            _mm512_dpbf16_ps(sums, x, lots)
        }
    }
    #[inline(always)]
    unsafe fn pack(from: *const u16, stride: usize, n: usize, to: *mut u16) {
        let order: [u16; 32] = std::array::from_fn(|i| (i as u16 / 2) + 16 * (i as u16 % 2));
        for i in (0..n).step_by(16) {
            // SAFETY: `n` is a whole number of vectors; the trait's contract.
            unsafe {
                let [one, other] = [from.add(i), from.add(stride + i)].map(|p| _mm256_loadu_si256(p.cast()));
                let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(one), other);
                let pairs = _mm512_permutexvar_epi16(_mm512_loadu_si512(order.as_ptr().cast()), both);
                _mm512_storeu_si512(to.add(2 * i).cast(), pairs);
            }
        }
    }
}

/// Inputs rounded to a 32,767th of the largest (less where there are so many that their sum could overflow); sums are whole
/// numbers, and exact. A NaN makes all that the inputs meet NaN, as in f32.
struct Int8Dots;

impl Products<Avx512> for Int8Dots {
    type Number = i8;
    type Inputs = u32;
    type Lots = __m512i;
    type Sums = __m512i;
    type Rows = Self;
    const PACK: usize = 2;
    // Of several in a row the compiler makes products and sums apart, twice the work, to shorten the wait between them.
    const UNROLLED: usize = 1;
    const ROUNDS: bool = true;

    #[inline(always)]
    unsafe fn round(from: *const f32, n: usize, to: *mut u32) -> f32 {
        // SAFETY: AVX-512 and `n` numbers, the trait's contract. What is written was read before.
        unsafe {
            let (mut largest, mut nan) = (_mm512_setzero_ps(), 0);
            for i in (0..n).step_by(16) {
                let x = load(from.add(i), n - i);
                nan |= _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
                largest = _mm512_max_ps(largest, _mm512_abs_ps(x));
            }
            let largest = _mm512_reduce_max_ps(largest);
            let steps = (i32::MAX as usize / (127 * n.max(1))).min(i16::MAX as usize) as f32;
            let inverse = if largest > 0.0 { steps / largest } else { 0.0 };
            for i in (0..n).step_by(16) {
                let scaled = _mm512_mul_ps(load(from.add(i), n - i), _mm512_set1_ps(inverse));
                let whole = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(scaled));
                _mm256_mask_storeu_epi16(to.add(i / 2).cast(), first(n - i), whole);
            }
            if nan == 0 { largest / steps } else { f32::NAN }
        }
    }
    #[inline(always)]
    unsafe fn load(p: *const i8) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const i8) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { Self::load(p) }
    }
    #[inline(always)]
    unsafe fn start(_: __m512) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn add(sums: __m512i, x: *const u32, lots: __m512i) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { Self::multiply(sums, _mm512_set1_epi32(x.read_unaligned().cast_signed()), lots) }
    }
    #[inline(always)]
    unsafe fn end(sums: __m512i, worth: f32, so_far: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(worth), so_far) }
    }
}

impl RowProducts<Avx512> for Int8Dots {
    #[inline(always)]
    unsafe fn load_inputs(p: *const u32) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_first_inputs(p: *const u32, n: usize) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_maskz_loadu_epi32(first(n / 2), p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_row(p: *const i8) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { Self::load(p) }
    }
    #[inline(always)]
    unsafe fn load_first_of_row(p: *const i8, n: usize) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(first_of_32(n), p)) }
    }
    #[inline(always)]
    unsafe fn multiply(sums: __m512i, x: __m512i, lots: __m512i) -> __m512i {
        // SAFETY: the machine has AVX-512-VNNI, the trait's contract.
        unsafe { _mm512_dpwssd_epi32(sums, x, lots) }
    }
    #[inline(always)]
    unsafe fn pack(from: *const i8, stride: usize, n: usize, to: *mut i8) {
        for i in (0..n).step_by(16) {
            // SAFETY: `n` is a whole number of vectors; the trait's contract.
            unsafe {
                let [one, other] = [from.add(i), from.add(stride + i)].map(|p| _mm_loadu_si128(p.cast()));
                _mm_storeu_si128(to.add(2 * i).cast(), _mm_unpacklo_epi8(one, other));
                _mm_storeu_si128(to.add(2 * i + 16).cast(), _mm_unpackhi_epi8(one, other));
            }
        }
    }
}

/// A mask of the first `n` of 32 numbers.
#[inline(always)]
fn first_of_32(n: usize) -> __mmask32 {
    if n < 32 { (1 << n) - 1 } else { !0 }
}

/// A mask of the first `n` of 16 lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    if n < 16 { (1 << n) - 1 } else { !0 }
}

/// Up to 16 numbers, then zeros.
#[inline(always)]
unsafe fn load(from: *const f32, n: usize) -> __m512 {
    // SAFETY: AVX-512F and `n` numbers, the caller's contract.
    unsafe { _mm512_maskz_loadu_ps(first(n), from) }
}

/// What runs a chunk over bf16 in the processor's unit.
pub(super) fn bf16() -> Option<super::RunChunk<u16>> {
    Unit::in_use(Narrow::Bf16).map(|_| run_bf16 as super::RunChunk<u16>)
}

/// What runs a chunk over int8 in the processor's unit.
pub(super) fn int8() -> Option<super::RunChunk<i8>> {
    Unit::in_use(Narrow::Int8).map(|_| run_int8 as super::RunChunk<i8>)
}

#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx512bf16")]
unsafe fn run_bf16(task: &Task<'_, u16>, chunk: usize, partial: Partial, room: *mut f32) {
    // SAFETY: the caller's contract, and a machine with the unit: nobody else is given this function.
    unsafe { run_chunk_in::<Avx512, Bf16Dots, 4, 4>(task, chunk, partial, room) }
}

#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx512vnni")]
unsafe fn run_int8(task: &Task<'_, i8>, chunk: usize, partial: Partial, room: *mut f32) {
    // SAFETY: as in `run_bf16`.
    unsafe { run_chunk_in::<Avx512, Int8Dots, 4, 4>(task, chunk, partial, room) }
}
