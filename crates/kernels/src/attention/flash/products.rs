//! How a cache's numbers are multiplied: as they are, in f32, or in the processor's units for narrow numbers.

use std::marker::PhantomData;

use super::ahead::Ahead;
use crate::{
    gemm::{Element, FEW_VECTORS, TILE_ROWS, UNROLLED},
    simd::Simd,
};

/// A number of a cache.
pub(super) trait Stored: Element {
    /// Whether a number is worth its part's scale times itself.
    const SCALED: bool;
    /// Products in f32 of numbers as columns of keys and pairs of values have them side by side.
    type Exact<S: Simd>: Products<S, Number = Self>;
}

impl Stored for f32 {
    const SCALED: bool = false;
    type Exact<S: Simd> = Single<f32>;
}

impl Stored for u16 {
    const SCALED: bool = false;
    type Exact<S: Simd> = Pairs<u16>;
}

impl Stored for i8 {
    const SCALED: bool = true;
    type Exact<S: Simd> = Pairs<i8>;
}

/// Products of inputs, which all lanes meet, with numbers of their own; every lane sums its own.
///
/// # Safety
/// As [`Simd`]: the machine must have the instructions, and pointers must be valid for what they name.
pub(super) trait Products<S: Simd> {
    /// What the cache stores.
    type Number: Stored;
    /// [`Self::PACK`] inputs.
    type Inputs: Copy;
    /// As many numbers of every lane.
    type Lots: Copy;
    type Sums: Copy;
    /// What multiplies keys that lie token by token.
    type Rows: RowProducts<S, Number = Self::Number>;
    /// Numbers that a lane has side by side.
    const PACK: usize;
    /// Rows that meet a vector at most: with more, sums would leave the registers.
    const TILE: usize = TILE_ROWS;
    /// Steps that share their counting.
    const UNROLLED: usize = UNROLLED;
    /// Whether inputs are rounded; else they are read where they are.
    const ROUNDS: bool;

    /// Rounds `n` numbers, a multiple of [`Self::PACK`], which may lie where they go to. Answers what one of a sum is worth.
    unsafe fn round(from: *const f32, n: usize, to: *mut Self::Inputs) -> f32;
    unsafe fn load(p: *const Self::Number) -> Self::Lots;
    /// Every lane's first number, and nothing beside it.
    unsafe fn load_first(p: *const Self::Number) -> Self::Lots;
    /// Sums that go on from `so_far`.
    unsafe fn start(so_far: S::V) -> Self::Sums;
    unsafe fn add(sums: Self::Sums, x: *const Self::Inputs, lots: Self::Lots) -> Self::Sums;
    /// What sums that were started so have come to.
    unsafe fn end(sums: Self::Sums, worth: f32, so_far: S::V) -> S::V;
}

/// Products of two vectors, number by number: of a query's channels with a token's, which are summed within lanes.
///
/// # Safety
/// As [`Products`].
pub(super) trait RowProducts<S: Simd>: Products<S> {
    /// Queries that meet a few keys at most: with more, sums would leave AVX2's registers.
    const QUERIES: usize = if S::LANES < 16 { 5 } else { TILE_ROWS };

    /// A vector's inputs.
    unsafe fn load_inputs(p: *const Self::Inputs) -> Self::Lots;
    /// The inputs of `n` numbers, a multiple of [`Products::PACK`], then zeros.
    unsafe fn load_first_inputs(p: *const Self::Inputs, n: usize) -> Self::Lots;
    /// A vector's numbers, in their order.
    unsafe fn load_row(p: *const Self::Number) -> Self::Lots;
    /// `n` numbers, then zeros.
    unsafe fn load_first_of_row(p: *const Self::Number, n: usize) -> Self::Lots;
    unsafe fn multiply(sums: Self::Sums, x: Self::Lots, lots: Self::Lots) -> Self::Sums;
    /// Writes the `n` channels of [`Products::PACK`] tokens, `stride` apart, side by side as [`Products::load`] takes them. Nothing
    /// where that is how they lie.
    unsafe fn pack(_from: *const Self::Number, _stride: usize, _n: usize, _to: *mut Self::Number) {}
}

/// One number at a time, in f32.
pub(super) struct Single<E>(PhantomData<E>);

impl<S: Simd, E: Stored> Products<S> for Single<E> {
    type Number = E;
    type Inputs = f32;
    type Lots = S::V;
    type Sums = S::V;
    type Rows = Self;
    const PACK: usize = 1;
    const ROUNDS: bool = false;

    #[inline(always)]
    unsafe fn round(_: *const f32, _: usize, _: *mut f32) -> f32 {
        1.0
    }
    #[inline(always)]
    unsafe fn load(p: *const E) -> S::V {
        // SAFETY: the trait's contract.
        unsafe { E::load::<S>(p) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const E) -> S::V {
        // SAFETY: the trait's contract.
        unsafe { E::load::<S>(p) }
    }
    #[inline(always)]
    unsafe fn start(so_far: S::V) -> S::V {
        so_far
    }
    #[inline(always)]
    unsafe fn add(sums: S::V, x: *const f32, lots: S::V) -> S::V {
        // SAFETY: the trait's contract.
        unsafe { S::mul_add(S::splat(*x), lots, sums) }
    }
    #[inline(always)]
    unsafe fn end(sums: S::V, _: f32, _: S::V) -> S::V {
        sums
    }
}

impl<S: Simd, E: Stored> RowProducts<S> for Single<E> {
    #[inline(always)]
    unsafe fn load_inputs(p: *const f32) -> S::V {
        // SAFETY: the trait's contract.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn load_first_inputs(p: *const f32, n: usize) -> S::V {
        // SAFETY: the trait's contract.
        unsafe { S::load_partial(p, n) }
    }
    #[inline(always)]
    unsafe fn load_row(p: *const E) -> S::V {
        // SAFETY: the trait's contract.
        unsafe { E::load::<S>(p) }
    }
    #[inline(always)]
    unsafe fn load_first_of_row(p: *const E, n: usize) -> S::V {
        // SAFETY: the trait's contract.
        unsafe { E::load_partial::<S>(p, n) }
    }
    #[inline(always)]
    unsafe fn multiply(sums: S::V, x: S::V, lots: S::V) -> S::V {
        // SAFETY: the trait's contract.
        unsafe { S::mul_add(x, lots, sums) }
    }
}

/// Narrow numbers two by two, the first before the second, in f32.
pub(super) struct Pairs<E>(PhantomData<E>);

/// A narrow number.
pub(super) trait Narrow: Stored {
    /// The first and the second number of every lane.
    unsafe fn load_pairs<S: Simd>(p: *const Self) -> [S::V; 2];
}

impl Narrow for u16 {
    #[inline(always)]
    unsafe fn load_pairs<S: Simd>(p: *const u16) -> [S::V; 2] {
        // SAFETY: the caller's contract.
        unsafe { S::load_bf16_pairs(p) }
    }
}

impl Narrow for i8 {
    #[inline(always)]
    unsafe fn load_pairs<S: Simd>(p: *const i8) -> [S::V; 2] {
        // SAFETY: the caller's contract.
        unsafe { S::load_i8_pairs(p) }
    }
}

impl<S: Simd, E: Narrow> Products<S> for Pairs<E> {
    type Number = E;
    type Inputs = [f32; 2];
    type Lots = [S::V; 2];
    type Sums = S::V;
    type Rows = Single<E>;
    const PACK: usize = 2;
    const TILE: usize = 4;
    const ROUNDS: bool = false;

    #[inline(always)]
    unsafe fn round(_: *const f32, _: usize, _: *mut [f32; 2]) -> f32 {
        1.0
    }
    #[inline(always)]
    unsafe fn load(p: *const E) -> [S::V; 2] {
        // SAFETY: the trait's contract.
        unsafe { E::load_pairs::<S>(p) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const E) -> [S::V; 2] {
        // SAFETY: the trait's contract.
        unsafe { [E::load_pairs::<S>(p)[0], S::splat(0.0)] }
    }
    #[inline(always)]
    unsafe fn start(so_far: S::V) -> S::V {
        so_far
    }
    #[inline(always)]
    unsafe fn add(sums: S::V, x: *const [f32; 2], lots: [S::V; 2]) -> S::V {
        let x = x.cast::<f32>();
        // SAFETY: the trait's contract.
        unsafe { S::mul_add(S::splat(*x.add(1)), lots[1], S::mul_add(S::splat(*x), lots[0], sums)) }
    }
    #[inline(always)]
    unsafe fn end(sums: S::V, _: f32, _: S::V) -> S::V {
        sums
    }
}

/// `sums[r][p] += Σ_i x[r][i] · b[i · step + p vectors ..]`, in the order of i.
///
/// # Safety
/// Every `x[r]` holds `steps` inputs; `b` holds `P` vectors of lots at each step.
#[inline(always)]
pub(super) unsafe fn gather<S: Simd, A: Products<S>, const R: usize, const P: usize>(
    sums: &mut [[A::Sums; P]; R],
    x: &[*const A::Inputs; R],
    b: *const A::Number,
    step: usize,
    steps: usize,
    ahead: &mut Ahead,
) {
    let (mut gathered, mut x, mut b, mut asks) = (*sums, *x, b, *ahead);
    for _ in 0..steps / A::UNROLLED {
        if S::ASKS_FROM.is_some() {
            asks.step();
        }
        for i in 0..A::UNROLLED {
            // SAFETY: within `steps`; the caller's contract.
            unsafe {
                add_step::<S, A, R, P>(&mut gathered, &x.map(|x| x.wrapping_add(i)), b.wrapping_add(i * step))
            };
        }
        b = b.wrapping_add(A::UNROLLED * step);
        x = x.map(|x| x.wrapping_add(A::UNROLLED));
    }
    for i in 0..steps % A::UNROLLED {
        // SAFETY: as above.
        unsafe {
            add_step::<S, A, R, P>(&mut gathered, &x.map(|x| x.wrapping_add(i)), b.wrapping_add(i * step))
        };
    }
    *sums = gathered;
    *ahead = asks;
}

/// One step of [`gather`].
#[inline(always)]
unsafe fn add_step<S: Simd, A: Products<S>, const R: usize, const P: usize>(
    sums: &mut [[A::Sums; P]; R],
    x: &[*const A::Inputs; R],
    b: *const A::Number,
) {
    let lots = |p: usize| b.wrapping_add(p * S::LANES * A::PACK);
    // SAFETY: the caller's contract.
    unsafe {
        if P <= FEW_VECTORS {
            let lots: [A::Lots; P] = std::array::from_fn(|p| A::load(lots(p)));
            for r in 0..R {
                for p in 0..P {
                    sums[r][p] = A::add(sums[r][p], x[r], lots[p]);
                }
            }
        } else {
            for p in 0..P {
                let lots = A::load(lots(p));
                for r in 0..R {
                    sums[r][p] = A::add(sums[r][p], x[r], lots);
                }
            }
        }
    }
}
