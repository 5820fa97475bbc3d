//! Weights in the order the kernels read them.
//!
//! A checkpoint stores `[out, in]` row by row; a product of few rows wants many outputs of one input side by side.
//! [`Matrix`] interleaves sixteen outputs once at load, in the checkpoint's own number format, so that a step
//! streams every weight exactly once for all rows of the batch and never needs a horizontal sum.

use crate::{
    gemm::{Element, PANEL, PanelTask, RowMap, TASK_OUTPUTS, run_panel_task},
    pool::Pool,
    simd::{InstructionSet, Isa, isa},
};

/// Rows of a weight matrix as a checkpoint stores them, `[out, in]`.
#[derive(Clone, Copy, Debug)]
pub enum WeightRows<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Little-endian bf16, two bytes each.
    Bf16(&'a [u8]),
}

impl<'a> WeightRows<'a> {
    /// `len` numbers from `start` on.
    pub(crate) fn range(&self, start: usize, len: usize) -> WeightRows<'a> {
        match self {
            Self::F32(values) => WeightRows::F32(&values[start..start + len]),
            Self::Bf16(bytes) => WeightRows::Bf16(&bytes[2 * start..2 * (start + len)]),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(bytes) => bytes.len() / 2,
        }
    }

    fn bf16_bits(&self, index: usize) -> u16 {
        match self {
            Self::F32(values) => half::bf16::from_f32(values[index]).to_bits(),
            Self::Bf16(bytes) => u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]),
        }
    }

    fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(values) => values[index],
            Self::Bf16(_) => f32::from_bits(u32::from(self.bf16_bits(index)) << 16),
        }
    }
}

/// Why weights cannot form a matrix.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
    /// The numbers do not fill whole rows.
    #[error("{len} weights do not make whole rows of {inputs} inputs")]
    Ragged {
        /// Numbers given.
        len: usize,
        /// Numbers a row takes.
        inputs: usize,
    },
    /// The place the weights are meant for has another size.
    #[error("the weights have {rows} rows, expected {expected}")]
    Rows {
        /// Rows given.
        rows: usize,
        /// Rows needed.
        expected: usize,
    },
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct F32Line([f32; PANEL]);

#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Bf16Line([u16; PANEL]);

/// Numbers weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// Single precision.
    F32,
    /// The upper half of an f32.
    Bf16,
}

enum Panels {
    F32(Vec<F32Line>),
    Bf16(Vec<Bf16Line>),
}

/// A weight matrix `[out, in]`, packed for `y = x Wᵀ`.
pub struct Matrix {
    panels: Panels,
    outputs: usize,
    inputs: usize,
}

impl Matrix {
    /// Stacks the rows of `parts`, each `[_, inputs]`, into one matrix. It is bf16 when all parts are, f32 otherwise.
    pub fn stack(parts: &[WeightRows<'_>], inputs: usize) -> Result<Self, MatrixError> {
        if let Some(part) = parts.iter().find(|part| inputs == 0 || part.len() % inputs != 0) {
            return Err(MatrixError::Ragged { len: part.len(), inputs });
        }
        let rows: Vec<_> = parts
            .iter()
            .flat_map(|part| (0..part.len() / inputs).map(move |row| (part, row * inputs)))
            .collect();
        let panels = if parts.iter().all(|part| matches!(part, WeightRows::Bf16(_))) {
            let pack = |lines: &mut [Bf16Line], lane: usize, (part, start): (&WeightRows<'_>, usize)| {
                lines.iter_mut().enumerate().for_each(|(i, line)| line.0[lane] = part.bf16_bits(start + i));
            };
            Panels::Bf16(interleave(&rows, inputs, Bf16Line([0; PANEL]), pack))
        } else {
            let pack = |lines: &mut [F32Line], lane: usize, (part, start): (&WeightRows<'_>, usize)| {
                lines.iter_mut().enumerate().for_each(|(i, line)| line.0[lane] = part.get(start + i));
            };
            Panels::F32(interleave(&rows, inputs, F32Line([0.0; PANEL]), pack))
        };
        Ok(Self { panels, outputs: rows.len(), inputs })
    }

    /// A matrix whose weights are all 1, in f32 or bf16, for timing.
    pub(crate) fn ones(outputs: usize, inputs: usize, format: WeightFormat) -> Self {
        let lines = outputs.div_ceil(PANEL) * inputs;
        let panels = match format {
            WeightFormat::F32 => Panels::F32(vec![F32Line([1.0; PANEL]); lines]),
            WeightFormat::Bf16 => Panels::Bf16(vec![Bf16Line([half::bf16::ONE.to_bits(); PANEL]); lines]),
        };
        Self { panels, outputs, inputs }
    }

    /// Rows of W.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of W.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Copies row `output` of W, as an embedding look-up does.
    pub fn read_row(&self, output: usize, row: &mut [f32]) {
        assert!(
            output < self.outputs && row.len() == self.inputs,
            "row {output} of {} outputs",
            self.outputs
        );
        let (start, lane) = (output / PANEL * self.inputs, output % PANEL);
        match &self.panels {
            Panels::F32(lines) => row.iter_mut().zip(&lines[start..]).for_each(|(x, line)| *x = line.0[lane]),
            Panels::Bf16(lines) => row
                .iter_mut()
                .zip(&lines[start..])
                .for_each(|(x, line)| *x = f32::from_bits(u32::from(line.0[lane]) << 16)),
        }
    }

    /// `y = x Wᵀ` for `x` `[rows, in]` and `y` `[rows, out]`.
    pub fn multiply(&self, pool: &Pool, x: &[f32], y: &mut [f32]) {
        self.product(isa(), pool, x, y, false);
    }

    /// As [`Self::multiply`] on an instruction set of the caller's choice.
    pub(crate) fn multiply_on(&self, set: InstructionSet, pool: &Pool, x: &[f32], y: &mut [f32]) {
        self.product(set.isa(), pool, x, y, false);
    }

    /// `y += x Wᵀ`, for residual connections.
    pub fn multiply_add(&self, pool: &Pool, x: &[f32], y: &mut [f32]) {
        self.product(isa(), pool, x, y, true);
    }

    fn product(&self, isa: Isa, pool: &Pool, x: &[f32], y: &mut [f32], accumulate: bool) {
        let rows = x.len() / self.inputs;
        assert_eq!((rows * self.inputs, rows * self.outputs), (x.len(), y.len()), "x and y are whole rows");
        let operands = Operands {
            x: x.as_ptr(),
            x_rows: RowMap::even(self.inputs),
            y: y.as_mut_ptr(),
            y_rows: RowMap::even(self.outputs),
            rows,
            accumulate,
        };
        // SAFETY: the lengths were checked above; both callers name an instruction set the machine has.
        unsafe { multiply_each_on(isa, pool, &[(self, operands)]) }
    }

    fn tasks(&self) -> usize {
        self.outputs.div_ceil(TASK_OUTPUTS)
    }

    /// # Safety
    /// As [`multiply_each_on`], and no other thread may run the same task.
    unsafe fn run_task(&self, isa: Isa, task: usize, operands: &Operands) {
        // SAFETY: the caller's contract.
        unsafe {
            match &self.panels {
                Panels::F32(lines) => self.run_panels(lines.as_ptr().cast::<f32>(), isa, task, operands),
                Panels::Bf16(lines) => self.run_panels(lines.as_ptr().cast::<u16>(), isa, task, operands),
            }
        }
    }

    unsafe fn run_panels<E: Element>(&self, panels: *const E, isa: Isa, task: usize, operands: &Operands) {
        let first = task * TASK_OUTPUTS;
        // SAFETY: `task` is below `tasks`, so the first panel exists; the rest is the caller's contract.
        unsafe {
            run_panel_task(&PanelTask {
                isa,
                panels: panels.add(first * self.inputs),
                outputs: (self.outputs - first).min(TASK_OUTPUTS),
                k: self.inputs,
                x: operands.x,
                x_rows: operands.x_rows,
                y: operands.y.add(first),
                y_rows: operands.y_rows,
                rows: operands.rows,
                accumulate: operands.accumulate,
            });
        }
    }
}

fn interleave<Line: Copy, Row: Copy>(
    rows: &[Row],
    inputs: usize,
    zero: Line,
    pack: impl Fn(&mut [Line], usize, Row),
) -> Vec<Line> {
    let mut lines = vec![zero; rows.len().div_ceil(PANEL) * inputs];
    for (panel, rows) in lines.chunks_exact_mut(inputs).zip(rows.chunks(PANEL)) {
        rows.iter().enumerate().for_each(|(lane, &row)| pack(panel, lane, row));
    }
    lines
}

/// What a product reads and writes.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    pub x: *const f32,
    pub x_rows: RowMap,
    pub y: *mut f32,
    pub y_rows: RowMap,
    pub rows: usize,
    pub accumulate: bool,
}

// SAFETY: the pointers are used by `multiply_each` only, whose caller vouches for them; tasks write disjoint outputs.
unsafe impl Sync for Operands {}

/// Runs several products of equally many outputs as one parallel loop.
///
/// # Safety
/// For every product, `x` must hold `rows` rows of the matrix' inputs and `y` `rows` rows of its outputs where the
/// row maps say, and nothing else may touch any `y` or write any `x` meanwhile; the `y` must not overlap.
pub(crate) unsafe fn multiply_each(pool: &Pool, products: &[(&Matrix, Operands)]) {
    // SAFETY: the machine has the instruction set in use; the rest is the caller's contract.
    unsafe { multiply_each_on(isa(), pool, products) }
}

/// # Safety
/// As [`multiply_each`], and the machine must have `isa`.
unsafe fn multiply_each_on(isa: Isa, pool: &Pool, products: &[(&Matrix, Operands)]) {
    let Some((first, _)) = products.first() else { return };
    let tasks = first.tasks();
    debug_assert!(products.iter().all(|(matrix, _)| matrix.tasks() == tasks));
    pool.run(products.len() * tasks, &|task| {
        let (matrix, operands) = &products[task / tasks];
        // SAFETY: every (product, task) runs once; the rest is the caller's contract.
        unsafe { matrix.run_task(isa, task % tasks, operands) }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, len: usize) -> Vec<f32> {
        crate::reference::counter_noise(seed, len, 1.0).map(|x| x as f32).collect()
    }

    fn product(w: &[f32], x: &[f32], inputs: usize) -> Vec<f64> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        x.chunks(inputs).flat_map(|x| w.chunks(inputs).map(move |w| dot(x, w))).collect()
    }

    #[test]
    fn products_match_float64_at_every_edge_of_a_tile() {
        let pool = Pool::new(Some(2)).unwrap();
        for (outputs, inputs) in [(1, 1), (16, 8), (52, 36), (64, 128), (100, 33), (193, 17)] {
            let w = noise(7, outputs * inputs);
            let bytes: Vec<u8> =
                w.iter().flat_map(|x| half::bf16::from_f32(*x).to_bits().to_le_bytes()).collect();
            for rows in [WeightRows::F32(&w), WeightRows::Bf16(&bytes)] {
                let matrix = Matrix::stack(&[rows], inputs).unwrap();
                for rows in (1..=8).chain([13]) {
                    let x = noise(rows as u64, rows * inputs);
                    let mut y = vec![1.0; rows * outputs];
                    matrix.multiply_add(&pool, &x, &mut y);
                    for (y, expected) in y.iter().zip(product(&w, &x, inputs)) {
                        assert!(
                            (f64::from(*y) - 1.0 - expected).abs() < 1e-4,
                            "{outputs}x{inputs}: {y} {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch() {
        let pool = Pool::new(Some(2)).unwrap();
        let (outputs, inputs) = (200, 77);
        let matrix = Matrix::stack(&[WeightRows::F32(&noise(1, outputs * inputs))], inputs).unwrap();
        let x = noise(2, 9 * inputs);
        let mut all = vec![0.0; 9 * outputs];
        matrix.multiply(&pool, &x, &mut all);
        for (x, expected) in x.chunks(inputs).zip(all.chunks(outputs)) {
            let mut y = vec![0.0; outputs];
            matrix.multiply(&pool, x, &mut y);
            assert_eq!(y, expected);
        }
    }

    /// What the rates of [`crate::measure`] rest on: whatever is timed computes.
    #[test]
    fn every_instruction_set_of_the_machine_multiplies_either_format() {
        let pool = Pool::new(Some(2)).unwrap();
        for set in InstructionSet::available() {
            for format in [WeightFormat::F32, WeightFormat::Bf16] {
                let matrix = Matrix::ones(70, 33, format);
                let mut y = vec![0.0; 2 * 70];
                matrix.multiply_on(set, &pool, &[[0.5; 33], [2.0; 33]].concat(), &mut y);
                let expected: Vec<f32> = [[16.5; 70], [66.0; 70]].concat();
                assert_eq!(y, expected, "{} {format:?}", set.name());
            }
        }
    }

    #[test]
    fn rows_come_back_and_stack_in_order() {
        let (a, b) = (noise(1, 20 * 5), noise(2, 3 * 5));
        let matrix = Matrix::stack(&[WeightRows::F32(&a), WeightRows::F32(&b)], 5).unwrap();
        assert_eq!((matrix.outputs(), matrix.inputs()), (23, 5));
        let mut row = [0.0; 5];
        matrix.read_row(21, &mut row);
        assert_eq!(row, b[5..10]);
        let error = Matrix::stack(&[WeightRows::F32(&a)], 7).err();
        assert_eq!(error, Some(MatrixError::Ragged { len: 100, inputs: 7 }));
    }
}
