//! Properties of whole plans over every class, runtime and efficiency, and the decisions that one number turns.

mod launch;
mod layers;
mod numbers;
mod vllm;

use gqla_model::{AttentionShape, DecodePath, ModelShape, Parameters, TensorParallelSplit, WeightFormat};
use proptest::prelude::*;

use crate::{
    attention::Efficiency,
    calibration::{Calibration, MeasuredKernel, Provenance},
    catalogue::Catalogue,
    gpu::GpuSpec,
    kernels::Runtime,
    models::{self, ModelName},
    plan::{Candidate, Constraints, Decision, Goal, Objective, PlanError, Scope, plan, plan_calibrated},
    roofline::{AttentionCore, CacheLayout, RopeLayout},
};

fn gpu(class: &str) -> GpuSpec {
    Catalogue::builtin().get(class).unwrap().spec.clone()
}

fn decide(model: ModelName, class: &str, goal: &Goal, constraints: &Constraints) -> Decision {
    plan(&models::shape(model), &gpu(class), goal, constraints).unwrap()
}

fn one_gpu() -> Constraints {
    Constraints { tensor_parallel: Some(1), ..Constraints::default() }
}

/// The GPU hour is priced so that an H20 decodes cheaper; its prompts cost seven times the arithmetic.
#[test]
fn the_prompt_alone_turns_which_pool_is_cheaper() {
    let cost = |class: &str, cost_per_gpu_hour: f64, prompt_tokens: u32| {
        let goal = Goal {
            objective: Objective::Cost,
            context_length: 16_384,
            prompt_tokens,
            cost_per_gpu_hour: Some(cost_per_gpu_hour),
            ..Goal::default()
        };
        let decision = decide(ModelName::Glm47FlashGqla, class, &goal, &one_gpu());
        decision.chosen.cost_per_million_tokens.unwrap()
    };
    let table = [0, 12_000].map(|prompt| (cost("H20", 1.0, prompt), cost("H100", 2.0, prompt)));
    assert!(table[0].0 < table[0].1, "decoding alone: H20 {} against H100 {}", table[0].0, table[0].1);
    assert!(table[1].0 > table[1].1, "with prompts: H20 {} against H100 {}", table[1].0, table[1].1);
}

#[test]
fn a_bound_on_a_tokens_time_shrinks_the_batch_or_is_refused_with_the_time() {
    let goal = |bound| Goal { concurrency: 256, max_time_per_output_token_ms: bound, ..Goal::default() };
    let free = decide(ModelName::Llama38bGqla, "H100", &goal(None), &one_gpu()).chosen;
    let bound = free.time_per_output_token_ms * 0.6;
    let held = decide(ModelName::Llama38bGqla, "H100", &goal(Some(bound)), &one_gpu()).chosen;
    assert!(held.batch < free.batch && held.time_per_output_token_ms <= bound, "{held:?}");
    let next = Constraints { batch: Some(held.batch + 1), ..one_gpu() };
    let next = decide(ModelName::Llama38bGqla, "H100", &goal(None), &next);
    let same_way = |c: &&Candidate| (c.path, c.tensor_parallel) == (held.path, held.tensor_parallel);
    let slower = next.candidates.iter().find(same_way).unwrap().time_per_output_token_ms;
    assert!(slower > bound, "a batch of {} would do", held.batch + 1);
    let shape = models::shape(ModelName::Llama38bGqla);
    let error = plan(&shape, &gpu("H100"), &goal(Some(0.5)), &one_gpu()).unwrap_err().to_string();
    assert!(error.contains("an output token takes ") && error.contains("goal.maxTimePerOutputToken=0.5 ms"));
    let PlanError::NothingFeasible { candidates, .. } =
        plan(&shape, &gpu("H100"), &goal(Some(0.5)), &one_gpu()).unwrap_err()
    else {
        panic!("{error}")
    };
    assert!(
        candidates.iter().all(|candidate| candidate.batch == 1),
        "the fastest is reported: {candidates:?}"
    );
}

#[test]
fn a_bound_on_the_first_token_asks_for_more_gpus() {
    let goal = |bound| Goal {
        context_length: 8192,
        prompt_tokens: 7000,
        max_time_to_first_token_ms: bound,
        ..Goal::default()
    };
    let free = decide(ModelName::Llama38bGqla, "H20", &goal(None), &Constraints::default()).chosen;
    let bound = free.time_to_first_token_ms / 2.0;
    let held = decide(ModelName::Llama38bGqla, "H20", &goal(Some(bound)), &Constraints::default()).chosen;
    assert!(held.tensor_parallel > free.tensor_parallel, "{held:?}");
    assert!(held.time_to_first_token_ms <= bound);
}

#[test]
fn idle_heads_are_added_only_when_allowed_and_are_reported() {
    let eight = Constraints { tensor_parallel: Some(8), ..Constraints::default() };
    let shape = models::shape(ModelName::Glm47FlashGqla);
    let refusal = plan(&shape, &gpu("H20"), &Goal::default(), &eight).unwrap_err();
    assert_eq!(refusal.to_string(), "tensorParallel=8 does not divide numAttentionHeads=20 (20 mod 8 = 4)");
    let padded = Constraints { head_padding: true, ..eight };
    let decision = plan(&shape, &gpu("H20"), &Goal::default(), &padded).unwrap();
    assert_eq!(decision.chosen.padded_heads, 4, "5 heads a group become 6, 3 a rank");
    assert!(decision.chosen.reason.contains("4 idle heads added"), "{}", decision.chosen.reason);
}

#[test]
fn a_measurement_changes_the_plan_and_is_named() {
    let shape = models::shape(ModelName::DeepseekAttention);
    let goal = Goal::default();
    let built_in = plan(&shape, &gpu("H20"), &goal, &one_gpu()).unwrap();
    assert_eq!(built_in.chosen.path, DecodePath::Gqa);
    let slow = MeasuredKernel {
        gpu: "H20".into(),
        runtime: Runtime::Native,
        build: None,
        path: DecodePath::Gqa,
        floor_us: 50.0,
        bandwidth: 0.1,
        arithmetic: 0.1,
        tile_rows: 64,
        provenance: Provenance {
            tool: "attention timer".into(),
            device: "NVIDIA H20".into(),
            build: "0.1.0 sm_90a".into(),
            measured_at: "2026-01-02T03:04:05Z".into(),
            samples: 30,
        },
    };
    let mut calibration = Calibration { kernels: vec![slow.clone()], ..Calibration::default() };
    let measured = plan_calibrated(&shape, &gpu("H20"), &goal, &one_gpu(), &calibration).unwrap();
    assert_eq!(measured.chosen.path, DecodePath::MqaAbsorb);
    calibration.kernels = vec![MeasuredKernel { bandwidth: 0.8, arithmetic: 0.8, ..slow.clone() }];
    let good = plan_calibrated(&shape, &gpu("H20"), &goal, &one_gpu(), &calibration).unwrap();
    assert!(good.basis.starts_with("measured by attention timer with 0.1.0 sm_90a on NVIDIA H20"));
    assert_eq!(good.calibrated.as_slice(), std::slice::from_ref(&good.basis));
    assert_eq!(built_in.calibrated, [""; 0]);
    calibration.kernels = vec![MeasuredKernel { arithmetic: 2.0, ..slow }];
    let refusal = plan_calibrated(&shape, &gpu("H20"), &goal, &one_gpu(), &calibration);
    assert!(matches!(refusal, Err(PlanError::Calibration(_))));
}

#[test]
fn a_written_calibration_is_read_back() {
    let text = r#"{"kernels":[{"gpu":"H20","runtime":"native","path":"GQA","floor_us":9.5,"bandwidth":0.81,
        "arithmetic":0.7,"tile_rows":16,"provenance":{"tool":"t","device":"d","build":"b",
        "measured_at":"2026-01-02T03:04:05Z","samples":30}}]}"#;
    let calibration: Calibration = serde_json::from_str(text).unwrap();
    assert_eq!(calibration.kernels[0].runtime, Runtime::Native);
    let again = serde_json::to_string(&calibration).unwrap();
    assert_eq!(serde_json::from_str::<Calibration>(&again).unwrap(), calibration);
    assert!(serde_json::from_str::<Calibration>(r#"{"kernel":[]}"#).is_err(), "a misspelt field is refused");
}

#[test]
fn block_fp8_weights_are_half_as_large_and_need_a_kernel() {
    let mut shape = models::shape(ModelName::DeepseekV3Gqla);
    shape.weights.weight_format = WeightFormat::Fp8Block;
    let vllm = Constraints { runtime: Runtime::Vllm, ..Constraints::default() };
    let chosen = plan(&shape, &gpu("H200"), &Goal::default(), &vllm).unwrap().chosen;
    assert_eq!(chosen.tensor_parallel, 8);
    let native = plan(&shape, &gpu("H200"), &Goal::default(), &Constraints::default()).unwrap_err();
    assert!(native.to_string().contains("block-fp8"), "{native}");
}

fn any_class() -> impl Strategy<Value = GpuSpec> {
    let classes: Vec<_> = Catalogue::builtin().iter().map(|class| class.spec.clone()).collect();
    prop::sample::select(classes)
}

fn any_model() -> impl Strategy<Value = ModelName> {
    prop::sample::select(ModelName::ALL.to_vec())
}

fn any_constraints() -> impl Strategy<Value = Constraints> {
    let choices = (any::<[bool; 5]>(), prop::option::of(1u32..17), prop::option::of(1u32..600));
    choices.prop_map(|([vllm, peak, per_group, padding, only], tensor_parallel, batch)| Constraints {
        tensor_parallel,
        batch,
        runtime: if vllm { Runtime::Vllm } else { Runtime::Native },
        efficiency: if peak { Efficiency::Peak } else { Efficiency::Calibrated },
        rope_layout: per_group.then_some(RopeLayout::PerGroup),
        head_padding: padding,
        scope: if only { Scope::AttentionOnly } else { Scope::Deployment },
        ..Constraints::default()
    })
}

fn any_goal() -> impl Strategy<Value = Goal> {
    (0..3usize, 1u32..40_000, 1u32..2000, 0.0f64..=1.0, 0u32..40_000).prop_map(
        |(objective, context_length, concurrency, acceptance, prompt)| Goal {
            objective: [Objective::Throughput, Objective::Latency, Objective::Cost][objective],
            context_length,
            concurrency,
            acceptance,
            prompt_tokens: prompt.min(context_length),
            ..Goal::default()
        },
    )
}

fn all(outcome: Result<Decision, PlanError>) -> Vec<Candidate> {
    match outcome {
        Ok(decision) => decision.candidates,
        Err(PlanError::NothingFeasible { candidates, .. }) => candidates,
        Err(_) => Vec::new(),
    }
}

/// Bytes of bf16 weights: the whole model and its prediction layers by degree, and once more what does not divide. A
/// rank has its groups' up-projections whole; vLLM's absorb path has one per head.
fn weights_per_rank(shape: &ModelShape, candidate: &Candidate, runtime: Runtime) -> f64 {
    let (degree, drafts) = (candidate.tensor_parallel, u64::from(candidate.multi_token_prediction));
    let parts = Parameters::of(shape);
    let routed = shape.weights.experts.map_or(0, |experts| u64::from(experts.n_routed_experts));
    let feed_forward = match parts.expert_layers {
        0 => parts.dense,
        _ => routed * parts.expert + parts.shared_experts + parts.router,
    };
    let layer = parts.attention.total() + feed_forward + parts.nextn_projection;
    let latents = parts.attention.query_down + parts.attention.latent;
    let expert_layers = u64::from(parts.expert_layers);
    let whole = (u64::from(shape.num_hidden_layers) + drafts) * latents
        + (expert_layers + if expert_layers > 0 { drafts } else { 0 }) * parts.router
        + drafts * parts.nextn_projection;
    let attention = &shape.attention;
    let (groups, layers) = (u64::from(attention.num_key_value_heads), u64::from(shape.num_hidden_layers));
    let heads = u64::from(attention.num_attention_heads + candidate.padded_heads) / u64::from(degree);
    let group =
        u64::from(attention.kv_lora_rank) * u64::from(attention.qk_nope_head_dim + attention.v_head_dim);
    let owned = (groups / u64::from(degree)).max(1);
    let held = match (candidate.path, runtime) {
        (DecodePath::MqaAbsorb, Runtime::Vllm) => layers * heads + drafts * owned,
        _ => (layers + drafts) * owned,
    };
    let divided = shape.parameters + drafts * layer - whole - (layers + drafts) * groups * group;
    2.0 * (divided as f64 / f64::from(degree) + (whole + held * group) as f64)
}

/// Published: DeepSeek-V3's prediction layer has 11.5 billion weights of its own, besides the 671 of the decoder.
#[test]
fn drafting_costs_memory_for_its_layer() {
    let mut shape = models::shape(ModelName::DeepseekV3Gqla);
    shape.weights.nextn_key_value_heads = Some(128);
    let layer = Parameters::of(&shape).nextn_layer(256) as f64;
    assert!((layer / 11.5e9 - 1.0).abs() < 0.01, "{layer}");
    let capacity = |drafts| {
        let goal = Goal { context_length: 1024, ..Goal::default() };
        let fixed = Constraints { multi_token_prediction: Some(drafts), ..one_gpu() };
        decide(ModelName::Glm47FlashGqla, "H20", &goal, &fixed).chosen.kv_capacity_tokens as f64
    };
    let parts = Parameters::of(&models::shape(ModelName::Glm47FlashGqla));
    let (bytes, layer) = (576.0 * 2.0, 2.0 * parts.nextn_layer(64) as f64);
    let expected = (capacity(0) * 47.0 * bytes - layer) / (48.0 * bytes);
    assert!((capacity(1) - expected).abs() < 2.0, "{} for {expected}", capacity(1));
}

/// A cache with a rope key per group holds 8 × (256 + 64) elements where a shared one holds 8 × 256 + 64.
#[test]
fn the_cache_holds_fewer_tokens_with_a_rope_key_per_group() {
    let capacity = |rope_layout| {
        let fixed = Constraints { rope_layout: Some(rope_layout), path: Some(DecodePath::Gqa), ..one_gpu() };
        decide(ModelName::Llama38bGqla, "H100", &Goal::default(), &fixed).chosen.kv_capacity_tokens as f64
    };
    let ratio = capacity(RopeLayout::Shared) / capacity(RopeLayout::PerGroup);
    assert!((ratio - 2560.0 / 2112.0).abs() < 1e-4, "{ratio}");
}

/// Prompt plus half the answer; what fits is a matter of the longest context.
#[test]
fn decoding_is_priced_at_a_requests_average_and_fits_at_its_longest() {
    let table = [(0, 500, 4096), (1000, 500, 1250), (4000, 500, 4096), (1, 1, 1)];
    for (prompt_tokens, output_tokens, expected) in table {
        let goal = Goal { prompt_tokens, output_tokens, ..Goal::default() };
        assert_eq!(goal.decode_context(), expected, "{prompt_tokens} + {output_tokens}");
    }
    let chosen = |prompt_tokens| {
        let goal = Goal { prompt_tokens, output_tokens: 500, ..Goal::default() };
        decide(ModelName::Llama38bGqla, "H100", &goal, &one_gpu()).chosen
    };
    let (worst, mean) = (chosen(0), chosen(1000));
    assert_eq!((worst.batch, worst.kv_capacity_tokens), (mean.batch, mean.kv_capacity_tokens));
    assert_eq!((worst.decode_context, mean.decode_context), (4096, 1250));
    assert!(mean.step.attention_us < worst.step.attention_us);
    assert!(mean.reason.contains("32 sequences of 1250 tokens"), "{}", mean.reason);
}

proptest! {
    #[test]
    fn time_never_falls_when_bandwidth_or_flops_fall(
        model in any_model(), gpu in any_class(), goal in any_goal(), constraints in any_constraints(),
        flops in 0.1f64..=1.0, bandwidth in 0.1f64..=1.0, batch in 1u32..300,
    ) {
        let shape = models::shape(model);
        // A fixed batch: more of one is not a slower step.
        let constraints = Constraints { batch: Some(batch), ..constraints };
        let slower = GpuSpec {
            flops_per_second: gpu.flops_per_second * flops,
            bytes_per_second: gpu.bytes_per_second * bandwidth,
            ..gpu.clone()
        };
        let key = |c: &Candidate| (c.path, c.tensor_parallel, c.multi_token_prediction);
        let base = all(plan(&shape, &gpu, &goal, &constraints));
        let reduced = all(plan(&shape, &slower, &goal, &constraints));
        prop_assert_eq!(base.len(), reduced.len());
        for fast in &base {
            let slow = reduced.iter().find(|slow| key(slow) == key(fast)).unwrap();
            prop_assert!(slow.step.total_us() >= fast.step.total_us() * (1.0 - 1e-12), "{:?} {:?}", fast, slow);
            prop_assert!(slow.time_to_first_token_ms >= fast.time_to_first_token_ms * (1.0 - 1e-12));
        }
    }

    #[test]
    fn a_step_never_takes_less_for_more_sequences_drafts_or_context(
        model in any_model(), gpu in any_class(), goal in any_goal(), constraints in any_constraints(),
        batch in 1u32..300, more in 1u32..100,
    ) {
        let shape = models::shape(model);
        let key = |c: &Candidate| (c.path, c.tensor_parallel, c.multi_token_prediction);
        let goal = Goal { prompt_tokens: 0, ..goal };
        let longer = Goal { context_length: goal.context_length + more, ..goal };
        let fixed = |batch| Constraints { batch: Some(batch), ..constraints };
        let base = all(plan(&shape, &gpu, &goal, &fixed(batch)));
        let grown = [
            all(plan(&shape, &gpu, &goal, &fixed(batch + more))),
            all(plan(&shape, &gpu, &longer, &fixed(batch))),
        ];
        for one in &base {
            let least = one.step.total_us() * (1.0 - 1e-12);
            for other in grown.iter().flatten().filter(|other| key(other) == key(one)) {
                prop_assert!(other.step.total_us() >= least, "{:?} {:?}", one, other);
            }
            let (path, degree, drafts) = key(one);
            for other in base.iter().filter(|other| key(other) == (path, degree, drafts + 1)) {
                prop_assert!(other.step.total_us() >= least, "{:?} {:?}", one, other);
            }
        }
    }

    #[test]
    fn a_feasible_plan_fits_memory_and_owns_whole_groups(
        model in any_model(), gpu in any_class(), goal in any_goal(), constraints in any_constraints(),
    ) {
        let constraints = Constraints { scope: Scope::Deployment, ..constraints };
        let shape = models::shape(model);
        for candidate in all(plan(&shape, &gpu, &goal, &constraints)).iter().filter(|c| c.feasible) {
            let tokens = u64::from(candidate.batch) * u64::from(goal.context_length);
            let drafts = u64::from(candidate.multi_token_prediction);
            let layers = u64::from(shape.num_hidden_layers) + drafts;
            let cache = tokens * layers * candidate.bytes_per_token_layer;
            let held = weights_per_rank(&shape, candidate, constraints.runtime) + cache as f64;
            prop_assert!(held <= 0.9 * gpu.memory_bytes as f64 + 1.0, "{held} bytes: {:?}", candidate);
            prop_assert!(candidate.batch >= 1);
            prop_assert!(constraints.head_padding || candidate.padded_heads == 0);
            let heads = shape.attention.num_attention_heads + candidate.padded_heads;
            let attention = AttentionShape { num_attention_heads: heads, ..shape.attention };
            let split = TensorParallelSplit::new(&attention, candidate.path, candidate.tensor_parallel);
            prop_assert!(split.is_ok(), "{:?}", split);
            prop_assert!(candidate.tokens_per_second.is_finite() && candidate.tokens_per_second > 0.0);
        }
    }

    #[test]
    fn choices_at_peak_do_not_depend_on_units(
        model in any_model(), gpu in any_class(), goal in any_goal(), constraints in any_constraints(),
        exponent in -6i32..6,
    ) {
        // Links and memory are not scaled: one rank has no links, and peak rates no floors.
        let constraints = Constraints {
            efficiency: Efficiency::Peak,
            tensor_parallel: match constraints.scope {
                Scope::AttentionOnly => constraints.tensor_parallel,
                Scope::Deployment => Some(1),
            },
            ..constraints
        };
        let scale = 2f64.powi(exponent);
        let scaled = GpuSpec {
            flops_per_second: gpu.flops_per_second * scale,
            bytes_per_second: gpu.bytes_per_second * scale,
            ..gpu.clone()
        };
        let shape = models::shape(model);
        let key = |c: &Candidate| (c.path, c.tensor_parallel, c.multi_token_prediction, c.batch, c.bound);
        let order = |gpu: &GpuSpec| all(plan(&shape, gpu, &goal, &constraints)).iter().map(key).collect::<Vec<_>>();
        prop_assert_eq!(order(&gpu), order(&scaled));
    }

    #[test]
    fn no_shape_panics(
        dims in any::<[u32; 9]>(), parameters: u64, experts in prop::option::of(any::<[u32; 5]>()),
        optional in any::<[Option<u32>; 4]>(), degree: u32, list in prop::option::of(prop::collection::vec(0u32..64, 0..70)), query_tokens: u32, goal in any_goal(), small: bool,
        constraints in any_constraints(),
    ) {
        // Small numbers reach past validation more often.
        let [heads, groups, rank, nope, rope, value, hidden, layers, nextn] =
            dims.map(|dim| if small { dim % 64 } else { dim });
        let attention = AttentionShape {
            num_attention_heads: heads,
            num_key_value_heads: groups,
            kv_lora_rank: rank,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: rope,
            v_head_dim: value,
        };
        let mut shape = ModelShape {
            attention,
            num_key_value_heads_per_layer: list,
            hidden_size: hidden,
            num_hidden_layers: layers,
            parameters,
            num_nextn_predict_layers: nextn,
            max_position_embeddings: hidden,
            weights: models::shape(ModelName::Llama38bGqla).weights,
        };
        let weights = &mut shape.weights;
        (weights.q_lora_rank, weights.intermediate_size) = (optional[0], optional[1]);
        (weights.vocab_size, weights.nextn_key_value_heads) = (optional[2], optional[3]);
        weights.experts = experts.map(|[routed, used, shared, width, dense]| gqla_model::ExpertShape {
            n_routed_experts: routed,
            num_experts_per_tok: used,
            n_shared_experts: shared,
            moe_intermediate_size: width,
            first_k_dense_replace: dense,
        });
        let _ = Parameters::of(&shape).total(query_tokens);
        let gpu = gpu("H20");
        for path in DecodePath::ALL {
            for rope in [RopeLayout::Shared, RopeLayout::PerGroup, RopeLayout::Padded] {
                let layout = CacheLayout { rope, ..CacheLayout::PUBLISHED };
                if let Ok(split) = TensorParallelSplit::new(&attention, path, degree % 1025) {
                    let _ = AttentionCore::new(&attention, path, split, query_tokens, layout, &gpu);
                }
            }
        }
        let free = Constraints { tensor_parallel: None, head_padding: true, ..constraints };
        for constraints in [constraints, free] {
            let _ = plan(&shape, &gpu, &goal, &constraints);
        }
    }
}
