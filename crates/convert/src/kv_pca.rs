//! Joint low-rank basis of keys and values: which `r` directions of `[K_nope ; V]` the cache keeps.

use faer::{Mat, MatRef};

use crate::{
    geometry::Geometry,
    gram::{Spectrum, SpectrumError},
};

/// The kept directions of one layer's latent.
#[derive(Clone, Debug)]
pub struct LatentBasis {
    /// Columns span what is kept: `[2 G d - d_rope, r]`, orthonormal, in balanced channels.
    pub basis: Mat<f64>,
    /// Keys were divided by this before the analysis.
    pub ratio: f64,
    /// Eigenvalues of the damped, balanced Gram, descending.
    pub spectrum: Vec<f64>,
    /// Share of the balanced energy that is kept.
    pub energy: f64,
}

impl LatentBasis {
    /// Takes the leading `r` principal components of `[K_nope / ratio ; V]` from the second moments `latent` of
    /// `[K_nope ; V]`.
    pub fn of_latent(
        geometry: &Geometry,
        latent: MatRef<'_, f64>,
        ratio: f64,
    ) -> Result<Self, SpectrumError> {
        let scale = |channel: usize| if channel < geometry.nope_width() { 1.0 / ratio } else { 1.0 };
        let balanced =
            Mat::from_fn(latent.nrows(), latent.ncols(), |i, j| latent[(i, j)] * scale(i) * scale(j));
        let spectrum = Spectrum::of(balanced.as_ref())?;
        let energy = spectrum.energy(geometry.rank()) / spectrum.total_energy();
        let basis = spectrum.vectors.subcols(0, geometry.rank()).to_owned();
        Ok(Self { basis, ratio, spectrum: spectrum.values, energy })
    }
}
