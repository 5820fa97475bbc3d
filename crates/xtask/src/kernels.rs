//! The CUDA kernels' images, and `cargo xtask kernels`: what they take, counted by the stand-in for libcuda, as the
//! baseline that tests hold them to.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    binaries::target_dir,
    fingerprint, nvrtc,
    shell::{cache_dir, capture, cargo, repo_root, run, step},
};

const BASELINE: &str = "crates/kernels/baseline.json";
/// Cards whose memory per block the counted kernels are planned for, and what is counted on them: everything, and what
/// less memory makes different where heads are widest.
const COUNTED: [(&str, [&str; 2]); 2] =
    [("H20", ["--arch", ARCHITECTURES]), ("A100,L40S", ["--model", "glm-4.7-flash-gqla"])];

/// Those whose registers and spills are in the baseline: what images are made for.
const ARCHITECTURES: &str = "sm_80,sm_89,sm_90,sm_100,sm_120";

/// What decides the images, besides NVRTC: texts, how they are compiled, and the built-in shapes.
const SOURCES: [&str; 3] = ["crates/kernels/cuda", "crates/kernels/src/device", "crates/planner/src"];

/// The folder of the images of all built-in shapes, compiled by `gqla` unless they are in the cache.
pub fn images(gqla: &Path) -> Result<PathBuf> {
    compiled(gqla, "Compile images of the CUDA kernels", &SOURCES, &[])
}

/// The folder of the images for a model of this repository, compiled likewise: PTX, and machine code that nothing in tests
/// executes, but which is there to be refused.
pub fn images_of(gqla: &Path, model: &str) -> Result<PathBuf> {
    let title = format!("Compile images of the CUDA kernels of {model}");
    let path = repo_root()?.join(model);
    let path = path.to_str().context("the checkout's path is not UTF-8")?;
    compiled(gqla, &title, &[&SOURCES[..], &[model]].concat(), &["--arch", "sm_90", "--model", path])
}

/// A folder in the cache, named by the files that decide what is in it.
fn compiled(gqla: &Path, title: &str, sources: &[&str], arguments: &[&str]) -> Result<PathBuf> {
    let cache = cache_dir()?.join("kernel-images");
    let folder = cache.join(format!("{}-{}", fingerprint::of(sources)?, nvrtc::WHEEL));
    if !folder.is_dir() {
        let nvrtc = nvrtc::installed()?;
        step(title, || {
            let partial = folder.with_extension(format!("partial-{}", std::process::id()));
            let mut command = Command::new(gqla);
            command.args(["kernels", "build", "--out"]).arg(&partial).args(arguments);
            capture(command.env("LD_LIBRARY_PATH", &nvrtc))?;
            // Another run may have been faster; its images are the same.
            if fs::rename(&partial, &folder).is_err() {
                fs::remove_dir_all(&partial)?;
            }
            Ok(())
        })?;
    }
    Ok(folder)
}

/// Writes the baseline anew.
pub fn write_baseline() -> Result<()> {
    let nvrtc = nvrtc::installed()?;
    step("Build gqla and the stand-in for libcuda", || {
        run(cargo()?.args(["build", "--locked", "-p", "gqla-cli", "-p", "gqla-fakecuda"]))
    })?;
    let (built, folder) = (target_dir()?.join("debug"), tempfile::tempdir()?);
    fs::copy(built.join("libgqla_fakecuda.so"), folder.path().join("libcuda.so.1"))
        .context("cargo built no libgqla_fakecuda.so")?;
    let reports = step("Count", || {
        COUNTED
            .iter()
            .map(|(cards, arguments)| {
                let report = capture(
                    Command::new(built.join("gqla"))
                        .args(["kernels", "report", "-o", "json"])
                        .args(arguments)
                        .env("LD_LIBRARY_PATH", format!("{}:{}", folder.path().display(), nvrtc.display()))
                        .env("GQLA_FAKECUDA_DEVICES", cards)
                        .env("GQLA_FAKECUDA_REPORT", folder.path().join("launches.jsonl")),
                )?;
                Ok(serde_json::from_str(&report)?)
            })
            .collect::<Result<Vec<Value>>>()
    })?;
    let path = repo_root()?.join(BASELINE);
    fs::write(&path, one_kernel_a_line(&reports)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote {BASELINE}");
    Ok(())
}

/// The reports as one, so that a changed kernel is a changed line.
fn one_kernel_a_line(reports: &[Value]) -> Result<String> {
    let mut lines = Vec::new();
    for report in reports {
        let kernels = report["kernels"].as_array().context("the report has no kernels")?;
        for kernel in kernels {
            lines.push(serde_json::to_string(kernel)?);
        }
    }
    Ok(format!("{{\"kernels\": [\n{}\n]}}\n", lines.join(",\n")))
}
