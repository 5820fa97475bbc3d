//! One layer of a checkpoint.

use gqla_kernels::{
    Matrix, MatrixError, WeightRows,
    attention::{Absorb, Attention, PerGroup, Plain, UpProjection},
};
use gqla_model::{AttentionShape, DecodePath, ExpertShape, RopeScaling, Routing};
use gqla_weights::{FeedForward as Block, Tensor};

use super::{Kind, LoadError, Numbers, dims};
use crate::cpu::{
    feed_forward::{FeedForward, Mixture, Mlp},
    model::Layer,
    projection::{FactoredQuery, Projection},
    shard::Shard,
    weights::{Precision, Products},
};

/// One layer of a checkpoint.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub checkpoint: &'a Shard<'a>,
    /// What its matrices become.
    pub precision: Precision,
    pub layer: usize,
}

impl<'a> Source<'a> {
    fn tensor(self, name: &str, shape: &[usize]) -> Result<Tensor<'a>, LoadError> {
        let name = format!("model.layers.{}.{name}", self.layer);
        Ok(self.checkpoint.tensor(&name)?.expect_shape(shape)?)
    }

    pub fn norm(self, name: &str, width: usize) -> Result<Vec<f32>, LoadError> {
        Ok(self.tensor(&format!("{name}.weight"), &[width])?.to_f32())
    }

    /// Stacks matrices of `inputs` columns.
    pub fn matrix(self, parts: &[(&str, usize)], inputs: usize) -> Result<Matrix, LoadError> {
        let parts: Vec<_> = parts
            .iter()
            .map(|(name, outputs)| self.tensor(&format!("{name}.weight"), &[*outputs, inputs]))
            .collect::<Result<_, _>>()?;
        self.stack(&parts, inputs)
    }

    fn stack(self, parts: &[Tensor<'_>], inputs: usize) -> Result<Matrix, LoadError> {
        let parts: Vec<_> = parts.iter().map(Numbers::of).collect();
        let rows: Vec<_> = parts.iter().map(Numbers::rows).collect();
        self.precision.stack(&rows, inputs).map_err(|source| self.broken(source))
    }

    fn broken(self, source: MatrixError) -> LoadError {
        LoadError::Matrix { layer: self.layer, source }
    }

    fn hidden(self) -> usize {
        self.checkpoint.config().hidden_size
    }

    pub fn layer(self, kind: Kind) -> Result<Layer, LoadError> {
        let hidden = self.hidden();
        let (projection, attention) = match kind {
            Kind::Plain { heads, groups, head_dim } => self.plain(heads, groups, head_dim)?,
            Kind::Latent { shape, path, q_lora_rank, normed } => {
                let attention = self.attention(&shape, path)?;
                (self.latent_projection(&shape, q_lora_rank, normed)?, attention)
            }
        };
        Ok(Layer {
            input_norm: self.norm("input_layernorm", hidden)?,
            projection,
            output: self.matrix(&[("self_attn.o_proj", hidden)], attention.output_width())?,
            attention,
            expanded: None,
            post_norm: self.norm("post_attention_layernorm", hidden)?,
            feed_forward: self.feed_forward()?,
        })
    }

    fn plain(
        self,
        heads: usize,
        groups: usize,
        head_dim: usize,
    ) -> Result<(Projection, Box<dyn Attention>), LoadError> {
        let parts = [
            ("self_attn.q_proj", heads * head_dim),
            ("self_attn.k_proj", groups * head_dim),
            ("self_attn.v_proj", groups * head_dim),
        ];
        let stacked = self.matrix(&parts, self.hidden())?;
        let projection = Projection { stacked, query: None, latent_norm: None };
        let plain = Plain::new(heads, groups, head_dim);
        Ok((projection, Box::new(plain.with_bf16_products(self.precision.products == Products::Bf16))))
    }

    fn latent_projection(
        self,
        shape: &AttentionShape,
        q_lora_rank: Option<usize>,
        normed: bool,
    ) -> Result<Projection, LoadError> {
        let [heads, nope, rope, rank] = dims(shape);
        let queries = heads * (nope + rope);
        let query_part = match q_lora_rank {
            None => ("self_attn.q_proj", queries),
            Some(rank) => ("self_attn.q_a_proj", rank),
        };
        let norm = |name, width| if normed { self.norm(name, width).map(Some) } else { Ok(None) };
        let query = match q_lora_rank {
            None => None,
            Some(rank) => Some(FactoredQuery {
                norm: norm("self_attn.q_a_layernorm", rank)?,
                up: self.matrix(&[("self_attn.q_b_proj", queries)], rank)?,
            }),
        };
        Ok(Projection {
            stacked: self
                .matrix(&[query_part, ("self_attn.kv_a_proj_with_mqa", rank + rope)], self.hidden())?,
            query,
            latent_norm: norm("self_attn.kv_a_layernorm", rank)?.map(|weight| (queries, weight)),
        })
    }

    /// The shape with this layer's groups, and its up-projection.
    fn up_projection(self, shape: &AttentionShape) -> Result<(AttentionShape, Tensor<'a>), LoadError> {
        let own = self.checkpoint.groups_of_layer(self.layer).and_then(|groups| u32::try_from(groups).ok());
        let num_key_value_heads = own.unwrap_or(shape.num_key_value_heads);
        let shape = AttentionShape { num_key_value_heads, ..*shape };
        shape.validate().map_err(|source| LoadError::Shape { layer: self.layer, source })?;
        let [_, nope, _, rank] = dims(&shape);
        let rows = num_key_value_heads as usize * (nope + shape.v_head_dim as usize);
        Ok((shape, self.tensor("self_attn.kv_b_proj.weight", &[rows, rank])?))
    }

    fn attention(self, shape: &AttentionShape, path: DecodePath) -> Result<Box<dyn Attention>, LoadError> {
        Ok(match path {
            DecodePath::Gqa => Box::new(self.per_group(shape)?),
            DecodePath::MqaAbsorb => {
                let (shape, up) = self.up_projection(shape)?;
                let absorb = Absorb::new(&shape, UpProjection(Numbers::of(&up).rows()));
                let absorb =
                    absorb.map_err(|source| self.broken(source))?.with_score_factor(self.score_factor());
                Box::new(absorb.with_bf16_products(self.precision.products == Products::Bf16))
            }
        })
    }

    pub fn per_group(self, shape: &AttentionShape) -> Result<PerGroup, LoadError> {
        let (shape, up) = self.up_projection(shape)?;
        let per_group = PerGroup::new(&shape, UpProjection(Numbers::of(&up).rows()));
        let per_group =
            per_group.map_err(|source| self.broken(source))?.with_score_factor(self.score_factor());
        Ok(per_group.with_bf16_products(self.precision.products == Products::Bf16))
    }

    fn score_factor(self) -> f32 {
        let scaling = self.checkpoint.config().rope_scaling.as_ref();
        scaling.map_or(1.0, RopeScaling::score_factor) as f32
    }

    fn feed_forward(self) -> Result<FeedForward, LoadError> {
        let config = self.checkpoint.config();
        match config.feed_forward(self.layer) {
            Some(Block::Experts(shape, routing)) => Ok(FeedForward::Mixture(self.mixture(&shape, routing)?)),
            Some(Block::Dense) => Ok(FeedForward::Dense(self.mlp("mlp", config.intermediate_size)?)),
            None => Err(LoadError::UnsupportedModel { model_type: config.model_type.clone() }),
        }
    }

    fn mlp(self, name: &str, width: usize) -> Result<Mlp, LoadError> {
        let [gate, up, down] = ["gate", "up", "down"].map(|part| format!("{name}.{part}_proj"));
        Ok(Mlp {
            gate_up: self.matrix(&[(&gate, width), (&up, width)], self.hidden())?,
            down: self.matrix(&[(&down, self.hidden())], width)?,
        })
    }

    fn mixture(self, shape: &ExpertShape, routing: Routing) -> Result<Mixture, LoadError> {
        let [count, shared, width] =
            [shape.n_routed_experts, shape.n_shared_experts, shape.moe_intermediate_size]
                .map(|number| number as usize);
        let router = self.tensor("mlp.gate.weight", &[count, self.hidden()])?.to_f32();
        let shared = match shared * width {
            0 => None,
            width => Some(self.mlp("mlp.shared_experts", width)?),
        };
        Ok(Mixture {
            router: Matrix::stack(&[WeightRows::F32(&router)], self.hidden())
                .map_err(|source| self.broken(source))?,
            bias: self.tensor("mlp.gate.e_score_correction_bias", &[count])?.to_f32(),
            routing,
            experts_per_token: shape.num_experts_per_tok as usize,
            experts: (0..count).map(|expert| self.expert(expert, width)).collect::<Result<_, _>>()?,
            shared,
        })
    }

    fn expert(self, expert: usize, width: usize) -> Result<Mlp, LoadError> {
        let hidden = self.hidden();
        let source = self.checkpoint.expert(self.layer, expert)?;
        let parts = source.gate_up.len().max(1);
        let gate_up = source
            .gate_up
            .into_iter()
            .map(|part| part.expect_shape(&[2 * width / parts, hidden]))
            .collect::<Result<Vec<_>, _>>()?;
        let down = source.down.expect_shape(&[hidden, width])?;
        Ok(Mlp { gate_up: self.stack(&gate_up, hidden)?, down: self.stack(&[down], width)? })
    }
}
