//! What a model's matrices are kept as.

use gqla_kernels::{
    Matrix, MatrixError, WeightRows, attention, attention::CacheFormat, bf16_unit, instruction_set, int8_unit,
};

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
    /// What multiplies: the processor's instruction set, then its units for narrow numbers, of weights and of the cache.
    pub(super) fn instruction_sets(self, cache: CacheFormat) -> Vec<&'static str> {
        let weights = match (self.weights, self.products) {
            (Weights::Stored, Products::F32) => None,
            (Weights::Stored, Products::Bf16) => bf16_unit(),
            (Weights::Int8, _) => int8_unit(),
        };
        let cache = attention::unit(cache, self.products == Products::Bf16);
        let mut sets: Vec<_> = [Some(instruction_set()), weights, cache].into_iter().flatten().collect();
        sets.dedup();
        sets
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_that_multiplies_is_named_once() {
        let sets = |weights, products, cache| Precision { weights, products }.instruction_sets(cache);
        let expected = |units: [Option<&'static str>; 2]| {
            let mut names = vec![instruction_set()];
            units.into_iter().flatten().for_each(|unit| {
                if !names.contains(&unit) {
                    names.push(unit);
                }
            });
            names
        };
        let dots = |unit: Option<&'static str>, name| unit.map(|_| name);
        let (bf16, int8) = (dots(bf16_unit(), "avx512-bf16"), dots(int8_unit(), "avx512-vnni"));
        for (weights, products, cache, units) in [
            (Weights::Stored, Products::F32, CacheFormat::F32, [None, None]),
            (Weights::Stored, Products::F32, CacheFormat::Bf16, [None, None]),
            (Weights::Stored, Products::F32, CacheFormat::Int8, [None, int8]),
            (Weights::Stored, Products::Bf16, CacheFormat::Bf16, [bf16_unit(), bf16]),
            (Weights::Stored, Products::Bf16, CacheFormat::Int8, [bf16_unit(), int8]),
            (Weights::Int8, Products::F32, CacheFormat::F32, [int8_unit(), None]),
            (Weights::Int8, Products::F32, CacheFormat::Int8, [int8_unit(), int8]),
        ] {
            assert_eq!(sets(weights, products, cache), expected(units), "{weights:?} {products:?} {cache:?}");
        }
    }
}
