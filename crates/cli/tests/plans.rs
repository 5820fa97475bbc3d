//! Every built-in model has kernels on every card: the planner knows the models and `gqla-kernels` the plans, and only here are
//! both at hand.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use gqla_kernels::device::{DecodeShape, Limits, plan_decode};
use gqla_model::DecodePath;
use gqla_planner::{ModelName, shape};

/// Shared memory of a block, KiB, from the CUDA C++ Programming Guide's table of technical specifications.
const ARCHITECTURES: [((u32, u32), u32); 6] =
    [((8, 0), 163), ((8, 6), 99), ((8, 9), 99), ((9, 0), 227), ((10, 0), 227), ((12, 0), 99)];
const REGISTERS_PER_BLOCK: u32 = 65536;
/// Of a thread, which kernels are bound to.
const MOST_REGISTERS: u32 = 255;

#[test]
fn every_built_in_model_has_a_kernel_on_every_architecture() {
    for model in ModelName::ALL {
        let attention = DecodeShape::of(&shape(model).attention);
        for (capability, kib) in ARCHITECTURES {
            let limits = Limits { capability, shared_per_block: kib << 10 };
            for (path, s_q) in
                DecodePath::ALL.into_iter().flat_map(|path| (1..=4).map(move |s_q| (path, s_q)))
            {
                let plan = plan_decode(&attention, path, s_q, limits)
                    .unwrap_or_else(|error| panic!("{model}, {s_q} tokens a step: {error}"));
                assert_eq!(plan.path, path, "{model}: {plan:?}");
                assert!(plan.shared_bytes <= limits.shared_per_block, "{model} on {limits:?}: {plan:?}");
                assert!(plan.threads * MOST_REGISTERS <= REGISTERS_PER_BLOCK, "{model}: {plan:?}");
            }
        }
    }
}
