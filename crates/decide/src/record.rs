//! What the status says of a plan.

use gqla_api::{PoolStatus, RunnerUp};
use gqla_planner::Candidate;

use crate::{
    plan::PoolPlan,
    text::{LONGEST_SENTENCE, cut},
};

/// The decision record of `plan`, before any of its replicas is ready or measured.
pub fn record(plan: &PoolPlan) -> PoolStatus {
    let (decision, chosen) = (&plan.decision, &plan.decision.chosen);
    PoolStatus {
        name: plan.name.clone(),
        gpu_class: plan.class.clone(),
        device: plan.device,
        path: chosen.path,
        tensor_parallel: chosen.tensor_parallel,
        multi_token_prediction: chosen.multi_token_prediction,
        replicas: i32::try_from(plan.replicas).unwrap_or(i32::MAX),
        ready: 0,
        predicted_tokens_per_second: Some(round(chosen.tokens_per_second)),
        measured_tokens_per_second: None,
        bytes_per_token: Some(chosen.bytes_per_token_layer),
        arithmetic_intensity: Some(round(chosen.intensity)),
        ridge: Some(round(chosen.ridge)),
        margin: decision.runner_up.as_ref().map(|_| round(decision.margin * 100.0)),
        reason: cut(decision.reason.clone(), LONGEST_SENTENCE),
        runner_up: decision.runner_up.as_ref().map(runner_up),
        note: plan.note.clone().map(|note| cut(note, LONGEST_SENTENCE)),
    }
}

fn runner_up(candidate: &Candidate) -> RunnerUp {
    RunnerUp {
        path: candidate.path,
        tensor_parallel: candidate.tensor_parallel,
        multi_token_prediction: candidate.multi_token_prediction,
        predicted_tokens_per_second: round(candidate.tokens_per_second),
    }
}

/// Four significant digits: more would be false precision, and would not survive the way through JSON unchanged.
pub fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    format!("{value:.3e}").parse().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_rounded_to_what_they_are_worth() {
        for (value, rounded) in [(0.0, 0.0), (1234.56, 1235.0), (0.012_345_6, 0.01235), (f64::NAN, 0.0)] {
            assert_eq!(round(value), rounded);
        }
    }
}
