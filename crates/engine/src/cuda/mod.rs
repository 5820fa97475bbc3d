//! The CUDA backend: models with latent attention, dense or of experts, in bf16 on one GPU, along either path.
//!
//! The residual stream and all sums are f32, everything between is bf16, and so are the weights, whatever the checkpoint
//! has. A step is launched kernel by kernel; tokens are chosen on the device, so that of logits only what was asked for leaves
//! it. Dense models have run on an H200, mixtures of experts and prediction layers on no GPU.

mod draft;
mod engine;
mod error;
mod expand;
mod feed_forward;
mod forward;
mod load;
mod model;
mod step;
#[cfg(test)]
mod tests;

pub use engine::{CudaEngine, CudaEngineConfig};
pub use error::CudaLoadError;
/// Where the kernels' images come from.
pub use gqla_kernels::device::Images;
/// How prompts are computed.
pub use gqla_kernels::device::{PromptAttention, PromptGemm};
pub use model::CudaModel;
