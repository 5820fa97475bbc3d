//! `cargo xtask test`: everything CI runs, in the order that fails fastest.

use anyhow::Result;
use gqla_testkit::tools::Tools;

use crate::{
    binaries, demo_model, e2e, lint, nvrtc, progress,
    shell::{cargo, run, step},
};

/// Runs all of it; the first failure ends the run.
pub fn run_all() -> Result<()> {
    Tools::obtain(&progress::bars())?;
    lint::run(&lint::Args::default())?;
    let binaries = binaries::build()?;
    let model = demo_model::prepare(&binaries.gqla)?;
    let nvrtc = nvrtc::installed()?;
    step("Unit, property, golden, recording-server and API-server tests", || {
        run(cargo()?
            .args(["test", "--workspace", "--locked", "--quiet", "--no-fail-fast"])
            .env("GQLA_TEST_BIN", &binaries.gqla)
            .env("GQLA_TEST_MODEL_DIR", &model.source)
            .env("GQLA_TEST_GQLA_DIR", &model.converted)
            .env("GQLA_TEST_EVAL_TEXT", &model.eval_text)
            .env("GQLA_TEST_NVRTC", &nvrtc)
            .env("GQLA_TEST_NVML", &binaries.stand_ins.nvml)
            .env("GQLA_TEST_CUDA", &binaries.stand_ins.cuda)
            .env("GQLA_TEST_DEVICE_PLUGIN", &binaries.stand_ins.device_plugin))
    })?;
    for isa in lesser_instruction_sets() {
        step(&format!("Kernel and engine tests on {isa}"), || {
            let tests = ["--lib", "--test", "golden", "-p", "gqla-kernels", "-p", "gqla-engine"];
            let test = ["test", "--locked", "--quiet"];
            // PTX does not care what the processor has, nor do weights, choices and norms that the device is held to there: those
            // have tests of their own on every set.
            let skipped = ["--", "--skip", "cuda::"];
            run(cargo()?.args(test).args(tests).args(skipped).env("GQLA_INSTRUCTION_SET", isa))
        })?;
    }
    e2e::run(&e2e::Args::default())
}

/// What other machines have: the whole suite runs on the best set of this one.
fn lesser_instruction_sets() -> &'static [&'static str] {
    if has_avx512() { &["avx2+fma", "portable"] } else { &["portable"] }
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}
