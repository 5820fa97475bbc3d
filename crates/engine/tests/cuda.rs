//! The CUDA backend on the stand-in for libcuda, against logits of independent PyTorch code and against the CPU backend.
//!
//! `GQLA_TEST_NVRTC` names the folder that holds NVRTC 12, as `cargo xtask test` does; `cargo xtask nvrtc` prints it.
//! Without it these tests fail, because passing would claim something nobody checked. Nothing here has run on a GPU.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use gqla_engine::{
    Checkpoint, Engine, Event, Finish, Request, SamplingParams,
    cpu::{CacheMemory, Model},
    cuda::{CudaEngine, CudaEngineConfig, CudaLoadError, CudaModel},
};
use gqla_fakecuda::{Config, install};
use gqla_kernels::device::Images;
use gqla_model::DecodePath::{self, Gqa, MqaAbsorb};
use half::bf16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

const CHILD: &str = "GQLA_ENGINE_TEST_CHILD";
/// Prompts' tokens that are compared: the stand-in takes seconds for what a GPU does in microseconds.
const TOKENS: usize = 70;

/// Runs `body` in a process that finds the stand-in and NVRTC when it starts, with an H20.
fn on_stand_in(name: &str, body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let nvrtc = std::env::var("GQLA_TEST_NVRTC")
        .expect("GQLA_TEST_NVRTC is not set: run `cargo xtask test`, which sets it, or set it to what `cargo xtask nvrtc` prints");
    let folder = tempfile::tempdir().unwrap();
    install(folder.path()).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", format!("{}:{nvrtc}", folder.path().display()))
        .env(Config::DEVICES_ENV, "H20")
        .env(Config::ORDER_ENV, "own-first")
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{name}:\n{text}");
    println!("{text}");
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_a").join(name)
}

/// A tensor of four-byte words of the golden file.
fn golden<T>(name: &str, convert: impl Fn([u8; 4]) -> T) -> Vec<T> {
    let file = fs::read(fixture("llama_gqla_a").join("golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let data = tensors.tensor(name).unwrap().data().to_vec();
    data.chunks_exact(4).map(|word| convert(word.try_into().unwrap())).collect()
}

/// The fixture with its weights rounded to bf16, as the device has them, and `scaling` in its config.
fn rounded_fixture(scaling: &Value) -> tempfile::TempDir {
    let (from, to) = (fixture("llama_gqla_a"), tempfile::tempdir().unwrap());
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    config["rope_scaling"] = scaling.clone();
    fs::write(to.path().join("config.json"), config.to_string()).unwrap();
    let file = fs::read(from.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let rounded: BTreeMap<String, (Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
            let words = tensor.data().chunks_exact(4);
            let bytes = words
                .flat_map(|word| bf16::from_f32(f32::from_le_bytes(word.try_into().unwrap())).to_le_bytes());
            (name.to_owned(), (tensor.shape().to_vec(), bytes.collect()))
        })
        .collect();
    let views = rounded
        .iter()
        .map(|(name, (shape, bytes))| (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
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

fn load(path: DecodePath) -> CudaModel {
    let checkpoint = Checkpoint::open(&fixture("llama_gqla_a")).unwrap();
    CudaModel::load(&checkpoint, Some(path), 0, &Images::default()).unwrap()
}

/// The CPU backend's own gap between weights in f32 and in bf16 is the measure; the device rounds what lies between too, which
/// adds a third of it here.
#[test]
fn logits_are_as_near_the_golden_ones_as_bf16_allows() {
    on_stand_in("logits_are_as_near_the_golden_ones_as_bf16_allows", || {
        let rounded = rounded_fixture(&Value::Null);
        let cpu = Model::load(&Checkpoint::open(rounded.path()).unwrap(), Some(Gqa)).unwrap();
        for path in [Gqa, MqaAbsorb] {
            let model = load(path);
            let vocab = model.vocab_size();
            for i in 0..3 {
                let mut ids = golden(&format!("ids_{i}"), u32::from_le_bytes);
                ids.truncate(TOKENS);
                let exact = golden(&format!("logits_{i}"), f32::from_le_bytes);
                let exact = &exact[..ids.len() * vocab];
                let (weights_gap, weights_most) = gap(&cpu.logits(&ids).unwrap(), exact);
                let logits = model.logits(&ids).unwrap();
                let (device_gap, device_most) = gap(&logits, exact);
                println!(
                    "{path} {i}, {} tokens: relative error {device_gap:.2e}, largest {device_most:.2e}; weights alone in \
                     bf16 on the CPU: {weights_gap:.2e}, {weights_most:.2e}",
                    ids.len()
                );
                assert!(
                    device_gap <= 2.0 * weights_gap,
                    "{path} {i}: {device_gap:.2e}, of weights {weights_gap:.2e}"
                );
                let sure = exact
                    .chunks(vocab)
                    .zip(logits.chunks(vocab))
                    .filter(|(exact, _)| margin(exact) > weights_most);
                let (mut count, mut equal) = (0, 0);
                for (exact, ours) in sure {
                    count += 1;
                    equal += usize::from(argmax(exact) == argmax(ours));
                }
                assert!(
                    count > 0 && equal == count,
                    "{path} {i}: {equal} of {count} sure tokens are the same"
                );
            }
        }
    });
}

/// Channels that turn slower, turned channels that are multiplied, and scores that are: each scaling has its share of them.
/// On the same weights the device's gap to the CPU is what it rounds, and it is far below what scaling changes.
#[test]
fn scaled_ropes_change_what_the_cpu_says_they_change() {
    on_stand_in("scaled_ropes_change_what_the_cpu_says_they_change", || {
        let tokens = golden("ids_2", u32::from_le_bytes)[..TOKENS].to_vec();
        let cpu = |folder: &Path| {
            Model::load(&Checkpoint::open(folder).unwrap(), Some(Gqa)).unwrap().logits(&tokens).unwrap()
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

fn start(path: DecodePath) -> CudaEngine {
    let config = CudaEngineConfig {
        path: Some(path),
        max_model_len: Some(256),
        max_num_seqs: 4,
        kv_cache: CacheMemory::Bytes(16 << 20),
        ..CudaEngineConfig::default()
    };
    CudaEngine::start(&Checkpoint::open(&fixture("llama_gqla_a")).unwrap(), config).unwrap()
}

fn submit(engine: &CudaEngine, prompt: &[u32]) -> Receiver<Event> {
    let (sender, events) = channel();
    let sampling =
        SamplingParams { max_tokens: 6, temperature: 0.0, logprobs: Some(1), ..SamplingParams::default() };
    let sink: gqla_engine::Sink = Box::new(move |event| {
        let _ = sender.send(event);
        ControlFlow::Continue(())
    });
    engine.submit(Request::new(prompt.to_vec(), sampling, sink)).unwrap();
    events
}

fn collect(events: &Receiver<Event>) -> Vec<(u32, u32)> {
    let mut tokens = Vec::new();
    loop {
        match events.recv_timeout(Duration::from_secs(300)).unwrap() {
            Event::Token { id, logprob } => tokens.push((id, logprob.unwrap().logprob.to_bits())),
            Event::Finished(finish) => {
                assert_eq!(finish, Finish::Length);
                return tokens;
            }
        }
    }
}

/// Prompts that share a beginning find it in the cache, a whole block and part of a copied one.
#[test]
fn a_sequence_computes_the_same_bits_alone_among_others_and_from_the_cache() {
    on_stand_in("a_sequence_computes_the_same_bits_alone_among_others_and_from_the_cache", || {
        for (path, elements) in [(Gqa, 80), (MqaAbsorb, 80)] {
            let prompts: Vec<Vec<u32>> =
                [5, 70, 66].iter().map(|len| (0..*len).map(|i| i * 31 % 512).collect()).collect();
            let engine = start(path);
            let info = engine.info();
            assert_eq!((info.path, info.kv_elements_per_token_layer), (Some(path), elements));
            assert_eq!(info.kv_bytes_per_token, elements * 3 * 2);
            let together: Vec<_> = prompts.iter().map(|prompt| submit(&engine, prompt)).collect();
            let together: Vec<_> = together.iter().map(collect).collect();
            engine.shutdown(Duration::from_secs(60));
            let engine = start(path);
            let alone: Vec<_> = prompts.iter().map(|prompt| collect(&submit(&engine, prompt))).collect();
            assert_eq!(alone, together, "{path}");
            assert!(engine.stats().prefix_hits >= 64, "{path}: {:?}", engine.stats());
            engine.shutdown(Duration::from_secs(60));
        }
    });
}

#[test]
fn what_it_does_not_run_is_told() {
    on_stand_in("what_it_does_not_run_is_told", || {
        let plain = Checkpoint::open(&fixture("llama_tied")).unwrap();
        let error = CudaModel::load(&plain, None, 0, &Images::default()).err().unwrap();
        assert!(matches!(error, CudaLoadError::UnsupportedModel { .. }), "{error}");
        let converted = Checkpoint::open(&fixture("llama_gqla_a")).unwrap();
        let error = CudaModel::load(&converted, None, 3, &Images::default()).err().unwrap().to_string();
        assert!(error.starts_with("CUDA device 3 cannot be opened"), "{error}");
        let tight = CudaEngineConfig {
            max_model_len: Some(256),
            kv_cache: CacheMemory::Bytes(40_000),
            ..CudaEngineConfig::default()
        };
        let error = CudaEngine::start(&converted, tight).err().unwrap().to_string();
        assert!(error.contains("a cache of 40000 bytes holds 1 blocks, expected at least 4"), "{error}");
    });
}

/// Without a driver there is a sentence and no panic. On a machine that has one, there is nothing to show.
#[test]
fn without_a_driver_there_is_a_reason() {
    let converted = Checkpoint::open(&fixture("llama_gqla_a")).unwrap();
    if let Err(error) = CudaModel::load(&converted, None, 99, &Images::default()) {
        let error = error.to_string();
        let expected = ["libcuda.so.1 is not on this machine", "CUDA device 99 cannot be opened"];
        assert!(expected.iter().any(|start| error.starts_with(start)), "{error}");
    } else {
        panic!("nobody has a hundred devices");
    }
}
