//! Products of bf16 weights with inputs rounded to bf16, where the processor multiplies pairs of bf16.
//!
//! Sums stay f32. Weights lie as both units want them: `[output / 16][input / 2][16][2]`, so a tile of AMX and a
//! vector of AVX-512 read one cache line for each pair of inputs. As everywhere here, a row's sums are made in one
//! order whatever rows it shares a product with: one unit serves products of one row and of many.

#![allow(clippy::needless_range_loop, reason = "register arrays are indexed side by side")]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;

use std::{cell::Cell, sync::OnceLock};

use crate::{
    gemm::RowMap,
    pool::Pool,
    simd::{Isa, OVERRIDE, isa},
};

/// Inputs must be a multiple of these: a tile's worth.
pub(crate) const INPUTS: usize = 32;

/// Rows of a tile.
const TILE: usize = 16;

/// Rows from which on threads share the rounding.
const ROWS_WORTH_SHARING: usize = 32;

/// What multiplies bf16 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bf16Unit {
    /// Tiles of AMX-BF16.
    Amx,
    /// AVX-512's pairwise products.
    Avx512,
}

impl Bf16Unit {
    const ALL: [Self; 2] = [Self::Amx, Self::Avx512];

    /// The one to use, found once; none where the environment asks for an instruction set without one.
    pub fn in_use() -> Option<Self> {
        static UNIT: OnceLock<Option<Bf16Unit>> = OnceLock::new();
        *UNIT.get_or_init(|| choose(&Self::available(), isa(), std::env::var(OVERRIDE).ok().as_deref()))
    }

    /// All the machine has, best first.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|unit| unit.is_there()).collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Amx => "amx-bf16",
            Self::Avx512 => "avx512-bf16",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn is_there(self) -> bool {
        let pairs = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
        pairs && (self == Self::Avx512 || amx::is_there())
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_there(self) -> bool {
        false
    }
}

/// The best unit, or the one that was asked for by name; an instruction set that was asked for has none.
fn choose(available: &[Bf16Unit], isa: Isa, wanted: Option<&str>) -> Option<Bf16Unit> {
    let named = available.iter().copied().find(|unit| Some(unit.name()) == wanted);
    named.or_else(|| available.first().copied().filter(|_| wanted != Some(isa.name())))
}

/// The unit that multiplies bf16 on this machine, `amx-bf16` or `avx512-bf16`. `None` where there is none, and where the
/// environment's `GQLA_INSTRUCTION_SET` names an instruction set without one.
pub fn bf16_unit() -> Option<&'static str> {
    Bf16Unit::in_use().map(Bf16Unit::name)
}

/// One task of a product: up to four panels of outputs of every row.
pub(crate) struct PairTask {
    /// First panel of the task.
    pub panels: *const u16,
    pub outputs: usize,
    /// A multiple of [`INPUTS`].
    pub k: usize,
    /// Rounded rows of `k`, as [`Rounded`] has them.
    pub x: *const u16,
    pub rows: usize,
    /// The task's first output of row 0.
    pub y: *mut f32,
    pub y_rows: RowMap,
    /// Add to what `y` holds.
    pub accumulate: bool,
}

impl PairTask {
    /// The first number of a panel; of the last one where there are not as many.
    #[cfg(target_arch = "x86_64")]
    unsafe fn panel(&self, index: usize) -> *const u16 {
        let last = self.outputs.div_ceil(crate::gemm::PANEL) - 1;
        // SAFETY: a panel that exists, the caller's contract.
        unsafe { self.panels.add(index.min(last) * self.k * crate::gemm::PANEL) }
    }

    /// # Safety
    /// The machine must have `unit`, the pointers must cover what the fields say, and no other thread may touch these
    /// outputs.
    pub unsafe fn run(&self, unit: Bf16Unit) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's contract.
        unsafe {
            match unit {
                Bf16Unit::Amx => amx::run(self),
                Bf16Unit::Avx512 => avx512::run(self),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{unit:?} is of another processor");
    }
}

/// Rows of inputs, to be rounded.
#[derive(Clone, Copy)]
pub(crate) struct Inputs {
    pub x: *const f32,
    pub x_rows: RowMap,
    pub rows: usize,
    pub k: usize,
}

// SAFETY: the pointer is read by `Rounded::with` only, whose caller vouches for it.
unsafe impl Sync for Inputs {}

/// The rounded rows of several products, each from a whole tile on.
pub(crate) struct Rounded {
    numbers: *const u16,
    starts: Vec<usize>,
}

// SAFETY: nobody writes the numbers while `with` lends them.
unsafe impl Sync for Rounded {}

thread_local! {
    /// A buffer between products of a thread.
    static BUFFER: Cell<Vec<u16>> = const { Cell::new(Vec::new()) };
}

impl Rounded {
    /// Rounds the rows of every product and lends them to `work`.
    ///
    /// # Safety
    /// The machine must have a unit, and every `x` hold its rows.
    pub unsafe fn with(pool: &Pool, products: &[Inputs], work: impl FnOnce(&Self)) {
        let mut starts = Vec::with_capacity(products.len());
        let mut total = 0;
        for product in products {
            starts.push(total);
            total += padded(product.rows) * product.k;
        }
        let mut buffer = BUFFER.take();
        if buffer.len() < total {
            buffer.resize(total, 0);
        }
        let target = Target(buffer.as_mut_ptr());
        for (product, start) in products.iter().zip(&starts) {
            let round = |row: usize| {
                // SAFETY: a row that exists, and has its place in the buffer; the caller's contract.
                unsafe {
                    let from = product.x.add(product.x_rows.offset(row));
                    round_row(from, target.get().add(start + row * product.k), product.k);
                }
            };
            if product.rows < ROWS_WORTH_SHARING {
                (0..product.rows).for_each(round);
            } else {
                pool.run(product.rows.div_ceil(TILE), &|tile| {
                    (tile * TILE..product.rows.min((tile + 1) * TILE)).for_each(round);
                });
            }
        }
        work(&Self { numbers: buffer.as_ptr(), starts });
        BUFFER.set(buffer);
    }

    /// The rows of one product.
    pub fn rows(&self, product: usize) -> *const u16 {
        self.numbers.wrapping_add(self.starts[product])
    }
}

/// Rows as units read them: whole tiles, two of them side by side beyond one.
fn padded(rows: usize) -> usize {
    if rows <= TILE { TILE } else { rows.next_multiple_of(2 * TILE) }
}

/// A pointer that tasks write disjoint rows through.
struct Target(*mut u16);

// SAFETY: tasks write disjoint rows.
unsafe impl Sync for Target {}

impl Target {
    fn get(&self) -> *mut u16 {
        self.0
    }
}

/// Rounds `k` numbers to the nearest bf16, `k` a multiple of [`INPUTS`].
unsafe fn round_row(from: *const f32, to: *mut u16, k: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's contract.
    unsafe {
        avx512::round_row(from, to, k);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("no unit takes {k} numbers from {from:?} to {to:?} here");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_unit_is_used_unless_an_instruction_set_without_it_is_asked_for() {
        let (both, isa) = (Bf16Unit::ALL, Isa::Avx512);
        for (available, wanted, expected) in [
            (&both[..], None, Some(Bf16Unit::Amx)),
            (&both, Some("amx-bf16"), Some(Bf16Unit::Amx)),
            (&both, Some("avx512-bf16"), Some(Bf16Unit::Avx512)),
            (&both, Some("avx512f"), None),
            (&both, Some("mmx"), Some(Bf16Unit::Amx)),
            (&both[1..], None, Some(Bf16Unit::Avx512)),
            (&[], None, None),
            (&[], Some("amx-bf16"), None),
        ] {
            assert_eq!(choose(available, isa, wanted), expected, "{available:?} {wanted:?}");
        }
        assert_eq!(choose(&both, Isa::Avx2, Some("avx2+fma")), None);
    }
}
