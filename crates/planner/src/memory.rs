//! What fits on one device: the rank's share of the weights first, then as many cached tokens as the rest holds.

use std::fmt;

use gqla_model::{DecodePath, ModelShape, TensorParallelSplit};

use crate::{gpu::GpuSpec, plan::Goal, roofline::BYTES_PER_ELEMENT};

/// Memory of one rank, in bytes. Weights are taken to divide evenly over the ranks; activations, graphs and the
/// allocator live in what [`Goal::memory_fraction`] leaves free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Memory {
    weights: u64,
    ranks: u32,
    weights_per_rank: u64,
    device: u64,
    fraction: f64,
    usable: u64,
    bytes_per_token: u64,
}

impl Memory {
    /// The budget of a rank whose cache also serves `drafts` prediction layers.
    pub(crate) fn new(
        shape: &ModelShape,
        path: DecodePath,
        split: TensorParallelSplit,
        drafts: u32,
        gpu: &GpuSpec,
        goal: &Goal,
    ) -> Self {
        let weights = shape.parameters.saturating_mul(BYTES_PER_ELEMENT);
        let layers = u64::from(shape.num_hidden_layers) + u64::from(drafts);
        let bytes_per_token_layer = BYTES_PER_ELEMENT * split.kv_elements_per_rank(&shape.attention, path);
        Self {
            weights,
            ranks: split.degree,
            weights_per_rank: weights.div_ceil(u64::from(split.degree)),
            device: gpu.memory_bytes,
            fraction: goal.memory_fraction,
            usable: (gpu.memory_bytes as f64 * goal.memory_fraction) as u64,
            bytes_per_token: bytes_per_token_layer * layers,
        }
    }

    /// Cached tokens that fit beside the weights.
    pub(crate) fn capacity_tokens(&self) -> u64 {
        self.usable.saturating_sub(self.weights_per_rank) / self.bytes_per_token
    }

    /// Why a sequence of `context_length` tokens does not fit, if it does not.
    pub(crate) fn shortage(&self, context_length: u32) -> Option<String> {
        if self.weights_per_rank > self.usable {
            return Some(format!(
                "bf16 weights of {} over {} = {} per GPU, but {} of {} = {} can be used: {} short",
                Gib(self.weights),
                ranks(self.ranks),
                Gib(self.weights_per_rank),
                self.fraction,
                Gib(self.device),
                Gib(self.usable),
                Gib(self.weights_per_rank - self.usable),
            ));
        }
        let capacity = self.capacity_tokens();
        (capacity < u64::from(context_length)).then(|| {
            format!(
                "beside {} of weights per GPU, {} of {} leave {} for the cache: {capacity} tokens of {} B, \
                 fewer than one sequence of {context_length}",
                Gib(self.weights_per_rank),
                self.fraction,
                Gib(self.device),
                Gib(self.usable - self.weights_per_rank),
                self.bytes_per_token,
            )
        })
    }
}

fn ranks(count: u32) -> String {
    if count == 1 { "1 GPU".to_owned() } else { format!("{count} GPUs") }
}

/// Bytes, printed in GiB with one decimal.
struct Gib(u64);

impl fmt::Display for Gib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} GiB", self.0 as f64 / f64::from(1 << 30))
    }
}
