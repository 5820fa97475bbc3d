//! The register-blocked product every matrix multiplication here ends in.
//!
//! A tile holds R rows of activations against P vectors of outputs in registers. Each output adds its products in
//! the order of k into one accumulator, whatever R and P are: **a row's result does not depend on which rows share
//! its tile**, so a sequence computes the same bits alone and in a batch.

#![allow(clippy::needless_range_loop, reason = "register arrays are indexed side by side")]

use crate::{
    memory::{give_back, scratch},
    prefetch::{self, LINE, prefetch_stream},
    simd::{Isa, Simd, dispatch},
};

/// Outputs interleaved in one panel of packed weights: 64 bytes of f32.
pub(crate) const PANEL: usize = 16;

/// Outputs one task computes at most. Four panels keep a decode step's weight stream long.
pub(crate) const TASK_OUTPUTS: usize = 4 * PANEL;

/// Rows from which on a task's weights are turned into f32 once for all of them, not once for every tile.
const ROWS_WORTH_UNPACKING: usize = 4 * TILE_ROWS;

/// Rows of a tile at most: 6 x 4 accumulators fill AVX-512's 32 registers, 6 x 2 AVX2's 16.
pub(crate) const TILE_ROWS: usize = 6;

/// Where the rows of a matrix start: `inner` rows `stride` apart, then again `outer` further on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowMap {
    pub inner: usize,
    pub stride: usize,
    pub outer: usize,
}

impl RowMap {
    /// Rows at one distance.
    pub const fn even(stride: usize) -> Self {
        Self { inner: 1, stride: 0, outer: stride }
    }

    #[inline(always)]
    pub const fn offset(self, row: usize) -> usize {
        row / self.inner * self.outer + row % self.inner * self.stride
    }
}

/// A number that weights or the cache are stored in; accumulation is always f32. All-zero bytes are 0.
///
/// # Safety
/// As [`Simd`]: the pointer must be valid for one vector, or for `n` numbers.
pub(crate) trait Element: Copy + Default + Send + Sync {
    /// Whether loading takes more than the load.
    const PACKED: bool;
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
    /// Lanes from `n` on are zero.
    unsafe fn load_partial<S: Simd>(p: *const Self, n: usize) -> S::V;
    fn to_f32(self) -> f32;
    /// The nearest number of this format.
    fn of_f32(x: f32) -> Self;
}

impl Element for f32 {
    const PACKED: bool = false;

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::V {
        // SAFETY: the trait's contract.
        unsafe { S::load(p) }
    }

    #[inline(always)]
    unsafe fn load_partial<S: Simd>(p: *const f32, n: usize) -> S::V {
        // SAFETY: the trait's contract.
        unsafe { S::load_partial(p, n) }
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn of_f32(x: f32) -> Self {
        x
    }
}

/// Bits of a bf16.
impl Element for u16 {
    const PACKED: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u16) -> S::V {
        // SAFETY: the trait's contract.
        unsafe { S::load_bf16(p) }
    }

    #[inline(always)]
    unsafe fn load_partial<S: Simd>(p: *const u16, n: usize) -> S::V {
        let mut lanes = [0u16; PANEL];
        // SAFETY: `n` numbers can be read, fewer than a vector has lanes, which are no more than the array's.
        unsafe {
            p.copy_to_nonoverlapping(lanes.as_mut_ptr(), n);
            S::load_bf16(lanes.as_ptr())
        }
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }

    #[inline(always)]
    fn of_f32(x: f32) -> Self {
        half::bf16::from_f32(x).to_bits()
    }
}

/// An int8, to be multiplied with a scale that its row or column has.
impl Element for i8 {
    const PACKED: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const i8) -> S::V {
        // SAFETY: the trait's contract.
        unsafe { S::load_i8(p) }
    }

    #[inline(always)]
    unsafe fn load_partial<S: Simd>(p: *const i8, n: usize) -> S::V {
        let mut lanes = [0i8; PANEL];
        // SAFETY: `n` numbers can be read, fewer than a vector has lanes, which are no more than the array's.
        unsafe {
            p.copy_to_nonoverlapping(lanes.as_mut_ptr(), n);
            S::load_i8(lanes.as_ptr())
        }
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from(self)
    }

    #[inline(always)]
    fn of_f32(x: f32) -> Self {
        x.round_ties_even() as i8
    }
}

/// Vectors that are held beside the sums while one row's input after the other meets them: all inputs of a tile and its sums
/// would leave AVX2's registers, as more vectors would.
pub(crate) const FEW_VECTORS: usize = 2;

/// Steps of a product that share their counting: it takes places in a core's queues that products want too, above all where
/// somebody else's thread has half of them.
pub(crate) const UNROLLED: usize = 4;

/// `acc[r][p] += Σ_i x[r][i] · b[p][i · PANEL ..]`, in the order of i. `ask` has the panels asked for by hand.
///
/// # Safety
/// Every `x[r]` holds `k` numbers; every `b[p]` one vector at each of `k` steps of a panel.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, E: Element, const R: usize, const P: usize>(
    acc: &mut [[S::V; P]; R],
    x: &[*const f32; R],
    b: &[*const E; P],
    k: usize,
    ask: bool,
) {
    let (mut sums, mut x, mut b) = (*acc, *x, *b);
    for _ in 0..k / UNROLLED {
        if ask {
            for p in 0..P {
                prefetch_stream(b[p].cast(), UNROLLED * PANEL * size_of::<E>() / LINE);
            }
        }
        for i in 0..UNROLLED {
            // SAFETY: within `k` steps; the caller's contract.
            unsafe { step::<S, E, R, P>(&mut sums, &x, &b, i) };
        }
        advance(&mut x, &mut b, UNROLLED);
    }
    for _ in 0..k % UNROLLED {
        // SAFETY: within `k` steps; the caller's contract. The pointers are not read after the last step.
        unsafe { step::<S, E, R, P>(&mut sums, &x, &b, 0) };
        advance(&mut x, &mut b, 1);
    }
    *acc = sums;
}

/// Products of step `i` from the pointers on.
#[inline(always)]
unsafe fn step<S: Simd, E: Element, const R: usize, const P: usize>(
    sums: &mut [[S::V; P]; R],
    x: &[*const f32; R],
    b: &[*const E; P],
    i: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        if P <= FEW_VECTORS {
            let mut w = [S::splat(0.0); P];
            for p in 0..P {
                w[p] = E::load::<S>(b[p].wrapping_add(i * PANEL));
            }
            for r in 0..R {
                let input = S::splat(*x[r].wrapping_add(i));
                for p in 0..P {
                    sums[r][p] = S::mul_add(input, w[p], sums[r][p]);
                }
            }
        } else {
            for p in 0..P {
                let w = E::load::<S>(b[p].wrapping_add(i * PANEL));
                for r in 0..R {
                    sums[r][p] = S::mul_add(S::splat(*x[r].wrapping_add(i)), w, sums[r][p]);
                }
            }
        }
    }
}

#[inline(always)]
fn advance<E, const R: usize, const P: usize>(x: &mut [*const f32; R], b: &mut [*const E; P], steps: usize) {
    for r in 0..R {
        x[r] = x[r].wrapping_add(steps);
    }
    for p in 0..P {
        b[p] = b[p].wrapping_add(steps * PANEL);
    }
}

/// One task of a product with packed weights: up to [`TASK_OUTPUTS`] outputs of every row.
pub(crate) struct PanelTask<E> {
    /// What to run on.
    pub isa: Isa,
    /// First panel of the task.
    pub panels: *const E,
    /// What each output is multiplied with, whole panels of them; null where that is 1.
    pub scales: *const f32,
    pub outputs: usize,
    pub k: usize,
    pub x: *const f32,
    pub x_rows: RowMap,
    /// The task's first output of row 0.
    pub y: *mut f32,
    pub y_rows: RowMap,
    pub rows: usize,
    /// Add to what `y` holds.
    pub accumulate: bool,
}

dispatch! {
    /// Runs a task.
    ///
    /// # Safety
    /// The machine must have the task's instruction set, the pointers must cover what the task's fields say, and no
    /// other thread may touch these outputs.
    pub(crate) unsafe fn run_panel_task<E: Element>(task: &PanelTask<E>) = panel_task on task.isa; [4, 4, 2] [2, 8, 4] [2, 4, 2]
}

/// `P` vectors of outputs for tiles of several rows, `P1` for a single row, `H` for what is left of a task.
#[inline(always)]
unsafe fn panel_task<S: Simd, E: Element, const P: usize, const P1: usize, const H: usize>(
    task: &PanelTask<E>,
) {
    if !E::PACKED || task.rows < ROWS_WORTH_UNPACKING {
        // SAFETY: the caller's contract.
        return unsafe { tiles::<S, E, P, P1, H>(task) };
    }
    let width = PANEL.max(P * S::LANES);
    let mut unpacked = scratch(width * task.k);
    for first in (0..task.outputs).step_by(width) {
        let outputs = (task.outputs - first).min(width);
        // SAFETY: whole panels of `k` steps exist from `first` on, and the buffer has room for them.
        unsafe {
            unpack::<S, E>(task.panels.add(first * task.k), outputs.div_ceil(PANEL) * task.k, &mut unpacked);
            let scales = if task.scales.is_null() { task.scales } else { task.scales.add(first) };
            let (panels, y) = (unpacked.as_ptr(), task.y.add(first));
            let PanelTask { isa, k, x, x_rows, y_rows, rows, accumulate, .. } = *task;
            tiles::<S, f32, P, P1, H>(&PanelTask {
                isa,
                panels,
                scales,
                outputs,
                k,
                x,
                x_rows,
                y,
                y_rows,
                rows,
                accumulate,
            });
        }
    }
    give_back(unpacked);
}

/// Turns `steps` panel steps into f32.
#[inline(always)]
unsafe fn unpack<S: Simd, E: Element>(panels: *const E, steps: usize, to: &mut [f32]) {
    for i in (0..steps * PANEL).step_by(S::LANES) {
        // SAFETY: a panel step is a whole number of vectors; the caller's contract.
        unsafe { S::store(to.as_mut_ptr().add(i), E::load::<S>(panels.add(i))) }
    }
}

#[inline(always)]
unsafe fn tiles<S: Simd, E: Element, const P: usize, const P1: usize, const H: usize>(task: &PanelTask<E>) {
    let mut row = 0;
    while row < task.rows {
        let rows = (task.rows - row).min(TILE_ROWS);
        // SAFETY: rows below `task.rows`; the caller's contract.
        unsafe {
            match rows {
                1 => strip::<S, E, 1, P1, H>(task, row),
                2 => strip::<S, E, 2, P, H>(task, row),
                3 => strip::<S, E, 3, P, H>(task, row),
                4 => strip::<S, E, 4, P, H>(task, row),
                5 => strip::<S, E, 5, P, H>(task, row),
                _ => strip::<S, E, 6, P, H>(task, row),
            }
        }
        row += rows;
    }
}

/// All outputs of `R` rows.
#[inline(always)]
unsafe fn strip<S: Simd, E: Element, const R: usize, const P: usize, const H: usize>(
    task: &PanelTask<E>,
    row: usize,
) {
    let vectors = task.outputs.div_ceil(S::LANES);
    let mut vector = 0;
    // SAFETY: the caller's contract; padded outputs of the last panel exist in the weights.
    unsafe {
        while vector + P <= vectors {
            block::<S, E, R, P>(task, row, vector);
            vector += P;
        }
        while H < P && vector + H <= vectors {
            block::<S, E, R, H>(task, row, vector);
            vector += H;
        }
        while vector < vectors {
            block::<S, E, R, 1>(task, row, vector);
            vector += 1;
        }
    }
}

#[inline(always)]
unsafe fn block<S: Simd, E: Element, const R: usize, const P: usize>(
    task: &PanelTask<E>,
    row: usize,
    vector: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut x = [task.x; R];
        for r in 0..R {
            x[r] = task.x.add(task.x_rows.offset(row + r));
        }
        let mut b = [task.panels; P];
        for p in 0..P {
            let output = (vector + p) * S::LANES;
            b[p] = task.panels.add(output / PANEL * PANEL * task.k + output % PANEL);
        }
        let mut acc = [[S::splat(0.0); P]; R];
        // Wide numbers come as fast unasked, and a later tile's are near.
        let ask = E::PACKED && row == 0 && prefetch::always_pays();
        tile::<S, E, R, P>(&mut acc, &x, &b, task.k, ask);
        for r in 0..R {
            let y = task.y.add(task.y_rows.offset(row + r));
            for p in 0..P {
                let output = (vector + p) * S::LANES;
                let mut sum = acc[r][p];
                if !task.scales.is_null() {
                    sum = S::mul(sum, S::load(task.scales.add(output)));
                }
                finish::<S>(y.add(output), sum, task.outputs - output, task.accumulate);
            }
        }
    }
}

/// Stores a vector of which `left` lanes are wanted.
#[inline(always)]
pub(crate) unsafe fn finish<S: Simd>(y: *mut f32, sum: S::V, left: usize, accumulate: bool) {
    // SAFETY: `left` numbers may be written, the caller's contract.
    unsafe {
        let one = S::splat(1.0);
        if left >= S::LANES {
            let sum = if accumulate { S::mul_add(S::load(y), one, sum) } else { sum };
            S::store(y, sum);
        } else {
            let sum = if accumulate { S::mul_add(S::load_partial(y, left), one, sum) } else { sum };
            S::store_partial(y, sum, left);
        }
    }
}
