use clap::Parser as _;
use serde_json::Value;

use super::*;

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
