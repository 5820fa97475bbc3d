//! `gqla plan`: what the operator would decide for a model on a GPU class, without a cluster or a GPU.

mod view;

use anyhow::bail;
use clap::{ValueEnum, builder::RangedI64ValueParser};
use gqla_decide::SERVER_BUILD;
use gqla_model::{CacheFormat, DecodePath, ModelShape};
use gqla_planner::{
    Backend, Calibration, Constraints, Efficiency, Goal, Objective, PlanError, RopeLayout, Runtime, Scope,
    plan_calibrated,
};
use view::{PlanView, table};

use crate::{calibration, gpu_classes, model, table::TableFormat};

/// Choose decode path, tensor parallelism, drafts and batch for a model on a GPU class.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A built-in shape such as deepseek-v3-gqla, a checkpoint, or its config.json
    #[arg(long, value_name = "SHAPE|PATH")]
    model: String,
    /// GPU class such as H20, in any case
    #[arg(long, value_name = "CLASS")]
    gpu: String,
    /// GPUClasses that extend and override the built-in classes, as `kubectl get gpuclasses -o yaml` prints them
    #[arg(long, value_name = "FILE")]
    classes: Option<std::path::PathBuf>,
    /// The engine whose kernels are priced
    #[arg(long, value_enum, default_value_t)]
    runtime: RuntimeArg,
    /// Tensor-parallel degree; searched if absent
    #[arg(long, value_name = "N", conflicts_with = "tp_max", value_parser = degrees())]
    tp: Option<u32>,
    /// Largest tensor-parallel degree to search
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = degrees())]
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
    /// How the GQA path stores its cache [default: as the runtime does; shared with --attention-only]
    #[arg(long, value_enum)]
    rope_layout: Option<RopeLayoutArg>,
    /// What the cache's numbers are stored as: f32, bf16 or int8 [default: as the runtime does; bf16 with --attention-only]
    #[arg(long, value_name = "FORMAT")]
    kv_cache_dtype: Option<CacheFormat>,
    /// Pad groups with idle heads where a degree does not divide the heads; the engine has to pad too
    #[arg(long)]
    head_padding: bool,
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
    /// What one GPU costs per hour, in any currency [default: as the GPUClass says]
    #[arg(long, value_name = "COST")]
    cost_per_gpu_hour: Option<f64>,
    /// Measurements that replace the built-in figures, as JSON
    #[arg(long, value_name = "FILE")]
    calibration: Option<std::path::PathBuf>,
    /// Build of the engine whose entries of the calibration count [default: this version of gqla-server; none for vllm]
    #[arg(long, value_name = "VERSION", requires = "calibration")]
    build: Option<String>,
    /// Output format [default: table on a terminal, else json]
    #[arg(short, long, value_enum)]
    output: Option<TableFormat>,
}

/// As many as a GQLADeployment may ask for.
fn degrees() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1024)
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

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RopeLayoutArg {
    /// One rotary key for all groups, as gqla-server has it
    Shared,
    /// A rotary key per group
    PerGroup,
    /// A rotary key per group and values as wide as keys, as the plugin for vLLM has it
    Padded,
}

/// Prints the plan. A model that cannot run is printed with its arithmetic and then an error.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let shape = model::resolve(&args.model)?;
    let classes = gpu_classes::catalogue(args.classes.as_deref())?;
    let class = model::gpu_class(&classes.catalogue, &args.gpu)?;
    let goal = args.goal(&shape, classes.costs.get(class.name()).copied());
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
        Err(PlanError::Goal { field, value, expected }) => {
            bail!(
                "{} is {value}, expected {}",
                flag(field),
                expected.replace("goal.contextLength", "--context")
            )
        }
        Err(error) => Err(error.into()),
    }
}

/// The flag that sets a field of the goal; the API's spelling means nothing on a command line.
fn flag(field: &str) -> String {
    let words = field.trim_end_matches("Length").chars().map(|c| match c.is_ascii_uppercase() {
        true => format!("-{}", c.to_ascii_lowercase()),
        false => c.to_string(),
    });
    format!("--{}", words.collect::<String>())
}

impl Args {
    fn goal(&self, shape: &ModelShape, class_cost: Option<f64>) -> Goal {
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
            cost_per_gpu_hour: self.cost_per_gpu_hour.or(class_cost),
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
            backend: Backend::OfClass,
            efficiency: match self.efficiency {
                EfficiencyArg::Peak => Efficiency::Peak,
                EfficiencyArg::Calibrated => Efficiency::Calibrated,
            },
            rope_layout: self.rope_layout.map(|layout| match layout {
                RopeLayoutArg::Shared => RopeLayout::Shared,
                RopeLayoutArg::PerGroup => RopeLayout::PerGroup,
                RopeLayoutArg::Padded => RopeLayout::Padded,
            }),
            cache_format: self.kv_cache_dtype,
            head_padding: self.head_padding,
        }
    }

    /// What counts for the build asked for; that of gqla-server is this program's own, other engines' are not known.
    fn calibration(&self) -> anyhow::Result<Calibration> {
        let calibration = calibration::read(self.calibration.as_deref())?;
        let own = match self.runtime {
            RuntimeArg::Native => Some(SERVER_BUILD),
            RuntimeArg::Vllm => None,
        };
        Ok(calibration.for_build(self.build.as_deref().or(own)))
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

#[cfg(test)]
mod tests;
