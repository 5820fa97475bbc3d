use std::{io::Write as _, time::Duration};

use clap::Parser as _;
use gqla_engine::cpu::{Pool, measure::AttentionCase};
use serde_json::Value;

use super::*;
use crate::bench::{AttentionBench, HostReport};

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// What `gqla plan LINE -o json` prints.
fn json(line: &str) -> Value {
    let words = ["plan"].into_iter().chain(line.split_whitespace());
    let args = Line::try_parse_from(words).unwrap().args;
    let (shape, catalogue) = (model::resolve(&args.model).unwrap(), Catalogue::builtin());
    let class = model::gpu_class(&catalogue, &args.gpu).unwrap();
    let goal = args.goal(&shape);
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
    let bench = AttentionBench::measure(&pool, "smollm2-135m-gqla", &shape, &[case], 16 << 20, time).unwrap();
    let attention = bench.calibration().unwrap();
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
