//! Why safetensors files are refused.

use std::path::PathBuf;

use super::MAX_HEADER;
use crate::{Dtype, MapError};

/// Why safetensors files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// A file cannot be read.
    #[error(transparent)]
    Map(#[from] MapError),
    /// No weights.
    #[error("`{}` contains no *.safetensors file", dir.display())]
    NoFile {
        /// The directory.
        dir: PathBuf,
    },
    /// Shards without an index.
    #[error(
        "`{}` contains {count} *.safetensors files but no model.safetensors.index.json that says which tensor is \
         where",
        dir.display()
    )]
    SeveralFiles {
        /// The directory.
        dir: PathBuf,
        /// How many files.
        count: usize,
    },
    /// The index is not what it should be.
    #[error("`{}` is not a safetensors index: {source}", file.display())]
    Index {
        /// The index.
        file: PathBuf,
        /// Where parsing stopped.
        source: serde_json::Error,
    },
    /// The index points outside the directory.
    #[error("`{}` names the shard `{file}`, expected a plain file name beside it", index.display())]
    ShardName {
        /// The index.
        index: PathBuf,
        /// The name it gives.
        file: String,
    },
    /// The index promises a tensor the shard does not have.
    #[error("`{}` places tensor `{tensor}` in `{file}`, which does not contain it", index.display())]
    NotInShard {
        /// The index.
        index: PathBuf,
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// The file ends inside its header.
    #[error(
        "`{}` is truncated: its header needs {needed} bytes, the file has {actual}; download it again",
        file.display()
    )]
    Truncated {
        /// The file.
        file: PathBuf,
        /// Bytes up to the end of the header.
        needed: u64,
        /// Bytes in the file.
        actual: u64,
    },
    /// The header claims more than the format allows.
    #[error("`{}` claims a header of {length} bytes, expected at most {MAX_HEADER}: this is not a safetensors file", file.display())]
    HeaderTooLong {
        /// The file.
        file: PathBuf,
        /// The claim.
        length: u64,
    },
    /// The header is not JSON.
    #[error("the header of `{}` is not a JSON object: {source}", file.display())]
    Header {
        /// The file.
        file: PathBuf,
        /// Where parsing stopped.
        source: serde_json::Error,
    },
    /// A tensor's entry is malformed.
    #[error("the header entry of tensor `{tensor}` in `{}` is malformed: {source}", file.display())]
    Entry {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// An element type the engine does not read.
    #[error(
        "tensor `{tensor}` in `{}` has dtype {dtype}, expected F32, F16 or BF16; convert the checkpoint to one of \
         these",
        file.display()
    )]
    UnknownDtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type it claims.
        dtype: String,
    },
    /// Shape, type and byte range contradict each other.
    #[error(
        "tensor `{tensor}` in `{}` claims shape {shape:?} of {dtype}, which its byte range {from}..{to} does not \
         hold",
        file.display()
    )]
    Size {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The claimed type.
        dtype: Dtype,
        /// The claimed shape.
        shape: Vec<usize>,
        /// First byte, from the end of the header.
        from: usize,
        /// One past the last byte.
        to: usize,
    },
    /// The file ends before the tensor does.
    #[error(
        "tensor `{tensor}` in `{}` ends at byte {needed}, the file has {actual}: it is truncated; download it again",
        file.display()
    )]
    OutOfBounds {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// One past the tensor's last byte.
        needed: u64,
        /// Bytes in the file.
        actual: u64,
    },
}
