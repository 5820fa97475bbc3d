//! What a model's weights consist of, as far as its `config.json` says.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{AttentionShape, ShapeError, shape::within};

const WIDTH: RangeInclusive<u64> = 1..=1_048_576;
const VOCABULARY: RangeInclusive<u64> = 1..=16_777_216;
const EXPERTS: RangeInclusive<u64> = 1..=65_536;
const SHARED_EXPERTS: RangeInclusive<u64> = 0..=1024;
const LAYERS: RangeInclusive<u64> = 0..=1024;

/// How the weights divide over projections, feed-forward blocks, experts and the vocabulary. Every field may be absent:
/// then the planner takes all weights to be dense and read in every step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightShape {
    /// Rank of a factored query projection; absent means one full `q_proj`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub q_lora_rank: Option<u32>,
    /// Width of the dense feed-forward block.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub intermediate_size: Option<u32>,
    /// Rows of the embedding and of the output head.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub vocab_size: Option<u32>,
    /// Whether the output head is the embedding.
    #[serde(skip_serializing_if = "is_false")]
    pub tie_word_embeddings: bool,
    /// The mixture of experts, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertShape>,
    /// How the weights are stored.
    #[serde(skip_serializing_if = "WeightFormat::is_default")]
    pub weight_format: WeightFormat,
    /// Groups of the multi-token-prediction layers where they differ from the decoder's: a grafted layer keeps one
    /// group per head.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub nextn_key_value_heads: Option<u32>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// A mixture of experts in every layer but the first few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExpertShape {
    /// Experts a token is routed among.
    #[schemars(range(min = 1, max = 65_536))]
    pub n_routed_experts: u32,
    /// Experts one token uses.
    #[schemars(range(min = 1, max = 65_536))]
    pub num_experts_per_tok: u32,
    /// Experts every token uses.
    #[serde(default)]
    #[schemars(range(max = 1024))]
    pub n_shared_experts: u32,
    /// Width of one expert.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub moe_intermediate_size: u32,
    /// Leading layers with a dense feed-forward block instead.
    #[serde(default)]
    #[schemars(range(max = 1024))]
    pub first_k_dense_replace: u32,
}

/// How a token finds its experts: the sigmoid of each expert's logit is its score, a learned bias is added for the
/// choice alone (`noaux_tc`), and the scores of the chosen weigh their outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Equal groups the experts fall into, in order.
    pub n_group: u32,
    /// Groups a token chooses its experts from: those with the largest sums of their two best experts.
    pub topk_group: u32,
    /// Whether the chosen experts' weights are divided by their sum.
    pub norm_topk_prob: bool,
    /// What the weights are multiplied by in the end.
    pub routed_scaling_factor: f32,
}

/// How weights are stored, and so what kernels have to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WeightFormat {
    /// Two bytes per weight.
    #[default]
    #[serde(rename = "BF16")]
    Bf16,
    /// One byte per weight and a 32-bit scale per 128 × 128 block, as DeepSeek-V3 is published.
    #[serde(rename = "FP8Block")]
    Fp8Block,
}

impl WeightFormat {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Bytes per weight, scales included.
    pub const fn bytes_per_element(self) -> f64 {
        match self {
            Self::Bf16 => 2.0,
            Self::Fp8Block => 1.0 + 4.0 / (128.0 * 128.0),
        }
    }

    /// `bf16` or `block-fp8`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp8Block => "block-fp8",
        }
    }
}

impl WeightShape {
    /// Refuses numbers no checkpoint can have.
    pub(crate) fn validate(&self, attention: &AttentionShape) -> Result<(), ShapeError> {
        let fields = [
            ("qLoraRank", self.q_lora_rank, WIDTH),
            ("intermediateSize", self.intermediate_size, WIDTH),
            ("vocabSize", self.vocab_size, VOCABULARY),
        ];
        for (field, value, limits) in fields {
            value.map_or(Ok(()), |value| within(field, value, limits))?;
        }
        if let Some(groups) = self.nextn_key_value_heads {
            AttentionShape { num_key_value_heads: groups, ..*attention }.validate()?;
        }
        self.experts.map_or(Ok(()), |experts| experts.validate())
    }
}

impl ExpertShape {
    /// Refuses numbers no checkpoint can have.
    pub fn validate(&self) -> Result<(), ShapeError> {
        within("experts.nRoutedExperts", self.n_routed_experts, EXPERTS)?;
        within("experts.numExpertsPerTok", self.num_experts_per_tok, 1..=self.n_routed_experts.into())?;
        within("experts.nSharedExperts", self.n_shared_experts, SHARED_EXPERTS)?;
        within("experts.moeIntermediateSize", self.moe_intermediate_size, WIDTH)?;
        within("experts.firstKDenseReplace", self.first_k_dense_replace, LAYERS)
    }

    /// Expected number of different routed experts that `tokens` tokens use in one layer, if every token chooses
    /// independently: `E (1 - (1 - k/E)^tokens)`.
    pub fn expected_distinct(&self, tokens: f64) -> f64 {
        let experts = f64::from(self.n_routed_experts.max(1));
        let missed = 1.0 - f64::from(self.num_experts_per_tok.min(self.n_routed_experts)) / experts;
        experts * (1.0 - missed.powf(tokens.max(0.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_touched_are_those_of_the_published_table() {
        let glm = ExpertShape {
            n_routed_experts: 64,
            num_experts_per_tok: 4,
            n_shared_experts: 1,
            moe_intermediate_size: 1536,
            first_k_dense_replace: 1,
        };
        let table = [(1.0, 4.0), (8.0, 25.8), (16.0, 41.2), (32.0, 55.9), (64.0, 63.0)];
        for (tokens, expected) in table {
            let touched = glm.expected_distinct(tokens);
            assert!((touched - expected).abs() < 0.06, "{tokens} tokens touch {touched}");
        }
        let impossible = ExpertShape { num_experts_per_tok: 65, ..glm };
        assert_eq!(
            impossible.validate().unwrap_err().to_string(),
            "shape.experts.numExpertsPerTok is 65, expected 1 to 64"
        );
    }

    #[test]
    fn an_empty_description_is_written_as_nothing() {
        assert_eq!(serde_json::to_string(&WeightShape::default()).unwrap(), "{}");
        assert_eq!(serde_json::from_str::<WeightShape>("{}").unwrap(), WeightShape::default());
    }
}
