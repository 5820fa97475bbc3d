//! Tokens per second of a model on this machine: prefill, one stream, four streams.
//!
//! `cargo run --release -p gqla-engine --example throughput -- MODEL [mqa-absorb|gqa] [PROMPT_TOKENS] [TOKENS]`

use std::{error::Error, ops::ControlFlow, path::Path, sync::mpsc::channel, time::Instant};

use gqla_engine::{
    Checkpoint, Engine, Event, Request, SamplingParams, Sink,
    cpu::{CpuEngine, CpuEngineConfig},
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let model = arguments.first().ok_or("usage: throughput MODEL [PATH] [PROMPT_TOKENS] [TOKENS]")?;
    let path = arguments.get(1).filter(|path| *path != "plain").map(|path| path.parse()).transpose()?;
    let prompt: usize = arguments.get(2).map_or(Ok(16), |n| n.parse())?;
    let tokens: u32 = arguments.get(3).map_or(Ok(64), |n| n.parse())?;
    let started = Instant::now();
    let config = CpuEngineConfig { path, ..CpuEngineConfig::default() };
    let engine = CpuEngine::start(&Checkpoint::open(Path::new(model))?, config)?;
    let set = engine.info().instruction_set;
    println!("{model}: loaded in {:.1} s, {set}", started.elapsed().as_secs_f64());
    let seconds = run(&engine, 1, 512, 1)?;
    println!("prefill of 512 tokens: {:.1} tokens/s", 512.0 / seconds);
    for streams in [1, 4, 1, 4] {
        let prefill = run(&engine, streams, prompt, 1)?;
        let seconds = run(&engine, streams, prompt, tokens)? - prefill;
        let rate = streams as f64 * f64::from(tokens - 1) / seconds;
        println!("{streams} streams after {prompt} tokens: {rate:.1} tokens/s");
    }
    Ok(())
}

/// Seconds `streams` sequences take together.
fn run(engine: &CpuEngine, streams: usize, prompt: usize, tokens: u32) -> Result<f64, Box<dyn Error>> {
    let (sender, ends) = channel();
    let started = Instant::now();
    for stream in 0..streams {
        let sender = sender.clone();
        let sink: Sink = Box::new(move |event| {
            if let Event::Finished(finish) = event {
                let _ = sender.send(finish);
            }
            ControlFlow::Continue(())
        });
        let sampling = SamplingParams { max_tokens: tokens, ..SamplingParams::default() };
        let prompt = (0..prompt).map(|i| ((i * 31 + stream * 7) % 400 + 10) as u32).collect();
        // A salt of its own, so that no run finds what another one computed.
        let cache_salt = format!("{started:?} {stream}");
        engine.submit(Request { cache_salt, ..Request::new(prompt, sampling, sink) })?;
    }
    for _ in 0..streams {
        ends.recv()?;
    }
    Ok(started.elapsed().as_secs_f64())
}
