//! Model and attention dimensions, and the cache and compute they cost.

use std::{collections::BTreeMap, ops::RangeInclusive};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{CachedToken, DecodePath, WeightShape};

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

    /// What one token leaves in one layer's cache, over all groups: [`Self::kv_elements`] in 2 parts on absorb, the latent
    /// and the rotary key, in `2 G + 1` on GQA, each group's key and value and the rotary key.
    pub fn cached_token(&self, path: DecodePath) -> CachedToken {
        self.cached_token_of_groups(path, self.num_key_value_heads)
    }

    /// As [`Self::cached_token`] for a rank that stores only `groups` groups.
    pub fn cached_token_of_groups(&self, path: DecodePath, groups: u32) -> CachedToken {
        let parts = match path {
            DecodePath::MqaAbsorb => 2,
            DecodePath::Gqa => 2 * u64::from(groups) + 1,
        };
        CachedToken { elements: self.kv_elements_of_groups(path, groups), parts }
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

    /// Weights that turn the latent into one group's keys and values, `r (d_nope + d_v)`.
    pub fn expansion_weights(&self) -> u64 {
        let head = u64::from(self.qk_nope_head_dim) + u64::from(self.v_head_dim);
        head.saturating_mul(self.kv_lora_rank.into())
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
    /// Dimensions of every attention layer. Where layers have different numbers of groups, this has the largest.
    #[serde(flatten)]
    pub attention: AttentionShape,
    /// Key/value groups of each decoder layer; absent where all have numKeyValueHeads, which must be the largest entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), inner(range(min = 1, max = 1024)))]
    pub num_key_value_heads_per_layer: Option<Vec<u32>>,
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
    /// The numbers of groups that decoder layers have, each with how many layers have it, most groups first.
    pub fn groups(&self) -> Vec<(u32, u32)> {
        let Some(list) = &self.num_key_value_heads_per_layer else {
            return vec![(self.attention.num_key_value_heads, self.num_hidden_layers)];
        };
        let mut layers = BTreeMap::<u32, u32>::new();
        for groups in list {
            let count = layers.entry(*groups).or_default();
            *count = count.saturating_add(1);
        }
        layers.into_iter().rev().collect()
    }

    fn validate_groups(&self) -> Result<(), ShapeError> {
        let Some(list) = &self.num_key_value_heads_per_layer else { return Ok(()) };
        let (layers, heads) = (self.num_hidden_layers, self.attention.num_attention_heads);
        if list.len() as u64 != u64::from(layers) {
            return Err(ShapeError::GroupsOfOtherLayers { entries: list.len(), layers });
        }
        if let Some((layer, groups)) = list.iter().enumerate().find(|(_, groups)| !divides(**groups, heads)) {
            return Err(ShapeError::LayerGroupsDoNotDivideHeads { layer, groups: *groups, heads });
        }
        let (stated, largest) = (self.attention.num_key_value_heads, list.iter().copied().max());
        match largest {
            Some(largest) if largest != stated => Err(ShapeError::NotTheLargestGroups { stated, largest }),
            _ => Ok(()),
        }
    }

    /// Refuses shapes no checkpoint can have.
    pub fn validate(&self) -> Result<(), ShapeError> {
        self.attention.validate()?;
        within("hiddenSize", self.hidden_size, HIDDEN)?;
        within("numHiddenLayers", self.num_hidden_layers, LAYERS)?;
        self.validate_groups()?;
        within("maxPositionEmbeddings", self.max_position_embeddings, CONTEXT)?;
        within("parameters", self.parameters, PARAMETERS)?;
        within("numNextnPredictLayers", self.num_nextn_predict_layers, NEXTN_LAYERS)?;
        self.weights.validate(&self.attention)
    }
}

fn divides(divisor: u32, number: u32) -> bool {
    divisor > 0 && number.is_multiple_of(divisor)
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
    /// A list of groups for a model with another number of layers.
    #[error(
        "shape.numKeyValueHeadsPerLayer has {entries} entries, expected one for each of shape.numHiddenLayers={layers}"
    )]
    GroupsOfOtherLayers {
        /// Entries given.
        entries: usize,
        /// Decoder layers.
        layers: u32,
    },
    /// A layer's G does not divide H.
    #[error(
        "shape.numKeyValueHeadsPerLayer[{layer}]={groups} does not divide shape.numAttentionHeads={heads}: every group \
         of a layer must serve the same number of heads"
    )]
    LayerGroupsDoNotDivideHeads {
        /// The layer, from 0.
        layer: usize,
        /// Its groups.
        groups: u32,
        /// Query heads.
        heads: u32,
    },
    /// G is not the largest of the layers'.
    #[error(
        "shape.numKeyValueHeads is {stated}, expected {largest}, the largest of shape.numKeyValueHeadsPerLayer"
    )]
    NotTheLargestGroups {
        /// What was given.
        stated: u32,
        /// The largest entry.
        largest: u32,
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
    fn layers_with_groups_of_their_own_are_counted_and_checked() {
        let model = |list: Option<Vec<u32>>| ModelShape {
            attention: LLAMA_3_8B,
            num_key_value_heads_per_layer: list,
            hidden_size: 4096,
            num_hidden_layers: 4,
            parameters: 8_000_000_000,
            num_nextn_predict_layers: 0,
            max_position_embeddings: 8192,
            weights: WeightShape::default(),
        };
        let mixed = model(Some(vec![2, 8, 4, 8]));
        assert_eq!((mixed.validate(), mixed.groups()), (Ok(()), vec![(8, 2), (4, 1), (2, 1)]));
        assert_eq!(model(Some(vec![8; 4])).groups(), model(None).groups());
        let refusal = |list: &[u32]| model(Some(list.to_vec())).validate().unwrap_err().to_string();
        assert!(refusal(&[8, 8, 8]).contains("has 3 entries"));
        assert!(refusal(&[8, 8, 5, 8]).contains("numKeyValueHeadsPerLayer[2]=5 does not divide"));
        assert!(refusal(&[8, 8, 0, 8]).contains("numKeyValueHeadsPerLayer[2]=0 does not divide"));
        assert!(
            refusal(&[4, 4, 4, 4]).ends_with("expected 4, the largest of shape.numKeyValueHeadsPerLayer")
        );
        let written = serde_json::to_value(&mixed).unwrap();
        assert_eq!(written["numKeyValueHeadsPerLayer"], serde_json::json!([2, 8, 4, 8]));
        assert_eq!(serde_json::from_value::<ModelShape>(written).unwrap(), mixed);
        assert!(serde_json::to_value(model(None)).unwrap().get("numKeyValueHeadsPerLayer").is_none());
    }

    #[test]
    fn no_count_of_draft_layers_keeps_the_planner_busy() {
        let model = ModelShape {
            attention: LLAMA_3_8B,
            num_key_value_heads_per_layer: None,
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
