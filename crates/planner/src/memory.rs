//! What fits on one device: the rank's share of the weights first, then as many cached tokens as the rest holds.

use std::fmt;

use gqla_model::DecodePath;

use crate::{plan::Goal, roofline::CacheLayout, step::StepModel};

/// Memory of one rank, in bytes. Projections into the query's and the keys' latents, into prediction layers and the
/// routers are on every rank, up-projections come in whole groups; everything else divides. Every drafted token has a
/// prediction layer of its own. Activations, graphs and the allocator live in what [`Goal::memory_fraction`] leaves
/// free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Memory {
    weights: f64,
    format: &'static str,
    ranks: u32,
    weights_per_rank: u64,
    device: u64,
    fraction: f64,
    usable: u64,
    bytes_per_token: u64,
}

impl Memory {
    /// The budget of a rank that also holds `drafts` prediction layers and their cache.
    pub(crate) fn new(model: &StepModel<'_>, drafts: u32, layout: CacheLayout, goal: &Goal) -> Self {
        let (shape, split) = (model.shape, model.split);
        let bytes = shape.weights.weight_format.bytes_per_element();
        let routed = shape.weights.experts.map_or(0, |experts| experts.n_routed_experts);
        let drafting = f64::from(drafts) * model.parts.nextn_layer(routed) as f64;
        let elements = shape.parameters as f64 + drafting;
        let replicated = replicated(model, drafts).min(elements);
        let (expanded, held) = expansions(model, drafts);
        let divided = (elements - replicated - expanded).max(0.0);
        let per_rank = divided / f64::from(split.degree) + replicated + held;
        let draft_path = if model.own_groups() { DecodePath::MqaAbsorb } else { model.path };
        let drafted = layout.bytes(&shape.attention, draft_path, split).saturating_mul(drafts.into());
        let per_token = model.layers.iter().fold(drafted, |sum, layers| {
            let bytes = layout.bytes(&layers.attention, model.path, layers.split);
            sum.saturating_add(bytes.saturating_mul(layers.count.into()))
        });
        Self {
            weights: elements * bytes,
            format: shape.weights.weight_format.name(),
            ranks: split.degree,
            weights_per_rank: (per_rank * bytes) as u64,
            device: model.gpu.memory_bytes,
            fraction: goal.memory_fraction,
            usable: (model.gpu.memory_bytes as f64 * goal.memory_fraction) as u64,
            bytes_per_token: per_token.max(1),
        }
    }

    /// Cached tokens that fit beside the weights.
    pub(crate) fn capacity_tokens(&self) -> u64 {
        self.usable.saturating_sub(self.weights_per_rank) / self.bytes_per_token
    }

    /// Why a sequence of `context_length` tokens does not fit, if it does not.
    pub(crate) fn shortage(&self, context_length: u32) -> Option<String> {
        if self.weights_per_rank > self.usable {
            return Some(format!(
                "{} weights of {} over {} = {} per GPU, but {} of {} = {} can be used: {} short",
                self.format,
                Gib(self.weights),
                ranks(self.ranks),
                Gib(self.weights_per_rank as f64),
                self.fraction,
                Gib(self.device as f64),
                Gib(self.usable as f64),
                Gib((self.weights_per_rank - self.usable) as f64),
            ));
        }
        let capacity = self.capacity_tokens();
        (capacity < u64::from(context_length)).then(|| {
            format!(
                "beside {} of weights per GPU, {} of {} leave {} for the cache: {capacity} tokens of {} B, \
                 fewer than one sequence of {context_length}",
                Gib(self.weights_per_rank as f64),
                self.fraction,
                Gib(self.device as f64),
                Gib((self.usable - self.weights_per_rank) as f64),
                self.bytes_per_token,
            )
        })
    }
}

/// Elements every rank holds, over all layers.
fn replicated(model: &StepModel<'_>, drafts: u32) -> f64 {
    let (parts, drafts) = (&model.parts, f64::from(drafts));
    let layers = f64::from(parts.dense_layers) + f64::from(parts.expert_layers) + drafts;
    let attention = (parts.attention.query_down + parts.attention.latent) as f64;
    let drafts_with_experts = if parts.expert_layers > 0 { drafts } else { 0.0 };
    let routers = (f64::from(parts.expert_layers) + drafts_with_experts) * parts.router as f64;
    layers * attention + routers + drafts * parts.nextn_projection as f64
}

/// Elements of the latent's up-projections over all layers: of the model, and of one rank, which holds whole groups.
fn expansions(model: &StepModel<'_>, drafts: u32) -> (f64, f64) {
    let attention = &model.shape.attention;
    let per_group = attention.expansion_weights() as f64;
    let (drafting, drafts) = (
        model.shape.weights.nextn_key_value_heads.unwrap_or(attention.num_key_value_heads),
        f64::from(drafts),
    );
    let drafting_held = (f64::from(drafting) / f64::from(model.split.degree)).max(1.0);
    let start = (drafts * f64::from(drafting), drafts * drafting_held);
    let (all, held) = model.layers.iter().fold(start, |(all, held), layers| {
        let (groups, count) = (layers.attention.num_key_value_heads, f64::from(layers.count));
        (all + count * f64::from(groups), held + count * model.expansions_held(groups))
    });
    (all * per_group, held * per_group)
}

fn ranks(count: u32) -> String {
    if count == 1 { "1 GPU".to_owned() } else { format!("{count} GPUs") }
}

/// Bytes, printed in GiB with one decimal.
struct Gib(f64);

impl fmt::Display for Gib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} GiB", self.0 / f64::from(1 << 30))
    }
}
