//! Shapes that can be planned for by name, without a checkpoint at hand.

use std::{fmt, str::FromStr};

use gqla_model::{AttentionShape, ExpertShape, ModelShape, WeightFormat, WeightShape};

/// A model whose shape is built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelName {
    /// DeepSeek-V3 converted to 8 groups.
    DeepseekV3Gqla,
    /// LLaMA-3-8B converted at rank 512.
    Llama38bGqla,
    /// LLaMA-3-70B converted at rank 512.
    Llama370bGqla,
    /// GLM-4.7-Flash converted to 4 groups.
    Glm47FlashGqla,
    /// SmolLM2-135M converted at rank 320, the model that talks in the demonstration.
    Smollm2135mGqla,
    /// DeepSeek's attention in a model small enough for one device.
    DeepseekAttention,
}

impl ModelName {
    /// All built-in models, in the order lists print them.
    pub const ALL: [Self; 6] = [
        Self::DeepseekV3Gqla,
        Self::Llama38bGqla,
        Self::Llama370bGqla,
        Self::Glm47FlashGqla,
        Self::Smollm2135mGqla,
        Self::DeepseekAttention,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DeepseekV3Gqla => "deepseek-v3-gqla",
            Self::Llama38bGqla => "llama-3-8b-gqla",
            Self::Llama370bGqla => "llama-3-70b-gqla",
            Self::Glm47FlashGqla => "glm-4.7-flash-gqla",
            Self::Smollm2135mGqla => "smollm2-135m-gqla",
            Self::DeepseekAttention => "deepseek-attention",
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is not in [`ModelName::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown model `{0}`: expected one of {known}", known = ModelName::ALL.map(ModelName::name).join(", "))]
pub struct UnknownModel(String);

impl FromStr for ModelName {
    type Err = UnknownModel;

    fn from_str(name: &str) -> Result<Self, UnknownModel> {
        let same = |model: &Self| model.name().eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(same).ok_or_else(|| UnknownModel(name.to_owned()))
    }
}

const DEEPSEEK_ATTENTION: AttentionShape = attention([128, 8], 512, [128, 64, 128]);

/// The shape of a built-in model. Parameter counts are the source model's; a conversion changes them by little, except
/// for SmolLM2, where the count is that of the converted tensors.
pub const fn shape(model: ModelName) -> ModelShape {
    match model {
        ModelName::DeepseekV3Gqla => ModelShape {
            attention: DEEPSEEK_ATTENTION,
            num_key_value_heads_per_layer: None,
            hidden_size: 7168,
            num_hidden_layers: 61,
            parameters: 671_000_000_000,
            num_nextn_predict_layers: 1,
            max_position_embeddings: 163_840,
            weights: WeightShape {
                q_lora_rank: Some(1536),
                experts: Some(ExpertShape {
                    n_routed_experts: 256,
                    num_experts_per_tok: 8,
                    n_shared_experts: 1,
                    moe_intermediate_size: 2048,
                    first_k_dense_replace: 3,
                }),
                ..dense(18_432, 129_280)
            },
        },
        ModelName::Llama38bGqla => ModelShape {
            attention: attention([32, 8], 512, [128, 64, 128]),
            num_key_value_heads_per_layer: None,
            hidden_size: 4096,
            num_hidden_layers: 32,
            parameters: 8_030_261_248,
            num_nextn_predict_layers: 0,
            max_position_embeddings: 8192,
            weights: dense(14_336, 128_256),
        },
        ModelName::Llama370bGqla => ModelShape {
            attention: attention([64, 8], 512, [128, 64, 128]),
            num_key_value_heads_per_layer: None,
            hidden_size: 8192,
            num_hidden_layers: 80,
            parameters: 70_553_706_496,
            num_nextn_predict_layers: 0,
            max_position_embeddings: 8192,
            weights: dense(28_672, 128_256),
        },
        ModelName::Glm47FlashGqla => ModelShape {
            attention: attention([20, 4], 512, [192, 64, 256]),
            num_key_value_heads_per_layer: None,
            hidden_size: 2048,
            num_hidden_layers: 47,
            parameters: 29_900_000_000,
            num_nextn_predict_layers: 1,
            max_position_embeddings: 202_752,
            weights: WeightShape {
                q_lora_rank: Some(768),
                experts: Some(ExpertShape {
                    n_routed_experts: 64,
                    num_experts_per_tok: 4,
                    n_shared_experts: 1,
                    moe_intermediate_size: 1536,
                    first_k_dense_replace: 1,
                }),
                ..dense(10_240, 154_880)
            },
        },
        ModelName::Smollm2135mGqla => ModelShape {
            attention: attention([9, 3], 320, [64, 64, 64]),
            num_key_value_heads_per_layer: None,
            hidden_size: 576,
            num_hidden_layers: 30,
            parameters: 148_154_688,
            num_nextn_predict_layers: 0,
            max_position_embeddings: 8192,
            weights: WeightShape { tie_word_embeddings: true, ..dense(1536, 49_152) },
        },
        ModelName::DeepseekAttention => ModelShape {
            attention: DEEPSEEK_ATTENTION,
            num_key_value_heads_per_layer: None,
            hidden_size: 2048,
            num_hidden_layers: 16,
            parameters: 2_500_000_000,
            num_nextn_predict_layers: 1,
            max_position_embeddings: 32_768,
            weights: WeightShape { intermediate_size: None, vocab_size: None, ..dense(0, 0) },
        },
    }
}

/// Dense blocks of `intermediate` and `vocabulary` rows.
const fn dense(intermediate: u32, vocabulary: u32) -> WeightShape {
    WeightShape {
        q_lora_rank: None,
        intermediate_size: Some(intermediate),
        vocab_size: Some(vocabulary),
        tie_word_embeddings: false,
        experts: None,
        weight_format: WeightFormat::Bf16,
        nextn_key_value_heads: None,
    }
}

/// Heads `[H, G]`, rank `r` and head dimensions `[d_nope, d_rope, d_v]`.
const fn attention(heads: [u32; 2], rank: u32, dims: [u32; 3]) -> AttentionShape {
    AttentionShape {
        num_attention_heads: heads[0],
        num_key_value_heads: heads[1],
        kv_lora_rank: rank,
        qk_nope_head_dim: dims[0],
        qk_rope_head_dim: dims[1],
        v_head_dim: dims[2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_is_valid_and_found_by_its_name() {
        for model in ModelName::ALL {
            shape(model).validate().unwrap();
            assert_eq!(model.name().to_uppercase().parse(), Ok(model));
        }
        let error = "deepseek".parse::<ModelName>().unwrap_err().to_string();
        assert!(error.starts_with("unknown model `deepseek`: expected one of deepseek-v3-gqla, "), "{error}");
    }

    #[test]
    fn smollm2_parameters_add_up() {
        let (hidden, intermediate, vocabulary, layers) = (576u64, 1536, 49_152, 30);
        let queries_and_output = hidden * 9 * (64 + 64) + hidden * 9 * 64;
        let keys_and_values = hidden * (320 + 64) + 320 * 3 * (64 + 64);
        let layer = queries_and_output + keys_and_values + 3 * hidden * intermediate + 2 * hidden;
        let total = layers * layer + vocabulary * hidden + hidden;
        assert_eq!(shape(ModelName::Smollm2135mGqla).parameters, total);
    }
}
