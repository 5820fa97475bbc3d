//! `gqla plan`: what the operator would decide for a model on a GPU class, without a cluster or a GPU.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;
use gqla_model::{DecodePath, ModelShape};
use gqla_planner::{
    Candidate, Catalogue, Confidence, Constraints, Decision, Goal, GpuClass, ModelName, Objective, PlanError,
    Scope, plan,
};
use gqla_weights::Checkpoint;
use serde::Serialize;

use crate::table::{TableFormat, columns};

/// Choose decode path, tensor parallelism and drafts for a model on a GPU class.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A built-in shape such as deepseek-v3-gqla, or a checkpoint directory
    #[arg(long, value_name = "SHAPE|DIR")]
    model: String,
    /// GPU class such as H20, in any case
    #[arg(long, value_name = "CLASS")]
    gpu: String,
    /// Tensor-parallel degree; searched if absent
    #[arg(long, value_name = "N", conflicts_with = "tp_max")]
    tp: Option<u32>,
    /// Largest tensor-parallel degree to search
    #[arg(long, value_name = "N", default_value_t = 8)]
    tp_max: u32,
    /// Query tokens per pass: 1 plus the drafted tokens; searched if absent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    s_q: Option<u32>,
    /// Decode path; chosen if absent
    #[arg(long, value_name = "PATH")]
    path: Option<DecodePath>,
    /// What to optimise
    #[arg(long, value_enum, default_value_t)]
    objective: ObjectiveArg,
    /// Compare only the attention core: ignore weights, cache size and whether the model has layers to draft with
    #[arg(long)]
    attention_only: bool,
    /// Context length to plan for, in tokens [default: 4096, or the model's longest if shorter]
    #[arg(long, value_name = "TOKENS")]
    context: Option<u32>,
    /// Sequences to decode at once
    #[arg(long, value_name = "N", default_value_t = Goal::default().concurrency)]
    concurrency: u32,
    /// Chance that a drafted token is accepted
    #[arg(long, value_name = "SHARE", default_value_t = Goal::default().acceptance)]
    acceptance: f64,
    /// Output format [default: table on a terminal, else json]
    #[arg(short, long, value_enum)]
    output: Option<TableFormat>,
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

/// Prints the plan. A model that cannot run is printed with its arithmetic and then an error.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let shape = resolve_model(&args.model)?;
    let catalogue = Catalogue::builtin();
    let class = catalogue.get(&args.gpu).with_context(|| unknown_gpu(&catalogue, &args.gpu))?;
    let goal = args.goal(&shape);
    let format = TableFormat::or_default(args.output);
    match plan(&shape, &class.spec, &goal, &args.constraints()) {
        Ok(decision) => {
            let view = PlanView::decided(&args.model, class, &goal, &decision);
            format.print(&view, table)?;
            Ok(())
        }
        Err(PlanError::NothingFeasible { gpu, reason, candidates }) => {
            let view = PlanView::refused(&args.model, class, &goal, &candidates, &reason);
            format.print(&view, table)?;
            bail!("no way to run {} on {gpu}: {reason}", args.model)
        }
        Err(error) => Err(error.into()),
    }
}

impl Args {
    fn goal(&self, shape: &ModelShape) -> Goal {
        let default = Goal::default();
        let context_length =
            self.context.unwrap_or_else(|| default.context_length.min(shape.max_position_embeddings));
        let objective = match self.objective {
            ObjectiveArg::Throughput => Objective::Throughput,
            ObjectiveArg::Latency => Objective::Latency,
            ObjectiveArg::Cost => Objective::Cost,
        };
        let (concurrency, acceptance) = (self.concurrency, self.acceptance);
        Goal { objective, context_length, concurrency, acceptance, ..default }
    }

    fn constraints(&self) -> Constraints {
        Constraints {
            path: self.path,
            tensor_parallel: self.tp,
            max_tensor_parallel: self.tp_max,
            multi_token_prediction: self.s_q.map(|query_tokens| query_tokens - 1),
            scope: if self.attention_only { Scope::AttentionOnly } else { Scope::Deployment },
        }
    }
}

fn resolve_model(model: &str) -> anyhow::Result<ModelShape> {
    match model.parse::<ModelName>() {
        Ok(name) => Ok(gqla_planner::shape(name)),
        Err(unknown) if !Path::new(model).exists() => bail!("{unknown}, or a checkpoint directory"),
        Err(_) => Ok(Checkpoint::open(&PathBuf::from(model))?.model_shape()?),
    }
}

fn unknown_gpu(catalogue: &Catalogue, name: &str) -> String {
    let known: Vec<&str> = catalogue.iter().map(GpuClass::name).collect();
    format!("unknown GPU class `{name}`: expected one of {}", known.join(", "))
}

/// The JSON form of a plan. Field names are an interface.
#[derive(Serialize)]
struct PlanView<'a> {
    model: &'a str,
    gpu: &'a str,
    gpu_source: &'a str,
    gpu_confidence: &'static str,
    /// What the times and rates do and do not contain.
    scope: &'static str,
    candidates: Vec<CandidateView<'a>>,
    chosen: Option<CandidateView<'a>>,
    runner_up: Option<CandidateView<'a>>,
    margin: Option<f64>,
    reason: &'a str,
}

#[derive(Serialize)]
struct CandidateView<'a> {
    path: &'static str,
    tp: u32,
    s_q: u32,
    batch: u32,
    context: u32,
    attention_ns_per_token_layer: f64,
    tokens_per_second: f64,
    bytes_per_token_layer: u64,
    flops_per_token_layer: u64,
    intensity: f64,
    ridge: f64,
    bound: &'static str,
    kv_tokens_capacity: u64,
    feasible: bool,
    reason: &'a str,
}

const SCOPE: &str = "modelled at peak rates, attention core only: an upper bound for comparing candidates";

impl<'a> PlanView<'a> {
    fn decided(model: &'a str, class: &'a GpuClass, goal: &Goal, decision: &'a Decision) -> Self {
        let view = |candidate: &'a Candidate| CandidateView::new(candidate, goal);
        Self {
            chosen: Some(view(&decision.chosen)),
            runner_up: decision.runner_up.as_ref().map(view),
            margin: decision.runner_up.as_ref().map(|_| decision.margin),
            ..Self::refused(model, class, goal, &decision.candidates, &decision.reason)
        }
    }

    fn refused(
        model: &'a str,
        class: &'a GpuClass,
        goal: &Goal,
        candidates: &'a [Candidate],
        reason: &'a str,
    ) -> Self {
        Self {
            model,
            gpu: class.name(),
            gpu_source: &class.source,
            gpu_confidence: match class.confidence {
                Confidence::High => "high",
                Confidence::Low => "low",
            },
            scope: SCOPE,
            candidates: candidates.iter().map(|candidate| CandidateView::new(candidate, goal)).collect(),
            chosen: None,
            runner_up: None,
            margin: None,
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
            attention_ns_per_token_layer: candidate.attention_ns_per_query_token,
            tokens_per_second: candidate.attention_core_tokens_per_second,
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
        "ns/token·layer",
        "B/token·layer",
        "FLOP/B",
        "bound",
        "KV tokens",
        "batch",
        "runs",
    ];
    let rows: Vec<_> = view.candidates.iter().map(row).collect();
    let verdict = if view.chosen.is_some() { "chosen" } else { "refused" };
    let caution = match view.gpu_confidence {
        "low" => format!("caution: {}'s numbers are uncertain: {}\n", view.gpu, view.gpu_source),
        _ => String::new(),
    };
    format!("{}\n{verdict}: {}\n{caution}({})\n", columns(header, &rows), view.reason, view.scope)
}

fn row(candidate: &CandidateView<'_>) -> [String; 10] {
    [
        candidate.path.to_owned(),
        candidate.tp.to_string(),
        candidate.s_q.to_string(),
        format!("{:.4}", candidate.attention_ns_per_token_layer),
        candidate.bytes_per_token_layer.to_string(),
        format!("{:.1}", candidate.intensity),
        candidate.bound.to_owned(),
        candidate.kv_tokens_capacity.to_string(),
        candidate.batch.to_string(),
        if candidate.feasible { "yes" } else { "no" }.to_owned(),
    ]
}
