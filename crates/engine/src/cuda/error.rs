//! Why a model cannot be run on a GPU.

use gqla_kernels::device::{DeviceError, NoKernel};
use gqla_weights::TensorError;

use crate::{NoDraftLayer, cpu::CacheTooSmall};

/// Why a checkpoint cannot be run on a GPU.
#[derive(Debug, thiserror::Error)]
pub enum CudaLoadError {
    /// The model family has no implementation here.
    #[error(
        "the CUDA engine runs model_type `llama_gqla` and `glm4_moe_lite`, this checkpoint's config says `{model_type}`: \
         convert a LLaMA-family model with `gqla convert`, serve it with runtime.kind VLLM, or use the CPU"
    )]
    UnsupportedModel {
        /// What config.json says.
        model_type: String,
    },
    /// A variant of a known family that is not implemented.
    #[error("the CUDA engine does not run {what}")]
    UnsupportedVariant {
        /// The variant.
        what: String,
    },
    /// The model cannot draft for itself.
    #[error(transparent)]
    NoDraftLayer(#[from] NoDraftLayer),
    /// A tensor is missing or has another shape than the configuration says.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The device cannot.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The architecture has no kernel for the model.
    #[error(transparent)]
    NoKernel(#[from] NoKernel),
    /// The cache would be too small.
    #[error(transparent)]
    CacheTooSmall(#[from] CacheTooSmall),
    /// A model that starts on no absorb path cannot leave it.
    #[error(
        "only a model that starts along `mqa-absorb` can change its path while it runs: take that path, or unset \
         `expandable`"
    )]
    NotExpandable,
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
