//! What a plan looks like: one JSON object for programs, a table and a sentence for people.

use std::collections::BTreeMap;

use gqla_planner::{Candidate, Confidence, Decision, Goal, GpuClass};
use serde::Serialize;

use super::Args;
use crate::table::{columns, emphasised};

/// The JSON form of a plan. Field names are an interface.
#[derive(Serialize)]
pub(super) struct PlanView<'a> {
    model: &'a str,
    gpu: &'a str,
    gpu_source: &'a str,
    gpu_confidence: &'static str,
    runtime: &'static str,
    scope: String,
    /// Where the attention kernels' figures come from.
    basis: Option<&'a str>,
    candidates: Vec<CandidateView<'a>>,
    chosen: Option<CandidateView<'a>>,
    runner_up: Option<CandidateView<'a>>,
    margin: Option<f64>,
    close: Option<bool>,
    reason: &'a str,
}

#[derive(Serialize)]
struct CandidateView<'a> {
    path: &'static str,
    tp: u32,
    s_q: u32,
    batch: u32,
    /// What every sequence of the batch fits with.
    context: u32,
    /// What the step is priced at.
    decode_context: u32,
    padded_heads: u32,
    kernel: Option<&'a str>,
    attention_ns_per_token_layer: f64,
    step_us: f64,
    step_parts_us: BTreeMap<&'static str, f64>,
    tokens_per_second: f64,
    tokens_per_second_per_gpu: f64,
    time_per_output_token_ms: f64,
    time_to_first_token_ms: Option<f64>,
    cost_per_million_tokens: Option<f64>,
    bytes_per_token_layer: u64,
    flops_per_token_layer: u64,
    intensity: f64,
    ridge: f64,
    bound: &'static str,
    kv_tokens_capacity: u64,
    feasible: bool,
    reason: &'a str,
}

impl<'a> PlanView<'a> {
    pub(super) fn decided(args: &'a Args, class: &'a GpuClass, goal: &Goal, decision: &'a Decision) -> Self {
        let view = |candidate: &'a Candidate| CandidateView::new(candidate, goal);
        Self {
            chosen: Some(view(&decision.chosen)),
            runner_up: decision.runner_up.as_ref().map(view),
            margin: decision.runner_up.as_ref().map(|_| decision.margin),
            close: decision.runner_up.as_ref().map(|_| decision.is_close()),
            basis: Some(&decision.basis),
            ..Self::refused(args, class, goal, &decision.candidates, &decision.reason)
        }
    }

    pub(super) fn refused(
        args: &'a Args,
        class: &'a GpuClass,
        goal: &Goal,
        candidates: &'a [Candidate],
        reason: &'a str,
    ) -> Self {
        Self {
            model: &args.model,
            gpu: class.name(),
            gpu_source: &class.source,
            gpu_confidence: match class.confidence {
                Confidence::High => "high",
                Confidence::Low => "low",
            },
            runtime: args.constraints().runtime.name(),
            scope: args.scope(),
            basis: None,
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

/// The plan for people.
pub(super) fn table(view: &PlanView<'_>) -> String {
    let header = [
        "path",
        "tp",
        "s_q",
        "batch",
        "ns/token·layer",
        "B/token·layer",
        "FLOP/B",
        "bound",
        "step ms",
        "tokens/s·GPU",
        "KV tokens",
        "runs",
    ];
    let rows: Vec<_> = view.candidates.iter().map(row).collect();
    let text = columns(header, &rows);
    // The first line is the header, and the best candidate that runs comes first.
    let lines = text.lines().enumerate().map(|(index, line)| match index.checked_sub(1) {
        Some(0) if view.chosen.is_some() => emphasised(line, true),
        Some(index) if !view.candidates[index].feasible => emphasised(line, false),
        _ => line.to_owned(),
    });
    let body: String = lines.map(|line| line + "\n").collect();
    let verdict = if view.chosen.is_some() { "chosen" } else { "refused" };
    let basis = view.basis.map_or(String::new(), |basis| format!("; attention kernels {basis}"));
    let caution = match view.gpu_confidence {
        "low" => format!("caution: {}'s numbers are uncertain: {}\n", view.gpu, view.gpu_source),
        _ => String::new(),
    };
    format!("{body}\n{verdict}: {}\n{caution}({}{basis})\n", view.reason, view.scope)
}

fn row(candidate: &CandidateView<'_>) -> [String; 12] {
    [
        candidate.path.to_owned(),
        candidate.tp.to_string(),
        candidate.s_q.to_string(),
        candidate.batch.to_string(),
        format!("{:.4}", candidate.attention_ns_per_token_layer),
        candidate.bytes_per_token_layer.to_string(),
        format!("{:.1}", candidate.intensity),
        candidate.bound.to_owned(),
        format!("{:.2}", candidate.step_us / 1e3),
        format!("{:.0}", candidate.tokens_per_second_per_gpu),
        candidate.kv_tokens_capacity.to_string(),
        if candidate.feasible { "yes" } else { "no" }.to_owned(),
    ]
}
