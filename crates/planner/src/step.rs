//! A whole decoding step on one rank: everything a token waits for.
//!
//! Per layer a step reads the projections, attends, reads the feed-forward block or the experts its tokens were routed
//! to, and adds up over ranks twice; after the last layer comes the output head. A matrix multiplication takes
//! `max(bytes / bandwidth, FLOPs / peak)`, every kernel costs a launch besides, and `k` drafted tokens cost `k` runs of a
//! prediction layer. Absorb multiplies queries and outputs by the latent's up-projections, which the GQA path spends on new
//! tokens only: that is in the projections.

use gqla_model::{
    AttentionShape, DecodePath, ModelShape, Parameters, SplitError, TensorParallelSplit, WeightFormat,
    launch::{DecodeShape, Limits, plan_decode},
};

use crate::{
    attention::{AttentionModel, AttentionPass, Efficiency},
    gpu::GpuSpec,
    hardware::{Architecture, Hardware},
    kernels::{Backend, Runtime},
};

/// Share of peak bandwidth that weight reads reach: the flat figure of NVIDIA's aiconfigurator.
const GEMM_BANDWIDTH: f64 = 0.8;
/// What one kernel costs before it reads anything, µs, inside a captured graph: aiconfigurator's constant.
const LAUNCH_US: f64 = 3.0;
/// What adding up over ranks costs however small the numbers, µs: published per-call figures are about 10 over NVLink;
/// twice that is assumed over PCIe.
const ALL_REDUCE_US: [f64; 2] = [10.0, 20.0];
/// Share of a link's rate that large messages reach.
const LINK_EFFICIENCY: f64 = 0.8;

/// Bytes of a number of the residual stream, which ranks add up in bf16.
const BYTES_PER_ELEMENT: f64 = 2.0;

/// Where the time of a step goes, µs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTime {
    /// The attention core of all decoder layers.
    pub attention_us: f64,
    /// Query, latent, up- and output projections of all decoder layers.
    pub projections_us: f64,
    /// Feed-forward blocks and experts of all decoder layers.
    pub feed_forward_us: f64,
    /// The output head.
    pub head_us: f64,
    /// Adding up over ranks.
    pub all_reduce_us: f64,
    /// Launches of everything but the attention core, whose kernels have their own floor.
    pub launch_us: f64,
    /// Drafting: every part of the prediction layers' runs.
    pub draft_us: f64,
}

impl StepTime {
    /// The whole step.
    pub fn total_us(&self) -> f64 {
        self.parts().into_iter().map(|(_, us)| us).sum()
    }

    /// The part that takes longest.
    pub fn longest(&self) -> (&'static str, f64) {
        let longest = self.parts().into_iter().max_by(|(_, a), (_, b)| a.total_cmp(b));
        longest.unwrap_or(("attention", 0.0))
    }

    /// Every part with its name.
    pub fn parts(&self) -> [(&'static str, f64); 7] {
        [
            ("attention", self.attention_us),
            ("projections", self.projections_us),
            ("feed-forward", self.feed_forward_us),
            ("output head", self.head_us),
            ("all-reduces", self.all_reduce_us),
            ("launches", self.launch_us),
            ("drafting", self.draft_us),
        ]
    }
}

/// Decoder layers with one number of groups, and how those divide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layers {
    pub(crate) attention: AttentionShape,
    pub(crate) split: TensorParallelSplit,
    pub(crate) count: u32,
}

impl Layers {
    /// All layers of `shape`, most groups first. Every layer has to divide.
    pub(crate) fn of(shape: &ModelShape, path: DecodePath, degree: u32) -> Result<Vec<Self>, SplitError> {
        let layers = |(groups, count)| {
            let attention = AttentionShape { num_key_value_heads: groups, ..shape.attention };
            Ok(Self { attention, split: TensorParallelSplit::new(&attention, path, degree)?, count })
        };
        shape.groups().into_iter().map(layers).collect()
    }

    /// The attention of one rank.
    fn of_rank(&self) -> AttentionShape {
        AttentionShape {
            num_attention_heads: self.split.heads_per_rank,
            num_key_value_heads: self.split.groups_per_rank,
            ..self.attention
        }
    }
}

/// Prices steps of one model on one path and split of one class.
#[derive(Clone, Debug)]
pub(crate) struct StepModel<'a> {
    pub(crate) shape: &'a ModelShape,
    pub(crate) parts: Parameters,
    pub(crate) path: DecodePath,
    /// How the layers with most groups divide.
    pub(crate) split: TensorParallelSplit,
    pub(crate) layers: Vec<Layers>,
    pub(crate) gpu: &'a GpuSpec,
    pub(crate) hardware: Hardware,
    pub(crate) runtime: Runtime,
    pub(crate) backend: Backend,
    pub(crate) efficiency: Efficiency,
}

impl StepModel<'_> {
    /// A step of `batch` sequences with `context` cached tokens each that verifies `drafts` drafted tokens. `attention`
    /// prices this path, `absorb` the latent path that prediction layers with groups of their own are cached on.
    pub(crate) fn step(
        &self,
        attention: &AttentionModel<'_>,
        absorb: &AttentionModel<'_>,
        drafts: u32,
        batch: u32,
        context: u32,
    ) -> (StepTime, AttentionPass) {
        let query_tokens = drafts.saturating_add(1);
        let pass_of = |shape, split| attention.pass(shape, split, query_tokens, batch, context);
        let passes: Vec<_> = self
            .layers
            .iter()
            .map(|layers| (pass_of(&layers.attention, layers.split), layers.count))
            .collect();
        let pass =
            AttentionPass::average(&passes).unwrap_or_else(|| pass_of(&self.shape.attention, self.split));
        let mut step = self.forward(f64::from(batch) * f64::from(query_tokens));
        step.attention_us = pass.ns * f64::from(self.shape.num_hidden_layers) / 1e3;
        if drafts > 0 {
            let model = if self.own_groups() { absorb } else { attention };
            let core = model.pass(&self.shape.attention, self.split, 1, batch, context);
            step.draft_us = f64::from(drafts) * (self.draft_us(f64::from(batch)) + core.ns / 1e3);
        }
        (step, pass)
    }

    /// Why the weights' format cannot be computed here, if it cannot.
    pub(crate) fn format_obstacle(&self) -> Option<String> {
        let fp8 = self.hardware.architecture.has_fp8();
        match (self.shape.weights.weight_format, self.runtime) {
            (WeightFormat::Fp8Block, Runtime::Native) => Some(
                "the weights are block-fp8, for which the native runtime has no kernel; convert them to bf16"
                    .to_owned(),
            ),
            (WeightFormat::Fp8Block, Runtime::Vllm) if !fp8 => Some(format!(
                "the weights are block-fp8, and {} {} fp8 tensor cores; convert them to bf16",
                self.gpu.name,
                if self.hardware.architecture == Architecture::Unknown {
                    "is not known to have"
                } else {
                    "has no"
                },
            )),
            _ => None,
        }
    }

    /// Why the native runtime has no kernel that attends here, if it has none: what its pods would refuse to start for. A kernel is
    /// chosen for the query tokens of a step of `drafts` drafts.
    pub(crate) fn kernel_obstacle(&self, drafts: u32) -> Option<String> {
        let architecture = self.hardware.architecture;
        if (self.runtime, self.backend) != (Runtime::Native, Backend::OfClass)
            || architecture == Architecture::Cpu
        {
            return None;
        }
        let capability = self.hardware.capability;
        let limits = Limits::of(capability.map(|known| (known.major.into(), known.minor.into())));
        let refused = |layers: &Layers| {
            let shape = DecodeShape::of(&layers.of_rank());
            plan_decode(&shape, self.path, drafts.saturating_add(1), limits).err()
        };
        self.layers.iter().find_map(refused).map(|reason| reason.to_string())
    }

    /// Why the engine would compute this split wrongly, if it would. The plugin for vLLM divides the rows of `kv_b_proj`
    /// evenly, whatever they belong to.
    pub(crate) fn split_obstacle(&self) -> Option<String> {
        if self.path != DecodePath::Gqa || self.runtime != Runtime::Vllm {
            return None;
        }
        let cut = self.layers.iter().find(|layers| layers.split.replication > 1);
        cut.map(|layers| {
            let groups = layers.attention.num_key_value_heads;
            format!(
                "tensorParallel={} exceeds numKeyValueHeads={groups}, and the plugin for vLLM cuts groups in pieces then: use a \
                 divisor of {groups}, the absorb path or the native runtime",
                self.split.degree
            )
        })
    }

    /// Whether prediction layers have groups of their own.
    pub(crate) fn own_groups(&self) -> bool {
        let own = self.shape.weights.nextn_key_value_heads;
        own.is_some_and(|groups| groups != self.shape.attention.num_key_value_heads)
    }

    /// All layers and the head for `tokens` tokens, without the attention core.
    pub(crate) fn forward(&self, tokens: f64) -> StepTime {
        let layers = f64::from(self.parts.dense_layers) + f64::from(self.parts.expert_layers);
        StepTime {
            projections_us: self
                .layers
                .iter()
                .map(|layers| {
                    f64::from(layers.count)
                        * self.projections_us(layers.attention.num_key_value_heads, tokens)
                })
                .sum(),
            feed_forward_us: f64::from(self.parts.dense_layers) * self.dense_us(tokens)
                + f64::from(self.parts.expert_layers) * self.experts_us(tokens),
            head_us: self.head_us(tokens),
            all_reduce_us: (2.0 * layers + 1.0) * self.all_reduce_us(tokens),
            launch_us: self.launches() * self.launch_us(),
            ..StepTime::default()
        }
    }

    /// One run of a prediction layer for `tokens` tokens, without its attention core.
    fn draft_us(&self, tokens: f64) -> f64 {
        let has_experts = self.parts.expert_layers > 0;
        let joined = self.parts.nextn_projection as f64;
        let feed_forward = if has_experts { self.experts_us(tokens) } else { self.dense_us(tokens) };
        let kernels = self.layer_launches(has_experts) + 4.0;
        self.gemm_us(joined, joined, tokens)
            + self.projections_us(self.shape.attention.num_key_value_heads, tokens)
            + feed_forward
            + self.head_us(tokens)
            + 3.0 * self.all_reduce_us(tokens)
            + kernels * self.launch_us()
    }

    /// Query and latent projections, the up-projections of this path, the output projection of a layer with `groups`.
    fn projections_us(&self, groups: u32, tokens: f64) -> f64 {
        let attention = &self.parts.attention;
        let ranks = f64::from(self.split.degree);
        let replicated = (attention.query_down + attention.latent) as f64;
        let divided = (attention.query_up + attention.output) as f64 / ranks;
        let per_group = self.shape.attention.expansion_weights() as f64;
        let read = self.expansions_held(groups) * per_group;
        let multiplied = match self.path {
            DecodePath::Gqa => read,
            DecodePath::MqaAbsorb => f64::from(self.split.heads_per_rank) * per_group,
        };
        self.gemm_us(replicated + divided, replicated + divided, tokens)
            + self.gemm_us(read, multiplied, tokens)
    }

    /// Groups whose up-projections this rank holds of a layer with `groups`. The plugin for vLLM repeats a group's for each of its
    /// heads on the absorb path; our kernels batch the heads instead.
    pub(crate) fn expansions_held(&self, groups: u32) -> f64 {
        match (self.path, self.runtime) {
            (DecodePath::MqaAbsorb, Runtime::Vllm) => self.split.heads_per_rank.into(),
            _ => (f64::from(groups) / f64::from(self.split.degree)).max(1.0),
        }
    }

    fn dense_us(&self, tokens: f64) -> f64 {
        let weights = self.parts.dense as f64 / f64::from(self.split.degree);
        self.gemm_us(weights, weights, tokens)
    }

    fn experts_us(&self, tokens: f64) -> f64 {
        let Some(experts) = self.shape.weights.experts else { return 0.0 };
        let ranks = f64::from(self.split.degree);
        let expert = self.parts.expert as f64 / ranks;
        let always = self.parts.router as f64 + self.parts.shared_experts as f64 / ranks;
        let touched = experts.expected_distinct(tokens);
        let read = touched * expert;
        // Every expert's tokens are padded to a tile of their own.
        let per_expert = tokens * f64::from(experts.num_experts_per_tok) / touched.max(1.0);
        self.gemm_us(read, read, per_expert) + self.gemm_us(always, always, tokens)
    }

    fn head_us(&self, tokens: f64) -> f64 {
        let weights = self.parts.head as f64 / f64::from(self.split.degree);
        self.gemm_us(weights, weights, tokens)
    }

    /// A product of `tokens` rows with `multiplied` weights, of which `read` are read.
    fn gemm_us(&self, read: f64, multiplied: f64, tokens: f64) -> f64 {
        let format = self.shape.weights.weight_format;
        let (bandwidth, arithmetic, rows) = match self.efficiency {
            Efficiency::Peak => (1.0, 1.0, tokens),
            Efficiency::Calibrated => {
                let rows = (tokens / self.tile()).ceil() * self.tile();
                (GEMM_BANDWIDTH, self.gemm_arithmetic(), rows)
            }
        };
        let memory = read * format.bytes_per_element() / (self.gpu.bytes_per_second * bandwidth);
        let compute = 2.0 * multiplied * rows / (self.gpu.flops_per_second * arithmetic);
        memory.max(compute) * 1e6
    }

    /// Rows a matrix instruction computes when weights are its other operand.
    fn tile(&self) -> f64 {
        if self.hardware.architecture == Architecture::Cpu { 1.0 } else { 8.0 }
    }

    /// Share of peak arithmetic of a large product. cuBLAS-like libraries are taken at 0.7; a CPU at 0.6.
    fn gemm_arithmetic(&self) -> f64 {
        match self.hardware.architecture {
            Architecture::Cpu => 0.6,
            Architecture::Unknown => 0.4,
            _ => 0.7,
        }
    }

    fn launch_us(&self) -> f64 {
        match (self.efficiency, self.hardware.architecture) {
            (Efficiency::Peak, _) | (_, Architecture::Cpu) => 0.0,
            _ => LAUNCH_US,
        }
    }

    /// Kernels of a step besides the attention core.
    fn launches(&self) -> f64 {
        f64::from(self.parts.dense_layers) * self.layer_launches(false)
            + f64::from(self.parts.expert_layers) * self.layer_launches(true)
            + 2.0
    }

    /// Norm, query, latent, append, up-projections and output; then norm, gate and up, down for a dense block, or
    /// norm, router, choice, permutation, two products, combination and two for shared experts.
    fn layer_launches(&self, experts: bool) -> f64 {
        let queries = if self.parts.attention.query_down > 0 { 2.0 } else { 1.0 };
        let projections = match self.path {
            DecodePath::MqaAbsorb => 6.0,
            DecodePath::Gqa => 5.0,
        };
        queries + projections + if experts { 9.0 } else { 3.0 }
    }

    /// Adding up `tokens` rows of the residual stream over the ranks.
    fn all_reduce_us(&self, tokens: f64) -> f64 {
        let ranks = f64::from(self.split.degree);
        if self.split.degree <= 1 {
            return 0.0;
        }
        let bytes = tokens * f64::from(self.shape.hidden_size) * BYTES_PER_ELEMENT;
        let (floor, share) = match self.efficiency {
            Efficiency::Peak => (0.0, 1.0),
            Efficiency::Calibrated => (ALL_REDUCE_US[usize::from(!self.hardware.nvlink)], LINK_EFFICIENCY),
        };
        // A ring sends and receives every byte nearly twice, and a link's rate counts both directions.
        let rate = self.hardware.link_bytes_per_second / 2.0 * share;
        floor + 2.0 * (ranks - 1.0) / ranks * bytes / rate * 1e6
    }

    /// Time to read a prompt of `tokens` tokens into the cache, µs. Both paths compute it per group, so it does not
    /// depend on the path; a causal token attends to half the prompt on average.
    pub(crate) fn prefill_us(&self, tokens: u32) -> f64 {
        let length = f64::from(tokens);
        let per_group = Self { path: DecodePath::Gqa, ..self.clone() };
        let head = f64::from(self.split.heads_per_rank)
            * self.shape.attention.flops_per_head(DecodePath::Gqa) as f64;
        let arithmetic = match self.efficiency {
            Efficiency::Peak => 1.0,
            Efficiency::Calibrated => self.gemm_arithmetic(),
        };
        let attention = head * length * length / 2.0 * f64::from(self.shape.num_hidden_layers);
        let forward = per_group.forward(length);
        // Only the last token needs logits.
        forward.total_us() - forward.head_us
            + self.head_us(1.0)
            + attention / (self.gpu.flops_per_second * arithmetic) * 1e6
    }
}

#[cfg(test)]
mod tests;
