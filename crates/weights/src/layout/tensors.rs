//! Names and shapes of the tensors that a configuration implies.

use gqla_model::ExpertShape;

use crate::{AttentionConfig, FeedForward, ModelConfig};

/// A tensor the configuration implies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Hugging Face name.
    pub(crate) name: String,
    /// Dimensions, slowest first.
    pub(crate) shape: Vec<usize>,
    /// The shape in the configuration's own terms.
    pub(crate) formula: &'static str,
}

/// Every tensor of the decoder. `packed` tells of a layer whether its experts are one tensor each for all experts; blocks
/// that the engine does not run, or whose weights are compressed, get only their attention checked.
pub(crate) fn decoder(
    config: &ModelConfig,
    packed: impl Fn(usize) -> bool,
) -> impl Iterator<Item = Expected> {
    // Lazily, for `num_hidden_layers` is a number nobody has checked yet.
    ends(config).into_iter().chain(
        (0..config.num_hidden_layers).flat_map(move |layer| {
            decoder_layer(config, layer, config.groups_of_layer(layer), packed(layer))
        }),
    )
}

/// As [`decoder`], with a tensor for each expert.
#[cfg(test)]
pub(crate) fn expected(config: &ModelConfig) -> impl Iterator<Item = Expected> {
    decoder(config, |_| false)
}

fn ends(config: &ModelConfig) -> Vec<Expected> {
    let mut all = Vec::new();
    let embedding = vec![config.vocab_size, config.hidden_size];
    push(&mut all, "model.embed_tokens.weight", embedding.clone(), "[vocab_size, hidden_size]");
    push(&mut all, "model.norm.weight", vec![config.hidden_size], "[hidden_size]");
    if !config.tie_word_embeddings {
        push(&mut all, "lm_head.weight", embedding, "[vocab_size, hidden_size]");
    }
    all
}

fn decoder_layer(config: &ModelConfig, layer: usize, groups: Option<usize>, packed: bool) -> Vec<Expected> {
    let mut all = Vec::new();
    let mut add =
        |name: &str, shape, formula| push(&mut all, &format!("model.layers.{layer}.{name}"), shape, formula);
    attention(config, groups, &mut add);
    match config.feed_forward(layer).filter(|_| config.quantization.is_none()) {
        Some(FeedForward::Dense) => dense(config, &mut add),
        Some(FeedForward::Experts(experts, _)) => mixture(config.hidden_size, &experts, packed, &mut add),
        None => {}
    }
    all
}

/// Every tensor of a multi-token-prediction layer, but for the copies it has of the embedding and the output head.
/// Empty for families the engine does not compute.
pub(crate) fn prediction_layer(
    config: &ModelConfig,
    layer: usize,
    groups: Option<usize>,
    packed: bool,
) -> Vec<Expected> {
    let mut all = Vec::new();
    if config.feed_forward(layer).is_none() {
        return all;
    }
    let hidden = config.hidden_size;
    let name = |suffix: &str| format!("model.layers.{layer}.{suffix}.weight");
    push(&mut all, &eh_proj(layer), vec![hidden, 2 * hidden], "[hidden_size, 2 × hidden_size]");
    for suffix in ["enorm", "hnorm", "shared_head.norm"] {
        push(&mut all, &name(suffix), vec![hidden], "[hidden_size]");
    }
    all.extend(decoder_layer(config, layer, groups, packed));
    all
}

/// The tensor only a multi-token-prediction layer has.
pub(crate) fn eh_proj(layer: usize) -> String {
    format!("model.layers.{layer}.eh_proj.weight")
}

pub(crate) fn kv_b_proj(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn.kv_b_proj.weight")
}

/// Gate rows, then up rows, of all experts of a layer: how transformers 5 may save them.
pub(crate) fn packed_experts(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.experts.gate_up_proj")
}

fn push(all: &mut Vec<Expected>, name: &str, shape: Vec<usize>, formula: &'static str) {
    all.push(Expected { name: name.to_owned(), shape, formula });
}

fn attention(
    config: &ModelConfig,
    groups: Option<usize>,
    add: &mut impl FnMut(&str, Vec<usize>, &'static str),
) {
    let hidden = config.hidden_size;
    add("input_layernorm.weight", vec![hidden], "[hidden_size]");
    add("post_attention_layernorm.weight", vec![hidden], "[hidden_size]");
    match &config.attention {
        AttentionConfig::Plain { num_attention_heads, num_key_value_heads, head_dim } => {
            let (q, kv) = (num_attention_heads * head_dim, num_key_value_heads * head_dim);
            add("self_attn.q_proj.weight", vec![q, hidden], "[num_attention_heads × head_dim, hidden_size]");
            for name in ["self_attn.k_proj.weight", "self_attn.v_proj.weight"] {
                add(name, vec![kv, hidden], "[num_key_value_heads × head_dim, hidden_size]");
            }
            add("self_attn.o_proj.weight", vec![hidden, q], "[hidden_size, num_attention_heads × head_dim]");
        }
        AttentionConfig::Latent { .. } => latent_attention(config, groups, add),
    }
}

fn latent_attention(
    config: &ModelConfig,
    groups: Option<usize>,
    add: &mut impl FnMut(&str, Vec<usize>, &'static str),
) {
    let AttentionConfig::Latent { shape, q_lora_rank, qk_latent_layernorm } = &config.attention else {
        return;
    };
    let hidden = config.hidden_size;
    let groups = groups.unwrap_or_default();
    let [heads, rank, nope, rope, value] = [
        shape.num_attention_heads,
        shape.kv_lora_rank,
        shape.qk_nope_head_dim,
        shape.qk_rope_head_dim,
        shape.v_head_dim,
    ]
    .map(|dim| dim as usize);
    let q = heads * (nope + rope);
    match *q_lora_rank {
        None => add(
            "self_attn.q_proj.weight",
            vec![q, hidden],
            "[num_attention_heads × (qk_nope_head_dim + qk_rope_head_dim), hidden_size]",
        ),
        Some(q_rank) => {
            add("self_attn.q_a_proj.weight", vec![q_rank, hidden], "[q_lora_rank, hidden_size]");
            add(
                "self_attn.q_b_proj.weight",
                vec![q, q_rank],
                "[num_attention_heads × (qk_nope_head_dim + qk_rope_head_dim), q_lora_rank]",
            );
            if *qk_latent_layernorm {
                add("self_attn.q_a_layernorm.weight", vec![q_rank], "[q_lora_rank]");
            }
        }
    }
    add(
        "self_attn.kv_a_proj_with_mqa.weight",
        vec![rank + rope, hidden],
        "[kv_lora_rank + qk_rope_head_dim, hidden_size]",
    );
    if *qk_latent_layernorm {
        add("self_attn.kv_a_layernorm.weight", vec![rank], "[kv_lora_rank]");
    }
    add(
        "self_attn.kv_b_proj.weight",
        vec![groups * (nope + value), rank],
        "[num_key_value_heads × (qk_nope_head_dim + v_head_dim), kv_lora_rank]",
    );
    add(
        "self_attn.o_proj.weight",
        vec![hidden, heads * value],
        "[hidden_size, num_attention_heads × v_head_dim]",
    );
}

fn dense(config: &ModelConfig, add: &mut impl FnMut(&str, Vec<usize>, &'static str)) {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    for name in ["mlp.gate_proj.weight", "mlp.up_proj.weight"] {
        add(name, vec![inner, hidden], "[intermediate_size, hidden_size]");
    }
    add("mlp.down_proj.weight", vec![hidden, inner], "[hidden_size, intermediate_size]");
}

fn mixture(
    hidden: usize,
    experts: &ExpertShape,
    packed: bool,
    add: &mut impl FnMut(&str, Vec<usize>, &'static str),
) {
    let [count, shared, inner] =
        [experts.n_routed_experts, experts.n_shared_experts, experts.moe_intermediate_size]
            .map(|number| number as usize);
    add("mlp.gate.weight", vec![count, hidden], "[n_routed_experts, hidden_size]");
    add("mlp.gate.e_score_correction_bias", vec![count], "[n_routed_experts]");
    if packed {
        let formula = "[n_routed_experts, 2 × moe_intermediate_size, hidden_size]";
        add("mlp.experts.gate_up_proj", vec![count, 2 * inner, hidden], formula);
        let formula = "[n_routed_experts, hidden_size, moe_intermediate_size]";
        add("mlp.experts.down_proj", vec![count, hidden, inner], formula);
    } else {
        for expert in 0..count {
            for name in ["gate_proj", "up_proj"] {
                let name = format!("mlp.experts.{expert}.{name}.weight");
                add(&name, vec![inner, hidden], "[moe_intermediate_size, hidden_size]");
            }
            let name = format!("mlp.experts.{expert}.down_proj.weight");
            add(&name, vec![hidden, inner], "[hidden_size, moe_intermediate_size]");
        }
    }
    if shared == 0 {
        return;
    }
    for name in ["mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.up_proj.weight"] {
        let formula = "[n_shared_experts × moe_intermediate_size, hidden_size]";
        add(name, vec![shared * inner, hidden], formula);
    }
    let formula = "[hidden_size, n_shared_experts × moe_intermediate_size]";
    add("mlp.shared_experts.down_proj.weight", vec![hidden, shared * inner], formula);
}
