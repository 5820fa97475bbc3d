//! The CPU engine beside llama.cpp and beside what this machine's memory and arithmetic allow.
//!
//! Other processes share the machine, so both sides of a line run in turn, round after round, and the figure is the
//! median of their ratio: only that means something on a machine that is not quiet.

mod llama;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use gqla_model::DecodePath;
use serde_json::{Value, json};

use crate::{
    binaries, demo_model,
    shell::{capture, cargo, run as run_command, step},
};
use llama::Llama;

/// Measure the CPU engine beside llama.cpp, in turn.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Threads of both
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Rounds: each runs our side once and llama.cpp once per flash-attention setting
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Decode after so many tokens instead, with the converted model, whose context is taken to be as long; their prompts take
    /// minutes a round
    #[arg(long)]
    depth: Option<usize>,
}

/// Our ways of doing what the peer does once a round.
struct Line {
    /// Each with its arguments of the `rates` example after the model.
    ours: Vec<(String, Vec<String>)>,
    /// The model file, ours and theirs.
    model: PathBuf,
    format: &'static str,
    theirs: Peer,
    field: &'static str,
}

enum Peer {
    Bench(Vec<String>),
    Batched(usize),
}

/// What was measured of a line.
struct Measured {
    name: String,
    ours: Vec<f64>,
    /// What ours ran on.
    sets: String,
    /// Without and with flash attention.
    theirs: [Vec<f64>; 2],
}

impl Measured {
    /// The peer's better setting by its median.
    fn better(&self) -> &[f64] {
        let [off, on] = &self.theirs;
        if median(on) > median(off) { on } else { off }
    }

    fn ratios(&self) -> Vec<f64> {
        self.ours.iter().zip(self.better()).map(|(ours, theirs)| ours / theirs).collect()
    }

    fn row(&self) -> String {
        let ([off, on], ratios) = (&self.theirs, self.ratios());
        let (ours, off, on, ratio) = (median(&self.ours), median(off), median(on), median(&ratios));
        let (low, high) =
            ratios.iter().fold((f64::MAX, 0.0f64), |(low, high), r| (low.min(*r), high.max(*r)));
        format!(
            "{:40}{ours:>10.1}{off:>10.1}{on:>10.1}{ratio:>8.2}  {low:.2}..{high:.2}  {}\n",
            self.name, self.sets
        )
    }
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let rates = build_rates()?;
    let source = demo_model::source()?;
    let llama = Llama::prepare(&source)?;
    let rates = |arguments: &[String]| -> Result<Value> {
        let threads = format!("threads={}", args.threads);
        let output = capture(Command::new(&rates).args(arguments).arg(threads))?;
        serde_json::from_str(&output).context("the rates example printed no JSON")
    };
    println!("{}, load {} before", super::planner::machine(), load());
    let roof = rates(&["roof".to_owned()])?;
    let lines = match args.depth {
        None => lines(&llama),
        Some(depth) => vec![long_line(&demo_model::prepare(&binaries::build()?.gqla)?.converted, depth)?],
    };
    let mut measured = Vec::new();
    for line in lines {
        let more = step(&line.ours[0].0, || measure(&line, args, &llama, &rates))?;
        // All lines take half an hour: what is known is told, whatever ends the rest.
        more.iter().for_each(|measured| print!("{}", measured.row()));
        measured.extend(more);
    }
    print!("{}", table(&roof, &measured, fs::metadata(llama.model("BF16"))?.len()));
    let attention = rates(&["attention".to_owned()])?;
    print!("{}", attention_table(&attention));
    println!("load {} after", load());
    let report: Vec<_> = measured
        .iter()
        .map(|m| json!({ "line": m.name, "ours": m.ours, "fa_off": m.theirs[0], "fa_on": m.theirs[1] }))
        .collect();
    println!("{}", json!({ "roof": roof, "lines": report, "attention": attention }));
    Ok(())
}

fn build_rates() -> Result<PathBuf> {
    step("Build the engine (release)", || {
        run_command(cargo()?.args([
            "build",
            "--locked",
            "--release",
            "-p",
            "gqla-engine",
            "--example",
            "rates",
        ]))
    })?;
    Ok(binaries::target_dir()?.join("release/examples/rates"))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn lines(llama: &Llama) -> Vec<Line> {
    let line = |format, ours: &[(&str, &str)], common: &str, field, theirs| Line {
        ours: ours
            .iter()
            .map(|(name, own)| ((*name).to_owned(), words(&format!("{own} {common} seconds=1"))))
            .collect(),
        model: llama.model("BF16"),
        format,
        theirs,
        field,
    };
    let (decode, prefill) = ("decode_tokens_per_second", "prefill_tokens_per_second");
    let tg64 = || Peer::Bench(words("-p 0 -n 64"));
    let pp512 = || Peer::Bench(words("-p 512 -n 0"));
    let products = ["", "products=bf16"];
    let both = |[exact, rounded]: [&'static str; 2]| [(exact, products[0]), (rounded, products[1])];
    vec![
        line("BF16", &both(["decode, bf16", "decode, bf16 products"]), "tokens=64", decode, tg64()),
        line("Q8_0", &[("decode, int8 beside Q8_0", "weights=int8")], "tokens=64", decode, tg64()),
        line(
            "BF16",
            &both(["prompt of 512, bf16", "prompt of 512, bf16 products"]),
            "prompt=512 tokens=2",
            prefill,
            pp512(),
        ),
        line(
            "F16",
            &both(["prompt of 512, bf16 beside F16", "prompt of 512, bf16 products beside F16"]),
            "prompt=512 tokens=2",
            prefill,
            pp512(),
        ),
        line(
            "BF16",
            &both(["16 streams, bf16", "16 streams, bf16 products"]),
            "streams=16 tokens=64",
            decode,
            Peer::Batched(16),
        ),
    ]
}

/// Both paths after `depth` tokens. Nothing of the text matters, so the model's context is made as long as it takes.
fn long_line(converted: &Path, depth: usize) -> Result<Line> {
    const TOKENS: usize = 32;
    let model = converted.with_file_name(format!("smollm2-135m-gqla-of-{depth}"));
    fs::create_dir_all(&model)?;
    let mut config: Value = serde_json::from_slice(&fs::read(converted.join("config.json"))?)?;
    config["max_position_embeddings"] = json!((depth + 2 * TOKENS).max(8192));
    fs::write(model.join("config.json"), config.to_string())?;
    let weights = model.join("model.safetensors");
    if weights.exists() {
        fs::remove_file(&weights)?;
    }
    fs::hard_link(converted.join("model.safetensors"), weights)?;
    let ours = DecodePath::ALL
        .iter()
        .flat_map(|path| ["f32", "bf16", "int8"].map(|cache| (path.flag(), cache)))
        .map(|(path, cache)| {
            let name = format!("decode after {depth}, {path}, {cache} cache");
            (name, words(&format!("path={path} cache={cache} prompt={depth} tokens={TOKENS}")))
        });
    Ok(Line {
        ours: ours.collect(),
        model,
        format: "BF16",
        theirs: Peer::Bench(words(&format!("-p 0 -n {TOKENS} -d {depth}"))),
        field: "decode_tokens_per_second",
    })
}

fn measure(
    line: &Line,
    args: &Args,
    llama: &Llama,
    rates: &impl Fn(&[String]) -> Result<Value>,
) -> Result<Vec<Measured>> {
    let model = line.model.to_string_lossy().into_owned();
    let mut ours = vec![(Vec::new(), String::new()); line.ours.len()];
    let mut theirs = [Vec::new(), Vec::new()];
    for _ in 0..args.rounds {
        for ((_, arguments), ours) in line.ours.iter().zip(&mut ours) {
            let arguments: Vec<_> =
                ["model", &model].map(str::to_owned).into_iter().chain(arguments.clone()).collect();
            let result = rates(&arguments)?;
            ours.0.push(result[line.field].as_f64().with_context(|| format!("no {}", line.field))?);
            ours.1 = instruction_sets(&result);
        }
        for (theirs, flash) in theirs.iter_mut().zip([false, true]) {
            theirs.push(match &line.theirs {
                Peer::Bench(arguments) => llama.rate(line.format, args.threads, flash, arguments)?,
                Peer::Batched(streams) => llama.batched_rate(args.threads, flash, *streams)?,
            });
        }
    }
    let measured = |((name, _), (ours, sets)): (&(String, _), _)| Measured {
        name: name.clone(),
        ours,
        sets,
        theirs: theirs.clone(),
    };
    Ok(line.ours.iter().zip(ours).map(measured).collect())
}

/// What an answer of the `rates` example says it ran on.
fn instruction_sets(result: &Value) -> String {
    let sets = result["instruction_sets"].as_array().into_iter().flatten().filter_map(Value::as_str);
    sets.collect::<Vec<_>>().join(" + ")
}

fn table(roof: &Value, measured: &[Measured], model_bytes: u64) -> String {
    let giga = |field: &str| roof[field].as_f64().unwrap_or(f64::NAN) / 1e9;
    let (read, dot) = (giga("read_bytes_per_second"), giga("dot_bytes_per_second"));
    let set = instruction_sets(roof);
    let flops = giga("flops_per_second");
    let mut text = format!("{set}: {read:.1} GB/s read, {dot:.1} GB/s bf16 dot, {flops:.0} GFLOP/s\n");
    text += &format!("{:40}{:>10}{:>10}{:>10}{:>8}  range\n", "tokens/s", "ours", "fa off", "fa on", "ratio");
    for m in measured {
        text += &m.row();
    }
    if let Some(decode) = measured.first() {
        let share = median(&decode.ours) * model_bytes as f64 / 1e9 / dot;
        text += &format!("bf16 weights are read at {:.0} % of the bare dot's rate\n", share * 100.0);
    }
    text
}

fn attention_table(attention: &Value) -> String {
    let sets = instruction_sets(attention);
    let mut text = format!(
        "{:32}{:>8}{:>5}{:>12}{:>8}  {sets}\n",
        "attention, one layer", "context", "s_q", "µs", "roof"
    );
    for line in attention["lines"].as_array().into_iter().flatten() {
        let number = |field: &str| line[field].as_f64().unwrap_or(f64::NAN);
        text += &format!(
            "{:32}{:>8}{:>5}{:>12.1}{:>7.0}%\n",
            line["shape"].as_str().unwrap_or_default(),
            number("context"),
            number("query_tokens"),
            number("seconds") * 1e6,
            number("share_of_roof") * 100.0
        );
    }
    text
}

/// Processes that ran or wanted to, on average over the last minute.
fn load() -> String {
    let loads = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    loads.split(' ').next().unwrap_or_default().to_owned()
}

fn median(samples: &[f64]) -> f64 {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_to_the_better_setting_of_the_same_round() {
        let theirs = [vec![10.0, 20.0, 30.0], vec![20.0, 25.0, 21.0]];
        let measured = Measured {
            name: "line".to_owned(),
            ours: vec![40.0, 50.0, 63.0],
            sets: "avx2+fma".to_owned(),
            theirs,
        };
        assert_eq!(measured.ratios(), [2.0, 2.0, 3.0]);
        let roof = json!({
            "instruction_sets": ["avx2+fma"], "read_bytes_per_second": 30e9, "dot_bytes_per_second": 25e9,
            "flops_per_second": 170e9,
        });
        let table = table(&roof, &[measured], 250_000_000);
        assert!(table.contains("avx2+fma: 30.0 GB/s read, 25.0 GB/s bf16 dot, 170 GFLOP/s"), "{table}");
        assert!(table.contains("50.0      20.0      21.0    2.00  2.00..3.00  avx2+fma"), "{table}");
        assert!(table.contains("50 % of the bare dot's rate"), "{table}");
    }
}
