//! The sentences a plan is explained with. They carry the numbers, so that a reader can check them by hand.

use gqla_model::DecodePath;

use crate::{
    gpu::GpuSpec,
    plan::{Candidate, Constraints, Decision},
    roofline::{AttentionCore, Bound},
    search::Scored,
};

/// The arithmetic behind a feasible candidate's time.
pub(crate) fn core(core: &AttentionCore, gpu: &GpuSpec) -> String {
    format!(
        "{} B and {} FLOP per cached token and layer: {:.1} FLOP/B against a ridge of {:.1}, so {}-bound at {} ns per \
         query token",
        core.bytes,
        core.flops,
        core.intensity,
        gpu.ridge(),
        core.bound.name(),
        nanoseconds(core.ns_per_query_token),
    )
}

/// Why `chosen` was chosen and why `runner_up` lost.
pub(crate) fn decision(
    gpu: &GpuSpec,
    constraints: &Constraints,
    ranked: &[Scored],
    chosen: &Scored,
    runner_up: Option<&Scored>,
) -> String {
    let best = &chosen.candidate;
    let side = match best.bound {
        Bound::Memory => "below",
        Bound::Compute => "above",
    };
    let mut sentence = format!(
        "{} takes {} ns of attention per query token, cached token and layer on {}: it reads {} B at {:.1} FLOP/B, {side} \
         the ridge of {:.1}, so it is {}-bound",
        name(best),
        nanoseconds(best.attention_ns_per_query_token),
        gpu.name,
        best.bytes_per_token_layer,
        best.intensity,
        best.ridge,
        best.bound.name(),
    );
    if let Some(other) = runner_up {
        sentence.push_str(&lost(chosen, other));
    }
    if runner_up.is_none_or(|other| other.candidate.path == best.path) {
        sentence.push_str(&other_path(constraints, ranked, best.path));
    }
    sentence
}

fn lost(chosen: &Scored, other: &Scored) -> String {
    let candidate = &other.candidate;
    let margin = 1.0 - chosen.score / other.score;
    let close = if margin < Decision::CLOSE { ", which is close" } else { "" };
    format!(
        "; {} lost: {} ns, {} B at {:.1} FLOP/B, {}-bound, {:.2} times the cost per token (margin {:.0} %{close})",
        name(candidate),
        nanoseconds(candidate.attention_ns_per_query_token),
        candidate.bytes_per_token_layer,
        candidate.intensity,
        candidate.bound.name(),
        other.score / chosen.score,
        margin * 100.0,
    )
}

/// Why the path that was not chosen is not even the runner-up.
fn other_path(constraints: &Constraints, ranked: &[Scored], chosen: DecodePath) -> String {
    if constraints.path.is_some() {
        return format!("; the path is fixed to {}", chosen.api_name());
    }
    let excluded = ranked.iter().map(|scored| &scored.candidate).find(|candidate| candidate.path != chosen);
    match (excluded, constraints.tensor_parallel) {
        (Some(candidate), _) => format!("; {} cannot run: {}", name(candidate), candidate.reason),
        (None, Some(degree)) => format!("; the other path does not divide over tensorParallel={degree}"),
        (None, None) => String::new(),
    }
}

/// Such as `GQA at TP 1 with 1 draft`.
fn name(candidate: &Candidate) -> String {
    let drafts = match candidate.multi_token_prediction {
        0 => String::new(),
        1 => " with 1 drafted token".to_owned(),
        more => format!(" with {more} drafted tokens"),
    };
    format!("{} at TP {}{drafts}", candidate.path.api_name(), candidate.tensor_parallel)
}

/// Three significant digits or more, without an exponent.
fn nanoseconds(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}
