//! A weight matrix and its product with a sample.

use faer::{Accum, Mat, MatMut, MatRef, Par, linalg::matmul::matmul};
use gqla_weights::{Tensor, TensorError};

/// `y = W x` for row-major tokens.
#[derive(Clone, Debug)]
pub struct Linear {
    rows: usize,
    columns: usize,
    weight: Vec<f32>,
}

impl Linear {
    /// Widens a matrix `[out, in]`, or passes on that it has another shape.
    pub fn from_tensor(tensor: Tensor<'_>, rows: usize, columns: usize) -> Result<Self, TensorError> {
        Ok(Self { rows, columns, weight: tensor.expect_shape(&[rows, columns])?.to_f32() })
    }

    /// Rounds a matrix to f32.
    pub fn rounded(matrix: MatRef<'_, f64>) -> Self {
        let (rows, columns) = (matrix.nrows(), matrix.ncols());
        let weight = (0..rows * columns).map(|i| matrix[(i / columns, i % columns)] as f32).collect();
        Self { rows, columns, weight }
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Row-major elements.
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// The same matrix in f64.
    pub fn to_f64(&self) -> Mat<f64> {
        Mat::from_fn(self.rows, self.columns, |i, j| f64::from(self.weight[i * self.columns + j]))
    }

    /// `[tokens, out]` from `x` `[tokens, in]`, on the calling thread.
    pub fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len() / self.columns * self.rows];
        self.accumulate(x, Accum::Replace, &mut y);
        y
    }

    /// Adds `W x` to `y` `[tokens, out]`.
    pub fn add_to(&self, x: &[f32], y: &mut [f32]) {
        self.accumulate(x, Accum::Add, y);
    }

    fn accumulate(&self, x: &[f32], accum: Accum, y: &mut [f32]) {
        let tokens = x.len() / self.columns;
        let weight = MatRef::from_row_major_slice(&self.weight, self.rows, self.columns);
        let x = MatRef::from_column_major_slice(x, self.columns, tokens);
        let y = MatMut::from_column_major_slice_mut(y, self.rows, tokens);
        matmul(y, accum, weight, x, 1.0, Par::Seq);
    }
}
