//! A decision of the planner as programs are shown it, whoever asked for it.

use std::collections::BTreeMap;

use gqla_planner::{Candidate, Decision, Goal};
use serde::Serialize;

/// What was considered and what came of it. Field names are an interface.
#[derive(Serialize)]
pub struct DecisionView<'a> {
    /// Where the attention kernels' figures come from.
    pub basis: Option<&'a str>,
    /// Measurements that replaced built-in figures.
    pub calibrated: &'a [String],
    /// Everything considered, best first, then what cannot run.
    pub candidates: Vec<CandidateView<'a>>,
    /// The best; null where nothing can run.
    pub chosen: Option<CandidateView<'a>>,
    /// What lost against it.
    pub runner_up: Option<CandidateView<'a>>,
    /// Share of the runner-up's time that the choice saves.
    pub margin: Option<f64>,
    /// Whether the margin is too small for the model to call.
    pub close: Option<bool>,
    /// Why, in one sentence.
    pub reason: &'a str,
}

/// One way to run the model.
#[derive(Serialize)]
pub struct CandidateView<'a> {
    pub path: &'static str,
    pub tp: u32,
    pub s_q: u32,
    pub batch: u32,
    pub context: u32,
    /// What the step is priced at.
    pub decode_context: u32,
    pub padded_heads: u32,
    pub kernel: Option<&'a str>,
    pub attention_ns_per_token_layer: f64,
    pub step_us: f64,
    pub step_parts_us: BTreeMap<&'static str, f64>,
    pub tokens_per_second: f64,
    pub tokens_per_second_per_gpu: f64,
    pub time_per_output_token_ms: f64,
    pub time_to_first_token_ms: Option<f64>,
    pub cost_per_million_tokens: Option<f64>,
    pub bytes_per_token_layer: u64,
    pub flops_per_token_layer: u64,
    pub intensity: f64,
    pub ridge: f64,
    pub bound: &'static str,
    pub kv_tokens_capacity: u64,
    pub feasible: bool,
    pub reason: &'a str,
}

impl<'a> DecisionView<'a> {
    /// A decision that was made for `goal`.
    pub fn decided(decision: &'a Decision, goal: &Goal) -> Self {
        let view = |candidate: &'a Candidate| CandidateView::new(candidate, goal);
        Self {
            chosen: Some(view(&decision.chosen)),
            runner_up: decision.runner_up.as_ref().map(view),
            margin: decision.runner_up.as_ref().map(|_| decision.margin),
            close: decision.runner_up.as_ref().map(|_| decision.is_close()),
            basis: Some(&decision.basis),
            calibrated: &decision.calibrated,
            ..Self::refused(&decision.candidates, &decision.reason, goal)
        }
    }

    /// Candidates none of which can run.
    pub fn refused(candidates: &'a [Candidate], reason: &'a str, goal: &Goal) -> Self {
        Self {
            basis: None,
            calibrated: &[],
            candidates: candidates.iter().map(|candidate| CandidateView::new(candidate, goal)).collect(),
            chosen: None,
            runner_up: None,
            margin: None,
            close: None,
            reason,
        }
    }
}

impl<'a> CandidateView<'a> {
    fn new(candidate: &'a Candidate, goal: &Goal) -> Self {
        Self {
            path: candidate.path.flag(),
            tp: candidate.tensor_parallel,
            s_q: candidate.query_tokens(),
            batch: candidate.batch,
            context: goal.context_length,
            decode_context: candidate.decode_context,
            padded_heads: candidate.padded_heads,
            kernel: candidate.kernel.as_deref(),
            attention_ns_per_token_layer: candidate.attention_ns_per_query_token,
            step_us: candidate.step.total_us(),
            step_parts_us: candidate.step.parts().into_iter().filter(|(_, us)| *us > 0.0).collect(),
            tokens_per_second: candidate.tokens_per_second,
            tokens_per_second_per_gpu: candidate.tokens_per_second_per_gpu(),
            time_per_output_token_ms: candidate.time_per_output_token_ms,
            time_to_first_token_ms: (goal.prompt_tokens > 0).then_some(candidate.time_to_first_token_ms),
            cost_per_million_tokens: candidate.cost_per_million_tokens,
            bytes_per_token_layer: candidate.bytes_per_token_layer,
            flops_per_token_layer: candidate.flops_per_token_layer,
            intensity: candidate.intensity,
            ridge: candidate.ridge,
            bound: candidate.bound.name(),
            kv_tokens_capacity: candidate.kv_capacity_tokens,
            feasible: candidate.feasible,
            reason: &candidate.reason,
        }
    }
}
