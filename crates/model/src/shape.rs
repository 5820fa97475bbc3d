//! Model and attention dimensions, and the cache and compute they cost.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::DecodePath;

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
            DecodePath::Gqa => u64::from(groups) * u64::from(self.qk_nope_head_dim + self.v_head_dim) + rope,
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
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Refuses dimensions no checkpoint can have.
    pub fn validate(&self) -> Result<(), ShapeError> {
        let Self { num_attention_heads: h, num_key_value_heads: g, qk_rope_head_dim, .. } = *self;
        let zero = [
            ("numAttentionHeads", h),
            ("numKeyValueHeads", g),
            ("kvLoraRank", self.kv_lora_rank),
            ("qkNopeHeadDim", self.qk_nope_head_dim),
            ("qkRopeHeadDim", qk_rope_head_dim),
            ("vHeadDim", self.v_head_dim),
        ];
        if let Some((field, _)) = zero.into_iter().find(|(_, value)| *value == 0) {
            return Err(ShapeError::Zero { field });
        }
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
    /// All weights of the checkpoint, in elements; what has to fit beside the cache.
    #[schemars(range(min = 1))]
    pub parameters: u64,
    /// Multi-token-prediction layers the checkpoint really contains; 0 means drafts are impossible.
    #[serde(default)]
    #[schemars(range(max = 8))]
    pub num_nextn_predict_layers: u32,
    /// Longest context the model was made for, in tokens.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub max_position_embeddings: u32,
}

impl ModelShape {
    /// Refuses shapes no checkpoint can have.
    pub fn validate(&self) -> Result<(), ShapeError> {
        self.attention.validate()?;
        let zero = [
            ("hiddenSize", u64::from(self.hidden_size)),
            ("numHiddenLayers", u64::from(self.num_hidden_layers)),
            ("parameters", self.parameters),
            ("maxPositionEmbeddings", u64::from(self.max_position_embeddings)),
        ];
        match zero.into_iter().find(|(_, value)| *value == 0) {
            Some((field, _)) => Err(ShapeError::Zero { field }),
            None => Ok(()),
        }
    }

    /// Bytes of all weights at `bytes_per_element` (2 for bf16).
    pub fn weight_bytes(&self, bytes_per_element: u64) -> u64 {
        self.parameters * bytes_per_element
    }
}

/// Why a shape is impossible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A dimension is zero.
    #[error("shape.{field} is 0, expected at least 1")]
    Zero {
        /// The field, as the API spells it.
        field: &'static str,
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
    fn each_impossible_shape_names_its_field() {
        let groups = AttentionShape { num_key_value_heads: 5, ..LLAMA_3_8B };
        assert_eq!(
            groups.validate().unwrap_err().to_string(),
            "shape.numKeyValueHeads=5 does not divide shape.numAttentionHeads=32 (32 mod 5 = 2): \
             every group must serve the same number of heads"
        );
        let zero = AttentionShape { kv_lora_rank: 0, ..LLAMA_3_8B };
        assert_eq!(zero.validate(), Err(ShapeError::Zero { field: "kvLoraRank" }));
        let odd = AttentionShape { qk_rope_head_dim: 63, ..LLAMA_3_8B };
        assert_eq!(odd.validate(), Err(ShapeError::OddRope { qk_rope_head_dim: 63 }));
    }
}
