//! Every way to run a model that the constraints allow, scored and in order.

use std::cmp::Ordering;

use gqla_model::{AttentionShape, DecodePath, ModelShape, Parameters, SplitError};

use crate::{
    attention::{AttentionModel, AttentionPass},
    calibration::Calibration,
    explain,
    gpu::GpuSpec,
    hardware::Hardware,
    memory::Memory,
    plan::{Candidate, Constraints, Goal, Objective, Scope},
    step::{Layers, StepModel, StepTime},
};

/// A candidate with the time it is ranked by.
#[derive(Clone, Debug)]
pub(crate) struct Scored {
    pub(crate) candidate: Candidate,
    /// Nanoseconds per token a replica yields, times its GPUs unless the objective is latency.
    pub(crate) score: f64,
}

/// Feasible candidates come first, the best in front; then the others, most GPUs and fewest drafts in front, since those
/// came nearest to fitting. Ties go to fewer GPUs, then fewer drafts, then absorb, so the order never depends on
/// anything but the arguments.
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

/// One search's arguments, and what all its candidates share.
pub(crate) struct Search<'a> {
    shape: &'a ModelShape,
    pub(crate) gpu: &'a GpuSpec,
    pub(crate) goal: &'a Goal,
    pub(crate) constraints: &'a Constraints,
    hardware: Hardware,
    parts: Parameters,
    attention: [AttentionModel<'a>; 2],
}

/// A path and a degree that divides, with the shape it divides.
struct Layout<'a> {
    model: StepModel<'a>,
    padded_heads: u32,
}

/// One batch of a layout and draft count.
struct Trial {
    batch: u32,
    step: StepTime,
    pass: AttentionPass,
    prefill_us: f64,
    score: f64,
    obstacle: Option<String>,
}

/// The largest batch below `refused` without an obstacle, or the batch of 1, the fastest, if there is none. A step never
/// takes less time for more sequences, so halving the range finds it.
fn largest_admissible(mut refused: u32, try_batch: impl Fn(u32) -> Trial) -> Trial {
    let mut best = try_batch(1);
    if best.obstacle.is_some() {
        return best;
    }
    while refused - best.batch > 1 {
        let trial = try_batch(best.batch.midpoint(refused));
        match trial.obstacle {
            Some(_) => refused = trial.batch,
            None => best = trial,
        }
    }
    best
}

impl<'a> Search<'a> {
    pub(crate) fn new(
        shape: &'a ModelShape,
        gpu: &'a GpuSpec,
        goal: &'a Goal,
        constraints: &'a Constraints,
        calibration: &Calibration,
    ) -> Self {
        let attention = DecodePath::ALL.map(|path| {
            let Constraints { runtime, efficiency, .. } = *constraints;
            AttentionModel::new(path, gpu, runtime, efficiency, constraints.layout(gpu), calibration)
        });
        let (hardware, parts) = (Hardware::of(gpu), Parameters::of(shape));
        Self { shape, gpu, goal, constraints, hardware, parts, attention }
    }

    /// Where the figures of `candidate`'s attention kernel come from.
    pub(crate) fn basis(&self, candidate: &Candidate) -> &str {
        self.attention(candidate.path).source(candidate.kernel.as_deref())
    }

    fn attention(&self, path: DecodePath) -> &AttentionModel<'a> {
        let [absorb, gqa] = &self.attention;
        match path {
            DecodePath::MqaAbsorb => absorb,
            DecodePath::Gqa => gqa,
        }
    }

    /// Scores path × tensor-parallel degree × drafts, each at its best batch.
    pub(crate) fn rank(&self) -> Result<Vec<Scored>, SplitError> {
        let (mut ranked, mut refused) = (Vec::new(), None);
        let allowed = |path: &DecodePath| self.constraints.path.is_none_or(|fixed| fixed == *path);
        for degree in self.degrees() {
            let padded = self.padded(degree);
            let shape = padded.as_ref().unwrap_or(self.shape);
            for path in DecodePath::ALL.into_iter().filter(allowed) {
                match Layers::of(shape, path, degree) {
                    Ok(layers) => {
                        let layout = self.layout(shape, padded.is_some(), path, layers);
                        ranked.extend(
                            layout.iter().flat_map(|layout| {
                                self.drafts().map(move |drafts| self.best(layout, drafts))
                            }),
                        );
                    }
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

    fn degrees(&self) -> std::ops::RangeInclusive<u32> {
        let most = self.constraints.max_tensor_parallel.min(self.shape.attention.num_attention_heads);
        self.constraints.tensor_parallel.map_or(1..=most, |fixed| fixed..=fixed)
    }

    fn drafts(&self) -> std::ops::RangeInclusive<u32> {
        let most = self.shape.num_nextn_predict_layers;
        self.constraints.multi_token_prediction.map_or(0..=most, |fixed| fixed..=fixed)
    }

    /// The shape with idle heads in every group, if that makes `degree` divide the heads and nothing less does. A
    /// searched degree is a power of two then: nobody buys five GPUs to pad for them.
    fn padded(&self, degree: u32) -> Option<ModelShape> {
        let attention = self.shape.attention;
        let wanted = self.constraints.tensor_parallel.is_some() || degree.is_power_of_two();
        if !self.constraints.head_padding || !wanted || attention.num_attention_heads.is_multiple_of(degree) {
            return None;
        }
        let per_group = attention.heads_per_group();
        let heads = (per_group + 1..=per_group.saturating_mul(2))
            .filter_map(|heads| attention.num_key_value_heads.checked_mul(heads))
            .find(|heads| {
                let in_groups = self.shape.groups().iter().all(|(groups, _)| heads.is_multiple_of(*groups));
                heads.is_multiple_of(degree) && in_groups
            })?;
        let attention = AttentionShape { num_attention_heads: heads, ..attention };
        Some(ModelShape { attention, ..self.shape.clone() })
    }

    fn layout<'b>(
        &'b self,
        shape: &'b ModelShape,
        padded: bool,
        path: DecodePath,
        layers: Vec<Layers>,
    ) -> Option<Layout<'b>> {
        let split = layers.first()?.split;
        let parts = if padded { Parameters::of(shape) } else { self.parts };
        let Constraints { runtime, backend, efficiency, .. } = *self.constraints;
        let (gpu, hardware) = (self.gpu, self.hardware);
        Some(Layout {
            model: StepModel {
                shape,
                parts,
                path,
                split,
                layers,
                gpu,
                hardware,
                runtime,
                backend,
                efficiency,
            },
            padded_heads: shape.attention.num_attention_heads - self.shape.attention.num_attention_heads,
        })
    }

    fn best(&self, layout: &Layout<'_>, drafts: u32) -> Scored {
        let memory = Memory::new(&layout.model, drafts, self.constraints.layout(self.gpu), self.goal);
        let capacity = memory.capacity_tokens();
        let obstacle = self.obstacle(&layout.model, drafts, &memory);
        let attention_only = self.constraints.scope == Scope::AttentionOnly;
        let fitting = if attention_only { u64::MAX } else { capacity / u64::from(self.goal.context_length) };
        let fits = u32::try_from(fitting).unwrap_or(u32::MAX);
        let most = self.constraints.batch.unwrap_or(self.goal.concurrency.min(fits)).max(1);
        let try_batch = |batch| self.trial(layout, drafts, batch, obstacle.as_deref());
        let largest = try_batch(most);
        // A step of fewer sequences is only of use where a bound on its time asks for it.
        let bounded = self.constraints.batch.is_none() && self.goal.max_time_per_output_token_ms.is_some();
        let trial = if bounded && obstacle.is_none() && largest.obstacle.is_some() {
            largest_admissible(most, try_batch)
        } else {
            largest
        };
        Scored { score: trial.score, candidate: self.candidate(layout, drafts, capacity, fitting, trial) }
    }

    fn trial(&self, layout: &Layout<'_>, drafts: u32, batch: u32, obstacle: Option<&str>) -> Trial {
        let model = &layout.model;
        let (attention, absorb) = (self.attention(model.path), self.attention(DecodePath::MqaAbsorb));
        let (mut step, pass) = model.step(attention, absorb, drafts, batch, self.decode_context());
        let mut prefill_us = 0.0;
        if self.constraints.scope == Scope::AttentionOnly {
            step = StepTime { attention_us: step.attention_us, ..StepTime::default() };
        } else if self.goal.prompt_tokens > 0 {
            prefill_us = model.prefill_us(self.goal.prompt_tokens);
        }
        let stream_us = step.total_us() / self.tokens_per_pass(drafts);
        let obstacle = obstacle.map(str::to_owned).or_else(|| self.too_slow(stream_us, prefill_us));
        let score = self.score(layout, batch, stream_us, prefill_us);
        Trial { batch, step, pass, prefill_us, score, obstacle }
    }

    /// The attention core alone is compared at the context asked for.
    fn decode_context(&self) -> u32 {
        match self.constraints.scope {
            Scope::Deployment => self.goal.decode_context(),
            Scope::AttentionOnly => self.goal.context_length,
        }
    }

    fn tokens_per_pass(&self, drafts: u32) -> f64 {
        match self.constraints.scope {
            Scope::Deployment => self.goal.tokens_per_pass(drafts),
            Scope::AttentionOnly => f64::from(drafts) + 1.0,
        }
    }

    /// Microseconds a replica spends on one output token, its share of the prompt included.
    fn replica_us(&self, batch: u32, stream_us: f64, prefill_us: f64) -> f64 {
        stream_us / f64::from(batch) + prefill_us / f64::from(self.goal.output_tokens)
    }

    fn score(&self, layout: &Layout<'_>, batch: u32, stream_us: f64, prefill_us: f64) -> f64 {
        let nanoseconds = match self.goal.objective {
            Objective::Throughput | Objective::Cost => {
                self.replica_us(batch, stream_us, prefill_us) * f64::from(layout.model.split.degree)
            }
            Objective::Latency => {
                let wanted = self.constraints.batch.unwrap_or(self.goal.concurrency);
                let turns = (f64::from(wanted) / f64::from(batch)).max(1.0);
                stream_us * turns + prefill_us / f64::from(self.goal.output_tokens)
            }
        };
        nanoseconds * 1e3
    }

    fn too_slow(&self, stream_us: f64, prefill_us: f64) -> Option<String> {
        let over = |what: &str, us: f64, bound: Option<f64>, field: &str| {
            let bound = bound.filter(|bound| us > bound * 1e3)?;
            Some(format!("{what} takes {:.1} ms, over goal.{field}={bound} ms", us / 1e3))
        };
        let per_token = self.goal.max_time_per_output_token_ms;
        let to_first = self.goal.max_time_to_first_token_ms;
        over("an output token", stream_us, per_token, "maxTimePerOutputToken")
            .or_else(|| over("reading the prompt", prefill_us, to_first, "maxTimeToFirstToken"))
    }

    fn candidate(
        &self,
        layout: &Layout<'_>,
        drafts: u32,
        capacity: u64,
        fitting: u64,
        trial: Trial,
    ) -> Candidate {
        let Trial { batch, step, pass, prefill_us, obstacle, .. } = trial;
        let model = &layout.model;
        let query_tokens = f64::from(drafts) + 1.0;
        let stream_us = step.total_us() / self.tokens_per_pass(drafts);
        let tokens_per_second = 1e6 / self.replica_us(batch, stream_us, prefill_us);
        let visited = f64::from(batch) * f64::from(self.decode_context()) * query_tokens;
        let degree = f64::from(model.split.degree);
        let cost = self.goal.cost_per_gpu_hour;
        let mut candidate = Candidate {
            path: model.path,
            tensor_parallel: model.split.degree,
            multi_token_prediction: drafts,
            padded_heads: layout.padded_heads,
            bytes_per_token_layer: pass.core.bytes,
            flops_per_token_layer: pass.core.flops,
            intensity: pass.core.intensity,
            ridge: self.gpu.ridge(),
            bound: pass.bound,
            kernel: pass.kernel,
            attention_ns_per_query_token: pass.ns / visited,
            step,
            decode_context: self.decode_context(),
            tokens_per_second,
            time_per_output_token_ms: stream_us / 1e3,
            time_to_first_token_ms: prefill_us / 1e3,
            cost_per_million_tokens: cost.map(|cost| cost * degree / 3600.0 / tokens_per_second * 1e6),
            kv_capacity_tokens: capacity,
            batch: if fitting == 0 { 0 } else { batch },
            feasible: obstacle.is_none(),
            reason: String::new(),
        };
        candidate.reason = obstacle.unwrap_or_else(|| explain::candidate(&candidate));
        candidate
    }

    fn obstacle(&self, model: &StepModel<'_>, drafts: u32, memory: &Memory) -> Option<String> {
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
        model
            .format_obstacle()
            .or_else(|| model.kernel_obstacle(drafts))
            .or_else(|| model.split_obstacle())
            .or_else(|| memory.shortage(context))
            .or_else(|| self.batch_obstacle(memory))
    }

    fn batch_obstacle(&self, memory: &Memory) -> Option<String> {
        let batch = self.constraints.batch?;
        let wanted = u64::from(batch).saturating_mul(self.goal.context_length.into());
        let capacity = memory.capacity_tokens();
        (capacity < wanted).then(|| {
            format!(
                "a batch of {batch} with {} tokens each needs {wanted}, the cache holds {capacity}",
                self.goal.context_length
            )
        })
    }
}

#[cfg(test)]
mod tests;
