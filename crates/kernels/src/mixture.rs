//! Products of the experts of a mixture.

use crate::{
    Matrix, Pool,
    gemm::RowMap,
    matrix::{Operands, multiply_each},
};

/// Multiplies consecutive runs of rows by a matrix each, as one parallel loop: run i is the next `runs[i].1` rows of
/// `x` `[rows, in]` and of `y` `[rows, out]`, and every matrix is read once for all rows of its run.
///
/// # Panics
/// When the matrices have different dimensions, or the runs are not all rows of `x` and `y`.
pub fn multiply_runs(pool: &Pool, runs: &[(&Matrix, usize)], x: &[f32], y: &mut [f32]) {
    let Some((first, _)) = runs.first() else { return };
    let (inputs, outputs) = (first.inputs(), first.outputs());
    assert!(
        runs.iter().all(|(matrix, _)| (matrix.inputs(), matrix.outputs()) == (inputs, outputs)),
        "the matrices have equal dimensions"
    );
    let rows: usize = runs.iter().map(|(_, rows)| rows).sum();
    assert_eq!((rows * inputs, rows * outputs), (x.len(), y.len()), "the runs are all rows of x and y");
    let target = y.as_mut_ptr();
    let mut start = 0;
    let products: Vec<_> = runs
        .iter()
        .map(|&(matrix, rows)| {
            let operands = Operands {
                x: x[start * inputs..].as_ptr(),
                x_rows: RowMap::even(inputs),
                y: target.wrapping_add(start * outputs),
                y_rows: RowMap::even(outputs),
                rows,
                accumulate: false,
            };
            start += rows;
            (matrix, operands)
        })
        .collect();
    // SAFETY: the runs were checked to fit `x` and `y`, and they write different rows.
    unsafe { multiply_each(pool, &products) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{WeightRows, reference::counter_noise};

    fn noise(seed: u64, len: usize) -> Vec<f32> {
        counter_noise(seed, len, 1.0).map(|x| x as f32).collect()
    }

    #[test]
    fn every_run_has_the_bits_of_a_product_of_its_own() {
        let pool = Pool::new(Some(2)).unwrap();
        let (outputs, inputs) = (70, 33);
        let matrix =
            |seed| Matrix::stack(&[WeightRows::F32(&noise(seed, outputs * inputs))], inputs).unwrap();
        let matrices: Vec<_> = (1..4).map(matrix).collect();
        let runs: Vec<_> = matrices.iter().zip([1, 7, 2]).collect();
        let x = noise(9, 10 * inputs);
        let mut y = vec![f32::NAN; 10 * outputs];
        multiply_runs(&pool, &runs, &x, &mut y);
        let mut start = 0;
        for (matrix, rows) in runs {
            let mut expected = vec![0.0; rows * outputs];
            matrix.multiply(&pool, &x[start * inputs..(start + rows) * inputs], &mut expected);
            assert_eq!(y[start * outputs..(start + rows) * outputs], expected);
            start += rows;
        }
        multiply_runs(&pool, &[], &[], &mut []);
    }
}
