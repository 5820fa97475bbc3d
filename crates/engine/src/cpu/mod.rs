//! The CPU backend: LLaMA-family models, plain or converted, and GLM with its mixture of experts, in f32 arithmetic over
//! the checkpoint's own weights, unless [`Precision`] says otherwise.
//!
//! A latent model decodes along either path; the paths are two implementations of
//! [`Attention`](gqla_kernels::attention::Attention) over one set of weights. A plain model has one path.
//!
//! A model may be divided over tensor-parallel ranks: a `shard` is what one rank loads, `ranks` are the threads that step
//! together, `comm` is how they add up what each computed.

mod comm;
mod draft;
mod engine;
mod error;
mod feed_forward;
mod forward;
mod load;
pub(crate) mod memory;
mod model;
mod projection;
mod ranks;
mod shard;
mod weights;

pub use comm::CommError;
pub use engine::{CpuEngine, CpuEngineConfig, NotExpandable};
pub use error::LoadError;
pub use gqla_kernels::attention::CacheFormat;
/// Timing of the kernels this backend runs, for benchmarks and for the choice of a path.
pub use gqla_kernels::{InstructionSet, Pool, WeightFormat, bf16_unit, measure};
pub use memory::{CacheMemory, CacheTooSmall};
pub use model::{LogitsError, Model};
pub use weights::{Precision, Products, Weights};
