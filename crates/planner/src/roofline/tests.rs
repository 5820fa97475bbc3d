use proptest::prelude::*;

use super::*;
use crate::{
    catalogue::Catalogue,
    models::{self, ModelName},
};

fn core(model: ModelName, gpu: &str, path: DecodePath, tp: u32, s_q: u32, rope: RopeLayout) -> AttentionCore {
    let shape = models::shape(model).attention;
    let split = TensorParallelSplit::new(&shape, path, tp).unwrap();
    let layout = CacheLayout { rope, ..CacheLayout::PUBLISHED };
    AttentionCore::new(&shape, path, split, s_q, layout, &Catalogue::builtin().get(gpu).unwrap().spec)
}

/// Published figures are rounded to the last digit they print.
fn assert_prints(value: f64, printed: &str) {
    let decimals = printed.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let half_step = 0.5 * 10f64.powi(-(decimals as i32)) + 1e-9;
    let expected: f64 = printed.parse().unwrap();
    assert!((value - expected).abs() <= half_step, "{value} does not round to {printed}");
}

#[test]
fn attention_times_equal_the_published_table() {
    use ModelName::{DeepseekV3Gqla as V3, Glm47FlashGqla as Glm};
    // Rope per group. Columns: model, TP, s_q, then ns per query token of absorb and GQA on H100, and on H20.
    let table = [
        (V3, 1, 1, ["0.344", "1.528", "1.882", "1.280"]),
        (V3, 1, 2, ["0.282", "0.764", "1.882", "0.640"]),
        (V3, 8, 1, ["0.344", "0.191", "0.288", "0.160"]),
        (Glm, 1, 1, ["0.344", "1.223", "0.294", "1.024"]),
        (Glm, 2, 1, ["0.344", "0.611", "0.288", "0.512"]),
        (Glm, 4, 1, ["0.344", "0.306", "0.288", "0.256"]),
    ];
    for (model, tp, s_q, printed) in table {
        let columns = [
            ("H100", DecodePath::MqaAbsorb),
            ("H100", DecodePath::Gqa),
            ("H20", DecodePath::MqaAbsorb),
            ("H20", DecodePath::Gqa),
        ];
        for ((gpu, path), expected) in columns.into_iter().zip(printed) {
            assert_prints(core(model, gpu, path, tp, s_q, RopeLayout::PerGroup).ns_per_query_token, expected);
        }
    }
}

#[test]
fn deepseek_shape_with_shared_rope_gives_the_papers_ratio() {
    let ns = |gpu, path, s_q| {
        core(ModelName::DeepseekV3Gqla, gpu, path, 1, s_q, RopeLayout::Shared).ns_per_query_token
    };
    let table = [
        ("H100", DecodePath::MqaAbsorb, ["0.344", "0.282"]),
        ("H100", DecodePath::Gqa, ["1.261", "0.630"]),
        ("H20", DecodePath::MqaAbsorb, ["1.882", "1.882"]),
        ("H20", DecodePath::Gqa, ["1.056", "0.5535"]),
    ];
    for (gpu, path, printed) in table {
        assert_prints(ns(gpu, path, 1), printed[0]);
        assert_prints(ns(gpu, path, 2), printed[1]);
    }
    assert_prints(ns("H20", DecodePath::MqaAbsorb, 1) / ns("H20", DecodePath::Gqa, 2), "3.40");
}

#[test]
fn glm_on_h20_sits_just_over_the_ridge() {
    let core = core(ModelName::Glm47FlashGqla, "H20", DecodePath::MqaAbsorb, 1, 1, RopeLayout::Shared);
    assert_prints(core.intensity, "37.8");
    assert_eq!(core.bound, Bound::Compute);
}

#[test]
fn the_rope_layout_changes_only_the_gqa_bytes() {
    let bytes = |path, layout| core(ModelName::Glm47FlashGqla, "H20", path, 1, 1, layout).bytes;
    assert_eq!(bytes(DecodePath::Gqa, RopeLayout::Shared), 3712);
    assert_eq!(bytes(DecodePath::Gqa, RopeLayout::PerGroup), 4096);
    assert_eq!(bytes(DecodePath::MqaAbsorb, RopeLayout::Shared), 1152);
    assert_eq!(bytes(DecodePath::MqaAbsorb, RopeLayout::PerGroup), 1152);
}

proptest! {
    #[test]
    fn a_faster_device_is_never_slower(
        flops in 1e11f64..5e15,
        bandwidth in 1e10f64..1e13,
        factor in 1.0f64..10.0,
        s_q in 1u32..5,
        gqa in any::<bool>(),
    ) {
        let path = if gqa { DecodePath::Gqa } else { DecodePath::MqaAbsorb };
        let shape = models::shape(ModelName::Llama38bGqla).attention;
        let split = TensorParallelSplit::new(&shape, path, 2).unwrap();
        let pass = |flops, bandwidth| {
            let gpu = GpuSpec {
                name: "any".into(),
                flops_per_second: flops,
                bytes_per_second: bandwidth,
                memory_bytes: 1,
                compute_capability: None,
                derived: false,
            };
            AttentionCore::new(&shape, path, split, s_q, CacheLayout::PUBLISHED, &gpu).pass_ns
        };
        let base = pass(flops, bandwidth);
        prop_assert!(pass(flops * factor, bandwidth) <= base);
        prop_assert!(pass(flops, bandwidth * factor) <= base);
        prop_assert!(pass(flops * factor, bandwidth * factor) <= base);
    }
}
