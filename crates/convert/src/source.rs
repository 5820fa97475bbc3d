//! Reads what conversion needs of a plain LLaMA checkpoint, one layer at a time.

use gqla_weights::{AttentionConfig, Checkpoint, ModelConfig, TensorError};

use crate::{
    assemble::PlainWeights,
    forward::{LayerTail, Linear, Mlp, PlainProjection},
    geometry::SourceAttention,
};

/// One layer of the source, in f32.
pub(crate) struct SourceLayer {
    pub(crate) input_layernorm: Vec<f32>,
    pub(crate) attention: PlainProjection,
    pub(crate) tail: LayerTail,
}

impl SourceLayer {
    /// The projections in f64, for the algebra.
    pub(crate) fn plain_weights(&self) -> PlainWeights {
        let PlainProjection { q, k, v, .. } = &self.attention;
        PlainWeights { q: q.to_f64(), k: k.to_f64(), v: v.to_f64() }
    }
}

/// A checkpoint that can be converted.
pub(crate) struct Source<'a> {
    checkpoint: &'a Checkpoint,
    attention: SourceAttention,
}

impl<'a> Source<'a> {
    /// Refuses checkpoints that are not plain LLaMA models.
    pub(crate) fn new(checkpoint: &'a Checkpoint) -> Result<Self, SourceError> {
        let config = checkpoint.config();
        let AttentionConfig::Plain { num_attention_heads, num_key_value_heads, head_dim } = config.attention
        else {
            return Err(SourceError::AlreadyLatent { model_type: config.model_type.clone() });
        };
        if config.model_type != "llama" {
            return Err(SourceError::Architecture { model_type: config.model_type.clone() });
        }
        if config.rope_scaling.is_some() {
            return Err(SourceError::ScaledRope);
        }
        let attention = SourceAttention { heads: num_attention_heads, groups: num_key_value_heads, head_dim };
        Ok(Self { checkpoint, attention })
    }

    pub(crate) fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    pub(crate) fn config(&self) -> &'a ModelConfig {
        self.checkpoint.config()
    }

    pub(crate) fn attention(&self) -> SourceAttention {
        self.attention
    }

    /// The embeddings `[ids.len(), D]` of `ids`, which must lie in the vocabulary.
    pub(crate) fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, TensorError> {
        let (vocabulary, width) = (self.config().vocab_size, self.config().hidden_size);
        let table =
            self.checkpoint.tensor("model.embed_tokens.weight")?.expect_shape(&[vocabulary, width])?.to_f32();
        Ok(ids.iter().flat_map(|id| &table[*id as usize * width..][..width]).copied().collect())
    }

    /// One decoder layer.
    pub(crate) fn layer(&self, index: usize) -> Result<SourceLayer, TensorError> {
        let SourceAttention { heads, groups, head_dim } = self.attention;
        let (hidden, inner) = (self.config().hidden_size, self.config().intermediate_size);
        let (q, kv) = (heads * head_dim, groups * head_dim);
        let name = |suffix: &str| format!("model.layers.{index}.{suffix}.weight");
        Ok(SourceLayer {
            input_layernorm: self.vector(&name("input_layernorm"))?,
            attention: PlainProjection {
                q: self.linear(&name("self_attn.q_proj"), q, hidden)?,
                k: self.linear(&name("self_attn.k_proj"), kv, hidden)?,
                v: self.linear(&name("self_attn.v_proj"), kv, hidden)?,
                heads,
                groups,
            },
            tail: LayerTail {
                o: self.linear(&name("self_attn.o_proj"), hidden, q)?,
                post_attention_layernorm: self.vector(&name("post_attention_layernorm"))?,
                mlp: Mlp {
                    gate: self.linear(&name("mlp.gate_proj"), inner, hidden)?,
                    up: self.linear(&name("mlp.up_proj"), inner, hidden)?,
                    down: self.linear(&name("mlp.down_proj"), hidden, inner)?,
                },
            },
        })
    }

    /// A tensor of the residual stream's width.
    fn vector(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        Ok(self.checkpoint.tensor(name)?.expect_shape(&[self.config().hidden_size])?.to_f32())
    }

    fn linear(&self, name: &str, rows: usize, columns: usize) -> Result<Linear, TensorError> {
        Linear::from_tensor(self.checkpoint.tensor(name)?, rows, columns)
    }
}

/// Why a checkpoint cannot be converted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// There is nothing left to convert.
    #[error(
        "the source is already a latent-attention model (model_type `{model_type}`): conversion starts from \
         grouped-query attention with q_proj, k_proj and v_proj"
    )]
    AlreadyLatent {
        /// As in the source's config.
        model_type: String,
    },
    /// Rotary frequencies that the partial rotation does not know.
    #[error(
        "the source's config scales its rotary frequencies (rope_scaling), which is not converted yet: convert a model \
         with unscaled frequencies"
    )]
    ScaledRope,
    /// Another architecture.
    #[error(
        "the source has model_type `{model_type}`, expected `llama`: other architectures are not converted yet"
    )]
    Architecture {
        /// As in the source's config.
        model_type: String,
    },
}
