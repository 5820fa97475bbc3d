use gqla_model::TensorParallelSplit;
use proptest::prelude::*;

use super::*;
use crate::{
    catalogue::Catalogue,
    models::{self, ModelName},
};

fn gpu(name: &str) -> GpuSpec {
    Catalogue::builtin().get(name).unwrap().spec.clone()
}

fn decide_for(model: ModelName, gpu_name: &str, constraints: Constraints) -> Result<Decision, PlanError> {
    plan(&models::shape(model), &gpu(gpu_name), &Goal::default(), &constraints)
}

fn single_gpu() -> Constraints {
    Constraints { tensor_parallel: Some(1), ..Constraints::default() }
}

#[test]
fn the_path_follows_from_shape_and_ridge_not_from_the_gpu_name() {
    use DecodePath::{Gqa, MqaAbsorb};
    use ModelName::{DeepseekAttention, Glm47FlashGqla, Llama38bGqla, Smollm2135mGqla};
    let table = [
        (DeepseekAttention, "H100", MqaAbsorb, 1),
        (DeepseekAttention, "H20", Gqa, 1),
        (Glm47FlashGqla, "H100", MqaAbsorb, 1),
        (Glm47FlashGqla, "H20", MqaAbsorb, 1),
        (Llama38bGqla, "H20", MqaAbsorb, 0),
        (Smollm2135mGqla, "H100", MqaAbsorb, 0),
        (Smollm2135mGqla, "H20", MqaAbsorb, 0),
        (Smollm2135mGqla, "CPU", Gqa, 0),
    ];
    for (model, gpu_name, path, drafts) in table {
        let chosen = decide_for(model, gpu_name, single_gpu()).unwrap().chosen;
        assert_eq!((chosen.path, chosen.multi_token_prediction), (path, drafts), "{model} on {gpu_name}");
        let free = decide_for(model, gpu_name, Constraints::default()).unwrap().chosen;
        assert_eq!(free, chosen, "{model} on {gpu_name}: more GPUs must not look cheaper per token");
    }
}

#[test]
fn deepseek_v3_does_not_fit_eight_h100_and_the_refusal_shows_the_arithmetic() {
    let error = decide_for(ModelName::DeepseekV3Gqla, "H100", Constraints::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no way to run this model on H100: bf16 weights of 1249.8 GiB over 8 GPUs = 157.9 GiB per GPU, \
         but 0.9 of 79.6 GiB = 71.7 GiB can be used: 86.2 GiB short"
    );
    let PlanError::NothingFeasible { candidates, .. } = error else { panic!("{error}") };
    assert!(candidates.iter().all(|candidate| !candidate.feasible && candidate.kv_capacity_tokens == 0));
}

#[test]
fn a_scope_without_memory_plans_what_does_not_fit() {
    let constraints = Constraints { scope: Scope::AttentionOnly, ..single_gpu() };
    let on = |gpu| decide_for(ModelName::DeepseekV3Gqla, gpu, constraints).unwrap().chosen.path;
    assert_eq!(on("H100"), DecodePath::MqaAbsorb);
    assert_eq!(on("H20"), DecodePath::Gqa);
}

#[test]
fn weights_force_more_gpus_and_no_more_than_needed() {
    let narrow = Constraints { max_tensor_parallel: 2, ..Constraints::default() };
    let chosen = decide_for(ModelName::Llama370bGqla, "H100", narrow).unwrap().chosen;
    assert_eq!(chosen.tensor_parallel, 2);
    // Per GPU: half the bf16 weights, but the whole projection into the latent, 80 × 8192 × 576, on either.
    let latent = 80 * 8192 * 576_u64;
    let weights = (70_553_706_496 - latent) + 2 * latent;
    // 0.9 of 81559 MiB less that, over 80 layers of 576 bf16 elements.
    assert_eq!(chosen.kv_capacity_tokens, (76_968_716_697 - weights) / (80 * 576 * 2));
    assert_eq!(chosen.batch, (chosen.kv_capacity_tokens / 4096) as u32);
    // Two more GPUs hold the whole batch, which is worth more than what adding up over them costs.
    let wide = decide_for(ModelName::Llama370bGqla, "H100", Constraints::default()).unwrap().chosen;
    assert_eq!((wide.tensor_parallel, wide.batch), (4, 32));
}

#[test]
fn latency_spends_gpus_that_throughput_would_not() {
    let goal = Goal { objective: Objective::Latency, ..Goal::default() };
    let shape = models::shape(ModelName::DeepseekAttention);
    let chosen = plan(&shape, &gpu("H20"), &goal, &Constraints::default()).unwrap().chosen;
    assert_eq!((chosen.path, chosen.tensor_parallel), (DecodePath::Gqa, 8));
}

#[test]
fn the_reason_names_both_sides_and_calls_a_small_margin_close() {
    let decision = decide_for(ModelName::DeepseekAttention, "H20", single_gpu()).unwrap();
    assert!(!decision.is_close());
    let sides = [
        "GQA at TP 1 with 1 drafted token on H20 yields ",
        "4224 B and 163840 FLOP per cached token and layer, 38.8 FLOP/B against a ridge of 37.0, memory-bound at ",
        " ms a step of 32 sequences of 4096 tokens, attention ",
        "; MQAAbsorb at TP 1 lost: ",
        "1152 B at 241.8 FLOP/B, compute-bound",
    ];
    for side in sides {
        assert!(decision.reason.contains(side), "{side} is not in {}", decision.reason);
    }
    assert!(decision.basis.contains("not yet measured on a device"), "{}", decision.basis);
    let close = decide_for(ModelName::Smollm2135mGqla, "H20", single_gpu()).unwrap();
    assert!(close.is_close());
    assert!(close.reason.ends_with(" %, which is close)"), "{}", close.reason);
}

#[test]
fn a_fixed_path_is_respected_and_said() {
    let constraints = Constraints { path: Some(DecodePath::MqaAbsorb), ..single_gpu() };
    let decision = decide_for(ModelName::DeepseekAttention, "H20", constraints).unwrap();
    assert!(decision.candidates.iter().all(|candidate| candidate.path == DecodePath::MqaAbsorb));
    assert!(decision.reason.ends_with("; the path is fixed to MQAAbsorb"), "{}", decision.reason);
}

#[test]
fn each_impossible_request_says_what_is_wrong() {
    let refusal =
        |constraints| decide_for(ModelName::Glm47FlashGqla, "H20", constraints).unwrap_err().to_string();
    let eight = Constraints { tensor_parallel: Some(8), ..Constraints::default() };
    assert_eq!(refusal(eight), "tensorParallel=8 does not divide numAttentionHeads=20 (20 mod 8 = 4)");
    let drafts = Constraints { multi_token_prediction: Some(2), ..Constraints::default() };
    assert_eq!(
        refusal(drafts),
        "no way to run this model on H20: multiTokenPrediction=2 needs as many prediction layers, \
         but numNextnPredictLayers=1"
    );
    let none = Constraints { max_tensor_parallel: 0, ..Constraints::default() };
    assert_eq!(refusal(none), "the largest tensor-parallel degree to consider is 0, expected at least 1");
}

#[test]
fn each_impossible_goal_names_its_field() {
    let shape = models::shape(ModelName::Glm47FlashGqla);
    let refusal =
        |goal: Goal| plan(&shape, &gpu("H20"), &goal, &Constraints::default()).unwrap_err().to_string();
    let table = [
        (Goal { context_length: 0, ..Goal::default() }, "goal.contextLength is 0, expected at least 1"),
        (Goal { concurrency: 0, ..Goal::default() }, "goal.concurrency is 0, expected at least 1"),
        (
            Goal { acceptance: 1.5, ..Goal::default() },
            "goal.acceptance is 1.5, expected a number from 0 to 1",
        ),
        (
            Goal { memory_fraction: f64::NAN, ..Goal::default() },
            "goal.memoryFraction is NaN, expected a number above 0 and at most 1",
        ),
        (
            Goal { context_length: 300_000, ..Goal::default() },
            "no way to run this model on H20: a context of 300000 tokens exceeds the model's maxPositionEmbeddings=202752",
        ),
    ];
    for (goal, expected) in table {
        assert_eq!(refusal(goal), expected);
    }
}

#[test]
fn a_cache_too_small_for_one_sequence_is_refused_with_the_tokens_it_holds() {
    let tight = GpuSpec { memory_bytes: 70_000_000_000, ..gpu("H20") };
    let goal = Goal { context_length: 100_000, ..Goal::default() };
    let error = plan(&models::shape(ModelName::Glm47FlashGqla), &tight, &goal, &single_gpu()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no way to run this model on H20: beside 55.7 GiB of weights per GPU, 0.9 of 65.2 GiB leave 3.0 GiB for the \
         cache: 59101 tokens of 54144 B, fewer than one sequence of 100000"
    );
}

#[test]
fn expected_tokens_per_pass_are_a_geometric_sum() {
    let goal = Goal::default();
    assert_eq!(goal.tokens_per_pass(0), 1.0);
    assert!((goal.tokens_per_pass(1) - 1.8).abs() < 1e-12);
    assert!((goal.tokens_per_pass(2) - 2.44).abs() < 1e-12);
    assert_eq!(Goal { acceptance: 1.0, ..goal }.tokens_per_pass(3), 4.0);
    assert_eq!(Goal { acceptance: 0.0, ..goal }.tokens_per_pass(3), 1.0);
}

fn any_model() -> impl Strategy<Value = ModelName> {
    (0..ModelName::ALL.len()).prop_map(|index| ModelName::ALL[index])
}

fn any_gpu() -> impl Strategy<Value = GpuSpec> {
    (1e11f64..5e15, 1e10f64..1e13, 1u64 << 30..1u64 << 40).prop_map(|(flops, bandwidth, memory)| GpuSpec {
        name: "any".into(),
        flops_per_second: flops,
        bytes_per_second: bandwidth,
        memory_bytes: memory,
        compute_capability: None,
        derived: false,
    })
}

fn any_goal() -> impl Strategy<Value = Goal> {
    (0..3usize, 1u32..9000, 1u32..300, 0.0f64..=1.0).prop_map(
        |(objective, context, concurrency, acceptance)| Goal {
            objective: [Objective::Throughput, Objective::Latency, Objective::Cost][objective],
            context_length: context,
            concurrency,
            acceptance,
            ..Goal::default()
        },
    )
}

fn any_constraints() -> impl Strategy<Value = Constraints> {
    let path = prop::option::of(prop::bool::ANY.prop_map(|gqa| DecodePath::ALL[usize::from(gqa)]));
    (path, prop::option::of(1u32..9), 1u32..9, prop::option::of(0u32..3)).prop_map(
        |(path, tp, most, drafts)| Constraints {
            path,
            tensor_parallel: tp,
            max_tensor_parallel: most,
            multi_token_prediction: drafts,
            ..Constraints::default()
        },
    )
}

proptest! {
    #[test]
    fn a_choice_runs_obeys_its_constraints_and_is_repeatable(
        model in any_model(), gpu in any_gpu(), goal in any_goal(), constraints in any_constraints(),
    ) {
        let shape = models::shape(model);
        let decision = plan(&shape, &gpu, &goal, &constraints);
        prop_assert_eq!(&decision, &plan(&shape, &gpu, &goal, &constraints));
        let Ok(decision) = decision else { return Ok(()) };
        let chosen = &decision.chosen;
        prop_assert!(chosen.feasible && chosen.batch >= 1);
        prop_assert!(chosen.kv_capacity_tokens >= u64::from(goal.context_length));
        prop_assert!(constraints.path.is_none_or(|path| path == chosen.path));
        prop_assert!(constraints.tensor_parallel.is_none_or(|tp| tp == chosen.tensor_parallel));
        prop_assert!(constraints.multi_token_prediction.is_none_or(|k| k == chosen.multi_token_prediction));
        prop_assert!(constraints.tensor_parallel.is_some() || chosen.tensor_parallel <= constraints.max_tensor_parallel);
        prop_assert!(TensorParallelSplit::new(&shape.attention, chosen.path, chosen.tensor_parallel).is_ok());
        prop_assert!((0.0..=1.0).contains(&decision.margin));
        if let Some(other) = &decision.runner_up {
            prop_assert!(other.feasible && other != chosen);
        }
    }

    #[test]
    fn a_better_device_never_yields_a_slower_choice(
        model in any_model(), gpu in any_gpu(), goal in any_goal(),
        flops in 1.0f64..8.0, bandwidth in 1.0f64..8.0, memory in 1u64..8,
    ) {
        let shape = models::shape(model);
        let better = GpuSpec {
            flops_per_second: gpu.flops_per_second * flops,
            bytes_per_second: gpu.bytes_per_second * bandwidth,
            memory_bytes: gpu.memory_bytes * memory,
            ..gpu.clone()
        };
        let Ok(base) = plan(&shape, &gpu, &goal, &Constraints::default()) else { return Ok(()) };
        let improved = plan(&shape, &better, &goal, &Constraints::default()).unwrap();
        let rate = |candidate: &Candidate| match goal.objective {
            Objective::Latency => candidate.tokens_per_second,
            _ => candidate.tokens_per_second_per_gpu(),
        };
        prop_assert!(rate(&improved.chosen) >= rate(&base.chosen) * (1.0 - 1e-12));
    }
}
