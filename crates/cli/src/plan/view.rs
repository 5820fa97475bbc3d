//! What a plan looks like: one JSON object for programs, a table and a sentence for people.

use gqla_planner::{Candidate, Confidence, Decision, Goal, GpuClass};
use serde::Serialize;

use super::Args;
use crate::{
    decision::{CandidateView, DecisionView},
    table::{columns, emphasised},
};

/// The JSON form of a plan. Field names are an interface.
#[derive(Serialize)]
pub(super) struct PlanView<'a> {
    model: &'a str,
    gpu: &'a str,
    gpu_source: &'a str,
    gpu_confidence: &'static str,
    runtime: &'static str,
    scope: String,
    #[serde(flatten)]
    decision: DecisionView<'a>,
}

impl<'a> PlanView<'a> {
    pub(super) fn decided(args: &'a Args, class: &'a GpuClass, goal: &Goal, decision: &'a Decision) -> Self {
        Self::new(args, class, DecisionView::decided(decision, goal))
    }

    pub(super) fn refused(
        args: &'a Args,
        class: &'a GpuClass,
        goal: &Goal,
        candidates: &'a [Candidate],
        reason: &'a str,
    ) -> Self {
        Self::new(args, class, DecisionView::refused(candidates, reason, goal))
    }

    fn new(args: &'a Args, class: &'a GpuClass, decision: DecisionView<'a>) -> Self {
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
            decision,
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
    let decision = &view.decision;
    let rows: Vec<_> = decision.candidates.iter().map(row).collect();
    let text = columns(header, &rows);
    // The first line is the header, and the best candidate that runs comes first.
    let lines = text.lines().enumerate().map(|(index, line)| match index.checked_sub(1) {
        Some(0) if decision.chosen.is_some() => emphasised(line, true),
        Some(index) if !decision.candidates[index].feasible => emphasised(line, false),
        _ => line.to_owned(),
    });
    let body: String = lines.map(|line| line + "\n").collect();
    let verdict = if decision.chosen.is_some() { "chosen" } else { "refused" };
    let basis = decision.basis.map_or(String::new(), |basis| format!("; attention kernels {basis}"));
    let caution = match view.gpu_confidence {
        "low" => format!("caution: {}'s numbers are uncertain: {}\n", view.gpu, view.gpu_source),
        _ => String::new(),
    };
    format!("{body}\n{verdict}: {}\n{caution}({}{basis})\n", decision.reason, view.scope)
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
