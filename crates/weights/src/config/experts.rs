//! Mixtures of experts, in the fields of the DeepSeek family, which GLM shares.

use gqla_model::{ExpertShape, Routing};

use super::{ConfigError, ModelConfig, fields::Fields};

/// What a layer's feed-forward block is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FeedForward {
    /// One block of `intermediate_size` for all tokens.
    Dense,
    /// Experts.
    Experts(ExpertShape, Routing),
}

impl ModelConfig {
    /// The feed-forward block of layer `layer`, prediction layers included; `None` for a family the engine does not
    /// compute.
    pub fn feed_forward(&self, layer: usize) -> Option<FeedForward> {
        match (self.experts, self.routing) {
            (Some(experts), Some(_)) if layer < experts.first_k_dense_replace as usize => {
                Some(FeedForward::Dense)
            }
            (Some(experts), Some(routing)) => Some(FeedForward::Experts(experts, routing)),
            _ => super::is_computed(&self.model_type).then_some(FeedForward::Dense),
        }
    }
}

pub(super) fn shape(fields: &Fields<'_>) -> Result<Option<ExpertShape>, ConfigError> {
    if fields.optional_usize("n_routed_experts")?.is_none() {
        return Ok(None);
    }
    Ok(Some(ExpertShape {
        n_routed_experts: fields.u32("n_routed_experts")?,
        num_experts_per_tok: fields.u32("num_experts_per_tok")?,
        n_shared_experts: fields.count_or_zero("n_shared_experts")? as u32,
        moe_intermediate_size: fields.u32("moe_intermediate_size")?,
        first_k_dense_replace: match fields.leading("mlp_layer_types", "dense")? {
            Some(dense) => dense,
            None => fields.count_or_zero("first_k_dense_replace")? as u32,
        },
    }))
}

/// Refuses any routing but the one that is computed.
pub(super) fn routing(fields: &Fields<'_>, experts: &ExpertShape) -> Result<Routing, ConfigError> {
    experts.validate().map_err(|source| ConfigError::Shape { file: fields.file().to_owned(), source })?;
    for (field, computed) in [("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")] {
        if let Some(other) = fields.optional_string(field)?.filter(|value| value != computed) {
            return Err(fields.unsupported(field, &other, &format!("only `{computed}` is computed")));
        }
    }
    if let Some(frequency) = fields.optional_usize("moe_layer_freq")?.filter(|frequency| *frequency != 1) {
        let reason = "only models whose layers all have experts, but for the first ones, are computed";
        return Err(fields.unsupported("moe_layer_freq", &frequency.to_string(), reason));
    }
    dense_layers_come_first(fields)?;
    let routing = Routing {
        n_group: fields.optional_usize("n_group")?.unwrap_or(1) as u32,
        topk_group: fields.optional_usize("topk_group")?.unwrap_or(1) as u32,
        norm_topk_prob: fields.bool_or("norm_topk_prob", true)?,
        routed_scaling_factor: fields.f64("routed_scaling_factor")? as f32,
    };
    enough_experts(fields, experts, &routing)?;
    Ok(routing)
}

fn dense_layers_come_first(fields: &Fields<'_>) -> Result<(), ConfigError> {
    let Some(types) = fields.strings("mlp_layer_types")? else { return Ok(()) };
    let later = types.iter().skip_while(|kind| *kind == "dense").find(|kind| *kind != "sparse");
    match later {
        None => Ok(()),
        Some(kind) => Err(fields.unsupported(
            "mlp_layer_types",
            &format!("a list with `{kind}` after `sparse`"),
            "only dense layers followed by sparse ones are computed",
        )),
    }
}

fn enough_experts(fields: &Fields<'_>, experts: &ExpertShape, routing: &Routing) -> Result<(), ConfigError> {
    let (all, chosen) = (experts.n_routed_experts, experts.num_experts_per_tok);
    let Routing { n_group, topk_group, .. } = *routing;
    if !all.is_multiple_of(n_group) {
        return Err(fields.wrong("n_group", n_group, format!("a divisor of n_routed_experts={all}")));
    }
    if topk_group > n_group {
        return Err(fields.wrong("topk_group", topk_group, format!("at most n_group={n_group}")));
    }
    let open = u64::from(all / n_group) * u64::from(topk_group);
    if u64::from(chosen) > open {
        let expected = format!("at most {open}, the experts of topk_group={topk_group} of {n_group} groups");
        return Err(fields.wrong("num_experts_per_tok", chosen, expected));
    }
    Ok(())
}
