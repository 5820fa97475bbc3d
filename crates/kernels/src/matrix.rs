//! Weights in the order the kernels read them.
//!
//! A checkpoint stores `[out, in]` row by row; a product of few rows wants many outputs of one input side by side.
//! [`Matrix`] interleaves sixteen outputs once at load, in the checkpoint's own number format, so that a step
//! streams every weight exactly once for all rows of the batch and never needs a horizontal sum.

use std::{ops::Range, ptr::null};

use crate::{
    gemm::{Element, PANEL, PanelTask, RowMap, TASK_OUTPUTS, run_panel_task},
    memory::Lines,
    pool::Pool,
    simd::{InstructionSet, Isa, isa},
    unit::{INT8_INPUTS, INT8_OFFSET, Inputs, Narrow, Rounded, RoundedRows, STEP, Unit, UnitTask},
};

/// Tasks per thread from which on it hardly matters who gets the last one.
const EVEN_TASKS: usize = 8;

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

    /// Fills `row` with the numbers from `start` on.
    fn read_f32(&self, start: usize, row: &mut [f32]) {
        match self.range(start, row.len()) {
            Self::F32(values) => row.copy_from_slice(values),
            Self::Bf16(bytes) => pairs(bytes).zip(row).for_each(|(bits, x)| *x = bits.to_f32()),
        }
    }

    /// As [`Self::read_f32`], in bits of bf16.
    fn read_bf16(&self, start: usize, row: &mut [u16]) {
        match self.range(start, row.len()) {
            Self::F32(values) => values.iter().zip(row).for_each(|(value, x)| *x = u16::of_f32(*value)),
            Self::Bf16(bytes) => pairs(bytes).zip(row).for_each(|(bits, x)| *x = bits),
        }
    }
}

fn pairs(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks().0.iter().map(|pair| u16::from_le_bytes(*pair))
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

/// Numbers weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// Single precision.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// Whole numbers from -127 to 127 and one f32 scale per output.
    Int8,
}

enum Panels {
    F32(Lines<f32>),
    Bf16(Lines<u16>),
    Int8 {
        numbers: Lines<i8>,
        scales: Lines<f32>,
    },
    /// Four bytes of a row's weights beside each other, as units read them; int8 has [`INT8_OFFSET`] added.
    Unit {
        unit: Unit,
        numbers: Narrow,
        bytes: Lines<i8>,
        scales: Option<Lines<f32>>,
    },
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
        let rows = rows_of(parts, inputs)?;
        let panels = if parts.iter().all(|part| matches!(part, WeightRows::Bf16(_))) {
            Panels::Bf16(interleave(&rows, inputs, |(part, start), row| part.read_bf16(start, row)))
        } else {
            Panels::F32(interleave(&rows, inputs, |(part, start), row| part.read_f32(start, row)))
        };
        Ok(Self { panels, outputs: rows.len(), inputs })
    }

    /// As [`Self::stack`], rounded to int8: each row's weights become the nearest multiples of a 127th of the largest
    /// of them, so a weight is off by at most a 254th of its row's largest.
    /// Where this machine multiplies int8 (see [`crate::int8_unit`]), products round their inputs to 16 bits.
    pub fn stack_int8(parts: &[WeightRows<'_>], inputs: usize) -> Result<Self, MatrixError> {
        Self::stack_int8_on(Unit::in_use(Narrow::Int8), parts, inputs)
    }

    fn stack_int8_on(
        unit: Option<Unit>,
        parts: &[WeightRows<'_>],
        inputs: usize,
    ) -> Result<Self, MatrixError> {
        let rows = rows_of(parts, inputs)?;
        let mut scales = Lines::shared(rows.len().next_multiple_of(PANEL));
        let mut exact = vec![0.0; inputs];
        let scaled: Vec<_> = rows
            .iter()
            .zip(scales.iter_mut())
            .map(|((part, start), scale)| {
                part.read_f32(*start, &mut exact);
                let largest = exact.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                *scale = largest / 127.0;
                (*part, *start, if largest > 0.0 { 127.0 / largest } else { 0.0 })
            })
            .collect();
        let mut rounded = |(part, start, inverse): (&WeightRows<'_>, usize, f32), row: &mut [i8]| {
            part.read_f32(start, &mut exact);
            row.iter_mut().zip(&exact).for_each(|(number, x)| *number = i8::of_f32(x * inverse));
        };
        let panels = match unit.filter(|_| inputs.is_multiple_of(STEP) && inputs <= INT8_INPUTS) {
            None => Panels::Int8 { numbers: interleave(&scaled, inputs, rounded), scales },
            Some(unit) => {
                let offset = |from, row: &mut [i8]| {
                    rounded(from, row);
                    row.iter_mut().for_each(|x| *x = ((i32::from(*x) + INT8_OFFSET) as u8).cast_signed());
                };
                let bytes = interleave_by::<4, _, _>(&scaled, inputs, offset);
                Panels::Unit { unit, numbers: Narrow::Int8, bytes, scales: Some(scales) }
            }
        };
        Ok(Self { panels, outputs: rows.len(), inputs })
    }

    /// As [`Self::stack`]. Where all parts are bf16 and this machine multiplies bf16 (see [`crate::bf16_unit`]), products
    /// round their inputs to bf16 too; sums stay f32.
    pub fn stack_rounding_inputs(parts: &[WeightRows<'_>], inputs: usize) -> Result<Self, MatrixError> {
        Self::stack_bf16_on(Unit::in_use(Narrow::Bf16), parts, inputs)
    }

    fn stack_bf16_on(
        unit: Option<Unit>,
        parts: &[WeightRows<'_>],
        inputs: usize,
    ) -> Result<Self, MatrixError> {
        let all_bf16 = parts.iter().all(|part| matches!(part, WeightRows::Bf16(_)));
        let Some(unit) = unit.filter(|_| all_bf16 && (2 * inputs).is_multiple_of(STEP)) else {
            return Self::stack(parts, inputs);
        };
        let rows = rows_of(parts, inputs)?;
        let mut bits = vec![0; inputs];
        let halves = |(part, start): (&WeightRows<'_>, usize), row: &mut [i8]| {
            part.read_bf16(start, &mut bits);
            let places = row.as_chunks_mut().0.iter_mut();
            places.zip(&bits).for_each(|(pair, bits)| *pair = bits.to_le_bytes().map(u8::cast_signed));
        };
        let bytes = interleave_by::<4, _, _>(&rows, 2 * inputs, halves);
        let panels = Panels::Unit { unit, numbers: Narrow::Bf16, bytes, scales: None };
        Ok(Self { panels, outputs: rows.len(), inputs })
    }

    /// A matrix whose weights are all 1, for timing.
    pub(crate) fn ones(outputs: usize, inputs: usize, format: WeightFormat) -> Self {
        let numbers = outputs.div_ceil(PANEL) * inputs * PANEL;
        let panels = match format {
            WeightFormat::F32 => Panels::F32(filled(numbers, 1.0)),
            WeightFormat::Bf16 => Panels::Bf16(filled(numbers, half::bf16::ONE.to_bits())),
            WeightFormat::Int8 => Panels::Int8 {
                numbers: filled(numbers, 1),
                scales: filled(outputs.next_multiple_of(PANEL), 1.0),
            },
        };
        Self { panels, outputs, inputs }
    }

    /// What the weights are stored as.
    pub fn format(&self) -> WeightFormat {
        match self.panels {
            Panels::F32(_) => WeightFormat::F32,
            Panels::Bf16(_) | Panels::Unit { numbers: Narrow::Bf16, .. } => WeightFormat::Bf16,
            Panels::Int8 { .. } | Panels::Unit { numbers: Narrow::Int8, .. } => WeightFormat::Int8,
        }
    }

    /// Bytes a product reads of the matrix.
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(numbers) => size_of_val::<[f32]>(numbers),
            Panels::Bf16(numbers) => size_of_val::<[u16]>(numbers),
            Panels::Unit { bytes, scales, .. } => {
                bytes.len() + scales.as_ref().map_or(0, |scales| size_of_val::<[f32]>(scales))
            }
            Panels::Int8 { numbers, scales } => size_of_val::<[i8]>(numbers) + size_of_val::<[f32]>(scales),
        }
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
        let (panel, lane) = (output / PANEL * PANEL * self.inputs, output % PANEL);
        match &self.panels {
            Panels::F32(numbers) => gather(&numbers[panel..], lane, 1.0, row),
            Panels::Bf16(numbers) => gather(&numbers[panel..], lane, 1.0, row),
            Panels::Unit { numbers, bytes, scales, .. } => {
                let fours = bytes[panel * numbers.bytes()..].chunks_exact(4 * PANEL);
                let own = fours.map(|fours| &fours[4 * lane..][..4]);
                match (numbers, scales) {
                    (Narrow::Int8, Some(scales)) => {
                        let whole =
                            own.flatten().map(|byte| (i32::from(byte.cast_unsigned()) - INT8_OFFSET) as f32);
                        row.iter_mut().zip(whole).for_each(|(x, whole)| *x = whole * scales[output]);
                    }
                    _ => {
                        let bits = own.flat_map(|own| own.chunks_exact(2));
                        let wide = bits.map(|bits| {
                            u16::from_le_bytes([bits[0], bits[1]].map(i8::cast_unsigned)).to_f32()
                        });
                        row.iter_mut().zip(wide).for_each(|(x, wide)| *x = wide);
                    }
                }
            }
            Panels::Int8 { numbers, scales } => gather(&numbers[panel..], lane, scales[output], row),
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

    /// # Safety
    /// As [`multiply_each_on`], and no other thread may compute these outputs. `rounded` are the rows of inputs where
    /// the matrix wants them rounded.
    unsafe fn run_task(
        &self,
        isa: Isa,
        outputs: Range<usize>,
        operands: &Operands,
        rounded: Option<RoundedRows>,
    ) {
        // SAFETY: the caller's contract; scales fill whole panels, and a unit was found on this machine.
        unsafe {
            match &self.panels {
                Panels::Unit { unit, numbers, bytes, scales } => {
                    let Some(x) = rounded else { return };
                    let task = UnitTask {
                        numbers: *numbers,
                        panels: bytes
                            .as_ptr()
                            .cast::<u8>()
                            .add(outputs.start * self.inputs * numbers.bytes()),
                        scales: scales.as_ref().map_or(null(), |scales| scales.as_ptr().add(outputs.start)),
                        outputs: outputs.len(),
                        row_bytes: self.inputs * numbers.bytes(),
                        x,
                        rows: operands.rows,
                        y: operands.y.add(outputs.start),
                        y_rows: operands.y_rows,
                        accumulate: operands.accumulate,
                    };
                    task.run(*unit);
                }
                Panels::F32(numbers) => self.run_panels(numbers.as_ptr(), null(), isa, outputs, operands),
                Panels::Bf16(numbers) => self.run_panels(numbers.as_ptr(), null(), isa, outputs, operands),
                Panels::Int8 { numbers, scales } => {
                    let scales = scales.as_ptr().add(outputs.start);
                    self.run_panels(numbers.as_ptr(), scales, isa, outputs, operands);
                }
            }
        }
    }

    /// The rows of a product, and what they are to be rounded to.
    fn inputs_to_round(&self, operands: &Operands) -> Inputs {
        let numbers = match self.panels {
            Panels::Unit { numbers, .. } => Some(numbers),
            _ => None,
        };
        Inputs { numbers, x: operands.x, x_rows: operands.x_rows, rows: operands.rows, k: self.inputs }
    }

    unsafe fn run_panels<E: Element>(
        &self,
        panels: *const E,
        scales: *const f32,
        isa: Isa,
        outputs: Range<usize>,
        operands: &Operands,
    ) {
        // SAFETY: tasks start at whole panels that exist; the rest is the caller's contract.
        unsafe {
            run_panel_task(&PanelTask {
                isa,
                panels: panels.add(outputs.start * self.inputs),
                scales,
                outputs: outputs.len(),
                k: self.inputs,
                x: operands.x,
                x_rows: operands.x_rows,
                y: operands.y.add(outputs.start),
                y_rows: operands.y_rows,
                rows: operands.rows,
                accumulate: operands.accumulate,
            });
        }
    }
}

/// (part, where it starts there) of every row.
fn rows_of<'a, 'w>(
    parts: &'a [WeightRows<'w>],
    inputs: usize,
) -> Result<Vec<(&'a WeightRows<'w>, usize)>, MatrixError> {
    if let Some(part) = parts.iter().find(|part| inputs == 0 || part.len() % inputs != 0) {
        return Err(MatrixError::Ragged { len: part.len(), inputs });
    }
    let rows = |part: &'a WeightRows<'w>| (0..part.len() / inputs).map(move |row| (part, row * inputs));
    Ok(parts.iter().flat_map(rows).collect())
}

/// Puts sixteen rows beside each other: `[row / 16][input][16]`; `read` fills a row's numbers.
fn interleave<E: Element, Row: Copy>(
    rows: &[Row],
    inputs: usize,
    read: impl FnMut(Row, &mut [E]),
) -> Lines<E> {
    interleave_by::<1, _, _>(rows, inputs, read)
}

/// The same with `TOGETHER` inputs of a row beside each other: `[row / 16][input / TOGETHER][16][TOGETHER]`.
fn interleave_by<const TOGETHER: usize, E: Element, Row: Copy>(
    rows: &[Row],
    inputs: usize,
    mut read: impl FnMut(Row, &mut [E]),
) -> Lines<E> {
    let mut numbers = Lines::shared(rows.len().div_ceil(PANEL) * inputs * PANEL);
    // Rows that pad the last panel stay zero.
    let mut apart = vec![E::default(); PANEL * inputs];
    for (panel, rows) in numbers.chunks_exact_mut(inputs * PANEL).zip(rows.chunks(PANEL)) {
        apart[rows.len() * inputs..].fill(E::default());
        rows.iter().zip(apart.chunks_exact_mut(inputs)).for_each(|(row, place)| read(*row, place));
        for (step, places) in panel.chunks_exact_mut(PANEL * TOGETHER).enumerate() {
            for (lane, place) in places.as_chunks_mut::<TOGETHER>().0.iter_mut().enumerate() {
                place.copy_from_slice(&apart[lane * inputs + step * TOGETHER..][..TOGETHER]);
            }
        }
    }
    numbers
}

fn filled<E: Element>(len: usize, number: E) -> Lines<E> {
    let mut numbers = Lines::shared(len);
    numbers.fill(number);
    numbers
}

/// One lane of panels, scaled.
fn gather<E: Element>(panels: &[E], lane: usize, scale: f32, row: &mut [f32]) {
    let numbers = panels[lane..].iter().step_by(PANEL);
    row.iter_mut().zip(numbers).for_each(|(x, number)| *x = number.to_f32() * scale);
}

/// Outputs of a task: half as many where whole tasks are so few that a thread would wait long for the last one.
fn task_outputs(tasks: usize, threads: usize) -> usize {
    if tasks < EVEN_TASKS * threads { TASK_OUTPUTS / 2 } else { TASK_OUTPUTS }
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
    let Some(outputs) = products.first().map(|(matrix, _)| matrix.outputs) else { return };
    debug_assert!(products.iter().all(|(matrix, _)| matrix.outputs == outputs));
    let width = task_outputs(products.len() * outputs.div_ceil(TASK_OUTPUTS), pool.threads());
    let tasks = outputs.div_ceil(width);
    let run = |rounded: Option<&Rounded>| {
        pool.run(products.len() * tasks, &|task| {
            let (product, first) = (task / tasks, task % tasks * width);
            let (matrix, operands) = &products[product];
            let rounded = rounded.map(|rounded| rounded.of(product));
            // SAFETY: every (product, task) runs once; the rest is the caller's contract.
            unsafe { matrix.run_task(isa, first..outputs.min(first + width), operands, rounded) }
        });
    };
    let inputs: Vec<_> = products.iter().map(|(matrix, operands)| matrix.inputs_to_round(operands)).collect();
    if inputs.iter().all(|inputs| inputs.numbers.is_none()) {
        return run(None);
    }
    // SAFETY: a matrix has a unit where the machine has one; the caller vouches for every `x`.
    unsafe { Rounded::with(pool, &inputs, |rounded| run(Some(rounded))) }
}

#[cfg(test)]
mod tests;
