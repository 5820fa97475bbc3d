//! From a checkpoint's tensors to weights on a device.

use std::{borrow::Cow, cell::Cell};

use gqla_kernels::{
    device::{DecodeShape, Device, DeviceError, Norm, Router, RouterShape, Turns, UpProjection, Weights},
    ops::RopeStyle,
};
use gqla_model::{AttentionShape, DecodePath, ExpertShape, RopeScaling, Routing, rotary_frequencies};
use gqla_weights::{AttentionConfig, Checkpoint, Dtype, FeedForward as Block, ModelConfig, Tensor};
use half::bf16;

use super::{
    CudaLoadError,
    draft::DraftLayer,
    feed_forward::{FeedForward, Mixture, Mlp},
    model::{FactoredQuery, Layer, Parameters, Projection},
};
use crate::NoDraftLayer;

/// Epsilon of latent norms: Hugging Face's implementation uses this whatever `rms_norm_eps` says.
const LATENT_NORM_EPS: f32 = 1e-6;

/// The attention of a model that this backend runs.
pub(super) fn attention(checkpoint: &Checkpoint) -> Result<AttentionShape, CudaLoadError> {
    let config = checkpoint.config();
    let unsupported = |what: &str| Err(CudaLoadError::UnsupportedVariant { what: what.to_owned() });
    if config.num_key_value_heads_per_layer.is_some() {
        return unsupported("layers with different num_key_value_heads: convert to one number of groups");
    }
    if let Some(method) = &config.quantization {
        return unsupported(&format!("weights that were compressed (`{method}`): use runtime.kind VLLM"));
    }
    match (config.model_type.as_str(), &config.attention) {
        ("llama_gqla" | "glm4_moe_lite", AttentionConfig::Latent { shape, .. }) => Ok(*shape),
        (model_type, _) => Err(CudaLoadError::UnsupportedModel { model_type: model_type.to_owned() }),
    }
}

/// Whether there is a prediction layer, and one that the decoder's kernels run.
pub(super) fn can_draft(checkpoint: &Checkpoint) -> Result<(), CudaLoadError> {
    let config = checkpoint.config();
    if config.num_nextn_predict_layers == 0 {
        return Err(NoDraftLayer.into());
    }
    let groups = |layer| checkpoint.groups_of_layer(layer).unwrap_or(0);
    match (groups(config.num_hidden_layers), groups(0)) {
        (own, decoder) if own != decoder => {
            let what = format!(
                "a prediction layer of {own} groups beside a decoder of {decoder}: draft by prompt lookup \
                 (--speculative-method ngram), or convert the layer too"
            );
            Err(CudaLoadError::UnsupportedVariant { what })
        }
        _ => Ok(()),
    }
}

/// The attention as kernels see it, with the factor that scaled rotary embeddings want of scores.
pub(super) fn decode_shape(attention: &AttentionShape, config: &ModelConfig) -> DecodeShape {
    let shape = DecodeShape::of(attention);
    let factor = config.rope_scaling.as_ref().map_or(1.0, RopeScaling::score_factor);
    DecodeShape { scale: shape.scale * factor, ..shape }
}

/// Copies all weights to the device, layer by layer; those of the first prediction layer for a model that is `drafting`.
pub(super) fn parameters(
    checkpoint: &Checkpoint,
    device: &Device,
    attention: &AttentionShape,
    path: DecodePath,
    drafting: bool,
) -> Result<Parameters, CudaLoadError> {
    let config = checkpoint.config();
    let source = Source::new(checkpoint, device, attention);
    let layers =
        (0..config.num_hidden_layers).map(|layer| source.layer(layer, path)).collect::<Result<_, _>>()?;
    let head = |name: &str| source.matrix(&[(name, config.vocab_size)], config.hidden_size);
    Ok(Parameters {
        embedding: head("model.embed_tokens.weight")?,
        head: if config.tie_word_embeddings { None } else { Some(head("lm_head.weight")?) },
        layers,
        draft: if drafting { Some(source.draft(path)?) } else { None },
        norm: source.norm("model.norm.weight", config.hidden_size, config.rms_norm_eps)?,
        turns: turns(device, attention.qk_rope_head_dim as usize, config)?,
        stored_bytes: source.bytes_read.get(),
    })
}

/// The GQA path's up-projections of the first `layers` layers.
pub(super) fn expanded(
    checkpoint: &Checkpoint,
    device: &Device,
    attention: &AttentionShape,
    layers: usize,
) -> Result<Vec<UpProjection>, CudaLoadError> {
    let source = Source::new(checkpoint, device, attention);
    (0..layers).map(|layer| source.up(layer, DecodePath::Gqa)).collect()
}

/// Cosine and sine of every position's angles, times what turned channels are multiplied by, computed in float64.
fn turns(device: &Device, dim: usize, config: &ModelConfig) -> Result<Turns, DeviceError> {
    let scaling = config.rope_scaling.as_ref();
    let frequencies = rotary_frequencies(dim, config.rope_theta, scaling);
    let factor = scaling.map_or(1.0, RopeScaling::rotary_factor);
    let turn = |angle: f64| [(factor * angle.cos()) as f32, (factor * angle.sin()) as f32];
    let turns: Vec<f32> = (0..config.max_position_embeddings)
        .flat_map(|position| frequencies.iter().flat_map(move |frequency| turn(position as f64 * frequency)))
        .collect();
    Ok(Turns { numbers: device.upload_weights("rotary angles", &turns)?, style: RopeStyle::Interleaved })
}

struct Source<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    device: &'a Device,
    attention: &'a AttentionShape,
    shape: DecodeShape,
    bytes_read: Cell<u64>,
}

impl<'a> Source<'a> {
    fn new(checkpoint: &'a Checkpoint, device: &'a Device, attention: &'a AttentionShape) -> Self {
        let config = checkpoint.config();
        let shape = decode_shape(attention, config);
        Self { checkpoint, config, device, attention, shape, bytes_read: Cell::new(0) }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'a>, CudaLoadError> {
        Ok(self.counted(self.checkpoint.tensor(name)?.expect_shape(shape)?))
    }

    /// A tensor that is loaded.
    fn counted(&self, tensor: Tensor<'a>) -> Tensor<'a> {
        self.bytes_read.set(self.bytes_read.get() + tensor.bytes().len() as u64);
        tensor
    }

    fn norm(&self, name: &str, width: usize, eps: f32) -> Result<Norm, CudaLoadError> {
        let weight = self.tensor(name, &[width])?.to_f32();
        Ok(Norm { weight: self.device.upload_weights(name, &weight)?, eps })
    }

    /// Stacks matrices of `inputs` columns.
    fn matrix(&self, parts: &[(&str, usize)], inputs: usize) -> Result<Weights, CudaLoadError> {
        if let [(name, outputs)] = *parts {
            let tensor = self.tensor(name, &[outputs, inputs])?;
            return Ok(self.upload(name, &rounded(&tensor), [1, outputs, inputs])?);
        }
        let outputs = parts.iter().map(|(_, outputs)| outputs).sum();
        let mut numbers = Vec::with_capacity(outputs * inputs);
        for (name, outputs) in parts {
            numbers.extend_from_slice(&rounded(&self.tensor(name, &[*outputs, inputs])?));
        }
        Ok(self.upload(parts[0].0, &numbers, [1, outputs, inputs])?)
    }

    fn upload(&self, what: &str, numbers: &[bf16], dims: [usize; 3]) -> Result<Weights, DeviceError> {
        Weights::upload(self.device, what, numbers, dims)
    }

    fn layer(&self, layer: usize, path: DecodePath) -> Result<Layer, CudaLoadError> {
        let (hidden, eps) = (self.config.hidden_size, self.config.rms_norm_eps);
        let name = |tensor: &str| format!("model.layers.{layer}.{tensor}.weight");
        let rank = self.attention.kv_lora_rank as usize;
        let attended = self.shape.heads as usize * self.shape.value as usize;
        Ok(Layer {
            input_norm: self.norm(&name("input_layernorm"), hidden, eps)?,
            projection: self.projection(layer)?,
            latent_norm: self.latent_norm(&name("self_attn.kv_a_layernorm"), rank)?,
            up: self.up(layer, path)?,
            output: self.matrix(&[(&name("self_attn.o_proj"), hidden)], attended)?,
            post_norm: self.norm(&name("post_attention_layernorm"), hidden, eps)?,
            feed_forward: self.feed_forward(layer)?,
        })
    }

    /// The first prediction layer.
    fn draft(&self, path: DecodePath) -> Result<DraftLayer, CudaLoadError> {
        let config = self.config;
        can_draft(self.checkpoint)?;
        let (layer, hidden, eps) = (config.num_hidden_layers, config.hidden_size, config.rms_norm_eps);
        let name = |tensor: &str| format!("model.layers.{layer}.{tensor}.weight");
        Ok(DraftLayer {
            embedding_norm: self.norm(&name("enorm"), hidden, eps)?,
            hidden_norm: self.norm(&name("hnorm"), hidden, eps)?,
            projection: self.matrix(&[(&name("eh_proj"), hidden)], 2 * hidden)?,
            layer: self.layer(layer, path)?,
            norm: self.norm(&name("shared_head.norm"), hidden, eps)?,
        })
    }

    /// The norm of a latent, where the model has those.
    fn latent_norm(&self, name: &str, rank: usize) -> Result<Option<Norm>, CudaLoadError> {
        match self.config.attention {
            AttentionConfig::Latent { qk_latent_layernorm: true, .. } => {
                Ok(Some(self.norm(name, rank, LATENT_NORM_EPS)?))
            }
            _ => Ok(None),
        }
    }

    /// Queries, where they are not factored, then the latent padded with rows of zeros, then the rope key.
    fn projection(&self, layer: usize) -> Result<Projection, CudaLoadError> {
        let name = |tensor: &str| format!("model.layers.{layer}.self_attn.{tensor}.weight");
        let hidden = self.config.hidden_size;
        let (rank, rope) = (self.attention.kv_lora_rank as usize, self.shape.rope as usize);
        let queries = (self.shape.heads * (self.shape.nope + self.shape.rope)) as usize;
        let (mut numbers, query) = match self.config.attention {
            AttentionConfig::Latent { q_lora_rank: Some(rank), .. } => {
                let query = FactoredQuery {
                    down: self.matrix(&[(&name("q_a_proj"), rank)], hidden)?,
                    norm: self.latent_norm(&name("q_a_layernorm"), rank)?,
                    up: self.matrix(&[(&name("q_b_proj"), queries)], rank)?,
                };
                (Vec::new(), Some(query))
            }
            _ => (rounded(&self.tensor(&name("q_proj"), &[queries, hidden])?).into_owned(), None),
        };
        let latent = name("kv_a_proj_with_mqa");
        let compressed = self.tensor(&latent, &[rank + rope, hidden])?;
        let compressed = rounded(&compressed);
        let (latents, rope_key) = compressed.split_at(rank * hidden);
        numbers.extend_from_slice(latents);
        numbers.resize(numbers.len() + (self.shape.rank as usize - rank) * hidden, bf16::ZERO);
        numbers.extend_from_slice(rope_key);
        let outputs = numbers.len() / hidden;
        Ok(Projection { stacked: self.upload(&latent, &numbers, [1, outputs, hidden])?, query })
    }

    fn feed_forward(&self, layer: usize) -> Result<FeedForward, CudaLoadError> {
        match self.config.feed_forward(layer) {
            Some(Block::Dense) => {
                let mlp = self.mlp(&format!("model.layers.{layer}.mlp"), self.config.intermediate_size)?;
                Ok(FeedForward::Dense(mlp))
            }
            Some(Block::Experts(shape, routing)) => {
                Ok(FeedForward::Mixture(Box::new(self.mixture(layer, &shape, routing)?)))
            }
            None => Err(CudaLoadError::UnsupportedModel { model_type: self.config.model_type.clone() }),
        }
    }

    fn mlp(&self, name: &str, width: usize) -> Result<Mlp, CudaLoadError> {
        let [gate, up, down] = ["gate", "up", "down"].map(|part| format!("{name}.{part}_proj.weight"));
        let hidden = self.config.hidden_size;
        Ok(Mlp {
            gate_up: self.matrix(&[(&gate, width), (&up, width)], hidden)?,
            down: self.matrix(&[(&down, hidden)], width)?,
        })
    }

    fn mixture(&self, layer: usize, shape: &ExpertShape, routing: Routing) -> Result<Mixture, CudaLoadError> {
        let [experts, per_token, shared, width] = [
            shape.n_routed_experts,
            shape.num_experts_per_tok,
            shape.n_shared_experts,
            shape.moe_intermediate_size,
        ]
        .map(|number| number as usize);
        let name = format!("model.layers.{layer}.mlp");
        let gate = format!("{name}.gate.weight");
        let weights = self.tensor(&gate, &[experts, self.config.hidden_size])?.to_f32();
        let bias = self.tensor(&format!("{name}.gate.e_score_correction_bias"), &[experts])?.to_f32();
        let router = RouterShape { experts, per_token, routing };
        Ok(Mixture {
            router: Router::upload(self.device, &gate, router, [&weights, &bias])?,
            experts: self.experts(layer, experts, width)?,
            shared: match shared * width {
                0 => None,
                width => Some(self.mlp(&format!("{name}.shared_experts"), width)?),
            },
        })
    }

    /// Expert after expert, so that no more than one of them is in the host's memory.
    fn experts(&self, layer: usize, count: usize, width: usize) -> Result<Mlp, CudaLoadError> {
        let (device, hidden) = (self.device, self.config.hidden_size);
        let what = format!("experts of layer {layer}");
        let mut gate_up = Weights::unwritten(device, &what, [count, 2 * width, hidden])?;
        let mut down = Weights::unwritten(device, &what, [count, hidden, width])?;
        for index in 0..count {
            let expert = self.checkpoint.expert(layer, index)?;
            let parts = expert.gate_up.len().max(1);
            let height = 2 * width / parts;
            for (part, tensor) in expert.gate_up.into_iter().enumerate() {
                let tensor = self.counted(tensor.expect_shape(&[height, hidden])?);
                gate_up.write(device, [index, part * height], &rounded(&tensor))?;
            }
            let tensor = self.counted(expert.down.expect_shape(&[hidden, width])?);
            down.write(device, [index, 0], &rounded(&tensor))?;
        }
        Ok(Mlp { gate_up, down })
    }

    fn up(&self, layer: usize, path: DecodePath) -> Result<UpProjection, CudaLoadError> {
        let name = &format!("model.layers.{layer}.self_attn.kv_b_proj.weight");
        let rows = (self.shape.groups * (self.shape.nope + self.shape.value)) as usize;
        let rank = self.attention.kv_lora_rank as usize;
        let tensor = self.tensor(name, &[rows, rank])?;
        Ok(UpProjection::upload(self.device, name, &self.shape, path, (&rounded(&tensor), rank))?)
    }
}

/// A tensor's numbers in bf16, as they lie in the file where they are that already.
fn rounded<'a>(tensor: &'a Tensor<'_>) -> Cow<'a, [bf16]> {
    let bytes = tensor.bytes();
    match (tensor.dtype, bytemuck::try_cast_slice(bytes)) {
        (Dtype::BF16, Ok(numbers)) if cfg!(target_endian = "little") => Cow::Borrowed(numbers),
        (Dtype::BF16, _) => {
            bytes.chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]])).collect()
        }
        _ => tensor.to_f32().into_iter().map(bf16::from_f32).collect(),
    }
}
