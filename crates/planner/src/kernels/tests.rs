use gqla_model::{CacheFormat, TensorParallelSplit};

use super::*;
use crate::{
    attention::{AttentionModel, Efficiency},
    calibration::Calibration,
    catalogue::Catalogue,
    models::{ModelName, shape},
    roofline::{CacheLayout, RopeLayout},
};

/// Published medians of absorb over GQA time of the fastest public kernels, by rank count 1, 2, 4 and 8.
pub(super) const MEDIANS: [(&str, ModelName, &[f64]); 17] = {
    use ModelName::{DeepseekV3Gqla as V3, Glm47FlashGqla as Glm, Llama38bGqla as Llama};
    [
        ("H100", V3, &[0.40, 0.65, 1.07, 1.74]),
        ("H100", Llama, &[0.34, 0.60, 1.02, 1.72]),
        ("H100", Glm, &[0.34, 0.63, 1.11]),
        ("H200", V3, &[0.55, 0.66, 1.06, 1.71]),
        ("H200", Llama, &[0.36, 0.62, 1.03, 1.68]),
        ("H200", Glm, &[0.38, 0.64, 1.09]),
        ("B200", V3, &[0.43, 0.79, 1.83, 2.17]),
        ("B200", Llama, &[0.57, 0.75, 1.29, 2.15]),
        ("B200", Glm, &[0.49, 0.81, 1.42]),
        ("L40S", V3, &[0.66, 0.70, 1.18, 1.88]),
        ("L40S", Llama, &[0.32, 0.57, 1.07, 1.84]),
        ("L40S", Glm, &[0.33, 0.62, 1.17]),
        ("RTX-PRO-6000", V3, &[1.13, 1.40, 1.68, 2.18]),
        ("RTX-PRO-6000", Llama, &[0.47, 0.72, 1.32, 2.32]),
        ("RTX-PRO-6000", Glm, &[0.46, 0.77, 1.37]),
        ("A100", V3, &[1.30, 3.43, 3.80, 4.09]),
        ("A100", Llama, &[0.98, 1.47, 2.34, 3.88]),
    ]
};
/// Ratios this near to 1 are a tie that no model of medians can call.
const TIE: f64 = 0.03;
/// What the fits miss a median by at most, and a fiftieth.
const WORST_ERRORS: [(&str, f64); 6] =
    [("H100", 0.10), ("H200", 0.09), ("B200", 0.11), ("L40S", 0.09), ("RTX-PRO-6000", 0.14), ("A100", 0.12)];
const BATCHES: [u32; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
const CONTEXTS: [u32; 8] = [1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072];
const MOST_TOKENS: u64 = 1 << 22;

/// Absorb over GQA time of one layer, and the smaller of the two caches over the last-level cache.
fn ratio(gpu: &str, model: ModelName, ranks: u32, batch: u32, context: u32) -> (f64, f64) {
    let gpu = Catalogue::builtin().get(gpu).unwrap().spec.clone();
    let attention = shape(model).attention;
    let [absorb, gqa] = DecodePath::ALL.map(|path| {
        let split = TensorParallelSplit::new(&attention, path, ranks).unwrap();
        let runtime = Runtime::Vllm;
        let calibration = Calibration::default();
        AttentionModel::new(path, &gpu, runtime, Efficiency::Calibrated, CacheLayout::PUBLISHED, &calibration)
            .pass(&attention, split, 1, batch, context)
    });
    let tokens = f64::from(batch) * f64::from(context);
    let cache = absorb.core.bytes.min(gqa.core.bytes) as f64 * tokens;
    (absorb.ns / gqa.ns, cache / Hardware::of(&gpu).l2_bytes)
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(super) fn points() -> impl Iterator<Item = (u32, u32)> {
    let points = BATCHES.iter().flat_map(|batch| CONTEXTS.iter().map(move |context| (*batch, *context)));
    points.filter(|(batch, context)| u64::from(*batch) * u64::from(*context) <= MOST_TOKENS)
}

/// The median over batches and contexts whose caches exceed the last-level cache, as the published ones are taken.
fn modelled_median(gpu: &str, model: ModelName, ranks: u32) -> f64 {
    let ratios = points()
        .map(|(batch, context)| ratio(gpu, model, ranks, batch, context))
        .filter(|(_, cache)| *cache > 1.0)
        .map(|(ratio, _)| ratio);
    median(ratios.collect())
}

#[test]
fn every_published_median_has_its_winner_and_most_are_met_closely() {
    let mut errors = Vec::new();
    for (gpu, model, published) in MEDIANS {
        for (power, published) in published.iter().enumerate() {
            let modelled = modelled_median(gpu, model, 1 << power);
            println!("{gpu} {model} TP {}: published {published}, modelled {modelled:.2}", 1 << power);
            let same_winner = (modelled < 1.0) == (*published < 1.0);
            assert!(same_winner || (published - 1.0).abs() <= TIE, "{gpu} {model} TP {}", 1 << power);
            errors.push((gpu, (modelled / published - 1.0).abs()));
        }
    }
    let all = median(errors.iter().map(|(_, error)| *error).collect());
    println!("{} medians: median error {all:.3}", errors.len());
    assert!(all < 0.04, "median error {all}");
    for (gpu, most) in WORST_ERRORS {
        let of_gpu = errors.iter().filter(|(named, _)| *named == gpu).map(|(_, error)| *error);
        let worst = of_gpu.fold(0.0, f64::max);
        println!("{gpu}: worst error {worst:.3}");
        assert!(worst < most, "{gpu}: worst error {worst}, at most {most} expected");
    }
}

/// Small caches cost a call's floor, which is lower on the GQA path; where the caches grow, bytes decide.
#[test]
fn floors_decide_small_calls_and_bytes_large_ones() {
    for gpu in ["H100", "H200", "B200", "L40S"] {
        assert!(ratio(gpu, ModelName::Llama38bGqla, 1, 1, 1024).0 > 1.0, "{gpu}");
        assert!(ratio(gpu, ModelName::Llama38bGqla, 1, 64, 16_384).0 < 1.0, "{gpu}");
    }
}

/// Published single calls: an H100's best absorb kernel takes 213 to 266 µs over 128 sequences of 4096 tokens with 16
/// and 128 heads, a B200's 124 to 131; 84 to 99 µs over one sequence of 131 072 on an H100.
#[test]
fn single_calls_take_about_what_was_published() {
    let published = [
        ("H100", ModelName::DeepseekV3Gqla, 8, 128, 4096, 213.0),
        ("H100", ModelName::DeepseekV3Gqla, 1, 128, 4096, 266.0),
        ("B200", ModelName::DeepseekV3Gqla, 8, 128, 4096, 124.0),
        ("B200", ModelName::DeepseekV3Gqla, 1, 128, 4096, 131.0),
        ("H100", ModelName::DeepseekV3Gqla, 8, 1, 131_072, 91.0),
    ];
    for (class, model, ranks, batch, context, microseconds) in published {
        let gpu = Catalogue::builtin().get(class).unwrap().spec.clone();
        let attention = shape(model).attention;
        let path = DecodePath::MqaAbsorb;
        let split = TensorParallelSplit::new(&attention, path, ranks).unwrap();
        let model = AttentionModel::new(
            path,
            &gpu,
            Runtime::Vllm,
            Efficiency::Calibrated,
            CacheLayout::PUBLISHED,
            &Calibration::default(),
        );
        let modelled = model.pass(&attention, split, 1, batch, context).ns / 1e3;
        println!(
            "{class} {ranks} ranks, {batch} x {context}: published {microseconds} µs, modelled {modelled:.0}"
        );
        assert!((modelled / microseconds - 1.0).abs() < 0.2, "{class}: {modelled} for {microseconds}");
    }
}

#[test]
fn a_throttled_hopper_feeds_its_tensor_cores_and_a_full_one_does_not() {
    let arithmetic = |class: &str| {
        let gpu = Catalogue::builtin().get(class).unwrap().spec.clone();
        let hardware = Hardware::of(&gpu);
        kernels(Runtime::Native, DecodePath::Gqa, &gpu, &hardware)[0].arithmetic
    };
    assert!((arithmetic("H100") - 0.6).abs() < 1e-9);
    assert_eq!(arithmetic("H20"), 0.9);
}

/// Whatever a card's tensor cores are throttled to, none of its kernels computes or reads faster for it.
#[test]
fn throttling_makes_no_kernel_faster() {
    let h100 = Catalogue::builtin().get("H100").unwrap().spec.clone();
    for path in DecodePath::ALL {
        for percent in 1..100 {
            let at = |percent: u32| {
                let flops_per_second = h100.flops_per_second * f64::from(percent) / 100.0;
                let gpu = GpuSpec { flops_per_second, ..h100.clone() };
                let found = kernels(Runtime::Vllm, path, &gpu, &Hardware::of(&gpu));
                found
                    .into_iter()
                    .map(|kernel| (kernel.arithmetic * flops_per_second, kernel.bandwidth))
                    .collect()
            };
            let (slower, faster): (Vec<(f64, f64)>, Vec<_>) = (at(percent), at(percent + 1));
            assert_eq!(slower.len(), faster.len());
            for (slow, fast) in slower.iter().zip(&faster) {
                assert!(
                    slow.0 <= fast.0 * (1.0 + 1e-12) && slow.1 <= fast.1,
                    "{percent} %: {slow:?} {fast:?}"
                );
            }
        }
    }
}

#[test]
fn every_class_has_a_kernel_for_both_paths_in_both_runtimes() {
    for class in Catalogue::builtin().iter() {
        for path in DecodePath::ALL {
            for runtime in [Runtime::Native, Runtime::Vllm] {
                let hardware = Hardware::of(&class.spec);
                let found = kernels(runtime, path, &class.spec, &hardware);
                assert!(found.iter().any(|kernel| kernel.min_heads == 0), "{} {path}", class.name());
            }
        }
    }
}

/// More query tokens, more sequences or a longer context are never faster, whatever kernel takes over.
#[test]
fn no_attention_call_is_faster_for_having_more_to_do() {
    let calibration = Calibration::default();
    for class in Catalogue::builtin().iter() {
        for (runtime, path, model) in every_kernel_and_model() {
            let attention = shape(model).attention;
            let kernels = AttentionModel::new(
                path,
                &class.spec,
                runtime,
                Efficiency::Calibrated,
                CacheLayout::PUBLISHED,
                &calibration,
            );
            for split in [1, 2, 4, 8].map(|ranks| TensorParallelSplit::new(&attention, path, ranks)) {
                let Ok(split) = split else { continue };
                let ns = |tokens, batch, context| kernels.pass(&attention, split, tokens, batch, context).ns;
                for (tokens, batch, context) in calls() {
                    let base = ns(tokens, batch, context) * (1.0 - 1e-12);
                    let more = [
                        ns(tokens + 1, batch, context),
                        ns(tokens, batch + 1, context),
                        ns(tokens, batch, context + 64),
                    ];
                    assert!(
                        more.iter().all(|ns| *ns >= base),
                        "{} {runtime:?} {model} {path} {split:?}, {tokens} x {batch} x {context}: {base} {more:?}",
                        class.name()
                    );
                }
            }
        }
    }
}

fn every_kernel_and_model() -> impl Iterator<Item = (Runtime, DecodePath, ModelName)> {
    [Runtime::Native, Runtime::Vllm].into_iter().flat_map(|runtime| {
        DecodePath::ALL
            .into_iter()
            .flat_map(move |path| ModelName::ALL.into_iter().map(move |model| (runtime, path, model)))
    })
}

fn calls() -> impl Iterator<Item = (u32, u32, u32)> {
    let batches = [1, 2, 7, 8, 53, 54, 64, 108, 256];
    let contexts = [64, 1024, 8192, 65_536];
    (1..=8).flat_map(move |tokens| {
        batches.into_iter().flat_map(move |batch| contexts.map(|context| (tokens, batch, context)))
    })
}

/// An H20's ridge lies above 20 heads and below 128; a tile of 64 rows would push 20 heads over it.
#[test]
fn an_h20_absorbs_twenty_heads_and_not_a_hundred_and_twenty_eight() {
    for class in ["H20", "H20-3e"] {
        for runtime in [Runtime::Native, Runtime::Vllm] {
            let gpu = Catalogue::builtin().get(class).unwrap().spec.clone();
            let ns = |model, path| {
                let attention = shape(model).attention;
                let split = TensorParallelSplit::new(&attention, path, 1).unwrap();
                let (efficiency, layout) = (Efficiency::Calibrated, CacheLayout::PUBLISHED);
                AttentionModel::new(path, &gpu, runtime, efficiency, layout, &Calibration::default())
                    .pass(&attention, split, 1, 64, 8192)
                    .ns
            };
            let [absorb, gqa] = DecodePath::ALL.map(|path| ns(ModelName::Glm47FlashGqla, path));
            println!("{class} {runtime:?}: GLM absorb {absorb:.0} ns, GQA {gqa:.0} ns");
            assert!(absorb < gqa, "{class} {runtime:?}");
            let [absorb, gqa] = DecodePath::ALL.map(|path| ns(ModelName::DeepseekV3Gqla, path));
            assert!(gqa < absorb, "{class} {runtime:?}");
        }
    }
}

/// One chip; an H200 only has faster memory.
#[test]
fn an_h200_is_never_slower_than_an_h100() {
    for (runtime, path, model) in every_kernel_and_model() {
        let attention = shape(model).attention;
        for split in [1, 2, 4, 8].map(|ranks| TensorParallelSplit::new(&attention, path, ranks)) {
            let Ok(split) = split else { continue };
            for (tokens, batch, context) in calls() {
                let [h100, h200] = ["H100", "H200"].map(|class| {
                    let gpu = Catalogue::builtin().get(class).unwrap().spec.clone();
                    let (efficiency, layout) = (Efficiency::Calibrated, CacheLayout::PUBLISHED);
                    AttentionModel::new(path, &gpu, runtime, efficiency, layout, &Calibration::default())
                        .pass(&attention, split, tokens, batch, context)
                        .ns
                });
                assert!(
                    h200 <= h100,
                    "{runtime:?} {model} {path} {tokens} x {batch} x {context}: {h100} {h200}"
                );
            }
        }
    }
}

#[test]
fn only_classes_with_published_medians_claim_to_be_fitted_to_them() {
    let measured: std::collections::BTreeSet<_> = MEDIANS.iter().map(|(class, ..)| *class).collect();
    for class in Catalogue::builtin().iter() {
        for path in DecodePath::ALL {
            let kernels = kernels(Runtime::Vllm, path, &class.spec, &Hardware::of(&class.spec));
            let fitted = kernels.iter().any(|kernel| kernel.source == FITTED);
            assert_eq!(fitted, measured.contains(class.name()), "{}", class.name());
        }
    }
    let sources = |class: &str, path| {
        let gpu = Catalogue::builtin().get(class).unwrap().spec.clone();
        kernels(Runtime::Vllm, path, &gpu, &Hardware::of(&gpu))[0].source.to_string()
    };
    assert_eq!(sources("H20", DecodePath::MqaAbsorb), "the published FlashMLA rate on an H20");
    let b300 = "its architecture's fit to public kernels, not measured on B300";
    assert_eq!(sources("B300", DecodePath::Gqa), b300);
}

/// What both paths took on an H200, pass by pass, as `gqla bench paths --device cuda` timed them: shapes, shares of ranks and
/// contexts that the calibration in `deploy` was not fitted to are among them.
#[test]
fn on_an_h200_the_path_that_is_chosen_is_the_faster_one() {
    #[derive(serde::Deserialize)]
    struct Measured {
        passes: Vec<(String, u32, u32, u32, u32, f64, f64)>,
    }
    let measured = include_str!("../../tests/fixtures/h200-paths.json");
    let measured: Measured = serde_json::from_str(measured).unwrap();
    let calibration = include_str!("../../../../deploy/calibrations/h200.json");
    let calibration: Calibration = serde_json::from_str(calibration).unwrap();
    calibration.validate().unwrap();
    let gpu = Catalogue::builtin().get("H200").unwrap().spec.clone();
    let layout = CacheLayout { rope: RopeLayout::Shared, format: CacheFormat::Bf16 };
    let (mut regrets, mut errors) = (Vec::new(), Vec::new());
    for (model, ranks, batch, context, queries, absorb, gqa) in &measured.passes {
        let attention = shape(model.parse().unwrap()).attention;
        let predicted = DecodePath::ALL.map(|path| {
            let split = TensorParallelSplit::new(&attention, path, *ranks).unwrap();
            let calibrated = Efficiency::Calibrated;
            AttentionModel::new(path, &gpu, Runtime::Native, calibrated, layout, &calibration)
                .pass(&attention, split, *queries, *batch, *context)
                .ns
        });
        let took = [*absorb, *gqa];
        let chosen = if predicted[0] < predicted[1] { took[0] } else { took[1] };
        regrets.push(chosen / absorb.min(*gqa) - 1.0);
        errors.extend(predicted.iter().zip(took).map(|(predicted, took)| (predicted / took).ln().abs()));
    }
    regrets.sort_by(f64::total_cmp);
    let (median, worst) = (regrets[regrets.len() / 2], regrets[regrets.len() - 1]);
    let wrong = regrets.iter().filter(|regret| **regret > 0.0).count();
    let error = errors.iter().sum::<f64>() / errors.len() as f64;
    println!(
        "{} passes: regret median {median:.3}, worst {worst:.3}, {wrong} wrong; times off by {error:.3}",
        regrets.len()
    );
    assert!(regrets.len() == 234 && median <= 0.05 && worst <= 0.17 && error < 0.12);
}
