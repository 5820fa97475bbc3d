//! Reads checkpoints by memory map, and writes converted ones.
//!
//! A checkpoint is a promise made by files nobody here wrote: a directory of safetensors with a `config.json`, or one
//! GGUF file. [`Checkpoint::open`] turns it into something the engine can rely on. Every offset is checked before it
//! is used, every tensor is compared with the shape the configuration implies, and whatever does not hold is refused
//! with the file, the tensor, and the expected and actual numbers. Tensors are called by their Hugging Face names
//! whatever the container.
//!
//! Unsafe code is limited to mapping a file into memory (`mmap.rs`).

mod checkpoint;
mod config;
mod dtype;
mod gguf;
mod layout;
mod mmap;
mod safetensors;
mod tensor;
mod tokenizer;
mod writer;

pub use checkpoint::{Checkpoint, Expert, OpenError, ShapeOfCheckpointError};
pub use config::{AttentionConfig, ConfigError, FeedForward, ModelConfig};
pub use dtype::Dtype;
pub use gguf::GgufError;
pub use layout::LayoutError;
pub use mmap::MapError;
pub use safetensors::SafetensorsError;
pub use tensor::{Tensor, TensorError};
pub use tokenizer::{ChatTemplateSource, Detokenizer, Tokenizer, TokenizerError};
pub use writer::{CheckpointWriter, Sidecars, TensorSpec, WriteError};
