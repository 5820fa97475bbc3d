//! The attention core on one rank: what it reads, what it computes, and which of the two takes longer.
//!
//! One pass of decode attention visits every cached token of every layer. Per visited token and layer a rank reads
//! the token's cache row once and spends FLOPs for each of its heads and each of the `s_q` query tokens of the pass:
//!
//! | path | bytes | FLOPs |
//! |---|---|---|
//! | absorb | `2 (r + d_rope)` | `2 (H/TP) s_q (2r + d_rope)` |
//! | GQA | `2 (G_l (d_nope + d_v) + d_rope)`, `G_l = max(1, G/TP)` | `2 (H/TP) s_q (d_nope + d_rope + d_v)` |
//!
//! Those are bytes in bf16 with one rope key for all groups; [`CacheLayout`] has the others, an int8 cache's scales among
//! them. The pass takes `max(bytes / bandwidth, FLOPs / peak)`. These are peak rates; what kernels make of them is
//! [`crate::kernel`]'s business, and projections, weight reads and all-reduces are [`crate::step`]'s.

use gqla_model::{AttentionShape, CacheFormat, CachedToken, DecodePath, TensorParallelSplit};

use crate::gpu::GpuSpec;

/// How the GQA path lays out the rotary key in its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// All groups read one copy, as our engine stores it.
    Shared,
    /// Each group carries its own copy, as the paper's comparison stores it.
    PerGroup,
    /// Each group carries its own copy and values as wide as its keys, as the plugin for vLLM stores them: the kernels it
    /// calls know one width.
    Padded,
}

/// What a cache holds per token, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLayout {
    /// Copies of the rotary key on the GQA path.
    pub rope: RopeLayout,
    /// What numbers are stored as.
    pub format: CacheFormat,
}

impl CacheLayout {
    /// What published comparisons assume: bf16, and one rotary key for all groups.
    pub const PUBLISHED: Self = Self { rope: RopeLayout::Shared, format: CacheFormat::Bf16 };

    /// Cache bytes per token and layer of one rank.
    pub(crate) fn bytes(self, shape: &AttentionShape, path: DecodePath, split: TensorParallelSplit) -> u64 {
        let parts = shape.cached_token_of_groups(path, split.groups_per_rank).parts;
        CachedToken { elements: kv_elements(shape, path, split, self.rope), parts }.bytes(self.format)
    }
}

/// Which side of the ridge a pass is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Reading the cache takes longer.
    Memory,
    /// Computing on it takes longer.
    Compute,
    /// What a call costs before it reads the first byte takes longest.
    Launch,
}

impl Bound {
    /// `memory`, `compute` or `launch`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Compute => "compute",
            Self::Launch => "launch",
        }
    }
}

/// Cost of one attention pass per cached token and layer on one rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionCore {
    /// Bytes read per cached token and layer.
    pub bytes: u64,
    /// FLOPs per cached token and layer, for all query tokens of the pass.
    pub flops: u64,
    /// `flops / bytes`, FLOP per byte; compare with [`GpuSpec::ridge`].
    pub intensity: f64,
    /// What limits the pass.
    pub bound: Bound,
    /// Nanoseconds of the pass per cached token and layer.
    pub pass_ns: f64,
    /// [`Self::pass_ns`] divided by the query tokens of the pass.
    pub ns_per_query_token: f64,
}

impl AttentionCore {
    /// The cost on `gpu` of a pass with `query_tokens` (`s_q`, at least 1) under `split`.
    pub fn new(
        shape: &AttentionShape,
        path: DecodePath,
        split: TensorParallelSplit,
        query_tokens: u32,
        layout: CacheLayout,
        gpu: &GpuSpec,
    ) -> Self {
        let query_tokens = u64::from(query_tokens.max(1));
        let bytes = layout.bytes(shape, path, split);
        let flops = u64::from(split.heads_per_rank)
            .saturating_mul(query_tokens)
            .saturating_mul(flops_per_head(shape, path, layout.rope));
        let memory_ns = bytes as f64 / gpu.bytes_per_second * 1e9;
        let compute_ns = flops as f64 / gpu.flops_per_second * 1e9;
        let pass_ns = memory_ns.max(compute_ns);
        Self {
            bytes,
            flops,
            intensity: flops as f64 / bytes as f64,
            bound: if compute_ns > memory_ns { Bound::Compute } else { Bound::Memory },
            pass_ns,
            ns_per_query_token: pass_ns / query_tokens as f64,
        }
    }
}

/// Cache elements per token and layer of one rank. The latent of the absorb path has one rope key in any layout.
fn kv_elements(
    shape: &AttentionShape,
    path: DecodePath,
    split: TensorParallelSplit,
    layout: RopeLayout,
) -> u64 {
    let shared = split.kv_elements_per_rank(shape, path);
    match (path, layout) {
        (DecodePath::MqaAbsorb, _) | (DecodePath::Gqa, RopeLayout::Shared) => shared,
        (DecodePath::Gqa, RopeLayout::PerGroup) => {
            let copies = u64::from(split.groups_per_rank.saturating_sub(1));
            shared.saturating_add(copies.saturating_mul(shape.qk_rope_head_dim.into()))
        }
        (DecodePath::Gqa, RopeLayout::Padded) => {
            u64::from(split.groups_per_rank).saturating_mul(2 * padded_width(shape))
        }
    }
}

/// FLOPs one head spends on one cached token; padding is multiplied too.
pub(crate) fn flops_per_head(shape: &AttentionShape, path: DecodePath, layout: RopeLayout) -> u64 {
    match (path, layout) {
        (DecodePath::Gqa, RopeLayout::Padded) => 4 * padded_width(shape),
        _ => shape.flops_per_head(path),
    }
}

/// The width of keys and values where both have the wider one's.
fn padded_width(shape: &AttentionShape) -> u64 {
    let keys = u64::from(shape.qk_nope_head_dim) + u64::from(shape.qk_rope_head_dim);
    keys.max(shape.v_head_dim.into())
}

#[cfg(test)]
mod tests;
