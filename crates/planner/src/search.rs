//! Every way to run a model that the constraints allow, scored and in order.

use std::{cmp::Ordering, ops::RangeInclusive};

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
    Search { shape, gpu, goal, constraints }.rank()
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

/// One search's arguments.
struct Search<'a> {
    shape: &'a ModelShape,
    gpu: &'a GpuSpec,
    goal: &'a Goal,
    constraints: &'a Constraints,
}

impl Search<'_> {
    fn rank(&self) -> Result<Vec<Scored>, SplitError> {
        let (mut ranked, mut refused) = (Vec::new(), None);
        let allowed = |path: &DecodePath| self.constraints.path.is_none_or(|fixed| fixed == *path);
        for path in DecodePath::ALL.into_iter().filter(allowed) {
            for degree in self.degrees() {
                match TensorParallelSplit::new(&self.shape.attention, path, degree) {
                    Ok(split) => ranked.extend(self.drafts().map(|drafts| self.score(path, split, drafts))),
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

    fn degrees(&self) -> RangeInclusive<u32> {
        let most = self.constraints.max_tensor_parallel.min(self.shape.attention.num_attention_heads);
        self.constraints.tensor_parallel.map_or(1..=most, |fixed| fixed..=fixed)
    }

    fn drafts(&self) -> RangeInclusive<u32> {
        let most = self.shape.num_nextn_predict_layers;
        self.constraints.multi_token_prediction.map_or(0..=most, |fixed| fixed..=fixed)
    }

    fn score(&self, path: DecodePath, split: TensorParallelSplit, drafts: u32) -> Scored {
        let query_tokens = drafts.saturating_add(1);
        let core = AttentionCore::new(
            &self.shape.attention,
            path,
            split,
            query_tokens,
            RopeLayout::Shared,
            self.gpu,
        );
        let ns_per_cached_token = self.ns_per_cached_token(&core, drafts);
        let memory = Memory::new(self.shape, path, split, drafts, self.gpu, self.goal);
        let capacity = memory.capacity_tokens();
        let sequences = capacity / u64::from(self.goal.context_length);
        let obstacle = self.obstacle(drafts, &memory);
        let candidate = Candidate {
            path,
            tensor_parallel: split.degree,
            multi_token_prediction: drafts,
            bytes_per_token_layer: core.bytes,
            flops_per_token_layer: core.flops,
            intensity: core.intensity,
            ridge: self.gpu.ridge(),
            bound: core.bound,
            attention_ns_per_query_token: core.ns_per_query_token,
            attention_core_tokens_per_second: 1e9
                / (ns_per_cached_token * f64::from(self.goal.context_length)),
            kv_capacity_tokens: capacity,
            batch: sequences.min(u64::from(self.goal.concurrency)) as u32,
            feasible: obstacle.is_none(),
            reason: obstacle.unwrap_or_else(|| explain::core(&core, self.gpu)),
        };
        let gpus = match self.goal.objective {
            Objective::Throughput | Objective::Cost => f64::from(split.degree),
            Objective::Latency => 1.0,
        };
        Scored { candidate, score: ns_per_cached_token * gpus }
    }

    /// Attention time of a replica, over all layers, per token it yields and per cached token.
    fn ns_per_cached_token(&self, core: &AttentionCore, drafts: u32) -> f64 {
        let layers = self.shape.num_hidden_layers;
        let (tokens_per_pass, layers) = match self.constraints.scope {
            // Each prediction layer attends once per pass, as a decoder layer does.
            Scope::Deployment => (self.goal.tokens_per_pass(drafts), layers.saturating_add(drafts)),
            Scope::AttentionOnly => (f64::from(drafts) + 1.0, layers),
        };
        core.pass_ns * f64::from(layers) / tokens_per_pass
    }

    fn obstacle(&self, drafts: u32, memory: &Memory) -> Option<String> {
        if self.constraints.scope == Scope::AttentionOnly {
            return None;
        }
        let prediction_layers = self.shape.num_nextn_predict_layers;
        if drafts > prediction_layers {
            return Some(format!(
                "multiTokenPrediction={drafts} needs as many prediction layers, but \
                 numNextnPredictLayers={prediction_layers}"
            ));
        }
        let (context, longest) = (self.goal.context_length, self.shape.max_position_embeddings);
        if context > longest {
            return Some(format!(
                "a context of {context} tokens exceeds the model's maxPositionEmbeddings={longest}"
            ));
        }
        memory.shortage(context)
    }
}
