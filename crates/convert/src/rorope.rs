//! RoRoPE: an orthogonal change of key channels that commutes with RoPE and gathers its energy.
//!
//! Key channels of one frequency (and of its `F - 1` neighbours, when folded) may be mixed across heads as long as
//! their real and imaginary halves are mixed alike. Mixing them by the eigenvectors of their second moments puts
//! most of what RoPE acts on into the leading `d_rope` channels; only those keep their position. With `F = 1` the
//! mixing itself is exact; folding approximates neighbouring frequencies by one.

use faer::{Mat, MatRef};

use crate::{
    geometry::Geometry,
    gram::{Spectrum, SpectrumError},
};

/// The rotation of one layer's key channels.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// `[G d, G d]`, orthogonal: rotated channels from source channels; the first `d_rope` rows keep their rope.
    pub matrix: Mat<f64>,
    /// Eigenvalues of each fold's damped Gram, descending.
    pub spectra: Vec<Vec<f64>>,
    /// Share of the key energy in the channels that keep their rope.
    pub rope_energy: f64,
}

impl Rotation {
    /// Finds the rotation from the second moments `[G d, G d]` of the keys before RoPE.
    pub fn of_keys(geometry: &Geometry, keys: MatRef<'_, f64>) -> Result<Self, SpectrumError> {
        let width = geometry.kv_width();
        let mut matrix = Mat::zeros(width, width);
        let (mut kept, mut total, mut spectra) = (0.0, 0.0, Vec::with_capacity(geometry.folds()));
        for fold in 0..geometry.folds() {
            let spectrum = Spectrum::of(fold_gram(geometry, keys, fold).as_ref())?;
            for half in 0..2 {
                place(geometry, fold, half, spectrum.vectors.as_ref(), &mut matrix);
            }
            kept += spectrum.energy(geometry.kept_per_fold());
            total += spectrum.total_energy();
            spectra.push(spectrum.values);
        }
        Ok(Self { matrix, spectra, rope_energy: kept / total })
    }
}

/// Second moments of one fold, the real and the imaginary half of a token counting as two samples.
fn fold_gram(geometry: &Geometry, keys: MatRef<'_, f64>, fold: usize) -> Mat<f64> {
    let moment = |h: usize, other: usize, half: usize| {
        keys[(geometry.source_row(fold, h, half), geometry.source_row(fold, other, half))]
    };
    Mat::from_fn(geometry.fold_width(), geometry.fold_width(), |h, other| {
        moment(h, other, 0) + moment(h, other, 1)
    })
}

/// Writes one fold's eigenvectors (columns) as rows of the rotation.
fn place(geometry: &Geometry, fold: usize, half: usize, vectors: MatRef<'_, f64>, matrix: &mut Mat<f64>) {
    for component in 0..geometry.fold_width() {
        let channel = geometry.rotated_channel(fold, component, half);
        for feature in 0..geometry.fold_width() {
            matrix[(channel, geometry.source_row(fold, feature, half))] = vectors[(feature, component)];
        }
    }
}
