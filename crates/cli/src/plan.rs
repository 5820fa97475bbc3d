//! `gqla plan`: what the operator would decide for a model on a GPU class, without a cluster or a GPU.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use clap::ValueEnum;
use gqla_model::{DecodePath, ModelShape};
use gqla_planner::{
    Calibration, Candidate, Catalogue, Confidence, Constraints, Decision, Efficiency, Goal, GpuClass,
    Objective, PlanError, RopeLayout, Runtime, Scope, plan_calibrated,
};
use serde::Serialize;

use crate::{
    model,
    table::{TableFormat, columns, emphasised},
};

/// Choose decode path, tensor parallelism, drafts and batch for a model on a GPU class.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A built-in shape such as deepseek-v3-gqla, a checkpoint, or its config.json
    #[arg(long, value_name = "SHAPE|PATH")]
    model: String,
    /// GPU class such as H20, in any case
    #[arg(long, value_name = "CLASS")]
    gpu: String,
    /// The engine whose kernels are priced
    #[arg(long, value_enum, default_value_t)]
    runtime: RuntimeArg,
    /// Tensor-parallel degree; searched if absent
    #[arg(long, value_name = "N", conflicts_with = "tp_max")]
    tp: Option<u32>,
    /// Largest tensor-parallel degree to search
    #[arg(long, value_name = "N", default_value_t = 8)]
    tp_max: u32,
    /// Query tokens per pass: 1 plus the drafted tokens, 1 to 16
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = query_tokens)]
    s_q: Auto<u32>,
    /// Decode path
    #[arg(long, value_name = "PATH|auto", default_value = "auto", value_parser = decode_path)]
    path: Auto<DecodePath>,
    /// What to optimise
    #[arg(long, value_enum, default_value_t)]
    objective: ObjectiveArg,
    /// Compare only the attention core: ignore weights, cache size and whether the model has layers to draft with
    #[arg(long)]
    attention_only: bool,
    /// Peak rates of the data sheet, or what kernels reach
    #[arg(long, value_enum, default_value_t)]
    efficiency: EfficiencyArg,
    /// How the GQA path stores its rotary key
    #[arg(long, value_enum, default_value_t)]
    rope_layout: RopeLayoutArg,
    /// Never pad groups with idle heads where a degree does not divide the heads
    #[arg(long)]
    no_head_padding: bool,
    /// Context length to plan for, in tokens [default: 4096, or the model's longest if shorter]
    #[arg(long, value_name = "TOKENS")]
    context: Option<u32>,
    /// Sequences that want to be decoded at once
    #[arg(long, value_name = "N", default_value_t = Goal::default().concurrency)]
    concurrency: u32,
    /// Sequences per step [default: what fits of the concurrency]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Chance that a drafted token is accepted
    #[arg(long, value_name = "SHARE", default_value_t = Goal::default().acceptance)]
    acceptance: f64,
    /// Prompt tokens of a request; 0 plans for decoding alone
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    prompt_tokens: u32,
    /// Tokens a request is answered with
    #[arg(long, value_name = "TOKENS", default_value_t = Goal::default().output_tokens)]
    output_tokens: u32,
    /// Longest time per output token, in milliseconds
    #[arg(long, value_name = "MS")]
    max_time_per_output_token: Option<f64>,
    /// Longest time to the first token, in milliseconds
    #[arg(long, value_name = "MS")]
    max_time_to_first_token: Option<f64>,
    /// What one GPU costs per hour, in any currency
    #[arg(long, value_name = "COST")]
    cost_per_gpu_hour: Option<f64>,
    /// Measurements that replace the built-in figures, as JSON
    #[arg(long, value_name = "FILE")]
    calibration: Option<std::path::PathBuf>,
    /// Output format [default: table on a terminal, else json]
    #[arg(short, long, value_enum)]
    output: Option<TableFormat>,
}

/// A choice, or `None` to leave it to the planner.
#[derive(Clone, Copy, Debug)]
struct Auto<T>(Option<T>);

fn query_tokens(text: &str) -> Result<Auto<u32>, String> {
    let expected = || format!("expected auto or a number from 1 to 16, got `{text}`");
    match text {
        "auto" => Ok(Auto(None)),
        number => match number.parse() {
            Ok(count @ 1..=16) => Ok(Auto(Some(count))),
            _ => Err(expected()),
        },
    }
}

fn decode_path(text: &str) -> Result<Auto<DecodePath>, String> {
    match text {
        "auto" => Ok(Auto(None)),
        name => name.parse().map(|path| Auto(Some(path))).map_err(|error| format!("{error}, or auto")),
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ObjectiveArg {
    /// Most tokens per second and GPU
    #[default]
    Throughput,
    /// Least time per token of one stream
    Latency,
    /// Most tokens per unit of cost
    Cost,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum RuntimeArg {
    /// gqla-server
    #[default]
    Native,
    /// The best public kernels, whichever engine ships them
    Vllm,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum EfficiencyArg {
    /// Peak rates, no floors
    Peak,
    /// What kernels reach, floors, tiles and caches
    #[default]
    Calibrated,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum RopeLayoutArg {
    /// One copy for all groups
    #[default]
    Shared,
    /// A copy per group
    PerGroup,
}

/// Prints the plan. A model that cannot run is printed with its arithmetic and then an error.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let shape = model::resolve(&args.model)?;
    let catalogue = Catalogue::builtin();
    let class = model::gpu_class(&catalogue, &args.gpu)?;
    let goal = args.goal(&shape);
    let calibration = args.calibration()?;
    let format = TableFormat::or_default(args.output);
    match plan_calibrated(&shape, &class.spec, &goal, &args.constraints(), &calibration) {
        Ok(decision) => {
            let view = PlanView::decided(args, class, &goal, &decision);
            format.print(&view, table)?;
            Ok(())
        }
        Err(PlanError::NothingFeasible { gpu, reason, candidates }) => {
            let view = PlanView::refused(args, class, &goal, &candidates, &reason);
            format.print(&view, table)?;
            bail!("no way to run {} on {gpu}: {reason}", args.model)
        }
        Err(error) => Err(error.into()),
    }
}

impl Args {
    fn goal(&self, shape: &ModelShape) -> Goal {
        let default = Goal::default();
        let request =
            self.prompt_tokens.saturating_add(if self.prompt_tokens > 0 { self.output_tokens } else { 0 });
        let context_length = self
            .context
            .unwrap_or_else(|| default.context_length.min(shape.max_position_embeddings).max(request));
        Goal {
            objective: match self.objective {
                ObjectiveArg::Throughput => Objective::Throughput,
                ObjectiveArg::Latency => Objective::Latency,
                ObjectiveArg::Cost => Objective::Cost,
            },
            context_length,
            concurrency: self.concurrency,
            acceptance: self.acceptance,
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
            max_time_per_output_token_ms: self.max_time_per_output_token,
            max_time_to_first_token_ms: self.max_time_to_first_token,
            cost_per_gpu_hour: self.cost_per_gpu_hour,
            ..default
        }
    }

    fn constraints(&self) -> Constraints {
        Constraints {
            path: self.path.0,
            tensor_parallel: self.tp,
            max_tensor_parallel: self.tp_max,
            multi_token_prediction: self.s_q.0.map(|query_tokens| query_tokens - 1),
            batch: self.batch,
            scope: if self.attention_only { Scope::AttentionOnly } else { Scope::Deployment },
            runtime: match self.runtime {
                RuntimeArg::Native => Runtime::Native,
                RuntimeArg::Vllm => Runtime::Vllm,
            },
            efficiency: match self.efficiency {
                EfficiencyArg::Peak => Efficiency::Peak,
                EfficiencyArg::Calibrated => Efficiency::Calibrated,
            },
            rope_layout: match self.rope_layout {
                RopeLayoutArg::Shared => RopeLayout::Shared,
                RopeLayoutArg::PerGroup => RopeLayout::PerGroup,
            },
            head_padding: !self.no_head_padding,
        }
    }

    fn calibration(&self) -> anyhow::Result<Calibration> {
        let Some(file) = &self.calibration else { return Ok(Calibration::default()) };
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no calibration", file.display()))
    }

    /// What the times and rates do and do not contain.
    fn scope(&self) -> String {
        let extent = if self.attention_only { "attention core only" } else { "whole step" };
        let rates = match self.efficiency {
            EfficiencyArg::Peak => "peak rates: an upper bound for comparing candidates",
            EfficiencyArg::Calibrated => "rates kernels reach",
        };
        format!("modelled, {extent}, {rates}")
    }
}

/// The JSON form of a plan. Field names are an interface.
#[derive(Serialize)]
struct PlanView<'a> {
    model: &'a str,
    gpu: &'a str,
    gpu_source: &'a str,
    gpu_confidence: &'static str,
    runtime: &'static str,
    scope: String,
    /// Where the attention kernels' figures come from.
    basis: Option<&'a str>,
    candidates: Vec<CandidateView<'a>>,
    chosen: Option<CandidateView<'a>>,
    runner_up: Option<CandidateView<'a>>,
    margin: Option<f64>,
    close: Option<bool>,
    reason: &'a str,
}

#[derive(Serialize)]
struct CandidateView<'a> {
    path: &'static str,
    tp: u32,
    s_q: u32,
    batch: u32,
    context: u32,
    padded_heads: u32,
    kernel: Option<&'a str>,
    attention_ns_per_token_layer: f64,
    step_us: f64,
    step_parts_us: BTreeMap<&'static str, f64>,
    tokens_per_second: f64,
    tokens_per_second_per_gpu: f64,
    time_per_output_token_ms: f64,
    time_to_first_token_ms: Option<f64>,
    cost_per_million_tokens: Option<f64>,
    bytes_per_token_layer: u64,
    flops_per_token_layer: u64,
    intensity: f64,
    ridge: f64,
    bound: &'static str,
    kv_tokens_capacity: u64,
    feasible: bool,
    reason: &'a str,
}

impl<'a> PlanView<'a> {
    fn decided(args: &'a Args, class: &'a GpuClass, goal: &Goal, decision: &'a Decision) -> Self {
        let view = |candidate: &'a Candidate| CandidateView::new(candidate, goal);
        Self {
            chosen: Some(view(&decision.chosen)),
            runner_up: decision.runner_up.as_ref().map(view),
            margin: decision.runner_up.as_ref().map(|_| decision.margin),
            close: decision.runner_up.as_ref().map(|_| decision.is_close()),
            basis: Some(&decision.basis),
            ..Self::refused(args, class, goal, &decision.candidates, &decision.reason)
        }
    }

    fn refused(
        args: &'a Args,
        class: &'a GpuClass,
        goal: &Goal,
        candidates: &'a [Candidate],
        reason: &'a str,
    ) -> Self {
        Self {
            model: &args.model,
            gpu: class.name(),
            gpu_source: &class.source,
            gpu_confidence: match class.confidence {
                Confidence::High => "high",
                Confidence::Low => "low",
            },
            runtime: args.constraints().runtime.name(),
            scope: args.scope(),
            basis: None,
            candidates: candidates.iter().map(|candidate| CandidateView::new(candidate, goal)).collect(),
            chosen: None,
            runner_up: None,
            margin: None,
            close: None,
            reason,
        }
    }
}

impl<'a> CandidateView<'a> {
    fn new(candidate: &'a Candidate, goal: &Goal) -> Self {
        Self {
            path: candidate.path.flag(),
            tp: candidate.tensor_parallel,
            s_q: candidate.query_tokens(),
            batch: candidate.batch,
            context: goal.context_length,
            padded_heads: candidate.padded_heads,
            kernel: candidate.kernel.as_deref(),
            attention_ns_per_token_layer: candidate.attention_ns_per_query_token,
            step_us: candidate.step.total_us(),
            step_parts_us: candidate.step.parts().into_iter().filter(|(_, us)| *us > 0.0).collect(),
            tokens_per_second: candidate.tokens_per_second,
            tokens_per_second_per_gpu: candidate.tokens_per_second_per_gpu(),
            time_per_output_token_ms: candidate.time_per_output_token_ms,
            time_to_first_token_ms: (goal.prompt_tokens > 0).then_some(candidate.time_to_first_token_ms),
            cost_per_million_tokens: candidate.cost_per_million_tokens,
            bytes_per_token_layer: candidate.bytes_per_token_layer,
            flops_per_token_layer: candidate.flops_per_token_layer,
            intensity: candidate.intensity,
            ridge: candidate.ridge,
            bound: candidate.bound.name(),
            kv_tokens_capacity: candidate.kv_capacity_tokens,
            feasible: candidate.feasible,
            reason: &candidate.reason,
        }
    }
}

fn table(view: &PlanView<'_>) -> String {
    let header = [
        "path",
        "tp",
        "s_q",
        "batch",
        "ns/token·layer",
        "B/token·layer",
        "FLOP/B",
        "bound",
        "step ms",
        "tokens/s·GPU",
        "KV tokens",
        "runs",
    ];
    let rows: Vec<_> = view.candidates.iter().map(row).collect();
    let text = columns(header, &rows);
    // The first line is the header, and the best candidate that runs comes first.
    let lines = text.lines().enumerate().map(|(index, line)| match index.checked_sub(1) {
        Some(0) if view.chosen.is_some() => emphasised(line, true),
        Some(index) if !view.candidates[index].feasible => emphasised(line, false),
        _ => line.to_owned(),
    });
    let body: String = lines.map(|line| line + "\n").collect();
    let verdict = if view.chosen.is_some() { "chosen" } else { "refused" };
    let basis = view.basis.map_or(String::new(), |basis| format!("; attention kernels {basis}"));
    let caution = match view.gpu_confidence {
        "low" => format!("caution: {}'s numbers are uncertain: {}\n", view.gpu, view.gpu_source),
        _ => String::new(),
    };
    format!("{body}\n{verdict}: {}\n{caution}({}{basis})\n", view.reason, view.scope)
}

fn row(candidate: &CandidateView<'_>) -> [String; 12] {
    [
        candidate.path.to_owned(),
        candidate.tp.to_string(),
        candidate.s_q.to_string(),
        candidate.batch.to_string(),
        format!("{:.4}", candidate.attention_ns_per_token_layer),
        candidate.bytes_per_token_layer.to_string(),
        format!("{:.1}", candidate.intensity),
        candidate.bound.to_owned(),
        format!("{:.2}", candidate.step_us / 1e3),
        format!("{:.0}", candidate.tokens_per_second_per_gpu),
        candidate.kv_tokens_capacity.to_string(),
        if candidate.feasible { "yes" } else { "no" }.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
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
        let decision =
            plan_calibrated(&shape, &class.spec, &goal, &args.constraints(), &calibration).unwrap();
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
}
