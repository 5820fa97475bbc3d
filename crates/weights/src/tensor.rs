//! One tensor of a checkpoint.

mod slice;

use std::{
    borrow::Cow,
    ops::Range,
    path::{Path, PathBuf},
};

use crate::Dtype;

/// A row-major tensor: `shape` is `[out, in]` for matrices, as Hugging Face stores them.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Element type of [`Self::bytes`].
    pub dtype: Dtype,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
    name: String,
    file: &'a Path,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    /// `bytes` must hold exactly `shape` elements of `dtype`; the containers check that when they open.
    pub(crate) fn new(
        name: &str,
        file: &'a Path,
        dtype: Dtype,
        shape: Vec<usize>,
        bytes: Cow<'a, [u8]>,
    ) -> Self {
        debug_assert_eq!(bytes.len(), shape.iter().product::<usize>() * dtype.size());
        Self { dtype, shape, name: name.to_owned(), file, bytes }
    }

    /// The Hugging Face name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether a dimension is zero.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements as stored: little-endian, row-major, of any alignment.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The elements widened to f32; exact for every [`Dtype`].
    pub fn to_f32(&self) -> Vec<f32> {
        self.dtype.decode(&self.bytes)
    }

    /// Entry `index` of the first dimension: one expert of a tensor that holds all of a layer.
    ///
    /// # Errors
    /// [`TensorError::NoPart`].
    pub(crate) fn part(self, index: usize) -> Result<Self, TensorError> {
        let parts = self.shape.first().copied().unwrap_or(0);
        if index >= parts {
            return Err(TensorError::NoPart { file: self.file.to_owned(), name: self.name, index, parts });
        }
        let size = self.bytes.len() / parts;
        let range = index * size..(index + 1) * size;
        let bytes = match self.bytes {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[range]),
            Cow::Owned(bytes) => Cow::Owned(bytes[range].to_vec()),
        };
        let name = format!("{}[{index}]", self.name);
        Ok(Self::new(&name, self.file, self.dtype, self.shape[1..].to_vec(), bytes))
    }

    /// Passes the tensor through if it has the shape its reader needs.
    pub fn expect_shape(self, expected: &[usize]) -> Result<Self, TensorError> {
        if self.shape == expected {
            return Ok(self);
        }
        Err(TensorError::Shape {
            file: self.file.to_owned(),
            name: self.name,
            expected: expected.to_vec(),
            actual: self.shape,
        })
    }
}

/// Why a tensor could not be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The checkpoint has no tensor of that name.
    #[error(
        "`{}` has no tensor `{name}`: the checkpoint is incomplete or of another architecture",
        file.display()
    )]
    Missing {
        /// The checkpoint.
        file: PathBuf,
        /// The Hugging Face name asked for.
        name: String,
    },
    /// A part was asked for that the tensor does not have.
    #[error("tensor `{name}` in `{}` has {size} {what}, there are none of {range:?}", file.display())]
    Outside {
        /// The file that holds it.
        file: PathBuf,
        /// Its Hugging Face name.
        name: String,
        /// Rows or columns.
        what: &'static str,
        /// Those asked for.
        range: Range<usize>,
        /// Those there are.
        size: usize,
    },
    /// A tensor of all experts holds fewer.
    #[error("tensor `{name}` in `{}` holds {parts} matrices, there is none of index {index}", file.display())]
    NoPart {
        /// The file that holds it.
        file: PathBuf,
        /// Its Hugging Face name.
        name: String,
        /// The entry asked for.
        index: usize,
        /// Entries it has.
        parts: usize,
    },
    /// The tensor does not have the shape its reader needs.
    #[error("tensor `{name}` in `{}` has shape {actual:?}, expected {expected:?}", file.display())]
    Shape {
        /// The file that holds it.
        file: PathBuf,
        /// Its Hugging Face name.
        name: String,
        /// What the reader needs.
        expected: Vec<usize>,
        /// What the file says.
        actual: Vec<usize>,
    },
}
