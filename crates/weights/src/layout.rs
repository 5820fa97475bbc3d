//! Compares a checkpoint's tensors with the ones its configuration implies, before anything is computed.

mod tensors;

use std::path::{Path, PathBuf};

use crate::{AttentionConfig, ModelConfig};
#[cfg(test)]
pub(crate) use tensors::expected;
use tensors::{Expected, eh_proj};
pub(crate) use tensors::{kv_b_proj, packed_experts};

/// Checks that everything `config` implies is there, in the shape it implies.
pub(crate) fn check<'a>(
    config: &ModelConfig,
    root: &Path,
    describe: impl Fn(&str) -> Option<(&'a Path, Vec<usize>)>,
) -> Result<(), LayoutError> {
    let verify = |tensor: Expected| verify(config, root, tensor, &describe);
    let packed = |layer| describe(&packed_experts(layer)).is_some();
    tensors::decoder(config, packed).try_for_each(verify)?;
    for index in 0..config.num_nextn_predict_layers {
        let layer = config.num_hidden_layers + index;
        let tensor = eh_proj(layer);
        if describe(&tensor).is_none() {
            let promised = config.num_nextn_predict_layers;
            return Err(LayoutError::NoMtp { checkpoint: root.to_owned(), tensor, promised });
        }
        // A layer grafted from the source model keeps that model's groups.
        let rows = describe(&kv_b_proj(layer)).and_then(|(_, shape)| shape.first().copied());
        let groups = rows.and_then(|rows| config.groups_of_rows(rows)).or(config.groups_of_layer(layer));
        tensors::prediction_layer(config, layer, groups, packed(layer)).into_iter().try_for_each(verify)?;
    }
    Ok(())
}

fn verify<'a>(
    config: &ModelConfig,
    root: &Path,
    Expected { name, shape: expected, formula }: Expected,
    describe: &impl Fn(&str) -> Option<(&'a Path, Vec<usize>)>,
) -> Result<(), LayoutError> {
    let Some((file, actual)) = describe(&name) else {
        return Err(LayoutError::Missing { checkpoint: root.to_owned(), tensor: name, expected, formula });
    };
    if actual == expected {
        return Ok(());
    }
    let file = file.to_owned();
    let arithmetic = format!("{formula} with {}", terms(config));
    Err(LayoutError::Shape { file, tensor: name, expected, actual, arithmetic })
}

/// The configuration's dimensions, as the message of a wrong shape spells them.
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
    let rank = match &config.attention {
        AttentionConfig::Latent { q_lora_rank: Some(rank), .. } => format!(", q_lora_rank={rank}"),
        _ => String::new(),
    };
    let experts = config.experts.filter(|_| config.routing.is_some()).map_or_else(String::new, |experts| {
        format!(
            ", n_routed_experts={}, n_shared_experts={}, moe_intermediate_size={}",
            experts.n_routed_experts, experts.n_shared_experts, experts.moe_intermediate_size
        )
    });
    format!("hidden_size={}, {attention}{rank}{experts}", config.hidden_size)
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
