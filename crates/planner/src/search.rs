//! Every way to run a model that the constraints allow, scored and in order.

use std::cmp::Ordering;

use gqla_model::{DecodePath, ModelShape, SplitError, TensorParallelSplit};

use crate::{
    explain,
    gpu::GpuSpec,
    memory::Memory,
    plan::{Candidate, Constraints, Goal, Objective, Scope},
    roofline::{AttentionCore, RopeLayout},
};

/// A candidate with the time it is ranked by.
#[derive(Clone, Debug)]
pub(crate) struct Scored {
    pub(crate) candidate: Candidate,
    /// Nanoseconds of attention per token a replica yields and per cached token; GPU-nanoseconds unless the objective
    /// is latency.
    pub(crate) score: f64,
}

/// Scores path × tensor-parallel degree × drafts. Feasible candidates come first, the best in front; then the others,
/// most GPUs and fewest drafts in front, since those came nearest to fitting. Ties go to fewer GPUs, then fewer drafts,
/// then absorb, so the order never depends on anything but the arguments.
pub(crate) fn rank(
    shape: &ModelShape,
    gpu: &GpuSpec,
    goal: &Goal,
    constraints: &Constraints,
) -> Result<Vec<Scored>, SplitError> {
    let (mut ranked, mut refused) = (Vec::new(), None);
    for path in DecodePath::ALL.into_iter().filter(|path| constraints.path.is_none_or(|fixed| fixed == *path))
    {
        for degree in degrees(shape, constraints) {
            match TensorParallelSplit::new(&shape.attention, path, degree) {
                Ok(split) => ranked.extend(
                    drafts(shape, constraints).map(|k| score(shape, gpu, goal, constraints, path, split, k)),
                ),
                Err(error) => refused = Some(error),
            }
        }
    }
    ranked.sort_by(best_first);
    match refused {
        Some(error) if ranked.is_empty() => Err(error),
        _ => Ok(ranked),
    }
}

fn degrees(shape: &ModelShape, constraints: &Constraints) -> impl Iterator<Item = u32> + use<> {
    let most = constraints.max_tensor_parallel.min(shape.attention.num_attention_heads);
    constraints.tensor_parallel.map_or(1..=most, |fixed| fixed..=fixed)
}

fn drafts(shape: &ModelShape, constraints: &Constraints) -> impl Iterator<Item = u32> + use<> {
    constraints.multi_token_prediction.map_or(0..=shape.num_nextn_predict_layers, |fixed| fixed..=fixed)
}

fn best_first(a: &Scored, b: &Scored) -> Ordering {
    let (left, right) = (&a.candidate, &b.candidate);
    let fewer_gpus = left.tensor_parallel.cmp(&right.tensor_parallel);
    let fewer_drafts = left.multi_token_prediction.cmp(&right.multi_token_prediction);
    let path = left.path.cmp(&right.path);
    right.feasible.cmp(&left.feasible).then_with(|| {
        if left.feasible {
            a.score.total_cmp(&b.score).then(fewer_gpus).then(fewer_drafts).then(path)
        } else {
            fewer_gpus.reverse().then(fewer_drafts).then(a.score.total_cmp(&b.score)).then(path)
        }
    })
}

fn score(
    shape: &ModelShape,
    gpu: &GpuSpec,
    goal: &Goal,
    constraints: &Constraints,
    path: DecodePath,
    split: TensorParallelSplit,
    drafts: u32,
) -> Scored {
    let query_tokens = drafts.saturating_add(1);
    let core = AttentionCore::new(&shape.attention, path, split, query_tokens, RopeLayout::Shared, gpu);
    let (tokens_per_pass, layers) = match constraints.scope {
        // Each prediction layer attends once per pass, as a decoder layer does.
        Scope::Deployment => (goal.tokens_per_pass(drafts), shape.num_hidden_layers.saturating_add(drafts)),
        Scope::AttentionOnly => (f64::from(query_tokens), shape.num_hidden_layers),
    };
    let ns_per_cached_token = core.pass_ns * f64::from(layers) / tokens_per_pass;
    let gpus = match goal.objective {
        Objective::Throughput | Objective::Cost => f64::from(split.degree),
        Objective::Latency => 1.0,
    };
    let memory = Memory::new(shape, path, split, drafts, gpu, goal);
    let obstacle = match constraints.scope {
        Scope::Deployment => obstacle(shape, goal, drafts, &memory),
        Scope::AttentionOnly => None,
    };
    let capacity = memory.capacity_tokens();
    let sequences = (capacity / u64::from(goal.context_length)).min(u64::from(goal.concurrency));
    let candidate = Candidate {
        path,
        tensor_parallel: split.degree,
        multi_token_prediction: drafts,
        bytes_per_token_layer: core.bytes,
        flops_per_token_layer: core.flops,
        intensity: core.intensity,
        ridge: gpu.ridge(),
        bound: core.bound,
        attention_ns_per_query_token: core.ns_per_query_token,
        attention_core_tokens_per_second: 1e9 / (ns_per_cached_token * f64::from(goal.context_length)),
        kv_capacity_tokens: capacity,
        batch: sequences as u32,
        feasible: obstacle.is_none(),
        reason: obstacle.unwrap_or_else(|| explain::core(&core, gpu)),
    };
    Scored { candidate, score: ns_per_cached_token * gpus }
}

fn obstacle(shape: &ModelShape, goal: &Goal, drafts: u32, memory: &Memory) -> Option<String> {
    let layers = shape.num_nextn_predict_layers;
    if drafts > layers {
        return Some(format!(
            "multiTokenPrediction={drafts} needs as many prediction layers, but numNextnPredictLayers={layers}"
        ));
    }
    if goal.context_length > shape.max_position_embeddings {
        return Some(format!(
            "a context of {} tokens exceeds the model's maxPositionEmbeddings={}",
            goal.context_length, shape.max_position_embeddings
        ));
    }
    memory.shortage(goal.context_length)
}
