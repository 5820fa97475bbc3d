//! TransGQLA over a whole checkpoint, one layer in memory at a time.
//!
//! Per layer: the source's stream yields the key moments and with them the rotation; the partial-RoPE stream, whose
//! layer can now be written down, yields the latent moments and with them the kept basis; the converted layer is
//! written and forgotten. Both calibration passes of the reference thus share one walk through the weights.

use std::path::{Path, PathBuf};

use gqla_weights::{Checkpoint, Dtype, TensorError, WriteError};

use crate::{
    assemble::{LatentWeights, compress, partial_rope},
    balance::{BalanceError, balance_ratio},
    calibrate::{Step, Stream},
    calibration::Calibration,
    destination::Destination,
    forward::{LatentProjection, Linear, RopeTable},
    geometry::{Geometry, GeometryError, Target},
    gram::SpectrumError,
    kv_pca::LatentBasis,
    progress::Observer,
    report::{LayerReport, Report},
    rorope::Rotation,
    source::{Source, SourceError, SourceLayer},
};

/// What to make of a source.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Dimensions of the result.
    pub target: Target,
    /// Multiplies the values' norm before keys are balanced against it; 1 balances them.
    pub balance_kv_ratio: f64,
    /// How the converted checkpoint stores its weights.
    pub dtype: Dtype,
    /// How `gqla_meta.json` names the source.
    pub source_name: String,
}

/// A conversion whose request fits its source.
pub struct Conversion<'a> {
    source: Source<'a>,
    geometry: Geometry,
    calibration: Calibration,
    request: Request,
}

impl<'a> Conversion<'a> {
    /// Checks `request` against the source; nothing is computed or written yet.
    pub fn new(
        checkpoint: &'a Checkpoint,
        request: Request,
        calibration: Calibration,
    ) -> Result<Self, ConversionError> {
        let source = Source::new(checkpoint)?;
        let geometry = Geometry::new(source.attention(), request.target)?;
        if !(request.balance_kv_ratio.is_finite() && request.balance_kv_ratio > 0.0) {
            return Err(ConversionError::Balance { given: request.balance_kv_ratio });
        }
        Ok(Self { source, geometry, calibration, request })
    }

    /// The checked dimensions.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Layer-tokens to be computed: every calibration token passes every layer of two models.
    pub fn work(&self) -> u64 {
        2 * self.source.config().num_hidden_layers as u64 * self.calibration.ids().len() as u64
    }

    /// Converts the checkpoint into `directory`, which must not hold a model, on the current rayon pool.
    pub fn run(&self, directory: &Path, observer: &dyn Observer) -> Result<Report, ConversionError> {
        let config = self.source.config();
        let balance = self.request.balance_kv_ratio;
        let name = self.request.source_name.clone();
        let mut report = Report::new(name, &self.geometry, &self.calibration, balance);
        let mut destination =
            Destination::create(directory, &self.source, &self.geometry, self.request.dtype)?;
        let mut passes = Passes::new(self)?;
        for index in 0..config.num_hidden_layers {
            let layer = self.source.layer(index)?;
            let last = index + 1 == config.num_hidden_layers;
            let (weights, figures) = self.convert_layer(index, last, &layer, &mut passes, observer)?;
            destination.write_layer(index, &layer, &weights)?;
            observer.layer_finished(&figures);
            report.layers.push(figures);
        }
        destination.finish(&self.source, &report)?;
        Ok(report)
    }

    fn convert_layer(
        &self,
        index: usize,
        last: bool,
        layer: &SourceLayer,
        passes: &mut Passes,
        observer: &dyn Observer,
    ) -> Result<(LatentWeights, LayerReport), ConversionError> {
        let at = |source| ConversionError::Layer { layer: index, source };
        let geometry = &self.geometry;
        let eps = self.source.config().rms_norm_eps;
        let (input_layernorm, tail) = (&layer.input_layernorm[..], (!last).then_some(&layer.tail));
        let step =
            Step { input_layernorm, projection: &layer.attention, tail, rope: &passes.whole_rope, eps };
        let keys = passes.original.advance(&step, observer);
        let rotation = Rotation::of_keys(geometry, keys.as_ref()).map_err(|error| at(error.into()))?;
        let full = partial_rope(geometry, &layer.plain_weights(), rotation.matrix.as_ref());
        let projection = projection(geometry, &full);
        let step = Step { input_layernorm, projection: &projection, tail, rope: &passes.shared_rope, eps };
        let latent = passes.partial_rope.advance(&step, observer);
        let ratio = balance_ratio(geometry, latent.as_ref(), self.request.balance_kv_ratio)
            .map_err(|error| at(error.into()))?;
        let basis =
            LatentBasis::of_latent(geometry, latent.as_ref(), ratio).map_err(|error| at(error.into()))?;
        let weights = compress(geometry, full, &basis);
        let figures = LayerReport {
            layer: index,
            ratio,
            rope_energy: rotation.rope_energy,
            latent_energy: basis.energy,
            rope_spectra: rotation.spectra,
            latent_spectrum: basis.spectrum,
        };
        Ok((weights, figures))
    }
}

/// The two models calibration runs side by side.
struct Passes {
    original: Stream,
    partial_rope: Stream,
    whole_rope: RopeTable,
    shared_rope: RopeTable,
}

impl Passes {
    fn new(conversion: &Conversion<'_>) -> Result<Self, TensorError> {
        let (config, geometry) = (conversion.source.config(), &conversion.geometry);
        let length = conversion.calibration.length();
        let embedded = conversion.source.embed(conversion.calibration.ids())?;
        let original = Stream::new(embedded, length, config.hidden_size);
        let rope = |dim| RopeTable::new(length, dim, config.rope_theta);
        Ok(Self {
            partial_rope: original.clone(),
            original,
            whole_rope: rope(geometry.head_dim()),
            shared_rope: rope(geometry.rope_dim()),
        })
    }
}

/// The layer as calibration runs it, rounded to f32.
fn projection(geometry: &Geometry, weights: &LatentWeights) -> LatentProjection {
    LatentProjection {
        q: Linear::rounded(weights.q.as_ref()),
        kv_a: Linear::rounded(weights.kv_a.as_ref()),
        kv_b: Linear::rounded(weights.kv_b.as_ref()),
        heads: geometry.heads(),
        groups: geometry.groups(),
        rope_dim: geometry.rope_dim(),
    }
}

/// Why a checkpoint was not converted.
#[derive(Debug, thiserror::Error)]
pub enum ConversionError {
    /// The source is of another kind.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The dimensions do not work out.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The balance is not a factor.
    #[error("--balance-kv-ratio {given} is not a positive number: 1 balances keys and values")]
    Balance {
        /// The value given.
        given: f64,
    },
    /// A tensor of the source cannot be read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A layer's activations allow no analysis.
    #[error("layer {layer}: {source}")]
    Layer {
        /// Index of the layer.
        layer: usize,
        /// What is wrong with them.
        source: LayerError,
    },
    /// The result cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The source's tokenizer or chat template cannot be read.
    #[error("the source's tokenizer cannot be copied: {0}")]
    Tokenizer(#[from] gqla_weights::TokenizerError),
    /// The provenance file cannot be written.
    #[error("cannot write `{}`: {source}", file.display())]
    Meta {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why one layer's activations allow no analysis.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// No principal axes.
    #[error(transparent)]
    Spectrum(#[from] SpectrumError),
    /// No balance.
    #[error(transparent)]
    Balance(#[from] BalanceError),
}
