//! The inverse of parsing: the `config.json` of a converted checkpoint.

use serde_json::{Map, Value, json};

use super::{AttentionConfig, ModelConfig};
use crate::Dtype;

impl ModelConfig {
    /// The fields of a `config.json` from which [`Self::parse`] reads this configuration back. A converter may add
    /// its own fields.
    pub fn to_json(&self, dtype: Dtype) -> Map<String, Value> {
        let architecture = match self.attention {
            AttentionConfig::Plain { .. } => "LlamaForCausalLM",
            AttentionConfig::Latent { .. } if self.routing.is_some() => "Glm4MoeLiteGQLAForCausalLM",
            AttentionConfig::Latent { .. } => "LlamaGQLAForCausalLM",
        };
        let mut fields = object(json!({
            "architectures": [architecture],
            "attention_bias": false,
            "bos_token_id": self.bos_token_id,
            "dtype": dtype.config_name(),
            "eos_token_id": ids(&self.eos_token_ids),
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": false,
            "model_type": self.model_type,
            "num_hidden_layers": self.num_hidden_layers,
            "num_nextn_predict_layers": self.num_nextn_predict_layers,
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "rope_parameters": super::rope::to_json(self.rope_theta, self.rope_scaling.as_ref()),
            "rope_scaling": null,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "vocab_size": self.vocab_size,
        }));
        fields.extend(self.attention.to_json());
        fields.extend(self.experts_to_json());
        if let Some(groups) = &self.num_key_value_heads_per_layer {
            fields.insert("num_key_value_heads".to_owned(), json!(groups));
        }
        fields
    }
}

impl ModelConfig {
    fn experts_to_json(&self) -> Map<String, Value> {
        let (Some(experts), Some(routing)) = (&self.experts, &self.routing) else { return Map::new() };
        object(json!({
            "first_k_dense_replace": experts.first_k_dense_replace,
            "moe_intermediate_size": experts.moe_intermediate_size,
            "n_group": routing.n_group,
            "n_routed_experts": experts.n_routed_experts,
            "n_shared_experts": experts.n_shared_experts,
            "norm_topk_prob": routing.norm_topk_prob,
            "num_experts_per_tok": experts.num_experts_per_tok,
            "routed_scaling_factor": shortest(routing.routed_scaling_factor),
            "scoring_func": "sigmoid",
            "topk_group": routing.topk_group,
            "topk_method": "noaux_tc",
        }))
    }
}

/// Through the shortest decimal, so that 1e-5 is not written as 9.99999974737875e-6.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(number.into())
}

impl AttentionConfig {
    fn to_json(&self) -> Map<String, Value> {
        object(match self {
            Self::Plain { num_attention_heads, num_key_value_heads, head_dim } => json!({
                "num_attention_heads": num_attention_heads,
                "num_key_value_heads": num_key_value_heads,
                "head_dim": head_dim,
            }),
            Self::Latent { shape, q_lora_rank, qk_latent_layernorm } => json!({
                "num_attention_heads": shape.num_attention_heads,
                "num_key_value_heads": shape.num_key_value_heads,
                "kv_lora_rank": shape.kv_lora_rank,
                "qk_nope_head_dim": shape.qk_nope_head_dim,
                "qk_rope_head_dim": shape.qk_rope_head_dim,
                "v_head_dim": shape.v_head_dim,
                // transformers sizes the rotary table by `head_dim`.
                "head_dim": shape.qk_rope_head_dim,
                "q_lora_rank": q_lora_rank,
                "qk_latent_layernorm": qk_latent_layernorm,
                "rope_interleave": true,
            }),
        })
    }
}

pub(crate) fn ids(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
