//! What a model's matrices are kept as.

use gqla_kernels::{Matrix, MatrixError, WeightRows, bf16_unit, instruction_set, int8_unit};

/// What the weights of projections, feed-forward blocks and the vocabulary are kept as. Norms, and the up-projections
/// that turn latents into keys and values, stay as they are, so that both decode paths remain one function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// As the checkpoint stores them: bf16, or f32.
    #[default]
    Stored,
    /// Rounded to int8 with one scale per output when the model is loaded: half the memory of bf16, and half of what a
    /// decoding step reads. Where the processor multiplies int8 ([`int8_unit`]), activations are rounded to 16 bits; elsewhere they
    /// stay f32. A tensor-parallel rank rounds its own part: where a matrix is cut by its
    /// columns, every rank has a scale per output of its columns alone.
    Int8,
}

/// What projections, feed-forward blocks and the vocabulary multiply, and attention over keys and values that are cached in
/// bf16. Up-projections and caches of f32 always take f32; a cache of int8 takes 16 bits where the processor
/// multiplies int8 ([`int8_unit`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// Activations as they are: the same on every machine, to f32 rounding.
    #[default]
    F32,
    /// Activations rounded to bf16 where the weights are bf16 and the processor multiplies bf16 ([`bf16_unit`]), as on a
    /// GPU; f32 elsewhere. Prompts are read several times faster.
    Bf16,
}

/// What a model's numbers are, in memory and in products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Precision {
    /// What weights are kept as.
    pub weights: Weights,
    /// What they are multiplied with.
    pub products: Products,
}

impl Precision {
    /// What multiplies: a unit of the processor for narrow numbers, or its instruction set.
    pub(super) fn instruction_set(self) -> &'static str {
        let unit = match (self.weights, self.products) {
            (Weights::Stored, Products::F32) => None,
            (Weights::Stored, Products::Bf16) => bf16_unit(),
            (Weights::Int8, _) => int8_unit(),
        };
        unit.unwrap_or_else(instruction_set)
    }

    /// Stacks the rows of `parts`, each `[_, inputs]`.
    pub(super) fn stack(self, parts: &[WeightRows<'_>], inputs: usize) -> Result<Matrix, MatrixError> {
        match (self.weights, self.products) {
            (Weights::Stored, Products::F32) => Matrix::stack(parts, inputs),
            (Weights::Stored, Products::Bf16) => Matrix::stack_rounding_inputs(parts, inputs),
            (Weights::Int8, _) => Matrix::stack_int8(parts, inputs),
        }
    }
}
