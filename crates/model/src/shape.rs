//! Model and attention dimensions, and the cache and compute they cost.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{DecodePath, WeightShape};

const HEADS: RangeInclusive<u64> = 1..=1024;
const RANK: RangeInclusive<u64> = 1..=65_536;
const HEAD_DIM: RangeInclusive<u64> = 1..=4096;
const HIDDEN: RangeInclusive<u64> = 1..=1_048_576;
const LAYERS: RangeInclusive<u64> = 1..=1024;
const NEXTN_LAYERS: RangeInclusive<u64> = 0..=8;
const CONTEXT: RangeInclusive<u64> = 1..=16_777_216;
/// Up to a thousand times the largest published models.
const PARAMETERS: RangeInclusive<u64> = 1..=1_000_000_000_000_000;

pub(crate) fn within(
    field: &'static str,
    value: impl Into<u64>,
    limits: RangeInclusive<u64>,
) -> Result<(), ShapeError> {
    let value = value.into();
    if limits.contains(&value) {
        return Ok(());
    }
    Err(ShapeError::OutOfRange { field, value, min: *limits.start(), max: *limits.end() })
}

/// Dimensions of one GQLA attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttentionShape {
    /// Query heads, H.
    #[schemars(range(min = 1, max = 1024))]
    pub num_attention_heads: u32,
    /// Key/value groups, G; divides H. MLA is G = H.
    #[schemars(range(min = 1, max = 1024))]
    pub num_key_value_heads: u32,
    /// Width of the cached latent, r.
    #[schemars(range(min = 1, max = 65536))]
    pub kv_lora_rank: u32,
    /// Per-head key dimension without position, `d_nope`.
    #[schemars(range(min = 1, max = 4096))]
    pub qk_nope_head_dim: u32,
    /// Dimension of the rotary key that all heads share, `d_rope`.
    #[schemars(range(min = 2, max = 4096))]
    pub qk_rope_head_dim: u32,
    /// Per-head value dimension, `d_v`.
    #[schemars(range(min = 1, max = 4096))]
    pub v_head_dim: u32,
}

impl AttentionShape {
    /// Elements one token leaves in one layer's cache, over all groups:
    /// `r + d_rope` on absorb, `G (d_nope + d_v) + d_rope` on GQA.
    pub fn kv_elements(&self, path: DecodePath) -> u64 {
        self.kv_elements_of_groups(path, self.num_key_value_heads)
    }

    /// As [`Self::kv_elements`] for a rank that stores only `groups` groups. The latent is never divided.
    pub fn kv_elements_of_groups(&self, path: DecodePath, groups: u32) -> u64 {
        let rope = u64::from(self.qk_rope_head_dim);
        match path {
            DecodePath::MqaAbsorb => u64::from(self.kv_lora_rank) + rope,
            DecodePath::Gqa => {
                let head = u64::from(self.qk_nope_head_dim) + u64::from(self.v_head_dim);
                u64::from(groups).saturating_mul(head).saturating_add(rope)
            }
        }
    }

    /// Floating-point operations one query head spends on one cached token (a multiply-add is two):
    /// `2 (2r + d_rope)` on absorb, `2 (d_nope + d_rope + d_v)` on GQA.
    pub fn flops_per_head(&self, path: DecodePath) -> u64 {
        let rope = u64::from(self.qk_rope_head_dim);
        match path {
            DecodePath::MqaAbsorb => 2 * (2 * u64::from(self.kv_lora_rank) + rope),
            DecodePath::Gqa => 2 * (u64::from(self.qk_nope_head_dim) + rope + u64::from(self.v_head_dim)),
        }
    }

    /// Query heads per group, H/G.
    pub fn heads_per_group(&self) -> u32 {
        self.num_attention_heads.checked_div(self.num_key_value_heads).unwrap_or(0)
    }

    /// Refuses dimensions no checkpoint can have. The limits are those of the API's schema: shapes also come from
    /// files, which no schema has seen, and a planner that trusted them could be made to overflow or search forever.
    pub fn validate(&self) -> Result<(), ShapeError> {
        let Self { num_attention_heads: h, num_key_value_heads: g, qk_rope_head_dim, .. } = *self;
        within("numAttentionHeads", h, HEADS)?;
        within("numKeyValueHeads", g, HEADS)?;
        within("kvLoraRank", self.kv_lora_rank, RANK)?;
        within("qkNopeHeadDim", self.qk_nope_head_dim, HEAD_DIM)?;
        within("qkRopeHeadDim", qk_rope_head_dim, HEAD_DIM)?;
        within("vHeadDim", self.v_head_dim, HEAD_DIM)?;
        if h % g != 0 {
            return Err(ShapeError::GroupsDoNotDivideHeads { heads: h, groups: g });
        }
        if qk_rope_head_dim % 2 != 0 {
            return Err(ShapeError::OddRope { qk_rope_head_dim });
        }
        Ok(())
    }
}

/// What the planner needs to know of a model. Every field is a number a checkpoint's `config.json` states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelShape {
    /// Dimensions of every attention layer.
    #[serde(flatten)]
    pub attention: AttentionShape,
    /// Width of the residual stream.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub hidden_size: u32,
    /// Decoder layers, without multi-token-prediction layers.
    #[schemars(range(min = 1, max = 1024))]
    pub num_hidden_layers: u32,
    /// All weights but those of prediction layers, in elements; what has to fit beside the cache.
    #[schemars(range(min = 1))]
    pub parameters: u64,
    /// Multi-token-prediction layers the checkpoint really contains; 0 means drafts are impossible.
    #[serde(default)]
    #[schemars(range(max = 8))]
    pub num_nextn_predict_layers: u32,
    /// Longest context the model was made for, in tokens.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub max_position_embeddings: u32,
    /// What the weights consist of.
    #[serde(flatten)]
    pub weights: WeightShape,
}

impl ModelShape {
    /// Refuses shapes no checkpoint can have.
    pub fn validate(&self) -> Result<(), ShapeError> {
        self.attention.validate()?;
        within("hiddenSize", self.hidden_size, HIDDEN)?;
        within("numHiddenLayers", self.num_hidden_layers, LAYERS)?;
        within("maxPositionEmbeddings", self.max_position_embeddings, CONTEXT)?;
        within("parameters", self.parameters, PARAMETERS)?;
        within("numNextnPredictLayers", self.num_nextn_predict_layers, NEXTN_LAYERS)?;
        self.weights.validate(&self.attention)
    }
}

/// Why a shape is impossible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A number is outside what any model has.
    #[error("shape.{field} is {value}, expected {min} to {max}")]
    OutOfRange {
        /// The field, as the API spells it.
        field: &'static str,
        /// What was given.
        value: u64,
        /// The least it may be.
        min: u64,
        /// The most it may be.
        max: u64,
    },
    /// G does not divide H.
    #[error(
        "shape.numKeyValueHeads={groups} does not divide shape.numAttentionHeads={heads} \
         ({heads} mod {groups} = {}): every group must serve the same number of heads",
        heads % groups
    )]
    GroupsDoNotDivideHeads {
        /// Query heads.
        heads: u32,
        /// Groups.
        groups: u32,
    },
    /// Rotary embeddings turn pairs of channels.
    #[error("shape.qkRopeHeadDim={qk_rope_head_dim} is odd, expected an even number of rotary channels")]
    OddRope {
        /// The dimension given.
        qk_rope_head_dim: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA_3_8B: AttentionShape = AttentionShape {
        num_attention_heads: 32,
        num_key_value_heads: 8,
        kv_lora_rank: 512,
        qk_nope_head_dim: 128,
        qk_rope_head_dim: 64,
        v_head_dim: 128,
    };

    #[test]
    fn llama_3_8b_latent_is_28_percent_of_its_gqa_cache() {
        assert_eq!(LLAMA_3_8B.kv_elements(DecodePath::MqaAbsorb), 576);
        assert_eq!(LLAMA_3_8B.kv_elements(DecodePath::Gqa), 2112);
        assert_eq!(576.0 / 2048.0 * 100.0, 28.125);
    }

    #[test]
    fn no_count_of_draft_layers_keeps_the_planner_busy() {
        let model = ModelShape {
            attention: LLAMA_3_8B,
            hidden_size: 4096,
            num_hidden_layers: 32,
            parameters: 8_000_000_000,
            num_nextn_predict_layers: 1,
            max_position_embeddings: 8192,
            weights: WeightShape::default(),
        };
        assert_eq!(model.validate(), Ok(()));
        let drafts = ModelShape { num_nextn_predict_layers: 4_000_000_000, ..model.clone() };
        let sentence = drafts.validate().unwrap_err().to_string();
        assert_eq!(sentence, "shape.numNextnPredictLayers is 4000000000, expected 0 to 8");
        let parameters = ModelShape { parameters: u64::MAX, ..model };
        assert!(parameters.validate().is_err());
    }

    #[test]
    fn each_impossible_shape_names_its_field() {
        let groups = AttentionShape { num_key_value_heads: 5, ..LLAMA_3_8B };
        assert_eq!(
            groups.validate().unwrap_err().to_string(),
            "shape.numKeyValueHeads=5 does not divide shape.numAttentionHeads=32 (32 mod 5 = 2): \
             every group must serve the same number of heads"
        );
        let zero = AttentionShape { kv_lora_rank: 0, ..LLAMA_3_8B };
        assert_eq!(zero.validate().unwrap_err().to_string(), "shape.kvLoraRank is 0, expected 1 to 65536");
        let huge = AttentionShape { kv_lora_rank: u32::MAX, ..LLAMA_3_8B };
        assert_eq!(
            huge.validate().unwrap_err().to_string(),
            "shape.kvLoraRank is 4294967295, expected 1 to 65536"
        );
        let odd = AttentionShape { qk_rope_head_dim: 63, ..LLAMA_3_8B };
        assert_eq!(odd.validate(), Err(ShapeError::OddRope { qk_rope_head_dim: 63 }));
    }
}
