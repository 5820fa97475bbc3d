//! The part of a checkpoint that one tensor-parallel rank computes with.
//!
//! A [`Shard`] looks like a checkpoint of a smaller model: its configuration has the rank's heads, groups, feed-forward
//! columns and vocabulary, and its tensors are cut to them as they are read. A rank has whole query heads. Attention
//! and feed-forward blocks are cut by their inner dimension, so that the ranks' outputs add up to the whole model's;
//! embedding and head are cut by vocabulary. Norms, down-projections into the latent and routers are read by every rank.

#[cfg(test)]
pub(super) mod tests;

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use gqla_model::{AttentionShape, DecodePath, SplitError, TensorParallelSplit};
use gqla_weights::{AttentionConfig, Checkpoint, Expert, ModelConfig, Tensor, TensorError};

use super::LoadError;

/// One of `world` ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rank {
    pub rank: usize,
    pub world: usize,
}

impl Rank {
    /// The rank of a model that is not divided.
    pub const ONLY: Self = Self { rank: 0, world: 1 };

    /// This rank's part of `total` things; parts differ in size by at most one.
    pub fn share(self, total: usize) -> Range<usize> {
        total * self.rank / self.world..total * (self.rank + 1) / self.world
    }
}

/// A checkpoint as one rank sees it.
pub(super) struct Shard<'a> {
    checkpoint: &'a Checkpoint,
    rank: Rank,
    /// The configuration of the rank's part.
    config: ModelConfig,
    bytes_read: AtomicU64,
}

impl<'a> Shard<'a> {
    /// The whole checkpoint.
    pub fn whole(checkpoint: &'a Checkpoint) -> Self {
        let config = checkpoint.config().clone();
        Self { checkpoint, rank: Rank::ONLY, config, bytes_read: AtomicU64::new(0) }
    }

    /// A rank's part of it; `path` is the one the model decodes along, and [`DecodePath::Gqa`] for a plain model.
    pub fn new(checkpoint: &'a Checkpoint, path: DecodePath, rank: Rank) -> Result<Self, LoadError> {
        check(checkpoint, path, rank.world)?;
        let mut shard = Self { rank, ..Self::whole(checkpoint) };
        shard.config = shard.own_config();
        Ok(shard)
    }

    /// The configuration of this part.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Rows of the whole model's embedding.
    pub fn whole_vocabulary(&self) -> usize {
        self.checkpoint.config().vocab_size
    }

    /// Those that are this rank's.
    pub fn vocabulary(&self) -> Range<usize> {
        self.rank.share(self.whole_vocabulary())
    }

    /// Bytes of the tensors read so far, as they are stored.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// A tensor, cut to this rank's part.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'a>, TensorError> {
        let tensor = self.checkpoint.tensor(name)?;
        let tensor = match self.cut(name) {
            Cut::Whole => tensor,
            Cut::Rows(ranges) => tensor.rows(&ranges)?,
            Cut::Columns(range) => tensor.columns(range)?,
        };
        self.count(&tensor);
        Ok(tensor)
    }

    /// An expert's matrices, cut to this rank's part of its columns.
    pub fn expert(&self, layer: usize, expert: usize) -> Result<Expert<'a>, TensorError> {
        let Expert { gate_up, down } = self.checkpoint.expert(layer, expert)?;
        let (own, all) = (self.of_experts(1), self.moe_intermediate_size());
        let cut = |tensor: Tensor<'a>| match tensor.shape.first() {
            Some(rows) if *rows == 2 * all => tensor.rows(&[own.clone(), all + own.start..all + own.end]),
            _ => tensor.rows(std::slice::from_ref(&own)),
        };
        let expert = match self.rank.world {
            1 => Expert { gate_up, down },
            _ => Expert {
                gate_up: gate_up.into_iter().map(cut).collect::<Result<_, _>>()?,
                down: down.columns(own.clone())?,
            },
        };
        expert.gate_up.iter().chain([&expert.down]).for_each(|tensor| self.count(tensor));
        Ok(expert)
    }

    fn count(&self, tensor: &Tensor<'_>) {
        self.bytes_read.fetch_add(tensor.bytes().len() as u64, Ordering::Relaxed);
    }

    /// Groups of this rank's part of layer `layer`, which may be a prediction layer; `None` for plain attention.
    pub fn groups_of_layer(&self, layer: usize) -> Option<usize> {
        self.checkpoint.groups_of_layer(layer).map(|_| self.groups(layer).len())
    }

    fn moe_intermediate_size(&self) -> usize {
        self.checkpoint.config().experts.map_or(0, |experts| experts.moe_intermediate_size as usize)
    }

    /// This rank's columns of `count` experts side by side.
    fn of_experts(&self, count: u32) -> Range<usize> {
        times(self.rank.share(self.moe_intermediate_size()), count as usize)
    }

    fn of_shared_experts(&self) -> Range<usize> {
        self.of_experts(self.checkpoint.config().experts.map_or(0, |experts| experts.n_shared_experts))
    }

    fn cut(&self, name: &str) -> Cut {
        if self.rank.world == 1 {
            return Cut::Whole;
        }
        let whole = self.checkpoint.config();
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let Some((layer, part)) = layer else {
            return match name {
                "model.embed_tokens.weight" | "lm_head.weight" => Cut::Rows(vec![self.vocabulary()]),
                _ => Cut::Whole,
            };
        };
        let dims = Dims::of(&whole.attention);
        match part.strip_suffix(".weight").unwrap_or(part) {
            "self_attn.q_proj" | "self_attn.q_b_proj" => Cut::Rows(vec![times(self.heads(), dims.query)]),
            "self_attn.o_proj" => Cut::Columns(times(self.heads(), dims.value)),
            "self_attn.k_proj" => Cut::Rows(self.of_groups(layer, dims.query)),
            "self_attn.v_proj" => Cut::Rows(self.of_groups(layer, dims.value)),
            "self_attn.kv_b_proj" => Cut::Rows(self.of_groups(layer, dims.nope + dims.value)),
            "mlp.gate_proj" | "mlp.up_proj" => Cut::Rows(vec![self.rank.share(whole.intermediate_size)]),
            "mlp.down_proj" => Cut::Columns(self.rank.share(whole.intermediate_size)),
            "mlp.shared_experts.gate_proj" | "mlp.shared_experts.up_proj" => {
                Cut::Rows(vec![self.of_shared_experts()])
            }
            "mlp.shared_experts.down_proj" => Cut::Columns(self.of_shared_experts()),
            _ => Cut::Whole,
        }
    }

    /// The query heads of this rank.
    fn heads(&self) -> Range<usize> {
        self.rank.share(Dims::of(&self.checkpoint.config().attention).heads)
    }

    /// Rows of this rank's groups in a matrix that has `rows` for every group.
    fn of_groups(&self, layer: &str, rows: usize) -> Vec<Range<usize>> {
        let groups = layer.parse().map_or_else(|_| Vec::new(), |layer| self.groups(layer));
        joined(groups.into_iter().map(|group| times(group..group + 1, rows)))
    }

    /// The group of each run of this rank's heads that belongs to one group and is as long as the others. Such a run is
    /// a group of the rank's model: a whole group where the rank has whole groups, or the rank's heads where several
    /// ranks share a group. On the absorb path, which takes any whole heads, a group may come twice.
    fn groups(&self, layer: usize) -> Vec<usize> {
        let heads = self.heads();
        let per_group = Dims::of(&self.checkpoint.config().attention).heads / self.whole_groups(layer);
        let run = common_divisor(heads.len(), per_group);
        heads.step_by(run).map(|head| head / per_group).collect()
    }

    fn whole_groups(&self, layer: usize) -> usize {
        let plain = Dims::of(&self.checkpoint.config().attention).groups;
        self.checkpoint.groups_of_layer(layer).unwrap_or(plain)
    }

    fn own_config(&self) -> ModelConfig {
        let whole = self.checkpoint.config();
        let mut config = whole.clone();
        let own = |layer| self.groups(layer).len();
        let per_layer: Vec<usize> = (0..whole.num_hidden_layers).map(own).collect();
        let most = per_layer.iter().copied().max().unwrap_or(0);
        match &mut config.attention {
            AttentionConfig::Plain { num_attention_heads, num_key_value_heads, .. } => {
                (*num_attention_heads, *num_key_value_heads) = (self.heads().len(), most);
            }
            AttentionConfig::Latent { shape, .. } => {
                shape.num_attention_heads = self.heads().len() as u32;
                shape.num_key_value_heads = most as u32;
            }
        }
        if let Some(groups) = &mut config.num_key_value_heads_per_layer {
            groups.iter_mut().zip(per_layer).for_each(|(groups, own)| *groups = own as u32);
        }
        config.intermediate_size = self.rank.share(whole.intermediate_size).len();
        if let Some(experts) = &mut config.experts {
            experts.moe_intermediate_size = self.of_experts(1).len() as u32;
        }
        config.vocab_size = self.vocabulary().len();
        config
    }
}

/// What a rank reads of a tensor.
enum Cut {
    Whole,
    Rows(Vec<Range<usize>>),
    Columns(Range<usize>),
}

/// Dimensions of the attention of either kind.
#[derive(Clone, Copy)]
struct Dims {
    heads: usize,
    groups: usize,
    nope: usize,
    /// Of a head's query, and of a plain key.
    query: usize,
    value: usize,
}

impl Dims {
    fn of(attention: &AttentionConfig) -> Self {
        match attention {
            AttentionConfig::Plain { num_attention_heads, num_key_value_heads, head_dim } => Self {
                heads: *num_attention_heads,
                groups: *num_key_value_heads,
                nope: *head_dim,
                query: *head_dim,
                value: *head_dim,
            },
            AttentionConfig::Latent { shape, .. } => Self {
                heads: shape.num_attention_heads as usize,
                groups: shape.num_key_value_heads as usize,
                nope: shape.qk_nope_head_dim as usize,
                query: (shape.qk_nope_head_dim + shape.qk_rope_head_dim) as usize,
                value: shape.v_head_dim as usize,
            },
        }
    }
}

/// Refuses a degree that a layer's heads or groups cannot be divided by, as the planner does, or that leaves a rank
/// without a part of some other dimension.
fn check(checkpoint: &Checkpoint, path: DecodePath, world: usize) -> Result<(), LoadError> {
    let config = checkpoint.config();
    let degree = u32::try_from(world).unwrap_or(u32::MAX);
    let dims = Dims::of(&config.attention);
    let split = |groups: u32| {
        let shape = AttentionShape {
            num_attention_heads: dims.heads as u32,
            num_key_value_heads: groups,
            kv_lora_rank: 0,
            qk_nope_head_dim: dims.nope as u32,
            qk_rope_head_dim: (dims.query - dims.nope) as u32,
            v_head_dim: dims.value as u32,
        };
        TensorParallelSplit::new(&shape, path, degree).map(drop)
    };
    let layers = config.num_hidden_layers + config.num_nextn_predict_layers;
    let groups = |layer| checkpoint.groups_of_layer(layer).unwrap_or(dims.groups) as u32;
    (0..layers).try_for_each(|layer| split(groups(layer)))?;
    let experts = config.experts.map(|experts| experts.moe_intermediate_size as usize);
    let sizes = [
        ("intermediate_size", config.intermediate_size),
        ("moe_intermediate_size", experts.unwrap_or(world)),
        ("vocab_size", config.vocab_size),
    ];
    for (what, size) in sizes {
        if size < world {
            return Err(LoadError::TooManyRanks { what, size, world });
        }
    }
    Ok(())
}

impl From<SplitError> for LoadError {
    fn from(error: SplitError) -> Self {
        Self::Split(error)
    }
}

fn times(range: Range<usize>, factor: usize) -> Range<usize> {
    range.start * factor..range.end * factor
}

/// Ranges with neighbours made one, so that what lies together in a file is not copied.
fn joined(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut all: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => all.push(range),
        }
    }
    all
}

fn common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_divisor(b, a % b) }
}
