//! From a checkpoint's tensors to a model.

mod layer;
mod numbers;

use gqla_kernels::{
    Matrix, Pool,
    attention::PerGroup,
    ops::{Rope, RopeStyle},
};
use gqla_model::{AttentionShape, DecodePath, RopeScaling, rotary_frequencies};
use gqla_weights::{AttentionConfig, ModelConfig};

use super::{LoadError, Model, Precision, draft::DraftLayer, model::RotaryHeads, shard::Shard};
use crate::NoDraftLayer;
use layer::Source;
use numbers::Numbers;

/// What kind of attention the model's layers get.
#[derive(Clone, Copy)]
enum Kind {
    Plain { heads: usize, groups: usize, head_dim: usize },
    Latent { shape: AttentionShape, path: DecodePath, q_lora_rank: Option<usize>, normed: bool },
}

/// Builds a model; refuses what this backend does not implement.
pub(super) fn model(
    checkpoint: &Shard<'_>,
    path: Option<DecodePath>,
    precision: Precision,
    pool: Pool,
) -> Result<Model, LoadError> {
    let config = checkpoint.config();
    let kind = Kind::of(config, path)?;
    let (rope, rotary) = kind.rotary(config);
    let layers = pool
        .map(config.num_hidden_layers, |layer| Source { checkpoint, precision, layer }.layer(kind))
        .into_iter()
        .collect::<Result<_, _>>()?;
    let head = |name| matrix_of(checkpoint, precision, name, [config.vocab_size, config.hidden_size]);
    Ok(Model {
        embedding: head("model.embed_tokens.weight")?,
        head: if config.tie_word_embeddings { None } else { Some(head("lm_head.weight")?) },
        pool,
        layers,
        draft: None,
        norm: checkpoint.tensor("model.norm.weight")?.expect_shape(&[config.hidden_size])?.to_f32(),
        eps: config.rms_norm_eps,
        rope,
        rotary,
        path: match kind {
            Kind::Plain { .. } => None,
            Kind::Latent { path, .. } => Some(path),
        },
        context: config.max_position_embeddings,
        vocabulary: checkpoint.vocabulary(),
        vocab_size: checkpoint.whole_vocabulary(),
    })
}

/// The first prediction layer, to go along `path`.
pub(super) fn draft(
    checkpoint: &Shard<'_>,
    path: Option<DecodePath>,
    precision: Precision,
) -> Result<DraftLayer, LoadError> {
    let config = checkpoint.config();
    if config.num_nextn_predict_layers == 0 {
        return Err(NoDraftLayer.into());
    }
    let source = Source { checkpoint, precision, layer: config.num_hidden_layers };
    let hidden = config.hidden_size;
    Ok(DraftLayer {
        embedding_norm: source.norm("enorm", hidden)?,
        hidden_norm: source.norm("hnorm", hidden)?,
        projection: source.matrix(&[("eh_proj", hidden)], 2 * hidden)?,
        layer: source.layer(Kind::of(config, path)?)?,
        norm: source.norm("shared_head.norm", hidden)?,
    })
}

/// The GQA path's attention of one layer of a converted model.
pub(super) fn per_group(
    checkpoint: &Shard<'_>,
    precision: Precision,
    layer: usize,
) -> Result<PerGroup, LoadError> {
    let AttentionConfig::Latent { shape, .. } = checkpoint.config().attention else {
        return Err(LoadError::NotExpandable);
    };
    Source { checkpoint, precision, layer }.per_group(&shape)
}

impl Kind {
    fn of(config: &ModelConfig, path: Option<DecodePath>) -> Result<Self, LoadError> {
        if config.feed_forward(0).is_none() {
            return Err(LoadError::UnsupportedModel { model_type: config.model_type.clone() });
        }
        if let Some(method) = &config.quantization {
            let what = format!("weights that were compressed (`{method}`): serve it with runtime.kind VLLM");
            return Err(LoadError::UnsupportedVariant { what });
        }
        match (&config.attention, path) {
            (AttentionConfig::Plain { .. }, Some(path)) => Err(LoadError::NoSuchPath { path }),
            (AttentionConfig::Plain { num_attention_heads, num_key_value_heads, head_dim }, None) => {
                Ok(Self::Plain {
                    heads: *num_attention_heads,
                    groups: *num_key_value_heads,
                    head_dim: *head_dim,
                })
            }
            (AttentionConfig::Latent { shape, q_lora_rank, qk_latent_layernorm }, path) => Ok(Self::Latent {
                shape: *shape,
                path: path.unwrap_or(DecodePath::Gqa),
                q_lora_rank: *q_lora_rank,
                normed: *qk_latent_layernorm,
            }),
        }
    }

    /// Plain heads turn whole, in halves; latent models turn `d_rope` channels of every query and the shared key,
    /// in neighbouring pairs.
    fn rotary(&self, config: &ModelConfig) -> (Rope, Vec<RotaryHeads>) {
        let (dim, style, heads) = match self {
            Self::Plain { heads, groups, head_dim } => {
                let all = RotaryHeads { offset: 0, count: heads + groups, stride: *head_dim, dim: *head_dim };
                (*head_dim, RopeStyle::HalfSplit, vec![all])
            }
            Self::Latent { shape, .. } => {
                let [heads, nope, rope, rank] = dims(shape);
                let stride = nope + rope;
                let queries = RotaryHeads { offset: nope, count: heads, stride, dim: rope };
                let key = RotaryHeads { offset: heads * stride + rank, count: 1, stride: 0, dim: rope };
                (rope, RopeStyle::Interleaved, vec![queries, key])
            }
        };
        let scaling = config.rope_scaling.as_ref();
        let frequencies = rotary_frequencies(dim, config.rope_theta, scaling);
        let factor = scaling.map_or(1.0, RopeScaling::rotary_factor);
        (Rope::new(&frequencies, factor, config.max_position_embeddings, style), heads)
    }
}

/// (H, `d_nope`, `d_rope`, r)
fn dims(shape: &AttentionShape) -> [usize; 4] {
    [shape.num_attention_heads, shape.qk_nope_head_dim, shape.qk_rope_head_dim, shape.kv_lora_rank]
        .map(|dim| dim as usize)
}

fn matrix_of(
    checkpoint: &Shard<'_>,
    precision: Precision,
    name: &'static str,
    [outputs, inputs]: [usize; 2],
) -> Result<Matrix, LoadError> {
    let tensor = checkpoint.tensor(name)?.expect_shape(&[outputs, inputs])?;
    precision.stack(&[Numbers::of(&tensor).rows()], inputs).map_err(|source| LoadError::Head { name, source })
}
