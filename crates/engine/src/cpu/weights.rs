//! What a model's matrices are kept as.

use gqla_kernels::{Matrix, MatrixError, WeightRows};

/// What the weights of projections, feed-forward blocks and the vocabulary are kept as. Norms, and the up-projections
/// that turn latents into keys and values, stay as they are, so that both decode paths remain one function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// As the checkpoint stores them: bf16, or f32.
    #[default]
    Stored,
    /// Rounded to int8 with one scale per output when the model is loaded: half the memory of bf16, and half of what a
    /// decoding step reads. Activations stay f32. A tensor-parallel rank rounds its own part: where a matrix is cut by its
    /// columns, every rank has a scale per output of its columns alone.
    Int8,
}

impl Weights {
    /// Stacks the rows of `parts`, each `[_, inputs]`.
    pub(super) fn stack(self, parts: &[WeightRows<'_>], inputs: usize) -> Result<Matrix, MatrixError> {
        match self {
            Self::Stored => Matrix::stack(parts, inputs),
            Self::Int8 => Matrix::stack_int8(parts, inputs),
        }
    }
}
