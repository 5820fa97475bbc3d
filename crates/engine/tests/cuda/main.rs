//! The CUDA backend on the stand-in for libcuda, against logits of independent PyTorch code and against the CPU backend.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

mod loading;
#[path = "../support/mod.rs"]
mod support;

use std::{collections::BTreeMap, fs, ops::Range, path::Path};

use gqla_engine::{
    Checkpoint, DraftSource, Speculation,
    cpu::{CacheFormat, Model, Precision, Products, Weights, bf16_unit},
    cuda::{CudaEngineConfig, CudaModel, PromptGemm},
};
use gqla_kernels::device::Images;
use gqla_model::DecodePath::{self, Gqa, MqaAbsorb};
use half::bf16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use support::{
    Golden, fixture, rewrite,
    stand_in::{launched, on_stand_in, stand_in},
};

const GQLA: &str = "llama_a/llama_gqla_a";
/// Prompts' tokens that are compared: the stand-in takes seconds for what a GPU does in microseconds.
const TOKENS: usize = 70;

/// Format, shape and bytes, by name.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The fixture with its weights rounded to bf16, as the device has them, and `scaling` in its config.
fn rounded_fixture(scaling: &Value) -> tempfile::TempDir {
    rewritten(GQLA, |config, _| config["rope_scaling"] = scaling.clone())
}

/// A fixture with its weights rounded to bf16 but for routers, and then changed.
fn rewritten(name: &str, change: impl FnOnce(&mut Value, &mut Tensors)) -> tempfile::TempDir {
    let (from, to) = (fixture(name), tempfile::tempdir().unwrap());
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    let file = fs::read(from.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let mut rounded: Tensors = tensors
        .iter()
        .map(|(name, tensor)| {
            assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
            if name.contains(".mlp.gate.") {
                return (name.to_owned(), (Dtype::F32, tensor.shape().to_vec(), tensor.data().to_vec()));
            }
            let words = tensor.data().chunks_exact(4);
            let bytes = words
                .flat_map(|word| bf16::from_f32(f32::from_le_bytes(word.try_into().unwrap())).to_le_bytes());
            (name.to_owned(), (Dtype::BF16, tensor.shape().to_vec(), bytes.collect()))
        })
        .collect();
    change(&mut config, &mut rounded);
    fs::write(to.path().join("config.json"), config.to_string()).unwrap();
    let views = rounded
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(to.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    to
}

/// Root of the mean square of the difference, relative to that of the expected numbers, and the largest difference.
fn gap(ours: &[f32], expected: &[f32]) -> (f64, f32) {
    assert_eq!(ours.len(), expected.len());
    assert!(ours.iter().all(|x| x.is_finite()));
    let square = |x: f32| f64::from(x) * f64::from(x);
    let off: f64 = ours.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    let all: f64 = expected.iter().map(|x| square(*x)).sum();
    let largest = ours.iter().zip(expected).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    ((off / all).sqrt(), largest)
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap()
}

/// How far the largest logit is above the second.
fn margin(row: &[f32]) -> f32 {
    let best = argmax(row);
    let second = row
        .iter()
        .enumerate()
        .filter(|(i, _)| *i != best)
        .fold(f32::NEG_INFINITY, |most, (_, x)| most.max(*x));
    row[best] - second
}

fn load(folder: &Path, path: DecodePath) -> CudaModel {
    let checkpoint = Checkpoint::open(folder).unwrap();
    CudaModel::load(&checkpoint, Some(path), 0, &Images::default()).unwrap()
}

#[test]
fn logits_are_as_near_the_golden_ones_as_bf16_allows() {
    on_stand_in("logits_are_as_near_the_golden_ones_as_bf16_allows", || {
        assert_near_golden(GQLA, [0..3, 0..3], DENSE, load);
    });
}

/// Some rows' experts are so near each other that rounding chooses the other one, on the CPU as on the device; the rows that attend
/// to them are off by some of it.
#[test]
fn logits_of_experts_are_as_near_the_golden_ones() {
    on_stand_in("logits_of_experts_are_as_near_the_golden_ones", || {
        assert_near_golden("glm_a/gqla", [1..3, 1..3], EXPERTS, load);
    });
}

/// Every head is a group of its own. Along absorb rounding changes the experts of a row at the start of the short prompt, to which
/// most of its rows attend.
#[test]
fn logits_of_experts_behind_mla_are_as_near_the_golden_ones() {
    on_stand_in("logits_of_experts_behind_mla_are_as_near_the_golden_ones", || {
        assert_near_golden("glm_a/mla", [1..3, 2..3], EXPERTS, load);
    });
}

/// Of one checkpoint, so that norms too are rounded for both, and with experts that no rounding changes: both round what products take and
/// what is cached, and nothing else.
#[test]
fn logits_of_one_checkpoint_are_as_near_as_the_cpus() {
    on_stand_in("logits_of_one_checkpoint_are_as_near_as_the_cpus", || {
        for name in [GQLA, "glm_a/gqla", "glm_a/mla"] {
            let source = Checkpoint::open(&fixture(name)).unwrap();
            let (_folder, source) = rewrite::rewritten(&source, rewrite::Dtype::F32, |tensors, _| {
                for (name, (_, values)) in tensors.iter_mut().filter(|(name, _)| name.ends_with(BIAS)) {
                    *values = of_one_choice(name, values.len());
                }
            });
            let rounded = rewritten(name, |_, tensors| {
                for (name, (_, shape, bytes)) in tensors.iter_mut().filter(|(name, _)| name.ends_with(BIAS)) {
                    *bytes =
                        of_one_choice(name, shape[0]).iter().flat_map(|bias| bias.to_le_bytes()).collect();
                }
            });
            let checkpoint = Checkpoint::open(rounded.path()).unwrap();
            let text = Golden::open(name).ids("ids_2");
            // Of fewer rows, which share their past, what chance makes of one text is more than the bound leaves.
            let texts = [text.clone(), text.into_iter().rev().collect()];
            let of = |logits: &dyn Fn(&[u32]) -> Vec<f32>| -> Vec<f32> {
                texts.iter().flat_map(|text| logits(text)).collect()
            };
            let in_f32 = Model::load(&source, Some(Gqa)).unwrap();
            let exact = of(&|text| in_f32.logits(text, CacheFormat::F32).unwrap());
            for path in [Gqa, MqaAbsorb] {
                let cpu = Model::load_as(&checkpoint, Some(path), None, BF16).unwrap();
                let of_cpu = of(&|text| cpu.logits(text, CacheFormat::Bf16).unwrap());
                let device = load(rounded.path(), path);
                let of_device = of(&|text| device.logits(text).unwrap());
                let what = format!("{name}, {path}");
                assert_no_farther(&what, device.vocab_size(), [&exact, &of_cpu, &of_device], ONE_CHECKPOINT);
            }
        }
    });
}

const BIAS: &str = "e_score_correction_bias";

/// Biases that have every row of a layer choose the same two experts, other layers others.
fn of_one_choice(name: &str, experts: usize) -> Vec<f32> {
    let layer: usize = name.split('.').find_map(|part| part.parse().ok()).unwrap();
    let mut biases = vec![0.0; experts];
    for expert in [layer, 3 * layer + 5] {
        biases[expert % experts] = 10.0;
    }
    biases
}

/// Prompts of more than 64 rows are cuBLASLt's where it is asked for.
#[test]
fn logits_by_cublaslt_are_as_near_the_golden_ones() {
    stand_in("logits_by_cublaslt_are_as_near_the_golden_ones").with_cublaslt().run(|| {
        let prepare = |folder: &Path, path| {
            let config = CudaEngineConfig {
                path: Some(path),
                prompt_gemm: PromptGemm::CublasLt,
                ..CudaEngineConfig::default()
            };
            CudaModel::prepare(&Checkpoint::open(folder).unwrap(), &config).unwrap()
        };
        assert_near_golden(GQLA, [2..3, 2..3], DENSE, prepare);
        assert!(!launched("cublasLtMatmul").is_empty());
    });
}

/// How far the device's logits may be from exact ones, by what the CPU's are in bf16.
#[derive(Clone, Copy)]
struct Bound {
    /// Of the median row, times the CPU's.
    gap: f64,
    /// Rows that may be far off.
    far: f64,
}

/// No farther than the CPU's, but for chance: what is rounded is the same, and in another order.
const DENSE: Bound = Bound { gap: 1.05, far: 0.0 };

/// Which rows' experts change follows which numbers are rounded where, and rows that attend to those are off by some of it: by
/// chance more of the device's than of the CPU's.
const EXPERTS: Bound = Bound { gap: 1.5, far: 0.2 };

/// By chance the one is farther or the other.
const ONE_CHECKPOINT: Bound = Bound { gap: 1.1, far: 0.0 };

/// The CPU backend with all in bf16 that can be: weights, cache, and activations where the processor multiplies bf16.
const BF16: Precision = Precision { weights: Weights::Stored, products: Products::Bf16 };

/// Prompts `which` along GQA, and those along absorb.
fn assert_near_golden(
    name: &str,
    which: [Range<usize>; 2],
    bound: Bound,
    load: impl Fn(&Path, DecodePath) -> CudaModel,
) {
    let rounded = rewritten(name, |_, _| {});
    let checkpoint = Checkpoint::open(rounded.path()).unwrap();
    let in_f32 = Model::load(&checkpoint, Some(Gqa)).unwrap();
    let golden = Golden::open(name);
    for (path, which) in [Gqa, MqaAbsorb].into_iter().zip(which) {
        let model = load(&fixture(name), path);
        let cpu = Model::load_as(&checkpoint, Some(path), None, BF16).unwrap();
        let [mut all_exact, mut of_cpu, mut of_device] = [const { Vec::new() }; 3];
        for i in which {
            let mut ids = golden.ids(&format!("ids_{i}"));
            ids.truncate(TOKENS);
            let exact = &golden.floats(&format!("logits_{i}"))[..ids.len() * model.vocab_size()];
            let weights = in_f32.logits(&ids, CacheFormat::F32).unwrap();
            let logits = model.logits(&ids).unwrap();
            assert_near(&format!("{path} {i}"), model.vocab_size(), [exact, &weights, &logits], bound.far);
            all_exact.extend_from_slice(exact);
            of_cpu.extend(cpu.logits(&ids, CacheFormat::Bf16).unwrap());
            of_device.extend(logits);
        }
        assert_no_farther(path.flag(), model.vocab_size(), [&all_exact, &of_cpu, &of_device], bound);
    }
}

/// Of `[tokens, vocab]` logits, exact ones, the CPU's in bf16, and the device's: the median row's gap.
fn assert_no_farther(what: &str, vocab: usize, [exact, of_cpu, of_device]: [&[f32]; 3], bound: Bound) {
    let gap = |logits: &[f32]| {
        let rows = logits.chunks(vocab).zip(exact.chunks(vocab));
        median(&rows.map(|(ours, exact)| gap(ours, exact)).collect::<Vec<_>>())
    };
    let (cpu, device) = (gap(of_cpu), gap(of_device));
    let unit = bf16_unit().unwrap_or("activations in f32");
    println!("{what}: relative error {device:.3e}, the CPU's in bf16 ({unit}): {cpu:.3e}");
    // A processor that does not multiply bf16 rounds no activations: that is a smaller gap than bf16's.
    let most = bound.gap * bf16_unit().map_or(1.5, |_| 1.0) * cpu;
    assert!(device <= most, "{what}: {device:.3e}, the CPU's {cpu:.3e}");
}

/// Of `[tokens, vocab]` logits, exact ones, those of weights in bf16 on the CPU, and the device's; all but a share of the
/// rows are near.
fn assert_near(what: &str, vocab: usize, [exact, weights, logits]: [&[f32]; 3], far: f64) {
    let exact: Vec<&[f32]> = exact[..logits.len()].chunks(vocab).collect();
    let gaps = |logits: &[f32]| -> Vec<(f64, f32)> {
        logits.chunks(vocab).zip(&exact).map(|(ours, exact)| gap(ours, exact)).collect()
    };
    let (of_weights, of_device) = (gaps(weights), gaps(logits));
    let (weights_gap, device_gap) = (median(&of_weights), median(&of_device));
    let near = |(gap, _): &&(f64, f32)| *gap <= 4.0 * weights_gap;
    let weights_most = of_weights.iter().filter(near).fold(0.0f32, |most, (_, off)| most.max(*off));
    let count = of_device.iter().filter(near).count();
    println!(
        "{what}, {} tokens: relative error {device_gap:.2e}, {count} near; weights alone in bf16 on the CPU: \
         {weights_gap:.2e}, {} near, off by {weights_most:.2e} at most",
        exact.len(),
        of_weights.iter().filter(near).count()
    );
    assert!(device_gap <= 2.0 * weights_gap, "{what}: {device_gap:.2e}, of weights {weights_gap:.2e}");
    assert!(count as f64 >= (1.0 - far) * exact.len() as f64, "{what}: {count} near");
    let sure = exact
        .iter()
        .zip(logits.chunks(vocab))
        .zip(&of_device)
        .filter(|((exact, _), gap)| near(gap) && margin(exact) > weights_most);
    let (mut count, mut equal) = (0, 0);
    for ((exact, ours), _) in sure {
        count += 1;
        equal += usize::from(argmax(exact) == argmax(ours));
    }
    assert!(count > 0 && equal == count, "{what}: {equal} of {count} sure tokens are the same");
}

/// The layer of the fixture has experts. Of longer prompts some row's experts are others, as above, and most rows attend to
/// it.
#[test]
fn logits_of_the_prediction_layer_are_as_near_the_golden_ones() {
    on_stand_in("logits_of_the_prediction_layer_are_as_near_the_golden_ones", || {
        let golden = Golden::open("glm_a/gqla");
        let (ids, next) = (golden.ids("ids_1"), golden.ids("mtp_next_ids_1"));
        let source = Checkpoint::open(&fixture("glm_a/gqla")).unwrap();
        let rounded = rewritten("glm_a/gqla", |_, _| {});
        let rounded = Checkpoint::open(rounded.path()).unwrap();
        assert_near_drafts((&source, &rounded), (&ids, &next), &golden.floats("mtp_logits_1"), EXPERTS);
    });
}

/// Over more than a page; what is exact is for the CPU backend to say, which is held to golden logits. That layer was not
/// trained to predict: it leaves little of some rows, and the last norm makes much of what was rounded there.
#[test]
fn logits_of_a_dense_prediction_layer_are_as_near_those_of_the_cpu() {
    on_stand_in("logits_of_a_dense_prediction_layer_are_as_near_those_of_the_cpu", || {
        let text = Golden::open(GQLA).ids("ids_2");
        let change = |dtype| {
            let source = Checkpoint::open(&fixture(GQLA)).unwrap();
            rewrite::rewritten(&source, dtype, rewrite::predict_with_last_layer)
        };
        let ((_folder, source), (_other, rounded)) =
            (change(rewrite::Dtype::F32), change(rewrite::Dtype::BF16));
        let (ids, next) = (&text[..TOKENS], &text[1..=TOKENS]);
        let exact = drafting(&source, Gqa, Precision::default());
        let exact = exact.draft_logits(ids, next, CacheFormat::F32).unwrap();
        assert_near_drafts((&source, &rounded), (ids, next), &exact, Bound { gap: 1.25, far: 0.1 });
    });
}

/// On the CPU.
fn drafting(checkpoint: &Checkpoint, path: DecodePath, precision: Precision) -> Model {
    let mut model = Model::load_as(checkpoint, Some(path), None, precision).unwrap();
    model.make_drafting(checkpoint).unwrap();
    model
}

/// The prediction layer's logits along both paths.
fn assert_near_drafts(
    (source, rounded): (&Checkpoint, &Checkpoint),
    (ids, next): (&[u32], &[u32]),
    exact: &[f32],
    bound: Bound,
) {
    let weights =
        drafting(rounded, Gqa, Precision::default()).draft_logits(ids, next, CacheFormat::F32).unwrap();
    for path in [Gqa, MqaAbsorb] {
        let speculation = Some(Speculation::new(DraftSource::PredictionLayer, 1).unwrap());
        let config = CudaEngineConfig { path: Some(path), speculation, ..CudaEngineConfig::default() };
        let model = CudaModel::prepare(source, &config).unwrap();
        let logits = model.draft_logits(ids, next).unwrap();
        let of_cpu = drafting(rounded, path, BF16).draft_logits(ids, next, CacheFormat::Bf16).unwrap();
        assert_near(path.flag(), model.vocab_size(), [exact, &weights, &logits], bound.far);
        assert_no_farther(path.flag(), model.vocab_size(), [&exact[..logits.len()], &of_cpu, &logits], bound);
    }
}

fn median(gaps: &[(f64, f32)]) -> f64 {
    let mut gaps: Vec<f64> = gaps.iter().map(|(gap, _)| *gap).collect();
    gaps.sort_by(f64::total_cmp);
    gaps[gaps.len() / 2]
}

/// Both layouts of experts are the same numbers on the device.
#[test]
fn packed_experts_compute_the_same_bits() {
    on_stand_in("packed_experts_compute_the_same_bits", || {
        let packed = rewritten("glm_a/gqla", |_, tensors| {
            for layer in 1..4 {
                let mut take = |expert: usize, part: &str| {
                    let name = format!("model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight");
                    tensors.remove(&name).unwrap().2
                };
                let gate_up =
                    (0..8).flat_map(|expert| [take(expert, "gate"), take(expert, "up")].concat()).collect();
                let down = (0..8).flat_map(|expert| take(expert, "down")).collect();
                let name = |part: &str| format!("model.layers.{layer}.mlp.experts.{part}_proj");
                tensors.insert(name("gate_up"), (Dtype::BF16, vec![8, 2 * 24, 128], gate_up));
                tensors.insert(name("down"), (Dtype::BF16, vec![8, 128, 24], down));
            }
        });
        let single = rewritten("glm_a/gqla", |_, _| {});
        let tokens = &Golden::open("glm_a/gqla").ids("ids_1")[..9];
        let [packed, single] =
            [&packed, &single].map(|folder| load(folder.path(), Gqa).logits(tokens).unwrap());
        assert_eq!(packed, single);
    });
}

/// Channels that turn slower, turned channels that are multiplied, and scores that are: each scaling has its share of them.
/// On the same weights the device's gap to the CPU is what it rounds, and it is far below what scaling changes.
#[test]
fn scaled_ropes_change_what_the_cpu_says_they_change() {
    on_stand_in("scaled_ropes_change_what_the_cpu_says_they_change", || {
        let tokens = Golden::open(GQLA).ids("ids_2")[..TOKENS].to_vec();
        let cpu = |folder: &Path| {
            let model = Model::load(&Checkpoint::open(folder).unwrap(), Some(Gqa)).unwrap();
            model.logits(&tokens, CacheFormat::F32).unwrap()
        };
        let unscaled = cpu(rounded_fixture(&Value::Null).path());
        let yarn = json!({ "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32 });
        let with = |field: &str, value: f64| {
            let mut yarn = yarn.clone();
            yarn[field] = json!(value);
            yarn
        };
        for (scaling, path) in [
            (
                json!({
                    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                }),
                Gqa,
            ),
            (with("attention_factor", 1.5), MqaAbsorb),
            (with("mscale_all_dim", 4.0), Gqa),
            (with("mscale_all_dim", 4.0), MqaAbsorb),
        ] {
            let folder = rounded_fixture(&scaling);
            let expected = cpu(folder.path());
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let model = CudaModel::load(&checkpoint, Some(path), 0, &Images::default()).unwrap();
            let (device_gap, _) = gap(&model.logits(&tokens).unwrap(), &expected);
            let (changed, _) = gap(&unscaled, &expected);
            println!("{path} {scaling}: relative error {device_gap:.2e}, without scaling {changed:.2e}");
            assert!(10.0 * device_gap < changed, "{path} {scaling}: {device_gap:.2e}, of {changed:.2e}");
        }
    });
}
