//! The sentences a plan is explained with. They carry the numbers, so that a reader can check them by hand.

use gqla_model::DecodePath;

use crate::{
    kernels::ANY_CARD,
    plan::{Candidate, Decision, Scope},
    search::{Scored, Search},
};

/// The arithmetic behind a feasible candidate's time.
pub(crate) fn candidate(candidate: &Candidate) -> String {
    let (part, us) = candidate.step.longest();
    let kernel = candidate.kernel.as_ref().map_or(String::new(), |kernel| format!(" with {kernel}"));
    let mut sentence = format!(
        "{} B and {} FLOP per cached token and layer, {:.1} FLOP/B against a ridge of {:.1}, {}-bound at {} ns per query \
         token{kernel}; {} ms a step of {} sequences of {} tokens, {part} {} ms of it",
        candidate.bytes_per_token_layer,
        candidate.flops_per_token_layer,
        candidate.intensity,
        candidate.ridge,
        candidate.bound.name(),
        significant(candidate.attention_ns_per_query_token),
        significant(candidate.step.total_us() / 1e3),
        candidate.batch,
        candidate.decode_context,
        significant(us / 1e3),
    );
    if candidate.padded_heads > 0 {
        sentence.push_str(&format!(
            "; {} idle heads added so that the ranks divide them",
            candidate.padded_heads
        ));
    }
    sentence
}

/// Why `chosen` was chosen and why `runner_up` lost.
pub(crate) fn decision(
    search: &Search<'_>,
    ranked: &[Scored],
    chosen: &Scored,
    runner_up: Option<&Scored>,
) -> String {
    let best = &chosen.candidate;
    let mut sentence = format!(
        "{} on {} yields {} tokens/s: {}",
        name(best),
        search.gpu.name,
        significant(best.tokens_per_second),
        best.reason,
    );
    if best.kernel.as_deref() == Some(ANY_CARD) {
        sentence.push_str(&undescribed(&search.gpu.name));
    }
    if let Some(other) = runner_up {
        sentence.push_str(&lost(search, chosen, other));
    }
    if runner_up.is_none_or(|other| other.candidate.path == best.path) {
        sentence.push_str(&other_path(search, ranked, best.path));
    }
    sentence
}

fn undescribed(class: &str) -> String {
    format!(
        "; no kernels are known for {class}'s architecture, so it is planned at 0.5 of its bandwidth on absorb, 0.7 on GQA and \
         0.3 of its arithmetic: state computeCapability in a GPUClass"
    )
}

fn lost(search: &Search<'_>, chosen: &Scored, other: &Scored) -> String {
    let candidate = &other.candidate;
    let margin = 1.0 - chosen.score / other.score;
    let close = if margin < Decision::CLOSE { ", which is close" } else { "" };
    let step = match search.constraints.scope {
        Scope::Deployment => format!("{} ms a step, ", significant(candidate.step.total_us() / 1e3)),
        Scope::AttentionOnly => String::new(),
    };
    format!(
        "; {} lost: {} ns, {} B at {:.1} FLOP/B, {}-bound, {step}{:.2} times the cost per token (margin {:.0} %{close})",
        name(candidate),
        significant(candidate.attention_ns_per_query_token),
        candidate.bytes_per_token_layer,
        candidate.intensity,
        candidate.bound.name(),
        other.score / chosen.score,
        margin * 100.0,
    )
}

/// Why the path that was not chosen is not even the runner-up.
fn other_path(search: &Search<'_>, ranked: &[Scored], chosen: DecodePath) -> String {
    if search.constraints.path.is_some() {
        return format!("; the path is fixed to {}", chosen.api_name());
    }
    let excluded = ranked.iter().map(|scored| &scored.candidate).find(|candidate| candidate.path != chosen);
    match (excluded, search.constraints.tensor_parallel) {
        (Some(candidate), _) => format!("; {} cannot run: {}", name(candidate), candidate.reason),
        (None, Some(degree)) => format!("; the other path does not divide over tensorParallel={degree}"),
        (None, None) => String::new(),
    }
}

/// Such as `GQA at TP 1 with 1 drafted token`.
fn name(candidate: &Candidate) -> String {
    let drafts = match candidate.multi_token_prediction {
        0 => String::new(),
        1 => " with 1 drafted token".to_owned(),
        more => format!(" with {more} drafted tokens"),
    };
    format!("{} at TP {}{drafts}", candidate.path.api_name(), candidate.tensor_parallel)
}

/// Three significant digits or more, without an exponent.
fn significant(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value => format!("{value:.3}"),
    }
}
