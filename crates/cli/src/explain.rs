//! `gqla explain`: what the operator would decide for a GQLADeployment on a fleet, and why, by the operator's own code.

mod input;
mod table;
mod view;

use std::path::PathBuf;

use anyhow::bail;
use gqla_api::{ConditionReason, GQLADeployment, ModelStatus};
use gqla_decide::{
    FleetSnapshot, NodeUse, Plan, Shape, ValidatedDeployment, goal, node_uses, plan, source_hash, validate,
};
use gqla_model::ModelShape;
use gqla_planner::Goal;

use self::{input::Input, view::View};
use crate::table::TableFormat;

const EXIT_CODES: &str = "Exit codes: 0 when every pool of every GQLADeployment has a plan; 1 when a GQLADeployment would be \
refused, a pool or a replica would have no place, a model's shape is not known here, or a file cannot be read; 2 for arguments \
that make no sense. What could be decided is printed all the same.";

/// Explain what the operator would decide for a GQLADeployment on a fleet, without a cluster
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Args {
    /// GQLADeployments to explain, as JSON or YAML (- for standard input). GPUClasses beside them count, other kinds are
    /// ignored
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    file: PathBuf,
    /// The fleet, as `kubectl get nodes -o json` (or yaml) prints it. It may also hold GPUClasses, Pods, by which agents are
    /// known to run, and ResourceSlices
    #[arg(long, value_name = "FILE")]
    nodes: PathBuf,
    /// GPUClasses, as `kubectl get gpuclasses -o yaml` prints them
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// What an inspect Job would find where spec.model.shape is absent: a built-in shape, a checkpoint, or its config.json
    #[arg(long, value_name = "SHAPE|PATH")]
    model: Option<String>,
    /// Measurements that replace the built-in figures, as the operator's --calibration
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Take DRA ResourceSlices into account
    #[arg(long)]
    resource_slices: bool,
    /// Output format [default: table on a terminal, else json]
    #[arg(short, long, value_enum)]
    output: Option<TableFormat>,
}

/// Prints every decision and, where one could not be made, an error.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let input = Input::read(args)?;
    for sentence in &input.refused_classes {
        eprintln!("warning: {sentence}");
    }
    let explained = explain_all(&input)?;
    TableFormat::or_default(args.output).print(&View::of(&explained), table::table)?;
    let open = explained.iter().filter(|one| !one.is_settled()).count();
    if open > 0 {
        bail!("{open} of {} GQLADeployments would not be planned in full: see failures", explained.len());
    }
    Ok(())
}

/// A GQLADeployment and what the operator would make of it.
struct Explained {
    name: String,
    namespace: String,
    outcome: Outcome,
}

enum Outcome {
    Refused(Refusal),
    Planned { plan: Plan, goal: Goal, nodes: Vec<NodeUse> },
}

/// Why nothing would be planned.
#[derive(Debug)]
struct Refusal {
    /// The condition's reason, or the API server's.
    reason: &'static str,
    sentence: String,
}

impl Explained {
    fn is_settled(&self) -> bool {
        matches!(&self.outcome, Outcome::Planned { plan, .. } if plan.failures.is_empty())
    }
}

fn explain_all(input: &Input) -> anyhow::Result<Vec<Explained>> {
    let shapeless = |object: &input::Object| {
        object.deployment.as_ref().is_ok_and(|deployment| deployment.spec.model.shape.is_none())
    };
    if input.shape.is_some() && !input.objects.iter().any(shapeless) {
        bail!("--model is given, but every GQLADeployment states its shape; leave out one of the two");
    }
    let explain = |object: &input::Object| {
        let outcome = match &object.deployment {
            Ok(deployment) => decide(deployment, input.shape.as_ref(), &input.fleet),
            Err(sentence) => Outcome::Refused(invalid(sentence)),
        };
        Explained { name: object.name.clone(), namespace: object.namespace.clone(), outcome }
    };
    Ok(input.objects.iter().map(explain).collect())
}

/// What the API server would say, then what the operator would.
fn decide(deployment: &GQLADeployment, shape: Option<&ModelShape>, fleet: &FleetSnapshot) -> Outcome {
    match admitted(deployment).and_then(|()| validated(deployment, shape)) {
        Ok((validated, shape)) => {
            let plan = plan(&validated, &shape, fleet);
            let nodes = node_uses(&validated, &plan, fleet);
            Outcome::Planned { goal: goal(&validated, &shape), plan, nodes }
        }
        Err(refusal) => Outcome::Refused(refusal),
    }
}

/// The rules of the CustomResourceDefinition, as its server would apply them.
fn admitted(deployment: &GQLADeployment) -> Result<(), Refusal> {
    kube::core::cel::validate_cel(deployment).map_err(|errors| {
        let sentences: Vec<_> = errors.iter().map(|error| error.message.as_str()).collect();
        invalid(&sentences.join("; "))
    })
}

fn invalid(sentence: &str) -> Refusal {
    Refusal { reason: "Invalid", sentence: format!("the API server refuses it: {sentence}") }
}

fn validated(
    deployment: &GQLADeployment,
    shape: Option<&ModelShape>,
) -> Result<(ValidatedDeployment, ModelShape), Refusal> {
    let mut informed = deployment.clone();
    // The operator would learn it from an inspect Job, and keep it here.
    if let Some(shape) = shape.filter(|_| deployment.spec.model.shape.is_none()) {
        informed.status.get_or_insert_default().model = Some(ModelStatus {
            source_hash: source_hash(&deployment.spec),
            shape: Some(shape.clone()),
            ..ModelStatus::default()
        });
    }
    let valid = validate(&informed, "")
        .map_err(|error| Refusal { reason: error.reason().as_str(), sentence: error.to_string() })?;
    match valid.shape.clone() {
        Shape::Known(shape) => Ok((valid, shape)),
        Shape::Unknown => Err(Refusal {
            reason: ConditionReason::InspectingModel.as_str(),
            sentence: "spec.model.shape is absent: the operator's inspect Job reads the shape from the model's files before \
                       anything is planned; give the files, or the name of a built-in shape, with --model"
                .to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests;
