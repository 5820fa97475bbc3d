//! `gqla bench live` as a user runs it: two pages of a pod's metrics become a calibration, and plans change by it.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const MODEL: &str = "llama-3-8b-gqla";
/// Of a pod that decodes 16 sequences for a minute; each has a prompt of 256 tokens and is answered with 1024.
const BATCH: f64 = 16.0;
const SECONDS: f64 = 60.0;
const PROMPT: f64 = 256.0;
const ANSWER: f64 = 1024.0;
const CONTEXT: &str = "768";

fn gqla(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gqla")).args(args).output().unwrap()
}

fn json(args: &[&str]) -> Value {
    let output = gqla(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A page after `seconds` of steps that take `step_ms`, by an engine that had counted `start` of everything.
fn page(folder: &Path, name: &str, start: f64, seconds: f64, step_ms: f64, path: Option<&str>) -> String {
    let decoded = seconds * 1e3 / step_ms * BATCH;
    let requests = decoded / (ANSWER - 1.0);
    let mut text = "# HELP vllm:prompt_tokens_total Prompt tokens billed.\n".to_owned();
    for (series, value) in [
        ("vllm:generation_tokens_total", decoded + requests),
        ("vllm:prompt_tokens_total", requests * PROMPT),
        ("vllm:time_to_first_token_seconds_count", requests),
        ("vllm:inter_token_latency_seconds_sum", seconds * BATCH),
        ("vllm:inter_token_latency_seconds_count", decoded),
        ("vllm:request_prompt_tokens_sum", requests * PROMPT),
        ("vllm:request_prompt_tokens_count", requests),
        ("vllm:request_generation_tokens_sum", requests * ANSWER),
        ("vllm:request_generation_tokens_count", requests),
    ] {
        text += &format!("{series}{{engine=\"0\",model_name=\"m\"}} {}\n", start + value);
    }
    if let Some(path) = path {
        text += &format!("gqla_generated_tokens_total{{engine=\"0\",path=\"{path}\"}} {}\n", start + decoded);
    }
    let file = folder.join(name);
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// The one candidate there is for the pod, with the device of `calibration`.
fn plan(runtime: &str, calibration: Option<&str>) -> Value {
    let mut args = vec!["plan", "--model", MODEL, "--gpu", "h20", "--tp", "1", "--path", "mqa-absorb"];
    args.extend(["--s-q", "1", "--batch", "16", "--context", CONTEXT, "--runtime", runtime, "-o", "json"]);
    args.extend(calibration.into_iter().flat_map(|file| ["--calibration", file]));
    json(&args)
}

fn step_ms(plan: &Value) -> f64 {
    plan["chosen"]["step_us"].as_f64().unwrap() / 1e3
}

#[test]
fn a_pod_s_pages_become_a_calibration_by_which_plans_take_as_long_as_the_pod() {
    let folder = tempfile::tempdir().unwrap();
    for (runtime, label) in [("native", Some("mqa_absorb")), ("vllm", None)] {
        let modelled = step_ms(&plan(runtime, None));
        let measured = modelled * 2.0;
        let before = page(folder.path(), "before", 1e4, 0.0, measured, label);
        let after = page(folder.path(), "after", 1e4, SECONDS, measured, label);
        let mut args = vec!["bench", "live", "--before", &before, "--after", &after, "--seconds", "60"];
        args.extend(["--model", MODEL, "--gpu", "h20"]);
        if label.is_none() {
            let refused = gqla(&args);
            let sentence = String::from_utf8(refused.stderr).unwrap();
            assert!(sentence.contains("do not name the decode path"), "{sentence}");
            args.extend(["--path", "mqa-absorb"]);
        }
        let calibration = json(&[&args[..], &["-o", "json"]].concat());
        let device = &calibration["devices"][0];
        assert_eq!(
            (device["gpu"].as_str(), device["provenance"]["device"].as_str()),
            (Some("H20"), Some("H20"))
        );
        assert_eq!(device["provenance"]["tool"], "gqla bench live on llama-3-8b-gqla");
        let file = folder.path().join("calibration.json");
        fs::write(&file, calibration.to_string()).unwrap();
        let planned = plan(runtime, file.to_str());
        let ratio = step_ms(&planned) / measured;
        assert!(
            (ratio - 1.0).abs() < 0.01,
            "{runtime}: {modelled} ms, measured {measured} ms, ratio {ratio}"
        );
        let table = gqla(&[&args[..], &["-o", "table"]].concat());
        let table = String::from_utf8(table.stdout).unwrap();
        assert!(table.contains("batch      16.00, modelled as 16"), "{table}");
        assert!(table.contains("context    768 tokens: prompts of 256 and half of 1024"), "{table}");
    }
}

#[test]
fn pages_that_do_not_tell_are_refused_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let before = page(folder.path(), "before", 0.0, 0.0, 10.0, Some("gqa"));
    let after = page(folder.path(), "after", 0.0, SECONDS, 10.0, Some("gqa"));
    let other = page(folder.path(), "other", 0.0, SECONDS, 10.0, Some("mqa_absorb"));
    let large = folder.path().join("large");
    fs::File::create(&large).unwrap().set_len((8 << 20) + 1).unwrap();
    let large = large.to_str().unwrap();
    for (before, after, seconds, more, words) in [
        (&*before, &*after, "0", &[][..], "the pages are 0 s apart"),
        (&before, &after, "-60", &[], "the pages are -60 s apart"),
        (&after, &before, "60", &[], "the pod restarted between the pages, or they are swapped"),
        (&before, &other, "60", &[], "the path was gqa and became mqa-absorb"),
        (&before, &after, "60", &["--path", "mqa-absorb"], "the pod says that it decodes along gqa"),
        (&before, large, "60", &[], "is larger than 8 MiB, which no page of metrics is"),
        (&before, "/dev/null", "60", &[], "there is no series vllm:generation_tokens_total"),
        (&before, &after, "60", &["--tp", "3"], "tensorParallel=3"),
    ] {
        let fixed = ["bench", "live", "--before", before, "--after", after, "--seconds", seconds];
        let output = gqla(&[&fixed[..], &["--model", MODEL, "--gpu", "H20"], more].concat());
        let sentence = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && sentence.contains(words), "{sentence}");
    }
}

/// Two pages as Python's prometheus_client writes them for vLLM: `_created` beside every counter and histogram, buckets,
/// infos with labels of their own, large numbers with exponents, and series of the interpreter.
#[test]
fn vllm_s_own_pages_are_read_as_they_are() {
    let fixture = |name: &str| format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    let (before, after) = (fixture("vllm-before.prom"), fixture("vllm-after.prom"));
    let mut args = vec!["bench", "live", "--before", &before, "--after", &after, "--seconds", "60"];
    args.extend(["--model", MODEL, "--gpu", "h20", "--path", "mqa-absorb"]);
    let table = gqla(&[&args[..], &["-o", "table"]].concat());
    let table = String::from_utf8(table.stdout).unwrap();
    // 4800 steps of 16 sequences in 60 s, and the first tokens of 75 answers, which prompts' steps made; prompts of 256 tokens,
    // answers of 1024.
    for words in [
        "vLLM on H20, mqa-absorb, tp=1, 60 s",
        "tokens     76800, 1281.2 per second",
        "per token  12.500 ms",
        "batch      16.00, modelled as 16",
        "context    768 tokens: prompts of 256 and half of 1024",
        "step       12.500 ms measured",
    ] {
        assert!(table.contains(words), "{words}: {table}");
    }
    let calibration = json(&[&args[..], &["-o", "json"]].concat());
    let provenance = &calibration["devices"][0]["provenance"];
    assert_eq!(
        (&provenance["build"], &provenance["samples"]),
        (&"vLLM, mqa-absorb, tp=1".into(), &76_800.into())
    );
}
