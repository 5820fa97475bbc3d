//! No pod is planned that would start without a kernel, and none is refused that has one.

use gqla_model::launch::{DecodeShape, Limits, plan_decode};

use super::*;
use crate::{ComputeCapability, kernels::Backend};

/// Shared memory of a block, KiB, from the CUDA C++ Programming Guide's table of technical specifications: once more, so that the
/// planner's table is held to something.
const ARCHITECTURES: [((u32, u32), u32); 9] = [
    ((8, 0), 163),
    ((8, 6), 99),
    ((8, 7), 163),
    ((8, 9), 99),
    ((9, 0), 227),
    ((10, 0), 227),
    ((10, 3), 227),
    ((12, 0), 99),
    ((12, 1), 99),
];
const REGISTERS_PER_BLOCK: u32 = 65536;
/// Of a thread, which kernels are bound to.
const MOST_REGISTERS: u32 = 255;

/// A model of this attention that any card of [`card`] has room for, and that has layers to draft up to three tokens with.
fn model([heads, groups]: [u32; 2], rank: u32, [nope, rope, value]: [u32; 3]) -> ModelShape {
    ModelShape {
        attention: AttentionShape {
            num_attention_heads: heads,
            num_key_value_heads: groups,
            kv_lora_rank: rank,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: rope,
            v_head_dim: value,
        },
        num_nextn_predict_layers: 3,
        ..models::shape(ModelName::DeepseekAttention)
    }
}

/// A class that states its compute capability, or does not.
fn card(capability: Option<(u8, u8)>) -> GpuSpec {
    GpuSpec {
        name: "card".into(),
        memory_bytes: 1 << 44,
        compute_capability: capability.map(|(major, minor)| ComputeCapability { major, minor }),
        ..gpu("L4")
    }
}

fn drafting(drafts: u32) -> Constraints {
    Constraints { multi_token_prediction: Some(drafts), ..Constraints::default() }
}

/// The sentences of what cannot run.
fn refusals(shape: &ModelShape, gpu: &GpuSpec, constraints: &Constraints) -> Vec<String> {
    let candidates = all(plan(shape, gpu, &Goal::default(), constraints));
    assert!(!candidates.is_empty());
    candidates.into_iter().filter(|candidate| !candidate.feasible).map(|candidate| candidate.reason).collect()
}

#[test]
fn every_built_in_model_has_a_kernel_on_every_architecture() {
    for model in ModelName::ALL {
        let attention = DecodeShape::of(&models::shape(model).attention);
        for (capability, kib) in ARCHITECTURES {
            let limits = Limits::of(Some(capability));
            assert_eq!(limits.shared_per_block, kib << 10, "{capability:?}");
            for (path, s_q) in
                DecodePath::ALL.into_iter().flat_map(|path| (1..=4).map(move |s_q| (path, s_q)))
            {
                let plan = plan_decode(&attention, path, s_q, limits)
                    .unwrap_or_else(|error| panic!("{model}, {s_q} tokens a step: {error}"));
                assert_eq!(plan.path, path, "{model}: {plan:?}");
                assert!(plan.shared_bytes <= limits.shared_per_block, "{model} on {limits:?}: {plan:?}");
                let rows = s_q * attention.heads / attention.key_groups(path);
                assert!(
                    plan.rows >= rows.min(64),
                    "up to 64 rows share what is read: {model} on {limits:?}: {plan:?}"
                );
                assert!(plan.threads * MOST_REGISTERS <= REGISTERS_PER_BLOCK, "{model}: {plan:?}");
            }
        }
    }
}

/// With room and layers for drafts everywhere, so that nothing else is in the way.
#[test]
fn every_built_in_model_may_run_on_every_built_in_class() {
    for class in Catalogue::builtin().iter() {
        let gpu = GpuSpec { memory_bytes: 1 << 44, ..class.spec.clone() };
        for model in ModelName::ALL {
            let shape = ModelShape { num_nextn_predict_layers: 3, ..models::shape(model) };
            for drafts in 0..=3 {
                let refused = refusals(&shape, &gpu, &drafting(drafts));
                assert_eq!(refused, [""; 0], "{model} on {} with {drafts} drafts", class.name());
            }
        }
    }
}

/// The classes that ship say by their names alone how much room kernels have: an A10 less than an A100, of the same family.
#[test]
fn wide_heads_are_refused_where_they_do_not_fit_with_what_would_do() {
    let wide = model([20, 4], 512, [192, 64, 512]);
    let gqa = Constraints { path: Some(DecodePath::Gqa), ..drafting(0) };
    for (class, architecture) in [
        ("A10", Some("sm_86")),
        ("L4", Some("sm_89")),
        ("L40S", Some("sm_89")),
        ("RTX-PRO-6000", Some("sm_120")),
        ("A100", None),
        ("H100", None),
        ("B300", None),
        ("CPU", None),
    ] {
        let gpu = GpuSpec { memory_bytes: 1 << 44, ..gpu(class) };
        let refused = refusals(&wide, &gpu, &gqa);
        assert_eq!(refused.is_empty(), architecture.is_none(), "{class}: {refused:?}");
        for reason in refused {
            let expected = format!(
                "no kernel decodes along gqa on {}: heads of 192 + 64 and 512, latents of 512 take at least",
                architecture.unwrap()
            );
            assert!(reason.to_lowercase().starts_with(&expected), "{reason}");
            assert!(reason.ends_with("take the other path or another GPU"), "{reason}");
        }
        // Latents are as narrow as ever: the planner takes the path that has a kernel, however fast the other one is.
        let decision = plan(&wide, &gpu, &Goal::default(), &drafting(0)).unwrap();
        assert!(architecture.is_none() || decision.chosen.path == DecodePath::MqaAbsorb, "{class}");
    }
}

/// Where layers differ in groups, and however they are split, widths are the same: one refusal is all layers'.
#[test]
fn heads_that_no_instruction_divides_are_refused_on_every_gpu() {
    let odd = model([24, 6], 512, [24, 64, 64]);
    let list = (0..16).map(|layer| if layer % 2 == 0 { 6 } else { 2 }).collect();
    let mixed = ModelShape { num_key_value_heads_per_layer: Some(list), ..odd.clone() };
    let sentence = "no kernel decodes heads of 24 + 64 and 64, expected multiples of 16: use the CPU";
    for shape in [odd, mixed] {
        // What nobody stated a capability of is a GPU too.
        for gpu in [gpu("H100"), gpu("L40S"), card(None), card(Some((13, 0)))] {
            let error = plan(&shape, &gpu, &Goal::default(), &Constraints::default()).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("no way to run this model on {}: {sentence}", gpu.name),
                "the sentence that the pods would end with"
            );
        }
        let on_processors = [
            (gpu("CPU"), Constraints::default()),
            (gpu("H100"), Constraints { backend: Backend::Cpu, ..drafting(0) }),
            (gpu("H100"), Constraints { runtime: Runtime::Vllm, ..drafting(0) }),
        ];
        for (gpu, constraints) in on_processors {
            assert!(plan(&shape, &gpu, &Goal::default(), &constraints).is_ok(), "{constraints:?}");
        }
    }
}

#[test]
fn a_card_of_before_bf16_runs_nothing_of_ours() {
    let t4 = GpuSpec { name: "t4".into(), ..card(Some((7, 5))) };
    let shape = models::shape(ModelName::Glm47FlashGqla);
    let error = plan(&shape, &t4, &Goal::default(), &Constraints::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no way to run this model on t4: the card has compute capability 7.5, and kernels need 8.0 or higher: use the CPU or \
         another GPU"
    );
    for constraints in [
        Constraints { runtime: Runtime::Vllm, ..Constraints::default() },
        Constraints { backend: Backend::Cpu, ..Constraints::default() },
        Constraints { scope: Scope::AttentionOnly, ..Constraints::default() },
    ] {
        assert!(plan(&shape, &t4, &Goal::default(), &constraints).is_ok(), "{constraints:?}");
    }
}

/// Multiples of 8, most of which kernels multiply.
fn any_width(most: u32) -> impl Strategy<Value = u32> {
    prop_oneof![4 => (1..=most / 64).prop_map(|steps| steps * 64), 1 => (1..=most / 8).prop_map(|steps| steps * 8)]
}

fn any_capability() -> impl Strategy<Value = Option<(u8, u8)>> {
    let known = ARCHITECTURES.map(|((major, minor), _)| Some((major as u8, minor as u8)));
    let others = [None, Some((7, 0)), Some((7, 5)), Some((8, 8)), Some((10, 7)), Some((13, 0))];
    prop::sample::select([known.as_slice(), &others].concat())
}

proptest! {
    /// Every candidate is asked for what one of its ranks has. There is room for everything, so a kernel is all that may lack.
    #[test]
    fn the_planner_refuses_what_has_no_kernel_and_nothing_else(
        groups in prop::sample::select(vec![1u32, 2, 4, 8]), per_group in 1u32..20, rank in any_width(2048),
        nope in any_width(320), rope in any_width(128), value in any_width(1024), drafts in 0u32..=3,
        capability in any_capability(), derived: bool,
    ) {
        let shape = model([groups * per_group, groups], rank, [nope, rope, value]);
        let gpu = GpuSpec { derived, ..card(capability) };
        let limits = Limits::of(capability.map(|(major, minor)| (major.into(), minor.into())));
        let candidates = all(plan(&shape, &gpu, &Goal::default(), &drafting(drafts)));
        prop_assert!(!candidates.is_empty());
        for candidate in candidates {
            let ranks = candidate.tensor_parallel;
            let of_rank = AttentionShape {
                num_attention_heads: groups * per_group / ranks,
                num_key_value_heads: match candidate.path {
                    DecodePath::MqaAbsorb => groups,
                    DecodePath::Gqa => (groups / ranks).max(1),
                },
                ..shape.attention
            };
            match plan_decode(&DecodeShape::of(&of_rank), candidate.path, 1 + drafts, limits) {
                Ok(_) => prop_assert!(candidate.feasible, "{:?}", candidate),
                Err(no_kernel) => {
                    prop_assert!(!candidate.feasible);
                    prop_assert_eq!(candidate.reason, no_kernel.to_string());
                }
            }
        }
    }
}
