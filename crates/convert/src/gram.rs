//! Second moments of activations and their principal axes.
//!
//! A Gram matrix is all that calibration keeps of the activations, so memory does not grow with the number of
//! calibration tokens. Sums are in f64: 32k f32 products would lose the small eigenvalues that decide the cut.

use faer::{
    Accum, Mat, MatRef, Par, Side,
    linalg::matmul::triangular::{self, BlockStructure},
};

/// Share of the mean diagonal added to the diagonal before taking eigenvectors, as TransMLA does.
const DAMPING: f64 = 0.01;

/// Uncentred second moments `Σ x xᵀ` over tokens.
#[derive(Clone, Debug)]
pub struct Gram {
    /// Only the lower triangle is meaningful.
    lower: Mat<f64>,
}

impl Gram {
    /// An empty sum over `width` features.
    pub fn new(width: usize) -> Self {
        Self { lower: Mat::zeros(width, width) }
    }

    /// Adds tokens: `features` is `[tokens, width]`, row-major.
    pub fn add(&mut self, features: &[f32]) {
        let width = self.lower.nrows();
        let tokens = features.len() / width;
        let columns = MatRef::from_column_major_slice(&features[..tokens * width], width, tokens);
        let wide = Mat::from_fn(width, tokens, |i, j| f64::from(columns[(i, j)]));
        triangular::matmul(
            self.lower.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Add,
            wide.as_ref(),
            BlockStructure::Rectangular,
            wide.transpose(),
            BlockStructure::Rectangular,
            1.0,
            Par::rayon(0),
        );
    }

    /// The whole symmetric matrix `[width, width]`.
    pub fn symmetric(&self) -> Mat<f64> {
        let n = self.lower.nrows();
        Mat::from_fn(n, n, |i, j| if i >= j { self.lower[(i, j)] } else { self.lower[(j, i)] })
    }
}

/// Eigenvectors of a damped Gram matrix, largest eigenvalue first.
#[derive(Clone, Debug)]
pub struct Spectrum {
    /// Eigenvalues of the damped matrix, descending.
    pub values: Vec<f64>,
    /// Unit eigenvectors as columns, in the order of `values`.
    pub vectors: Mat<f64>,
    damping: f64,
}

impl Spectrum {
    /// Damps `gram` by 1 % of its mean diagonal and takes its eigenvectors.
    pub fn of(gram: MatRef<'_, f64>) -> Result<Self, SpectrumError> {
        let n = gram.nrows();
        let mean = (0..n).map(|i| gram[(i, i)]).sum::<f64>() / n as f64;
        if !mean.is_finite() {
            return Err(SpectrumError::NotFinite);
        }
        let damping = DAMPING * mean;
        let damped = Mat::from_fn(n, n, |i, j| gram[(i, j)] + if i == j { damping } else { 0.0 });
        let eigen =
            damped.self_adjoint_eigen(Side::Lower).map_err(|_| SpectrumError::NoConvergence { size: n })?;
        let (ascending, vectors) = (eigen.S().column_vector(), eigen.U());
        Ok(Self {
            values: (0..n).rev().map(|i| ascending[i]).collect(),
            vectors: Mat::from_fn(n, n, |i, j| vectors[(i, n - 1 - j)]),
            damping,
        })
    }

    /// Energy (undamped eigenvalues) of the first `count` components.
    pub fn energy(&self, count: usize) -> f64 {
        self.values[..count].iter().map(|value| (value - self.damping).max(0.0)).sum()
    }

    /// Energy of all components.
    pub fn total_energy(&self) -> f64 {
        self.energy(self.values.len())
    }
}

/// Why principal axes could not be found.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpectrumError {
    /// Activations overflowed or the weights hold NaN.
    #[error(
        "calibration activations are not finite: the source's weights hold NaN or infinite values, or overflow f32"
    )]
    NotFinite,
    /// The eigenvalue iteration gave up.
    #[error("eigenvalues of a {size} x {size} Gram matrix did not converge; calibrate on other text")]
    NoConvergence {
        /// Rows of the matrix.
        size: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_add_up_over_calls() {
        let mut gram = Gram::new(2);
        gram.add(&[1.0, 2.0, 3.0, -1.0]);
        gram.add(&[0.5, 4.0]);
        let full = gram.symmetric();
        assert_eq!((full[(0, 0)], full[(0, 1)], full[(1, 0)], full[(1, 1)]), (10.25, 1.0, 1.0, 21.0));
    }

    #[test]
    fn axes_come_largest_first_and_damping_leaves_the_energy() {
        let gram = Mat::from_fn(3, 3, |i, j| if i == j { [1.0, 9.0, 2.0][i] } else { 0.0 });
        let spectrum = Spectrum::of(gram.as_ref()).unwrap();
        let damping = 0.01 * 4.0;
        for (value, expected) in spectrum.values.iter().zip([9.0, 2.0, 1.0]) {
            assert!((value - expected - damping).abs() < 1e-12);
        }
        assert!((spectrum.vectors[(1, 0)].abs() - 1.0).abs() < 1e-12);
        assert!((spectrum.energy(1) - 9.0).abs() < 1e-12 && (spectrum.total_energy() - 12.0).abs() < 1e-12);
    }

    #[test]
    fn nan_is_a_sentence() {
        let gram = Mat::from_fn(2, 2, |_, _| f64::NAN);
        assert_eq!(Spectrum::of(gram.as_ref()).unwrap_err(), SpectrumError::NotFinite);
    }
}
