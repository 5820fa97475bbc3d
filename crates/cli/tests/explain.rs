//! `gqla explain` as a user runs it: what it prints, where, and how it exits.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const NODES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/nodes.json");
const DEEPSEEK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/samples/deepseek-attention.yaml");
const SMOLLM2: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/samples/smollm2.yaml");

fn explain(file: &str, rest: &[&str]) -> Output {
    let fixed = ["explain", "-f", file, "--nodes", NODES];
    Command::new(env!("CARGO_BIN_EXE_gqla")).args(fixed).args(rest).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn written(folder: &Path, name: &str, text: &str) -> String {
    let file = folder.join(name);
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn the_sample_takes_two_paths_and_every_other_node_is_told_why() {
    let output = explain(DEEPSEEK, &["-o", "json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let deployment = &told["deployments"][0];
    assert_eq!(
        (deployment["name"].as_str(), deployment["namespace"].as_str()),
        (Some("deepseek-attention"), Some("default"))
    );
    let [h100, h20] = deployment["pools"].as_array().unwrap().as_slice() else { panic!("{told}") };
    let chosen = |pool: &Value| {
        let chosen = &pool["decision"]["chosen"];
        (chosen["path"].as_str().unwrap().to_owned(), chosen["tp"].as_u64(), chosen["s_q"].as_u64())
    };
    assert_eq!(chosen(h100), ("mqa-absorb".to_owned(), Some(1), Some(2)));
    assert_eq!(chosen(h20), ("gqa".to_owned(), Some(1), Some(2)));
    assert_eq!((h20["nodes"].as_u64(), h20["gpus"].as_u64()), (Some(1), Some(8)));
    let nodes = deployment["nodes"].as_array().unwrap();
    let told = |name: &str| {
        let node = nodes.iter().find(|node| node["node"] == name).unwrap();
        (node["used"].as_bool().unwrap(), node["why"].as_str().unwrap())
    };
    for (node, used, words) in [
        ("h100-a", true, "pool h100 counts on it"),
        ("h20-a", true, "pool h20 counts on it"),
        ("mixed-a", false, "several kinds of GPU"),
        (
            "research-a",
            false,
            "its taint team=research:NoSchedule is not tolerated by podTemplate.tolerations",
        ),
        ("cordoned-a", false, "it is cordoned"),
        ("cpu-a", false, "only runtime.device: CPU uses such nodes"),
    ] {
        let (is_used, why) = told(node);
        assert!(is_used == used && why.contains(words), "{node}: {is_used}, {why}");
    }
}

#[test]
fn people_are_told_in_a_table() {
    let output = explain(DEEPSEEK, &["-o", "table"]);
    let table = text(&output.stdout);
    for words in [
        "GQLADeployment default/deepseek-attention",
        "pool h20: GQA at TP 1 with 1 drafted token on H20 yields",
        "MQAAbsorb at TP 1",
        "lost:",
        "not used: node research-a (H20): its taint team=research:NoSchedule",
    ] {
        assert!(table.contains(words), "{words} is not in\n{table}");
    }
}

#[test]
fn what_would_not_be_planned_is_printed_and_fails() {
    let scratch = tempfile::tempdir().unwrap();
    let sample = fs::read_to_string(DEEPSEEK).unwrap();
    let degree = sample.replace("  replicas: 2", "  decode: {path: GQA, tensorParallel: 3}\n  replicas: 2");
    let class = sample.replace(
        "  placement:\n    strategy: Spread",
        "  pools: [{name: a, gpuClass: A100}, {name: b, gpuClass: H20}]",
    );
    for (name, text_of, words) in [
        ("degree.yaml", &degree, "8 mod 3 = 2"),
        ("class.yaml", &class, "pool a: no schedulable node of class A100"),
    ] {
        let output = explain(&written(scratch.path(), name, text_of), &["-o", "json"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
        assert!(text(&output.stdout).contains(words), "{}", text(&output.stdout));
        assert!(
            text(&output.stderr).starts_with("error: 1 of 1 GQLADeployments"),
            "{}",
            text(&output.stderr)
        );
    }
    let both = explain(&written(scratch.path(), "both.yaml", &format!("{sample}---\n{degree}")), &[]);
    assert!(text(&both.stderr).starts_with("error: 1 of 2 GQLADeployments"), "{}", text(&both.stderr));
}

#[test]
fn a_shape_in_the_files_can_be_given() {
    let unknown = explain(SMOLLM2, &["-o", "table"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown.stdout).contains("the operator's inspect Job reads the shape"),
        "{}",
        text(&unknown.stdout)
    );
    let known = explain(SMOLLM2, &["--model", "smollm2-135m-gqla", "-o", "table"]);
    assert!(known.status.success(), "{}", text(&known.stderr));
    assert!(text(&known.stdout).contains("on CPU"), "{}", text(&known.stdout));
}

#[test]
fn a_calibration_flips_the_decision_of_its_build() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |build: &str| {
        let calibration = format!(
            r#"{{"kernels": [{{"gpu": "H20", "runtime": "native", "build": "{build}", "path": "GQA", "floor_us": 50, "bandwidth": 0.1,
            "arithmetic": 0.1, "tile_rows": 64, "provenance": {{"tool": "timer", "device": "NVIDIA H20", "build": "sm_90a",
            "measured_at": "2026-01-02T03:04:05Z", "samples": 30}}}}]}}"#
        );
        let file = written(scratch.path(), "calibration.json", &calibration);
        let output = explain(DEEPSEEK, &["--calibration", &file, "-o", "json"]);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let pool = &told["deployments"][0]["pools"][1];
        (
            pool["path"].as_str().unwrap().to_owned(),
            pool["note"].as_str().unwrap().contains("calibrated: measured by timer"),
        )
    };
    assert_eq!(path(env!("CARGO_PKG_VERSION")), ("MQAAbsorb".to_owned(), true));
    assert_eq!(path("another"), ("GQA".to_owned(), false));
    let bad = explain(DEEPSEEK, &["--calibration", DEEPSEEK]);
    assert!(text(&bad.stderr).contains("is no calibration: expected a JSON object"), "{}", text(&bad.stderr));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let broken = written(scratch.path(), "broken.json", "{\"kind\": ");
    let missing = explain("/nowhere/cr.yaml", &[]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        text(&missing.stderr).starts_with("error: cannot read `/nowhere/cr.yaml`: "),
        "{}",
        text(&missing.stderr)
    );
    let malformed = text(&explain(&broken, &[]).stderr);
    assert!(
        malformed.contains("broken.json`: it is not the JSON that `kubectl get -o json` prints"),
        "{malformed}"
    );
    let swapped = text(&explain(NODES, &[]).stderr);
    assert!(swapped.contains("expected a GQLADeployment, got Node"), "{swapped}");
    let help = Command::new(env!("CARGO_BIN_EXE_gqla")).args(["explain", "--help"]).output().unwrap();
    assert!(text(&help.stdout).contains("Exit codes: 0 when every pool"), "{}", text(&help.stdout));
    let arguments = Command::new(env!("CARGO_BIN_EXE_gqla")).arg("explain").output().unwrap();
    assert_eq!(arguments.status.code(), Some(2));
}

/// `gqla … | head` is no failure, whatever the format.
#[test]
fn a_reader_that_left_is_no_failure() {
    for format in ["json", "table"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let fixed = ["explain", "-f", DEEPSEEK, "--nodes", NODES, "-o", format];
        let output = Command::new(env!("CARGO_BIN_EXE_gqla")).args(fixed).stdout(writer).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{format}: {}", text(&output.stderr));
    }
}
