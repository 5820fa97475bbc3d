//! What a conversion measured, for people, scripts and the checkpoint's own `gqla_meta.json`.

use gqla_model::{AttentionShape, DecodePath};
use serde::Serialize;

use crate::{calibration::Calibration, geometry::Geometry};

/// One layer's figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerReport {
    /// Index of the layer.
    pub layer: usize,
    /// How many times larger keys without position were than values, before balancing.
    pub ratio: f64,
    /// Share of the key energy on channels that keep their rope.
    pub rope_energy: f64,
    /// Share of the balanced latent energy inside the kept rank.
    pub latent_energy: f64,
    /// Eigenvalues of each rope fold's damped Gram, descending.
    #[serde(skip)]
    pub rope_spectra: Vec<Vec<f64>>,
    /// Eigenvalues of the damped, balanced latent Gram, descending.
    #[serde(skip)]
    pub latent_spectrum: Vec<f64>,
}

/// Cache elements per token and layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CacheElements {
    /// Keys and values of the source, `2 G d`.
    pub source: u64,
    /// One latent row and the rotary key.
    pub mqa_absorb: u64,
    /// Per-group keys and values and the rotary key.
    pub gqa: u64,
}

impl CacheElements {
    /// Counts both sides of a conversion.
    pub fn of(geometry: &Geometry) -> Self {
        let shape: AttentionShape = geometry.latent_shape();
        Self {
            source: 2 * geometry.kv_width() as u64,
            mqa_absorb: shape.kv_elements(DecodePath::MqaAbsorb),
            gqa: shape.kv_elements(DecodePath::Gqa),
        }
    }

    /// Size of the latent cache in percent of the source's.
    pub fn absorb_percent(&self) -> f64 {
        self.mqa_absorb as f64 / self.source as f64 * 100.0
    }
}

/// Everything a conversion was asked for and found. Serialised, it is `gqla_meta.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Always `TransGQLA`.
    pub method: &'static str,
    /// What was converted, as the caller names it.
    pub source: String,
    /// Groups, G.
    pub num_kv_heads: usize,
    /// Query heads per group.
    pub group_size: usize,
    /// r.
    pub kv_lora_rank: usize,
    /// `d_rope`.
    pub qk_rope_head_dim: usize,
    /// F.
    pub freqfold: usize,
    /// C.
    pub collapse: usize,
    /// Multiplies the values' norm before keys are balanced against it.
    pub balance_kv_ratio: f64,
    /// Calibration samples.
    pub calibration_samples: usize,
    /// Tokens per calibration sample.
    pub calibration_length: usize,
    /// SHA-256 of the calibration ids as little-endian u32.
    pub calibration_sha256: String,
    /// Cache sizes before and after.
    pub cache_elements: CacheElements,
    /// One entry per layer.
    pub layers: Vec<LayerReport>,
}

impl Report {
    pub(crate) fn new(source: String, geometry: &Geometry, calibration: &Calibration, balance: f64) -> Self {
        Self {
            method: "TransGQLA",
            source,
            num_kv_heads: geometry.groups(),
            group_size: geometry.heads() / geometry.groups(),
            kv_lora_rank: geometry.rank(),
            qk_rope_head_dim: geometry.rope_dim(),
            freqfold: geometry.freqfold(),
            collapse: geometry.collapse(),
            balance_kv_ratio: balance,
            calibration_samples: calibration.samples(),
            calibration_length: calibration.length(),
            calibration_sha256: calibration.sha256(),
            cache_elements: CacheElements::of(geometry),
            layers: Vec::new(),
        }
    }
}
