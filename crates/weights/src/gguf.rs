//! Reads GGUF version 3 files of the `llama` architecture.
//!
//! A GGUF file carries everything a directory of Hugging Face files does, differently spelled: names, dimension order
//! (fastest first), the row order of `q` and `k` projections, and block-quantised elements. This module undoes all of
//! that, so that nobody above it needs to know which container a model came from. Format:
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod error;
mod metadata;
mod model;
mod names;
mod quant;
mod reader;
#[cfg(test)]
mod tests;

pub use error::GgufError;
pub(crate) use model::GgufModel;
