//! The question, the candidates and the decision.

use std::borrow::Cow;

use gqla_model::{CacheFormat, DecodePath, ModelShape, ShapeError, SplitError};

use crate::{
    attention::Efficiency,
    calibration::{Calibration, CalibrationError},
    explain,
    gpu::{GpuSpec, GpuSpecError},
    hardware::{Architecture, Hardware},
    kernels::{Backend, Runtime},
    roofline::{Bound, CacheLayout, RopeLayout},
    search::{self, Scored},
    step::StepTime,
};

/// What a pool is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Objective {
    /// Most tokens per second and GPU.
    #[default]
    Throughput,
    /// Least time per token of one stream, whatever the number of GPUs. Streams that do not fit wait for their turn.
    Latency,
    /// Most tokens per unit of cost. Within one GPU class every GPU costs the same, so this ranks as throughput does;
    /// between classes [`Candidate::cost_per_million_tokens`] compares.
    Cost,
}

/// What the plan is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// What to optimise.
    pub objective: Objective,
    /// Tokens of context every sequence may reach: what the cache is planned to hold for each.
    pub context_length: u32,
    /// Sequences to decode at once; caps the batch.
    pub concurrency: u32,
    /// Chance that a drafted token is accepted, given that the ones before it were. A pass with `k` drafts yields
    /// `1 + a + … + a^k` tokens. The default, 0.8, is below what DeepSeek-V3 (0.85–0.90) and vLLM (0.81) report for
    /// one draft; it is an assumption until a pod's own counters replace it.
    pub acceptance: f64,
    /// Share of device memory that weights and cache may fill.
    pub memory_fraction: f64,
    /// Prompt tokens of a request; 0 leaves reading prompts out of every figure.
    pub prompt_tokens: u32,
    /// Tokens answered per request; over them a prompt's cost is spread.
    pub output_tokens: u32,
    /// Longest time per output token on a request's average, ms.
    pub max_time_per_output_token_ms: Option<f64>,
    /// Longest time to the first token of a request that need not wait, ms.
    pub max_time_to_first_token_ms: Option<f64>,
    /// What one GPU costs per hour, in any currency.
    pub cost_per_gpu_hour: Option<f64>,
}

impl Default for Goal {
    fn default() -> Self {
        Self {
            objective: Objective::Throughput,
            context_length: 4096,
            concurrency: 32,
            acceptance: 0.8,
            memory_fraction: 0.9,
            prompt_tokens: 0,
            output_tokens: 256,
            max_time_per_output_token_ms: None,
            max_time_to_first_token_ms: None,
            cost_per_gpu_hour: None,
        }
    }
}

impl Goal {
    /// Cached tokens a sequence has on a request's average, at which decoding is priced: it grows from the prompt by one
    /// per answered token. Without a prompt every sequence is taken to be at its longest.
    pub fn decode_context(&self) -> u32 {
        match self.prompt_tokens {
            0 => self.context_length,
            prompt => prompt.saturating_add(self.output_tokens / 2).min(self.context_length).max(1),
        }
    }

    /// Expected tokens one pass yields when it verifies `drafts` drafted tokens.
    pub fn tokens_per_pass(&self, drafts: u32) -> f64 {
        let passes = f64::from(drafts) + 1.0;
        if self.acceptance >= 1.0 {
            return passes;
        }
        (1.0 - self.acceptance.powf(passes)) / (1.0 - self.acceptance)
    }
}

/// What the user has already decided. `None` leaves the choice to the planner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constraints {
    /// The decode path.
    pub path: Option<DecodePath>,
    /// The tensor-parallel degree.
    pub tensor_parallel: Option<u32>,
    /// Largest degree to consider where none is set: the GPUs of one node.
    pub max_tensor_parallel: u32,
    /// Drafted tokens per pass; 0 switches multi-token prediction off.
    pub multi_token_prediction: Option<u32>,
    /// Sequences per step; searched up to the goal's concurrency if absent.
    pub batch: Option<u32>,
    /// Whether weights and cache have to fit and drafts need a layer to come from. Without, only the attention core
    /// is compared.
    pub scope: Scope,
    /// The engine, whose kernels are priced.
    pub runtime: Runtime,
    /// What the native runtime computes on: only the device of the class may lack a kernel.
    pub backend: Backend,
    /// Peak rates or what kernels reach.
    pub efficiency: Efficiency,
    /// How the GQA path stores its cache; see [`Self::layout`] where it is `None`.
    pub rope_layout: Option<RopeLayout>,
    /// What the cache's numbers are stored as; see [`Self::layout`] where it is `None`.
    pub cache_format: Option<CacheFormat>,
    /// Whether groups may be padded with idle heads where a degree does not divide them. The engine has to pad too.
    pub head_padding: bool,
}

impl Default for Constraints {
    fn default() -> Self {
        Self {
            path: None,
            tensor_parallel: None,
            max_tensor_parallel: 8,
            multi_token_prediction: None,
            batch: None,
            scope: Scope::Deployment,
            runtime: Runtime::Native,
            backend: Backend::OfClass,
            efficiency: Efficiency::Calibrated,
            rope_layout: None,
            cache_format: None,
            head_padding: false,
        }
    }
}

impl Constraints {
    /// How the cache is stored on `gpu`: as asked for, or as the runtime does. Where only the attention core is compared,
    /// published kernel times are for bf16 and one rope key.
    pub fn layout(&self, gpu: &GpuSpec) -> CacheLayout {
        let runtimes = match (self.scope, self.runtime, Hardware::of(gpu).architecture) {
            (Scope::AttentionOnly, ..) => CacheLayout::PUBLISHED,
            (Scope::Deployment, Runtime::Vllm, _) => {
                CacheLayout { rope: RopeLayout::Padded, ..CacheLayout::PUBLISHED }
            }
            (Scope::Deployment, Runtime::Native, Architecture::Cpu) => {
                CacheLayout { format: CacheFormat::CPU_DEFAULT, ..CacheLayout::PUBLISHED }
            }
            (Scope::Deployment, Runtime::Native, _) => CacheLayout::PUBLISHED,
        };
        CacheLayout {
            rope: self.rope_layout.unwrap_or(runtimes.rope),
            format: self.cache_format.unwrap_or(runtimes.format),
        }
    }
}

/// How much of the deployment a plan looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// A pod has to run with it: weights and cache fit, drafts have a layer.
    #[default]
    Deployment,
    /// Only the attention core is compared.
    AttentionOnly,
}

/// One way to run the model on the GPU class.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The decode path.
    pub path: DecodePath,
    /// GPUs per replica.
    pub tensor_parallel: u32,
    /// Drafted tokens per pass; the pass has one query token more.
    pub multi_token_prediction: u32,
    /// Idle heads added over all groups so that the degree divides them; 0 almost always.
    pub padded_heads: u32,
    /// Cache bytes read per cached token and layer on one rank.
    pub bytes_per_token_layer: u64,
    /// FLOPs per cached token and layer of one pass on one rank.
    pub flops_per_token_layer: u64,
    /// FLOPs per byte.
    pub intensity: f64,
    /// FLOPs per byte above which the GPU is bound by compute.
    pub ridge: f64,
    /// What limits the attention core.
    pub bound: Bound,
    /// The attention kernel priced; `None` at peak rates.
    pub kernel: Option<Cow<'static, str>>,
    /// Nanoseconds per query token, cached token and layer on one rank.
    pub attention_ns_per_query_token: f64,
    /// Where the time of a step goes.
    pub step: StepTime,
    /// Cached tokens per sequence at which the step is priced; the batch fits at the goal's context.
    pub decode_context: u32,
    /// Modelled tokens per second of one replica at full batch, prompts included if the goal has some.
    pub tokens_per_second: f64,
    /// Modelled time one stream waits for a token, ms.
    pub time_per_output_token_ms: f64,
    /// Modelled time to read one prompt, ms; 0 where the goal has none.
    pub time_to_first_token_ms: f64,
    /// Cost of a million output tokens with their prompts, where a GPU has a price.
    pub cost_per_million_tokens: Option<f64>,
    /// Tokens the cache can hold on one rank beside the weights; 0 if the weights do not fit.
    pub kv_capacity_tokens: u64,
    /// Sequences per step: what fits of the goal's concurrency, or fewer where a time bound asks for it.
    pub batch: u32,
    /// Whether a replica can run this way.
    pub feasible: bool,
    /// One sentence: the arithmetic of the time, or why it cannot run.
    pub reason: String,
}

impl Candidate {
    /// Query tokens of one attention pass, `s_q`.
    pub fn query_tokens(&self) -> u32 {
        self.multi_token_prediction.saturating_add(1)
    }

    /// Modelled tokens per second and GPU.
    pub fn tokens_per_second_per_gpu(&self) -> f64 {
        self.tokens_per_second / f64::from(self.tensor_parallel)
    }
}

/// The best candidate, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The best feasible candidate.
    pub chosen: Candidate,
    /// The best feasible candidate on the other path, or, where that path is excluded, the second best.
    pub runner_up: Option<Candidate>,
    /// Share of the runner-up's time that the choice saves, 0 to 1; 1 without a runner-up. Under
    /// [`Decision::CLOSE`] the model is not precise enough to call it.
    pub margin: f64,
    /// Why the choice was made and why the runner-up lost, in one sentence with the numbers.
    pub reason: String,
    /// Where the attention kernels' figures come from: measured, fitted, modelled or peak.
    pub basis: String,
    /// Where the measurements come from that a calibration put in place of built-in figures, on either path.
    pub calibrated: Vec<String>,
    /// Everything considered, best first, then what cannot run.
    pub candidates: Vec<Candidate>,
}

impl Decision {
    /// Margins below this are called close.
    pub const CLOSE: f64 = 0.15;

    /// Whether the runner-up is too near for the model to tell them apart.
    pub fn is_close(&self) -> bool {
        self.margin < Self::CLOSE
    }
}

/// Why there is no plan.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The model's dimensions contradict each other.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The GPU's numbers are not positive.
    #[error(transparent)]
    Gpu(#[from] GpuSpecError),
    /// A goal no pod can have.
    #[error("goal.{field} is {value}, expected {expected}")]
    Goal {
        /// The field at fault.
        field: &'static str,
        /// What it holds.
        value: f64,
        /// What it may hold.
        expected: &'static str,
    },
    /// The tensor-parallel degree asked for divides the heads or groups on no allowed path.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// A calibration holds figures no device can reach.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// A tensor-parallel search that is empty.
    #[error("the largest tensor-parallel degree to consider is 0, expected at least 1")]
    NoDegrees,
    /// Nothing that the constraints allow can run.
    #[error("no way to run this model on {gpu}: {reason}")]
    NothingFeasible {
        /// The GPU class.
        gpu: String,
        /// The reason of the candidate that came nearest.
        reason: String,
        /// Everything considered, each with its own reason.
        candidates: Vec<Candidate>,
    },
}

/// Chooses path, tensor-parallel degree, drafts and batch for `shape` on `gpu`, with the built-in figures. The same
/// arguments give the same answer.
pub fn plan(
    shape: &ModelShape,
    gpu: &GpuSpec,
    goal: &Goal,
    constraints: &Constraints,
) -> Result<Decision, PlanError> {
    plan_calibrated(shape, gpu, goal, constraints, &Calibration::default())
}

/// As [`plan`], with what was measured in place of the built-in figures.
pub fn plan_calibrated(
    shape: &ModelShape,
    gpu: &GpuSpec,
    goal: &Goal,
    constraints: &Constraints,
    calibration: &Calibration,
) -> Result<Decision, PlanError> {
    shape.validate()?;
    gpu.validate()?;
    calibration.validate()?;
    validate_goal(goal)?;
    if constraints.max_tensor_parallel == 0 && constraints.tensor_parallel.is_none() {
        return Err(PlanError::NoDegrees);
    }
    let gpu = calibration.apply(gpu);
    let search = search::Search::new(shape, &gpu, goal, constraints, calibration);
    let calibrated = calibration.applied(constraints, &gpu.name);
    Ok(Decision { calibrated, ..decide(&search, search.rank()?)? })
}

fn decide(search: &search::Search<'_>, ranked: Vec<Scored>) -> Result<Decision, PlanError> {
    let feasible = || ranked.iter().filter(|scored| scored.candidate.feasible);
    let Some(chosen) = feasible().next() else {
        return Err(PlanError::NothingFeasible {
            gpu: search.gpu.name.to_string(),
            reason: ranked.first().map_or_else(String::new, |nearest| nearest.candidate.reason.clone()),
            candidates: ranked.into_iter().map(|scored| scored.candidate).collect(),
        });
    };
    let other_path = feasible().find(|other| other.candidate.path != chosen.candidate.path);
    let runner_up = other_path.or_else(|| feasible().nth(1));
    let margin = runner_up.map_or(1.0, |other| (1.0 - chosen.score / other.score).max(0.0));
    let reason = explain::decision(search, &ranked, chosen, runner_up);
    let basis = search.basis(&chosen.candidate).to_owned();
    Ok(Decision {
        chosen: chosen.candidate.clone(),
        runner_up: runner_up.map(|other| other.candidate.clone()),
        margin,
        reason,
        basis,
        calibrated: Vec::new(),
        candidates: ranked.into_iter().map(|scored| scored.candidate).collect(),
    })
}

fn validate_goal(goal: &Goal) -> Result<(), PlanError> {
    let at_least_one = "at least 1";
    let share = "a number above 0 and at most 1";
    let positive = "a finite number above 0";
    let is_positive = |value: Option<f64>| value.is_none_or(|value| value.is_finite() && value > 0.0);
    let optional = |value: Option<f64>| value.unwrap_or(0.0);
    let (per_token, to_first) = (goal.max_time_per_output_token_ms, goal.max_time_to_first_token_ms);
    let fraction = goal.memory_fraction;
    let prompt_fits = goal.prompt_tokens <= goal.context_length;
    let fields = [
        ("contextLength", f64::from(goal.context_length), goal.context_length > 0, at_least_one),
        ("concurrency", f64::from(goal.concurrency), goal.concurrency > 0, at_least_one),
        ("acceptance", goal.acceptance, (0.0..=1.0).contains(&goal.acceptance), "a number from 0 to 1"),
        ("memoryFraction", fraction, fraction > 0.0 && fraction <= 1.0, share),
        ("promptTokens", f64::from(goal.prompt_tokens), prompt_fits, "at most goal.contextLength"),
        ("outputTokens", f64::from(goal.output_tokens), goal.output_tokens > 0, at_least_one),
        ("maxTimePerOutputToken", optional(per_token), is_positive(per_token), positive),
        ("maxTimeToFirstToken", optional(to_first), is_positive(to_first), positive),
        ("costPerGpuHour", optional(goal.cost_per_gpu_hour), is_positive(goal.cost_per_gpu_hour), positive),
    ];
    match fields.into_iter().find(|(_, _, valid, _)| !valid) {
        Some((field, value, _, expected)) => Err(PlanError::Goal { field, value, expected }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
