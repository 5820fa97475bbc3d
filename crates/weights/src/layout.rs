//! Compares a checkpoint's tensors with the ones its configuration implies, before anything is computed.

use std::path::{Path, PathBuf};

use crate::{AttentionConfig, ModelConfig};

/// A tensor the configuration implies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Hugging Face name.
    pub(crate) name: String,
    /// Dimensions, slowest first.
    pub(crate) shape: Vec<usize>,
    /// The shape in the configuration's own terms.
    formula: &'static str,
}

/// Every tensor a LLaMA-like model of this configuration must have. Families whose feed-forward blocks are not dense
/// get only their attention checked: the engine does not run them.
pub(crate) fn expected(config: &ModelConfig) -> impl Iterator<Item = Expected> {
    // Lazily, for `num_hidden_layers` is a number nobody has checked yet.
    ends(config)
        .into_iter()
        .chain((0..config.num_hidden_layers).flat_map(|layer| decoder_layer(config, layer)))
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

fn decoder_layer(config: &ModelConfig, layer: usize) -> Vec<Expected> {
    let mut all = Vec::new();
    let mut add =
        |name: &str, shape, formula| push(&mut all, &format!("model.layers.{layer}.{name}"), shape, formula);
    attention(config, layer, &mut add);
    if matches!(config.model_type.as_str(), "llama" | "llama_gqla") {
        feed_forward(config, &mut add);
    }
    all
}

fn push(all: &mut Vec<Expected>, name: &str, shape: Vec<usize>, formula: &'static str) {
    all.push(Expected { name: name.to_owned(), shape, formula });
}

fn attention(config: &ModelConfig, layer: usize, add: &mut impl FnMut(&str, Vec<usize>, &'static str)) {
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
        AttentionConfig::Latent { .. } => latent_attention(config, layer, add),
    }
}

fn latent_attention(
    config: &ModelConfig,
    layer: usize,
    add: &mut impl FnMut(&str, Vec<usize>, &'static str),
) {
    let AttentionConfig::Latent { shape, q_lora_rank, qk_latent_layernorm } = &config.attention else {
        return;
    };
    let hidden = config.hidden_size;
    let groups = config.groups_of_layer(layer).unwrap_or_default();
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

fn feed_forward(config: &ModelConfig, add: &mut impl FnMut(&str, Vec<usize>, &'static str)) {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    for name in ["mlp.gate_proj.weight", "mlp.up_proj.weight"] {
        add(name, vec![inner, hidden], "[intermediate_size, hidden_size]");
    }
    add("mlp.down_proj.weight", vec![hidden, inner], "[hidden_size, intermediate_size]");
}

/// The tensor only a multi-token-prediction layer has, for layer `index` after the decoder's.
fn mtp_tensor(config: &ModelConfig, index: usize) -> String {
    format!("model.layers.{}.eh_proj.weight", config.num_hidden_layers + index)
}

/// Checks that everything `config` implies is there, in the shape it implies.
pub(crate) fn check<'a>(
    config: &ModelConfig,
    root: &Path,
    describe: impl Fn(&str) -> Option<(&'a Path, Vec<usize>)>,
) -> Result<(), LayoutError> {
    for Expected { name, shape: expected, formula } in expected(config) {
        let Some((file, actual)) = describe(&name) else {
            return Err(LayoutError::Missing {
                checkpoint: root.to_owned(),
                tensor: name,
                expected,
                formula,
            });
        };
        if actual != expected {
            let file = file.to_owned();
            let arithmetic = format!("{formula} with {}", terms(config));
            return Err(LayoutError::Shape { file, tensor: name, expected, actual, arithmetic });
        }
    }
    for index in 0..config.num_nextn_predict_layers {
        let tensor = mtp_tensor(config, index);
        if describe(&tensor).is_none() {
            let promised = config.num_nextn_predict_layers;
            return Err(LayoutError::NoMtp { checkpoint: root.to_owned(), tensor, promised });
        }
    }
    Ok(())
}

/// The configuration's attention dimensions, as the message of a wrong shape spells them.
fn terms(config: &ModelConfig) -> String {
    let attention = match &config.attention {
        AttentionConfig::Plain { num_attention_heads, num_key_value_heads, head_dim } => format!(
            "num_attention_heads={num_attention_heads}, num_key_value_heads={num_key_value_heads}, \
             head_dim={head_dim}"
        ),
        AttentionConfig::Latent { shape, .. } => format!(
            "num_attention_heads={}, num_key_value_heads={}, kv_lora_rank={}, qk_nope_head_dim={}, \
             qk_rope_head_dim={}, v_head_dim={}",
            shape.num_attention_heads,
            shape.num_key_value_heads,
            shape.kv_lora_rank,
            shape.qk_nope_head_dim,
            shape.qk_rope_head_dim,
            shape.v_head_dim
        ),
    };
    format!("hidden_size={}, {attention}", config.hidden_size)
}

/// How a checkpoint contradicts its own configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A tensor is absent.
    #[error("`{}` has no tensor `{tensor}`, expected one of shape {expected:?} = {formula}", checkpoint.display())]
    Missing {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape by the configuration.
        expected: Vec<usize>,
        /// How that shape follows.
        formula: &'static str,
    },
    /// A tensor has another shape than the configuration implies.
    #[error(
        "tensor `{tensor}` in `{}` has shape {actual:?}, expected {expected:?} = {arithmetic}",
        file.display()
    )]
    Shape {
        /// The file that holds it.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape by the configuration.
        expected: Vec<usize>,
        /// Its shape in the file.
        actual: Vec<usize>,
        /// How the expected shape follows, with the configuration's numbers.
        arithmetic: String,
    },
    /// Draft layers are promised and absent.
    #[error(
        "`{}` promises num_nextn_predict_layers={promised} but has no tensor `{tensor}`: the multi-token-prediction \
         layer was dropped; set num_nextn_predict_layers to 0 or restore the layer",
        checkpoint.display()
    )]
    NoMtp {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The first tensor of the missing layer.
        tensor: String,
        /// Layers promised.
        promised: usize,
    },
}
