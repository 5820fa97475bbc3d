//! One vector vocabulary, three instruction sets.
//!
//! Kernels are written once, generic over [`Simd`], and compiled three times: for AVX-512, for AVX2 with FMA, and for
//! any machine. The entry points the [`dispatch!`](crate::simd::dispatch) macro makes pick one at run time, so one binary runs everywhere.
//! Every operation is a fixed sequence of lane-wise operations: a result never depends on alignment or batch. This file
//! is long because it spells out every operation once per instruction set.

#![allow(
    clippy::needless_range_loop,
    reason = "a closure would not be compiled for the caller's instruction set"
)]

use std::sync::OnceLock;

/// What the machine can do, as far as the kernels care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

/// Names the instruction set to use where the machine has it, so that one machine can run what all machines will.
/// Anything else is ignored.
pub(crate) const OVERRIDE: &str = "GQLA_INSTRUCTION_SET";

/// The instruction set in use, found once.
pub(crate) fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| choose(&detect(), std::env::var(OVERRIDE).ok().as_deref()))
}

/// The one asked for when the machine has it, else the best.
fn choose(available: &[Isa], wanted: Option<&str>) -> Isa {
    let asked_for = available.iter().find(|isa| Some(isa.name()) == wanted);
    asked_for.or(available.first()).copied().unwrap_or(Isa::Portable)
}

/// What the machine has, best first.
#[cfg(target_arch = "x86_64")]
fn detect() -> Vec<Isa> {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let found = [(Isa::Avx512, has_avx512()), (Isa::Avx2, avx2), (Isa::Portable, true)];
    found.into_iter().filter_map(|(isa, there)| there.then_some(isa)).collect()
}

/// AVX-512F, and what all processors for servers have with it. Without the shorter vectors of VL the compiler keeps half of
/// the registers out of reach of sums that end in one, and spills them.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw")
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Vec<Isa> {
    vec![Isa::Portable]
}

impl Isa {
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512f",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2+fma",
            Self::Portable => "portable",
        }
    }
}

/// The name of the instruction set the kernels run on: `avx512f`, `avx2+fma` or `portable`. The best one the machine
/// has, unless the environment's `GQLA_INSTRUCTION_SET` names another that it has too.
pub fn instruction_set() -> &'static str {
    isa().name()
}

/// An instruction set this machine has; there is no way to get one that it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionSet(Isa);

impl InstructionSet {
    /// The one the kernels run on.
    pub fn in_use() -> Self {
        Self(isa())
    }

    /// All the machine has, the one in use first, then best first.
    pub fn available() -> Vec<Self> {
        let others = detect().into_iter().filter(|other| *other != isa());
        std::iter::once(isa()).chain(others).map(Self).collect()
    }

    /// `avx512f`, `avx2+fma` or `portable`.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    pub(crate) fn isa(self) -> Isa {
        self.0
    }
}

/// Lanes of f32 and what can be done with them.
///
/// # Safety
/// Every function may only run on a machine that has the instruction set, and pointers must be valid for the lanes
/// they name: [`Self::LANES`] for whole vectors, `n` for partial ones.
pub(crate) trait Simd: Copy {
    /// A vector.
    type V: Copy;
    /// Numbers in a vector.
    const LANES: usize;
    /// Whether a product and a sum are one instruction, of single numbers too.
    const FUSES: bool;
    /// Products per byte of memory from which on it pays to ask for memory by hand, in f32 and in a processor's units, which are
    /// faster; `None` never does.
    const ASKS_FROM: Option<[f64; 2]>;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    /// Lanes from `n` on are zero.
    unsafe fn load_partial(p: *const f32, n: usize) -> Self::V;
    unsafe fn load_bf16(p: *const u16) -> Self::V;
    unsafe fn load_i8(p: *const i8) -> Self::V;
    /// Of two numbers for every lane, side by side, the first and the second.
    unsafe fn load_bf16_pairs(p: *const u16) -> [Self::V; 2];
    /// The same of int8.
    unsafe fn load_i8_pairs(p: *const i8) -> [Self::V; 2];
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn store_partial(p: *mut f32, v: Self::V, n: usize);
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Sum of all lanes, in a fixed order.
    unsafe fn sum(v: Self::V) -> f32;
    /// The sum of each, added in the order of [`Self::sum`].
    #[inline(always)]
    unsafe fn sum_each<const C: usize>(v: &[Self::V; C]) -> [f32; C] {
        let mut sums = [0.0; C];
        for c in 0..C {
            // SAFETY: the trait's contract.
            sums[c] = unsafe { Self::sum(v[c]) };
        }
        sums
    }
    /// Largest of all lanes.
    unsafe fn max_lane(v: Self::V) -> f32;
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Simd;

    /// 16 lanes.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    // SAFETY (whole impl): the trait's contract passes to the caller that the machine has AVX-512F and that pointers
    // cover the lanes read or written.
    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;
        const FUSES: bool = true;
        // Measured: with fewer, memory is never at rest.
        const ASKS_FROM: Option<[f64; 2]> = Some([1.4, 1.75]);

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            // SAFETY: the trait's contract.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            // SAFETY: the trait's contract.
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_partial(p: *const f32, n: usize) -> __m512 {
            // SAFETY: masked lanes are not touched.
            unsafe { _mm512_maskz_loadu_ps(first(n), p) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> __m512 {
            // SAFETY: the trait's contract; a bf16 is the upper half of an f32.
            unsafe {
                let half = _mm256_loadu_si256(p.cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
            }
        }
        #[inline(always)]
        unsafe fn load_i8(p: *const i8) -> __m512 {
            // SAFETY: the trait's contract.
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_bf16_pairs(p: *const u16) -> [__m512; 2] {
            // SAFETY: the trait's contract; a bf16 is the upper half of an f32.
            unsafe {
                let pairs = _mm512_loadu_si512(p.cast());
                let second = _mm512_and_si512(pairs, _mm512_set1_epi32(!0xffff));
                [_mm512_slli_epi32::<16>(pairs), second].map(|v| _mm512_castsi512_ps(v))
            }
        }
        #[inline(always)]
        unsafe fn load_i8_pairs(p: *const i8) -> [__m512; 2] {
            // SAFETY: the trait's contract.
            unsafe {
                let pairs = _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast()));
                let first = _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(pairs));
                [first, _mm512_srai_epi32::<16>(pairs)].map(|v| _mm512_cvtepi32_ps(v))
            }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            // SAFETY: the trait's contract.
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn store_partial(p: *mut f32, v: __m512, n: usize) {
            // SAFETY: masked lanes are not touched.
            unsafe { _mm512_mask_storeu_ps(p, first(n), v) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            // SAFETY: the trait's contract.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            // SAFETY: the trait's contract.
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: the trait's contract.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn sum(v: __m512) -> f32 {
            // SAFETY: the trait's contract.
            unsafe { _mm_cvtss_f32(sum_four(v, v, v, v)) }
        }
        #[inline(always)]
        unsafe fn sum_each<const C: usize>(v: &[__m512; C]) -> [f32; C] {
            // SAFETY: the trait's contract.
            unsafe {
                let mut sums = [0.0; C];
                if C == 4 {
                    _mm_storeu_ps(sums.as_mut_ptr(), sum_four(v[0], v[1], v[2], v[3]));
                } else {
                    for c in 0..C {
                        sums[c] = Self::sum(v[c]);
                    }
                }
                sums
            }
        }
        #[inline(always)]
        unsafe fn max_lane(v: __m512) -> f32 {
            // SAFETY: the trait's contract.
            unsafe { _mm512_reduce_max_ps(v) }
        }
    }

    /// Four sums at once: each vector is halved four times, and what is left of all is kept side by side.
    #[inline(always)]
    unsafe fn sum_four(a: __m512, b: __m512, c: __m512, d: __m512) -> __m128 {
        // SAFETY: the caller has AVX-512F.
        unsafe {
            let ab = halve(a, b);
            let cd = halve(c, d);
            let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
            let high = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd);
            let four = _mm512_add_ps(low, high);
            let two = _mm512_add_ps(four, _mm512_permute_ps::<0b01_00_11_10>(four));
            let one = _mm512_add_ps(two, _mm512_permute_ps::<0b10_11_00_01>(two));
            let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, one))
        }
    }

    /// Upper plus lower half of `a`, then of `b`.
    #[inline(always)]
    unsafe fn halve(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller has AVX-512F.
        unsafe {
            let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
            let high = _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b);
            _mm512_add_ps(low, high)
        }
    }

    /// A mask of the first `n` of 16 lanes.
    #[inline(always)]
    fn first(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as __mmask16
    }

    /// 8 lanes.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        const FUSES: bool = true;
        // Measured: what reads 32 bytes at a time reads half as fast without.
        const ASKS_FROM: Option<[f64; 2]> = Some([0.0; 2]);

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            // SAFETY: the trait's contract.
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            // SAFETY: the trait's contract.
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_partial(p: *const f32, n: usize) -> __m256 {
            let mut lanes = [0.0f32; 8];
            // SAFETY: `n` numbers can be read and n is less than 8.
            unsafe {
                p.copy_to_nonoverlapping(lanes.as_mut_ptr(), n);
                _mm256_loadu_ps(lanes.as_ptr())
            }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> __m256 {
            // SAFETY: the trait's contract; a bf16 is the upper half of an f32.
            unsafe {
                let half = _mm_loadu_si128(p.cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
            }
        }
        #[inline(always)]
        unsafe fn load_i8(p: *const i8) -> __m256 {
            // SAFETY: the trait's contract.
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_bf16_pairs(p: *const u16) -> [__m256; 2] {
            // SAFETY: the trait's contract; a bf16 is the upper half of an f32.
            unsafe {
                let pairs = _mm256_loadu_si256(p.cast());
                let second = _mm256_and_si256(pairs, _mm256_set1_epi32(!0xffff));
                [_mm256_slli_epi32::<16>(pairs), second].map(|v| _mm256_castsi256_ps(v))
            }
        }
        #[inline(always)]
        unsafe fn load_i8_pairs(p: *const i8) -> [__m256; 2] {
            // SAFETY: the trait's contract.
            unsafe {
                let pairs = _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()));
                let first = _mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(pairs));
                [first, _mm256_srai_epi32::<16>(pairs)].map(|v| _mm256_cvtepi32_ps(v))
            }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            // SAFETY: the trait's contract.
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn store_partial(p: *mut f32, v: __m256, n: usize) {
            let mut lanes = [0.0f32; 8];
            // SAFETY: `n` numbers can be written and n is less than 8.
            unsafe {
                _mm256_storeu_ps(lanes.as_mut_ptr(), v);
                p.copy_from_nonoverlapping(lanes.as_ptr(), n);
            }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            // SAFETY: the trait's contract.
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m256, b: __m256) -> __m256 {
            // SAFETY: the trait's contract.
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: the trait's contract.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn sum(v: __m256) -> f32 {
            // SAFETY: the trait's contract.
            unsafe { super::fold(lanes(v), |a, b| a + b) }
        }
        #[inline(always)]
        unsafe fn max_lane(v: __m256) -> f32 {
            // SAFETY: the trait's contract.
            unsafe { super::fold(lanes(v), f32::max) }
        }
    }

    #[inline(always)]
    unsafe fn lanes(v: __m256) -> [f32; 8] {
        let mut lanes = [0.0f32; 8];
        // SAFETY: the caller has AVX; the array has 8 lanes.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), v) };
        lanes
    }
}

/// Halves 8 lanes three times.
#[inline(always)]
fn fold(v: [f32; 8], op: impl Fn(f32, f32) -> f32) -> f32 {
    let four = [op(v[0], v[4]), op(v[1], v[5]), op(v[2], v[6]), op(v[3], v[7])];
    op(op(four[0], four[2]), op(four[1], four[3]))
}

/// Eight lanes in an array, which any machine's compiler can put into whatever registers there are.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn zip(a: [f32; 8], b: [f32; 8], op: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    std::array::from_fn(|i| op(a[i], b[i]))
}

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;
    const FUSES: bool = false;
    const ASKS_FROM: Option<[f64; 2]> = None;

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        // SAFETY: 8 numbers can be read.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> [f32; 8] {
        // SAFETY: `n` numbers can be read.
        std::array::from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> [f32; 8] {
        // SAFETY: 8 numbers can be read.
        std::array::from_fn(|i| f32::from_bits(u32::from(unsafe { *p.add(i) }) << 16))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> [f32; 8] {
        // SAFETY: 8 numbers can be read.
        std::array::from_fn(|i| f32::from(unsafe { *p.add(i) }))
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> [[f32; 8]; 2] {
        // SAFETY: 16 numbers can be read.
        let at = |i| f32::from_bits(u32::from(unsafe { *p.add(i) }) << 16);
        [0, 1].map(|number| std::array::from_fn(|lane| at(2 * lane + number)))
    }
    #[inline(always)]
    unsafe fn load_i8_pairs(p: *const i8) -> [[f32; 8]; 2] {
        // SAFETY: 16 numbers can be read.
        let at = |i| f32::from(unsafe { *p.add(i) });
        [0, 1].map(|number| std::array::from_fn(|lane| at(2 * lane + number)))
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        // SAFETY: 8 numbers can be written.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_partial(p: *mut f32, v: [f32; 8], n: usize) {
        // SAFETY: `n` numbers can be written and n is less than 8.
        unsafe { p.copy_from_nonoverlapping(v.as_ptr(), n) }
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, f32::max)
    }
    #[inline(always)]
    unsafe fn mul_add(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        // Without an FMA instruction `f32::mul_add` is a library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn sum(v: [f32; 8]) -> f32 {
        fold(v, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn max_lane(v: [f32; 8]) -> f32 {
        fold(v, f32::max)
    }
}

/// Makes an entry point `fn name(args)` that runs `body::<S, …>(args)` compiled for the machine's instruction set.
/// Constants after the vector type are given per instruction set, in the order AVX-512, AVX2, portable. After `on` stands
/// the instruction set to run, which must be one the machine has; without, it is the one in use.
macro_rules! dispatch {
    (@isa) => { $crate::simd::isa() };
    (@isa $isa:expr) => { $isa };
    (
        $(#[$meta:meta])*
        $vis:vis unsafe fn $name:ident $(<$t:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?
        = $body:ident $(on $isa:expr)?; [$($c512:literal),*] [$($c2:literal),*] [$($c0:literal),*]
    ) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512 $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's contract; the feature is enabled here.
                unsafe { $body::<$crate::simd::Avx512, $($t,)? $($c512),*>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2 $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's contract; the features are enabled here.
                unsafe { $body::<$crate::simd::Avx2, $($t,)? $($c2),*>($($arg),*) }
            }
            // SAFETY: `isa` answers only what this machine has, and so does the caller; the rest is the caller's contract.
            unsafe {
                match $crate::simd::dispatch!(@isa $($isa)?) {
                    #[cfg(target_arch = "x86_64")]
                    $crate::simd::Isa::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::simd::Isa::Avx2 => avx2($($arg),*),
                    $crate::simd::Isa::Portable => $body::<$crate::simd::Portable, $($t,)? $($c0),*>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use dispatch;

#[cfg(test)]
mod tests {
    use super::{InstructionSet, Isa, choose, instruction_set};

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn an_instruction_set_is_used_only_where_the_machine_has_it() {
        let old = [Isa::Avx2, Isa::Portable];
        assert_eq!(choose(&old, None), Isa::Avx2);
        assert_eq!(choose(&old, Some("portable")), Isa::Portable);
        assert_eq!(choose(&old, Some("avx512f")), Isa::Avx2);
        assert_eq!(choose(&old, Some("mmx")), Isa::Avx2);
    }

    #[test]
    fn the_one_in_use_comes_first_and_once() {
        let available = InstructionSet::available();
        assert_eq!(available[0], InstructionSet::in_use());
        assert_eq!(available.iter().filter(|set| set.name() == instruction_set()).count(), 1);
        assert!(available.iter().any(|set| set.name() == "portable"));
    }

    #[test]
    fn the_override_is_obeyed() {
        let wanted = std::env::var("GQLA_INSTRUCTION_SET").unwrap_or_else(|_| instruction_set().to_owned());
        assert_eq!(instruction_set(), wanted, "this machine lacks what GQLA_INSTRUCTION_SET asks for");
    }
}
