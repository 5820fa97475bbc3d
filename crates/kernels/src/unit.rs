//! Products in the processor's own units for narrow numbers: AMX's tiles, AVX-512's dot products of pairs and of fours.
//!
//! Weights are bf16, with inputs rounded to bf16 and sums in f32; or int8, with inputs rounded to 16 bits (two int8, see
//! [`Narrow::Int8`]) and sums in whole numbers. Either lies as both units want it, `[output / 16][4 bytes of inputs][16]`, so that a
//! row of a tile and a vector are one cache line. As everywhere here, a row's result does not depend on the rows it
//! shares a product with: one unit serves bf16 products of one row and of many, and whole numbers have one sum in all units.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod numbers;

use std::{cell::Cell, sync::OnceLock};

use crate::{
    gemm::{PANEL, RowMap},
    pool::Pool,
    simd::{Isa, OVERRIDE, isa},
};
#[cfg(target_arch = "x86_64")]
use numbers::{Bf16, Int8};

/// What int8 weights are stored with added, because units multiply signed inputs by unsigned weights.
pub(crate) const INT8_OFFSET: i32 = 128;

/// Inputs of an int8 product at most: 2³¹ less one, over the largest weight times the largest part of an input.
pub(crate) const INT8_INPUTS: usize = i32::MAX as usize / (255 * 127);

/// Bytes of a row of a tile: a product's inputs must fill whole ones.
pub(crate) const STEP: usize = 64;

/// Rows of a tile.
const TILE: usize = 16;

/// Rows of int8 that vectors multiply where there are tiles too.
#[cfg(target_arch = "x86_64")]
const FEW_ROWS: usize = 3;

/// Rows from which on threads share the rounding.
const ROWS_WORTH_SHARING: usize = 32;

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Narrow {
    Bf16,
    Int8,
}

impl Narrow {
    /// Bytes of an input beside its weight.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Rows of a tile that one row of inputs takes.
    fn rows_each(self) -> usize {
        match self {
            Self::Bf16 => 1,
            Self::Int8 => 2,
        }
    }
}

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// AMX's tiles.
    Amx,
    /// AVX-512's dot products.
    Avx512,
}

impl Unit {
    pub const ALL: [Self; 2] = [Self::Amx, Self::Avx512];

    /// The one to use, found once; none where the environment asks for an instruction set without one.
    pub fn in_use(numbers: Narrow) -> Option<Self> {
        static UNITS: [OnceLock<Option<Unit>>; 2] = [OnceLock::new(), OnceLock::new()];
        let find = || {
            let wanted = std::env::var(OVERRIDE).ok();
            choose(&Self::available(numbers), numbers, isa(), wanted.as_deref())
        };
        *UNITS[numbers as usize].get_or_init(find)
    }

    /// All the machine has, best first.
    pub fn available(numbers: Narrow) -> Vec<Self> {
        Self::ALL.into_iter().filter(|unit| unit.has(numbers)).collect()
    }

    pub fn name(self, numbers: Narrow) -> &'static str {
        match (self, numbers) {
            (Self::Amx, Narrow::Bf16) => "amx-bf16",
            (Self::Amx, Narrow::Int8) => "amx-int8",
            (Self::Avx512, Narrow::Bf16) => "avx512-bf16",
            (Self::Avx512, Narrow::Int8) => "avx512-vnni",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn has(self, numbers: Narrow) -> bool {
        let dots = match numbers {
            Narrow::Bf16 => is_x86_feature_detected!("avx512bf16"),
            Narrow::Int8 => is_x86_feature_detected!("avx512vnni"),
        };
        crate::simd::has_avx512() && dots && (self == Self::Avx512 || amx::has(numbers))
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn has(self, _: Narrow) -> bool {
        false
    }
}

/// The best unit, or the one that was asked for by name. An instruction set that was asked for has none.
fn choose(available: &[Unit], numbers: Narrow, isa: Isa, wanted: Option<&str>) -> Option<Unit> {
    let named = available.iter().copied().find(|unit| Some(unit.name(numbers)) == wanted);
    named.or_else(|| available.first().copied().filter(|_| wanted != Some(isa.name())))
}

/// The unit that multiplies bf16 on this machine, `amx-bf16` or `avx512-bf16`. `None` where there is none, and where the
/// environment's `GQLA_INSTRUCTION_SET` names an instruction set without one.
pub fn bf16_unit() -> Option<&'static str> {
    Unit::in_use(Narrow::Bf16).map(|unit| unit.name(Narrow::Bf16))
}

/// The unit that multiplies int8 on this machine, `amx-int8` or `avx512-vnni`; `None` as for [`bf16_unit`].
pub fn int8_unit() -> Option<&'static str> {
    Unit::in_use(Narrow::Int8).map(|unit| unit.name(Narrow::Int8))
}

/// One task of a product: up to four panels of outputs of every row.
pub(crate) struct UnitTask {
    pub numbers: Narrow,
    /// First panel of the task.
    pub panels: *const u8,
    /// What each output is multiplied with, whole panels of them; null for bf16.
    pub scales: *const f32,
    pub outputs: usize,
    /// Bytes of a row of inputs, a multiple of [`STEP`].
    pub row_bytes: usize,
    pub x: RoundedRows,
    pub rows: usize,
    /// The task's first output of row 0.
    pub y: *mut f32,
    pub y_rows: RowMap,
    /// Add to what `y` holds.
    pub accumulate: bool,
}

impl UnitTask {
    /// The first byte of a panel; of the last one where there are not as many.
    #[cfg(target_arch = "x86_64")]
    unsafe fn panel(&self, index: usize) -> *const u8 {
        let last = self.outputs.div_ceil(PANEL) - 1;
        // SAFETY: a panel that exists, the caller's contract.
        unsafe { self.panels.add(index.min(last) * self.row_bytes * PANEL) }
    }

    /// The first byte of a row of a tile.
    #[cfg(target_arch = "x86_64")]
    unsafe fn tile_row(&self, row: usize) -> *const u8 {
        // SAFETY: a row that exists, or pads a tile; the caller's contract.
        unsafe { self.x.numbers.add(row * self.row_bytes) }
    }

    /// # Safety
    /// The machine must have `unit` for these numbers, the pointers must cover what the fields say, and no other thread may
    /// touch these outputs.
    pub unsafe fn run(&self, unit: Unit) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's contract.
        unsafe {
            match (unit, self.numbers) {
                (Unit::Amx, Narrow::Bf16) => amx::run::<Bf16>(self),
                // Whole numbers have one sum, and for few rows vectors cost less than setting up tiles.
                (Unit::Amx, Narrow::Int8) if self.rows > FEW_ROWS => amx::run::<Int8>(self),
                (Unit::Avx512, Narrow::Bf16) => avx512::run_bf16(self),
                (_, Narrow::Int8) => avx512::run_int8(self),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{unit:?} is of another processor");
    }
}

/// What one row's whole numbers stand for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowScale {
    /// An input is its whole number times this.
    scale: f32,
    /// Sum of the row's high and of its low parts.
    sums: [i32; 2],
}

/// Rows of inputs, to be rounded.
#[derive(Clone, Copy)]
pub(crate) struct Inputs {
    /// `None` takes them as they are.
    pub numbers: Option<Narrow>,
    pub x: *const f32,
    pub x_rows: RowMap,
    pub rows: usize,
    pub k: usize,
}

impl Inputs {
    /// Rows as units read them: whole tiles, two of them side by side beyond one.
    fn padded(&self) -> usize {
        match self.numbers.map(|numbers| self.rows * numbers.rows_each()) {
            None | Some(0) => 0,
            Some(1..=TILE) => TILE,
            Some(rows) => rows.next_multiple_of(2 * TILE),
        }
    }

    fn row_bytes(&self) -> usize {
        self.numbers.map_or(0, |numbers| self.k * numbers.bytes())
    }
}

// SAFETY: the pointer is read by `Rounded::with` only, whose caller vouches for it.
unsafe impl Sync for Inputs {}

/// The rounded rows of one product.
#[derive(Clone, Copy)]
pub(crate) struct RoundedRows {
    /// One after the other; of int8 the high and the low part of each.
    pub numbers: *const u8,
    pub scales: *const RowScale,
}

/// The rounded rows of several products.
pub(crate) struct Rounded(Vec<RoundedRows>);

// SAFETY: nobody writes the numbers while `with` lends them.
unsafe impl Sync for Rounded {}

#[derive(Default)]
struct Buffers {
    numbers: Vec<u8>,
    scales: Vec<RowScale>,
}

thread_local! {
    /// Buffers between products of a thread.
    static BUFFERS: Cell<Buffers> = const { Cell::new(Buffers { numbers: Vec::new(), scales: Vec::new() }) };
}

impl Rounded {
    /// Rounds the rows of every product and lends them to `work`.
    ///
    /// # Safety
    /// The machine must have a unit for the numbers of every product, and every `x` hold its rows.
    pub unsafe fn with(pool: &Pool, products: &[Inputs], work: impl FnOnce(&Self)) {
        let mut buffers = BUFFERS.take();
        let bytes: usize = products.iter().map(|product| product.padded() * product.row_bytes()).sum();
        let rows = products.iter().map(|product| product.rows).sum();
        if buffers.numbers.len() < bytes {
            buffers.numbers.resize(bytes, 0);
        }
        if buffers.scales.len() < rows {
            buffers.scales.resize(rows, RowScale::default());
        }
        let mut target =
            Target { numbers: buffers.numbers.as_mut_ptr(), scales: buffers.scales.as_mut_ptr() };
        let mut rounded = Vec::with_capacity(products.len());
        for product in products {
            rounded.push(RoundedRows { numbers: target.numbers, scales: target.scales });
            // SAFETY: the buffers have room for all products; the rest is the caller's contract.
            unsafe { target.round(pool, product) }
            target.numbers = target.numbers.wrapping_add(product.padded() * product.row_bytes());
            target.scales = target.scales.wrapping_add(product.rows);
        }
        work(&Self(rounded));
        BUFFERS.set(buffers);
    }

    /// The rows of one product.
    pub fn of(&self, product: usize) -> RoundedRows {
        self.0[product]
    }
}

/// Where a product's rows go.
#[derive(Clone, Copy)]
struct Target {
    numbers: *mut u8,
    scales: *mut RowScale,
}

// SAFETY: tasks write disjoint rows.
unsafe impl Sync for Target {}

impl Target {
    unsafe fn round(&self, pool: &Pool, product: &Inputs) {
        // SAFETY: rows that exist and have their place; the caller's contract.
        let round = |row: usize| unsafe { self.round_row(product, row) };
        if product.numbers.is_some() && product.rows < ROWS_WORTH_SHARING {
            (0..product.rows).for_each(round);
        } else if product.numbers.is_some() {
            pool.run(product.rows.div_ceil(TILE), &|tile| {
                (tile * TILE..product.rows.min((tile + 1) * TILE)).for_each(round);
            });
        }
    }

    #[cfg(target_arch = "x86_64")]
    unsafe fn round_row(&self, product: &Inputs, row: usize) {
        let Inputs { numbers, x, x_rows, k, .. } = *product;
        // SAFETY: a row that exists and has its place; the caller's contract.
        unsafe {
            let from = x.add(x_rows.offset(row));
            match numbers {
                None => {}
                Some(Narrow::Bf16) => Bf16::round(from, k, self.numbers.add(row * 2 * k)),
                Some(Narrow::Int8) => {
                    *self.scales.add(row) = Int8::round(from, k, self.numbers.add(row * 2 * k));
                }
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    unsafe fn round_row(&self, _: &Inputs, _: usize) {
        unreachable!("there is no unit here");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_unit_is_used_unless_an_instruction_set_without_it_is_asked_for() {
        let both = Unit::ALL;
        for (available, wanted, expected) in [
            (&both[..], None, Some(Unit::Amx)),
            (&both, Some("amx-bf16"), Some(Unit::Amx)),
            (&both, Some("avx512-bf16"), Some(Unit::Avx512)),
            (&both, Some("avx512f"), None),
            (&both, Some("mmx"), Some(Unit::Amx)),
            (&both[1..], None, Some(Unit::Avx512)),
            (&[], None, None),
            (&[], Some("amx-bf16"), None),
        ] {
            let chosen = choose(available, Narrow::Bf16, Isa::Avx512, wanted);
            assert_eq!(chosen, expected, "{available:?} {wanted:?}");
        }
        assert_eq!(choose(&both, Narrow::Int8, Isa::Avx2, Some("avx2+fma")), None);
        assert_eq!(choose(&both, Narrow::Int8, Isa::Avx512, Some("avx512-vnni")), Some(Unit::Avx512));
    }
}
