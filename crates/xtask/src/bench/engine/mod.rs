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
    /// Also decode after 8192 tokens, whose prompts take minutes a round; converts the demonstration model if need be
    #[arg(long)]
    long: bool,
}

/// One comparison.
struct Line {
    name: &'static str,
    /// Arguments of the `rates` example after the model.
    ours: Vec<String>,
    /// The model file, ours and theirs.
    model: PathBuf,
    format: &'static str,
    theirs: Peer,
    field: &'static str,
}

enum Peer {
    Bench(&'static [&'static str]),
    Batched(usize),
}

/// What was measured of a line.
struct Measured {
    name: &'static str,
    ours: Vec<f64>,
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
        format!("{:32}{ours:>10.1}{off:>10.1}{on:>10.1}{ratio:>8.2}  {low:.2}..{high:.2}\n", self.name)
    }
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let rates = build_rates()?;
    let source = demo_model::source()?;
    let llama = Llama::prepare(&source)?;
    let converted =
        if args.long { Some(demo_model::prepare(&binaries::build()?.gqla)?.converted) } else { None };
    let rates = |arguments: &[String]| -> Result<Value> {
        let threads = format!("threads={}", args.threads);
        let output = capture(Command::new(&rates).args(arguments).arg(threads))?;
        serde_json::from_str(&output).context("the rates example printed no JSON")
    };
    println!("{}, load {} before", super::planner::machine(), load());
    let roof = rates(&["roof".to_owned()])?;
    let measured = lines(&llama, converted.as_deref())
        .iter()
        .map(|line| {
            let measured = step(line.name, || measure(line, args, &llama, &rates))?;
            // All lines take half an hour: what is known is told, whatever ends the rest.
            print!("{}", measured.row());
            Ok(measured)
        })
        .collect::<Result<Vec<_>>>()?;
    let attention = rates(&["attention".to_owned()])?;
    print!("{}", table(&roof, &measured, fs::metadata(llama.model("BF16"))?.len()));
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

fn lines(llama: &Llama, converted: Option<&Path>) -> Vec<Line> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let line = |name, format, ours: &str, field, theirs| Line {
        name,
        ours: words(ours),
        model: llama.model("BF16"),
        format,
        theirs,
        field,
    };
    let (decode, prefill) = ("decode_tokens_per_second", "prefill_tokens_per_second");
    let short = "tokens=64 seconds=1";
    let tg64 = || Peer::Bench(&["-p", "0", "-n", "64"]);
    let pp512 = || Peer::Bench(&["-p", "512", "-n", "0"]);
    let mut lines = vec![
        line("decode, bf16", "BF16", short, decode, tg64()),
        line("the same, bf16 products", "BF16", &format!("products=bf16 {short}"), decode, tg64()),
        line("decode, int8 beside Q8_0", "Q8_0", &format!("weights=int8 {short}"), decode, tg64()),
        line("prompt of 512, bf16", "BF16", "prompt=512 tokens=2 seconds=1", prefill, pp512()),
        line(
            "the same, bf16 products",
            "BF16",
            "products=bf16 prompt=512 tokens=2 seconds=1",
            prefill,
            pp512(),
        ),
        line("prompt of 512, bf16 beside F16", "F16", "prompt=512 tokens=2 seconds=1", prefill, pp512()),
        line("16 streams, bf16", "BF16", "streams=16 tokens=64 seconds=1", decode, Peer::Batched(16)),
        line(
            "the same, bf16 products",
            "BF16",
            "products=bf16 streams=16 tokens=64 seconds=1",
            decode,
            Peer::Batched(16),
        ),
    ];
    if let Some(converted) = converted {
        // The model's context ends at 8192.
        let after = || Peer::Bench(&["-p", "0", "-n", "32", "-d", "8000"]);
        let caches = [
            ("decode after 8000, GQA path", "f32"),
            ("the same, bf16 cache", "bf16"),
            ("the same, int8 cache", "int8"),
        ];
        for (name, cache) in caches {
            let ours = format!("path=gqa cache={cache} prompt=8000 tokens=32");
            let line = line(name, "BF16", &ours, decode, after());
            lines.push(Line { model: converted.to_owned(), ..line });
        }
    }
    lines
}

fn measure(
    line: &Line,
    args: &Args,
    llama: &Llama,
    rates: &impl Fn(&[String]) -> Result<Value>,
) -> Result<Measured> {
    let mut measured = Measured { name: line.name, ours: Vec::new(), theirs: [Vec::new(), Vec::new()] };
    let model = line.model.to_string_lossy().into_owned();
    let ours: Vec<String> = ["model".to_owned(), model].into_iter().chain(line.ours.clone()).collect();
    for _ in 0..args.rounds {
        let result = rates(&ours)?;
        measured.ours.push(result[line.field].as_f64().with_context(|| format!("no {}", line.field))?);
        for (theirs, flash) in measured.theirs.iter_mut().zip([false, true]) {
            theirs.push(match &line.theirs {
                Peer::Bench(arguments) => llama.rate(line.format, args.threads, flash, arguments)?,
                Peer::Batched(streams) => llama.batched_rate(args.threads, flash, *streams)?,
            });
        }
    }
    Ok(measured)
}

fn table(roof: &Value, measured: &[Measured], model_bytes: u64) -> String {
    let giga = |field: &str| roof[field].as_f64().unwrap_or(f64::NAN) / 1e9;
    let (read, dot) = (giga("read_bytes_per_second"), giga("dot_bytes_per_second"));
    let set = roof["instruction_set"].as_str().unwrap_or_default();
    let flops = giga("flops_per_second");
    let mut text = format!("{set}: {read:.1} GB/s read, {dot:.1} GB/s bf16 dot, {flops:.0} GFLOP/s\n");
    text += &format!("{:32}{:>10}{:>10}{:>10}{:>8}  range\n", "tokens/s", "ours", "fa off", "fa on", "ratio");
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
    let mut text =
        format!("{:32}{:>8}{:>5}{:>12}{:>8}\n", "attention, one layer", "context", "s_q", "µs", "roof");
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
        let measured = Measured { name: "line", ours: vec![40.0, 50.0, 63.0], theirs };
        assert_eq!(measured.ratios(), [2.0, 2.0, 3.0]);
        let roof = json!({
            "instruction_set": "avx2+fma", "read_bytes_per_second": 30e9, "dot_bytes_per_second": 25e9,
            "flops_per_second": 170e9,
        });
        let table = table(&roof, &[measured], 250_000_000);
        assert!(table.contains("avx2+fma: 30.0 GB/s read, 25.0 GB/s bf16 dot, 170 GFLOP/s"), "{table}");
        assert!(table.contains("50.0      20.0      21.0    2.00  2.00..3.00"), "{table}");
        assert!(table.contains("50 % of the bare dot's rate"), "{table}");
    }
}
