//! Fixtures, and requests to a running engine.

#![allow(dead_code, reason = "every test binary takes what it needs")]

pub mod rewrite;
pub mod stand_in;

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use gqla_engine::{
    Checkpoint, Engine, Event, Finish, Request, SamplingParams,
    cpu::{CpuEngine, CpuEngineConfig},
};
use gqla_model::DecodePath;
use safetensors::SafeTensors;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(name: &str) -> Self {
        Self(fs::read(fixture(name).join("golden.safetensors")).unwrap())
    }

    pub fn words<T>(&self, name: &str, convert: impl Fn([u8; 4]) -> T) -> Vec<T> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|word| convert(word.try_into().unwrap())).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.words(name, u32::from_le_bytes)
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name, f32::from_le_bytes)
    }
}

/// Largest difference over the largest expected magnitude.
pub fn relative_error(ours: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(ours.len(), expected.len());
    assert!(ours.iter().all(|x| x.is_finite()));
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    ours.iter().zip(expected).fold(0.0f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

pub fn config(path: Option<DecodePath>) -> CpuEngineConfig {
    CpuEngineConfig { path, threads: Some(2), ..CpuEngineConfig::default() }
}

pub fn start(name: &str, config: CpuEngineConfig) -> CpuEngine {
    CpuEngine::start(&Checkpoint::open(&fixture(name)).unwrap(), config).unwrap()
}

pub fn submit(engine: &CpuEngine, prompt: &[u32], temperature: f32, seed: u64) -> Receiver<Event> {
    submit_salted(engine, prompt, temperature, seed, "")
}

pub fn submit_salted(
    engine: &CpuEngine,
    prompt: &[u32],
    temperature: f32,
    seed: u64,
    salt: &str,
) -> Receiver<Event> {
    let (sender, events) = channel();
    submit_to(engine, prompt, temperature, seed, salt, move |event| {
        let _ = sender.send(event);
    });
    events
}

pub fn submit_to(
    engine: &CpuEngine,
    prompt: &[u32],
    temperature: f32,
    seed: u64,
    salt: &str,
    receive: impl Fn(Event) + Send + 'static,
) {
    let sampling =
        SamplingParams { max_tokens: 32, temperature, seed, logprobs: Some(2), ..SamplingParams::default() };
    let sink: gqla_engine::Sink = Box::new(move |event| {
        receive(event);
        ControlFlow::Continue(())
    });
    let cache_salt = salt.to_owned();
    engine.submit(Request { cache_salt, ..Request::new(prompt.to_vec(), sampling, sink) }).unwrap();
}

pub fn collect(events: &Receiver<Event>) -> Vec<(u32, u32)> {
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

pub fn ids(tokens: &[(u32, u32)]) -> Vec<u32> {
    tokens.iter().map(|(id, _)| *id).collect()
}
