//! The CUDA backend on the stand-in for libcuda, against logits of independent PyTorch code and against the CPU backend.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use gqla_engine::{
    Checkpoint, DraftSource, Speculation,
    cpu::{CacheFormat, CacheMemory, Model, Precision, Products, Weights, bf16_unit},
    cuda::{CudaEngine, CudaEngineConfig, CudaLoadError, CudaModel, PromptGemm},
};
use gqla_fakecuda::Config;
use gqla_kernels::device::{Images, Program};
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
        assert_near_golden(GQLA, 0..3, DENSE, load);
    });
}

/// Some rows' experts are so near each other that rounding chooses the other one, on the CPU as on the device; the rows that attend
/// to them are off by some of it.
#[test]
fn logits_of_experts_are_as_near_the_golden_ones() {
    on_stand_in("logits_of_experts_are_as_near_the_golden_ones", || {
        assert_near_golden("glm_a/gqla", 1..3, EXPERTS, load);
    });
}

/// Every head is a group of its own.
#[test]
fn logits_of_experts_behind_mla_are_as_near_the_golden_ones() {
    on_stand_in("logits_of_experts_behind_mla_are_as_near_the_golden_ones", || {
        assert_near_golden("glm_a/mla", 1..2, EXPERTS, load);
    });
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
        assert_near_golden(GQLA, 2..3, DENSE, prepare);
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

/// The CPU backend with all in bf16 that can be: weights, cache, and activations where the processor multiplies bf16.
const BF16: Precision = Precision { weights: Weights::Stored, products: Products::Bf16 };

/// Prompts `which` along both paths.
fn assert_near_golden(
    name: &str,
    which: Range<usize>,
    bound: Bound,
    load: impl Fn(&Path, DecodePath) -> CudaModel,
) {
    let rounded = rewritten(name, |_, _| {});
    let checkpoint = Checkpoint::open(rounded.path()).unwrap();
    let in_f32 = Model::load(&checkpoint, Some(Gqa)).unwrap();
    let golden = Golden::open(name);
    for path in [Gqa, MqaAbsorb] {
        let model = load(&fixture(name), path);
        let cpu = Model::load_as(&checkpoint, Some(path), None, BF16).unwrap();
        let [mut all_exact, mut of_cpu, mut of_device] = [const { Vec::new() }; 3];
        for i in which.clone() {
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

#[test]
fn what_it_does_not_run_is_told() {
    on_stand_in("what_it_does_not_run_is_told", || {
        let plain = Checkpoint::open(&fixture("llama_a/llama_tied")).unwrap();
        let error = CudaModel::load(&plain, None, 0, &Images::default()).err().unwrap();
        assert!(matches!(error, CudaLoadError::UnsupportedModel { .. }), "{error}");
        let converted = Checkpoint::open(&fixture(GQLA)).unwrap();
        let error = CudaModel::load(&converted, None, 3, &Images::default()).err().unwrap().to_string();
        assert!(error.starts_with("CUDA device 3 cannot be opened"), "{error}");
        let tight = CudaEngineConfig {
            max_model_len: Some(256),
            kv_cache: CacheMemory::Bytes(40_000),
            ..CudaEngineConfig::default()
        };
        let error = CudaEngine::start(&converted, tight).err().unwrap().to_string();
        assert!(error.contains("a cache of 40000 bytes holds 1 blocks, expected at least 4"), "{error}");
        let layer = Speculation::new(DraftSource::PredictionLayer, 1).unwrap();
        let drafting = CudaEngineConfig { speculation: Some(layer), ..CudaEngineConfig::default() };
        let error = CudaEngine::start(&converted, drafting).err().unwrap().to_string();
        assert!(error.contains("no multi-token-prediction layer"), "{error}");
        let glm = Checkpoint::open(&fixture("glm_a/gqla")).unwrap();
        let (_folder, grafted) = rewrite::rewritten(&glm, rewrite::Dtype::F32, |tensors, _| {
            let (shape, rows) = tensors.get_mut("model.layers.4.self_attn.kv_b_proj.weight").unwrap();
            rows.extend_from_within(..);
            shape[0] *= 2;
        });
        let drafting = CudaEngineConfig { speculation: Some(layer), ..CudaEngineConfig::default() };
        let error = CudaEngine::start(&grafted, drafting).err().unwrap().to_string();
        assert!(error.contains("a prediction layer of 8 groups beside a decoder of 4"), "{error}");
        let not_drafting = load(&fixture(GQLA), Gqa).draft_logits(&[1], &[2]).unwrap_err().to_string();
        assert!(not_drafting.contains("was not prepared to draft"), "{not_drafting}");
    });
}

/// A driver of CUDA 12.4 reads no PTX from NVRTC 12.9: a model runs by machine code, and the log says of all its kernels which
/// step gave them and why those before did not.
#[test]
fn an_older_driver_runs_machine_code_and_the_log_says_why() {
    let test = stand_in("an_older_driver_runs_machine_code_and_the_log_says_why");
    let log = test.env(Config::DRIVER_ENV, "12.4").run(|| {
        tracing_subscriber::fmt().with_ansi(false).init();
        let known: PathBuf = std::env::var_os(Config::CUBINS_ENV).unwrap().into();
        let checkpoint = Checkpoint::open(&fixture(GQLA)).unwrap();
        let load =
            || CudaModel::load(&checkpoint, Some(Gqa), 0, &Images::in_folder(Path::new("no/such/folder")));
        // A card that NVRTC's machine code is not for, and one that it is for.
        let error = load().err().unwrap().to_string();
        assert!(error.starts_with("no image of the kernels `gqa_decode-16-16-16` loads"), "{error}");
        for program in [Program::gqa_decode(16, 16, 16), Program::gemm(), Program::rows(), Program::sample()]
        {
            Images::write(&known, &program, &[(9, 0)]).unwrap();
        }
        let logits = load().unwrap().logits(&[1, 2, 3]).unwrap();
        assert!(logits.iter().all(|logit| logit.is_finite()));
    });
    let Some(log) = log else { return };
    for program in ["gqa_decode", "gemm", "rows", "sample"] {
        let loaded = log.lines().find(|line| line.contains(&format!("kernels loaded kernels=\"{program}")));
        let line = loaded.unwrap_or_else(|| panic!("{program}: {log}"));
        assert!(
            line.contains("source=cubin from NVRTC")
                && line.contains("cubin file: `no/such/folder/")
                && line.contains("PTX file: `no/such/folder/")
                && line.contains("PTX from NVRTC: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)"),
            "{line}"
        );
    }
}

/// One mistake in each program that a model's step is made of, attention's apart: the first kernel that is off is named.
#[test]
fn wrong_kernels_are_refused_before_they_serve() {
    on_stand_in("wrong_kernels_are_refused_before_they_serve", || {
        let checkpoint = Checkpoint::open(&fixture("glm_a/gqla")).unwrap();
        for (program, from, to, kernel) in [
            (Program::gemm(), "other < PARTS; other++", "other < PARTS - 1; other++", "gemm_narrow16_bf16"),
            (Program::rows(), "scale * p.weight[i]", "scale", "rms_norm_f32"),
            (Program::sample(), "| (u32)~id; }", "| (u32)id; }", "sample"),
            (Program::experts(), "fmaf(weight, answer.x", "fmaf(1.f, answer.x", "experts_narrow16_bf16"),
        ] {
            let text = program.text().to_owned();
            assert_eq!(text.matches(from).count(), 1, "{kernel}: its place is gone");
            let folder = tempfile::tempdir().unwrap();
            Images::write(folder.path(), &program.with_text(text.replace(from, to)), &[]).unwrap();
            let images = Images::in_folder(folder.path());
            let error = CudaModel::load(&checkpoint, Some(Gqa), 0, &images).err().unwrap().to_string();
            let start = format!("`{kernel}` on NVIDIA H20 is off by ");
            assert!(error.starts_with(&start) && error.contains("the model is not served"), "{error}");
        }
    });
}

/// Without a driver there is a sentence and no panic. On a machine that has one, there is nothing to show.
#[test]
fn without_a_driver_there_is_a_reason() {
    let converted = Checkpoint::open(&fixture(GQLA)).unwrap();
    if let Err(error) = CudaModel::load(&converted, None, 99, &Images::default()) {
        let error = error.to_string();
        let expected = ["libcuda.so.1 is not on this machine", "CUDA device 99 cannot be opened"];
        assert!(expected.iter().any(|start| error.starts_with(start)), "{error}");
    } else {
        panic!("nobody has a hundred devices");
    }
}
