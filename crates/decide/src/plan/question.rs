//! What the planner is asked for a pool.

use gqla_api::{ConditionReason, MultiTokenPrediction, Objective, ShortDuration, TensorParallel};
use gqla_model::{CacheFormat, ModelShape};
use gqla_planner::{Backend, CPU_CLASS, Constraints, Goal, PlanError};

use super::{Failure, Target};
use crate::validate::ValidatedDeployment;

/// Ranks of a CPU pod at most.
const CPU_RANKS: u32 = 8;

/// The CPU backend runs as many ranks as are asked for, one for Auto. It drafts when told to: figures are those of the
/// node's class, and what pays there may not pay on its processor.
pub(super) fn cpu_constraints(target: &Target<'_>, arguments: &[String]) -> Result<Constraints, Failure> {
    let refuse = |sentence: String| Err((ConditionReason::InvalidSpec, sentence));
    let degree = match target.decode.tensor_parallel {
        TensorParallel::Auto => 1,
        TensorParallel::Degree(degree) => degree,
    };
    if degree > CPU_RANKS {
        return refuse(format!(
            "decode.tensorParallel={degree} with runtime.device CPU: the CPU backend runs at most {CPU_RANKS} ranks"
        ));
    }
    Ok(Constraints {
        path: target.decode.path.fixed(),
        tensor_parallel: Some(degree),
        multi_token_prediction: match target.decode.multi_token_prediction {
            MultiTokenPrediction::Auto | MultiTokenPrediction::Off => Some(0),
            MultiTokenPrediction::Drafts(drafts) => Some(drafts),
        },
        backend: Backend::Cpu,
        cache_format: cache_format(arguments),
        ..Constraints::default()
    })
}

/// What the pods' own `arguments` say that the cache's numbers are stored as; gqla-server refuses what is no format.
fn cache_format(arguments: &[String]) -> Option<CacheFormat> {
    let value = |(index, argument): (usize, &String)| match argument.strip_prefix("--kv-cache-dtype")? {
        "" => arguments.get(index + 1)?.parse().ok(),
        rest => rest.strip_prefix('=')?.parse().ok(),
    };
    arguments.iter().enumerate().find_map(value)
}

/// Any degree that one node's GPUs allow, unless one is asked for.
pub(super) fn cuda_constraints(target: &Target<'_>) -> Result<Constraints, Failure> {
    let most = target.nodes.most_gpus();
    let degree = match target.decode.tensor_parallel {
        TensorParallel::Auto => None,
        TensorParallel::Degree(degree) => Some(degree),
    };
    let wanted = degree.unwrap_or(1);
    if target.nodes.class.name() == CPU_CLASS {
        return Err((
            ConditionReason::InvalidSpec,
            "runtime.device CUDA needs a GPU, and class CPU has none; use device CPU or Auto".to_owned(),
        ));
    }
    if most < wanted {
        return Err((
            ConditionReason::NoUsableNodes,
            format!(
                "a replica needs {wanted} nvidia.com/gpu on one node, the largest usable {} node offers {most}",
                target.nodes.class.name()
            ),
        ));
    }
    Ok(Constraints {
        path: target.decode.path.fixed(),
        tensor_parallel: degree,
        max_tensor_parallel: most,
        multi_token_prediction: match target.decode.multi_token_prediction {
            MultiTokenPrediction::Auto => None,
            MultiTokenPrediction::Off => Some(0),
            MultiTokenPrediction::Drafts(drafts) => Some(drafts),
        },
        ..Constraints::default()
    })
}

/// What every pool of `deployment` is planned for.
pub fn goal(deployment: &ValidatedDeployment, shape: &ModelShape) -> Goal {
    let (asked, default) = (deployment.spec.goal, Goal::default());
    let prompt_tokens = asked.prompt_tokens.unwrap_or(default.prompt_tokens);
    let output_tokens = asked.output_tokens.unwrap_or(default.output_tokens);
    let needed = default.context_length.max(prompt_tokens.saturating_add(output_tokens));
    Goal {
        objective: match asked.objective {
            Objective::Throughput => gqla_planner::Objective::Throughput,
            Objective::Latency => gqla_planner::Objective::Latency,
            Objective::Cost => gqla_planner::Objective::Cost,
        },
        context_length: asked.context_length.unwrap_or_else(|| needed.min(shape.max_position_embeddings)),
        concurrency: asked.concurrency.unwrap_or(default.concurrency),
        prompt_tokens,
        output_tokens,
        max_time_per_output_token_ms: asked.max_time_per_output_token.map(ShortDuration::milliseconds),
        max_time_to_first_token_ms: asked.max_time_to_first_token.map(ShortDuration::milliseconds),
        ..default
    }
}

/// One word for why the planner refused.
pub(super) fn reason_of(error: &PlanError) -> ConditionReason {
    match error {
        PlanError::Shape(_) => ConditionReason::InvalidShape,
        PlanError::NothingFeasible { .. } => ConditionReason::NoFeasiblePlan,
        PlanError::Gpu(_)
        | PlanError::Goal { .. }
        | PlanError::Split(_)
        | PlanError::Calibration(_)
        | PlanError::NoDegrees => ConditionReason::InvalidSpec,
    }
}
