//! The `gqla` binary itself, held to independent figures: what a user types and what it prints.
//!
//! `cargo xtask test` names the release binary in `GQLA_TEST_BIN`, the published model in `GQLA_TEST_MODEL_DIR`, its
//! conversion in `GQLA_TEST_GQLA_DIR` and text that took no part in it in `GQLA_TEST_EVAL_TEXT`; without them the tests
//! fail, because passing would claim something nobody checked.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use safetensors::SafeTensors;
use serde_json::Value;

/// Of the exactly dequantised model in f32, by an independent implementation.
const PUBLISHED_PERPLEXITY: f64 = 31.21;
/// Of the conversion at rope 64, rank 320, by the method's reference code.
const CONVERTED_PERPLEXITY: f64 = 34.13;

fn setting(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `cargo xtask test`, which sets it"))
}

/// What `gqla` prints; fails with its complaint when it refuses.
fn gqla(arguments: &[&str]) -> String {
    let output = Command::new(setting("GQLA_TEST_BIN")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&gqla(arguments)).unwrap()
}

fn perplexity(model: &str, path: Option<&str>) -> f64 {
    let text = setting("GQLA_TEST_EVAL_TEXT");
    let mut arguments = vec!["eval", "ppl", "--model", model, "--text", &text, "-o", "json"];
    arguments.extend(path.map(|path| ["--path", path]).iter().flatten());
    let result = json(&arguments);
    assert_eq!(result["windows"], 27, "{result}");
    result["ppl"].as_f64().unwrap()
}

#[test]
fn perplexity_before_conversion_is_the_independent_figure() {
    let measured = perplexity(&setting("GQLA_TEST_MODEL_DIR"), None);
    assert!((measured - PUBLISHED_PERPLEXITY).abs() <= 0.05, "measured {measured}");
}

#[test]
fn perplexity_after_conversion_is_the_references_on_both_paths() {
    let converted = setting("GQLA_TEST_GQLA_DIR");
    let [gqa, absorb] = ["gqa", "mqa-absorb"].map(|path| perplexity(&converted, Some(path)));
    assert!(gqa <= CONVERTED_PERPLEXITY * 1.01, "measured {gqa}");
    assert!((gqa - absorb).abs() <= 1e-3 * gqa, "gqa {gqa}, mqa-absorb {absorb}");
}

#[test]
fn logits_on_both_paths_are_the_golden_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama_a/llama_gqla_a");
    let golden = fs::read(folder.join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let ids: Vec<String> = words(golden.tensor("ids_2").unwrap().data())
        .map(|word| i32::from_le_bytes(word).to_string())
        .collect();
    let expected: Vec<f32> = floats(golden.tensor("logits_2").unwrap().data());
    let scale = expected.iter().fold(0.0_f32, |most, logit| most.max(logit.abs()));
    let scratch = tempfile::tempdir().unwrap();
    for path in ["gqa", "mqa-absorb"] {
        let out: PathBuf = scratch.path().join(path);
        let out = out.to_str().unwrap();
        gqla(&[
            "logits",
            "--model",
            folder.to_str().unwrap(),
            "--ids",
            &ids.join(","),
            "--path",
            path,
            "--out",
            out,
        ]);
        let written = fs::read(out).unwrap();
        let written = SafeTensors::deserialize(&written).unwrap();
        let logits = written.tensor("logits").unwrap();
        assert_eq!(logits.shape(), [130, 512]);
        let off =
            floats(logits.data()).iter().zip(&expected).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off <= 1e-4 * scale, "{path}: off by {off}, largest logit {scale}");
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.as_chunks::<4>().0.iter().copied()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    words(bytes).map(f32::from_le_bytes).collect()
}

#[test]
fn the_papers_figures_come_from_the_formulas() {
    let table = gqla(&["roofline", "--paper", "-o", "table"]);
    for figure in ["28.125 %", "3.40x", "0.344", "0.282", "1.261", "0.630", "1.882", "1.056", "0.5535"] {
        assert!(table.contains(figure), "{figure} is not in\n{table}");
    }
}

#[test]
fn the_plan_follows_the_shape_and_refuses_what_does_not_fit() {
    let path = |model: &str, gpu: &str| {
        let plan = json(&["plan", "--model", model, "--gpu", gpu, "--tp", "1", "-o", "json"]);
        plan["chosen"]["path"].as_str().unwrap().to_owned()
    };
    assert_eq!(path("deepseek-attention", "h100"), "mqa-absorb");
    assert_eq!(path("deepseek-attention", "h20"), "gqa");
    assert_eq!(path("glm-4.7-flash-gqla", "H20"), "mqa-absorb");
    let plan = ["plan", "--model", "deepseek-v3-gqla", "--gpu", "h100", "--tp-max", "8", "-o", "json"];
    let refused = Command::new(setting("GQLA_TEST_BIN")).args(plan).output().unwrap();
    assert!(!refused.status.success(), "671e9 parameters in bf16 do not fit 8 x 80 GB");
    let sentence = String::from_utf8(refused.stderr).unwrap();
    assert!(sentence.contains("1249.8 GiB") && sentence.contains("GiB short"), "{sentence}");
    let table: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert!(table["chosen"].is_null(), "{table}");
}
