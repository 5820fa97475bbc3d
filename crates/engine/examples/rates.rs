//! What this machine reaches, one JSON object a call: the roof, one layer's attention, or a model's tokens per second.
//!
//! `cargo run --release -p gqla-engine --example rates -- ACTION [name=value …]`, where ACTION is
//! `roof`, `attention` with any of `products=f32|bf16 cache=f32|bf16|int8`, or `model MODEL` with these and any of
//! `path=gqa|mqa-absorb|plain weights=stored|int8 prompt=16 tokens=64 streams=1`. All take `threads=2` and `seconds=3`.
//!
//! On an NVIDIA GPU: `model MODEL device=cuda`, `products` for what the engine's products of matrices reach, and `splits` for
//! attention under other divisions of a context. They take `images=FOLDER`, with images of the kernels.

use std::{
    collections::HashMap,
    error::Error,
    ops::ControlFlow,
    path::Path,
    sync::mpsc::channel,
    time::{Duration, Instant},
};

use gqla_engine::{
    Checkpoint, Engine, Event, Request, SamplingParams, Sink,
    cpu::{
        CacheFormat, CacheMemory, CpuEngine, CpuEngineConfig, InstructionSet, Pool, Precision, Products,
        WeightFormat, Weights,
        measure::{AttentionCase, AttentionTimer, dot_rate, multiply_rate, read_rate},
    },
    cuda::{CudaEngine, CudaEngineConfig},
};
use gqla_kernels::{
    Matrix, WeightRows,
    attention::unit,
    bf16_unit,
    device::{self, Device, Images, Splits},
    int8_unit,
};
use gqla_model::{AttentionShape, DecodePath};
use serde_json::{Value, json};

/// Memory that is read over and over: several times what the last-level cache of any processor we met holds, which was 260 MiB.
const ROOF_BYTES: usize = 1 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: rates roof|attention|products|splits|model [MODEL] [name=value …]";
    let action = arguments.first().ok_or(usage)?;
    let settings = Settings(arguments.iter().filter_map(|argument| argument.split_once('=')).collect());
    let result = match action.as_str() {
        "roof" => roof(&settings)?,
        "attention" => attention(&settings)?,
        "products" => products(&settings)?,
        "splits" => splits(&settings)?,
        "model" => model(arguments.get(1).ok_or(usage)?, &settings)?,
        _ => return Err(usage.into()),
    };
    println!("{result}");
    Ok(())
}

struct Settings<'a>(HashMap<&'a str, &'a str>);

impl Settings<'_> {
    fn get<T: std::str::FromStr<Err: Error + 'static>>(
        &self,
        name: &str,
        default: T,
    ) -> Result<T, Box<dyn Error>> {
        Ok(self.0.get(name).map(|value| value.parse()).transpose()?.unwrap_or(default))
    }

    fn pool(&self) -> Result<Pool, Box<dyn Error>> {
        Ok(Pool::new(Some(self.get("threads", 2)?))?)
    }

    fn images(&self) -> Images {
        Images::find(self.0.get("images").map(Path::new))
    }

    fn products(&self) -> Products {
        match self.0.get("products") {
            Some(&"bf16") => Products::Bf16,
            _ => Products::F32,
        }
    }

    fn time(&self) -> Result<Duration, Box<dyn Error>> {
        Ok(Duration::from_secs_f64(self.get("seconds", 3.0)?))
    }
}

/// Products of a decoding step and of a prompt's chunk on a GPU, by rows: bytes of weights and FLOPs per second.
fn products(settings: &Settings<'_>) -> Result<Value, Box<dyn Error>> {
    let (device, images, time) = (Device::open(0)?, settings.images(), settings.time()?);
    let copied = device::copy_rate(&device, ROOF_BYTES * 4, time)?;
    let mut lines = Vec::new();
    for [outputs, inputs] in [[4096, 4096], [14336, 4096], [4096, 14336], [128_256, 4096]] {
        for rows in [1, 16, 64, 256, 1024] {
            let seconds =
                device::product_seconds(&device, &images, [rows, outputs, inputs], ROOF_BYTES, time)?.median;
            lines.push(json!({
                "rows": rows, "outputs": outputs, "inputs": inputs, "seconds": seconds,
                "weight_bytes_per_second": (2 * outputs * inputs) as f64 / seconds,
                "flops_per_second": (2 * rows * outputs * inputs) as f64 / seconds,
            }));
        }
    }
    Ok(json!({ "device": device.name(), "copied_bytes_per_second": copied.median, "lines": lines }))
}

/// Attention on a GPU under different divisions of a context.
fn splits(settings: &Settings<'_>) -> Result<Value, Box<dyn Error>> {
    let (device, images, time) = (Device::open(0)?, settings.images(), settings.time()?);
    let mut lines = Vec::new();
    for (name, heads, groups) in [("32 heads, 8 groups", 32, 8), ("128 heads, 8 groups", 128, 8)] {
        let shape = AttentionShape {
            num_attention_heads: heads,
            num_key_value_heads: groups,
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
        };
        for path in DecodePath::ALL {
            for (least_pages, most) in
                [(2, 64), (4, 16), (4, 32), (4, 64), (4, 128), (8, 32), (8, 64), (16, 32)]
            {
                let division = Splits { least_pages, most };
                let mut timer =
                    device::AttentionTimer::new(&device, &images, &shape, path, 32 << 10, division)?;
                for (batch, context) in [(1, 4096), (1, 32_768), (8, 8192), (32, 4096), (32, 32_768)] {
                    let case = AttentionCase { batch, context, query_tokens: 1 };
                    let core = timer.time(&case, time)?.core;
                    lines.push(json!({
                        "shape": name, "path": path.flag(), "least_pages": least_pages, "most": most, "batch": batch,
                        "context": context, "microseconds": core.median * 1e6,
                    }));
                }
            }
        }
    }
    Ok(json!({ "device": device.name(), "lines": lines }))
}

/// Bytes and FLOPs per second.
fn roof(settings: &Settings<'_>) -> Result<Value, Box<dyn Error>> {
    let (pool, time) = (settings.pool()?, settings.time()?);
    let set = InstructionSet::in_use();
    Ok(json!({
        "instruction_sets": [set.name()],
        "threads": pool.threads(),
        "read_bytes_per_second": read_rate(&pool, ROOF_BYTES, time).rate.median,
        "dot_bytes_per_second": dot_rate(&pool, ROOF_BYTES, time).rate.median,
        "flops_per_second": multiply_rate(&pool, set, WeightFormat::F32, time / 3).median,
    }))
}

/// One layer's attention over its cache, against the roof of the same minute.
fn attention(settings: &Settings<'_>) -> Result<Value, Box<dyn Error>> {
    let (pool, time) = (settings.pool()?, settings.time()?);
    let format = settings.get("cache", CacheFormat::F32)?;
    let bf16_products = settings.products() == Products::Bf16;
    let shape = |heads, groups, rank, nope, rope, value| AttentionShape {
        num_attention_heads: heads,
        num_key_value_heads: groups,
        kv_lora_rank: rank,
        qk_nope_head_dim: nope,
        qk_rope_head_dim: rope,
        v_head_dim: value,
    };
    let mut lines = Vec::new();
    for (name, shape, path) in [
        ("9q/3kv x 64", shape(9, 3, 64, 64, 0, 64), DecodePath::Gqa),
        ("9q/3kv x 64 + rope 64", shape(9, 3, 320, 64, 64, 64), DecodePath::Gqa),
        ("20 heads x 576 absorb", shape(20, 20, 512, 192, 64, 256), DecodePath::MqaAbsorb),
        ("32q/8kv x 128", shape(32, 8, 128, 128, 0, 128), DecodePath::Gqa),
    ] {
        for (context, query_tokens) in [(4096, 1), (4096, 2), (16384, 1)] {
            let case = AttentionCase { batch: 1, context, query_tokens };
            let passes = (ROOF_BYTES as f64 / case.cache_bytes(shape.cached_token(path), format)).ceil();
            let blocks = case.blocks() * passes as usize;
            let mut timer = AttentionTimer::new(&shape, path, blocks, format, bf16_products)?;
            let bytes = case.cache_bytes(timer.cached_token(), format);
            let read = read_rate(&pool, ROOF_BYTES, time / 2).rate.median;
            let flops = flops(&pool, format, bf16_products, time / 8)?;
            let core = timer.time(&pool, &case, time)?.core;
            let dims = match path {
                DecodePath::Gqa => shape.qk_nope_head_dim + shape.qk_rope_head_dim + shape.v_head_dim,
                DecodePath::MqaAbsorb => 2 * shape.kv_lora_rank + shape.qk_rope_head_dim,
            };
            let work = 2.0 * f64::from(shape.num_attention_heads * dims) * (context * query_tokens) as f64;
            let roof = (bytes / read).max(work / flops);
            lines.push(json!({
                "shape": name, "context": context, "query_tokens": query_tokens,
                "seconds": core.median, "lower": core.lower, "upper": core.upper,
                "roof_seconds": roof, "share_of_roof": roof / core.median,
                "bound": if bytes / read > work / flops { "read" } else { "flops" },
            }));
        }
    }
    let sets = [Some(InstructionSet::in_use().name()), unit(format, bf16_products)];
    let sets: Vec<_> = sets.into_iter().flatten().collect();
    Ok(json!({ "instruction_sets": sets, "threads": pool.threads(), "lines": lines }))
}

/// FLOPs per second of what multiplies over a cache of that format, both operands in the cores' own caches: the processor's unit
/// for narrow numbers, or f32.
fn flops(pool: &Pool, cache: CacheFormat, bf16: bool, time: Duration) -> Result<f64, Box<dyn Error>> {
    const ROWS: usize = 96;
    const OUTPUTS: usize = 1024;
    const INPUTS: usize = 256;
    let ones = [0x80, 0x3f].repeat(OUTPUTS * INPUTS);
    let weights = [WeightRows::Bf16(&ones)];
    let matrix = match cache {
        CacheFormat::Bf16 if bf16 && bf16_unit().is_some() => {
            Matrix::stack_rounding_inputs(&weights, INPUTS)?
        }
        CacheFormat::Int8 if int8_unit().is_some() => Matrix::stack_int8(&weights, INPUTS)?,
        _ => return Ok(multiply_rate(pool, InstructionSet::in_use(), WeightFormat::F32, time).median),
    };
    let (x, mut y) = (vec![0.5; ROWS * INPUTS], vec![0.0; ROWS * OUTPUTS]);
    let (began, mut fastest) = (Instant::now(), f64::INFINITY);
    while began.elapsed() < time {
        let start = Instant::now();
        matrix.multiply(pool, &x, &mut y);
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * (ROWS * OUTPUTS * INPUTS) as f64 / fastest)
}

/// Tokens per second of prompt and of answer.
fn model(folder: &str, settings: &Settings<'_>) -> Result<Value, Box<dyn Error>> {
    let prompt: usize = settings.get("prompt", 16)?;
    let tokens: u32 = settings.get("tokens", 64)?;
    let streams: usize = settings.get("streams", 1)?;
    let choice = settings.0.get("path").copied().unwrap_or("plain");
    let path = if choice == "plain" { None } else { Some(choice.parse()?) };
    let config = CpuEngineConfig {
        path,
        max_num_seqs: streams,
        kv_cache: CacheMemory::Bytes(4 << 30),
        kv_cache_format: settings.get("cache", CacheFormat::F32)?,
        precision: Precision {
            weights: match settings.0.get("weights") {
                Some(&"int8") => Weights::Int8,
                _ => Weights::Stored,
            },
            products: settings.products(),
        },
        threads: Some(settings.get("threads", 2)?),
        ..CpuEngineConfig::default()
    };
    let started = Instant::now();
    let checkpoint = Checkpoint::open(Path::new(folder))?;
    let engine: Box<dyn Engine> = if settings.0.get("device") == Some(&"cuda") {
        let images = settings.images();
        let config = CudaEngineConfig { path, max_num_seqs: streams, images, ..CudaEngineConfig::default() };
        Box::new(CudaEngine::start(&checkpoint, config)?)
    } else {
        Box::new(CpuEngine::start(&checkpoint, config)?)
    };
    let load = started.elapsed().as_secs_f64();
    run(&*engine, 1, 16, 8)?;
    let began = Instant::now();
    let (mut prefills, mut decodes) = (Vec::new(), Vec::new());
    let time = settings.time()?;
    while decodes.len() < 3 || began.elapsed() < time {
        let (first, last) = run(&*engine, streams, prompt, tokens)?;
        prefills.push((streams * prompt) as f64 / first);
        decodes.push((streams * (tokens as usize - 1)) as f64 / (last - first));
        if prompt > 1024 {
            break;
        }
    }
    Ok(json!({
        "instruction_sets": engine.info().instruction_sets,
        "load_seconds": load,
        "prefill_tokens_per_second": median(prefills),
        "decode_tokens_per_second": median(decodes),
    }))
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Seconds until `streams` sequences have all got their first token, and until all have ended.
fn run(
    engine: &dyn Engine,
    streams: usize,
    prompt: usize,
    tokens: u32,
) -> Result<(f64, f64), Box<dyn Error>> {
    let (sender, events) = channel();
    let started = Instant::now();
    for stream in 0..streams {
        let sender = sender.clone();
        let mut drawn = 0;
        let sink: Sink = Box::new(move |event| {
            if matches!(event, Event::Token { .. }) {
                drawn += 1;
            }
            if matches!(event, Event::Finished(_)) || drawn == 1 {
                let _ = sender.send(matches!(event, Event::Finished(_)));
            }
            ControlFlow::Continue(())
        });
        let sampling = SamplingParams { max_tokens: tokens, ..SamplingParams::default() };
        let prompt = (0..prompt).map(|i| ((i * 31 + stream * 7) % 400 + 10) as u32).collect();
        // A salt of its own, so that no run finds what another one computed.
        let cache_salt = format!("{started:?} {stream}");
        engine.submit(Request { cache_salt, ..Request::new(prompt, sampling, sink) })?;
    }
    let (mut first, mut ended) = (0, 0);
    let mut all_first = 0.0;
    while ended < streams {
        if events.recv()? {
            ended += 1;
        } else {
            first += 1;
            if first == streams {
                all_first = started.elapsed().as_secs_f64();
            }
        }
    }
    Ok((all_first, started.elapsed().as_secs_f64()))
}
