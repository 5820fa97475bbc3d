//! How many weights each part of a model has.
//!
//! Counts follow from the shape alone, so that a model can be planned for before its files are there:
//!
//! | part | weights |
//! |---|---|
//! | query, full | `h H (d_nope + d_rope)` |
//! | query, factored | `h q_r + q_r H (d_nope + d_rope)` |
//! | latent | `h (r + d_rope)` |
//! | keys and values from the latent | `r G (d_nope + d_v)` |
//! | output | `H d_v h` |
//! | dense feed-forward, one expert | `3 h × width` |
//! | router | `h E` |
//! | embedding, output head | `vocabulary × h` |
//! | prediction layer, besides a decoder layer's | `2 h × h` |
//!
//! Norms and biases are left out of the parts and make up less than a thousandth.

use crate::{AttentionShape, ModelShape};

/// Weights of one attention layer, in elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionParameters {
    /// `q_a_proj`; 0 where the query projection is not factored.
    pub query_down: u64,
    /// `q_b_proj`, or the full `q_proj`.
    pub query_up: u64,
    /// `kv_a_proj_with_mqa`.
    pub latent: u64,
    /// `kv_b_proj`.
    pub expand: u64,
    /// `o_proj`.
    pub output: u64,
}

impl AttentionParameters {
    /// All of them.
    pub fn total(&self) -> u64 {
        [self.query_down, self.query_up, self.latent, self.expand, self.output]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// Weights of a whole model by part, in elements. Sums saturate rather than overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// Decoder layers with a dense feed-forward block.
    pub dense_layers: u32,
    /// Decoder layers with experts.
    pub expert_layers: u32,
    /// One decoder layer's attention; the average of layers with different numbers of groups.
    pub attention: AttentionParameters,
    /// One prediction layer's attention.
    pub nextn_attention: AttentionParameters,
    /// One dense feed-forward block. Where the shape does not describe the weights, an even share of all that is not
    /// attention.
    pub dense: u64,
    /// One routed expert.
    pub expert: u64,
    /// All shared experts of a layer.
    pub shared_experts: u64,
    /// One layer's router.
    pub router: u64,
    /// The output head; read in every step even where it is the embedding.
    pub head: u64,
    /// The embedding, of which a step reads single rows.
    pub embedding: u64,
    /// What a prediction layer has besides a decoder layer's: the projection of embedding and hidden state.
    pub nextn_projection: u64,
}

impl Parameters {
    /// The counts of `shape`.
    pub fn of(shape: &ModelShape) -> Self {
        let weights = &shape.weights;
        let hidden = u64::from(shape.hidden_size);
        let mlp = |width: u32| product([3, hidden, width.into()]);
        let groups = weights.nextn_key_value_heads.unwrap_or(shape.attention.num_key_value_heads);
        let nextn = AttentionShape { num_key_value_heads: groups, ..shape.attention };
        let experts = weights.experts;
        let dense_layers =
            experts.map_or(u32::MAX, |experts| experts.first_k_dense_replace).min(shape.num_hidden_layers);
        let mut attention = attention(&shape.attention, hidden, weights.q_lora_rank);
        if shape.num_key_value_heads_per_layer.is_some() {
            let groups =
                shape.groups().into_iter().map(|(groups, layers)| u64::from(groups) * u64::from(layers));
            let all = groups.fold(0, u64::saturating_add).saturating_mul(shape.attention.expansion_weights());
            attention.expand = all / u64::from(shape.num_hidden_layers.max(1));
        }
        let vocabulary = product([hidden, weights.vocab_size.unwrap_or(0).into()]);
        let counted = Self {
            dense_layers,
            expert_layers: shape.num_hidden_layers - dense_layers,
            attention,
            nextn_attention: self::attention(&nextn, hidden, weights.q_lora_rank),
            dense: weights.intermediate_size.map_or(0, mlp),
            expert: experts.map_or(0, |experts| mlp(experts.moe_intermediate_size)),
            shared_experts: experts.map_or(0, |experts| {
                mlp(experts.moe_intermediate_size).saturating_mul(experts.n_shared_experts.into())
            }),
            router: experts.map_or(0, |experts| product([hidden, experts.n_routed_experts.into()])),
            head: vocabulary,
            embedding: if weights.tie_word_embeddings { 0 } else { vocabulary },
            nextn_projection: product([2, hidden, hidden]),
        };
        if weights.intermediate_size.is_some() || experts.is_some() {
            return counted;
        }
        let layers = u64::from(shape.num_hidden_layers);
        let known = product([layers, attention.total()])
            .saturating_add(counted.head)
            .saturating_add(counted.embedding);
        Self { dense: shape.parameters.saturating_sub(known) / layers.max(1), ..counted }
    }

    /// All weights of the decoder, without prediction layers.
    pub fn total(&self, routed_experts: u32) -> u64 {
        let layers = u64::from(self.dense_layers) + u64::from(self.expert_layers);
        [
            product([layers, self.attention.total()]),
            product([self.dense_layers.into(), self.dense]),
            product([self.expert_layers.into(), self.experts(routed_experts)]),
            self.head,
            self.embedding,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }

    /// All weights of one prediction layer, which shares the decoder's embedding and output head.
    pub fn nextn_layer(&self, routed_experts: u32) -> u64 {
        let feed_forward = if self.expert_layers > 0 { self.experts(routed_experts) } else { self.dense };
        self.nextn_attention.total().saturating_add(feed_forward).saturating_add(self.nextn_projection)
    }

    fn experts(&self, routed: u32) -> u64 {
        let routed = self.expert.saturating_mul(routed.into());
        routed.saturating_add(self.shared_experts).saturating_add(self.router)
    }
}

fn attention(shape: &AttentionShape, hidden: u64, q_lora_rank: Option<u32>) -> AttentionParameters {
    let heads = u64::from(shape.num_attention_heads);
    let (nope, rope, value) =
        (u64::from(shape.qk_nope_head_dim), u64::from(shape.qk_rope_head_dim), u64::from(shape.v_head_dim));
    let rank = u64::from(shape.kv_lora_rank);
    let query_input = q_lora_rank.map_or(hidden, u64::from);
    AttentionParameters {
        query_down: q_lora_rank.map_or(0, |rank| product([hidden, rank.into()])),
        query_up: product([query_input, heads, nope + rope]),
        latent: product([hidden, rank + rope]),
        expand: product([shape.num_key_value_heads.into(), shape.expansion_weights()]),
        output: product([heads, value, hidden]),
    }
}

fn product<const N: usize>(factors: [u64; N]) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExpertShape, WeightFormat, WeightShape};

    /// GLM-4.7-Flash as published: 20 heads, one group each.
    fn glm(groups: u32) -> ModelShape {
        ModelShape {
            attention: AttentionShape {
                num_attention_heads: 20,
                num_key_value_heads: groups,
                kv_lora_rank: 512,
                qk_nope_head_dim: 192,
                qk_rope_head_dim: 64,
                v_head_dim: 256,
            },
            num_key_value_heads_per_layer: None,
            hidden_size: 2048,
            num_hidden_layers: 47,
            parameters: 29_900_000_000,
            num_nextn_predict_layers: 1,
            max_position_embeddings: 202_752,
            weights: WeightShape {
                q_lora_rank: Some(768),
                intermediate_size: Some(10_240),
                vocab_size: Some(154_880),
                tie_word_embeddings: false,
                experts: Some(ExpertShape {
                    n_routed_experts: 64,
                    num_experts_per_tok: 4,
                    n_shared_experts: 1,
                    moe_intermediate_size: 1536,
                    first_k_dense_replace: 1,
                }),
                weight_format: WeightFormat::Bf16,
                nextn_key_value_heads: None,
            },
        }
    }

    /// The published breakdown of what one token reads: attention 0.85, shared experts 0.43, routed experts 1.74, head
    /// 0.32, the dense layer 0.06 billion.
    #[test]
    fn glm_parts_are_the_published_ones() {
        let parts = Parameters::of(&glm(4));
        let billions = |count: u64| (count as f64 / 1e7).round() / 100.0;
        assert_eq!(billions(parts.attention.total() * 47), 0.85);
        assert_eq!(billions(parts.shared_experts * 46), 0.43);
        assert_eq!(billions(parts.expert * 4 * 46), 1.74);
        assert_eq!(billions(parts.head), 0.32);
        assert_eq!(billions(parts.dense), 0.06);
        assert_eq!(billions(Parameters::of(&glm(20)).total(64)), 29.94);
    }

    /// A layer grafted from the source model keeps one group per head.
    #[test]
    fn a_prediction_layer_has_experts_and_a_projection_besides() {
        let parts = Parameters::of(&glm(20));
        let (expert, projection) = (3 * 2048 * 1536, 2 * 2048 * 2048);
        let expected = parts.attention.total() + 65 * expert + 2048 * 64 + projection;
        assert_eq!(parts.nextn_layer(64), expected);
        let mut grafted = glm(4);
        grafted.weights.nextn_key_value_heads = Some(20);
        assert_eq!(Parameters::of(&grafted).nextn_layer(64), expected, "one group per head");
        let dense = ModelShape { weights: WeightShape { experts: None, ..glm(4).weights }, ..glm(4) };
        let parts = Parameters::of(&dense);
        assert_eq!(parts.nextn_layer(0), parts.attention.total() + 3 * 2048 * 10_240 + projection);
    }

    /// Half of the layers at 4 groups and half at 20 have the weights of both halves.
    #[test]
    fn layers_with_fewer_groups_have_fewer_weights() {
        let halves = |groups: [u32; 2]| {
            let list = (0..46).map(|layer| groups[layer % 2]).collect();
            ModelShape { num_key_value_heads_per_layer: Some(list), num_hidden_layers: 46, ..glm(20) }
        };
        let total = |groups| Parameters::of(&halves(groups)).total(64);
        assert_eq!(2 * total([4, 20]), total([4, 4]) + total([20, 20]));
        let uniform = ModelShape { num_hidden_layers: 46, ..glm(20) };
        assert_eq!(Parameters::of(&halves([20, 20])), Parameters::of(&uniform));
    }

    #[test]
    fn weights_that_are_not_described_are_dense() {
        let shape = ModelShape { weights: WeightShape::default(), ..glm(4) };
        let parts = Parameters::of(&shape);
        assert_eq!((parts.dense_layers, parts.expert_layers, parts.head), (47, 0, 0));
        let missing = shape.parameters - parts.total(0);
        assert!(missing < 47, "the division leaves a remainder of {missing}");
    }
}
