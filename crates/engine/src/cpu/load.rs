//! From a checkpoint's tensors to a model.

use gqla_kernels::{
    Matrix, MatrixError, Pool, WeightRows,
    attention::{Absorb, Attention, PerGroup, Plain, UpProjection},
    ops::{Rope, RopeStyle},
};
use gqla_model::{AttentionShape, DecodePath};
use gqla_weights::{AttentionConfig, Dtype, ModelConfig, Tensor};

use super::{
    LoadError, Model,
    model::{LatentNorm, Layer, RotaryHeads},
    shard::Shard,
};

/// Epsilon of latent norms: Hugging Face's implementation uses this whatever `rms_norm_eps` says.
const LATENT_NORM_EPS: f32 = 1e-6;

/// What kind of attention the model's layers get.
enum Kind {
    Plain { heads: usize, groups: usize, head_dim: usize },
    Latent { shape: AttentionShape, path: DecodePath, normed: bool },
}

/// Builds a model; refuses what this backend does not implement.
pub(super) fn model(
    checkpoint: &Shard<'_>,
    path: Option<DecodePath>,
    pool: Pool,
) -> Result<Model, LoadError> {
    let config = checkpoint.config();
    let kind = kind_of(config, path)?;
    let (rope, rotary) = kind.rotary(config);
    let layers = (0..config.num_hidden_layers)
        .map(|layer| Source { checkpoint, config, layer }.layer(&kind))
        .collect::<Result<_, _>>()?;
    let head = |name| matrix_of(checkpoint, name, config.vocab_size, config.hidden_size);
    Ok(Model {
        pool,
        embedding: head("model.embed_tokens.weight")?,
        head: if config.tie_word_embeddings { None } else { Some(head("lm_head.weight")?) },
        layers,
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

/// The GQA path's attention of one layer of a converted model.
pub(super) fn per_group(checkpoint: &Shard<'_>, layer: usize) -> Result<PerGroup, LoadError> {
    let config = checkpoint.config();
    let AttentionConfig::Latent { shape, .. } = &config.attention else {
        return Err(LoadError::NotExpandable);
    };
    let source = Source { checkpoint, config, layer };
    let up = source.up_projection(shape)?;
    PerGroup::new(shape, UpProjection(up.rows())).map_err(|error| source.broken(error))
}

fn kind_of(config: &ModelConfig, path: Option<DecodePath>) -> Result<Kind, LoadError> {
    let unsupported = |what: &str| Err(LoadError::UnsupportedVariant { what: what.to_owned() });
    if config.num_key_value_heads_per_layer.is_some() {
        return unsupported("layers with different num_key_value_heads yet: convert to one number of groups");
    }
    match (config.model_type.as_str(), &config.attention, path) {
        ("llama", AttentionConfig::Plain { .. }, Some(path)) => Err(LoadError::NoSuchPath { path }),
        ("llama", AttentionConfig::Plain { num_attention_heads, num_key_value_heads, head_dim }, None) => {
            Ok(Kind::Plain { heads: *num_attention_heads, groups: *num_key_value_heads, head_dim: *head_dim })
        }
        ("llama_gqla", AttentionConfig::Latent { q_lora_rank: Some(_), .. }, _) => {
            unsupported("factored query projections (q_lora_rank) yet: convert without them")
        }
        ("llama_gqla", AttentionConfig::Latent { shape, qk_latent_layernorm, .. }, path) => {
            Ok(Kind::Latent {
                shape: *shape,
                path: path.unwrap_or(DecodePath::Gqa),
                normed: *qk_latent_layernorm,
            })
        }
        (model_type, _, _) => Err(LoadError::UnsupportedModel { model_type: model_type.to_owned() }),
    }
}

impl Kind {
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
        (Rope::new(dim, config.max_position_embeddings, config.rope_theta, style), heads)
    }
}

/// (H, `d_nope`, `d_rope`, r)
fn dims(shape: &AttentionShape) -> [usize; 4] {
    [shape.num_attention_heads, shape.qk_nope_head_dim, shape.qk_rope_head_dim, shape.kv_lora_rank]
        .map(|dim| dim as usize)
}

/// One layer of a checkpoint.
struct Source<'a> {
    checkpoint: &'a Shard<'a>,
    config: &'a ModelConfig,
    layer: usize,
}

impl<'a> Source<'a> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'a>, LoadError> {
        let name = format!("model.layers.{}.{name}.weight", self.layer);
        Ok(self.checkpoint.tensor(&name)?.expect_shape(shape)?)
    }

    fn norm(&self, name: &str, width: usize) -> Result<Vec<f32>, LoadError> {
        Ok(self.tensor(name, &[width])?.to_f32())
    }

    /// Stacks matrices of `inputs` columns.
    fn matrix(&self, parts: &[(&str, usize)], inputs: usize) -> Result<Matrix, LoadError> {
        let parts: Vec<_> = parts
            .iter()
            .map(|(name, outputs)| Ok(Numbers::of(&self.tensor(name, &[*outputs, inputs])?)))
            .collect::<Result<_, LoadError>>()?;
        let rows: Vec<_> = parts.iter().map(Numbers::rows).collect();
        Matrix::stack(&rows, inputs).map_err(|source| self.broken(source))
    }

    fn broken(&self, source: MatrixError) -> LoadError {
        LoadError::Matrix { layer: self.layer, source }
    }

    fn layer(&self, kind: &Kind) -> Result<Layer, LoadError> {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let (projection, attention, latent_norm) = match kind {
            Kind::Plain { heads, groups, head_dim } => self.plain(*heads, *groups, *head_dim)?,
            Kind::Latent { shape, path, normed } => self.latent(shape, *path, *normed)?,
        };
        Ok(Layer {
            input_norm: self.norm("input_layernorm", hidden)?,
            projection,
            latent_norm,
            output: self.matrix(&[("self_attn.o_proj", hidden)], attention.output_width())?,
            attention,
            expanded: None,
            post_norm: self.norm("post_attention_layernorm", hidden)?,
            gate_up: self.matrix(&[("mlp.gate_proj", inner), ("mlp.up_proj", inner)], hidden)?,
            down: self.matrix(&[("mlp.down_proj", hidden)], inner)?,
        })
    }

    fn plain(&self, heads: usize, groups: usize, head_dim: usize) -> Result<Parts, LoadError> {
        let parts = [
            ("self_attn.q_proj", heads * head_dim),
            ("self_attn.k_proj", groups * head_dim),
            ("self_attn.v_proj", groups * head_dim),
        ];
        let projection = self.matrix(&parts, self.config.hidden_size)?;
        Ok((projection, Box::new(Plain::new(heads, groups, head_dim)), None))
    }

    fn up_projection(&self, shape: &AttentionShape) -> Result<Numbers, LoadError> {
        let [_, nope, _, rank] = dims(shape);
        let rows = shape.num_key_value_heads as usize * (nope + shape.v_head_dim as usize);
        Ok(Numbers::of(&self.tensor("self_attn.kv_b_proj", &[rows, rank])?))
    }

    fn latent(&self, shape: &AttentionShape, path: DecodePath, normed: bool) -> Result<Parts, LoadError> {
        let [heads, nope, rope, rank] = dims(shape);
        let parts =
            [("self_attn.q_proj", heads * (nope + rope)), ("self_attn.kv_a_proj_with_mqa", rank + rope)];
        let projection = self.matrix(&parts, self.config.hidden_size)?;
        let up = self.up_projection(shape)?;
        let up = UpProjection(up.rows());
        let attention: Box<dyn Attention> = match path {
            DecodePath::Gqa => Box::new(PerGroup::new(shape, up).map_err(|source| self.broken(source))?),
            DecodePath::MqaAbsorb => Box::new(Absorb::new(shape, up).map_err(|source| self.broken(source))?),
        };
        let norm = |weight| LatentNorm { offset: heads * (nope + rope), weight, eps: LATENT_NORM_EPS };
        let latent_norm =
            if normed { Some(norm(self.norm("self_attn.kv_a_layernorm", rank)?)) } else { None };
        Ok((projection, attention, latent_norm))
    }
}

/// What the kinds of attention differ in.
type Parts = (Matrix, Box<dyn Attention>, Option<LatentNorm>);

fn matrix_of(
    checkpoint: &Shard<'_>,
    name: &'static str,
    outputs: usize,
    inputs: usize,
) -> Result<Matrix, LoadError> {
    let tensor = checkpoint.tensor(name)?.expect_shape(&[outputs, inputs])?;
    Matrix::stack(&[Numbers::of(&tensor).rows()], inputs).map_err(|source| LoadError::Head { name, source })
}

/// A tensor's numbers in a format the kernels take: bf16 as it is, anything else as f32.
enum Numbers {
    F32(Vec<f32>),
    Bf16(Vec<u8>),
}

impl Numbers {
    fn of(tensor: &Tensor<'_>) -> Self {
        match tensor.dtype {
            Dtype::BF16 => Self::Bf16(tensor.bytes().to_vec()),
            _ => Self::F32(tensor.to_f32()),
        }
    }

    fn rows(&self) -> WeightRows<'_> {
        match self {
            Self::F32(values) => WeightRows::F32(values),
            Self::Bf16(bytes) => WeightRows::Bf16(bytes),
        }
    }
}
