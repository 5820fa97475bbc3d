use std::{io::Write as _, time::Duration};

use clap::Parser as _;
use gqla_engine::cpu::{Pool, measure::AttentionCase};
use serde_json::Value;

use super::*;
use crate::bench::{HostReport, Layer, Processor};

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// What `gqla plan LINE -o json` prints.
fn json(line: &str) -> Value {
    let words = ["plan"].into_iter().chain(line.split_whitespace());
    let args = Line::try_parse_from(words).unwrap().args;
    let shape = model::resolve(&args.model).unwrap();
    let classes = gpu_classes::catalogue(args.classes.as_deref()).unwrap();
    let class = model::gpu_class(&classes.catalogue, &args.gpu).unwrap();
    let goal = args.goal(&shape, classes.costs.get(class.name()).copied());
    let calibration = args.calibration().unwrap();
    let decision = plan_calibrated(&shape, &class.spec, &goal, &args.constraints(), &calibration).unwrap();
    let view = PlanView::decided(&args, class, &goal, &decision);
    assert!(table(&view).contains(&decision.reason));
    serde_json::to_value(&view).unwrap()
}

fn ns(value: &Value) -> String {
    format!("{:.4}", value["chosen"]["attention_ns_per_token_layer"].as_f64().unwrap())
}

#[test]
fn the_object_has_the_fields_programs_rely_on() {
    let plan = json(
        "--model glm-4.7-flash-gqla --gpu h20 --runtime vllm --context 8192 --concurrency 16 --tp-max 4",
    );
    for field in ["model", "gpu", "candidates", "chosen", "margin"] {
        assert!(!plan[field].is_null(), "{field} is not in {plan}");
    }
    let fields = [
        "path",
        "tp",
        "s_q",
        "batch",
        "context",
        "attention_ns_per_token_layer",
        "step_us",
        "tokens_per_second",
        "bytes_per_token_layer",
        "intensity",
        "bound",
        "kv_tokens_capacity",
        "feasible",
        "reason",
    ];
    for candidate in plan["candidates"].as_array().unwrap() {
        assert!(fields.iter().all(|field| !candidate[*field].is_null()), "{candidate}");
    }
    assert_eq!((plan["gpu"].as_str(), plan["chosen"]["batch"].as_u64()), (Some("H20"), Some(16)));
}

/// Rope per group, as the published table has it; shared, as the engine stores it.
#[test]
fn the_core_at_peak_is_the_published_arithmetic() {
    let core = |rest: &str| {
        let fixed = "--attention-only --efficiency peak --model deepseek-v3-gqla";
        ns(&json(&format!("{fixed} {rest}")))
    };
    assert_eq!(core("--gpu H20 --tp 1 --s-q 1 --path mqa-absorb"), "1.8819");
    assert_eq!(core("--gpu H20 --tp 1 --s-q 2 --path gqa"), "0.5535");
    assert_eq!(core("--gpu H20 --tp 1 --s-q 1 --path gqa --rope-layout per-group"), "1.2800");
    assert_eq!(core("--gpu H100 --tp 8 --s-q 1 --path gqa --rope-layout per-group"), "0.1910");
}

#[test]
fn the_fitted_core_follows_degree_and_card_beyond_what_fits_or_the_model_allows() {
    let path = |rest: &str| {
        let fixed =
            "--runtime vllm --attention-only --efficiency calibrated --s-q 1 --batch 64 --context 16384";
        json(&format!("{fixed} {rest}"))["chosen"]["path"].as_str().unwrap().to_owned()
    };
    assert_eq!(path("--model deepseek-v3-gqla --gpu H100 --tp 1"), "mqa-absorb");
    assert_eq!(path("--model deepseek-v3-gqla --gpu H100 --tp 8"), "gqa");
    assert_eq!(path("--model llama-3-8b-gqla --gpu gb200 --tp 1"), "mqa-absorb");
    assert_eq!(path("--model deepseek-v3-gqla --gpu rtx-pro-6000 --tp 1"), "gqa");
    assert_eq!(path("--model deepseek-v3-gqla --gpu a100 --tp 2"), "gqa");
}

/// The operator does not pad either.
#[test]
fn heads_are_padded_only_where_it_is_asked_for() {
    let most = |rest: &str| {
        let plan = json(&format!("--model glm-4.7-flash-gqla --gpu H20 {rest}"));
        plan["candidates"].as_array().unwrap().iter().filter_map(|one| one["tp"].as_u64()).max()
    };
    assert_eq!(most(""), Some(5));
    assert_eq!(most("--head-padding"), Some(8));
}

#[test]
fn what_is_no_choice_is_refused_with_the_choices() {
    let refusal = |line: &str| {
        let words = ["plan", "--model", "m", "--gpu", "g"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).err().unwrap().to_string()
    };
    assert!(refusal("--s-q 17").contains("expected auto or a number from 1 to 16"));
    assert!(refusal("--path both").contains("expected `mqa-absorb` or `gqa`, or auto"));
    assert!(refusal("--batch 0").contains("--batch"));
    assert!(refusal("--tp 0").contains("1..=1024"));
    assert!(refusal("--tp-max 4294967295").contains("1..=1024"));
    assert!(refusal("--kv-cache-dtype fp8").contains("expected f32, bf16 or int8"));
}

/// `gqla plan LINE` with a calibration in a file.
fn calibrated(line: &str, calibration: &str) -> Value {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(calibration.as_bytes()).unwrap();
    json(&format!("{line} --calibration {}", file.path().display()))
}

#[test]
fn a_calibration_made_by_hand_flips_a_plan() {
    let line = "--model deepseek-attention --gpu cpu --tp 1 --s-q 1";
    let built_in = json(line);
    assert_eq!(built_in["chosen"]["path"], "gqa");
    let by_hand = r#"{"devices": [{
        "gpu": "CPU", "flops_per_second": 1e15, "bytes_per_second": 1e12,
        "provenance": {"tool": "a pencil", "device": "a machine", "build": "0", "measured_at": "2026-01-02T03:04:05Z", "samples": 1}
    }]}"#;
    let flipped = calibrated(line, by_hand);
    assert_eq!(
        (&flipped["chosen"]["path"], &flipped["chosen"]["ridge"]),
        (&"mqa-absorb".into(), &1000.0_f64.into())
    );
}

#[test]
fn what_benchmarks_print_is_planned_with() {
    let line = "--model smollm2-135m-gqla --gpu cpu --s-q 1";
    let pool = Pool::new(Some(2)).unwrap();
    let time = Duration::from_millis(50);
    let host = HostReport::measure(&pool, 16 << 20, time).calibration().unwrap();
    let shape = model::resolve("smollm2-135m-gqla").unwrap().attention;
    let case = AttentionCase { batch: 1, context: 64, query_tokens: 1 };
    let place = Processor::measure(pool, 16 << 20, time);
    let layer = Layer { model: "smollm2-135m-gqla", shape: &shape, cases: &[case], memory: 16 << 20 };
    let attention = layer.measure(&place, time).unwrap().calibration().unwrap();
    for calibration in [&host, &attention] {
        let plan = calibrated(line, &serde_json::to_string(calibration).unwrap());
        let first = &calibration.devices[0];
        let measured = first.flops_per_second / first.bytes_per_second;
        let ridge = plan["chosen"]["ridge"].as_f64().unwrap();
        assert!((ridge / measured - 1.0).abs() < 1e-9, "{ridge} {measured}");
    }
    let plan = calibrated(line, &serde_json::to_string(&attention).unwrap());
    let basis = plan["basis"].as_str().unwrap();
    assert!(basis.starts_with("measured by gqla bench attn on smollm2-135m-gqla with "), "{basis}");
}

#[test]
fn an_impossible_goal_is_told_by_its_flag() {
    let refusal = |line: &str| {
        let words =
            ["plan", "--model", "llama-3-8b-gqla", "--gpu", "h20"].into_iter().chain(line.split_whitespace());
        run(&Line::try_parse_from(words).unwrap().args).unwrap_err().to_string()
    };
    for (line, sentence) in [
        ("--context 0", "--context is 0, expected at least 1"),
        ("--concurrency 0", "--concurrency is 0, expected at least 1"),
        ("--acceptance 1.5", "--acceptance is 1.5, expected a number from 0 to 1"),
        ("--prompt-tokens 9 --context 8", "--prompt-tokens is 9, expected at most --context"),
        ("--output-tokens 0", "--output-tokens is 0, expected at least 1"),
        (
            "--max-time-per-output-token -1",
            "--max-time-per-output-token is -1, expected a finite number above 0",
        ),
        ("--cost-per-gpu-hour 0", "--cost-per-gpu-hour is 0, expected a finite number above 0"),
    ] {
        assert_eq!(refusal(&line.replace(" -1", "=-1")), sentence);
    }
}

#[test]
fn a_gpu_class_overrides_and_extends_the_catalogue() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let class = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: gqla.dev/v1alpha1\nkind: GPUClass\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
        )
    };
    let own = class("x9", "memoryBandwidthGBps: 1000, bf16TFLOPS: 100, memoryGiB: 80, costPerGpuHour: 2");
    file.write_all((class("h20", "memoryBandwidthGBps: 2000") + &own).as_bytes()).unwrap();
    let plan = |gpu: &str| {
        json(&format!("--model llama-3-8b-gqla --gpu {gpu} --tp 1 --classes {}", file.path().display()))
    };
    assert_eq!((&plan("H20")["chosen"]["ridge"], &plan("H20")["gpu"]), (&74.0.into(), &"H20".into()));
    assert!(plan("H20")["chosen"]["cost_per_million_tokens"].is_null());
    assert_eq!(plan("X9")["chosen"]["ridge"], 100.0);
    assert!(plan("X9")["chosen"]["cost_per_million_tokens"].as_f64().is_some_and(|cost| cost > 0.0));
}

/// A CPU's cache is counted in f32, as gqla-server stores it; published comparisons of the core are in bf16.
#[test]
fn a_cache_is_counted_as_it_is_stored() {
    let bytes = |line: &str| {
        let plan = json(&format!("--model smollm2-135m-gqla --tp 1 --path mqa-absorb --s-q 1 {line}"));
        plan["chosen"]["bytes_per_token_layer"].as_u64().unwrap()
    };
    for (line, expected) in [
        ("--gpu cpu", 1536),
        ("--gpu cpu --kv-cache-dtype bf16", 768),
        ("--gpu cpu --kv-cache-dtype int8", 384 + 2 * 4),
        ("--gpu cpu --attention-only", 768),
        ("--gpu h20", 768),
        ("--gpu h20 --kv-cache-dtype f32", 1536),
    ] {
        assert_eq!(bytes(line), expected, "{line}");
    }
}
