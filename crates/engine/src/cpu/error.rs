//! Why a model cannot be run.

use gqla_kernels::MatrixError;
use gqla_model::{DecodePath, ShapeError, SplitError};
use gqla_weights::TensorError;

use super::memory::CacheTooSmall;
use crate::NoDraftLayer;

/// Why a checkpoint cannot be run on the CPU.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The model family has no implementation here.
    #[error(
        "the CPU engine runs model_type `llama`, `llama_gqla` and `glm4_moe_lite`, this checkpoint's config says \
         `{model_type}`: serve it with runtime.kind VLLM, or convert a LLaMA-family model with `gqla convert`"
    )]
    UnsupportedModel {
        /// What config.json says.
        model_type: String,
    },
    /// A variant of a known family that is not implemented.
    #[error("the CPU engine does not run {what}")]
    UnsupportedVariant {
        /// The variant.
        what: String,
    },
    /// A path was asked of a model that has none to choose from.
    #[error(
        "decode path `{path}` was asked for, but this checkpoint has plain grouped-query attention, which decodes \
         only one way: leave the path out, or convert the model with `gqla convert` first"
    )]
    NoSuchPath {
        /// The path.
        path: DecodePath,
    },
    /// A tensor is missing or has another shape than the configuration says.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A layer's weights do not fit together.
    #[error("layer {layer}: {source}")]
    Matrix {
        /// The layer.
        layer: usize,
        /// The arithmetic.
        source: MatrixError,
    },
    /// A layer's groups and heads do not fit together.
    #[error("layer {layer}: {source}")]
    Shape {
        /// The layer.
        layer: usize,
        /// The arithmetic.
        source: ShapeError,
    },
    /// A model-wide matrix is broken.
    #[error("tensor `{name}`: {source}")]
    Head {
        /// Its name.
        name: &'static str,
        /// The arithmetic.
        source: MatrixError,
    },
    /// Heads or groups cannot be divided by the tensor-parallel degree.
    #[error("{0}; choose another tensor-parallel degree")]
    Split(SplitError),
    /// A rank would have nothing to do.
    #[error(
        "tensorParallel={world} and {what}={size}: a rank would get no part of it; choose a smaller degree"
    )]
    TooManyRanks {
        /// The dimension, as config.json calls it.
        what: &'static str,
        /// Its size.
        size: usize,
        /// Ranks.
        world: usize,
    },
    /// The cache would be too small.
    #[error(transparent)]
    CacheTooSmall(#[from] CacheTooSmall),
    /// A model that starts on no absorb path cannot leave it.
    #[error("only a converted model that starts along `mqa-absorb` can change its path while it runs")]
    NotExpandable,
    /// The model cannot draft for itself.
    #[error(transparent)]
    NoDraftLayer(#[from] NoDraftLayer),
    /// No sequence could ever run.
    #[error("{field} is 0, expected at least 1")]
    Zero {
        /// The setting.
        field: &'static str,
    },
    /// The system gave no thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}
