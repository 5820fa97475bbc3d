//! Why a GGUF file is refused.

use std::path::PathBuf;

use crate::{ConfigError, MapError};

/// Why a GGUF file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be read.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The bytes are not what the format says.
    #[error("`{}` is damaged: {what}; download it again", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where, what was expected and what was found.
        what: Damage,
    },
    /// A metadata value the engine needs is absent or has another type.
    #[error("`{}` has no metadata `{key}` of type {expected}, without which the model cannot be read", file.display())]
    Metadata {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The type it must have.
        expected: &'static str,
    },
    /// A well-formed file that asks for something the engine does not do.
    #[error("`{}` has {what}, which is not supported: {reason}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The key or tensor with its value.
        what: String,
        /// What would be supported.
        reason: &'static str,
    },
    /// The metadata describes an impossible model.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// What is wrong with the bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Not a GGUF file.
    #[error("it does not begin with `GGUF`")]
    Magic,
    /// The file ends too early.
    #[error("{item} at byte {at} needs {needed} more bytes, {left} are left")]
    Truncated {
        /// What was being read.
        item: String,
        /// Where it begins.
        at: usize,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        left: usize,
    },
    /// A string is not UTF-8.
    #[error("{item} at byte {at} is not UTF-8")]
    NotUtf8 {
        /// What was being read.
        item: String,
        /// Where it begins.
        at: usize,
    },
    /// A type code the format does not define.
    #[error("`{item}` has the {kind} type code {code}, which the format does not define")]
    UnknownType {
        /// The key or tensor.
        item: String,
        /// `value` or `tensor`.
        kind: &'static str,
        /// The code.
        code: u32,
    },
    /// An alignment that is no power of two.
    #[error("general.alignment is {0}, expected a power of two")]
    Alignment(u64),
    /// A name that appears twice.
    #[error("`{0}` appears twice")]
    Twice(String),
    /// A tensor with an impossible shape.
    #[error("tensor `{tensor}` has dimensions {dimensions:?}: {reason}")]
    Dimensions {
        /// The GGUF name.
        tensor: String,
        /// The dimensions, fastest first as in the file.
        dimensions: Vec<u64>,
        /// Why they cannot be.
        reason: &'static str,
    },
    /// A tensor's data lies outside the file.
    #[error("tensor `{tensor}` ends at byte {needed}, the file has {actual}: it is truncated")]
    OutOfBounds {
        /// The GGUF name.
        tensor: String,
        /// One past its last byte.
        needed: u64,
        /// Bytes in the file.
        actual: usize,
    },
}
